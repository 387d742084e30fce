"""Released checkpoints are known by their tensors' names and shapes, and foreign files are refused by name."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from vision3d.errors import WeightsError
from vision3d.evaluation.parity.recipe import RecipeWeights
from vision3d.pipelines.primedepth.checkpoint import checkpoint_shapes, load_networks
from vision3d.weights import layouts, registry
from vision3d.weights.layouts import LAYOUTS, describe, identify, tensor_shapes

Shapes = dict[str, tuple[int, ...]]


def sparse_file(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A safetensors file of real size whose zeros take no room on disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.fixture(scope="module")
def published(shared: Path) -> dict[str, Shapes]:
    """The published key lists by layout."""

    def read(path: str) -> dict:
        return json.loads((shared / "golden" / path).read_text())

    def as_shapes(table: Mapping[str, list[int]]) -> Shapes:
        return {name: tuple(shape) for name, shape in table.items()}

    dmcalib = read("dmcalib/keys_real_size.json")
    labeller = as_shapes(read("primedepth/keys_labeller_real.json"))
    others = {k: v for k, v in checkpoint_shapes().items() if not k.startswith("labeller.")}
    return {
        "primedepth": {**others, **labeller},
        "sd2-unet-8ch": as_shapes(dmcalib["calib_unet"]),
        "sd-vae-decoder": as_shapes(dmcalib["vae_decoder"]),
        "sim2real": as_shapes(read("sim2real/keys_real_size.json")["keys"]),
        "triplaneturbo": as_shapes(read("triplaneturbo/checkpoint_layout.json")["keys"]),
    }


def test_published_key_lists_are_recognised(published) -> None:
    for layout, shapes in published.items():
        assert identify(shapes) == layout


def test_derived_names_are_the_published_ones(published) -> None:
    assert layouts.triplaneturbo_shapes() == published["triplaneturbo"]
    assert layouts.sim2real_shapes() == published["sim2real"]
    labeller = {k: v for k, v in checkpoint_shapes().items() if k.startswith("labeller.")}
    assert labeller == {k: v for k, v in published["primedepth"].items() if k.startswith("labeller.")}


def test_what_files_hold_besides_does_not_matter(published) -> None:
    text = {"cond_stage_model.model.ln_final.weight": (1024,), "betas": (1000,)}
    assert identify({**published["primedepth"], **text}) == "primedepth"
    assert identify({**published["sim2real"], **text, "loss_w": (1,)}) == "sim2real"
    assert identify({**published["triplaneturbo"], "background.net": (3, 3)}) == "triplaneturbo"
    prefixed = {f"decoder.{name}": shape for name, shape in published["sd-vae-decoder"].items()}
    assert identify(prefixed) == "sd-vae-decoder"


@pytest.mark.parametrize(
    "layout", ["primedepth", "sd2-unet-8ch", "sd-vae-decoder", "sim2real", "triplaneturbo"]
)
def test_one_missing_extra_or_misshapen_tensor_is_named(published, layout, tmp_path) -> None:
    shapes = published[layout]
    victim = sorted(shapes)[len(shapes) // 2]
    if layout == "primedepth":
        victim = next(name for name in shapes if name.startswith("labeller.refiner"))
    missing = {name: shape for name, shape in shapes.items() if name != victim}
    longer = {**shapes, victim: (7, *shapes[victim])}
    for broken in (missing, longer):
        file = sparse_file(tmp_path / "file.safetensors", broken)
        with pytest.raises(WeightsError) as caught:
            layouts.check(file, layout, "the test")
        text = str(caught.value)
        assert text.startswith(f"file.safetensors: this is not {LAYOUTS[layout][0]}") and "\n" not in text
        # A dimension that configurations are read off is reported as such.
        assert victim in text or "instead of" in text or "channels" in text or "no " in text
        assert identify(broken) != layout


def test_real_size_files_are_told_apart(published, tmp_path) -> None:
    for layout, shapes in published.items():
        file = sparse_file(tmp_path / f"{layout}.safetensors", shapes)
        assert describe(file) == LAYOUTS[layout][0]
        assert tensor_shapes(file) == shapes
        for other in published:
            if other != layout:
                with pytest.raises(WeightsError, match=f"it is {LAYOUTS[layout][0][:20]}"):
                    layouts.check(file, other, other)


def test_a_real_size_primedepth_file_is_taken_by_its_loader(published, tmp_path) -> None:
    file = sparse_file(tmp_path / "primedepth.safetensors", published["primedepth"])
    networks = load_networks(file)
    assert set(networks) == {"vae", "unet", "refiner", "depth_head", "segmentation_head"}
    with pytest.raises(WeightsError, match="not a PrimeDepth checkpoint"):
        load_networks(sparse_file(tmp_path / "sim2real.safetensors", published["sim2real"]))


def test_triplaneturbo_goes_the_whole_way(published, tmp_path) -> None:
    """The one released file that is small enough: recipe values, given by hand, verified, hashed again."""
    file = tmp_path / "triplane_turbo_sd_v1.pth"
    torch.save({"state_dict": dict(RecipeWeights(published["triplaneturbo"], 0))}, file)
    assert abs(file.stat().st_size - 91.2e6) < 0.5e6
    assert registry.take("triplaneturbo", [file]).state == "pulled"
    assert registry.verify("triplaneturbo").state == "right"
    assert registry.entry("triplaneturbo").name == "triplane_turbo_sd_v1.pth"


@pytest.mark.parametrize("model", ["dinov2_vits14", "dinov2_vitl14_reg", "dinov2_vitg14", "dino_vits8"])
def test_dino_networks_are_told_apart(model) -> None:
    from vision3d.backbone.dino import MODELS, Dino
    from vision3d.backbone.loading import empty_weights

    with empty_weights():
        shapes = {k: tuple(v.shape) for k, v in Dino(MODELS[model]).state_dict().items()}
    assert identify(shapes) == model


def test_foreign_and_damaged_files_are_refused_by_name(tmp_path) -> None:
    foreign = tmp_path / "resnet.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, foreign)
    with pytest.raises(WeightsError, match=r"resnet\.pth: none of the released checkpoints.*conv1\.weight"):
        describe(foreign)
    for name, content in (("a.safetensors", b"\xff" * 40), ("b.pth", b"nonsense"), ("c.ckpt", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
            describe(tmp_path / name)
