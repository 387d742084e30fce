"""Training PrimeDepth: refiner and heads on the preimage of a Stable Diffusion prior (PrimeDepth, section 4).

As published the prior is frozen. The authors released no training code; losses, optimiser and schedule are ours,
after MiDaS: trimmed scale-and-shift-invariant L1 on inverse depth, multi-scale gradient matching, and cross entropy
for the segmentation head. The mini prior, trained for minutes and not for GPU years, is too weak to be left frozen:
its preset tunes the UNet along, with the denoising loss kept in the sum so that it stays a denoiser.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from typing_extensions import override

from vision3d.backbone.schedule import add_noise
from vision3d.backbone.text import Layer, is_cut
from vision3d.backbone.vae import set_group_norm_eps
from vision3d.geometry.affine import fit_scale_shift
from vision3d.io.files import atomic_path, atomic_write_json
from vision3d.pipelines.primedepth.network import TIMESTEP, PredictionHead, PreimageRefiner
from vision3d.training.checkpoint import export_component, load_tensors, save_tensors
from vision3d.training.data import SampleSource
from vision3d.training.deepen import with_transformer_layers
from vision3d.training.dense import CaptionedTask, at_cells, depth_picture, read_out
from vision3d.training.losses import (
    affine_invariant_loss,
    aligned_absrel,
    inverse_depth,
    normal_loss,
    segmentation_loss,
)
from vision3d.training.prior import (
    component_folder,
    denoising_loss,
    load_module,
    tokenise,
)
from vision3d.training.task import Batch, TaskOptions, noise

CLASSES = 150
"""ADE20K classes of the segmentation head."""
READ_OUT = "read_out/model.safetensors"
"""Where an export keeps the read-out, for the next leg to go on from; no prediction needs it."""


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
        transformer_layers: of each level of the UNet, the finest first; a UNet that has fewer starts with more that do
            nothing yet. None leaves it as it is.
        lr: peak learning rate of refiner and heads.
        unet_lr: learning rate of the UNet relative to ``lr``; 0 keeps it frozen, as published.
        denoising_weight: of the denoising loss that keeps a tuned UNet a denoiser.
        denoising_every: it is computed on every n-th step.
        gradient_weight: of gradient matching.
        absrel_weight: of AbsRel after a least-squares fit (not published).
        head_every: the depth head is trained on every n-th step; on the others a read-out of the refiner learns depth
            at half resolution, in half the time.
        normal_weight: of the read-out's normals, which teach refiner and UNet along.
        segmentation_weight: of cross entropy.
        segmentation_every: the segmentation head is trained on every n-th step.
        caption_dropout: share of captions replaced by "".
        sky: ``mask`` leaves sky out of the depth loss; ``far`` teaches inverse depth 0 there.
        scale: smallest and largest crop relative to the sample.
        photometric: share of images that are strongly augmented.
        turn: half of the crops are turned in the image plane by about so many degrees.
        max_size: longest side at which photographs are processed with these weights.
        world: (height, width) of scenes that are rendered when there is no cache.
        train_steps: of the whole run, where the preset names them.
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
    transformer_layers: tuple[int, ...] | None = None
    unet_lr: float = 0.0
    denoising_weight: float = 0.0
    denoising_every: int = 1
    gradient_weight: float = 0.5
    absrel_weight: float = 0.0
    head_every: int = 1
    normal_weight: float = 0.0
    segmentation_weight: float = 0.1
    segmentation_every: int = 1
    caption_dropout: float = 0.1
    sky: str = "mask"
    scale: tuple[float, float] = (0.6, 1.0)
    photometric: float = 0.8
    turn: float = 0.0
    max_size: int = 1024
    world: tuple[int, int] = (480, 640)
    warmup: int = 1000
    ema: float = 0.999
    train_steps: int | None = None


MINI = PrimeDepthRecipe(
    refiner_channels=64,
    head_channels=(8, 16, 32, 48),
    head_layers=1,
    head_groups=4,
    head_dim=16,
    crops=((72, 96, 12), (80, 80, 12), (72, 104, 12), (32, 96, 24), (96, 72, 12)),
    lr=1e-3,
    ratio=0.25,
    max_groups=4,
    unet_lr=0.5,
    denoising_weight=0.2,
    denoising_every=8,
    gradient_weight=0.1,
    absrel_weight=3.0,
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
MINI_WIDE = replace(
    MINI,
    crops=((72, 96, 16), (80, 80, 16), (72, 104, 16), (32, 96, 32), (96, 72, 16)),
    unet_lr=1.0,
    denoising_every=16,
    head_every=4,
    normal_weight=1.0,
    segmentation_every=32,
    scale=(0.6, 1.0),
)
MINI_WIDE_FINE = replace(
    MINI_WIDE,
    crops=((112, 112, 10), (80, 112, 12), (96, 128, 10), (32, 112, 24), (112, 112, 10), (112, 80, 12)),
    absrel_weight=5.0,
    head_every=1,
    normal_weight=0.0,
    segmentation_every=16,
    scale=(0.7, 1.0),
    max_size=112,
    warmup=100,
)
MINI_DEEP = replace(MINI_WIDE, transformer_layers=(2, 2, 1, 1))
MINI_DEEP_FINE = replace(
    MINI_WIDE_FINE,
    transformer_layers=MINI_DEEP.transformer_layers,
    crops=((112, 112, 16), (80, 112, 16), (112, 112, 16), (80, 112, 16), (32, 112, 32), (112, 80, 16)),
    absrel_weight=12.0,
    head_every=2,
    normal_weight=MINI_DEEP.normal_weight,
)
TURN = 9.0
FULL = PrimeDepthRecipe(
    refiner_channels=512,
    head_channels=(128, 256, 512, 512),
    head_layers=2,
    head_groups=32,
    head_dim=64,
    crops=((512, 512, 16),),
    lr=5e-5,
    train_steps=100_000,
)
PRESETS = {
    "mini": MINI,
    # last leg of the mini: more of each photograph, from the first's export
    "mini-fine": replace(
        MINI,
        crops=((112, 152, 6), (112, 112, 8), (48, 152, 12), (112, 152, 6), (112, 88, 10)),
        scale=(0.75, 1.0),
        max_size=112,
    ),
    # from a prior of prior-unet's preset of that name: most of the training, small and through the read-out
    "mini-wide": MINI_WIDE,
    # its last leg: at the size of inference, by the depth head alone
    "mini-wide-fine": MINI_WIDE_FINE,
    # from an export of those: a deeper denoiser, where its transformers see enough to tell the layout
    "mini-deep": MINI_DEEP,
    # its last leg: by depth head and read-out in turn, in the shapes of photographs
    "mini-deep-fine": MINI_DEEP_FINE,
    # the same two for cameras that are held askew
    "mini-askew": replace(MINI_DEEP, turn=TURN),
    "mini-askew-fine": replace(MINI_DEEP_FINE, turn=TURN),
    # the published sizes: first on photographs with the depth of another network, then on synthetic scenes
    "full-pseudo": FULL,
    "full-synthetic": replace(
        FULL, crops=((480, 640, 16), (352, 1216, 16)), scale=(0.7, 1.0), world=(480, 1216), train_steps=25_000
    ),
}


class PrimeDepthTask(CaptionedTask):
    """Refiner, depth head and segmentation head over a prior.

    Args:
        recipe: sizes and training.
        source: images with depth, semantic classes and captions.
        options: what the person set; ``init`` holds the prior (``vae``, ``unet``, ``text_encoder``,
            ``tokenizer``) and may hold ``refiner`` and heads to go on from.
    """

    name: ClassVar[str] = "primedepth"
    presets: ClassVar[dict[str, PrimeDepthRecipe]] = PRESETS
    fields: tuple[str, ...] = ("image", "depth", "semantic", "caption")
    held_out_fields: ClassVar[tuple[str, ...]] = ("image", "depth")
    init_hint: ClassVar[str] = "give --init the export of prior-unet, or an SD 2.1 folder"
    starts_from: ClassVar[tuple[str, ...]] = (
        "vae",
        "unet",
        "text_encoder",
        "refiner",
        "depth_head",
        "segmentation_head",
        "read_out",
    )

    def __init__(self, recipe: PrimeDepthRecipe, source: SampleSource, options: TaskOptions) -> None:
        super().__init__(recipe, source, options)
        if recipe.normal_weight and recipe.head_every > 1:
            self.fields = (*type(self).fields, "normals")
        self.vae: Any = load_module(AutoencoderKL, component_folder(self.init, "vae"))
        set_group_norm_eps(self.vae, 1e-5)

    @override
    def build(self) -> nn.Module:
        recipe = self._recipe
        self.unet: Any = load_module(UNet2DConditionModel, component_folder(self.init, "unet"))
        if recipe.transformer_layers:
            self.unet = with_transformer_layers(self.unet, recipe.transformer_layers)
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
        if self.options.recomputes:
            for module in (self.refiner, self.depth_head, self.segmentation_head):
                module.enable_gradient_checkpointing()
        trained = {
            "refiner": self.refiner,
            "depth_head": self.depth_head,
            "segmentation_head": self.segmentation_head,
        }
        if recipe.unet_lr:
            trained["unet"] = self.unet
        if recipe.head_every > 1:
            self.read_out = nn.Sequential(nn.SiLU(), *read_out(self.refiner.config.out_channels, 4))
            if (self.init / READ_OUT).is_file():
                self.read_out.load_state_dict(load_tensors(self.init / READ_OUT))
            trained["read_out"] = self.read_out
        for module in (self.vae, *trained.values()):
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return nn.ModuleDict(trained)

    def _part(self, name: str, cls: type) -> Any:
        return load_module(cls, self.init / name) if (self.init / name / "config.json").is_file() else None

    def _new_head(self, channels: int) -> PredictionHead:
        recipe = self._recipe
        return PredictionHead(
            recipe.refiner_channels, channels, recipe.head_channels, recipe.head_layers, recipe.head_groups
        )

    @override
    def frozen(self) -> Iterable[nn.Module]:
        prior = (self.vae, self.text_encoder)
        return prior if self._recipe.unet_lr else (*prior, self.unet)

    @override
    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        parts = dict(model.items())  # type: ignore[operator]
        unet = parts.pop("unet", None)
        groups = super().parameter_groups(nn.ModuleDict(parts))
        if unet is not None:
            scale = self._recipe.unet_lr
            groups += [{**group, "lr_scale": scale} for group in super().parameter_groups(unet)]
        return groups

    def latents(self, images: Tensor) -> Tensor:
        """Scaled posterior means, without gradient."""
        return self.encoded(images.contiguous(memory_format=torch.channels_last))

    def refined(self, latents: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
        """Input of the heads; noise of t = 1 is drawn anew."""
        noisy = add_noise(latents, noise(latents.shape, generator, latents.device), TIMESTEP)
        return self.refiner(self.unet, noisy, context, frozen=not self._recipe.unet_lr)

    @override
    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        recipe = self._recipe
        latents = self.latents(batch["image"])
        context = self.context(batch["tokens"])
        refined = self.refined(latents, context, generator)
        inverse, valid = inverse_depth(batch["depth"], sky=recipe.sky)
        by_head = self.due(step, recipe.head_every)
        if by_head:
            prediction = self.depth_head(refined).float().mean(dim=1)
            inverse, valid = _to_size(inverse, valid, prediction.shape[-2:])
        else:
            maps = self.read_out(refined).float()
            prediction = maps[:, 0]
            inverse, valid = at_cells(inverse, prediction), at_cells(valid, prediction)
        loss, metrics = affine_invariant_loss(prediction, inverse, valid, recipe.gradient_weight)
        if recipe.normal_weight and not by_head:
            angular = normal_loss(maps[:, 1:], at_cells(batch["normals"], prediction))
            loss = loss + recipe.normal_weight * angular
            metrics["normals"] = angular.detach()
        if recipe.absrel_weight:
            error = aligned_absrel(prediction, inverse, valid)
            loss = loss + recipe.absrel_weight * error
            metrics["absrel"] = error.detach()
        if recipe.segmentation_weight and self.due(step, recipe.segmentation_every):
            logits = self.segmentation_head(refined).float()
            labels = F.interpolate(
                batch["semantic"][:, None].float(), size=logits.shape[-2:], mode="nearest-exact"
            )[:, 0]
            entropy = segmentation_loss(logits, labels)
            loss = loss + recipe.segmentation_weight * entropy
            metrics["entropy"] = entropy.detach()
        if recipe.unet_lr and recipe.denoising_weight and self.due(step, recipe.denoising_every):
            denoising = denoising_loss(self.unet, latents, context, generator, self.prediction_type).mean()
            loss = loss + recipe.denoising_weight * denoising
            metrics["denoising"] = denoising.detach()
        return loss, metrics

    def predict(self, images: Tensor) -> Tensor:
        """Inverse depth (B, h, w) under the empty caption, with the fixed noise that inference uses."""
        tokens = tokenise(self.tokenizer, [""] * len(images)).to(images.device)
        generator = torch.Generator().manual_seed(0)
        refined = self.refined(self.latents(images), self.context(tokens), generator)
        return self.depth_head(refined).float().mean(dim=1)

    @override
    def evaluate(self, step: int) -> dict[str, float]:
        held = self.held_out()
        errors = []
        for images, depth in zip(held["image"].split(16), held["depth"].split(16), strict=True):
            prediction = self.predict(images.to(self.device)).cpu()
            depth = depth[:, : prediction.shape[-2], : prediction.shape[-1]]
            errors += [absrel(p, d) for p, d in zip(prediction, depth, strict=True)]
        return {"absrel": float(sum(errors) / len(errors))}

    @override
    def images(self, step: int) -> dict[str, Tensor]:
        held = self.held_out()
        images = held["image"][:8]
        prediction = self.predict(images.to(self.device)).cpu()
        target = inverse_depth(held["depth"][:8], sky="far")[0]
        return {"depth": torch.cat([images, depth_picture(prediction), depth_picture(target)])}

    @override
    def export(self, folder: Path) -> None:
        for name in ("vae", "unet", "text_encoder", "refiner", "depth_head", "segmentation_head"):
            export_component(getattr(self, name), folder / name)
        if self._recipe.head_every > 1:
            with atomic_path(folder / READ_OUT) as path:
                save_tensors(nn.Module.half(copy.deepcopy(self.read_out)).state_dict(), path)
        self.hand_on(folder, "tokenizer", "scheduler")
        layer: Layer = "penultimate" if is_cut(self.text_encoder) else "last"
        write_pipeline_index(folder, self._recipe.max_size, layer)


def _to_size(inverse: Tensor, valid: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Targets cut to what the head covers (sizes that are no multiple of 8 lose the remainder)."""
    return inverse[:, : size[0], : size[1]], valid[:, : size[0], : size[1]]


def absrel(prediction: Tensor, depth: Tensor) -> float:
    """AbsRel of one map (H, W) after the least-squares fit in inverse depth (clip 1e-3, invert)."""
    inverse, valid = inverse_depth(depth[None])
    scale, shift = fit_scale_shift(prediction[None].double(), inverse.double(), valid)
    fitted = 1 / (scale * prediction[None].double() + shift).clamp_min(1e-3)
    return float(((fitted - depth[None]).abs() / depth[None])[valid].mean())


def write_pipeline_index(folder: Path, max_size: int, text_layer: Layer) -> None:
    """``model_index.json`` that makes ``folder`` a PrimeDepth pipeline; arguments as that takes them."""
    from diffusers import __version__ as version

    network = "vision3d.pipelines.primedepth.network"
    index = {
        "_class_name": "PrimeDepth",
        "_diffusers_version": version,
        "max_size": max_size,
        "text_layer": text_layer,
        "vae": ["diffusers", "AutoencoderKL"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "refiner": [network, "PreimageRefiner"],
        "depth_head": [network, "PredictionHead"],
        "segmentation_head": [network, "PredictionHead"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    atomic_write_json(folder / "model_index.json", index)
