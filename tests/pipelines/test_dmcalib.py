"""DM-Calib: loading the released layouts, the whole pass with small random networks, results and verbs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file

from vision3d.backbone.loading import empty_weights
from vision3d.backbone.schedule import ddim_timesteps
from vision3d.camera import Intrinsics, invert_pose
from vision3d.cli import main
from vision3d.errors import InputError, WeightsError
from vision3d.io.colmap import read_cameras, read_images
from vision3d.io.transforms import read_transforms
from vision3d.pipelines.dmcalib import DMCalib
from vision3d.pipelines.dmcalib.camera_image import angles_to_channels, encode_angles, encode_camera_image
from vision3d.pipelines.dmcalib.checkpoint import Contexts, build_decoder
from vision3d.pipelines.dmcalib.options import CalibrationOptions, DMCalibConfig
from vision3d.pipelines.dmcalib.pipeline import (
    depth_from_output,
    mirrored_camera_image,
    share_camera,
)
from vision3d.pipelines.dmcalib.training import UNetShape
from vision3d.results import CameraPrediction

SHAPE = UNetShape((16, 24), (2, 3), (False, True), groups=8)
VAE = {
    "block_out_channels": (8, 8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.18215,
}
PROMPTS = {"": 2, "indoor geometry": 4, "outdoor geometry": 4, "object geometry": 5}
TRUTH = Intrinsics(90.0, 92.0, 66.0, 44.0, 120, 90)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small random networks in a folder of their own."""
    torch.manual_seed(0)
    vae = AutoencoderKL(**VAE)
    unets = [UNet2DConditionModel(**SHAPE.config(16, 8)) for _ in range(2)]
    contexts = Contexts({prompt: torch.randn(n, 16) for prompt, n in PROMPTS.items()})
    config = DMCalibConfig(max_size=64, depth_max_size=64, steps=3, ensemble=2)
    pipeline = DMCalib(vae, unets[0], unets[1], build_decoder(vae.config), contexts, config)
    where = tmp_path_factory.mktemp("dmcalib") / "weights"
    pipeline.save_pretrained(where)
    return where


@pytest.fixture
def known_cameras(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The network "predicts" the true camera of every photograph, scaled to its size, a little noisy."""

    def camera_images(self: DMCalib, photos: Any, options: CalibrationOptions, generator: Any = None) -> Any:
        rng = np.random.default_rng(0)
        pictures = []
        for photo in photos:
            height, width = photo.size
            exact = angles_to_channels(encode_angles(TRUTH.resized(width, height).resized(64, 48)))
            channels = np.concatenate([exact, np.zeros((1, 48, 64), np.float32)])
            noise = rng.normal(0, 0.004, (2, *channels.shape))
            pictures.append(np.clip(channels[None] / 2 + 0.5 + noise, 0, 1).astype(np.float32))
        return pictures

    monkeypatch.setattr(DMCalib, "camera_images", camera_images)
    yield


def photograph(path: Path, size: tuple[int, int] = (120, 90), seed: int = 0, **options: Any) -> Path:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, **options)
    return path


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


# Loading ------------------------------------------------------------------------------------------------


def test_the_published_keys_are_those_of_the_networks(golden: Path) -> None:
    table = json.loads((golden / "dmcalib" / "keys_real_size.json").read_text())
    config = {
        "in_channels": 8,
        "sample_size": 96,
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    }
    with empty_weights():
        unet = UNet2DConditionModel(**config)
        vae = AutoencoderKL(**{**VAE, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
                               "norm_num_groups": 32})  # fmt: skip
        decoder = build_decoder(vae.config)
    for network, name in ((unet, "calib_unet"), (decoder, "vae_decoder")):
        ours = {key: list(value.shape) for key, value in network.state_dict().items()}
        assert ours == table[name]


def test_saved_and_loaded_predictions_are_equal(folder: Path, tmp_path: Path) -> None:
    first = DMCalib.from_pretrained(folder, device="cpu")
    photo = photograph(tmp_path / "a.png")
    from vision3d.io.images import load_photo

    options = CalibrationOptions()
    before = first.camera_images([load_photo(photo)], options)[0]
    first.save_pretrained(tmp_path / "copy")
    second = DMCalib.from_pretrained(tmp_path / "copy", device="cpu", memory="1M")
    np.testing.assert_array_equal(second.camera_images([load_photo(photo)], options)[0], before)
    assert before.shape == (2, 3, 48, 64)
    assert second.config == first.config


def test_the_released_layout_takes_its_base_from_elsewhere(folder: Path, tmp_path: Path) -> None:
    released, base = tmp_path / "DM-Calib", tmp_path / "sd21"
    shutil.copytree(folder / "calib", released / "calib2")
    shutil.copytree(folder / "depth_safe", released / "depth_safe")
    shutil.copytree(folder / "vae", base / "vae")
    with pytest.raises(WeightsError, match="DM-Calib needs the autoencoder"):
        DMCalib.from_pretrained(released, device="cpu")
    pipeline = DMCalib.from_pretrained(
        released, base=base, embeddings=folder / "text_embeddings.safetensors", device="cpu"
    )
    assert pipeline.config == DMCalibConfig()  # the published settings
    shutil.copytree(folder / "calib", released / "calib" / "unet")
    again = DMCalib.from_pretrained(released, base=base, device="cpu")
    chosen = DMCalib.from_pretrained(released, base=base, calib_subfolder="calib2", device="cpu")
    assert "calib2" in chosen.weights_name and chosen.weights_name != again.weights_name
    with pytest.raises(WeightsError, match="there is calib/unet, calib2"):
        DMCalib.from_pretrained(released, base=base, calib_subfolder="calib3", device="cpu")
    with pytest.raises(WeightsError, match="no embedding of the prompt"):
        _ = again.contexts[""]
    (released / "model_index.json").write_text(json.dumps({"_class_name": "DMCalib", "base": "../sd21"}))
    assert DMCalib.from_pretrained(released, device="cpu").vae is not None


def test_foreign_networks_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "weights"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "calib" / "config.json").read_text())
    (copy / "calib" / "config.json").write_text(json.dumps({**config, "in_channels": 4}))
    with pytest.raises(WeightsError, match="4 input and 4 output channels is not the calibration UNet"):
        DMCalib.from_pretrained(copy, device="cpu")
    (copy / "calib" / "config.json").write_text(json.dumps(config))
    tensors = load_file(copy / "depth_safe" / "diffusion_pytorch_model.safetensors")
    tensors.pop("conv_out.bias")
    save_file(tensors, copy / "depth_safe" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(WeightsError, match=r"missing conv_out\.bias"):
        DMCalib.from_pretrained(copy, device="cpu")
    (copy / "model_index.json").write_text('{"_class_name": "PrimeDepth"}')
    with pytest.raises(WeightsError, match="holds a PrimeDepth"):
        DMCalib.from_pretrained(copy, device="cpu")


def test_decoders_of_every_age_are_read_and_code_is_not(folder: Path, tmp_path: Path) -> None:
    from vision3d.backbone.loading import load_weights
    from vision3d.pipelines.dmcalib.checkpoint import load_decoder

    config = AutoencoderKL(**VAE).config
    tensors = load_file(folder / "depth_safe" / "vae_decoder.safetensors")
    old = {}
    for name, value in tensors.items():
        for new, was in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{was}.")
        old[f"decoder.{name}"] = value.clone()
    assert any(".query." in name for name in old)
    torch.save(old, tmp_path / "vae_decoder.pth")
    decoder = load_decoder(tmp_path / "vae_decoder.pth", config)
    load_weights(decoder)
    for name, value in decoder.state_dict().items():
        assert torch.equal(value, tensors[name])
    torch.save(build_decoder(config), tmp_path / "module.pth")
    with pytest.raises(WeightsError, match="pickled code, which is never executed"):
        load_decoder(tmp_path / "module.pth", config)


def test_contexts_come_from_a_text_tower_without_padding(shared: Path) -> None:
    from vision3d.weights import MINI

    root = MINI / "primedepth"
    contexts = Contexts.find(root, root)
    from transformers import CLIPTextModel

    tower = CLIPTextModel.from_pretrained(root / "text_encoder").float().eval()
    from vision3d.backbone.tokeniser import Tokeniser

    ids, lengths = Tokeniser.from_folder(root / "tokenizer")(["indoor geometry"])
    with torch.no_grad():
        expected = tower(ids[:, : int(lengths[0])]).last_hidden_state
    assert contexts[""].shape[1] == 2
    torch.testing.assert_close(contexts["indoor geometry"], expected, atol=1e-4, rtol=1e-4)


# Inference ----------------------------------------------------------------------------------------------


def test_an_ensemble_is_one_batch_and_photographs_do_not_depend_on_each_other(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vision3d.io.images import load_photo

    pipeline = DMCalib.from_pretrained(folder, device="cpu")
    photos = [load_photo(photograph(tmp_path / f"{i}.png", (120, 90 + 20 * i), i)) for i in range(2)]
    calls: list[int] = []
    forward = pipeline.unet.forward
    monkeypatch.setattr(
        pipeline.unet, "forward", lambda x, *a, **k: (calls.append(len(x)), forward(x, *a, **k))[1]
    )
    together = pipeline.camera_images(photos, CalibrationOptions(ensemble=3))
    assert calls == [6, 6, 6]
    for photo, pictures in zip(photos, together, strict=True):
        alone = pipeline.camera_images([photo], CalibrationOptions(ensemble=3))[0]
        np.testing.assert_allclose(alone, pictures, atol=2e-5)
    again = pipeline.camera_images(photos, CalibrationOptions(ensemble=3))
    np.testing.assert_array_equal(again[0], together[0])
    other = pipeline.camera_images(photos, CalibrationOptions(ensemble=3, seed=1))
    assert np.abs(other[0] - together[0]).max() > 1e-3
    eight_bits = pipeline.camera_images(photos, CalibrationOptions(ensemble=3, quantize=True))[0] * 255
    np.testing.assert_allclose(eight_bits, np.round(eight_bits), atol=1e-4)


def test_few_steps_start_at_the_end_of_the_schedule() -> None:
    assert ddim_timesteps(1, spacing="trailing").tolist() == [999]
    assert ddim_timesteps(4, spacing="trailing").tolist() == [999, 749, 499, 249]
    for steps in range(1, 1001):
        assert len(ddim_timesteps(steps, spacing="trailing")) == steps
    config = DMCalibConfig()
    assert CalibrationOptions(steps=4).completed(config).spacing == "trailing"
    assert CalibrationOptions().completed(config).spacing == "leading"
    assert CalibrationOptions(noise="zeros").completed(config).ensemble == 2


def test_from_zeros_the_second_sample_is_of_the_mirrored_photograph(folder: Path, tmp_path: Path) -> None:
    from vision3d.io.images import Photo, load_photo

    pipeline = DMCalib.from_pretrained(folder, device="cpu")
    photo = load_photo(photograph(tmp_path / "a.png", (120, 90)))
    options = CalibrationOptions(noise="zeros", steps=1, ensemble=5)
    both = pipeline.camera_images([photo, photo], options)[1]
    assert len(both) == 2 and np.abs(both[0] - both[1]).max() > 1e-3
    turned = Photo(np.ascontiguousarray(photo.pixels[:, ::-1]))
    other = torch.from_numpy(pipeline.camera_images([turned], replace(options, ensemble=1))[0])
    np.testing.assert_allclose(both[1], mirrored_camera_image(other)[0].numpy(), atol=2e-5)

    camera = Intrinsics(80, 82, 50, 40, 120, 90)
    grey = np.zeros((90, 120, 3), np.float32)
    seen, mirror = (
        torch.from_numpy(encode_camera_image(c, grey) / 2 + 0.5)
        for c in (camera, replace(camera, cx=120 - camera.cx))
    )
    torch.testing.assert_close(mirrored_camera_image(mirror)[:2], seen[:2], atol=1e-5, rtol=0)


def test_from_zeros_depth_is_the_mean_of_both_ways_round(folder: Path, tmp_path: Path) -> None:
    from vision3d.io.images import Photo, load_photo

    pipeline = DMCalib.from_pretrained(folder, device="cpu")
    photo = load_photo(photograph(tmp_path / "a.png", (120, 90)))
    turned = Photo(np.ascontiguousarray(photo.pixels[:, ::-1]))
    lens = Intrinsics(100, 101, 50, 44, 120, 90)
    mirror = replace(lens, cx=120 - lens.cx)
    once, twice = (CalibrationOptions(noise="zeros", ensemble=n, depth=True) for n in (1, 2))
    here = pipeline.depth(photo, lens, once).depth
    there = pipeline.depth(turned, mirror, once).depth[:, ::-1]
    assert np.abs(here - there).max() > 1e-3 * here.max()
    both = pipeline.depth(photo, lens, twice).depth
    np.testing.assert_allclose(both, (here + there) / 2, rtol=1e-3)
    np.testing.assert_allclose(pipeline.depth(turned, mirror, twice).depth, both[:, ::-1], rtol=1e-3)
    # with noise there is nothing to mirror
    noisy = CalibrationOptions(noise="gaussian", ensemble=2, depth=True)
    np.testing.assert_array_equal(pipeline.depth(photo, lens, noisy).depth, here)


def test_one_step_from_zeros_is_minus_sigma_times_the_output(folder: Path) -> None:
    pipeline = DMCalib.from_pretrained(folder, device="cpu")
    image = torch.randn(1, 4, 8, 8)
    seen: dict[str, torch.Tensor] = {}
    found = pipeline.denoise(
        image, torch.zeros(1, 4, 8, 8), pipeline.contexts[""], ddim_timesteps(1, spacing="trailing"),
        finish=True, probe=seen.__setitem__,
    )  # fmt: skip
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    sigma = np.sqrt(1 - np.cumprod(1 - betas)[-1])
    torch.testing.assert_close(found, -float(sigma) * seen["unet_step0"])


def test_the_camera_is_that_of_the_original_photograph(folder: Path, tmp_path: Path, known_cameras) -> None:
    pipeline = DMCalib.from_pretrained(folder, device="cpu")
    for size in ((120, 90), (1200, 900), (60, 45)):
        prediction = pipeline(photograph(tmp_path / "a.png", size))
        expected = TRUTH.resized(*size)
        camera = prediction.intrinsics
        assert (camera.width, camera.height) == size
        np.testing.assert_allclose(
            [camera.fx, camera.fy, camera.cx, camera.cy],
            [expected.fx, expected.fy, expected.cx, expected.cy],
            rtol=0.01,
        )
        assert 0 < prediction.sigma[0] < 0.02 * size[0]
    square = pipeline(photograph(tmp_path / "b.png", (121, 90)), square_pixels=True, centered=True).intrinsics
    assert square.fx == pytest.approx(square.fy, rel=1e-6)
    assert (square.cx, square.cy) == pytest.approx((60.5, 45))
    known = pipeline(photograph(tmp_path / "b.png"), focal=95.0).intrinsics
    assert known.fx == pytest.approx(95) and known.fy == pytest.approx(95)


def test_depth_at_any_size_is_within_the_domains_range(folder: Path, tmp_path: Path) -> None:
    from vision3d.io.images import load_photo

    pipeline = DMCalib.from_pretrained(folder, device="cpu")
    photo = load_photo(photograph(tmp_path / "a.png", (121, 87)))
    camera = TRUTH.resized(121, 87)
    depths = {}
    for domain, end in (("indoor", 50), ("outdoor", 150), ("object", 10)):
        found = pipeline.depth(photo, camera, CalibrationOptions(depth=True, domain=domain))
        assert found.depth.shape == (87, 121) and found.unit == "m"
        assert found.depth.min() >= 0 and found.depth.max() <= end
        depths[domain] = found.depth / end
    assert np.abs(depths["indoor"] - depths["outdoor"]).max() > 1e-5  # the prompt matters
    cut = pipeline.depth(photo, camera, CalibrationOptions(depth=True, exact_size=False))
    assert cut.depth.shape == (87, 121)
    other = pipeline.depth(photo, Intrinsics.from_focal(40, 121, 87), CalibrationOptions(depth=True))
    assert np.abs(other.depth - depths["outdoor"] * 150).max() > 1e-3  # the camera matters


def test_the_decoders_output_spans_the_range_in_either_scale() -> None:
    output = torch.linspace(-12, 12, 25)[None, None].expand(1, 3, 1, 25)
    ten = depth_from_output(output, scale_10=True)[0, 0]
    one = depth_from_output(output, scale_10=False)[0, 0]
    torch.testing.assert_close(ten[2:23], torch.linspace(0, 1, 21))
    assert (ten[:2] == 0).all() and (ten[23:] == 1).all()
    torch.testing.assert_close(one[11:14], torch.tensor([0.0, 0.5, 1.0]))


def test_weights_without_a_domain_or_depth_say_so(folder: Path, tmp_path: Path) -> None:
    pipeline = DMCalib.from_pretrained(folder, device="cpu")
    photo = photograph(tmp_path / "a.png")
    pipeline.config = DMCalibConfig(max_size=64, ranges={"any": 80.0}, domain="any")
    with pytest.raises(InputError, match="domain 'indoor'; these weights know any"):
        pipeline(photo, depth=True, domain="indoor")
    pipeline.depth_unet = None
    with pytest.raises(WeightsError, match="no depth networks"):
        pipeline(photo, depth=True)


def test_one_bad_photograph_does_not_move_a_shared_camera() -> None:
    good = [Intrinsics(100 + d, 100, 50, 40, 100, 80) for d in (-1, 0, 1, 0.5)]
    bad = Intrinsics(300, 20, 5, 70, 100, 80)
    predictions = [CameraPrediction(camera=c, covariance=np.eye(4)) for c in (*good, bad)]
    shared = share_camera(predictions)
    assert shared[0].intrinsics.fx == 100.5 and all(p.intrinsics == shared[0].intrinsics for p in shared)
    assert shared[0].shared_by == 5
    few = share_camera(predictions[:4])
    assert few[0].covariance is not None and few[0].covariance[0, 0] < 1
    with pytest.raises(InputError, match="2 sizes"):
        share_camera([*predictions, CameraPrediction(camera=bad.resized(50, 40))])


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"steps": 1000}, {"steps": 1001, "spacing": "trailing"},
     {"ensemble": 0}, {"max_size": 100}, {"focal": -1.0}, {"domain": "moon"},
     {"mode": "reference", "centered": True}, {"noise": "pink"}],
)  # fmt: skip
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        CalibrationOptions(**options).check()


# Results and verbs --------------------------------------------------------------------------------------


def test_calibrate_writes_cameras_and_metric_depth(
    folder: Path, tmp_path: Path, known_cameras, capsys
) -> None:
    exif = Image.Exif()
    exif[0x8769] = {0xA405: 28}  # focal length as on 35 mm film
    photograph(tmp_path / "a.jpg", exif=exif, quality=95)
    photograph(tmp_path / "b.png", seed=1)
    out = tmp_path / "out"
    arguments = ("calibrate", tmp_path / "a.jpg", tmp_path / "b.png", "--out", out, "--weights", folder)
    code, text, err = run(
        *arguments, "--depth", "--domain", "indoor", "--formats", "npz", "--json", capsys=capsys
    )
    assert code == 0 and json.loads(text)["done"] == 2
    assert "EXIF: " in err and "no focal length in EXIF" in err
    camera = json.loads((out / "a" / "camera.json").read_text())
    assert camera["fx"] == pytest.approx(90, rel=0.01) and camera["cx"] == pytest.approx(66, abs=0.5)
    assert (camera["width"], camera["height"]) == (120, 90)
    assert np.array(camera["covariance"]).shape == (4, 4)
    assert camera["fov_x_degrees"] == pytest.approx(TRUTH.fov_x, abs=0.5)
    assert camera["exif"]["focal_px"] == pytest.approx(28 * 150 / 43.27, rel=0.01)
    depth = np.load(out / "a" / "metric_depth.npy")
    assert depth.shape == (90, 120) and depth.dtype == np.float32 and 0 <= depth.min() <= depth.max() <= 50
    record = json.loads((out / "a" / "result.json").read_text())
    assert record["kind"] == "camera" and record["unit"] == "m" and record["settings"]["domain"] == "indoor"
    assert {"camera.json", "metric_depth.npy", "metric_depth.png", "points.ply", "preview.png"} <= set(
        record["files"]
    )
    assert (
        json.loads(run(*arguments, "--depth", "--domain", "indoor", "--json", capsys=capsys)[1])["skipped"]
        == 2
    )
    assert json.loads(run(*arguments, "--json", capsys=capsys)[1])["done"] == 2
    assert not (out / "a" / "metric_depth.npy").exists()


def test_shared_cameras_and_exports(folder: Path, tmp_path: Path, known_cameras, capsys) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        photograph(photos / f"{i}.png", seed=i)
    out = tmp_path / "out"
    base = ("calibrate", photos, "--out", out, "--weights", folder, "--shared", "--quiet")
    (tmp_path / "clip.mp4").write_bytes(b"")
    code, _, err = run("calibrate", tmp_path / "clip.mp4", *base[2:], "--export", "nerfstudio", capsys=capsys)
    assert code == 2 and "save them as images" in err
    assert run(*base, "--export", "colmap", capsys=capsys)[0] == 0
    entries = [json.loads((out / str(i) / "camera.json").read_text()) for i in range(3)]
    assert len({e["fx"] for e in entries}) == 1 and entries[0]["shared_by"] == 3
    cameras = read_cameras(out / "cameras.txt")
    assert len(cameras) == 1 and cameras[1].fx == entries[0]["fx"]
    assert run(*base, "--export", "nerfstudio", capsys=capsys)[0] == 0
    transforms = read_transforms(out / "transforms.json")
    assert list(transforms) == [f"../photos/{i}.png" for i in range(3)]  # from where the file is
    for camera, pose in transforms.values():
        assert camera.fx == pytest.approx(entries[0]["fx"])
        np.testing.assert_allclose(pose, np.eye(4), atol=1e-12)
    (photos / "broken.png").write_bytes(b"no picture")
    photograph(photos / "4.png", seed=4)
    code, _, err = run(*base[:-1], capsys=capsys)
    assert code == 2 and "left out of the shared camera" in err
    entry = json.loads((out / "4" / "camera.json").read_text())
    assert entry["shared_by"] == 4 and not (out / "broken").exists()
    photograph(photos / "3.png", (100, 90))
    code, _, err = run(*base, "--overwrite", capsys=capsys)
    assert code == 2 and "one camera" in err and "Traceback" not in err


def test_a_shared_camera_of_given_photographs_says_so_and_draws_from_the_generator(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = [photograph(tmp_path / f"{i}.png", seed=i) for i in range(2)]
    pipeline = DMCalib.from_pretrained(folder, device="cpu")
    drawn = []

    def decode(self: DMCalib, latents: torch.Tensor) -> torch.Tensor:
        """Random networks show no camera: the true one instead, and what came of the noise is noted."""
        drawn.append(latents)
        channels = np.zeros((3, 64, 64), np.float32)
        channels[:2, 8:56] = angles_to_channels(encode_angles(TRUTH.resized(64, 48)))
        return torch.from_numpy(channels / 2 + 0.5).expand(len(latents), -1, -1, -1)

    monkeypatch.setattr(DMCalib, "decode", decode)
    for seed in (1, 1, 2):
        generator = torch.Generator().manual_seed(seed)
        results = pipeline(photos, shared=True, depth=True, generator=generator)
    assert torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], drawn[4])
    for result in results:
        assert result.shared_by == 2 and result.depth is not None
        for part in (result, result.depth):
            settings = part.provenance.settings
            assert settings["shared"] and settings["depth"] and settings["max_size"] == 64


def test_poses_of_overlapping_photographs_are_exported(
    folder: Path, tmp_path: Path, known_cameras, capsys
) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (90, 160, 3), dtype=np.uint8))
    wall = np.asarray(noise.resize((640, 360), Image.Resampling.BICUBIC))
    photos = tmp_path / "photos"
    photos.mkdir()
    # Two views of a wall, the second from further right: parallel shifts, in two depths.
    for i, shift in enumerate((0, 24)):
        view = np.zeros((270, 360, 3), np.uint8)
        view[:135] = wall[:135, 20 + shift : 380 + shift]
        view[135:] = wall[135:270, 20 + 2 * shift : 380 + 2 * shift]
        Image.fromarray(view).save(photos / f"{i}.png")
    out = tmp_path / "out"
    base = ("calibrate", photos, "--out", out, "--weights", folder, "--quiet")
    for wrong, said in (
        (("--poses", "opencv"), "--export"),
        (("--poses", "colmap", "--export", "colmap"), "--shared"),
    ):
        code, _, err = run(*base, *wrong, capsys=capsys)
        assert code == 2 and said in err and not out.exists()
    assert run(*base, "--export", "nerfstudio", "--poses", "opencv", capsys=capsys)[0] == 0
    (_, first), (_, second) = read_transforms(out / "transforms.json").values()
    np.testing.assert_allclose(first, np.eye(4), atol=1e-12)
    step = second[:3, 3] / np.linalg.norm(second[:3, 3])
    assert step[0] > 0.95  # to the right
    assert run(*base, "--export", "colmap", "--poses", "opencv", capsys=capsys)[0] == 0
    images = read_images(out / "images.txt")
    assert list(images) == ["0.png", "1.png"] and (out / "points3D.txt").exists()
    np.testing.assert_allclose(images["1.png"][0], invert_pose(first) @ second, atol=1e-6)


def test_measure_reads_results_and_photographs(folder: Path, tmp_path: Path, known_cameras, capsys) -> None:
    result = tmp_path / "result"
    result.mkdir()
    camera = Intrinsics(100, 100, 60, 45, 120, 90)
    (result / "camera.json").write_text(json.dumps({**camera.to_dict(), "covariance": None}))
    for damage in (b"", b"damaged"):
        (result / "metric_depth.npy").write_bytes(damage)
        code, _, err = run("measure", result, "--from", "20,40", "--to", "70,40", capsys=capsys)
        assert code == 2 and "damaged" in err and "Traceback" not in err
    np.save(result / "metric_depth.npy", np.full((90, 120), 2.0, np.float32))
    code, text, _ = run("measure", result, "--from", "20,40", "--to", "70,40", "--json", capsys=capsys)
    found = json.loads(text)
    assert code == 0 and found["lengths"]["distance"]["metres"] == pytest.approx(1.0, rel=1e-3)
    assert found["lengths"]["distance"]["sigma"] == pytest.approx(0.1, rel=0.2)  # the scale's 10 %
    told = {**camera.to_dict(), "covariance": None, "depth_noise": 0.4}
    (result / "camera.json").write_text(json.dumps(told))
    code, text, _ = run("measure", result, "--from", "20,40", "--to", "70,40", "--json", capsys=capsys)
    stated = json.loads(text)["lengths"]["distance"]["sigma"]
    assert stated == pytest.approx(0.4, rel=0.1)  # what the weights said
    code, text, _ = run("measure", result, "--plane", "10,10,100,80", "--json", capsys=capsys)
    plane = json.loads(text)["planes"]["plane"]
    np.testing.assert_allclose(plane["normal"], [0, 0, -1], atol=1e-6)
    assert plane["offset"] == pytest.approx(2.0, rel=1e-6)
    for wrong in (("--from", "1,2"), (), ("--from", "1", "--to", "2,3"), ("--from", "500,2", "--to", "2,3")):
        code, _, err = run("measure", result, *wrong, capsys=capsys)
        assert code == 2 and err.startswith("vision3d: ") and err.count("\n") == 1
    photo = photograph(tmp_path / "a.png")
    code, text, _ = run(
        "measure", photo, "--from", "20,40", "--to", "70,40", "--weights", folder, capsys=capsys
    )
    assert code == 0 and "distance: " in text and " m ± " in text


def test_the_published_decoder_gives_cameras_of_the_same_convention(
    folder: Path, known_cameras: None
) -> None:
    pipeline = DMCalib.from_pretrained(folder)
    photo = np.zeros((90, 120, 3), np.uint8)
    told = {mode: pipeline(photo, mode=mode).to_dict() for mode in ("robust", "reference")}
    for camera in told.values():
        assert camera["pixel_centres"] == "+0.5"
        assert (camera["cx"], camera["cy"]) == pytest.approx((TRUTH.cx, TRUTH.cy), abs=0.4)


def test_depth_is_decoded_in_32_bits_beside_networks_of_16(folder: Path) -> None:
    from vision3d.io.images import load_photo

    short = DMCalib.from_pretrained(folder, torch_dtype="bf16", device="cpu")
    whole = DMCalib.from_pretrained(folder, device="cpu")
    assert short.unet.dtype == torch.bfloat16 and short.vae.dtype == torch.float32
    photo = np.random.default_rng(3).integers(0, 255, (48, 64, 3), np.uint8)
    depths = [p.depth(load_photo(photo), TRUTH.resized(64, 48)).depth for p in (short, whole)]
    assert len(np.unique(depths[0])) > 1000, "8 bits would give few values"
    np.testing.assert_allclose(depths[0], depths[1], atol=3.0)


def test_photographs_that_exif_turns_are_exported_upright(
    folder: Path, tmp_path: Path, known_cameras: None, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "in").mkdir()
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "in" / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(pixels).save(tmp_path / "in" / "plain.jpg")
    out = tmp_path / "out"
    words = [
        "calibrate",
        tmp_path / "in",
        "--out",
        out,
        "--weights",
        folder,
        "--shared",
        "--export",
        "nerfstudio",
    ]
    assert run(*words, capsys=capsys)[0] == 0
    content = json.loads((out / "transforms.json").read_text())
    frames = content.get("frames", [])
    assert {frame["file_path"] for frame in frames} == {"images/plain.png", "images/turned.png"}
    for name in ("plain", "turned"):
        with Image.open(out / "images" / f"{name}.png") as copy:
            assert copy.size == (120, 90) and copy.getexif().get(0x0112, 1) == 1
