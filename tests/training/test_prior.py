from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vision3d.backbone.schedule import training_target
from vision3d.backbone.vae import encode_moments
from vision3d.errors import InputError
from vision3d.training import prior
from vision3d.training.prior import PriorUnetTask, PriorVaeTask, denoising_loss, fold_latent_statistics
from vision3d.training.task import TaskOptions
from vision3d.training.trainer import Trainer, TrainerSettings

VAE = replace(prior.VAE_PRESETS["mini"], channels=(8, 8, 16, 16), crops=((16, 4), (32, 1)))
UNET = replace(
    prior.UNET_PRESETS["mini"],
    channels=(16, 16, 32, 32),
    groups=8,
    text_width=32,
    size=32,
    batch_size=4,
)
QUICK = TrainerSettings(steps=4, device="cpu", log_every=2, warmup=2)


@pytest.fixture(scope="module", autouse=True)
def plain_pictures(world):
    """Held-out scenes from the stand-in world, and no photometric augmentation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior, "RenderedWorld", lambda first_seed, count, size: world)
        patch.setattr(
            prior,
            "WorldBatches",
            lambda *args, **kwargs: replace(_batches(*args, **kwargs), photometric=0.0),
        )
        patch.setattr(
            prior,
            "held_out_images",
            lambda count, size: torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)),
        )
        yield


_batches = prior.WorldBatches


@pytest.fixture(scope="module")
def vae_folder(plain_pictures, tmp_path_factory, world):
    folder = tmp_path_factory.mktemp("vae")
    trainer = Trainer(PriorVaeTask(VAE, world, TaskOptions()), QUICK, folder / "run")
    trainer.run()
    trainer.export(folder / "weights")
    return folder / "weights"


def test_vae_export_loads_with_diffusers_and_its_latents_have_unit_deviation(vae_folder):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(vae_folder, subfolder="vae", torch_dtype=torch.float32)
    assert vae.config.scaling_factor == 0.18215
    with torch.no_grad():
        mean, _ = encode_moments(vae, prior.held_out_images(48, 32))
    scaled = mean * vae.config.scaling_factor
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(VAE.latent_channels), rtol=0.02, atol=0)
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(VAE.latent_channels), rtol=0, atol=0.05)


def test_folding_latent_statistics_changes_latents_and_not_pictures():
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(**VAE.config())
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        mean, logvar = encode_moments(vae, images)
        drawn = torch.randn_like(mean)
        before = vae.decode(mean + (0.5 * logvar).exp() * drawn).sample
        fold_latent_statistics(vae, mean.mean((0, 2, 3)), mean.std((0, 2, 3)), 0.5)
        mean, logvar = encode_moments(vae, images)
        after = vae.decode(mean + (0.5 * logvar).exp() * drawn).sample
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(mean.mean((0, 2, 3)), torch.zeros(VAE.latent_channels), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        mean.std((0, 2, 3)), torch.full((VAE.latent_channels,), 2.0), rtol=1e-4, atol=0
    )
    assert vae.config.scaling_factor == 0.5


def test_vae_training_reconstructs_better(tmp_path, world):
    task = PriorVaeTask(replace(VAE, crops=((16, 8),)), world, TaskOptions())
    settings = replace(QUICK, steps=150, log_every=25, lr=4e-3, warmup=10, ema=0.0)
    Trainer(task, settings, tmp_path).run()
    losses = [json.loads(line).get("l1") for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert losses[5] < 0.85 * losses[0]


def test_vae_training_can_start_from_an_export(vae_folder, world):
    task = PriorVaeTask(VAE, world, TaskOptions(init=vae_folder))
    weights = task.build().state_dict()
    assert weights["encoder.conv_in.weight"].dtype == torch.float32
    assert list(task.describe()["init"]) == ["vae/diffusion_pytorch_model.safetensors"]
    with pytest.raises(InputError, match="no vae/config"):
        PriorVaeTask(VAE, world, TaskOptions(init=vae_folder / "vae")).build()


def test_prior_trains_resumes_to_the_bit_and_exports_a_stable_diffusion_folder(vae_folder, world, tmp_path):
    from diffusers import StableDiffusionPipeline

    options = TaskOptions(init=vae_folder)
    whole = Trainer(PriorUnetTask(UNET, world, options), QUICK, tmp_path / "whole")
    metrics = whole.run().metrics
    assert {"mse", "mse_t1", "mse_t900"} <= metrics.keys()
    half = Trainer(PriorUnetTask(UNET, world, options), QUICK, tmp_path / "halves")
    stop_after(half, 2)
    assert half.run().steps == 2
    rest = Trainer(PriorUnetTask(UNET, world, options), QUICK, tmp_path / "halves")
    rest.run(resume=True)
    for (name, a), (_, b) in zip(whole.model.named_parameters(), rest.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name

    whole.export(tmp_path / "prior")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "prior", torch_dtype=torch.float32)
    assert pipeline.unet.config.attention_head_dim == [1, 1, 2, 2]
    assert pipeline.text_encoder.config.hidden_size == 32
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("red waves", num_inference_steps=2, height=32, width=32, output_type="np").images
    assert picture.shape == (1, 32, 32, 3)

    # And the same folder starts the next training, text encoder and vocabulary included.
    again = PriorUnetTask(UNET, world, TaskOptions(init=tmp_path / "prior"))
    again.build()
    assert again._vocabulary == whole.task._vocabulary
    for name, value in again.text_encoder.state_dict().items():
        assert torch.equal(value, pipeline.text_encoder.state_dict()[name])


def stop_after(trainer: Trainer, steps: int) -> None:
    """Let a trainer stop as a signal would, after some steps."""
    original = trainer._agreed

    def agreed(saved, evaluated):
        if trainer.step == steps:
            trainer._stop = "test"
        return original(saved, evaluated)

    trainer._agreed = agreed


def test_the_same_mini_sizes_have_the_topology_of_sd2():
    from diffusers import UNet2DConditionModel

    mini = prior.UNET_PRESETS["mini"]
    with torch.device("meta"):
        small = UNet2DConditionModel(**mini.unet_config())
        large = UNet2DConditionModel(**prior.UNET_PRESETS["full"].unet_config())
    assert small.state_dict().keys() == large.state_dict().keys()
    assert sum(p.numel() for p in large.parameters()) == 865_910_724
    assert large.config.attention_head_dim == (5, 10, 20, 20)
    assert 2e6 < sum(p.numel() for p in small.parameters()) < 8e6


def test_denoising_loss_of_the_perfect_answer_is_zero_and_of_silence_is_the_target():
    latents = torch.randn(3, 4, 8, 8)
    steps = torch.tensor([1, 400, 999])
    drawn = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))

    class Answer(torch.nn.Module):
        def forward(self, noisy, t, context):
            assert torch.equal(t, steps)
            output = training_target(latents, drawn, steps, "v_prediction") * context
            return type("Output", (), {"sample": output})

    def loss(factor: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        return denoising_loss(Answer(), latents, torch.tensor(factor), generator, "v_prediction", steps)

    assert loss(1.0).abs().max() < 1e-10
    target = training_target(latents, drawn, steps, "v_prediction")
    torch.testing.assert_close(loss(0.0), target.square().mean((1, 2, 3)))


def test_unknown_preset_and_missing_autoencoder_are_errors(world):
    with pytest.raises(InputError, match="choose one of mini, full"):
        PriorVaeTask.from_options(TaskOptions(preset="huge"))
    with pytest.raises(InputError, match="give --init the export of prior-vae"):
        PriorUnetTask(UNET, world, TaskOptions())
    for wrong, words in (({"batch_size": 0}, "batch size 0"), ({"seed": -1}, "seed -1")):
        with pytest.raises(InputError, match=words):
            TaskOptions(**wrong)


def test_a_scheduler_that_does_not_say_predicts_noise(tmp_path):
    (tmp_path / "scheduler").mkdir()
    file = tmp_path / "scheduler" / "scheduler_config.json"
    for content, expected in (({}, "epsilon"), ({"prediction_type": "v_prediction"}, "v_prediction")):
        file.write_text(json.dumps(content))
        assert prior.prediction_type_of(tmp_path) == expected


def test_caption_dropout_is_a_function_of_the_index():
    class Captions:
        def __getitem__(self, index):
            return {"caption": ["a"] * 400, "image": torch.zeros(400, 1)}

    class Letters:
        def __call__(self, texts, **_):
            return type("E", (), {"input_ids": torch.tensor([[len(t)] for t in texts])})

    batches = prior.Tokenised(Captions(), Letters(), dropout=0.1, seed=3)
    tokens = batches[5]["tokens"]
    assert torch.equal(tokens, batches[5]["tokens"])
    assert not torch.equal(tokens, batches[6]["tokens"])
    assert 0.84 < tokens.float().mean() < 0.96
    assert "caption" not in batches[5]
    assert np.isclose(len(tokens), 400)
