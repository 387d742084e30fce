"""Training StableNormal: the one-step stage, then its refinement (StableNormal, sections 3.2 and 3.3).

The authors released no training code. Known are the x0 objective, the timestep, the Gaussian input of the first
stage, a regulariser that pulls what it predicts towards one value whatever the noise ("shrinkage"), and the DINO
guidance of the second. Losses, weights and schedule are ours:

- ``stablenormal-yoso``: squared error to the normal map's latent, angular error of the decoded map, and the squared
  difference of the predictions from two noises.
- ``stablenormal-refine``: the same errors for re-noised first-stage predictions at random timesteps up to 401.

Published sizes keep the autoencoder frozen. The mini's was trained on photographs for minutes and knows no colours, so
its decoder is tuned with the first stage; the encoder stays, so that other methods' latents serve this one, too. Nor
is there a DINO of that size: a small one is trained along, asked for the scene's classes to make it a semantic one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from typing_extensions import override

from vision3d.backbone.dino import Dino, DinoConfig, load_dino, normalise
from vision3d.backbone.loading import load_weights, read_config
from vision3d.backbone.schedule import add_noise
from vision3d.backbone.text import load_text_tower
from vision3d.backbone.unet import denoise
from vision3d.backbone.vae import decode
from vision3d.pipelines.stablenormal.checkpoint import (
    SCALARS,
    image_branch_arguments,
    load_folder,
    save_dino,
    write_index,
)
from vision3d.pipelines.stablenormal.network import (
    ControlNetVAEModel,
    SemanticControlNet,
    dino_input,
    match_latent,
    zero_context,
)
from vision3d.pipelines.stablenormal.pipeline import embed_prompt
from vision3d.pipelines.stablenormal.sampler import HeuristicSchedule
from vision3d.training.checkpoint import export_component
from vision3d.training.data import SampleSource
from vision3d.training.dense import DenseTask
from vision3d.training.losses import segmentation_loss
from vision3d.training.prior import (
    component_folder,
    load_module,
)
from vision3d.training.task import Batch, TaskOptions, noise

CLASSES = 150
"""ADE20K classes that the mini's DINO is asked for while it is trained."""
HELD_OUT = 64
"""Scenes that are measured while training."""
MAX_INVALID = 0.4
"""Crops with a larger share of pixels without a normal (sky) are left out."""


@dataclass(frozen=True)
class NormalsRecipe:
    """Sizes and training of both stages.

    Args:
        crops: (height, width, images) of the batches that take turns.
        lr: peak learning rate.
        channels: of a new UNet for the first stage; None takes the prior's as it is.
        head_dim, groups: of new UNets.
        line: "v0" (from noise, prompted) or "v1" (from the image latent, no text).
        t_start: timestep of the first stage.
        latent_weight: of the squared error to the normal map's latent.
        angular_weight: of the angular error of the decoded map.
        angular_every: it is computed on every n-th step.
        shrinkage: of the squared difference between the predictions from two noises.
        shrinkage_every: it is computed on every n-th step.
        latent_decay: of the squared latent where nothing else sets its scale.
        decoder_lr: learning rate of the autoencoder's decoder relative to ``lr``; 0 keeps it frozen, as published.
        steps: network calls of the refinement that the weights recommend.
        unnoised: share of refinement samples that are a first-stage prediction without noise at the first
            timestep, as the sampler's first call sees it.
        own_branch: the refinement tunes an image branch of its own, as published; otherwise it uses the first stage's.
        dino: sizes of a DINO that is trained along; None takes the one given with the weights, frozen.
        dino_side: pixels of DINO's square.
        embedding: widths inside the semantic branch's embedding.
        class_weight: of the classes that the new DINO is asked for.
        scale: smallest and largest crop relative to the sample.
        photometric: share of images that are strongly augmented.
        turn: half of the crops are turned in the image plane by about so many degrees.
        resolution, processing_resolution: what the weights recommend at inference.
        world: (height, width) of scenes that are rendered when there is no cache.
    """

    crops: tuple[tuple[int, int, int], ...]
    lr: float
    channels: tuple[int, ...] | None = None
    head_dim: int = 64
    groups: int = 32
    line: str = "v0"
    t_start: int = 401
    latent_weight: float = 1.0
    angular_weight: float = 0.5
    angular_every: int = 4
    shrinkage: float = 0.1
    shrinkage_every: int = 1
    latent_decay: float = 0.0
    decoder_lr: float = 0.0
    steps: int = 10
    unnoised: float = 0.2
    own_branch: bool = True
    dino: DinoConfig | None = None
    dino_side: int = 672
    embedding: tuple[int, ...] = (512,)
    class_weight: float = 0.0
    scale: tuple[float, float] = (0.6, 1.0)
    photometric: float = 0.8
    turn: float = 0.0
    resolution: int = 1024
    processing_resolution: int = 768
    world: tuple[int, int] = (480, 640)
    warmup: int = 500
    ema: float = 0.0


MINI = NormalsRecipe(
    crops=((72, 96, 8), (80, 80, 8), (72, 104, 8), (32, 96, 16), (96, 72, 8)),
    lr=1e-3,
    head_dim=8,
    groups=8,
    latent_weight=0.0,
    angular_weight=1.0,
    angular_every=1,
    shrinkage=0.3,
    shrinkage_every=3,
    latent_decay=1e-3,
    decoder_lr=0.5,
    steps=4,
    dino=DinoConfig(width=64, depth=3, heads=4, patch=14, grid=10, hidden=256),
    dino_side=140,
    embedding=(48,),
    class_weight=0.1,
    scale=(0.8, 1.0),
    resolution=0,
    processing_resolution=96,
    world=(120, 160),
    warmup=100,
    ema=0.998,
)
FINE_MINI = replace(
    MINI,
    crops=((112, 152, 4), (112, 112, 5), (48, 152, 9), (112, 152, 4), (112, 88, 7)),
    processing_resolution=144,
)
FULL = NormalsRecipe(crops=((576, 768, 32),), lr=3e-5)
PRESETS = {
    "mini": MINI,
    # a narrower new UNet in both stages, for priors that know nothing of geometry
    "mini-narrow": replace(MINI, channels=(32, 40, 40, 40), lr=1.5e-3),
    # last leg of the mini: more of each photograph, from the first's export
    "mini-fine": FINE_MINI,
    # likewise, for a refinement whose image branch is the first stage's and need not be stored again
    "mini-fine-shared": replace(FINE_MINI, own_branch=False),
    "full": FULL,
    # the prompt-free line (NiRNE): the image latent in place of noise, zeros in place of text, t = 0
    "full-v1": replace(FULL, line="v1", t_start=0, shrinkage=0.0, steps=2),
}


class NormalsTask(DenseTask):
    """What both stages share: data, frozen parts, losses in pixels, measurement.

    Args:
        recipe: sizes and training.
        source: images with normals.
        options: what the person set; ``init`` holds the prior (``vae``, ``unet``, ``text_encoder``,
            ``tokenizer``) or an export of this method. The prompt-free first stage needs no text parts and hands
            them on to its refinement, which does.
    """

    presets: ClassVar[dict[str, NormalsRecipe]] = PRESETS
    fields: tuple[str, ...] = ("image", "normals")
    held_out_fields: ClassVar[tuple[str, ...]] = ("image", "normals")
    starts_from: ClassVar[tuple[str, ...]] = (
        "vae",
        "unet",
        "controlnet",
        "text_encoder",
        "refine_unet",
        "refine_controlnet",
        "dino_controlnet",
    )
    held_out_count: ClassVar[int] = HELD_OUT
    init_hint: ClassVar[str] = "give --init a folder with vae, unet, text_encoder and tokenizer"

    def __init__(self, recipe: NormalsRecipe, source: SampleSource, options: TaskOptions) -> None:
        super().__init__(recipe, source, options)
        self.vae: Any = load_module(AutoencoderKL, component_folder(self.init, "vae"))
        self._contexts: dict[str, Tensor] = {}

    def context(self, name: str, width: int) -> Tensor:
        """Text states ``(1, tokens, width)`` of the ``prompt`` or ``refine_prompt``, as inference has them.

        The first stage of the prompt-free line has zeros.
        """
        if self._recipe.line == "v1" and name == "prompt":
            return zero_context(width, self.device, torch.float32)
        prompt = str(SCALARS[name])
        if prompt not in self._contexts:
            from transformers import CLIPTokenizer

            tokenizer = CLIPTokenizer.from_pretrained(component_folder(self.init, "tokenizer", "vocab.json"))
            tower = load_text_tower(component_folder(self.init, "text_encoder"), dtype=torch.float32)
            self._contexts[prompt] = embed_prompt(tower, tokenizer, prompt)
        return self._contexts[prompt].to(self.device)

    def checkpoints(self, *networks: nn.Module) -> None:
        """Turns gradient checkpointing on where it is asked for or the sizes are the published ones."""
        if self.options.recomputes:
            for network in networks:
                network.enable_gradient_checkpointing()  # type: ignore[operator]

    def pixel_loss(self, latents: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of the decoded map, and its mean angular error in degrees, without gradient.

        One minus the cosine, and the squared distance, which also keeps the decoded vectors at unit length.
        """
        decoded = decode(self.vae, latents / self.vae.config.scaling_factor).float()
        length = torch.linalg.vector_norm(decoded, dim=1).clamp_min(1e-3)
        cosine = (decoded * target).sum(1) / length
        count = valid.sum().clamp_min(1)
        loss = ((1 - cosine) * valid).sum() / count
        distance = ((decoded - target).square().sum(1) * valid).sum() / count
        angle = torch.rad2deg(torch.arccos(cosine.detach().clamp(-1, 1)))
        return loss + 0.25 * distance, (angle * valid).sum() / count

    def targets(self, normals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normals (OpenCV) as the networks predict them, their validity, and which crops count.

        Where there is no surface the target faces the camera, so that the latent's target is no grey hole.

        Returns:
            ``(B, 3, H, W)`` in the raw frame, ``(B, H, W)`` bool, ``(B,)`` bool.
        """
        valid = normals.square().sum(1) > 0.25
        facing = normals.new_tensor([0.0, 0.0, 1.0])[:, None, None]
        raw = torch.where(valid[:, None], -normals, facing)
        kept = valid.float().mean((1, 2)) >= 1 - MAX_INVALID
        return raw, valid & kept[:, None, None], kept

    def normals_latents(self, raw: Tensor) -> Tensor:
        """Latents of normal maps in the raw frame."""
        return self.encoded((raw + 1) / 2)

    def latent_error(self, prediction: Tensor, raw: Tensor, kept: Tensor) -> Tensor:
        """Mean squared error to the normal map's latent over the crops that count."""
        error = (prediction - self.normals_latents(raw)).square().mean((1, 2, 3))
        return (error * kept).sum() / kept.sum().clamp_min(1)

    def errors(
        self, prediction: Tensor, raw: Tensor, valid: Tensor, kept: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What both stages are judged by: the latent's squared error and the decoded map's angular error."""
        recipe = self._recipe
        loss = prediction.new_zeros(())
        metrics: dict[str, Tensor] = {}
        if recipe.latent_weight:
            error = self.latent_error(prediction, raw, kept)
            loss, metrics["latent"] = loss + recipe.latent_weight * error, error.detach()
        if recipe.latent_decay:
            loss = loss + recipe.latent_decay * prediction.square().mean()
        if self.due(step, recipe.angular_every):
            pixels, metrics["angle"] = self.pixel_loss(prediction, raw, valid)
            loss = loss + recipe.angular_weight * pixels
        return loss, metrics

    @abstractmethod
    def stages(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Final latents of each stage for images in [0, 1] of a size that is a multiple of 8."""

    def _predicted(self, images: Tensor) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        result: dict[str, list[Tensor]] = {}
        for part in images.split(16):
            for name, latents in self.stages(part.to(self.device), generator).items():
                decoded = decode(self.vae, latents / self.vae.config.scaling_factor).float()
                result.setdefault(name, []).append(F.normalize(decoded, dim=1, eps=1e-6).cpu())
        return {name: torch.cat(parts) for name, parts in result.items()}

    @override
    def evaluate(self, step: int) -> dict[str, float]:
        """Mean angular errors in degrees, and that of the mean normal map of the same images."""
        held = self.held_out()
        raw, valid, _ = self.targets(held["normals"])
        mean = F.normalize((raw * valid[:, None]).sum(0, keepdim=True), dim=1)
        metrics = {"mean_map": _mean_angle(mean.expand_as(raw), raw, valid)}
        for name, field in self._predicted(held["image"]).items():
            metrics[name] = _mean_angle(field, raw, valid)
            metrics[f"{name}_ratio"] = metrics[name] / max(metrics["mean_map"], 1e-6)
        return metrics

    @override
    def images(self, step: int) -> dict[str, Tensor]:
        held = self.held_out()
        images, normals = held["image"][:8], held["normals"][:8]
        fields = self._predicted(images).values()
        rows = [images, *(_picture(f) for f in fields), _picture(self.targets(normals)[0])]
        return {"normals": torch.cat(rows)}

    def scalars(self) -> dict[str, Any]:
        """What ``model_index.json`` of the export says."""
        recipe = self._recipe
        chosen = {
            "line": recipe.line,
            "t_start": recipe.t_start,
            "turbo_t_start": recipe.t_start,
            "default_resolution": recipe.resolution,
            "default_processing_resolution": recipe.processing_resolution,
            "default_denoising_steps": recipe.steps,
            "dino_side": recipe.dino_side,
        }
        return {**SCALARS, **chosen}

    def _export_common(self, folder: Path) -> dict[str, Any]:
        export_component(self.vae, folder / "vae")
        parts: dict[str, Any] = {"vae": self.vae}
        there = (self.init / "text_encoder").is_dir() and (self.init / "tokenizer" / "vocab.json").is_file()
        if self._recipe.line == "v0" or there:
            from transformers import CLIPTokenizer

            tower = load_text_tower(component_folder(self.init, "text_encoder"), dtype=torch.float32)
            export_component(tower, folder / "text_encoder")
            component_folder(self.init, "tokenizer", "vocab.json")  # refused by name where it is missing
            self.hand_on(folder, "tokenizer")
            parts["text_encoder"] = tower
            parts["tokenizer"] = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        return parts


class YosoTask(NormalsTask):
    """The one-step stage: a UNet and an image branch that predict the normal map's latent from noise."""

    name: ClassVar[str] = "stablenormal-yoso"

    @override
    def build(self) -> nn.Module:
        again = (self.init / "controlnet").is_dir()  # an export of this task to go on from
        recipe = self._recipe
        if recipe.channels is None or again:
            self.unet: Any = load_module(UNet2DConditionModel, component_folder(self.init, "unet"))
        else:
            self.unet = UNet2DConditionModel(
                **_narrow_unet(recipe, recipe.channels, self._text_width(), self.vae.config.latent_channels)
            )
        if again:
            loaded = load_folder(self.init, dtype=torch.float32, semantic=False).networks["controlnet"]
            self.controlnet: Any = trainable(loaded)
        else:
            self.controlnet = image_branch_of(self.unet)
        self.checkpoints(self.unet, self.controlnet)
        parts: dict[str, nn.Module] = {"unet": self.unet, "controlnet": self.controlnet}
        if recipe.decoder_lr:
            parts |= {"decoder": self.vae.decoder, "post_quant_conv": self.vae.post_quant_conv}
        return nn.ModuleDict(parts)

    def _text_width(self) -> int:
        if self._recipe.line == "v1":
            return 1024
        return int(read_config(component_folder(self.init, "text_encoder"))["hidden_size"])

    @override
    def frozen(self) -> Iterable[nn.Module]:
        return (self.vae.encoder, self.vae.quant_conv) if self._recipe.decoder_lr else (self.vae,)

    @override
    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        parts = dict(model.items())  # type: ignore[operator]
        decoder = [parts.pop(name) for name in ("decoder", "post_quant_conv") if name in parts]
        groups = super().parameter_groups(nn.ModuleDict(parts))
        for module in decoder:
            groups += [
                {**group, "lr_scale": self._recipe.decoder_lr} for group in super().parameter_groups(module)
            ]
        return groups

    def predict(self, image_latents: Tensor, start: Tensor) -> Tensor:
        """Latent of the normal map."""
        recipe = self._recipe
        context = self.context("prompt", self.unet.config.cross_attention_dim)
        residuals = self.controlnet(image_latents, recipe.t_start, context)
        sample = image_latents if recipe.line == "v1" else start
        return denoise(self.unet, sample, recipe.t_start, context, residuals=residuals)

    @override
    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        recipe = self._recipe
        images, raw, valid, kept = _whole_cells(batch["image"], *self.targets(batch["normals"]))
        latents = self.encoded(images)
        first = noise(latents.shape, generator, latents.device)
        second = noise(latents.shape, generator, latents.device)
        shrinks = recipe.shrinkage > 0 and recipe.line == "v0" and self.due(step, recipe.shrinkage_every)
        if shrinks:
            both = self.predict(torch.cat([latents, latents]), torch.cat([first, second]))
            prediction, other = both.chunk(2)
        else:
            prediction = self.predict(latents, first)
        loss, metrics = self.errors(prediction, raw, valid, kept, step)
        if shrinks:
            spread = (prediction - other).square().mean()
            loss, metrics["spread"] = loss + recipe.shrinkage * spread, spread.detach()
        return loss, metrics

    @override
    def stages(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        latents = self.encoded(images)
        return {"one_step": self.predict(latents, noise(latents.shape, generator, latents.device))}

    @override
    def export(self, folder: Path) -> None:
        parts = self._export_common(folder)
        for name in ("unet", "controlnet"):
            export_component(getattr(self, name), folder / name)
            parts[name] = getattr(self, name)
        write_index(folder, parts, self.scalars())


class RefineTask(NormalsTask):
    """The refinement: a UNet, an image branch and a semantic branch, over a frozen one-step stage."""

    name: ClassVar[str] = "stablenormal-refine"
    init_hint: ClassVar[str] = (
        "give --init the export of stablenormal-yoso, with dino/ beside unet/ at full size"
    )

    def __init__(self, recipe: NormalsRecipe, source: SampleSource, options: TaskOptions) -> None:
        super().__init__(recipe, source, options)
        component_folder(self.init, "controlnet")
        component_folder(self.init, "text_encoder")
        component_folder(self.init, "tokenizer", "vocab.json")
        if recipe.class_weight:
            self.fields = ("image", "normals", "semantic")

    @override
    def decisive(self) -> tuple[str, ...]:
        return self.starts_from if self._recipe.dino is not None else (*self.starts_from, "dino")

    @override
    def build(self) -> nn.Module:
        recipe = self._recipe
        loaded = load_folder(self.init, dtype=torch.float32).networks
        self.unet: Any = trainable(loaded["unet"])
        self.controlnet: Any = trainable(loaded["controlnet"])
        first = loaded.get("refine_unet")
        branch = loaded.get("refine_controlnet")
        again = first is not None and branch is not None
        self.refine_unet: Any = trainable(first) if again else _copy(self.unet)
        self.refine_controlnet: Any = self.controlnet
        if recipe.own_branch:
            self.refine_controlnet = trainable(branch) if again else _copy(self.controlnet)
        self.dino: Any = self._prior(loaded)
        semantic = loaded.get("dino_controlnet")
        self.dino_controlnet: Any = (
            trainable(semantic)
            if semantic is not None
            else semantic_branch_of(self.refine_unet, self.dino.config.width, recipe.embedding)
        )
        self.checkpoints(self.refine_unet, self.refine_controlnet, self.dino_controlnet)
        parts: dict[str, nn.Module] = {"refine_unet": self.refine_unet}
        if recipe.own_branch:
            parts["refine_controlnet"] = self.refine_controlnet
        parts["dino_controlnet"] = self.dino_controlnet
        self.classifier: nn.Linear | None = None
        if recipe.dino is not None:
            parts["dino"] = self.dino
            if recipe.class_weight:
                self.classifier = nn.Linear(recipe.dino.width, CLASSES)
                parts["classifier"] = self.classifier
        return nn.ModuleDict(parts)

    def _prior(self, loaded: dict[str, Any]) -> Dino:
        recipe = self._recipe
        if "dino" in loaded:
            if recipe.dino is not None:
                return trainable(loaded["dino"])
            load_weights(loaded["dino"])
            return loaded["dino"]
        if recipe.dino is None:
            from vision3d.weights import resolve

            path, _ = resolve("dinov2-vitl14", "dinov2-vitl14")
            return load_dino(path, model="dinov2_vitl14", dtype=torch.float32)
        network = Dino(recipe.dino)
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for parameter in (network.pos_embed, network.cls_token):
            nn.init.trunc_normal_(parameter, std=0.02)
        return network

    @override
    def frozen(self) -> Iterable[nn.Module]:
        given = (self.vae, self.unet, self.controlnet)
        return given if self._recipe.dino is not None else (*given, self.dino)

    def tokens(self, images: Tensor) -> Tensor:
        """Normalised patch tokens as a map ``(B, C, h, w)``."""
        pixels = normalise(dino_input(images * 2 - 1, self._recipe.dino_side))
        if self._recipe.dino is None:
            with torch.no_grad():
                return self.dino(pixels)[0].map
        return self.dino(pixels)[0].map

    def _context(self, name: str) -> Tensor:
        return self.context(name, self.unet.config.cross_attention_dim)

    def one_step(self, image_latents: Tensor, start: Tensor) -> Tensor:
        """The frozen first stage's latent."""
        t, context = self._recipe.t_start, self._context("prompt")
        with torch.no_grad():
            residuals = self.controlnet(image_latents, t, context)
            sample = image_latents if self._recipe.line == "v1" else start
            return denoise(self.unet, sample, t, context, residuals=residuals)

    def guidance(self, features: Tensor, size: tuple[int, int]) -> list[Tensor]:
        """The semantic branch's tensors."""
        embedded = match_latent(self.dino_controlnet.embed(features), size)
        return self.dino_controlnet.guide(embedded, self._context("refine_prompt"))

    def refined(self, image_latents: Tensor, sample: Tensor, t: int, injected: list[Tensor]) -> Tensor:
        """One call of the refinement."""
        context = self._context("refine_prompt")
        residuals = self.refine_controlnet(image_latents, t, context)
        return denoise(self.refine_unet, sample, t, context, residuals=residuals, injected=injected)

    @override
    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        recipe = self._recipe
        images, raw, valid, kept = _whole_cells(batch["image"], *self.targets(batch["normals"]))
        latents = self.encoded(images)
        start = self.one_step(latents, noise(latents.shape, generator, latents.device))
        t = int(torch.randint(1, HeuristicSchedule.of(10).timesteps[0] + 1, (1,), generator=generator))
        clean = start
        if recipe.latent_weight:  # half of the samples from the truth; needs a latent of it
            mixed = torch.rand(len(start), generator=generator) < 0.5
            clean = torch.where(mixed.to(start.device)[:, None, None, None], self.normals_latents(raw), start)
        sample = add_noise(clean, noise(clean.shape, generator, clean.device), t)
        # the prompt-free sampler never sees such a one
        if float(torch.rand(1, generator=generator)) < recipe.unnoised and recipe.line == "v0":
            t, sample = HeuristicSchedule.of(recipe.steps).timesteps[0], start
        features = self.tokens(images)
        size = (latents.shape[-2], latents.shape[-1])
        prediction = self.refined(latents, sample, t, self.guidance(features, size))
        loss, metrics = self.errors(prediction, raw, valid, kept, step)
        if self.classifier is not None:
            logits = self.classifier(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            labels = F.interpolate(
                batch["semantic"][:, None].float(), size=logits.shape[-2:], mode="nearest-exact"
            )[:, 0]
            entropy = segmentation_loss(logits, labels)
            loss, metrics["entropy"] = loss + recipe.class_weight * entropy, entropy.detach()
        return loss, metrics

    @override
    def stages(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        recipe = self._recipe
        latents = self.encoded(images)
        first = noise(latents.shape, generator, latents.device)
        x0 = start = self.one_step(latents, first)
        injected = self.guidance(self.tokens(images), (latents.shape[-2], latents.shape[-1]))
        if recipe.line == "v1":
            t = HeuristicSchedule.of(10).timesteps[0]
            for _ in range(recipe.steps):
                x0 = self.refined(latents, add_noise(x0, first, t), t, injected)
            return {"one_step": start, "refined": x0}
        schedule, sample = HeuristicSchedule.of(recipe.steps), start
        for i, t in enumerate(schedule.timesteps):
            x0 = self.refined(latents, sample, t, injected)
            fresh = noise(x0.shape, generator, x0.device) if schedule.is_renoised(i) else None
            sample = schedule.step(i, x0, sample, fresh)
        return {"one_step": start, "refined": x0}

    @override
    def export(self, folder: Path) -> None:
        parts = self._export_common(folder)
        for name in ("unet", "controlnet", "refine_unet", "refine_controlnet", "dino_controlnet"):
            export_component(getattr(self, name), folder / name)
            parts[name] = getattr(self, name)
        if self._recipe.dino is not None:
            save_dino(self.dino, folder / "dino", torch.float16)
        else:
            self.hand_on(folder, "dino")
        if (folder / "dino").is_dir():
            parts["dino"] = self.dino
        write_index(folder, parts, self.scalars())


def _narrow_unet(
    recipe: NormalsRecipe, channels: tuple[int, ...], text_width: int, latents: int
) -> dict[str, Any]:
    """Configuration of a new UNet of the SD 2.1 family."""
    return {
        "sample_size": recipe.processing_resolution // 8,
        "in_channels": latents,
        "out_channels": latents,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "block_out_channels": channels,
        "layers_per_block": 2,
        "norm_num_groups": recipe.groups,
        "attention_head_dim": tuple(c // recipe.head_dim for c in channels),
        "cross_attention_dim": text_width,
        "use_linear_projection": True,
    }


def image_branch_of(unet: Any) -> ControlNetVAEModel:
    """A new image branch with the encoder and middle block of a UNet."""
    branch = ControlNetVAEModel(**image_branch_arguments(unet.config))
    branch.load_state_dict({k: v for k, v in unet.state_dict().items() if k in branch.state_dict()})
    return branch


def semantic_branch_of(unet: Any, width: int, embedding: tuple[int, ...]) -> SemanticControlNet:
    """A new semantic branch with the encoder of a UNet; it adds nothing yet, its last convolutions being zero."""
    arguments = image_branch_arguments(unet.config)
    arguments |= {"conditioning_channels": width, "conditioning_embedding_out_channels": embedding}
    branch = SemanticControlNet(**arguments)
    own = branch.state_dict()
    branch.load_state_dict({**own, **{k: v for k, v in unet.state_dict().items() if k in own}})
    return branch


def trainable(network: Any) -> Any:
    """A network bound to a file as one of its own: weights read, copied, and no longer fetched from there."""
    load_weights(network)
    values = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(values, assign=True)
    network._weight_source = None
    return network.requires_grad_(True)


def _copy(network: Any) -> Any:
    import copy

    return copy.deepcopy(network)


def _whole_cells(
    images: Tensor, raw: Tensor, valid: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The part of a batch that the autoencoder's grid of 8 covers."""
    height, width = (side // 8 * 8 for side in images.shape[-2:])
    return images[..., :height, :width], raw[..., :height, :width], valid[..., :height, :width], kept


def _mean_angle(field: Tensor, raw: Tensor, valid: Tensor) -> float:
    """Mean over images of each one's mean angular error in degrees."""
    angle = torch.rad2deg(torch.arccos((field * raw).sum(1).clamp(-1, 1)))
    count = valid.sum((1, 2))
    means = (angle * valid).sum((1, 2)) / count.clamp_min(1)
    return float(means[count > 0].mean())


def _picture(raw: Tensor) -> Tensor:
    """Raw normals as colours in [0, 1]: red to the right, green up, blue to the camera."""
    return (raw * raw.new_tensor([-1.0, 1.0, 1.0])[:, None, None] + 1) / 2
