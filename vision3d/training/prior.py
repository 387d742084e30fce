"""The Stable Diffusion prior itself: autoencoder, text encoder and denoiser, of the real classes at any size.

"mini" is small enough to be trained on two CPU cores on the procedural world and to travel with the package;
"full" has the published sizes and starts from published weights. After "prior-vae" comes "prior-unet", whose
export is a complete Stable Diffusion folder (``StableDiffusionPipeline.from_pretrained`` loads it).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from torch import Tensor, nn
from typing_extensions import override

from vision3d.backbone.loading import INDEX, fingerprint, load_component
from vision3d.backbone.schedule import PredictionType, add_noise, ddim_step, ddim_timesteps, training_target
from vision3d.backbone.vae import SCALING_FACTOR, encode_moments
from vision3d.errors import InputError, WeightsError
from vision3d.io.files import atomic_write_json
from vision3d.progress import no_library_bars
from vision3d.training.checkpoint import export_component
from vision3d.training.data import (
    HELD_OUT_SEED,
    RenderedWorld,
    SampleSource,
    WorldBatches,
    augmented_crop,
    captions_of,
    describe_run,
    open_source,
)
from vision3d.training.losses import kl_to_standard_normal, reconstruction_loss
from vision3d.training.task import Batch, Batches, Task, TaskOptions, noise
from vision3d.training.tokenizer import MAX_LENGTH, train_clip_vocabulary, write_clip_tokenizer

TRAIN_STEPS = 1000
"""Steps of the diffusion schedule."""

SD_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": TRAIN_STEPS,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "trained_betas": None,
}


# Autoencoder --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VaeRecipe:
    """Size and training of an autoencoder.

    Args:
        channels: of the four levels.
        layers: residual blocks per level.
        groups: of the norms; must divide every entry of ``channels``.
        crops: (side in pixels, images) of the batches that take turns; one optimiser step sees one of them.
        latent_channels: 4, as in SD 1 and 2; more (SD 3 has 16) where so few pixels have to carry so much.
        kl_weight: of the KL term, relative to an L1 loss on images in [−1, 1].
        edge_weight: of the gradient pyramid.
        lr: peak learning rate.
        world: side of the scenes that are rendered when there is no cache.
    """

    channels: tuple[int, ...]
    layers: int
    groups: int
    crops: tuple[tuple[int, int], ...]
    latent_channels: int = 4
    kl_weight: float = 5e-4
    edge_weight: float = 1.0
    lr: float = 2e-3
    world: int = 160

    def config(self) -> dict[str, Any]:
        """Arguments of ``diffusers.AutoencoderKL``: f = 8."""
        return {
            "down_block_types": ("DownEncoderBlock2D",) * len(self.channels),
            "up_block_types": ("UpDecoderBlock2D",) * len(self.channels),
            "block_out_channels": self.channels,
            "layers_per_block": self.layers,
            "latent_channels": self.latent_channels,
            "norm_num_groups": self.groups,
            "sample_size": max(side for side, _ in self.crops),
            "scaling_factor": SCALING_FACTOR,
        }


VAE_PRESETS = {
    # The first level costs most: 3.4x the time with 32 instead of 16 channels at the same parameters.
    "mini": VaeRecipe(
        (16, 32, 64, 64),
        layers=1,
        groups=8,
        crops=((64, 16), (64, 16), (64, 16), (128, 4)),
        latent_channels=16,
    ),
    "full": VaeRecipe(
        (128, 256, 512, 512), layers=2, groups=32, crops=((256, 8),), kl_weight=1e-6, lr=2e-5, world=320
    ),
}


class PriorVaeTask(Task):
    """Autoencoder of images: f = 8, channels of zero mean and standard deviation 1 / 0.18215.

    The loss is L1 with a gradient pyramid and a small KL term. On export the latent statistics are measured
    and folded into the quantisation convolutions, so that the scaling factor that SD pipelines write as a
    constant is right for these weights too.

    Args:
        recipe: size and training.
        source: the images.
        options: what the person set.
    """

    name: ClassVar[str] = "prior-vae"

    def __init__(self, recipe: VaeRecipe, source: SampleSource, options: TaskOptions) -> None:
        if options.batch_size:
            largest = max(n for _, n in recipe.crops)
            scaled = [(side, max(1, round(n * options.batch_size / largest))) for side, n in recipe.crops]
            recipe = replace(recipe, crops=tuple(scaled))
        self._recipe, self.source, self.options = recipe, source, options
        self.take_turns(n for _, n in recipe.crops)
        self._held_out: Tensor | None = None

    @classmethod
    @override
    def from_options(cls, options: TaskOptions) -> PriorVaeTask:
        recipe = preset(VAE_PRESETS, options.preset, cls.name)
        source = open_source(options.data, (recipe.world, recipe.world), pictures=("image", "caption"))
        return cls(recipe, source, options)

    @override
    def recipe(self) -> dict[str, Any]:
        return {"lr": self._recipe.lr, "warmup": 100, "ema": 0.998, "weight_decay": 1e-4}

    @override
    def build(self) -> nn.Module:
        init = self.options.init
        if init is None:
            self.vae: Any = AutoencoderKL(**self._recipe.config())
        else:
            self.vae = load_module(AutoencoderKL, component_folder(init, "vae"))
        if self.options.checkpointing:
            self.vae.enable_gradient_checkpointing()
        return self.vae.to(memory_format=torch.channels_last)

    @override
    def batches(self) -> Batches:
        seed = self.options.seed
        return TurnTaking(
            [
                # Small crops are cut out of the picture at its own resolution as well as from all of it.
                WorldBatches(self.source, n, side, seed=seed + 7919 * i, fields=("image",), scale=(0.4, 1.0))
                for i, (side, n) in enumerate(self._recipe.crops)
            ]
        )

    @override
    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        images = batch["image"].contiguous(memory_format=torch.channels_last)
        mean, logvar = encode_moments(self.vae, images)
        mean, logvar = mean.float(), logvar.float()
        latents = mean + (0.5 * logvar).exp() * noise(mean.shape, generator, mean.device)
        output = self.vae.decode(latents).sample
        loss, metrics = reconstruction_loss(output.float(), images * 2 - 1, self._recipe.edge_weight)
        kl = kl_to_standard_normal(mean, logvar)
        metrics |= {"kl": kl.detach()}
        return loss + self._recipe.kl_weight * kl, metrics

    def held_out(self) -> Tensor:
        """(48, 3, S, S) augmented images of scenes that training never sees, on the CPU."""
        if self._held_out is None:
            self._held_out = held_out_images(48, max(side for side, _ in self._recipe.crops))
        return self._held_out

    @override
    def evaluate(self, step: int) -> dict[str, float]:
        l1, psnr, means = [], [], []
        for images in self.held_out().split(8):
            images = images.to(self.device)
            mean, _ = encode_moments(self.vae, images)
            output = (self.vae.decode(mean).sample.float() / 2 + 0.5).clamp(0, 1)
            l1.append((output - images).abs().mean())
            psnr.append(-10 * (output - images).square().flatten(1).mean(1).log10().mean())
            means.append(mean.float())
        latents = torch.cat(means)
        return {
            "l1": float(torch.stack(l1).mean()),
            "psnr": float(torch.stack(psnr).mean()),
            "latent_std": float(latents.std()),
        }

    @override
    def images(self, step: int) -> dict[str, Tensor]:
        images = self.held_out()[:8].to(self.device)
        output = self.vae.decode(encode_moments(self.vae, images)[0]).sample / 2 + 0.5
        return {"reconstruction": torch.cat([images, output.float()])}

    @override
    def export(self, folder: Path) -> None:
        latents = [encode_moments(self.vae, x.to(self.device))[0].float() for x in self.held_out().split(8)]
        mean = torch.cat(latents).mean((0, 2, 3))
        std = torch.cat(latents).std((0, 2, 3))
        weights = {name: value.clone() for name, value in self.vae.state_dict().items()}
        try:
            fold_latent_statistics(self.vae, mean, std)
            export_component(self.vae, folder / "vae")
        finally:
            self.vae.load_state_dict(weights)

    @override
    def describe(self) -> dict[str, Any]:
        init = checksums(self.options.init, ("vae",))
        return describe_run(self.options.preset, self._recipe, self.source, init)


@torch.no_grad()
def fold_latent_statistics(
    vae: Any,  # AutoencoderKL
    mean: Tensor,  # (C,)
    std: Tensor,  # (C,)
    scaling_factor: float = SCALING_FACTOR,
) -> None:
    """Change the latent space affinely: latents × ``scaling_factor`` get zero mean and unit deviation.

    ``mean`` and ``std`` are the statistics of the present posterior means. Reconstructions stay as they are:
    what ``quant_conv`` gains, ``post_quant_conv`` takes back.
    """
    channels = vae.config.latent_channels
    gain = (1.0 / (std * scaling_factor)).to(vae.quant_conv.weight)
    mean = mean.to(vae.quant_conv.weight)
    post = vae.post_quant_conv
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= gain[None, :, None, None]
    quant = vae.quant_conv
    quant.weight[:channels] *= gain[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) * gain
    quant.bias[channels:] += 2.0 * gain.log()
    vae.register_to_config(scaling_factor=scaling_factor)


# Denoiser and text encoder ------------------------------------------------------------------------------


@dataclass(frozen=True)
class UnetRecipe:
    """Size and training of a text-conditioned denoiser with the topology of SD 2.

    Args:
        channels: of the four levels; attention at the first three.
        layers: residual blocks per level of the encoder; SD has 2.
        head_dim: size of an attention head, at least.
        groups: of the norms.
        text_width, text_layers, text_heads: of the CLIP text encoder; the width is the context's.
        merges: byte pairs to learn from the captions.
        size: side of the training images in pixels.
        batch_size: images per step.
        prediction_type: what the network predicts.
        caption_dropout: share of captions replaced by "".
        lr: peak learning rate.
        train_text: train the text encoder with the denoiser.
        world: side of the scenes that are rendered when there is no cache.
    """

    channels: tuple[int, ...]
    head_dim: int
    groups: int
    text_width: int
    text_layers: int
    text_heads: int
    size: int
    batch_size: int
    merges: int = 768
    layers: int = 2
    prediction_type: PredictionType = "v_prediction"
    caption_dropout: float = 0.1
    lr: float = 1e-3
    train_text: bool = True
    world: int = 160

    def unet_config(self, latent_channels: int = 4) -> dict[str, Any]:
        """Arguments of ``diffusers.UNet2DConditionModel``; ``attention_head_dim`` is its name for *heads*."""
        return {
            "sample_size": self.size // 8,
            "in_channels": latent_channels,
            "out_channels": latent_channels,
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "block_out_channels": self.channels,
            "layers_per_block": self.layers,
            "norm_num_groups": self.groups,
            "attention_head_dim": tuple(c // self.head_dim for c in self.channels),
            "cross_attention_dim": self.text_width,
            "use_linear_projection": True,
        }


MINI_UNET = UnetRecipe(
    channels=(32, 48, 64, 64),
    head_dim=16,
    groups=16,
    text_width=64,
    text_layers=2,
    text_heads=4,
    size=128,
    batch_size=16,
)
UNET_PRESETS = {
    "mini": MINI_UNET,
    # Twice as wide where there are most pixels, with half the blocks: fewer, larger products. On a CPU a step takes a
    # fifth to two fifths longer, one of PrimeDepth on it with its smaller refiner a sixth to a quarter less. The text
    # encoder stays what other methods read.
    "mini-wide": replace(
        MINI_UNET, channels=(64, 80, 80, 80), layers=1, head_dim=32, size=96, batch_size=32, train_text=False
    ),
    # Fine-tuning of SD 2.1; sizes come from --init and are given here for training from nothing.
    "full": UnetRecipe(
        channels=(320, 640, 1280, 1280),
        head_dim=64,
        groups=32,
        text_width=1024,
        text_layers=23,
        text_heads=16,
        size=512,
        batch_size=16,
        lr=1e-5,
        train_text=False,
        world=640,
    ),
}


class PriorUnetTask(Task):
    """Denoiser and text encoder of a Stable Diffusion prior, over a frozen autoencoder.

    Args:
        recipe: size and training.
        source: images and captions.
        options: what the person set; ``init`` must hold ``vae`` and may hold ``unet``, ``text_encoder`` and
            ``tokenizer`` to go on from.
    """

    name: ClassVar[str] = "prior-unet"

    def __init__(self, recipe: UnetRecipe, source: SampleSource, options: TaskOptions) -> None:
        if options.init is None:
            raise InputError("prior-unet needs an autoencoder", "give --init the export of prior-vae")
        if options.batch_size:
            recipe = replace(recipe, batch_size=options.batch_size)
        self._recipe, self.source, self.options = recipe, source, options
        self.batch_size = recipe.batch_size
        self.init = options.init
        self.vae = load_module(AutoencoderKL, component_folder(self.init, "vae"))
        if (self.init / "tokenizer").is_dir():
            self._vocabulary = read_vocabulary(self.init / "tokenizer")
        else:
            self._vocabulary = train_clip_vocabulary(captions_of(self.source), recipe.merges)
        self.tokenizer = clip_tokenizer(*self._vocabulary)
        self._evaluation: dict[str, Tensor] | None = None

    @classmethod
    @override
    def from_options(cls, options: TaskOptions) -> PriorUnetTask:
        recipe = preset(UNET_PRESETS, options.preset, cls.name)
        source = open_source(options.data, (recipe.world, recipe.world), pictures=("image", "caption"))
        return cls(recipe, source, options)

    @override
    def recipe(self) -> dict[str, Any]:
        return {"lr": self._recipe.lr, "warmup": 100, "ema": 0.999, "weight_decay": 1e-2}

    @override
    def build(self) -> nn.Module:
        from transformers import CLIPTextModel

        if (self.init / "unet").is_dir():
            self.unet: Any = load_module(UNet2DConditionModel, self.init / "unet")
        else:
            self.unet = UNet2DConditionModel(**self._recipe.unet_config(self.vae.config.latent_channels))
        if (self.init / "text_encoder").is_dir():
            self.text_encoder = load_module(CLIPTextModel, self.init / "text_encoder")
        else:
            self.text_encoder = self._new_text_encoder()
        if self.options.recomputes:
            self.unet.enable_gradient_checkpointing()
        trained: dict[str, nn.Module] = {"unet": self.unet}
        if self._recipe.train_text:
            trained["text_encoder"] = self.text_encoder
        return nn.ModuleDict(trained)

    def _new_text_encoder(self) -> nn.Module:
        from transformers import CLIPTextConfig, CLIPTextModel

        vocabulary = self._vocabulary[0]
        width = self._recipe.text_width
        config = CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=self._recipe.text_layers,
            num_attention_heads=self._recipe.text_heads,
            max_position_embeddings=MAX_LENGTH,
            hidden_act="gelu",
            projection_dim=width,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return CLIPTextModel(config)

    @override
    def frozen(self) -> Iterable[nn.Module]:
        return (self.vae,) if self._recipe.train_text else (self.vae, self.text_encoder)

    @override
    def batches(self) -> Batches:
        world = WorldBatches(
            self.source, self._recipe.batch_size, self._recipe.size, self.options.seed, ("image", "caption")
        )
        return Tokenised(world, self.tokenizer, self._recipe.caption_dropout, self.options.seed)

    def latents(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Scaled latents drawn from the posterior, (B, 4, h/8, w/8), without gradient."""
        with torch.no_grad():
            mean, logvar = encode_moments(self.vae, images)
            sample = mean + (0.5 * logvar).exp() * noise(mean.shape, generator, mean.device)
            return sample * self.vae.config.scaling_factor

    def context(self, tokens: Tensor) -> Tensor:
        """Text states after the last layer and its norm, (B, 77, width)."""
        return self.text_encoder(tokens).last_hidden_state

    @override
    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        latents = self.latents(batch["image"], generator)
        context = self.context(batch["tokens"])
        loss = denoising_loss(self.unet, latents, context, generator, self._recipe.prediction_type).mean()
        return loss, {}

    @override
    def evaluate(self, step: int) -> dict[str, float]:
        held = self._held_out()
        images, tokens = held["image"].to(self.device), held["tokens"].to(self.device)
        metrics = {}
        for t in (1, 100, 300, 600, 900):
            generator = torch.Generator().manual_seed(t)
            losses = []
            for x, ids in zip(images.split(16), tokens.split(16), strict=True):
                steps = torch.full((len(x),), t)
                latents = self.latents(x, generator)
                losses.append(
                    denoising_loss(
                        self.unet, latents, self.context(ids), generator, self._recipe.prediction_type, steps
                    )
                )
            metrics[f"mse_t{t}"] = float(torch.cat(losses).mean())
        metrics["mse"] = float(np.mean(list(metrics.values())))
        return metrics

    @override
    def images(self, step: int) -> dict[str, Tensor]:
        tokens = self._held_out()["tokens"][:8].to(self.device)
        side = self._recipe.size // 8
        generator = torch.Generator().manual_seed(0)
        latents = noise((len(tokens), self.vae.config.latent_channels, side, side), generator, self.device)
        empty = self.tokens([""] * len(tokens)).to(self.device)
        context = torch.cat([self.context(empty), self.context(tokens)])
        steps = ddim_timesteps(20)
        for t in steps:
            pair = self.unet(torch.cat([latents] * 2), torch.tensor(int(t)), context).sample.float()
            free, guided = pair.chunk(2)
            latents, _ = ddim_step(
                free + 3.0 * (guided - free), int(t), latents, len(steps), self._recipe.prediction_type
            )
        decoded = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return {"samples": decoded.float() / 2 + 0.5}

    def _held_out(self) -> dict[str, Tensor]:
        """64 images (64, 3, S, S) and their tokens (64, 77), of scenes that training never sees."""
        if self._evaluation is None:
            count = 64
            world = RenderedWorld(HELD_OUT_SEED, count, (self._recipe.size, self._recipe.size))
            captions = [world[i].caption for i in range(count)]
            images = held_out_images(count, self._recipe.size)
            self._evaluation = {"image": images, "tokens": self.tokens(captions)}
        return self._evaluation

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Token ids (B, 77) with start, end and padding."""
        return tokenise(self.tokenizer, captions)

    @override
    def export(self, folder: Path) -> None:
        export_component(self.unet, folder / "unet")
        export_component(self.text_encoder, folder / "text_encoder")
        export_component(self.vae, folder / "vae")
        write_clip_tokenizer(folder / "tokenizer", *self._vocabulary)
        write_pipeline_files(folder, self._recipe.prediction_type)

    @override
    def describe(self) -> dict[str, Any]:
        init = checksums(self.init, ("vae", "unet", "text_encoder"))
        described = describe_run(self.options.preset, self._recipe, self.source, init)
        return {**described, "vocabulary": len(self._vocabulary[0])}


def prediction_type_of(folder: Path) -> PredictionType:
    """What the UNet of a prior predicts, as its scheduler configuration says; noise when there is none."""
    file = folder / "scheduler" / "scheduler_config.json"
    return json.loads(file.read_text()).get("prediction_type", "epsilon") if file.is_file() else "epsilon"


def autoencoding_loss(
    vae: Any,  # AutoencoderKL
    images: Tensor,  # (B, 3, H, W) in [0, 1]
    mean: Tensor,  # (B, C, h, w) of their posteriors
    logvar: Tensor,  # (B, C, h, w)
    others: Tensor,  # (B, 3, H, W) in [0, 1]
    generator: torch.Generator,
    kl_weight: float,
) -> Tensor:
    """What keeps an autoencoder one while it is tuned for something else.

    Reconstruction and KL term of the first half of ``images`` and of the second half of ``others``, which are
    pictures of another kind that it shall carry as well, such as normal maps.
    """
    half = (len(mean) + 1) // 2
    other_mean, other_logvar = encode_moments(
        vae, others[half:].contiguous(memory_format=torch.channels_last)
    )
    mean = torch.cat([mean[:half], other_mean]).float()
    logvar = torch.cat([logvar[:half], other_logvar]).float()
    target = torch.cat([images[:half], others[half:]]) * 2 - 1
    output = vae.decode(mean + (0.5 * logvar).exp() * noise(mean.shape, generator, mean.device)).sample
    target = target[..., : output.shape[-2], : output.shape[-1]]
    loss, _ = reconstruction_loss(output.float(), target)
    return loss + kl_weight * kl_to_standard_normal(mean, logvar)


def denoising_loss(
    unet: nn.Module,  # UNet2DConditionModel
    latents: Tensor,  # (B, 4, h, w), scaled
    context: Tensor,  # (B, 77, width)
    generator: torch.Generator,
    prediction_type: PredictionType,
    steps: Tensor | None = None,  # (B,) on the CPU
) -> Tensor:  # (B,)
    """Mean squared error of the denoiser for one noise level per image, drawn uniformly unless given.

    The loss of DDPM with SD's schedule; add it to a task's own loss to fine-tune a denoiser and keep it one.
    """
    if steps is None:
        steps = torch.randint(0, TRAIN_STEPS, (len(latents),), generator=generator)
    drawn = noise(latents.shape, generator, latents.device)
    noisy = add_noise(latents, drawn, steps)
    output = unet(noisy, steps.to(latents.device), context).sample.float()
    target = training_target(latents, drawn, steps, prediction_type)
    return (output - target).square().flatten(1).mean(1)


@dataclass
class Tokenised:
    """Batches with token ids in place of captions.

    Args:
        batches: with a ``caption`` list.
        tokenizer: of the text encoder.
        dropout: share of captions replaced by "", which teaches the unconditional case.
        seed: of the dropout.
    """

    batches: Batches
    tokenizer: Any
    dropout: float = 0.0
    seed: int = 0

    def __getitem__(self, index: int) -> Batch:
        batch = dict(self.batches[index])
        captions = batch.pop("caption")
        dropped = np.random.default_rng((self.seed, 4, index)).random(len(captions)) < self.dropout
        texts = ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]
        return {**batch, "tokens": tokenise(self.tokenizer, texts)}


@dataclass
class TurnTaking:
    """Batch ``k`` comes from member ``k mod n``, so that steps of different sizes alternate."""

    members: Sequence[Batches]

    def __getitem__(self, index: int) -> Batch:
        turn, member = divmod(index, len(self.members))
        return self.members[member][turn]


def tokenise(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Token ids (B, 77): start, text cut to fit, end, padding."""
    encoded = tokenizer(
        list(captions), padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids


def held_out_images(count: int, size: int) -> Tensor:
    """(count, 3, size, size) of scenes that training never sees, half of them augmented; always the same."""
    world = RenderedWorld(HELD_OUT_SEED, count, (size, size))
    crops = []
    for i in range(count):
        rng = np.random.default_rng((HELD_OUT_SEED, i))
        crops.append(augmented_crop(world[i], size, rng, ("image",), photometric=float(i % 2))["image"])
    return torch.stack(crops)


# Files --------------------------------------------------------------------------------------------------


def write_pipeline_files(folder: Path, prediction_type: PredictionType) -> None:
    """Scheduler configuration and ``model_index.json`` that make ``folder`` a Stable Diffusion pipeline."""
    from diffusers import __version__ as version

    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    scheduler = {
        **SD_SCHEDULER,
        "prediction_type": prediction_type,
        "_diffusers_version": version,
    }
    atomic_write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": version,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    atomic_write_json(folder / "model_index.json", index)


def load_module(cls: Any, folder: Path) -> Any:
    """A diffusers or transformers module in float32 from its folder. Raises WeightsError in one line."""
    if issubclass(cls, ModelMixin) and list(folder.glob("*" + INDEX)):
        # diffusers takes no index that names files of other folders
        module = load_component(cls, folder, dtype=torch.float32)
        module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()}, assign=True)
        module._weight_source = None  # type: ignore[assignment]
        return module.requires_grad_(True)
    try:
        with no_library_bars():
            return cls.from_pretrained(
                folder, torch_dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"cannot load {cls.__name__} from {folder}: {first}", "check --init") from error


def checksums(folder: Path | None, components: Iterable[str]) -> dict[str, str] | None:
    """SHA-256 of the weight files of the components that are in a folder."""
    if folder is None:
        return None
    files = [
        f
        for c in components
        for kind in ("*.safetensors", "*" + INDEX)
        for f in sorted((folder / c).glob(kind))
    ]
    return {f"{f.parent.name}/{f.name}": fingerprint(f) for f in files}


def component_folder(init: Path, component: str, file: str = "config.json") -> Path:
    """A component's folder below ``init``. Raises InputError when ``file`` is not in it."""
    if not (init / component / file).is_file():
        raise InputError(f"{init} has no {component}/{file}", "give --init a diffusers folder")
    return init / component


def preset(presets: Mapping[str, Any], name: str, task: str) -> Any:
    """The recipe of a name. Raises InputError for an unknown one."""
    if name not in presets:
        raise InputError(f"{task} has no preset {name!r}", f"choose one of {', '.join(presets)}")
    return presets[name]


def read_vocabulary(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges of a tokeniser folder. Raises WeightsError when it cannot be read."""
    try:
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read the tokeniser in {folder}: {error}", "check --init") from error
    return vocabulary, [line for line in lines if line and not line.startswith("#version")]


def clip_tokenizer(vocabulary: dict[str, int], merges: list[str]) -> Any:
    """``transformers.CLIPTokenizer`` of a vocabulary, through the same files as everyone else's."""
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_clip_tokenizer(Path(folder) / "tokenizer", vocabulary, merges)
        return CLIPTokenizer.from_pretrained(Path(folder) / "tokenizer")
