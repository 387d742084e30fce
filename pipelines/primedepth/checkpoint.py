"""The released checkpoint: one file in the LDM layout that holds the UNet, the autoencoder and the labeller.

Its keys are renamed on the fly; nothing is written. The text tower may or may not be in the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from vision3d.backbone import keymap
from vision3d.backbone.loading import (
    WeightSource,
    attach,
    empty_weights,
    leave_out,
    open_checkpoint,
    pixel_dtype,
)
from vision3d.backbone.text import has_text_tower, load_text_tower, tower_among
from vision3d.backbone.vae import SCALING_FACTOR, set_group_norm_eps
from vision3d.errors import WeightsError
from vision3d.pipelines.primedepth.network import PredictionHead, PreimageRefiner

UNET, VAE, LABELLER = "model.diffusion_model.", "first_stage_model.", "labeller."
IN_PIXELS = ("vae", "depth_head")
"""Networks whose 16 bits would show in the result."""
UNUSED = ("decoder", "post_quant_conv")
"""Parts of the autoencoder that files may lack."""
TOWER = "openclip-vit-h-14"
"""The manifest's name of the text tower for checkpoints that have none."""
HEADS = {"depth": LABELLER + "depth_predictor.", "segmentation": LABELLER + "label_predictor."}


@dataclass(frozen=True)
class PrimeDepthConfig:
    """Sizes of a single-file checkpoint; the defaults are the published ones (SD 2.1).

    The names are the published configuration file's.
    """

    model_channels: int = 320
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    attention_ds: tuple[int, ...] = (4, 2, 1)
    num_head_channels: int = 64
    context_dim: int = 1024
    use_linear_in_transformer: bool = True
    refiner_model_ratio: float = 0.5
    n_ca_maps: int = 77
    channels2predictor: int = 512
    vae_ch: int = 128
    label_channels: Mapping[str, int] = field(default_factory=lambda: {"depth": 3, "segmentation": 150})

    @property
    def unet(self) -> dict[str, Any]:
        """The diffusers configuration of the UNet."""
        widths = tuple(self.model_channels * m for m in self.channel_mult)
        attends = [2**level in self.attention_ds for level in range(len(widths))]
        return {
            "sample_size": 96,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": widths,
            "layers_per_block": self.num_res_blocks,
            "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            "cross_attention_dim": self.context_dim,
            "attention_head_dim": tuple(w // self.num_head_channels for w in widths),
            "use_linear_projection": self.use_linear_in_transformer,
        }

    @property
    def vae(self) -> dict[str, Any]:
        """The diffusers configuration of the autoencoder."""
        widths = tuple(self.vae_ch * m for m in (1, 2, 4, 4))
        return {
            "block_out_channels": widths,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
            "latent_channels": 4,
            "sample_size": 768,
            "scaling_factor": SCALING_FACTOR,
        }


def labeller_key(key: str) -> str | None:
    """Our refiner's name of a checkpoint tensor (prefix ``labeller.`` removed); None for the heads' tensors."""
    for theirs, ours in (
        ("convs_features", "feature_projections"),
        ("convs_attentions", "attention_projections"),
        ("convs_merge", "merges"),
    ):
        if key.startswith(theirs + "."):
            return ours + key[len(theirs) :]
    for theirs, ours in (("refiner.out.0", "norm_out"), ("refiner.out.2", "conv_out")):
        if key.startswith(theirs + "."):
            return ours + key[len(theirs) :]
    if match := re.match(r"refiner\.output_blocks\.(\d+)\.(\d)\.(.+)", key):
        i, part, tail = match.groups()
        if part == "0":
            for theirs, ours in keymap.RESNET.items():
                if tail.startswith(theirs + "."):
                    return f"blocks.{i}.resnet.{ours}{tail[len(theirs) :]}"
        return f"blocks.{i}.{'upsampler' if tail.startswith('conv.') else 'attention'}.{tail}"
    return None


def checkpoint_key(network: str, name: str, unet: Mapping[str, Any]) -> str:
    """The released checkpoint's name of a tensor.

    Args:
        network: that it belongs to.
        name: of the tensor there.
        unet: the UNet's diffusers configuration.
    """
    res_blocks, attends = int(unet.get("layers_per_block", 2)), keymap.attending(unet)
    if network == "unet":
        return UNET + keymap.ldm_unet_key(name, res_blocks, attends)
    if network == "vae":
        return VAE + keymap.ldm_vae_key(name)
    if network.endswith("_head"):
        inner = keymap.ldm_vae_key(name).removeprefix("decoder.")
        return HEADS[network.removesuffix("_head")] + inner
    for theirs, ours in (
        ("convs_features", "feature_projections"),
        ("convs_attentions", "attention_projections"),
        ("convs_merge", "merges"),
        ("refiner.out.0", "norm_out"),
        ("refiner.out.2", "conv_out"),
    ):
        if name.startswith(ours + "."):
            return LABELLER + theirs + name[len(ours) :]
    match = re.match(r"blocks\.(\d+)\.(resnet|attention|upsampler)\.(.+)", name)
    if network != "refiner" or match is None:
        raise ValueError(f"no checkpoint name for {name!r} of {network!r}")
    i, part, tail = int(match[1]), match[2], match[3]
    if part == "resnet":
        return f"{LABELLER}refiner.output_blocks.{i}.0.{keymap.ldm_resnet(tail)}"
    place = 2 if part == "upsampler" and attends[i // (res_blocks + 1)] else 1
    return f"{LABELLER}refiner.output_blocks.{i}.{place}.{tail}"


def build_networks(config: PrimeDepthConfig) -> dict[str, nn.Module]:
    """The networks of a configuration, with whatever weights the surrounding context gives them."""
    networks: dict[str, nn.Module] = {
        "vae": AutoencoderKL(**config.vae),
        "unet": UNet2DConditionModel(**config.unet),
        "refiner": PreimageRefiner.for_unet(
            config.unet,
            ratio=config.refiner_model_ratio,
            num_head_channels=config.num_head_channels,
            tokens=config.n_ca_maps,
            out_channels=config.channels2predictor,
        ),
    }
    widths = tuple(config.vae_ch * m for m in (1, 2, 4, 4))
    for name, channels in config.label_channels.items():
        networks[f"{name}_head"] = PredictionHead(config.channels2predictor, channels, widths)
    set_group_norm_eps(networks["vae"], 1e-5)
    return networks


def checkpoint_shapes(config: PrimeDepthConfig | None = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of every network tensor of a checkpoint of this configuration (no text tower)."""
    config = config or PrimeDepthConfig()
    with empty_weights():
        networks = build_networks(config)
    shapes = {}
    for network, module in networks.items():
        for name, value in module.state_dict().items():
            lies_as_conv = network == "vae" or network.endswith("_head")
            shaped = keymap.as_convolution(name, value) if lies_as_conv else value
            shapes[checkpoint_key(network, name, config.unet)] = tuple(shaped.shape)
    return shapes


def load_networks(
    path: str | Path,
    config: PrimeDepthConfig | None = None,
    *,
    dtype: torch.dtype | None = None,
    tensors: Mapping[str, Tensor] | None = None,
) -> dict[str, nn.Module]:
    """The networks of a single-file checkpoint, bound to their weights (loaded at first use).

    Args:
        path: ``.ckpt``, ``.pt`` or ``.safetensors``, with or without a ``state_dict`` wrapper.
        config: sizes, the published ones by default.
        dtype: floating dtype to load as; None keeps the file's. Autoencoder and depth head take float32 in place of
            16 bits.
        tensors: the checkpoint's tensors, if they are at hand already.

    Returns:
        ``vae``, ``unet``, ``refiner``, ``depth_head``, ``segmentation_head``, and ``text_encoder`` if the file
        holds the tower.

    Raises:
        WeightsError: a ``labeller``, UNet or autoencoder tensor is missing or of another shape, or an unknown
            ``labeller`` tensor is present; the message names it.
    """
    path, config = Path(path), config or PrimeDepthConfig()
    kept = tensors
    tensors = open_checkpoint(path) if tensors is None else tensors
    if not any(key.startswith(LABELLER) for key in tensors):
        examples = ", ".join(sorted(tensors)[:2])
        raise WeightsError(
            f"{path.name}: not a PrimeDepth checkpoint, it has no 'labeller.*' tensors but {examples} ...",
            "give the released PrimeDepth file, or a folder written by save_pretrained",
        )
    with empty_weights():
        networks = build_networks(config)

    names = {
        "vae": keymap.select(tensors, VAE, keymap.vae_key),
        "unet": keymap.select(tensors, UNET, lambda key: keymap.unet_key(key, config.num_res_blocks)),
        "refiner": keymap.select(tensors, LABELLER, labeller_key),
    }
    known = set(names["refiner"].values())
    for head in config.label_channels:
        renamed = keymap.select(tensors, HEADS[head], keymap.decoder_key)
        known |= set(renamed.values())
        names[f"{head}_head"] = {f"decoder.{name}": key for name, key in renamed.items()}
    stray = sorted(key for key in tensors if key.startswith(LABELLER) and key not in known)
    if stray:
        raise WeightsError(
            f"{path.name}: unexpected tensors {', '.join(stray[:4])}" + (" ..." if len(stray) > 4 else ""),
            "this file is of another version of PrimeDepth",
        )
    for name, network in networks.items():
        if name == "vae":  # some files leave its decoder out
            leave_out(network, names[name], UNUSED)
        source = WeightSource(path, names[name], dtype=dtype, label=f"PrimeDepth {name}", tensors=kept)
        if name in IN_PIXELS:
            source.dtype = pixel_dtype(dtype)
        if name == "vae" or name.endswith("head"):
            source.transform = keymap.as_linear
        told = partial(checkpoint_key, name, unet=config.unet)
        attach(network, source, load=False, told=told)
    if kept is None and tower_among(tensors):
        networks["text_encoder"] = load_text_tower(path, dtype=dtype or torch.float32, load=False)
    return networks


def tower_apart(path: Path, given: str | Path | None = None) -> Path | None:
    """The text tower that weights are used with, where it is not their own.

    Args:
        path: the weights' file or folder.
        given: what a person chose: a file, a folder or a name of the manifest.

    Returns:
        file or folder: the one given, else the pulled one for weights that have none; None where neither is there.

    Raises:
        WeightsError: nothing there, or not pulled.
    """
    from vision3d.weights import registry, resolve

    if given is not None:
        return resolve(TOWER, given)[0]
    try:
        if registry.pulled(TOWER) is None or has_text_tower(path):
            return None
    except WeightsError:  # a damaged one is told of when a prompt needs it
        return None
    return registry.entry(TOWER)
