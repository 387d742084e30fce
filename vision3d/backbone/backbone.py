"""Stable Diffusion and DINO behind one face: encode, embed, read features, denoise, decode.

A task is its own heads and pre- and post-processing over this; every stage can be used alone, and what was
computed once (a prompt's embedding, an image's latents, an image's features) is not computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vision3d.backbone import loading
from vision3d.backbone.dino import Dino, Facet, GridTokens
from vision3d.backbone.dino3 import Dinov3, load_any_dino
from vision3d.backbone.featurecache import FeatureCache, FeatureKey, image_sha256
from vision3d.backbone.schedule import STEPS, PredictionType, add_noise, to_x0
from vision3d.backbone.sharing import has_file, identity, share, shared_moments
from vision3d.backbone.stable_diffusion import StableDiffusion, load_stable_diffusion
from vision3d.backbone.text import Layer, TextEncoder, has_text_tower
from vision3d.backbone.unet import denoise, read_taps
from vision3d.backbone.vae import decode, encode_moments
from vision3d.device import compute_exactly, parse_bytes, resolve_device, resolve_dtype
from vision3d.errors import InputError, ResourceError, WeightsError

Memory = Literal["auto", "high", "balanced", "low"]
Sampling = Literal["mean", "mode", "sample"]
Noise = Literal["fixed42", "zeros"]
Attention = Literal["auto", "math"]


@dataclass(frozen=True)
class FeatureMap:
    """Features of a batch of images and where their cells lie.

    Attributes:
        tensor: ``(B, C, h, w)``.
        stride: pixels from one cell to the next, ``(vertical, horizontal)``.
        offset: image coordinate of the first cell's centre, ``(v, u)`` (pixel centres at +0.5).
    """

    tensor: Tensor
    stride: tuple[float, float]
    offset: tuple[float, float]

    def cell_of(self, u: float, v: float) -> tuple[float, float]:
        """Continuous cell index ``(row, column)`` of an image point; cell centres are at whole numbers."""
        return (v - self.offset[0]) / self.stride[0], (u - self.offset[1]) / self.stride[1]


def fixed_noise(size: tuple[int, int], seed: int = 42, channels: int = 4) -> Tensor:
    """Noise ``(1, channels, h, w)`` of the seed alone: drawn at 64 x 64 on the CPU, resized bicubically."""
    noise = torch.randn(1, channels, 64, 64, generator=torch.Generator().manual_seed(seed))
    return noise if size == (64, 64) else F.interpolate(noise, size=size, mode="bicubic", align_corners=False)


def _tuned_unet(source: str | Path, networks: StableDiffusion, dtype: torch.dtype) -> UNet2DConditionModel:
    """A UNet that takes another one's place. Raises WeightsError when it is none, or of another size."""
    unet = load_stable_diffusion(source, dtype=dtype, load=False).unet
    if unet is None:
        raise WeightsError(f"{source}: no UNet", "give the file or folder of a UNet")
    shapes = [
        None if network is None else {name: tuple(p.shape) for name, p in network.named_parameters()}
        for network in (networks.unet, unet)
    ]
    if shapes[0] not in (None, shapes[1]):
        raise WeightsError(
            f"{source}: a UNet of another size than that of {networks.source.name}",
            "give the one it was tuned from",
        )
    return unet


class Backbone:
    """Networks shared by all tasks.

    Args:
        sd: Stable Diffusion networks, or None.
        text: text embeddings, or None.
        dino: a DINO network, or None.
        device: where networks run.
        memory: ``high`` keeps all resident; ``balanced`` lets the text tower go; ``low`` loads each network when its
            turn comes and lets it go after. ``auto`` is ``balanced``; a number of bytes (or ``6.5G``) takes ``low``
            when the networks do not fit it.
        feature_cache: keep features on disk (fp16).
        attn: ``auto`` takes the fastest attention, ``math`` the plain one, to compare with (nothing is cached).
    """

    def __init__(
        self,
        sd: StableDiffusion | None = None,
        text: TextEncoder | None = None,
        dino: Dino | Dinov3 | None = None,
        *,
        device: torch.device | str = "auto",
        memory: Memory | str | int = "auto",
        feature_cache: FeatureCache | None = None,
        attn: Attention = "auto",
    ) -> None:
        if attn not in get_args(Attention):
            raise InputError(f"attn {attn!r}", f"choose {' or '.join(get_args(Attention))}")
        self.attn = attn
        self.sd, self.text_encoder, self.dino_network = sd, text, dino
        self.device = resolve_device(device)
        self.feature_cache = feature_cache
        self.tier = self._tier(memory)
        if self.tier != "low":
            for network in self._networks():
                loading.load_weights(network, self.device)

    @classmethod
    def from_pretrained(
        cls,
        sd: str | Path | None = None,
        dino: str | Path | None = None,
        *,
        unet: str | Path | None = None,
        device: str = "auto",
        dtype: torch.dtype | str = "auto",
        prediction_type: PredictionType | None = None,
        family: str | None = None,
        compile: bool = False,
        deterministic: bool = False,
        channels_last: bool | None = None,
        memory: Memory | str | int = "auto",
        feature_cache: FeatureCache | None = None,
        attn: Attention = "auto",
    ) -> Backbone:
        """Loads networks; those that this process holds already are shared.

        Args:
            sd: Stable Diffusion folder or single file, by path, manifest name, or repository in the hub's cache.
            dino: DINO file or folder, of any version, in the same way.
            unet: UNet file or folder, tuned from that of ``sd``, in its place.
            device: where networks run.
            dtype: floating type; fp32 on CPUs, 16 bits on CUDA.
            prediction_type: what the UNet predicts, where the source does not say.
            family: ``sd1`` or ``sd2`` if the task needs that one.
            compile: compile the blocks of UNet and autoencoder; the first pass at every size is slow.
            deterministic: the same numbers in every run on CUDA, from now on and for the whole process: no tuned
                algorithms, no TF32.
            channels_last: memory layout of convolutions; on by default on CUDA only, where it pays.
            memory: as for the constructor.
            feature_cache: keep features on disk.
            attn: as for the constructor.

        Raises:
            WeightsError: missing, damaged or foreign weights.
        """
        if deterministic:
            compute_exactly()
        place = resolve_device(device)
        floating = resolve_dtype(dtype, place)
        networks = text = None
        if sd is not None:
            networks = load_stable_diffusion(
                sd, dtype=floating, prediction_type=prediction_type, family=family, load=False
            )
            if unet is not None:
                networks.unet = _tuned_unet(unet, networks, floating)
            networks.unet = share(networks.unet) if networks.unet is not None else None
            networks.vae = share(networks.vae) if networks.vae is not None else None
            text = _text_encoder(networks.source, place)
        vit = share(load_any_dino(dino, dtype=floating, load=False)) if dino is not None else None
        backbone = cls(
            networks, text, vit, device=place, memory=memory, feature_cache=feature_cache, attn=attn
        )
        if channels_last or (channels_last is None and place.type == "cuda"):
            for network in backbone._networks():
                if not isinstance(network, (Dino, Dinov3)) and backbone.tier != "low":
                    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compile:
            backbone.compile_blocks()
        return backbone

    def _networks(self) -> list[nn.Module]:
        parts = [self.sd.vae, self.sd.unet] if self.sd is not None else []
        return [network for network in (*parts, self.dino_network) if network is not None]

    def _tier(self, memory: Memory | str | int) -> str:
        if memory in ("high", "balanced", "low"):
            return str(memory)
        if memory == "auto":
            return "balanced"
        needed = loading.parameter_bytes(*self._networks()) + (1 << 30)
        return "balanced" if needed <= parse_bytes(memory) else "low"

    def compile_blocks(self) -> None:
        """Compiles ResNets and transformers one by one, so that early exit goes on working."""
        from diffusers.models.attention import BasicTransformerBlock
        from diffusers.models.resnet import ResnetBlock2D

        for network in self._networks():
            for module in network.modules():
                if isinstance(module, (ResnetBlock2D, BasicTransformerBlock)):
                    module.compile(dynamic=False)

    def _held(self, what: Literal["unet", "vae", "dino"]) -> Any:
        """One of the networks, as it is. Raises ResourceError when there is none."""
        network = self.dino_network if what == "dino" else getattr(self.sd, what, None)
        if network is None:
            name = {"unet": "UNet", "vae": "autoencoder", "dino": "DINO network"}[what]
            raise ResourceError(f"this backbone has no {name}", f"load it with a {name}")
        return network

    @contextmanager
    def running(self, what: Literal["unet", "vae", "dino"]) -> Iterator[Any]:
        """One of the networks, on its device inside; let go of after in the ``low`` tier.

        Raises:
            ResourceError: this backbone has none.
        """
        network = self._held(what)
        loading.load_weights(network, self.device)
        try:
            with sdpa_kernel(SDPBackend.MATH) if self.attn == "math" else nullcontext():
                yield network
        finally:
            if self.tier == "low":
                loading.release_weights(network)

    # ------------------------------------------------------------------ stages

    @torch.no_grad()
    def encode(
        self,
        images: Tensor,  # [B, 3, H, W], RGB in [0, 1]
        sample: Sampling = "mean",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Scaled latents ``(B, 4, H/8, W/8)``; an image that was encoded before is not encoded again.

        Args:
            images: of one size.
            sample: the posterior's ``mean`` (or ``mode``, the same), or a ``sample`` of it.
            generator: draws the sample, on the CPU.

        Raises:
            InputError: another word for ``sample``.
            ResourceError: this backbone has no autoencoder.
        """
        if sample not in get_args(Sampling):
            raise InputError(f"sample {sample!r}", f"choose one of {', '.join(get_args(Sampling))}")
        vae = self._held("vae")

        def run(batch: Tensor) -> tuple[Tensor, Tensor]:
            with self.running("vae"):
                return encode_moments(vae, batch)

        mean, logvar = shared_moments(vae, images.to(self.device), encode=run)
        if sample == "sample":
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            mean = mean + (0.5 * logvar).exp() * noise
        latents = mean * vae.config.scaling_factor
        unet = getattr(self.sd, "unet", None)
        return latents if unet is None else latents.to(unet.dtype)

    def text(self, prompts: str | Sequence[str] = "", layer: Layer = "last") -> Tensor:
        """Embeddings ``(B, 77, C)``; known prompts come from disk and the tower stays unread.

        Args:
            prompts: one or several.
            layer: ``last``, or ``penultimate`` as SD 2 was trained with.
        """
        if self.text_encoder is None:
            raise ResourceError(
                "this backbone has no text tower", "load it from a folder or file that has one"
            )
        out = self.text_encoder.embed([prompts] if isinstance(prompts, str) else list(prompts), layer=layer)
        if self.tier != "high":
            self.text_encoder.drop()
        return out.to(self.device)

    @torch.no_grad()
    def features(
        self,
        latents: Tensor,
        t: int | Tensor,
        cond: Tensor,
        *,
        taps: Iterable[str] = ("s5", "s4", "s3"),
        noise: Noise | Tensor | torch.Generator = "fixed42",
        ensemble: int = 1,
        time_add: Tensor | None = None,
    ) -> dict[str, FeatureMap]:
        """What the UNet holds at one noise level; nothing after the last tap is computed.

        With a feature cache they are kept on disk, by the latents' values among all else that decides them.

        Args:
            latents: clean, scaled ``(B, 4, h, w)``.
            t: diffusion step, one or one per row.
            cond: text embeddings ``(1 or B, tokens, C)``.
            taps: names as in :mod:`vision3d.backbone.unet`.
            noise: ``fixed42`` (the same for every image, whatever the device), ``zeros``, a tensor, or a CPU generator.
            ensemble: mean over so many noises (DIFT takes 8); with ``fixed42`` the seeds count up from 42.
            time_add: added to the time embedding, one row per image.

        Raises:
            InputError: an argument out of range, or an unknown tap.
            ResourceError: this backbone has no UNet.
        """
        names = tuple(taps)
        unet = self._held("unet")
        steps = torch.as_tensor(t)
        if not (int(steps.min()) >= 0 and int(steps.max()) < STEPS):
            raise InputError(f"diffusion step {t}", f"give 0 to {STEPS - 1}")
        if isinstance(noise, str) and noise not in get_args(Noise):
            raise InputError(f"noise {noise!r}", f"choose {' or '.join(get_args(Noise))}, or give a tensor")
        if ensemble < 1:
            raise InputError(f"ensemble of {ensemble}", "give 1 or more")

        def compute() -> dict[str, Tensor]:
            total: dict[str, Tensor] = {}
            with self.running("unet"):
                for member in range(ensemble):
                    drawn = self._noise(noise, latents, member)
                    noisy = latents if drawn is None else add_noise(latents, drawn, t)
                    found = read_taps(unet, noisy, t, cond.to(latents), names, time_add=time_add)
                    for name, value in found.items():
                        total[name] = value if name not in total else total[name] + value
            return {name: value / ensemble for name, value in total.items()}

        # On disk only what a later process can tell: a network without a file is nobody there.
        cacheable = isinstance(noise, str) and has_file(unet) and self.attn == "auto"
        if cacheable and self.feature_cache is not None:
            key = FeatureKey(
                image=image_sha256(latents),
                canvas=f"latents, steps {steps.tolist()}",
                model=identity(unet),
                taps=names,
                condition=image_sha256(cond),
                noise=f"{noise} x{ensemble}" + ("" if time_add is None else f" +{image_sha256(time_add)}"),
                dtype=str(latents.dtype),
            )
            found: Mapping[str, Tensor] = self.feature_cache.get_or_compute(key, compute)
        else:
            found = compute()
        height, width = latents.shape[-2] * 8, latents.shape[-1] * 8
        maps = {}
        for name, value in found.items():
            stride = height / value.shape[-2], width / value.shape[-1]
            maps[name] = FeatureMap(value.to(latents), stride, (stride[0] / 2, stride[1] / 2))
        return maps

    @staticmethod
    def _noise(noise: Noise | Tensor | torch.Generator, latents: Tensor, member: int) -> Tensor | None:
        if isinstance(noise, Tensor):
            return noise.to(latents)
        if isinstance(noise, torch.Generator):
            return torch.randn(latents.shape, generator=noise).to(latents)
        if noise == "zeros":
            return torch.zeros_like(latents)
        size = (latents.shape[-2], latents.shape[-1])
        return fixed_noise(size, 42 + member, latents.shape[1]).to(latents)

    @torch.no_grad()
    def denoise(
        self, latents: Tensor, t: int | Tensor, cond: Tensor, *, time_add: Tensor | None = None
    ) -> Tensor:
        """The UNet's output ``(B, 4, h, w)`` in its own parameterisation."""
        with self.running("unet") as unet:
            return denoise(unet, latents, t, cond, time_add=time_add)

    def to_x0(
        self,
        model_out: Tensor,
        latents: Tensor,
        t: int | Tensor,
        prediction_type: PredictionType | None = None,
    ) -> Tensor:
        """The clean latents that a UNet output stands for."""
        kind = prediction_type or (self.sd.prediction_type if self.sd is not None else "epsilon")
        return to_x0(model_out, latents, t, kind)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1] ``(B, 3, 8h, 8w)`` for scaled latents."""
        with self.running("vae") as vae:
            images = decode(vae, latents.to(vae.dtype) / vae.config.scaling_factor)
        return (images / 2 + 0.5).clamp(0, 1)

    def dino(
        self,
        images: Tensor,
        *,
        layer: int = -1,
        facet: Facet = "token",
        norm: bool = False,
        stride: int | None = None,
        batch_size: int | None = None,
    ) -> GridTokens:
        """DINO tokens of images in [0, 1]; arguments as in :meth:`vision3d.backbone.dino.Dino.features`."""
        with self.running("dino") as network:
            return network.features(
                images.to(self.device),
                layer=layer,
                facet=facet,
                norm=norm,
                stride=stride,
                batch_size=batch_size,
            )

    def __repr__(self) -> str:
        parts = []
        if self.sd is not None:
            parts.append(
                f"Stable Diffusion ({self.sd.family}, {self.sd.prediction_type}) from {self.sd.source.name}"
            )
        if self.dino_network is not None:
            parts.append(self.dino_network.config.name)
        return f"Backbone of {' and '.join(parts) or 'nothing'} on {self.device}, memory {self.tier}"


def _text_encoder(source: Path, device: torch.device) -> TextEncoder | None:
    """The text tower that comes with a Stable Diffusion checkpoint, unread, or None."""
    return TextEncoder.from_pretrained(source, device=device) if has_text_tower(source) else None
