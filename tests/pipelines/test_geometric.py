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
        expected = [[0.75 * 80, 0.25 * 40]]
    else:
        matches = torch.tensor([[[0, -1, -1], [0, -1, -1]]])
        scores = torch.tensor([[[0.8, 0.0, 0.0], [0.8, 0.0, 0.0]]])
        expected = [[0.0, 0.0]]
    output = SimpleNamespace(keypoints=places, matches=matches, matching_scores=scores)

    class Inputs(dict):
        def to(self, device: object) -> Inputs:
            return self

    matcher = GeometricMatcher(
        name, lambda **_: output, lambda *_, **__: Inputs(), "stand-in", torch.device("cpu")
    )
    found = matcher.match(photo(40, 80, 0, 0), photo(40, 80, 0, 0))
    np.testing.assert_allclose(found.points_a, [[20.0, 20.0]])
    np.testing.assert_allclose(found.points_b, expected)


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
