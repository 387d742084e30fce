"""A small Stable Diffusion prior that knows geometry.

What makes Stable Diffusion a prior for geometry is that it has seen billions of photographs. A network of a few
million parameters, trained for an hour on a procedural world, learns no such thing by denoising alone. This stage
teaches it directly: autoencoder and UNet are tuned together, at the almost noise-free step that the dense methods
read, so that a few convolutions on the UNet's last decoder features give inverse depth, normals, the direction of
every pixel's ray and metric depth; the reconstruction and denoising losses stay in the sum, so that the result is
still an autoencoder and a denoiser of the ordinary Stable Diffusion layout. A last leg shows the UNet alone more of
each photograph ("mini-fine"), and a second task teaches the decoder alone the pictures that methods ask it for. The
published prior needs none of this.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from typing_extensions import override

from vision3d.backbone.schedule import add_noise
from vision3d.backbone.unet import walk
from vision3d.backbone.vae import encode_moments, set_group_norm_eps
from vision3d.geometry.rays import GREY, angle_channels, ray_angles
from vision3d.training.checkpoint import export_component
from vision3d.training.dense import CaptionedTask, DenseTask, at_cells, depth_picture, read_out
from vision3d.training.losses import (
    affine_invariant_loss,
    aligned_absrel,
    inverse_depth,
    known_depth,
    normal_loss,
    normal_picture,
    reconstruction_loss,
)
from vision3d.training.prior import (
    autoencoding_loss,
    component_folder,
    denoising_loss,
    load_module,
    tokenise,
)
from vision3d.training.task import Batch, noise

TIMESTEP = 1


@dataclass(frozen=True)
class GeometryPriorRecipe:
    """Training of a prior on geometry.

    Args:
        crops: (height, width, images) of the batches that take turns.
        lr: peak learning rate.
        gradient_weight: of gradient matching, beside the scale-and-shift-invariant L1 loss of inverse depth.
        absrel_weight: of AbsRel after a least-squares fit of inverse depth.
        normal_weight: of the cosine loss of normals.
        ray_weight: of the L1 error of every ray's azimuth and elevation in radians, which tell the camera.
        metric_weight: of the L1 error of the logarithm of depth in metres.
        train_autoencoder: tune it along; else latents stay what they are, and with them all that reads them.
        reconstruction_weight, reconstruction_every, kl_weight: of the autoencoder's own loss, where it is tuned.
        denoising_weight, denoising_every: of the UNet's own loss.
        caption_dropout: share of captions replaced by "".
        scale: smallest and largest crop relative to the sample.
        photometric: share of images that are strongly augmented.
        world: (height, width) of scenes that are rendered when there is no cache.
    """

    crops: tuple[tuple[int, int, int], ...] = ((72, 96, 12), (80, 80, 12), (72, 104, 12), (72, 96, 12))
    lr: float = 1e-3
    gradient_weight: float = 0.1
    absrel_weight: float = 2.0
    normal_weight: float = 2.0
    ray_weight: float = 1.0
    metric_weight: float = 0.2
    train_autoencoder: bool = True
    reconstruction_weight: float = 2.0
    reconstruction_every: int = 8
    kl_weight: float = 5e-4
    denoising_weight: float = 0.2
    denoising_every: int = 16
    caption_dropout: float = 0.9
    scale: tuple[float, float] = (0.7, 1.0)
    photometric: float = 0.8
    world: tuple[int, int] = (120, 160)
    warmup: int = 200
    ema: float = 0.998


PRESETS = {
    "mini": GeometryPriorRecipe(),
    "mini-fine": GeometryPriorRecipe(
        crops=((112, 152, 6), (112, 112, 8), (56, 144, 12), (112, 152, 6), (112, 88, 10)),
        train_autoencoder=False,
        scale=(0.75, 1.0),
    ),
}


class Geometry(NamedTuple):
    """What the read-out tells of a batch of photographs."""

    inverse: Tensor
    """(B, H, W), inverse depth up to scale and shift."""
    normals: Tensor
    """(B, 3, H, W), OpenCV camera frame, of any length."""
    rays: Tensor
    """(B, 2, H, W), azimuth and elevation, see :func:`vision3d.geometry.rays.ray_angles`."""
    log_depth: Tensor
    """(B, H, W), logarithm of depth in metres."""


class GeometryPriorTask(CaptionedTask):
    """UNet and (see the recipe) autoencoder, taught depth, normals and cameras through a small read-out.

    Args:
        recipe: how to train.
        source: images with depth, normals, intrinsics and captions.
        options: what the person set; ``init`` holds ``vae``, ``unet``, ``text_encoder`` and ``tokenizer``.
    """

    name: ClassVar[str] = "prior-geometry"
    presets: ClassVar[dict[str, GeometryPriorRecipe]] = PRESETS
    fields = ("image", "depth", "normals", "K", "caption")
    held_out_fields: ClassVar[tuple[str, ...]] = ("image", "depth", "normals", "K")
    init_hint: ClassVar[str] = "give --init the export of prior-unet"
    starts_from: ClassVar[tuple[str, ...]] = ("vae", "unet", "text_encoder")

    @override
    def build(self) -> nn.Module:
        self.vae: Any = load_module(AutoencoderKL, component_folder(self.init, "vae"))
        set_group_norm_eps(self.vae, 1e-5)
        self.unet: Any = load_module(UNet2DConditionModel, component_folder(self.init, "unet"))
        width = self.unet.config.block_out_channels[0]
        self.read_out = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), *read_out(width, 7))
        parts: dict[str, Any] = {"vae": self.vae, "unet": self.unet, "read_out": self.read_out}
        for module in parts.values():
            module.to(memory_format=torch.channels_last)
        if not self._recipe.train_autoencoder:
            del parts["vae"]
        return nn.ModuleDict(parts)

    @override
    def frozen(self) -> Iterable[nn.Module]:
        return (self.text_encoder,) if self._recipe.train_autoencoder else (self.text_encoder, self.vae)

    def geometry(
        self,
        latents: Tensor,  # (B, C, h, w), scaled
        context: Tensor,  # (B, 77, width)
        generator: torch.Generator,
    ) -> Geometry:
        """What the UNet's last decoder features tell, at 4h × 4w."""
        noisy = add_noise(latents, noise(latents.shape, generator, latents.device), TIMESTEP)
        last = f"u{len(self.unet.up_blocks) - 1}a{len(self.unet.up_blocks[-1].resnets) - 1}"
        features = next(tap.tensor for tap in walk(self.unet, noisy, TIMESTEP, context) if tap.name == last)
        maps = self.read_out(features).float()
        return Geometry(maps[:, 0], maps[:, 1:4], maps[:, 4:6], maps[:, 6])

    @override
    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        recipe = self._recipe
        images = batch["image"].contiguous(memory_format=torch.channels_last)
        with torch.set_grad_enabled(recipe.train_autoencoder):
            mean, logvar = encode_moments(self.vae, images)
        latents = mean * self.vae.config.scaling_factor
        context = self.context(batch["tokens"])
        told = self.geometry(latents, context, generator)
        prediction = told.inverse
        inverse, valid = inverse_depth(batch["depth"], sky="far")
        inverse, valid = at_cells(inverse, prediction), at_cells(valid, prediction)
        loss, metrics = affine_invariant_loss(prediction, inverse, valid, recipe.gradient_weight)
        absrel = aligned_absrel(prediction, inverse, valid)
        angular = normal_loss(told.normals, at_cells(batch["normals"], prediction))
        rays = (told.rays - at_cells(_rays(batch["K"], images), prediction)).abs().mean()
        metric = _log_error(told.log_depth, at_cells(batch["depth"], prediction))
        loss = loss + recipe.absrel_weight * absrel + recipe.normal_weight * angular
        loss = loss + recipe.ray_weight * rays + recipe.metric_weight * metric
        metrics |= {"absrel": absrel.detach(), "normals": angular.detach()}
        metrics |= {"rays": rays.detach(), "metric": metric.detach()}
        if recipe.denoising_weight and self.due(step, recipe.denoising_every):
            # the autoencoder must not learn latents that are easy to denoise
            clean = latents.detach()
            denoising = denoising_loss(self.unet, clean, context, generator, self.prediction_type).mean()
            loss = loss + recipe.denoising_weight * denoising
            metrics["denoising"] = denoising.detach()
        if (
            recipe.train_autoencoder
            and recipe.reconstruction_weight
            and self.due(step, recipe.reconstruction_every)
        ):
            # what the methods will ask it to carry: normal maps, and Camera Images of DM-Calib
            others = normal_picture(batch["normals"])
            others[1::2] = _camera_pictures(batch["K"], images)[1::2]
            own = autoencoding_loss(self.vae, images, mean, logvar, others, generator, recipe.kl_weight)
            loss = loss + recipe.reconstruction_weight * own
            metrics["reconstruction"] = own.detach()
        return loss, metrics

    def predict(self, images: Tensor) -> Geometry:
        """As :meth:`geometry`, under the empty caption and fixed noise."""
        tokens = tokenise(self.tokenizer, [""] * len(images)).to(images.device)
        latents = encode_moments(self.vae, images)[0] * self.vae.config.scaling_factor
        return self.geometry(latents, self.context(tokens), torch.Generator().manual_seed(0))

    @override
    def evaluate(self, step: int) -> dict[str, float]:
        held = self.held_out()
        names = ("ssi", "absrel", "angle", "ray_angle", "log_depth")
        scores: dict[str, list[float]] = {name: [] for name in names}
        for i in range(0, 96, 16):
            images, depth, normals, K = (held[n][i : i + 16].to(self.device) for n in self.held_out_fields)
            told = self.predict(images)
            prediction = told.inverse
            inverse, valid = (at_cells(x, prediction) for x in inverse_depth(depth, sky="far"))
            normals = at_cells(normals, prediction)
            scores["ssi"].append(float(affine_invariant_loss(prediction, inverse, valid)[1]["ssi"]))
            scores["absrel"].append(float(aligned_absrel(prediction, inverse, valid)))
            cosine = F.cosine_similarity(told.normals, normals, dim=1).clamp(-1, 1)
            known = normals.square().sum(1) > 0.25
            scores["angle"].append(float(torch.rad2deg(torch.arccos(cosine[known])).mean()))
            rays = at_cells(_rays(K, images), prediction)
            scores["ray_angle"].append(float(torch.rad2deg((told.rays - rays).abs()).mean()))
            scores["log_depth"].append(float(_log_error(told.log_depth, at_cells(depth, prediction))))
        return {name: float(np.mean(values)) for name, values in scores.items()}

    @override
    def images(self, step: int) -> dict[str, Tensor]:
        held = self.held_out()
        images = held["image"][:8].to(self.device)
        told = self.predict(images)
        pictures = [depth_picture(told.inverse), normal_picture(F.normalize(told.normals, dim=1))]
        pictures = [F.interpolate(p.clamp(0, 1), size=images.shape[-2:]) for p in pictures]
        latents = encode_moments(self.vae, images)[0]
        decoded = (self.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
        return {"geometry": torch.cat([images, *pictures]), "reconstruction": torch.cat([images, decoded])}

    @override
    def export(self, folder: Path) -> None:
        for name in ("vae", "unet", "text_encoder"):
            export_component(getattr(self, name), folder / name)
        self.hand_on(folder, "tokenizer", "scheduler")


@dataclass(frozen=True)
class DecoderRecipe:
    """Training of a prior's decoder alone, its latents as they are.

    Args:
        crops: (height, width, images) of the batches that take turns.
        lr: peak learning rate.
        edge_weight: of image gradients, beside L1.
        scale, photometric, world, warmup, ema: as for :class:`GeometryPriorRecipe`.
    """

    crops: tuple[tuple[int, int, int], ...] = ((72, 96, 12), (96, 96, 9), (64, 96, 12), (72, 72, 16))
    lr: float = 2e-3
    edge_weight: float = 1.0
    scale: tuple[float, float] = (0.7, 1.0)
    photometric: float = 0.5
    world: tuple[int, int] = (120, 160)
    warmup: int = 100
    ema: float = 0.998


class PriorDecoderTask(DenseTask):
    """The autoencoder's decoder, taught the pictures that methods ask it for.

    A small autoencoder has seen little but photographs. Here its decoder learns normal maps and the Camera Images of
    DM-Calib beside them; the encoder, and with it everything that reads latents, stays as it is.

    Args:
        recipe: how to train.
        source: images with normals and intrinsics.
        options: what the person set; ``init`` holds ``vae``, and what else is there is handed on.
    """

    name: ClassVar[str] = "prior-decoder"
    presets: ClassVar[dict[str, DecoderRecipe]] = {"mini": DecoderRecipe()}
    fields = ("image", "normals", "K")
    held_out_fields: ClassVar[tuple[str, ...]] = ("image", "normals", "K")
    held_out_count: ClassVar[int] = 32
    init_hint: ClassVar[str] = "give --init the export of prior-geometry"
    starts_from: ClassVar[tuple[str, ...]] = ("vae",)
    kinds: ClassVar[tuple[str, ...]] = ("photo", "normals", "camera")

    @override
    def build(self) -> nn.Module:
        self.vae = load_module(AutoencoderKL, component_folder(self.init, "vae"))
        set_group_norm_eps(self.vae, 1e-5)
        model = nn.ModuleDict({"decoder": self.vae.decoder, "post_quant_conv": self.vae.post_quant_conv})
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @override
    def frozen(self) -> Iterable[nn.Module]:
        return (self.vae.encoder, self.vae.quant_conv)

    def pictures(self, batch: Batch) -> tuple[Tensor, ...]:
        """The photographs of a batch, their normal maps and their Camera Images, (B, 3, H, W) in [0, 1]."""
        return batch["image"], normal_picture(batch["normals"]), _camera_pictures(batch["K"], batch["image"])

    def reconstructed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] of images in [0, 1]."""
        with torch.no_grad():
            mean, _ = encode_moments(self.vae, images.contiguous(memory_format=torch.channels_last))
        return self.vae.decode(mean).sample.float()

    @override
    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        images = torch.cat([p[i :: len(self.kinds)] for i, p in enumerate(self.pictures(batch))])
        return reconstruction_loss(self.reconstructed(images), images * 2 - 1, self._recipe.edge_weight)

    @override
    def evaluate(self, step: int) -> dict[str, float]:
        held = {name: values.to(self.device) for name, values in self.held_out().items()}
        return {
            f"l1_{kind}": float((self.reconstructed(p) / 2 + 0.5 - p).abs().mean())
            for kind, p in zip(self.kinds, self.pictures(held), strict=True)
        }

    @override
    def images(self, step: int) -> dict[str, Tensor]:
        held = {name: values[:8].to(self.device) for name, values in self.held_out().items()}
        return {
            kind: torch.cat([p, (self.reconstructed(p) / 2 + 0.5).clamp(0, 1)])
            for kind, p in zip(self.kinds, self.pictures(held), strict=True)
        }

    @override
    def export(self, folder: Path) -> None:
        export_component(self.vae, folder / "vae")
        self.hand_on(folder, "unet", "text_encoder", "tokenizer", "scheduler")


def _camera_pictures(K: Tensor, images: Tensor) -> Tensor:
    """Camera Images (B, 3, H, W) in [0, 1] of images (B, 3, H, W) in [0, 1]."""
    grey = torch.einsum("bchw,c->bhw", images, images.new_tensor(GREY))[:, None]
    return torch.cat([angle_channels(_rays(K, images)) / 2 + 0.5, grey], dim=1)


def _rays(K: Tensor, images: Tensor) -> Tensor:
    """Angles (B, 2, H, W) of the rays of cameras (B, 3, 3) that took images (B, 3, H, W)."""
    return ray_angles(torch.stack([K[:, 0, 0], K[:, 1, 1]], 1), K[:, :2, 2], images.shape[-2:])


def _log_error(
    log_depth: Tensor,  # (B, H, W)
    depth: Tensor,  # (B, H, W), metres, inf for sky
) -> Tensor:
    """Mean distance of the logarithm of depth over pixels that have a depth."""
    known = known_depth(depth)
    error = (log_depth - torch.where(known, depth, torch.ones_like(depth)).log()).abs() * known
    return error.sum() / known.sum().clamp_min(1)
