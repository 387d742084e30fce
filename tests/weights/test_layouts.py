"""Released checkpoints are known by their tensors' names and shapes, and foreign files are refused by name."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vision3d import cli
from vision3d.backbone.stable_diffusion import load_stable_diffusion
from vision3d.errors import WeightsError
from vision3d.evaluation.parity.recipe import RecipeWeights
from vision3d.pipelines.primedepth.checkpoint import checkpoint_shapes, load_networks
from vision3d.weights import layouts, registry
from vision3d.weights.convert import convert
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


CAPTIONER = {
    "clip_project.linear.weight": (768, 768),
    "clip_project.linear.bias": (768,),
    "clip_project.positional_embedding": (1, 77, 768),
    "alpha_cond": (1, 77, 768),
    "time_embed_project.linear.weight": (1280, 768),
    "time_embed_project.linear.bias": (1280,),
    "time_embed_project.positional_embedding": (1, 1, 1280),
    "alpha_cond_time_embed": (1280,),
}
"""Of SD+DINO's implicit captioner."""


def control_branch(unet: Shapes) -> Shapes:
    """A ControlNet's tensors by the paper: the UNet's encoder and middle, zero convolutions and a hint encoder."""
    encoder = ("conv_in.", "time_embedding.", "down_blocks.", "mid_block.")
    shapes = {name: shape for name, shape in unet.items() if name.startswith(encoder)}

    def convolution(name: str, inputs: int, outputs: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        shapes[f"{name}.bias"] = (outputs,)

    for i, width in enumerate([320] * 4 + [640] * 3 + [1280] * 5):
        convolution(f"controlnet_down_blocks.{i}", width, width, 1)
    convolution("controlnet_mid_block", 1280, 1280, 1)
    hint = "controlnet_cond_embedding"
    convolution(f"{hint}.conv_in", 3, 16, 3)
    for i, (a, b) in enumerate([(16, 16), (16, 32), (32, 32), (32, 96), (96, 96), (96, 256)]):
        convolution(f"{hint}.blocks.{i}", a, b, 3)
    convolution(f"{hint}.conv_out", 256, 320, 3)
    return shapes


@pytest.fixture(scope="module")
def published(shared: Path) -> dict[str, Shapes]:
    """The published key lists by layout."""

    def read(path: str) -> dict:
        return json.loads((shared / "golden" / path).read_text())

    def as_shapes(table: Mapping[str, list[int]]) -> Shapes:
        return {name: tuple(shape) for name, shape in table.items()}

    dmcalib = read("dmcalib/keys_real_size.json")
    calibration = as_shapes(dmcalib["calib_unet"])
    # As the specification words it: "keys of the SD 2.1-base UNet unchanged" and four tensors more.
    camera = {
        "camera_embedding.linear_1.weight": (1280, 240),
        "camera_embedding.linear_1.bias": (1280,),
        "camera_embedding.linear_2.weight": (1280, 1280),
        "camera_embedding.linear_2.bias": (1280,),
    }
    plain = {**calibration, "conv_in.weight": (320, 4, 3, 3)}
    labeller = as_shapes(read("primedepth/keys_labeller_real.json"))
    others = {k: v for k, v in checkpoint_shapes().items() if not k.startswith("labeller.")}
    return {
        "primedepth": {**others, **labeller},
        "sd2-unet-8ch": calibration,
        "sd2-unet": plain,
        "direct25-normal": {**plain, **camera},
        "sd2-controlnet": control_branch(plain),
        "odise": {f"backbone.feature_extractor.{name}": shape for name, shape in CAPTIONER.items()},
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


def test_the_numbers_of_the_specifications_are_met(published) -> None:
    def values(layout: str) -> int:
        return sum(torch.Size(shape).numel() for shape in published[layout].values())

    dead = [name for name in published["sd2-controlnet"] if name.startswith("controlnet_")]
    assert (len(published["sd2-controlnet"]), len(dead)) == (340, 42)
    assert values("sd2-controlnet") == 364_228_240
    assert (len(published["direct25-normal"]), values("direct25-normal")) == (690, 867_858_884)
    assert (len(published["sd2-unet-8ch"]), values("sd2-unet-8ch")) == (686, 865_922_244)
    assert (len(published["sd2-unet"]), values("sd2-unet")) == (686, 865_910_724)
    assert (len(published["triplaneturbo"]), values("triplaneturbo")) == (1110, 22_684_166)
    living = {name: shape for name, shape in published["sd2-controlnet"].items() if name not in dead}
    assert identify(living) == "sd2-controlnet"


@pytest.mark.parametrize(
    "layout",
    [
        "primedepth",
        "sd2-unet-8ch",
        "sd2-unet",
        "sd2-controlnet",
        "direct25-normal",
        "odise",
        "sd-vae-decoder",
        "sim2real",
        "triplaneturbo",
    ],
)
def test_one_missing_extra_or_misshapen_tensor_is_named(published, layout, tmp_path) -> None:
    shapes = published[layout]
    victim = sorted(shapes)[len(shapes) // 2]
    if layout == "primedepth":
        victim = next(name for name in shapes if name.startswith("labeller.refiner"))
    elif layout == "direct25-normal":
        victim = "camera_embedding.linear_2.weight"
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


@pytest.mark.parametrize("layout", ["sd2-unet-8ch", "sd2-unet", "sim2real"])
def test_real_size_files_are_taken_by_the_loader_of_stable_diffusion(published, layout, tmp_path) -> None:
    file = sparse_file(tmp_path / "file.safetensors", published[layout])
    found = load_stable_diffusion(file, family="sd2", load=False)
    assert found.unet.config.in_channels == (8 if layout == "sd2-unet-8ch" else 4)
    assert (found.vae is not None) == (layout == "sim2real")
    with pytest.raises(WeightsError, match=r"file\.safetensors: this is SD 2\.x, the task needs SD 1\.x"):
        load_stable_diffusion(file, family="sd1", load=False)


@pytest.mark.parametrize(
    "layout", ["sd2-unet-8ch", "sd2-controlnet", "direct25-normal", "odise", "triplaneturbo"]
)
def test_files_without_another_layout_are_named_by_convert(published, layout, tmp_path) -> None:
    file = sparse_file(tmp_path / "file.safetensors", published[layout])
    with pytest.raises(WeightsError, match=r"file\.safetensors: this is .*it is used as it is") as caught:
        convert(file, tmp_path / "out")
    assert LAYOUTS[layout][0] in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_captioner_is_verified_and_a_foreign_one_refused(published, tmp_path, capsys) -> None:
    """As the file is published: a dictionary named ``model`` with the mask head beside it."""
    tensors = dict(RecipeWeights(published["odise"], 0))
    tensors["category_head.projection.weight"] = torch.zeros(4, 4)
    file = tmp_path / "odise.pth"
    torch.save({"model": tensors, "iteration": 9}, file)
    assert cli.main(["weights", "verify", str(file)]) == 0
    assert "an ODISE checkpoint with the implicit captioner" in capsys.readouterr().out
    # The right tensors, yet not the published file, whose name holds its checksum.
    assert cli.main(["weights", "pull", "odise-captioner", "--from", str(file), "--accept-license"]) == 2
    assert "odise" in capsys.readouterr().err
    assert registry.pulled("odise-captioner") is None


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


def test_weights_of_a_folder_are_not_taken_without_its_configurations(tmp_path) -> None:
    from vision3d.weights import registry

    file = tmp_path / "unet.fp16.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(WeightsError, match="a folder with configurations, not a file"):
        registry.take("stablenormal", [file])
    with pytest.raises(WeightsError, match="without a configuration"):
        registry.take("stablenormal", [tmp_path])
    assert registry.pulled("stablenormal") is None
