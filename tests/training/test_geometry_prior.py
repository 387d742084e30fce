"""Teaching a small prior geometry, and PrimeDepth on top of it with everything tuned along."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from vision3d.backbone import text
from vision3d.pipelines.primedepth import PrimeDepth
from vision3d.pipelines.primedepth import training as primedepth
from vision3d.pipelines.primedepth.training import PrimeDepthTask
from vision3d.training import dense, prior
from vision3d.training.geometry_prior import (
    DecoderRecipe,
    GeometryPriorRecipe,
    GeometryPriorTask,
    PriorDecoderTask,
    _rays,
)
from vision3d.training.prior import PriorUnetTask, PriorVaeTask
from vision3d.training.task import TaskOptions
from vision3d.training.trainer import Trainer, TrainerSettings

VAE = replace(prior.VAE_PRESETS["mini"], channels=(8, 8, 16, 16), crops=((16, 4), (32, 1)), latent_channels=6)
UNET = replace(
    prior.UNET_PRESETS["mini"],
    channels=(16, 16, 32, 32),
    groups=8,
    text_width=32,
    size=32,
    batch_size=4,
)
GEOMETRY = GeometryPriorRecipe(crops=((24, 32, 4),))
QUICK = TrainerSettings(steps=2, device="cpu", log_every=1, warmup=1)


@pytest.fixture(scope="module", autouse=True)
def stand_in_world(world):
    with pytest.MonkeyPatch.context() as patch:
        for module in (prior, dense):
            patch.setattr(module, "RenderedWorld", lambda first_seed, count, size: _Endless(world))
        yield


class _Endless:
    """The stand-in world again and again, for held-out sets larger than it is."""

    def __init__(self, world):
        self.world = world

    def __getitem__(self, index):
        return self.world[index % len(self.world)]


@pytest.fixture(scope="module")
def prior_folder(stand_in_world, tmp_path_factory, world):
    folder = tmp_path_factory.mktemp("prior")
    trainer = Trainer(PriorVaeTask(VAE, world, TaskOptions()), QUICK, folder / "vae-run")
    trainer.run()
    trainer.export(folder / "vae-weights")
    task = PriorUnetTask(UNET, world, TaskOptions(init=folder / "vae-weights"))
    trainer = Trainer(task, QUICK, folder / "prior-run")
    trainer.run()
    trainer.export(folder / "prior")
    return folder / "prior"


def small_primedepth(preset="mini", images=2, **settings):
    recipe = replace(primedepth.PRESETS[preset], crops=((24, 32, images),), **settings)
    return replace(recipe, head_channels=(4, 4, 8, 8), refiner_channels=8)


def learned_by_heart(task, model, batch, steps):
    """Loss and metrics of each step on one batch; the gradients are still there when they come."""
    for module in task.frozen():
        module.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        loss, metrics = task.loss(batch, step, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss, metrics


def test_geometry_is_learned_through_the_unet_and_the_autoencoder(prior_folder, world, tmp_path):
    torch.manual_seed(0)
    recipe = replace(GEOMETRY, reconstruction_every=1, denoising_every=1)
    task = GeometryPriorTask(recipe, world, TaskOptions(init=prior_folder))
    model = task.build()
    batch = task.batches()[0]
    history = []
    for step, (_, metrics) in enumerate(learned_by_heart(task, model, batch, 40)):
        if step == 0:
            missing = [name for name, p in model.named_parameters() if p.grad is None]
            assert not missing
        history.append({name: float(value) for name, value in metrics.items()})
    # one batch of ramps is learned by heart
    assert history[-1]["ssi"] < 0.5 * history[0]["ssi"]
    assert history[-1]["normals"] < 0.2 * history[0]["normals"]
    assert history[-1]["rays"] < 0.5 * history[0]["rays"]
    assert history[-1]["metric"] < 0.5 * history[0]["metric"]
    assert history[-1]["reconstruction"] < 0.9 * history[0]["reconstruction"]


def test_the_last_leg_leaves_the_autoencoder_as_it_is(prior_folder, world, tmp_path):
    recipe = replace(GEOMETRY, train_autoencoder=False, reconstruction_every=1)
    task = GeometryPriorTask(recipe, world, TaskOptions(init=prior_folder))
    assert set(task.build().keys()) == {"unet", "read_out"}
    assert task.vae in task.frozen()
    before = {k: v.clone() for k, v in task.vae.state_dict().items()}
    trainer = Trainer(task, QUICK, tmp_path / "run")
    trainer.run()
    assert all(torch.equal(before[name], value) for name, value in task.vae.state_dict().items())
    trainer.export(tmp_path / "weights")
    assert {f.name for f in (tmp_path / "weights").iterdir()} >= {"vae", "unet", "text_encoder", "tokenizer"}


def test_a_decoder_learns_normals_and_cameras_while_latents_stay(prior_folder, world, tmp_path):
    torch.manual_seed(0)
    recipe = replace(DecoderRecipe(), crops=((24, 32, 6),))
    task = PriorDecoderTask(recipe, world, TaskOptions(init=prior_folder))
    model = task.build()
    before = {k: v.clone() for k, v in task.vae.state_dict().items()}
    batch = task.batches()[0]
    history = [float(loss.detach()) for loss, _ in learned_by_heart(task, model, batch, 30)]
    assert history[-1] < 0.7 * history[0]
    assert all(p.grad is not None for p in model.parameters())
    after = task.vae.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in after if n.startswith(("encoder.", "quant_conv.")))
    _, _, cameras = task.pictures(batch)
    angles = _rays(batch["K"], batch["image"])
    torch.testing.assert_close((cameras[:, 0] - 0.5) * 0.62 * torch.pi, angles[:, 0], atol=1e-5, rtol=0)
    with torch.no_grad():
        assert set(task.evaluate(0)) == {"l1_photo", "l1_normals", "l1_camera"}
    task.export(tmp_path)
    assert {f.name for f in tmp_path.iterdir()} >= {"vae", "unet", "text_encoder", "tokenizer"}


def test_primedepth_goes_on_from_a_geometry_prior_and_tunes_its_unet(prior_folder, world, tmp_path):
    trainer = Trainer(
        GeometryPriorTask(GEOMETRY, world, TaskOptions(init=prior_folder)), QUICK, tmp_path / "g"
    )
    assert {"ssi", "absrel", "angle"} <= trainer.run().metrics.keys()
    trainer.export(tmp_path / "geometry")
    assert json.loads((tmp_path / "geometry/vae/config.json").read_text())["latent_channels"] == 6

    recipe = small_primedepth()
    task = PrimeDepthTask(recipe, world, TaskOptions(init=tmp_path / "geometry"))
    before = {k: v.clone() for k, v in task.vae.state_dict().items()}
    start = GeometryPriorTask(GEOMETRY, world, TaskOptions(init=tmp_path / "geometry"))
    start.build()
    trainer = Trainer(task, QUICK, tmp_path / "p")
    trainer.run()
    assert all(torch.equal(before[name], value) for name, value in task.vae.state_dict().items())
    read = [name for name in start.unet.state_dict() if name.startswith(("down_blocks", "mid_block"))]
    assert any(not torch.equal(start.unet.state_dict()[name], task.unet.state_dict()[name]) for name in read)
    trainer.export(tmp_path / "depth")
    pipeline = PrimeDepth.from_pretrained(tmp_path / "depth", device="cpu")
    assert pipeline(torch.rand(3, 40, 48)).depth.shape == (40, 48)


def test_a_read_out_teaches_refiner_and_unet_between_the_steps_of_the_depth_head(
    prior_folder, world, tmp_path
):
    torch.manual_seed(0)
    recipe = small_primedepth("mini-wide", images=4, head_every=2, denoising_every=2, segmentation_every=2)
    task = PrimeDepthTask(recipe, world, TaskOptions(init=prior_folder))
    model = task.build()
    batch = task.batches()[0]
    history = []
    for step, (_, metrics) in enumerate(learned_by_heart(task, model, batch, 100)):
        history.append({name: float(value) for name, value in metrics.items()})
        trained = {name: any(p.grad is not None for p in part.parameters()) for name, part in model.items()}
        by_head = step % 2 == 0
        assert trained == {
            "refiner": True,
            "unet": True,
            "depth_head": by_head,
            "segmentation_head": by_head,
            "read_out": not by_head,
        }
    assert all(("normals" in metrics) == (step % 2 == 1) for step, metrics in enumerate(history))
    assert history[-1]["normals"] < 0.4 * history[1]["normals"]
    assert history[-1]["absrel"] < 0.7 * history[1]["absrel"]
    assert history[-2]["absrel"] < 0.7 * history[0]["absrel"]
    task.export(tmp_path)
    assert PrimeDepth.from_pretrained(tmp_path, device="cpu")(torch.rand(3, 40, 48)).depth.shape == (40, 48)
    following = PrimeDepthTask(
        replace(recipe, transformer_layers=(2, 1, 1, 1)[: len(task.unet.config["block_out_channels"])]),
        world,
        TaskOptions(init=tmp_path),
    )
    following.build()
    for name, value in task.read_out.state_dict().items():
        torch.testing.assert_close(following.read_out.state_dict()[name], value, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            following.predict(batch["image"]), task.predict(batch["image"]), rtol=1e-2, atol=1e-2
        )


def test_an_export_embeds_captions_as_its_training_did_from_a_tower_without_its_last_layer(
    prior_folder, world, tmp_path, monkeypatch
):
    monkeypatch.setenv("VISION3D_HOME", str(tmp_path / "home"))
    recipe = small_primedepth()
    for full, layer in ((2, "last"), (3, "penultimate")):
        monkeypatch.setitem(text.FULL_DEPTH, UNET.text_width, full)
        task = PrimeDepthTask(recipe, world, TaskOptions(init=prior_folder))
        task.build()
        task.export(tmp_path / layer)
        pipeline = PrimeDepth.from_pretrained(tmp_path / layer, device="cpu")
        assert pipeline.config.text_layer == layer
        expected = task.context(prior.tokenise(task.tokenizer, ["a red chair"]))
        torch.testing.assert_close(pipeline.prompt_embeddings("a red chair"), expected, atol=1e-4, rtol=1e-4)


def test_a_frozen_prior_gets_no_gradient(prior_folder, world):
    recipe = small_primedepth(unet_lr=0.0)
    task = PrimeDepthTask(recipe, world, TaskOptions(init=prior_folder))
    assert set(task.build().keys()) == {"refiner", "depth_head", "segmentation_head"}
    for module in task.frozen():
        module.requires_grad_(False)
    assert {type(m).__name__ for m in task.frozen()} == {
        "AutoencoderKL",
        "UNet2DConditionModel",
        "CLIPTextModel",
    }
    loss, _ = task.loss(task.batches()[0], 0, torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad is None for p in [*task.unet.parameters(), *task.vae.parameters()])
