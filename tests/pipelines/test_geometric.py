"""Geometric matching: the network's points come back in pixels of the photographs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vision3d.errors import InputError, WeightsError
from vision3d.io.photo import Photo
from vision3d.pipelines.sd_dino.geometric import GeometricMatcher, GeometricOptions


class Brightest(torch.nn.Module):
    """Stands in for LoFTR: matches the brightest pixel of both images, in LoFTR's coordinates."""

    def forward(self, batch: dict) -> dict:
        found = {"confidence": torch.tensor([0.9])}
        for i in (0, 1):
            image = batch[f"image{i}"][0, 0]
            y, x = divmod(int(image.argmax()), image.shape[1])
            found[f"keypoints{i}"] = torch.tensor([[x + 0.5, y + 0.5]])
        return found


def photo(height: int, width: int, y: int, x: int) -> Photo:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y, x] = 255
    return Photo(pixels)


def test_points_are_in_pixels_of_the_photographs() -> None:
    matcher = GeometricMatcher("loftr", Brightest(), None, "stand-in", torch.device("cpu"))
    found = matcher.match(photo(48, 64, 10, 20), photo(80, 32, 70, 5))
    np.testing.assert_allclose(found.points_a, [[20.5, 10.5]])
    np.testing.assert_allclose(found.points_b, [[5.5, 70.5]])
    assert found.size_b == (80, 32) and found.mutual.all() and np.isnan(found.cycle_error).all()
    halves = GeometricOptions("loftr", max_size=32)
    scaled = matcher.match(photo(48, 64, 10, 20), photo(80, 32, 70, 5), options=halves)
    assert np.abs(scaled.points_a - [[20.5, 10.5]]).max() <= 2
    mask = np.zeros((48, 64), bool)
    assert len(matcher.match(photo(48, 64, 10, 20), photo(80, 32, 70, 5), masks=(mask, None))) == 0


@pytest.mark.parametrize("name", ["lightglue", "efficientloftr"])
def test_transformers_relative_points_become_pixels(name: str) -> None:
    """LightGlue's second index points into the second list; EfficientLoFTR's lists are in one order."""
    places = torch.tensor([[[[0.25, 0.5], [0.5, 0.5], [0, 0]], [[0.0, 0.0], [0.75, 0.25], [0.1, 0.2]]]])
    if name == "lightglue":
        matches = torch.tensor([[[1, -1, -1], [-1, 0, -1]]])
        scores = torch.tensor([[[0.8, 0.0, 0.0], [0.0, 0.8, 0.0]]])
        expected = np.array([[0.75 * 80, 0.25 * 40]])
        # SuperPoint names pixels by their index, LoFTR places with pixel centres at +0.5
        half = 0.5 / np.array([640, 480]) * [80, 40]
    else:
        matches = torch.tensor([[[0, -1, -1], [0, -1, -1]]])
        scores = torch.tensor([[[0.8, 0.0, 0.0], [0.8, 0.0, 0.0]]])
        expected, half = np.array([[0.0, 0.0]]), np.zeros(2)
    output = SimpleNamespace(keypoints=places, matches=matches, matching_scores=scores)

    class Inputs(dict):
        def to(self, device: object) -> Inputs:
            return self

    inputs = Inputs(pixel_values=torch.zeros(1, 2, 3, 480, 640))
    matcher = GeometricMatcher(
        name, lambda **_: output, lambda *_, **__: inputs, "stand-in", torch.device("cpu")
    )
    found = matcher.match(photo(40, 80, 0, 0), photo(40, 80, 0, 0))
    np.testing.assert_allclose(found.points_a, 20.0 + half[None])
    np.testing.assert_allclose(found.points_b, expected + half)


def test_superpoints_places_are_the_middles_of_its_pixels() -> None:
    """Found by transformers' own detector, in an image smaller than the photographs."""
    from transformers import SuperPointConfig, SuperPointForKeypointDetection
    from transformers.models.lightglue.image_processing_pil_lightglue import LightGlueImageProcessorPil

    torch.manual_seed(0)
    config = SuperPointConfig(
        encoder_hidden_sizes=[8, 8, 8, 8], decoder_hidden_size=8, descriptor_decoder_dim=8, nms_radius=1,
        border_removal_distance=0,
    )  # fmt: skip
    detector = SuperPointForKeypointDetection(config).eval()

    def match_in_order(pixel_values: torch.Tensor) -> SimpleNamespace:
        places = detector(pixel_values[0]).keypoints[None]
        order = torch.arange(places.shape[2]).expand(1, 2, -1)
        return SimpleNamespace(keypoints=places, matches=order, matching_scores=torch.ones(order.shape))

    processor = LightGlueImageProcessorPil(size={"height": 48, "width": 64})
    matcher = GeometricMatcher("lightglue", match_in_order, processor, "stand-in", torch.device("cpu"))
    pixels = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    found = matcher.match(Photo(pixels), Photo(pixels))
    assert len(found) > 5
    np.testing.assert_allclose(found.points_a / [200, 100] * [64, 48] % 1, 0.5, atol=1e-4)


@pytest.mark.slow
def test_loftr_loads_its_checkpoint_layout(tmp_path) -> None:
    from kornia.feature import LoFTR

    tensors = {f"matcher.{name}": value for name, value in LoFTR(pretrained=None).state_dict().items()}
    torch.save({"state_dict": tensors}, tmp_path / "loftr.ckpt")
    matcher = GeometricMatcher.from_pretrained("loftr", tmp_path / "loftr.ckpt")
    rng = np.random.default_rng(0)
    found = matcher.match(Photo(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8)), photo(64, 64, 1, 1))
    assert found.size_a == (64, 80)
    tensors.popitem()
    torch.save({"state_dict": tensors}, tmp_path / "loftr.ckpt")
    with pytest.raises(WeightsError, match="LoFTR"):
        GeometricMatcher.from_pretrained("loftr", tmp_path / "loftr.ckpt")


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(InputError, match="superduper"):
        GeometricMatcher.from_pretrained("superduper")
