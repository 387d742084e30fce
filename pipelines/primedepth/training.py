"""Training PrimeDepth: refiner and heads on the preimage of a Stable Diffusion prior (PrimeDepth, section 4).

As published the prior is frozen. The authors released no training code; losses, optimiser and schedule are ours,
after MiDaS: trimmed scale-and-shift-invariant L1 on inverse depth, multi-scale gradient matching, and cross entropy
for the segmentation head. The mini prior, trained for minutes and not for GPU years, is too weak to be left frozen:
its preset tunes UNet and autoencoder along, with the denoising and the reconstruction loss kept in the sum so
that they stay a denoiser and an autoencoder (of photographs and, for methods that predict them, of normal maps).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from typing_extensions import override

from vision3d.backbone.schedule import add_noise
from vision3d.backbone.vae import encode_moments, set_group_norm_eps
from vision3d.errors import InputError
from vision3d.geometry.affine import fit_scale_shift
from vision3d.io.files import atomic_write_json
from vision3d.pipelines.primedepth.network import TIMESTEP, PredictionHead, PreimageRefiner
from vision3d.training.checkpoint import export_component
from vision3d.training.data import (
    HELD_OUT_SEED,
    RenderedWorld,
    SampleSource,
    WorldBatches,
    augmented_crop,
    describe_source,
    open_source,
)
from vision3d.training.losses import (
    affine_invariant_loss,
    inverse_depth,
    normal_picture,
    relative_error,
    segmentation_loss,
)
from vision3d.training.prior import (
    Tokenised,
    TurnTaking,
    autoencoding_loss,
    checksums,
    clip_tokenizer,
    component_folder,
    denoising_loss,
    load_module,
    prediction_type_of,
    preset,
    read_vocabulary,
    tokenise,
)
from vision3d.training.task import Batch, Batches, Task, TaskOptions, noise

CLASSES = 150
"""ADE20K classes of the segmentation head."""


@dataclass(frozen=True)
class PrimeDepthRecipe:
    """Sizes and training of refiner and heads.

    Args:
        refiner_channels: handed from the refiner to the heads.
        head_channels, head_layers, head_groups: of the heads.
        head_dim: size of the refiner's attention heads.
        ratio: width of the refiner relative to the UNet.
        max_groups: of the refiner's norms.
        crops: (height, width, images) of the batches that take turns.
        lr: peak learning rate of refiner and heads.
        unet_lr: learning rate of the UNet relative to ``lr``; 0 keeps it frozen, as published.
        denoising_weight: of the denoising loss that keeps a tuned UNet a denoiser.
        denoising_every: it is computed on every n-th step.
        vae_lr: learning rate of the autoencoder relative to ``lr``; 0 keeps it frozen, as published.
        reconstruction_weight: of the reconstruction loss that keeps a tuned autoencoder an autoencoder.
        reconstruction_every: it is computed on every n-th step.
        kl_weight: of the KL term, relative to the reconstruction loss.
        gradient_weight: of gradient matching.
        relative_weight: of the relative error after a least-squares fit, which is what AbsRel measures.
        segmentation_weight: of cross entropy.
        segmentation_every: the segmentation head is trained on every n-th step.
        caption_dropout: share of captions replaced by "".
        sky: ``mask`` leaves sky out of the depth loss; ``far`` teaches inverse depth 0 there.
        scale: smallest and largest crop relative to the sample.
        max_size: longest side at which photographs are processed with these weights.
        world: (height, width) of scenes that are rendered when there is no cache.
    """

    refiner_channels: int
    head_channels: tuple[int, ...]
    head_layers: int
    head_groups: int
    head_dim: int
    crops: tuple[tuple[int, int, int], ...]
    lr: float
    ratio: float = 0.5
    max_groups: int = 32
    unet_lr: float = 0.0
    denoising_weight: float = 0.0
    denoising_every: int = 1
    vae_lr: float = 0.0
    reconstruction_weight: float = 0.0
    reconstruction_every: int = 1
    kl_weight: float = 5e-4
    gradient_weight: float = 0.5
    relative_weight: float = 0.0
    segmentation_weight: float = 0.1
    segmentation_every: int = 1
    caption_dropout: float = 0.1
    sky: str = "mask"
    scale: tuple[float, float] = (0.6, 1.0)
    max_size: int = 1024
    world: tuple[int, int] = (480, 640)
    warmup: int = 1000
    ema: float = 0.999


MINI = PrimeDepthRecipe(
    refiner_channels=64,
    head_channels=(8, 16, 32, 48),
    head_layers=1,
    head_groups=4,
    head_dim=16,
    crops=((72, 96, 16), (80, 80, 16), (72, 104, 16), (72, 96, 16)),
    lr=1.2e-3,
    max_groups=4,
    unet_lr=1.0,
    denoising_weight=0.2,
    denoising_every=4,
    vae_lr=1.0,
    reconstruction_weight=2.0,
    reconstruction_every=4,
    relative_weight=1.0,
    segmentation_weight=0.2,
    segmentation_every=8,
    caption_dropout=0.9,
    sky="far",
    scale=(0.7, 1.0),
    max_size=96,
    world=(120, 160),
    warmup=200,
    ema=0.998,
)
PRESETS = {
    "mini": MINI,
    # first stage of the mini: small crops, of which many more are seen in the same time
    "mini-coarse": replace(MINI, crops=((48, 64, 24), (56, 56, 24), (48, 72, 24), (48, 64, 24)), max_size=64),
    # Hypersim crops and Virtual KITTI crops in turn, after pre-training on pseudo labels at 512 x 512
    "full": PrimeDepthRecipe(
        refiner_channels=512,
        head_channels=(128, 256, 512, 512),
        head_layers=2,
        head_groups=32,
        head_dim=64,
        crops=((480, 640, 16), (352, 1216, 16)),
        lr=5e-5,
    ),
    "full-pseudo": PrimeDepthRecipe(
        refiner_channels=512,
        head_channels=(128, 256, 512, 512),
        head_layers=2,
        head_groups=32,
        head_dim=64,
        crops=((512, 512, 16),),
        lr=5e-5,
    ),
}


class PrimeDepthTask(Task):
    """Refiner, depth head and segmentation head over a prior.

    Args:
        recipe: sizes and training.
        source: images with depth, semantic classes and captions.
        options: what the person set; ``init`` holds the prior (``vae``, ``unet``, ``text_encoder``,
            ``tokenizer``) and may hold ``refiner`` and heads to go on from.
    """

    name: ClassVar[str] = "primedepth"

    def __init__(self, recipe: PrimeDepthRecipe, source: SampleSource, options: TaskOptions) -> None:
        if options.init is None:
            raise InputError(
                "primedepth needs a prior", "give --init the export of prior-unet, or an SD 2.1 folder"
            )
        if options.batch_size:
            recipe = replace(recipe, crops=tuple((h, w, options.batch_size) for h, w, _ in recipe.crops))
        self._recipe, self.source, self.options, self.init = recipe, source, options, options.init
        self.batch_size = recipe.crops[0][2]
        self.tokenizer = clip_tokenizer(
            *read_vocabulary(component_folder(self.init, "tokenizer", "vocab.json"))
        )
        self.vae: Any = load_module(AutoencoderKL, component_folder(self.init, "vae"))
        set_group_norm_eps(self.vae, 1e-5)
        from transformers import CLIPTextModel

        self.text_encoder: Any = load_module(CLIPTextModel, component_folder(self.init, "text_encoder"))
        self.prediction_type = prediction_type_of(self.init)
        self._held: dict[str, Tensor] | None = None

    @classmethod
    @override
    def from_options(cls, options: TaskOptions) -> PrimeDepthTask:
        recipe = preset(PRESETS, options.preset, cls.name)
        return cls(recipe, open_source(options.data, recipe.world), options)

    @override
    def recipe(self) -> dict[str, Any]:
        return {
            "lr": self._recipe.lr,
            "warmup": self._recipe.warmup,
            "ema": self._recipe.ema,
            "weight_decay": 1e-2,
        }

    @override
    def build(self) -> nn.Module:
        recipe = self._recipe
        self.unet: Any = load_module(UNet2DConditionModel, component_folder(self.init, "unet"))
        self.refiner: Any = self._part("refiner", PreimageRefiner) or PreimageRefiner.for_unet(
            dict(self.unet.config),
            ratio=recipe.ratio,
            max_groups=recipe.max_groups,
            num_head_channels=recipe.head_dim,
            out_channels=recipe.refiner_channels,
        )
        self.depth_head: Any = self._part("depth_head", PredictionHead) or self._new_head(3)
        self.segmentation_head: Any = self._part("segmentation_head", PredictionHead) or self._new_head(
            CLASSES
        )
        if self.options.checkpointing or (
            self.options.checkpointing is None and self.options.preset.startswith("full")
        ):
            for module in (self.refiner, self.depth_head, self.segmentation_head):
                module.enable_gradient_checkpointing()
        trained = {
            "refiner": self.refiner,
            "depth_head": self.depth_head,
            "segmentation_head": self.segmentation_head,
        }
        if recipe.unet_lr:
            trained["unet"] = self.unet
        if recipe.vae_lr:
            self.vae.requires_grad_(True).train()
            trained["vae"] = self.vae
        model = nn.ModuleDict(trained)
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _part(self, name: str, cls: type) -> Any:
        return load_module(cls, self.init / name) if (self.init / name / "config.json").is_file() else None

    def _new_head(self, channels: int) -> PredictionHead:
        recipe = self._recipe
        return PredictionHead(
            recipe.refiner_channels, channels, recipe.head_channels, recipe.head_layers, recipe.head_groups
        )

    @override
    def frozen(self) -> Iterable[nn.Module]:
        tuned = (self._recipe.vae_lr, self._recipe.unet_lr, 0.0)
        parts = (self.vae, self.unet, self.text_encoder)
        return [part for part, lr in zip(parts, tuned, strict=True) if not lr]

    @override
    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        parts = dict(model.items())  # type: ignore[operator]
        scales = {"unet": self._recipe.unet_lr, "vae": self._recipe.vae_lr}
        prior = {name: parts.pop(name) for name in scales if name in parts}
        groups = super().parameter_groups(nn.ModuleDict(parts))
        for name, module in prior.items():
            groups += [{**group, "lr_scale": scales[name]} for group in super().parameter_groups(module)]
        return groups

    @override
    def batches(self) -> Batches:
        recipe, seed = self._recipe, self.options.seed
        fields = ("image", "depth", "semantic", "caption", *(("normals",) if recipe.vae_lr else ()))
        members = [
            Tokenised(
                WorldBatches(
                    self.source,
                    count,
                    (height, width),
                    seed=seed + 7919 * i,
                    fields=fields,
                    scale=recipe.scale,
                ),
                self.tokenizer,
                recipe.caption_dropout,
                seed + i,
            )
            for i, (height, width, count) in enumerate(recipe.crops)
        ]
        return TurnTaking(members)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior; without gradient where the autoencoder is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._recipe.vae_lr > 0):
            mean, logvar = encode_moments(self.vae, images.contiguous(memory_format=torch.channels_last))
        return mean, logvar

    def latents(self, images: Tensor) -> Tensor:
        """Scaled posterior means."""
        return self.moments(images)[0] * self.vae.config.scaling_factor

    def context(self, tokens: Tensor) -> Tensor:
        """Text states (B, 77, width), without gradient."""
        with torch.no_grad():
            return self.text_encoder(tokens).last_hidden_state

    def refined(self, latents: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
        """Input of the heads; noise of t = 1 is drawn anew."""
        noisy = add_noise(latents, noise(latents.shape, generator, latents.device), TIMESTEP)
        return self.refiner(self.unet, noisy, context, frozen=not self._recipe.unet_lr)

    @override
    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        recipe = self._recipe
        mean, logvar = self.moments(batch["image"])
        latents = mean * self.vae.config.scaling_factor
        context = self.context(batch["tokens"])
        refined = self.refined(latents, context, generator)
        prediction = self.depth_head(refined).float().mean(dim=1)
        inverse, valid = inverse_depth(batch["depth"], sky=recipe.sky)
        inverse, valid = _to_size(inverse, valid, prediction.shape[-2:])
        loss, metrics = affine_invariant_loss(prediction, inverse, valid, recipe.gradient_weight)
        if recipe.relative_weight:
            relative = relative_error(prediction, inverse, valid)
            loss = loss + recipe.relative_weight * relative
            metrics["relative"] = relative.detach()
        if recipe.segmentation_weight and step % recipe.segmentation_every == 0:
            logits = self.segmentation_head(refined).float()
            labels = F.interpolate(
                batch["semantic"][:, None].float(), size=logits.shape[-2:], mode="nearest"
            )[:, 0]
            entropy = segmentation_loss(logits, labels)
            loss = loss + recipe.segmentation_weight * entropy
            metrics["entropy"] = entropy.detach()
        if recipe.unet_lr and recipe.denoising_weight and step % recipe.denoising_every == 0:
            # the autoencoder must not learn latents that are easy to denoise
            denoising = denoising_loss(
                self.unet, latents.detach(), context, generator, self.prediction_type
            ).mean()
            loss = loss + recipe.denoising_weight * denoising
            metrics["denoising"] = denoising.detach()
        if recipe.vae_lr and recipe.reconstruction_weight and step % recipe.reconstruction_every == 0:
            normals = normal_picture(batch["normals"])
            reconstruction = autoencoding_loss(
                self.vae, batch["image"], mean, logvar, normals, generator, recipe.kl_weight
            )
            loss = loss + recipe.reconstruction_weight * reconstruction
            metrics["reconstruction"] = reconstruction.detach()
        return loss, metrics

    def _held_out(self) -> dict[str, Tensor]:
        if self._held is None:
            height, width, _ = self._recipe.crops[0]
            world = RenderedWorld(HELD_OUT_SEED, 96, (height, width))
            crops = [
                augmented_crop(world[i], (height, width), np.random.default_rng(i), ("image", "depth"))
                for i in range(96)
            ]
            self._held = {name: torch.stack([c[name] for c in crops]) for name in ("image", "depth")}
        return self._held

    def predict(self, images: Tensor) -> Tensor:
        """Inverse depth (B, h, w) under the empty caption, with the fixed noise that inference uses."""
        tokens = tokenise(self.tokenizer, [""] * len(images)).to(images.device)
        generator = torch.Generator().manual_seed(0)
        refined = self.refined(self.latents(images), self.context(tokens), generator)
        return self.depth_head(refined).float().mean(dim=1)

    @override
    def evaluate(self, step: int) -> dict[str, float]:
        held = self._held_out()
        errors = []
        for images, depth in zip(held["image"].split(16), held["depth"].split(16), strict=True):
            prediction = self.predict(images.to(self.device)).cpu()
            depth = depth[:, : prediction.shape[-2], : prediction.shape[-1]]
            errors += [absrel(p, d) for p, d in zip(prediction, depth, strict=True)]
        return {"absrel": float(sum(errors) / len(errors))}

    @override
    def images(self, step: int) -> dict[str, Tensor]:
        held = self._held_out()
        images = held["image"][:8]
        prediction = self.predict(images.to(self.device)).cpu()
        target = inverse_depth(held["depth"][:8], sky="far")[0]
        maps = []
        for stack in (prediction, target):
            low, high = stack.flatten(1).quantile(0.02, 1), stack.flatten(1).quantile(0.98, 1)
            shown = (stack - low[:, None, None]) / (high - low).clamp_min(1e-6)[:, None, None]
            maps.append(shown.clamp(0, 1)[:, None].expand(-1, 3, -1, -1))
        return {"depth": torch.cat([images, *maps])}

    @override
    def export(self, folder: Path) -> None:
        for name in ("vae", "unet", "text_encoder", "refiner", "depth_head", "segmentation_head"):
            export_component(getattr(self, name), folder / name)
        shutil.copytree(self.init / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
        if (self.init / "scheduler").is_dir():
            shutil.copytree(self.init / "scheduler", folder / "scheduler", dirs_exist_ok=True)
        write_pipeline_index(folder, self._recipe.max_size)

    @override
    def describe(self) -> dict[str, Any]:
        return {
            "preset": self.options.preset,
            "recipe": asdict(self._recipe),
            "data": describe_source(self.source),
            "init": checksums(self.init, ("vae", "unet", "text_encoder", "refiner", "depth_head")),
        }


def _to_size(inverse: Tensor, valid: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Targets cut to what the head covers (sizes that are no multiple of 8 lose the remainder)."""
    return inverse[:, : size[0], : size[1]], valid[:, : size[0], : size[1]]


def absrel(prediction: Tensor, depth: Tensor) -> float:
    """AbsRel of one map (H, W) after the least-squares fit in inverse depth (clip 1e-3, invert)."""
    inverse, valid = inverse_depth(depth[None])
    scale, shift = fit_scale_shift(prediction[None].double(), inverse.double(), valid)
    fitted = 1 / (scale * prediction[None].double() + shift).clamp_min(1e-3)
    return float(((fitted - depth[None]).abs() / depth[None])[valid].mean())


def write_pipeline_index(folder: Path, max_size: int) -> None:
    """``model_index.json`` that makes ``folder`` a PrimeDepth pipeline."""
    from diffusers import __version__ as version

    network = "vision3d.pipelines.primedepth.network"
    index = {
        "_class_name": "PrimeDepth",
        "_diffusers_version": version,
        "max_size": max_size,
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "refiner": [network, "PreimageRefiner"],
        "depth_head": [network, "PredictionHead"],
        "segmentation_head": [network, "PredictionHead"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    atomic_write_json(folder / "model_index.json", index)
