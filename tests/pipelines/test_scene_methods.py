"""``vision3d scene`` with the real methods on narrow networks: PrimeDepth's embedded ones, the others random."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTokenizer

from vision3d.backbone.featurecache import shared_latents
from vision3d.backbone.text import load_text_tower
from vision3d.camera import Intrinsics
from vision3d.cli import main
from vision3d.pipelines.dmcalib import DMCalib
from vision3d.pipelines.dmcalib.camera_image import angles_to_channels, encode_angles
from vision3d.pipelines.dmcalib.checkpoint import Contexts, build_decoder
from vision3d.pipelines.dmcalib.options import DMCalibConfig
from vision3d.pipelines.primedepth.pipeline import working_size
from vision3d.pipelines.scene import Scene, ScenePipeline
from vision3d.pipelines.stablenormal import StableNormal
from vision3d.pipelines.stablenormal.training import image_branch_of
from vision3d.weights import MINI

UNET = {
    "block_out_channels": (16, 24),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": (2, 2),
    "norm_num_groups": 8,
    "use_linear_projection": True,
}
TRUTH = Intrinsics(110.0, 110.0, 48.0, 36.0, 96, 72)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the two methods, whose autoencoder is the embedded one."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("weights")
    vae = AutoencoderKL.from_pretrained(MINI / "primedepth" / "vae")
    latents = vae.config.latent_channels
    contexts = Contexts(
        {
            prompt: torch.randn(4, 16)
            for prompt in ("", "indoor geometry", "outdoor geometry", "object geometry")
        }
    )
    unets = [
        UNet2DConditionModel(in_channels=2 * latents, out_channels=latents, cross_attention_dim=16, **UNET)
        for _ in range(2)
    ]
    config = DMCalibConfig(max_size=96, depth_max_size=96, steps=3, ensemble=1)
    DMCalib(vae, unets[0], unets[1], build_decoder(vae.config), contexts, config).save_pretrained(
        root / "dmcalib"
    )
    tokenizer = CLIPTokenizer.from_pretrained(MINI / "primedepth" / "tokenizer")
    tower = load_text_tower(MINI / "primedepth" / "text_encoder", dtype=torch.float32)
    unet = UNet2DConditionModel(
        in_channels=latents, out_channels=latents, cross_attention_dim=tower.config.hidden_size, **UNET
    )
    StableNormal(
        vae=vae,
        unet=unet,
        controlnet=image_branch_of(unet),
        text_encoder=tower,
        tokenizer=tokenizer,
        default_resolution=0,
        default_processing_resolution=96,
    ).save_pretrained(root / "stablenormal")
    return {"dmcalib": root / "dmcalib", "stablenormal": root / "stablenormal"}


@pytest.fixture
def known_camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Random networks show no camera: the decoded picture is replaced by that of the true one."""

    def decode(self: DMCalib, latents: torch.Tensor) -> torch.Tensor:
        side = 8 * latents.shape[-1]
        channels = angles_to_channels(encode_angles(TRUTH.resized(side, side * 3 // 4)))
        picture = np.zeros((3, side, side), np.float32)
        top = (side - side * 3 // 4) // 2
        picture[:2, top : top + side * 3 // 4] = channels / 2 + 0.5
        return torch.from_numpy(picture)[None].repeat(len(latents), 1, 1, 1)

    monkeypatch.setattr(DMCalib, "decode", decode)
    shared_latents().clear()
    yield
    shared_latents().clear()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((128, 96), Image.Resampling.BICUBIC).save(tmp_path / "room.png")
    return tmp_path / "room.png"


def encodes(pipeline: ScenePipeline, photo: Path, **options: Any) -> tuple[Scene, list[tuple[str, int, int]]]:
    """A scene, and what its autoencoders encoded: by whose norms, and how large."""
    runs: list[tuple[str, int, int]] = []
    vaes = {id(m.vae): m.vae for m in (pipeline.depth, pipeline.normals, pipeline.calibration)}  # type: ignore[union-attr]

    def watch(vae: AutoencoderKL) -> Any:
        eps = f"eps {vae.encoder.conv_norm_out.eps:g}"  # the lean encoder calls the layers, not the encoder
        return vae.quant_conv.register_forward_pre_hook(
            lambda _, x: runs.append((eps, 8 * x[0].shape[-2], 8 * x[0].shape[-1]))
        )

    hooks = [watch(vae) for vae in vaes.values()]
    try:
        return pipeline(str(photo), **options), runs  # type: ignore[return-value]
    finally:
        for hook in hooks:
            hook.remove()


def test_each_distinct_preprocessing_and_autoencoder_encodes_once(
    weights: dict[str, Path], known_camera: None, photo: Path
) -> None:
    """PrimeDepth's autoencoder has other norms than that of the two others, so it is a distinct one."""
    pipeline = ScenePipeline.from_pretrained(weights)
    assert pipeline.normals.vae is pipeline.calibration.vae
    scene, runs = encodes(pipeline, photo)
    # The photograph: PrimeDepth's own size, the padded square of the calibration, and 96 × 72 by two filters for metric
    # depth and normals. The third of that size is the Camera Image, which the metric depth reads, too.
    height, width = (side // 8 * 8 for side in working_size(96, 128, pipeline.depth.config["max_size"]))
    assert sorted(runs) == [("eps 1e-05", height, width), *[("eps 1e-06", 72, 96)] * 3, ("eps 1e-06", 96, 96)]
    assert scene.size == (96, 128)
    shared_latents().clear()
    common, runs = encodes(pipeline, photo, common_preprocessing=True)
    # Once by either autoencoder, and the Camera Image.
    assert sorted(runs) == [("eps 1e-05", 96, 96), *[("eps 1e-06", 96, 96)] * 2]
    assert common.intrinsics.fx == pytest.approx(110 * 128 / 96, rel=0.01)


def test_the_verb_writes_a_scene_and_skips_it_the_second_time(
    weights: dict[str, Path], known_camera: None, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["scene", str(photo), "--out", str(tmp_path / "out"), "--fast", "--domain", "indoor", "--json"]
    command += [word for name, folder in weights.items() for word in (f"--{name}", str(folder))]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 1
    names = {path.name for path in (tmp_path / "out" / "room").iterdir()}
    assert names >= {
        "scene.json",
        "camera.json",
        "metric_depth.npy",
        "normals.npy",
        "fused_depth.npy",
        "preview.png",
    }
    record = json.loads((tmp_path / "out" / "room" / "result.json").read_text())
    assert record["kind"] == "scene" and record["unit"] == "m"
    assert set(record["sources"]) == {"camera", "metric depth", "relative depth", "normals"}
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 1


def test_a_pattern_gives_a_list_of_scenes(weights: dict[str, Path], known_camera: None, photo: Path) -> None:
    scenes = ScenePipeline.from_pretrained(weights)(str(photo.parent / "*.png"), fast=True)
    assert isinstance(scenes, list) and [scene.photo.name for scene in scenes] == ["room"]


def test_the_embedded_weights_make_a_scene_and_say_how_far_their_depth_is_to_be_trusted() -> None:
    pipeline = ScenePipeline.from_pretrained(
        dict.fromkeys(("primedepth", "stablenormal", "dmcalib"), "mini"), turbo=True, device="cpu"
    )
    scene = pipeline(Path(__file__).parents[2] / "examples" / "desk.png", fast=True)
    assert isinstance(scene, Scene)
    assert (
        scene.provenance.settings["fusion"]["depth_noise"] == pipeline.calibration.config.depth_noise > 0.05
    )
    assert 30 < scene.intrinsics.fov_x < 110
    assert 0.3 < float(np.median(scene.fused[scene.usable()])) < 10  # a desk, in metres
