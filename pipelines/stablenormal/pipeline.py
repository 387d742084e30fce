"""StableNormal: surface normals of photographs from a Stable Diffusion prior, steady from run to run.

*One step* ("you only sample once", turbo): a UNet beside an encoder of the image latent predicts the normal map's
latent from noise in one call. *Refinement* (SG-DRN): a second UNet, guided by DINO features, improves that latent in
a few calls of a heuristic DDIM sampler (Ye et al.: "StableNormal: Reducing Diffusion Variance for Stable and Sharp
Normal", ACM TOG 2024). The prompt-free line (NiRNE) replaces noise by the image latent and text by zeros.

Inside, vectors are in the published raw frame (x left, y up, z to the camera); results are in OpenCV axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from typing_extensions import override

from vision3d.backbone import loading
from vision3d.backbone.dino import Dino, load_dino
from vision3d.backbone.residency import DiffusersResidency
from vision3d.backbone.schedule import add_noise
from vision3d.backbone.sharing import share, shared_moments
from vision3d.backbone.text import TextEncoder
from vision3d.backbone.unet import denoise
from vision3d.backbone.vae import decode, encode_moments
from vision3d.device import resolve_device, resolve_dtype
from vision3d.errors import InputError, WeightsError
from vision3d.geometry.normals import convert_normals
from vision3d.geometry.tiling import Tiling
from vision3d.memory import in_batches
from vision3d.pipelines.stablenormal import checkpoint, imaging
from vision3d.pipelines.stablenormal.network import (
    ControlNetVAEModel,
    Residuals,
    dino_input,
    match_latent,
    zero_context,
)
from vision3d.pipelines.stablenormal.options import NormalOptions
from vision3d.pipelines.stablenormal.origin import locate
from vision3d.pipelines.stablenormal.sampler import HeuristicSchedule
from vision3d.pipelines.stablenormal.tiling import blend_normals
from vision3d.pipelines.stablenormal.video import Stabiliser
from vision3d.progress import progress, say

if TYPE_CHECKING:
    from vision3d.io.images import Photo
    from vision3d.pipelines.stablenormal.matting import Matting
    from vision3d.results import NormalPrediction

RENOISE_AT = HeuristicSchedule.of(10).timesteps[0]
"""Timestep of the prompt-free line's refinement: the first of the ten-step list, 401."""
Probe = Callable[[int, Tensor, int, Tensor], None]
"""Told about every refinement call: its number, input, timestep and output."""


@dataclass(frozen=True)
class Draws:
    """Noise of one batch, all from the CPU.

    Attributes:
        start: ``(B, 4, h, w)``; the first stage's input in the prompted line.
        fresh: the tensors that the refinement re-noises with, in order.
    """

    start: Tensor
    fresh: tuple[Tensor, ...] = ()

    def to(self, device: torch.device, dtype: torch.dtype) -> Draws:
        """The same elsewhere."""
        return Draws(self.start.to(device, dtype), tuple(f.to(device, dtype) for f in self.fresh))

    def cut(self, top: int, left: int, height: int, width: int) -> Draws:
        """A window of all tensors."""
        window = (..., slice(top, top + height), slice(left, left + width))
        return Draws(self.start[window], tuple(f[window] for f in self.fresh))


@dataclass(frozen=True)
class Plan:
    """What one pass does, all defaults resolved.

    Attributes:
        refine: run the second stage.
        t_start: timestep of the first.
        steps: network calls of the second.
        context, refine_context: text inputs ``(1, tokens, width)`` of the stages.
        semantic: guide the second stage by DINO.
        scale: of the image branches and the semantic branch.
    """

    refine: bool
    t_start: int
    steps: int
    context: Tensor
    refine_context: Tensor | None
    semantic: bool
    scale: float

    @property
    def draws(self) -> int:
        """Fresh noise tensors that the second stage takes in the prompted line."""
        return HeuristicSchedule.of(self.steps).draws if self.refine else 0


class StableNormal(DiffusersResidency, DiffusionPipeline):
    """Normals of photographs, in one step or refined.

    Args:
        vae, unet, controlnet: autoencoder, denoiser and image branch of the one-step stage.
        refine_unet, refine_controlnet, dino_controlnet: denoiser, image branch and semantic branch of the
            refinement; may be absent.
        refine_vae: the refinement's autoencoder, if it differs.
        dino: the DINOv2 network whose normalised tokens guide the refinement.
        text_encoder, tokenizer: for the (constant) prompts; may be absent in the prompt-free line. The tower is read
            for prompts whose embeddings are not cached on disk.
        refine_text_encoder, refine_tokenizer: the refinement's, if they differ.
        line, t_start, turbo_t_start, prompt, refine_prompt, default_resolution, default_processing_resolution,
        default_denoising_steps, dino_side: see :data:`vision3d.pipelines.stablenormal.checkpoint.SCALARS`.
    """

    pixel_networks: ClassVar[tuple[str, ...]] = ("vae", "refine_vae")
    model_cpu_offload_seq = (
        "text_encoder->refine_text_encoder->vae->controlnet->unet->dino->dino_controlnet->"
        "refine_controlnet->refine_unet->refine_vae"
    )
    _optional_components = [  # noqa: RUF012
        "refine_unet",
        "refine_controlnet",
        "refine_vae",
        "dino_controlnet",
        "dino",
        "text_encoder",
        "tokenizer",
        "refine_text_encoder",
        "refine_tokenizer",
    ]

    def __init__(
        self,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        controlnet: ControlNetVAEModel,
        refine_unet: UNet2DConditionModel | None = None,
        refine_controlnet: ControlNetVAEModel | None = None,
        refine_vae: AutoencoderKL | None = None,
        dino_controlnet: Any = None,
        dino: Dino | None = None,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        refine_text_encoder: CLIPTextModel | None = None,
        refine_tokenizer: CLIPTokenizer | None = None,
        line: str = "v0",
        t_start: int = 401,
        turbo_t_start: int = 0,
        prompt: str = "",
        refine_prompt: str = "The normal map",
        default_resolution: int = 1024,
        default_processing_resolution: int = 768,
        default_denoising_steps: int = 10,
        dino_side: int = 672,
    ) -> None:
        super().__init__()
        self.register_to_config(
            line=line,
            t_start=t_start,
            turbo_t_start=turbo_t_start,
            prompt=prompt,
            refine_prompt=refine_prompt,
            default_resolution=default_resolution,
            default_processing_resolution=default_processing_resolution,
            default_denoising_steps=default_denoising_steps,
            dino_side=dino_side,
        )
        self.register_modules(
            vae=vae,
            unet=unet,
            controlnet=controlnet,
            refine_unet=refine_unet,
            refine_controlnet=refine_controlnet,
            refine_vae=refine_vae,
            dino_controlnet=dino_controlnet,
            dino=dino,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            refine_text_encoder=refine_text_encoder,
            refine_tokenizer=refine_tokenizer,
        )
        self.weights_name = "custom"
        self.weights_sha256: str | None = None
        self._prompts: dict[tuple[str, bool], Tensor] = {}

    # ------------------------------------------------------------------ loading

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *,
        turbo: bool = False,
        first_stage: str | Path | None = None,
        dino: str | Path | None = None,
        semantic: str | None = "dino",
        trust_remote_code: bool = False,
        torch_dtype: torch.dtype | str | None = None,
        device: str = "auto",
        memory: str | int = "auto",
        **components: Any,
    ) -> StableNormal:
        """Loads both stages, or the first alone.

        Args:
            pretrained_model_name_or_path: folder or name of the manifest: the refinement (its first stage is then
                looked for as ``first_stage``), a one-step folder, or one of ours; None takes the official weights
                if they were pulled, else those that ship with the package.
            turbo: the first stage is all that is needed.
            first_stage: one-step folder or name that a refinement starts from; by default ``yoso-normal-v0-3``,
                pulled or in a folder beside it.
            dino: hub file or transformers folder of DINOv2 ViT-L/14; by default the pulled one.
            semantic: ``None`` or "none" leaves the semantic branch out.
            trust_remote_code: run the semantic branch's own Python file in the checkpoint's folder; no other code of
                it is run.
            torch_dtype: floating dtype; by default fp32 on CPU, bf16 or fp16 on CUDA.
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
            memory: budget such as ``4G``; below what everything resident needs, networks are loaded in turn.
            components: networks that replace the stored ones, by name.

        Raises:
            WeightsError: missing, damaged or foreign weights, or a semantic branch of unknown layout.
            InputError: another value for ``semantic``, or an unknown argument.
        """
        components = cls.components_among(components)
        if semantic not in (None, "none", "dino"):
            raise InputError(f"semantic {semantic!r}", "choose dino or none")
        guided = semantic == "dino" and not turbo
        place = resolve_device(device)
        dtype = resolve_dtype(torch_dtype if torch_dtype is not None else "auto", place)
        origin = locate(
            pretrained_model_name_or_path,
            turbo=turbo,
            first_stage=first_stage,
            dino=None if "dino" in components else dino,
            semantic=guided and "dino" not in components,
        )
        loaded = checkpoint.load_folder(
            origin.folder, dtype=dtype, semantic=guided, trust_remote_code=trust_remote_code
        )
        scalars, networks = dict(loaded.scalars), dict(loaded.networks)
        if origin.first_stage is not None:
            one_step = checkpoint.load_folder(origin.first_stage, dtype=dtype, semantic=False)
            networks = {**one_step.networks, **networks}
            second = ("default_denoising_steps", "default_processing_resolution")  # the refinement's own
            kept = {k: v for k, v in one_step.scalars.items() if k not in second}
            scalars = {**scalars, **kept}
        if origin.dino is not None:
            networks["dino"] = load_dino(origin.dino, dtype=dtype, load=False)
        networks.update(components)
        if turbo:
            networks = {k: v for k, v in networks.items() if not k.startswith(("refine_", "dino"))}
        if scalars.get("line") == "v1" and "default_denoising_steps" not in scalars:
            scalars["default_denoising_steps"] = 2
        for shared in ("vae", "refine_vae", "unet", "refine_unet", "dino"):
            if networks.get(shared) is not None:
                networks[shared] = share(networks[shared])
        pipeline = cls(**networks, **scalars)
        pipeline.weights_name, pipeline.weights_sha256 = origin.name, origin.sha256
        say(f"StableNormal weights: {origin.name}")
        pipeline.place(place, memory, *pipeline._networks())
        pipeline.load_unless_sequential(*pipeline._networks())
        return pipeline

    @property
    def refines(self) -> bool:
        """Whether these weights have a second stage."""
        return self.refine_unet is not None and self.refine_controlnet is not None

    def _networks(self) -> list[nn.Module]:
        names = ("vae", "unet", "controlnet", "refine_vae", "refine_unet", "refine_controlnet")
        found = [getattr(self, n) for n in (*names, "dino_controlnet", "dino")]
        return list({id(network): network for network in found if network is not None}.values())

    @override
    def _save(self, folder: Path, **kwargs: Any) -> None:
        parts = {k: v for k, v in self.components.items() if v is not None}
        if parts.get("refine_vae") is parts["vae"]:
            parts.pop("refine_vae")
        if isinstance(parts.get("dino_controlnet"), checkpoint.RemoteSemantic):
            parts.pop("dino_controlnet")
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                loading.load_weights(part)
            if isinstance(part, Dino):
                checkpoint.save_dino(part, folder / name)
            else:
                part.save_pretrained(str(folder / name), **kwargs)
        scalars = {name: self.config[name] for name in checkpoint.SCALARS}
        checkpoint.write_index(folder, parts, scalars)

    # ------------------------------------------------------------------ networks

    def prompt_embeddings(self, prompt: str, *, refine: bool = False) -> Tensor:
        """Text context ``(1, 77, width)`` of a prompt; computed once and cached on disk.

        Raises:
            WeightsError: the embedding is not cached and no text tower is at hand.
        """
        key = (prompt, refine)
        if key not in self._prompts:
            own = refine and self.refine_text_encoder is not None
            tower = self.refine_text_encoder if own else self.text_encoder
            tokenizer = self.refine_tokenizer if own else self.tokenizer
            if tower is None:
                raise WeightsError(
                    f"no text encoder to embed the prompt {prompt!r}",
                    "get the folder with its text_encoder and tokenizer",
                )
            self._prompts[key] = embed_prompt(tower, tokenizer, prompt, self._device)
        return self._prompts[key]

    @torch.no_grad()
    def encode(self, x: Tensor, *, refine: bool = False) -> Tensor:
        """Scaled latents ``(B, 4, h/8, w/8)`` of images in [-1, 1]: the posterior's mode.

        An image that this autoencoder has encoded, for whichever stage or pipeline, is not encoded again.
        """
        vae = self.refine_vae if refine and self.refine_vae is not None else self.vae

        def run(batch: Tensor) -> tuple[Tensor, Tensor]:
            with self.resident(vae):
                return encode_moments(vae, batch)

        mean, _ = shared_moments(vae, (x + 1) / 2, encode=run)
        return (mean * vae.config.scaling_factor).to(self.unet.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor, *, refine: bool = False) -> Tensor:
        """Vectors ``(B, 3, 8h, 8w)`` float32 in the raw frame, of no particular length."""
        vae = self.refine_vae if refine and self.refine_vae is not None else self.vae
        with self.resident(vae):
            return decode(vae, latents.to(vae.dtype) / vae.config.scaling_factor).float()

    @torch.no_grad()
    def control(
        self, image_latent: Tensor, t: int, context: Tensor, scale: float = 1.0, *, refine: bool = False
    ) -> Residuals:
        """The image branch's tensors; they depend on image, timestep and text only."""
        branch = self.refine_controlnet if refine else self.controlnet
        with self.resident(branch):
            return branch(image_latent, t, context.to(image_latent), scale)

    @torch.no_grad()
    def one_step(
        self, image_latent: Tensor, noise: Tensor, t: int, context: Tensor, scale: float = 1.0
    ) -> Tensor:
        """The first stage: latent of the normal map ``(B, 4, h, w)``.

        Args:
            image_latent: scaled latent of the image.
            noise: standard normal values; the prompt-free line starts from the image latent instead.
            t: timestep.
            context: text states ``(1, tokens, width)``.
            scale: of the image branch.
        """
        residuals = self.control(image_latent, t, context, scale)
        sample = image_latent if self.config.line == "v1" else noise.to(image_latent)
        with self.resident(self.unet):
            return denoise(self.unet, sample, t, context.to(sample), residuals=residuals)

    @torch.no_grad()
    def semantic_residuals(
        self, x: Tensor, size: tuple[int, int], context: Tensor, scale: float = 1.0
    ) -> list[Tensor]:
        """The semantic branch's tensors for images in [-1, 1] and a latent of ``size``; without a timestep.

        Raises:
            WeightsError: there is no semantic branch or no DINO network.
        """
        if self.dino_controlnet is None or self.dino is None:
            raise WeightsError("these weights have no semantic branch", "use --semantic none")
        with self.resident(self.dino):
            features = self.dino.features(dino_input(x, self.config.dino_side), norm=True).map
        with self.resident(self.dino_controlnet):
            embedded = match_latent(self.dino_controlnet.embed(features), size)
            return self.dino_controlnet.guide(embedded, context.to(embedded), scale)

    @torch.no_grad()
    def refine(
        self,
        image_latent: Tensor,
        x0: Tensor,
        draws: Draws,
        context: Tensor,
        steps: int,
        injected: Sequence[Tensor] | None = None,
        scale: float = 1.0,
        probe: Probe | None = None,
    ) -> Tensor:
        """The second stage: the latent of the last network call.

        Args:
            image_latent: scaled latent of the image.
            x0: of the first stage.
            draws: noise.
            context: text states.
            steps: network calls.
            injected: the semantic branch's tensors.
            scale: of the image branch.
            probe: told about every call.
        """
        if self.config.line == "v1":
            return self._refine_prompt_free(image_latent, x0, draws, context, steps, injected, scale, probe)
        schedule = HeuristicSchedule.of(steps)
        sample, fresh, residuals, current = x0, iter(draws.fresh), None, None
        for i, t in enumerate(schedule.timesteps):
            if t != current:  # equal timesteps follow each other, so the last tensors are all that is kept
                residuals, current = self.control(image_latent, t, context, scale, refine=True), t
            with self.resident(self.refine_unet):
                x0 = denoise(
                    self.refine_unet, sample, t, context.to(sample), residuals=residuals, injected=injected
                )
            if probe is not None:
                probe(i, sample, t, x0)
            if i + 1 < len(schedule.timesteps):
                noise = next(fresh).to(x0) if schedule.is_renoised(i) else None
                sample = schedule.step(i, x0, sample, noise)
        return x0

    def _refine_prompt_free(
        self,
        image_latent: Tensor,
        x0: Tensor,
        draws: Draws,
        context: Tensor,
        steps: int,
        injected: Sequence[Tensor] | None,
        scale: float,
        probe: Probe | None,
    ) -> Tensor:
        """Each call sees the prediction before it, re-noised at the same timestep with the same noise."""
        residuals = self.control(image_latent, RENOISE_AT, context, scale, refine=True)
        for i in range(steps):
            sample = add_noise(x0, draws.start.to(x0), RENOISE_AT)
            with self.resident(self.refine_unet):
                x0 = denoise(
                    self.refine_unet,
                    sample,
                    RENOISE_AT,
                    context.to(sample),
                    residuals=residuals,
                    injected=injected,
                )
            if probe is not None:
                probe(i, sample, RENOISE_AT, x0)
        return x0

    # ------------------------------------------------------------------ images

    def plan(self, options: NormalOptions) -> Plan:
        """What a pass with these options does.

        Raises:
            InputError: an option is out of range or means nothing for these weights.
            WeightsError: a prompt cannot be embedded, or there is no refinement or semantic branch.
        """
        options.check()
        config = self.config
        refine = not options.turbo and self.refines
        prompt_free = config.line == "v1"
        if options.steps is not None and not refine:
            raise InputError("steps, but these weights have no refinement", "leave --steps out")
        if options.steps == 1 and not prompt_free:
            raise InputError("steps 1", "give 2 to 1000, or choose turbo for a single step")
        if prompt_free and not refine and options.ensemble > 1:
            raise InputError(
                "an ensemble of the prompt-free one-step line, which draws no noise", "use one member"
            )
        if prompt_free:
            context = zero_context(self.unet.config.cross_attention_dim, self._device, self.unet.dtype)
            t_start = 0
        else:
            context = self.prompt_embeddings(config.prompt if options.prompt is None else options.prompt)
            t_start = config.t_start if refine else config.turbo_t_start
        refine_context = None
        if refine:
            text = config.refine_prompt if options.refine_prompt is None else options.refine_prompt
            refine_context = self.prompt_embeddings(text, refine=True).to(self._device)
        semantic = refine and options.semantic and self.dino_controlnet is not None
        return Plan(
            refine=refine,
            t_start=t_start if options.t_start is None else options.t_start,
            steps=options.steps or config.default_denoising_steps,
            context=context.to(self._device),
            refine_context=refine_context,
            semantic=semantic,
            scale=options.conditioning_scale,
        )

    def effective(self, options: NormalOptions, plan: Plan) -> dict[str, Any]:
        """What a pass with these options does in numbers, every default filled in, for the record."""
        config = self.config
        prompted = config.line == "v0"
        return {
            "line": config.line,
            "stages": 2 if plan.refine else 1,
            "t_start": plan.t_start,
            "steps": plan.steps if plan.refine else 1,
            "semantic": plan.semantic,
            "resolution": self._predictor_side(options),
            "processing_resolution": self.side(options),
            "prompt": (config.prompt if options.prompt is None else options.prompt) if prompted else None,
            "refine_prompt": (
                config.refine_prompt if options.refine_prompt is None else options.refine_prompt
            )
            if plan.refine
            else None,
        }

    @torch.no_grad()
    def solve(self, x: Tensor, draws: Draws, plan: Plan) -> Tensor:
        """Latent of the normal map of preprocessed images in [-1, 1] ``(B, 3, h, w)``."""
        image_latent = self.encode(x)
        x0 = self.one_step(image_latent, draws.start, plan.t_start, plan.context, plan.scale)
        if not plan.refine:
            return x0
        assert plan.refine_context is not None
        if self.refine_vae is not None and self.refine_vae is not self.vae:
            image_latent = self.encode(x, refine=True)
        size = (x0.shape[-2], x0.shape[-1])
        injected = None
        if plan.semantic:
            injected = self.semantic_residuals(x, size, plan.refine_context, plan.scale)
        return self.refine(image_latent, x0, draws, plan.refine_context, plan.steps, injected, plan.scale)

    def draw(self, size: tuple[int, int], plan: Plan, generator: torch.Generator) -> Draws:
        """Noise of one image whose latent has ``size``, from a CPU generator."""
        shape = (1, self.vae.config.latent_channels, *size)
        start = torch.randn(shape, generator=generator)
        count = plan.draws if self.config.line == "v0" else 0
        return Draws(start, tuple(torch.randn(shape, generator=generator) for _ in range(count)))

    @torch.no_grad()
    def field(self, images: Tensor, draws: Draws, plan: Plan, options: NormalOptions) -> Tensor:
        """Unit normals ``(B, 3, H, W)`` in the raw frame of images in [0, 1] ``(B, 3, H, W)``, of their size."""
        x, canvas = imaging.preprocess(images, self.side(options))
        latent = self.solve(x, draws, plan)
        decoded = self.decode(latent, refine=plan.refine)
        return imaging.postprocess(decoded, canvas, one_step=not plan.refine, resize=options.match_input)

    def side(self, options: NormalOptions) -> int:
        """Longest side that the networks see; 0 for all there is."""
        side = options.processing_resolution
        return int(self.config.default_processing_resolution if side is None else side)

    def _predictor_side(self, options: NormalOptions) -> int:
        side = options.resolution
        return int(self.config.default_resolution if side is None else side)

    def latent_size(self, size: tuple[int, int], options: NormalOptions) -> tuple[int, int]:
        """Latent size of an image of ``size`` after preprocessing."""
        side = self.side(options)
        if side:
            longest = max(size)
            size = max(1, size[0] * side // longest), max(1, size[1] * side // longest)
        return -(-size[0] // 8), -(-size[1] // 8)

    def predict(
        self,
        photos: Sequence[Photo],
        options: NormalOptions | None = None,
        *,
        masks: Sequence[np.ndarray | None] | None = None,
        matting: Matting | None = None,
        generator: torch.Generator | None = None,
    ) -> list[NormalPrediction]:
        """Predictions for photographs, in order; those of one size run as one batch.

        Args:
            photos: loaded photographs. Transparent ones are put on white and masked by their alpha.
            options: settings of the run.
            masks: for each photograph a mask (H, W), inside true or bright, or None.
            matting: model that finds the mask of photographs without one.
            generator: draws the noise of all photographs in turn instead of the seed; must live on the CPU.

        Returns:
            Normals at each photograph's own size, unless ``match_input`` is off.

        Raises:
            InputError: an option is out of range, or a mask does not fit.
            WeightsError: no text tower for a new prompt.
        """
        options = self.recorded(options or NormalOptions(), matting)
        plan = self.plan(options)
        prepared = [self.prepare(p, options) for p in photos]
        found = [
            self.mask_of(photo, given, matting)
            for photo, given in zip(photos, masks or [None] * len(photos), strict=True)
        ]
        sizes: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(prepared):
            sizes.setdefault((image.shape[-2], image.shape[-1]), []).append(i)
        results: dict[int, NormalPrediction] = {}
        for size, members in sizes.items():
            images = torch.cat([prepared[i] for i in members]).to(self._device)
            fields, spread = self._ensemble(images, size, len(members), plan, options, generator)
            for row, i in enumerate(members):
                deviation = None if spread is None else spread[row : row + 1]
                results[i] = self.result(photos[i], fields[row : row + 1], deviation, found[i], options, plan)
        return [results[i] for i in range(len(photos))]

    def recorded(self, options: NormalOptions, matting: Matting | None) -> NormalOptions:
        """Options as results record them: with the floating type and the matting model of the run."""
        dtype = str(self.unet.dtype).removeprefix("torch.")
        return replace(options, dtype=dtype, matting=options.matting if matting is None else matting.name)

    def prepare(self, photo: Photo, options: NormalOptions) -> Tensor:
        """``(1, 3, H, W)`` in [0, 1] on the CPU: on white, at the predictor's size."""
        pixels = photo.on_white
        side = self._predictor_side(options)
        if side:
            pixels = imaging.resize_image(pixels, imaging.working_size(*photo.size, side))
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255

    def mask_of(self, photo: Photo, given: np.ndarray | None, matting: Matting | None) -> np.ndarray | None:
        """Which pixels count (H, W): the person's mask, else the photograph's alpha, else the matting model's."""
        if given is not None:
            return imaging.check_mask(given, photo.size)
        if photo.alpha is not None:
            return photo.opaque
        return matting(photo) if matting is not None else None

    def _ensemble(
        self,
        images: Tensor,
        size: tuple[int, int],
        count: int,
        plan: Plan,
        options: NormalOptions,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Mean direction ``(B, 3, H, W)`` over members and degrees from it ``(B, 1, H, W)``; one member: itself."""
        tiled = options.tile is not None and max(size) > options.tile
        grid = self.latent_size(size, options)
        members = []
        for member in range(options.ensemble):
            sources = [
                generator or torch.Generator().manual_seed(options.seed + member) for _ in range(count)
            ]
            if tiled:
                members.append(self._tiled(images, sources, plan, options))
            else:
                draws = stack_draws([self.draw(grid, plan, source) for source in sources])
                members.append(self.field(images, draws.to(images.device, self.unet.dtype), plan, options))
        if len(members) == 1:
            return members[0], None
        mean = imaging.unit(torch.stack(members).sum(0))
        cosines = torch.stack([(m * mean).sum(1, keepdim=True) for m in members])
        return mean, torch.rad2deg(torch.arccos(cosines.clamp(-1, 1))).mean(0)

    def _tiled(
        self, images: Tensor, sources: Sequence[torch.Generator], plan: Plan, options: NormalOptions
    ) -> Tensor:
        """A view of the whole, then tiles that keep its large shapes and add their detail."""
        height, width = images.shape[-2:]
        assert options.tile is not None
        grid = self.latent_size((height, width), options)
        whole_draws = stack_draws([self.draw(grid, plan, source) for source in sources])
        whole = self.field(
            images, whole_draws.to(images.device, self.unet.dtype), plan, replace(options, match_input=True)
        )
        tiling = Tiling(height, width, options.tile)
        # One noise for the whole picture, so that tiles agree where they overlap.
        full = stack_draws(
            [self.draw((-(-height // 8), -(-width // 8)), plan, source) for source in sources]
        ).to(images.device, self.unet.dtype)
        native = replace(options, processing_resolution=0, match_input=True)
        parts = []
        for top, left, bottom, right in progress(tiling.boxes, description="tiles"):
            cut = full.cut(top // 8, left // 8, -(-(bottom - top) // 8), -(-(right - left) // 8))
            parts.append(self.field(images[:, :, top:bottom, left:right], cut, plan, native))
        side = self.side(options) or max(height, width)
        return blend_normals(parts, tiling, whole, smoothing=max(height, width) / side)

    def result(
        self,
        photo: Photo,
        field: Tensor,
        spread: Tensor | None,
        mask: np.ndarray | None,
        options: NormalOptions,
        plan: Plan,
    ) -> NormalPrediction:
        """A result of raw normals ``(1, 3, H, W)`` and their spread in degrees ``(1, 1, H, W)``."""
        from vision3d.results import NormalPrediction

        size = photo.size if options.match_input else (field.shape[-2], field.shape[-1])
        if tuple(field.shape[-2:]) != tuple(size):
            field = imaging.unit(F.interpolate(field, size=size, mode="bilinear", align_corners=False))
        raw = field[0].permute(1, 2, 0).float().cpu().numpy()
        uncertainty = None
        if spread is not None:
            shaped = F.interpolate(spread, size=size, mode="bilinear", align_corners=False)
            uncertainty = shaped[0, 0].float().cpu().numpy()
        return NormalPrediction(
            normals=convert_normals(raw, "stablenormal", "opencv"),
            valid=None if mask is None else imaging.resize_mask(mask, size),
            uncertainty=uncertainty,
            photo=photo,
            effective=self.effective(options, plan),
            provenance=options.provenance(self.weights_name, self.weights_sha256),
        )

    def stream(
        self,
        photos: Iterable[Photo],
        options: NormalOptions | None = None,
        *,
        batch_size: int = 1,
        **extras: Any,
    ) -> Iterator[NormalPrediction]:
        """Predictions one after the other, reading ``photos`` only as far as the next batch.

        When memory runs out, batches get smaller; a line on screen says so. With ``stabilise`` photographs go one by
        one, since a frame needs the one before. ``extras`` are as for :meth:`predict`, without ``masks``.
        """
        one_by_one = options is not None and options.stabilise
        process = self.predictor(options, **extras)
        return in_batches(process, photos, 1 if one_by_one else batch_size, generator=extras.get("generator"))

    def predictor(
        self, options: NormalOptions | None = None, **extras: Any
    ) -> Callable[..., list[NormalPrediction]]:
        """What predicts the next photographs (and their masks): as :meth:`predict`, or frames steadied by those before.

        ``extras`` are as for :meth:`predict`, without ``masks``.
        """
        steady = Stabiliser(self, options) if options is not None and options.stabilise else None

        def process(
            photos: Sequence[Photo], masks: Sequence[np.ndarray | None] | None = None
        ) -> list[NormalPrediction]:
            if steady is None:
                return self.predict(photos, options, masks=masks, **extras)
            return [
                steady(p, m, **extras) for p, m in zip(photos, masks or [None] * len(photos), strict=True)
            ]

        return process

    def __call__(
        self,
        images: Any,
        *,
        mask: np.ndarray | None = None,
        batch_size: int = 1,
        generator: torch.Generator | None = None,
        matting: Matting | None = None,
        **options: Any,
    ) -> NormalPrediction | list[NormalPrediction]:
        """Normals of whatever holds images.

        Args:
            images: a path, folder, glob, video, PIL image, array or tensor, or a list of these.
            mask: (H, W) for a single image: what counts is true or bright.
            batch_size: images per pass; those of one size run together.
            generator: draws the noise instead of ``seed``; must live on the CPU.
            matting: finds the masks of images without one.
            options: fields of :class:`NormalOptions` (``turbo``, ``steps``, ``processing_resolution``, ``ensemble``,
                ``tile``, ``seed``, ...).

        Returns:
            One prediction for one image, else a list of them in order.

        Raises:
            InputError: nothing there that can be read as an image, or an option is out of range.
        """
        from vision3d.io.images import holds_many, iter_photos, load_photo

        chosen = NormalOptions(**options)
        if not isinstance(images, (list, tuple)) and not holds_many(images):
            photo = load_photo(images)
            return self.predict([photo], chosen, masks=[mask], generator=generator, matting=matting)[0]
        if mask is not None:
            raise InputError("one mask for several images", "give images one at a time, or transparent ones")
        photos = (reference.load() for reference in iter_photos(images))
        return list(self.stream(photos, chosen, batch_size=batch_size, generator=generator, matting=matting))


def embed_prompt(
    tower: CLIPTextModel, tokenizer: Any, prompt: str, device: torch.device | None = None
) -> Tensor:
    """Text states ``(1, 77, width)`` of a prompt: the penultimate layer of SD 2.x's tower, the last of any other."""
    layer = "penultimate" if tower.config.hidden_size == 1024 else "last"
    encoder = TextEncoder(tower, tokenizer, device=device)
    states = encoder.embed([prompt], layer=layer)  # type: ignore[arg-type]
    encoder.drop()
    return states


def stack_draws(draws: Sequence[Draws]) -> Draws:
    """The noise of single images as that of a batch."""
    fresh = tuple(torch.cat(parts) for parts in zip(*(d.fresh for d in draws), strict=True))
    return Draws(torch.cat([d.start for d in draws]), fresh)
