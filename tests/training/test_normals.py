"""Training both stages of StableNormal on a stand-in world, a few steps each."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vision3d.backbone.dino import Dino, DinoConfig
from vision3d.errors import InputError
from vision3d.pipelines.stablenormal import StableNormal
from vision3d.pipelines.stablenormal import training as module
from vision3d.pipelines.stablenormal.checkpoint import save_dino
from vision3d.pipelines.stablenormal.training import MINI, RefineTask, YosoTask, image_branch_of
from vision3d.training import dense
from vision3d.training.task import TaskOptions
from vision3d.training.trainer import Trainer, TrainerSettings
from vision3d.weights import MINI as EMBEDDED

TINY = replace(
    MINI,
    crops=((32, 40, 2),),
    channels=(16, 16, 16, 16),
    dino=DinoConfig(width=16, depth=1, heads=2, patch=14, grid=4, hidden=32),
    dino_side=56,
    embedding=(16,),
    steps=2,
    processing_resolution=40,
    warmup=1,
    ema=0.0,
)
SETTINGS = TrainerSettings(steps=2, lr=1e-3, warmup=1, ema=0.0, device="cpu", log_every=1, threads=1)


@pytest.fixture(scope="module", autouse=True)
def _small_held_out(world) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "RenderedWorld", lambda seed, count, size: world)
        patch.setattr(module.NormalsTask, "held_out_count", 3)
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def first(_small_held_out: None, tmp_path_factory: pytest.TempPathFactory, world) -> Path:
    """Export of a first stage after two steps."""
    folder = tmp_path_factory.mktemp("first")
    trainer = Trainer(YosoTask(TINY, world, TaskOptions(init=EMBEDDED / "primedepth")), SETTINGS, folder)
    summary = trainer.run()
    trainer.export(folder / "weights")
    assert {"mean_map", "one_step", "one_step_ratio"} <= set(summary.metrics)
    return folder / "weights"


def picture() -> np.ndarray:
    return (np.random.default_rng(0).random((32, 40, 3)) * 255).astype(np.uint8)


def test_both_stages_train_and_their_export_is_the_pipeline(first: Path, tmp_path: Path, world) -> None:
    one_step = StableNormal.from_pretrained(first)
    assert not one_step.refines and one_step.config.turbo_t_start == 401
    assert one_step(picture()).normals.shape == (32, 40, 3)

    task = RefineTask(TINY, world, TaskOptions(init=first))
    trainer = Trainer(task, SETTINGS, tmp_path / "second")
    metrics = trainer.run().metrics
    assert metrics["refined"] > 0 and metrics["one_step"] > 0
    trainer.export(tmp_path / "second" / "weights")
    both = StableNormal.from_pretrained(tmp_path / "second" / "weights")
    assert both.refines and both.dino is not None and both.config.default_denoising_steps == 2

    # What the pipeline computes is what the task measured: the same networks, prompts, DINO input and sampler.
    x = torch.from_numpy(picture()).permute(2, 0, 1)[None].float() / 255
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        task.context("prompt", 64)
        stages = task.stages(x, generator)
    plan = both.plan(module_options())
    draws = both.draw((4, 5), plan, torch.Generator().manual_seed(0))
    latent = both.solve(x * 2 - 1, draws, plan)
    assert torch.allclose(latent, stages["refined"], atol=0.05 * float(stages["refined"].std()))


def module_options():
    from vision3d.pipelines.stablenormal.options import NormalOptions

    return NormalOptions()


def test_the_loss_reaches_every_trained_tensor(first: Path, world) -> None:
    task = RefineTask(TINY, world, TaskOptions(init=first))
    model = task.build()
    # zero convolutions hold back the semantic branch's gradient at the very start
    for conv in task.dino_controlnet.controlnet_down_blocks:
        torch.nn.init.normal_(conv.weight, std=0.1)
    loss, _ = task.loss(task.batches()[0], 0, torch.Generator().manual_seed(0))
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None and p.requires_grad]
    assert without == ["dino.mask_token"]  # only ever used by DINO's own training
    assert all(p.grad is None for p in task.unet.parameters())


def test_a_refinement_may_use_the_first_stages_image_branch(first: Path, tmp_path: Path, world) -> None:
    task = RefineTask(replace(TINY, own_branch=False), world, TaskOptions(init=first))
    trainer = Trainer(task, SETTINGS, tmp_path)
    trainer.run()
    trainer.export(tmp_path / "weights")
    exported = [
        (tmp_path / "weights" / name / "diffusion_pytorch_model.safetensors").read_bytes()
        for name in ("controlnet", "refine_controlnet", "unet", "refine_unet")
    ]
    assert (
        exported[0]
        == exported[1]
        == (first / "controlnet" / "diffusion_pytorch_model.safetensors").read_bytes()
    )
    assert exported[2] != exported[3]


def test_a_frozen_dino_beside_the_first_stage_is_used_and_handed_on(
    first: Path, tmp_path: Path, world
) -> None:
    given = tmp_path / "given"
    shutil.copytree(first, given)
    network = Dino(TINY.dino)
    torch.nn.init.normal_(network.pos_embed, std=0.5)
    save_dino(network, given / "dino")
    recipe = replace(TINY, dino=None, class_weight=0.0)
    trainer = Trainer(RefineTask(recipe, world, TaskOptions(init=given)), SETTINGS, tmp_path / "run")
    trainer.run()
    trainer.export(tmp_path / "weights")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "weights" / "dino" / name).read_bytes() == (given / "dino" / name).read_bytes()
    assert StableNormal.from_pretrained(tmp_path / "weights")(picture()).normals.shape == (32, 40, 3)


def test_the_prompt_free_refinement_sees_text_and_its_first_stage_none(tmp_path: Path, world) -> None:
    recipe = replace(TINY, line="v1", t_start=0, shrinkage=0.0, channels=None)
    yoso = YosoTask(recipe, world, TaskOptions(init=EMBEDDED / "primedepth"))
    yoso.build()
    yoso.export(tmp_path / "first")
    task = RefineTask(recipe, world, TaskOptions(init=tmp_path / "first"))
    model = task.build()
    for conv in task.dino_controlnet.controlnet_down_blocks:
        torch.nn.init.normal_(conv.weight, std=0.1)
    task.export(tmp_path / "both")
    both = StableNormal.from_pretrained(tmp_path / "both")
    plan = both.plan(module_options())
    assert not plan.context.any() and plan.refine_context.any()
    x = torch.from_numpy(picture()).permute(2, 0, 1)[None].float() / 255
    model.eval()
    with torch.no_grad():
        stages = task.stages(x, torch.Generator().manual_seed(0))
    draws = both.draw((4, 5), plan, torch.Generator().manual_seed(0))
    latent = both.solve(x * 2 - 1, draws, plan)
    assert torch.allclose(latent, stages["refined"], atol=0.05 * float(stages["refined"].std()))
    assert not torch.allclose(latent, stages["one_step"], atol=0.05 * float(stages["refined"].std()))


def test_shrinkage_pulls_two_noises_together(world) -> None:
    task = YosoTask(replace(TINY, shrinkage=1.0), world, TaskOptions(init=EMBEDDED / "primedepth"))
    task.build()
    _, metrics = task.loss(task.batches()[0], 0, torch.Generator().manual_seed(0))
    latents = task.encoded(task.batches()[0]["image"][..., :32, :40])
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(latents.shape, generator=generator) for _ in range(2))
    with torch.no_grad():
        expected = (task.predict(latents, a) - task.predict(latents, b)).square().mean()
    assert metrics["spread"] == pytest.approx(float(expected), rel=1e-3)


def test_the_published_losses_compare_latents(world) -> None:
    recipe = replace(
        TINY, latent_weight=1.0, angular_weight=0.0, shrinkage=0.0, latent_decay=0.0, decoder_lr=0.0
    )
    task = YosoTask(recipe, world, TaskOptions(init=EMBEDDED / "primedepth"))
    model = task.build()
    assert "decoder" not in dict(model.named_children())
    batch = task.batches()[0]
    loss, _ = task.loss(batch, 0, torch.Generator().manual_seed(0))
    raw, _, _ = task.targets(batch["normals"])
    target = task.vae.encode(raw).latent_dist.mode() * task.vae.config.scaling_factor
    latents = task.encoded(batch["image"])
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = (task.predict(latents, noise) - target).square().mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-3)


def test_crops_with_too_much_sky_do_not_count(world) -> None:
    task = YosoTask(TINY, world, TaskOptions(init=EMBEDDED / "primedepth"))
    normals = torch.zeros(2, 3, 8, 8)
    normals[:, 2] = -1
    normals[0, :, :, :5] = 0
    raw, valid, kept = task.targets(normals)
    assert kept.tolist() == [False, True] and not valid[0].any() and valid[1].all()
    assert torch.equal(raw[:, 2], torch.ones(2, 8, 8))  # towards the camera in the raw frame


def test_an_image_branch_starts_as_the_encoder_of_its_unet() -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(EMBEDDED / "primedepth" / "unet")
    branch = image_branch_of(unet)
    for name, value in branch.state_dict().items():
        assert torch.equal(value, unet.state_dict()[name]), name


def test_wrong_starts_are_refused_by_name(world, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stablenormal-yoso needs"):
        YosoTask(TINY, world, TaskOptions())
    with pytest.raises(InputError, match="controlnet"):
        RefineTask(TINY, world, TaskOptions(init=EMBEDDED / "primedepth"))
    with pytest.raises(InputError, match="no preset"):
        YosoTask.from_options(TaskOptions(preset="huge", init=tmp_path))
