"""Training of DM-Calib: geometry of the examples, losses in closed form, exports that load."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vision3d.camera import Intrinsics
from vision3d.errors import InputError, WeightsError
from vision3d.pipelines.dmcalib import DMCalib, augmentation
from vision3d.pipelines.dmcalib.camera_image import decode_intrinsics, encode_camera_image
from vision3d.pipelines.dmcalib.training import (
    CALIBRATION_PRESETS,
    DEPTH_PRESETS,
    DOMAINS,
    Augmentation,
    CalibrationTask,
    CameraBatches,
    DepthTask,
    UNetShape,
    best_constant,
    domain_of,
    focal_loss,
    multi_resolution_noise,
    prepared,
    take_layers,
    widened,
)
from vision3d.training.data import HELD_OUT_SEED
from vision3d.training.task import TaskOptions
from vision3d.weights import MINI

TINY = UNetShape((16, 24), (2, 3), (False, True))
PRIOR = MINI / "primedepth"


class PinholeWorld:
    """Pictures of a wall and a floor whose depth is known in closed form, so that cameras can be checked."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> SimpleNamespace:
        rng = np.random.default_rng(index)
        camera = Intrinsics(rng.uniform(50, 90), 70.0, 44.0, 28.0, 80, 60)
        rays = camera.rays()
        depth = np.minimum(3.0, np.where(rays[..., 1] > 0.01, 1.2 / np.maximum(rays[..., 1], 0.01), 3.0))
        colour = (127 + 100 * np.sin(depth[..., None] * [1, 2, 3])).astype(np.uint8)
        return SimpleNamespace(
            image=colour, depth=depth.astype(np.float32), K=camera.K, kind="kitchen", seed=index
        )

    def describe(self) -> dict:
        return {"source": "pinhole", "samples": 8}


def test_every_example_shows_its_own_camera() -> None:
    """Depth of a floor 1.2 m below tells the true camera of a window, however it was cut and flipped."""
    plan = Augmentation(zoom=(1.0, 1.8), uneven=0.5, bands=0.0)
    batches = CameraBatches(PinholeWorld(), 8, (64, 48), None, plan)
    batch = batches[3]
    for row in range(8):
        picture = batch["camera"][row].numpy() / 2 + 0.5
        fit = decode_intrinsics(picture)
        np.testing.assert_allclose([fit.fx, fit.fy], batch["focal"][row], rtol=1e-3)
        np.testing.assert_allclose([fit.cx, fit.cy], batch["centre"][row], atol=0.05)
        depth = batch["depth"][row].numpy()
        v = np.arange(48) + 0.5
        y = (v - float(batch["centre"][row, 1])) / float(batch["focal"][row, 1])
        floor = (y[:, None] > 0.45) & (depth < 2.9)
        assert np.allclose((depth * y[:, None])[floor], 1.2, rtol=0.04)
    again = CameraBatches(PinholeWorld(), 8, (64, 48), None, plan)[3]
    assert all(torch.equal(batch[name], again[name]) for name in batch)


def test_canvas_bands_and_mask_say_where_there_is_a_picture() -> None:
    plan = Augmentation(whole=1.0, uneven=0, flip=False, bands=1.0, band_size=0.2, photometric=0)
    example = prepared(PinholeWorld()[0], (64, 48), 64, plan, np.random.default_rng(0))
    outside = ~example["mask"]
    assert example["image"].shape == (3, 64, 64)
    assert outside[:8].all() and outside[56:].all()
    assert (example["image"][:, outside] == 0).all() and (example["camera"][:, outside] == -1).all()
    assert example["mask"].sum() < 64 * 48


def test_widened_unets_see_the_mean_of_two_latents() -> None:
    from diffusers import UNet2DConditionModel

    plain = UNet2DConditionModel(**{**TINY.config(16, 8), "in_channels": 4}).eval()
    wide = widened(copy.deepcopy(plain))
    x, y, context = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.randn(2, 2, 16)
    with torch.no_grad():
        expected = plain((x + y) / 2, 10, context).sample
        torch.testing.assert_close(
            wide(torch.cat([x, y], 1), 10, context).sample, expected, atol=1e-5, rtol=1e-4
        )
    assert wide.config.in_channels == 8


def test_a_small_unet_starts_from_the_priors_layers() -> None:
    from diffusers import UNet2DConditionModel

    deep = UNetShape((16, 24, 24), (2, 3, 3), (False, True, False), layers=2)
    prior = UNet2DConditionModel(**{**deep.config(16, 8), "in_channels": 4}).eval()
    unet = UNet2DConditionModel(**TINY.config(16, 8)).eval()
    take_layers(unet, prior, slice(4, 8), 1)
    own, known = unet.state_dict(), prior.state_dict()
    pairs = {
        "down_blocks.1.attentions.0.proj_in.weight": "down_blocks.1.attentions.0.proj_in.weight",
        "mid_block.resnets.0.conv1.weight": "mid_block.resnets.0.conv1.weight",
        "up_blocks.0.resnets.0.conv1.weight": "up_blocks.1.resnets.0.conv1.weight",
        "up_blocks.0.resnets.1.conv2.weight": "up_blocks.1.resnets.2.conv2.weight",
        "up_blocks.1.resnets.1.conv1.weight": "up_blocks.2.resnets.2.conv1.weight",
    }
    for name, source in pairs.items():
        torch.testing.assert_close(own[name], known[source])
    torch.testing.assert_close(own["conv_in.weight"][:, 4:], known["conv_in.weight"])
    photo, camera, context = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.randn(1, 2, 16)
    with torch.no_grad():
        expected = unet(torch.cat([camera, photo], 1), 1, context).sample
        for other, step in ((camera, 999), (torch.zeros_like(camera), 1)):
            found = unet(torch.cat([other, photo], 1), step, context).sample
            torch.testing.assert_close(found, expected)
        time = prior.time_embedding(prior.time_proj(torch.tensor([1])))
        torch.testing.assert_close(unet.time_embedding(unet.time_proj(torch.tensor([999]))), time)


def test_focal_loss_is_the_logarithm_of_the_focal_lengths_error() -> None:
    rgb = np.zeros((48, 64, 3), np.float32)
    mask = torch.ones(1, 48, 64, dtype=torch.bool)

    def picture(fx: float, fy: float, cx: float = 32, cy: float = 24) -> torch.Tensor:
        camera = Intrinsics(fx, fy, cx, cy, 64, 48)
        return torch.from_numpy(encode_camera_image(camera, rgb).astype(np.float32))[None]

    target = picture(60, 60)
    assert float(focal_loss(target, mask, target)) < 1e-5
    for wrong in (66.0, 54.0):
        expected = abs(math.log(wrong / 60))
        found = float(focal_loss(picture(wrong, wrong), mask, target))
        assert found == pytest.approx(expected, rel=0.05)
        # each direction by itself, and not the principal point
        assert float(focal_loss(picture(wrong, 60), mask, target)) == pytest.approx(found / 2, rel=0.08)
        assert float(focal_loss(picture(60, wrong), mask, target)) == pytest.approx(found / 2, rel=0.08)
    assert float(focal_loss(picture(60, 60, 34, 23), mask, target)) < 0.01
    # what lies outside the picture does not count, and nothing at all is no error
    hidden = mask.clone()
    hidden[:, :, 40:] = False
    spoilt = torch.where(hidden[:, None], target, torch.ones(()))
    assert float(focal_loss(spoilt, hidden, target)) < 1e-5
    assert float(focal_loss(spoilt, torch.zeros_like(mask), target)) == 0


def test_focal_loss_reads_cameras_as_they_are_decoded() -> None:
    rng = np.random.default_rng(0)
    camera = Intrinsics(60, 60, 32, 24, 64, 48)
    target = encode_camera_image(camera, np.zeros((48, 64, 3), np.float32)).astype(np.float32)
    mask = torch.ones(1, 48, 64, dtype=torch.bool)
    for _ in range(5):
        # a smooth error that no camera explains: both have to weigh it alike
        bump = np.outer(np.hanning(48), np.hanning(64)) * rng.normal(0, 0.03) + np.linspace(
            0, rng.normal(0, 0.05), 64
        )
        wrong = (target + bump).astype(np.float32)
        found = decode_intrinsics((wrong + 1) / 2)
        expected = (abs(math.log(found.fx / 60)) + abs(math.log(found.fy / 60))) / 2
        shown = float(focal_loss(torch.from_numpy(wrong)[None], mask, torch.from_numpy(target)[None]))
        assert shown == pytest.approx(expected, abs=0.01 + 0.15 * expected)


def test_multi_resolution_noise_is_smooth_and_of_unit_variance() -> None:
    drawn = multi_resolution_noise((4, 4, 24, 24), torch.Generator().manual_seed(0), torch.device("cpu"))
    torch.testing.assert_close(drawn.flatten(1).std(dim=1), torch.ones(4))
    neighbours = (drawn[..., 1:] * drawn[..., :-1]).mean()
    assert neighbours > 0.2  # plain noise: 0


def test_domains_of_scenes() -> None:
    sky = np.full((10, 10), 5.0)
    sky[:3] = np.inf
    assert domain_of(SimpleNamespace(depth=sky)) == "outdoor"
    assert domain_of(SimpleNamespace(depth=np.full((10, 10), 3.0), kind="studio")) == "object"
    assert domain_of(SimpleNamespace(depth=np.full((10, 10), 3.0), kind="kitchen")) == "indoor"


def test_best_constant_is_the_best_of_all() -> None:
    depths = [torch.full((50,), 2.0), torch.full((50,), 4.0)]
    grid = np.linspace(0.5, 10, 2000)
    expected = min((abs(c - 2) / 2 + abs(c - 4) / 4) / 2 for c in grid)
    assert best_constant(depths) == pytest.approx(expected, rel=0.02)


# Augmentation helpers -----------------------------------------------------------------------------------


def test_resized_crops_subtract_their_own_offset() -> None:
    K = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    crop = augmentation.ResizedCrop.draw(640, 480, (768, 768), np.random.default_rng(0))
    assert min(crop.enlarged) >= 768
    ours = crop.intrinsics(K, 640, 480)
    # A point of the picture lands where enlarging and cutting put it.
    pixel = np.array([100.0, 50, 1])
    ray = np.linalg.inv(K) @ pixel
    moved = pixel[:2] * np.array(crop.enlarged) / [640, 480] - crop.offset
    np.testing.assert_allclose((ours @ ray)[:2], moved)
    published = crop.intrinsics(K, 640, 480, mean_offset=True)
    assert published[0, 2] == pytest.approx(320 * crop.enlarged[0] / 640 - (crop.enlarged[0] - 768) / 2)


def test_sparse_depth_keeps_the_nearest_of_colliding_points() -> None:
    depth = np.zeros((4, 4))
    depth[0, 0], depth[0, 1], depth[3, 3] = 7, 3, 9
    small = augmentation.resize_sparse_depth(depth, (2, 2))
    np.testing.assert_array_equal(small, [[3, 0], [0, 9]])


def test_zoom_crop_and_mirror_of_intrinsics() -> None:
    K = np.array([[100.0, 0, 30], [0, 90, 20], [0, 0, 1]])
    np.testing.assert_allclose(np.diag(augmentation.zoomed(K, 2)), [200, 180, 1])
    np.testing.assert_allclose(augmentation.centre_cropped(K, 2)[:2, 2], [15, 10])
    assert Intrinsics.from_K(K, 80, 60).mirrored().K[0, 2] == 50
    rows, columns = augmentation.zero_bands(60, 80, np.random.default_rng(1))
    assert (rows == slice(0, 60)) != (columns == slice(0, 80))


# Tasks --------------------------------------------------------------------------------------------------


def small(preset: str, task: str):
    if task == "calibration":
        return replace(CALIBRATION_PRESETS[preset], unet=TINY, canvas=64, sizes=((64, 48),), batch_size=4)
    return replace(DEPTH_PRESETS[preset], unet=TINY, sizes=((64, 48, 3),), max_size=64)


def train_a_little(task, steps: int = 2) -> list[float]:
    torch.manual_seed(0)
    model = task.build()
    optimiser = torch.optim.AdamW(task.parameter_groups(model), lr=2e-3)
    batch = task.batches()[0]
    values = []
    for step in range(steps):
        loss, _ = task.loss(batch, step, torch.Generator().manual_seed(0))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(float(loss.detach()))
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    return values


def test_calibration_then_depth_export_one_folder_that_predicts(tmp_path: Path) -> None:
    recipe = replace(small("mini", "calibration"), train_decoder=True, train_encoder=True)
    first = CalibrationTask(recipe, PinholeWorld(), TaskOptions(init=PRIOR))
    values = train_a_little(first, 12)
    assert values[-1] < 0.9 * values[0]
    first.export(tmp_path / "calib")
    pipeline = DMCalib.from_pretrained(tmp_path / "calib", device="cpu")
    assert pipeline.config.steps == 1 and pipeline.config.noise == "zeros" and pipeline.depth_unet is None

    recipe = replace(small("mini", "depth"), train_encoder=True)
    second = DepthTask(recipe, PinholeWorld(), TaskOptions(init=tmp_path / "calib"))
    values = train_a_little(second, 8)
    assert values[-1] < values[0]
    second.export(tmp_path / "both")
    both = DMCalib.from_pretrained(tmp_path / "both", device="cpu")
    assert both.config == replace(
        pipeline.config, depth_max_size=64, domain="any", ranges=dict(DEPTH_PRESETS["mini"].ranges)
    )
    # The exported networks predict what the task's do, within half precision.
    held = prepared(PinholeWorld()[0], (64, 48), 64, Augmentation(), np.random.default_rng(0))
    with torch.no_grad():
        trained = first.predict(held["image"][None]) / 2 + 0.5
    assert both.photo_encoder is not None and both.depth_encoder is not None
    latents = both.encode(held["image"][None], both.photo_encoder) * both.latent_scale
    found = both.decode(
        both.denoise(latents, torch.zeros_like(latents), both.contexts[""], np.array([999]), finish=True)
    )
    torch.testing.assert_close(found, trained.clamp(0, 1), atol=0.02, rtol=0)
    goes_on = DepthTask(recipe, PinholeWorld(), TaskOptions(init=tmp_path / "both"))
    goes_on.build()
    other = replace(small("mini", "depth"), unet=replace(TINY, channels=(24, 24)))
    with pytest.raises(WeightsError, match="this preset"):
        DepthTask(other, PinholeWorld(), TaskOptions(init=tmp_path / "both")).build()


def test_the_published_recipe_denoises_from_the_widened_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = replace(CALIBRATION_PRESETS["full"], canvas=64, sizes=((64, 48),), batch_size=2)
    task = CalibrationTask(recipe, PinholeWorld(), TaskOptions(init=PRIOR))
    task.build()
    assert task.unet.config.in_channels == 2 * task.vae.config.latent_channels and task.decoder is None
    loss, _ = task.loss(task.batches()[0], 0, torch.Generator().manual_seed(0))
    assert math.isfinite(float(loss.detach())) and loss.requires_grad


def test_depth_is_learned_in_every_domains_own_range() -> None:
    recipe = replace(small("mini", "depth"), domain_share=1.0, camera_noise=0.0)
    task = DepthTask(recipe, PinholeWorld(), TaskOptions(init=PRIOR))
    task.build()
    depth = torch.full((1, 4, 4), 5.0)
    mask = torch.ones(1, 4, 4, dtype=torch.bool)
    for span in (50.0, 150.0):
        exact = torch.full((1, 4, 4), 10 * (2 * 5.0 / span - 1))
        losses = task._losses(exact, depth, mask, span)
        assert max(float(v) for v in losses.values()) < 1e-5
    twice = torch.full((1, 4, 4), 10 * (2 * 10.0 / 50 - 1))
    assert float(task._losses(twice, depth, mask, 50.0)["log"]) == pytest.approx(math.log(2), rel=1e-4)
    negative = torch.full((1, 4, 4), -11.0, requires_grad=True)
    task._losses(negative, depth, mask, 50.0)["log"].backward()
    assert (negative.grad < 0).all()  # drawn back up


def test_domains_in_one_batch_do_not_see_each_other() -> None:
    task = DepthTask(small("mini", "depth"), PinholeWorld(), TaskOptions(init=PRIOR))
    task.build()
    batch = CameraBatches(PinholeWorld(), 3, (64, 48), None, task._recipe.plan)[0]
    domains = ["object", "any", "indoor"]
    with torch.no_grad():
        together = task.latents(batch["image"], batch["camera"], domains)
        for i, domain in enumerate(domains):
            alone = task.latents(batch["image"][i : i + 1], batch["camera"][i : i + 1], [domain])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["calibration", "depth"])
def test_a_read_out_of_latents_learns_along_and_stays_behind(kind: str, tmp_path: Path) -> None:
    cls = CalibrationTask if kind == "calibration" else DepthTask
    task = cls(small("mini-latents", kind), PinholeWorld(), TaskOptions(init=PRIOR))
    values = train_a_little(task, 8)
    assert values[-1] < values[0]
    metrics = task.loss(task.batches()[0], 0, torch.Generator().manual_seed(0))[1]
    assert {name for name in metrics if name.startswith("told_")} == {
        f"told_{name}" for name in metrics if not name.startswith(("told_", "latent"))
    }
    task.export(tmp_path)
    folder = tmp_path / ("calib" if kind == "calibration" else "depth_safe")
    assert not [p.name for p in folder.iterdir() if "read" in p.name]
    cls(small("mini", kind), PinholeWorld(), TaskOptions(init=tmp_path)).build()


def test_shown_cameras_are_the_true_ones_without_noise() -> None:
    recipe = replace(small("mini", "depth"), camera_noise=1e-9)
    task = DepthTask(recipe, PinholeWorld(), TaskOptions(init=PRIOR))
    batch = CameraBatches(PinholeWorld(), 3, (64, 48), None, replace(recipe.plan, bands=0.5))[0]
    shown = task._shown_cameras(batch, torch.Generator().manual_seed(0))
    torch.testing.assert_close(shown, batch["camera"], atol=2e-5, rtol=0)


def test_tasks_need_a_prior_and_know_their_presets() -> None:
    with pytest.raises(InputError, match="needs a prior"):
        CalibrationTask.from_options(TaskOptions())
    with pytest.raises(InputError, match="has no preset 'huge'"):
        DepthTask.from_options(TaskOptions(preset="huge", init=PRIOR))
    assert HELD_OUT_SEED >= 900_000_000 and DOMAINS[-1] == "any"
