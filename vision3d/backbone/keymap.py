"""Names of the same tensors in the two layouts of Stable Diffusion: LDM single files and diffusers folders.

Each function renames one LDM key to its diffusers counterpart, by rule, for any number of levels; returning
``None`` means that the key belongs to no network (schedule buffers, EMA counters).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def _resnet(tail: str) -> str:
    for ldm, ours in RESNET.items():
        if tail.startswith(ldm + "."):
            return ours + tail[len(ldm) :]
    return tail


def unet_key(key: str, res_blocks: int = 2, levels: int = 4) -> str | None:
    """Diffusers name of an LDM UNet tensor (prefix ``model.diffusion_model.`` removed)."""
    per_level = res_blocks + 1
    for ldm, ours in (
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("input_blocks.0.0", "conv_in"),
        ("out.0", "conv_norm_out"),
        ("out.2", "conv_out"),
    ):
        if key.startswith(ldm + "."):
            return ours + key[len(ldm) :]
    if match := re.match(r"middle_block\.(\d)\.(.+)", key):
        part, tail = int(match[1]), match[2]
        return (
            f"mid_block.attentions.0.{tail}"
            if part == 1
            else f"mid_block.resnets.{part // 2}.{_resnet(tail)}"
        )
    if match := re.match(r"input_blocks\.(\d+)\.(\d)\.(.+)", key):
        level, block = divmod(int(match[1]) - 1, per_level)
        if block == res_blocks:
            return f"down_blocks.{level}.downsamplers.0.conv{match[3].removeprefix('op')}"
        if match[2] == "0":
            return f"down_blocks.{level}.resnets.{block}.{_resnet(match[3])}"
        return f"down_blocks.{level}.attentions.{block}.{match[3]}"
    if match := re.match(r"output_blocks\.(\d+)\.(\d)\.(.+)", key):
        level, block = divmod(int(match[1]), per_level)
        if match[2] == "0":
            return f"up_blocks.{level}.resnets.{block}.{_resnet(match[3])}"
        if match[3].startswith("conv."):
            return f"up_blocks.{level}.upsamplers.0.{match[3]}"
        return f"up_blocks.{level}.attentions.{block}.{match[3]}"
    return None


def vae_key(key: str, levels: int = 4) -> str | None:
    """Diffusers name of an LDM autoencoder tensor (prefix ``first_stage_model.`` removed)."""
    if key.startswith(("quant_conv.", "post_quant_conv.")):
        return key
    match = re.match(r"(encoder|decoder)\.(.+)", key)
    if not match:
        return None
    side, rest = match[1], match[2]
    if inner := re.match(r"mid\.block_(\d)\.(.+)", rest):
        rest = f"mid_block.resnets.{int(inner[1]) - 1}.{inner[2]}"
    elif inner := re.match(r"mid\.attn_1\.(norm|q|k|v|proj_out)\.(.+)", rest):
        rest = f"mid_block.attentions.0.{VAE_ATTENTION[inner[1]]}.{inner[2]}"
    elif inner := re.match(r"(down|up)\.(\d)\.(block\.(\d)|downsample|upsample)\.(.+)", rest):
        level = int(inner[2]) if inner[1] == "down" else levels - 1 - int(inner[2])
        part = f"resnets.{inner[4]}" if inner[4] else f"{inner[3]}rs.0"
        rest = f"{inner[1]}_blocks.{level}.{part}.{inner[5]}"
    else:
        rest = re.sub(r"^norm_out\.", "conv_norm_out.", rest)
    return f"{side}.{rest}".replace("nin_shortcut", "conv_shortcut")


def decoder_key(key: str, levels: int = 4) -> str | None:
    """Diffusers ``Decoder`` name of a tensor of an LDM decoder that stands alone (a prediction head)."""
    renamed = vae_key("decoder." + key, levels)
    return None if renamed is None else renamed.removeprefix("decoder.")


def ldm_resnet(tail: str) -> str:
    """LDM name of a tensor inside a UNet ResNet, given its diffusers name."""
    for ldm, ours in RESNET.items():
        if tail.startswith(ours + "."):
            return ldm + tail[len(ours) :]
    return tail


STANDARD = (False, True, True, True)
"""Whether the levels of Stable Diffusion's decoder have transformers."""


def attending(config: Mapping[str, Any]) -> tuple[bool, ...]:
    """Whether each level of the decoder has transformers, of a UNet's diffusers configuration."""
    kinds = config.get("up_block_types")
    return STANDARD if kinds is None else tuple("Attn" in kind for kind in kinds)


def ldm_unet_key(name: str, res_blocks: int = 2, attends: Sequence[bool] = STANDARD) -> str:
    """LDM name (without prefix) of a diffusers UNet tensor; the inverse of :func:`unet_key`.

    Args:
        name: in diffusers' layout.
        res_blocks: ResNets in a level of the encoder.
        attends: whether each level of the decoder has transformers.
    """
    per_level = res_blocks + 1
    for ldm, ours in (
        ("time_embed.0", "time_embedding.linear_1"),
        ("time_embed.2", "time_embedding.linear_2"),
        ("input_blocks.0.0", "conv_in"),
        ("out.0", "conv_norm_out"),
        ("out.2", "conv_out"),
    ):
        if name.startswith(ours + "."):
            return ldm + name[len(ours) :]
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        if match[1] == "attentions":
            return f"middle_block.1.{match[3]}"
        return f"middle_block.{2 * int(match[2])}.{ldm_resnet(match[3])}"
    match = re.match(
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name
    )
    if not match:
        raise ValueError(f"no LDM name for {name!r}")
    side, level, kind, index, tail = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{1 + level * per_level + res_blocks}.0.op{tail.removeprefix('conv')}"
        position = 1 + level * per_level + index
        return (
            f"input_blocks.{position}.0.{ldm_resnet(tail)}"
            if kind == "resnets"
            else f"input_blocks.{position}.1.{tail}"
        )
    position = level * per_level + (res_blocks if kind == "upsamplers" else index)
    if kind == "resnets":
        return f"output_blocks.{position}.0.{ldm_resnet(tail)}"
    # in a level without transformers the upsampler takes their place
    return f"output_blocks.{position}.{2 if kind == 'upsamplers' and attends[level] else 1}.{tail}"


def ldm_vae_key(name: str, levels: int = 4) -> str:
    """LDM name (without prefix) of a diffusers autoencoder tensor; the inverse of :func:`vae_key`."""
    if name.startswith(("quant_conv.", "post_quant_conv.")):
        return name
    side, rest = name.split(".", 1)
    rest = rest.replace("conv_shortcut", "nin_shortcut")
    if match := re.match(r"mid_block\.resnets\.(\d)\.(.+)", rest):
        rest = f"mid.block_{int(match[1]) + 1}.{match[2]}"
    elif match := re.match(r"mid_block\.attentions\.0\.(.+)\.(weight|bias)", rest):
        names = {ours: ldm for ldm, ours in VAE_ATTENTION.items()}
        rest = f"mid.attn_1.{names[match[1]]}.{match[2]}"
    elif match := re.match(r"(down|up)_blocks\.(\d)\.(resnets|downsamplers|upsamplers)\.(\d)\.(.+)", rest):
        level = int(match[2]) if match[1] == "down" else levels - 1 - int(match[2])
        part = f"block.{match[4]}" if match[3] == "resnets" else match[3].removesuffix("rs")
        rest = f"{match[1]}.{level}.{part}.{match[5]}"
    else:
        rest = re.sub(r"^conv_norm_out\.", "norm_out.", rest)
    return f"{side}.{rest}"


def modern_attention(name: str) -> str:
    """Today's name of an autoencoder tensor: before diffusers 0.18 files said query, key, value, proj_attn."""
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def as_convolution(name: str, value: Tensor) -> Tensor:
    """The inverse of :func:`as_linear`, for writing the LDM layout of an autoencoder."""
    if ".attentions." in name and value.ndim == 2:
        return value[:, :, None, None]
    return value


def as_linear(key: str, value: Tensor) -> Tensor:
    """LDM keeps the autoencoder's attention projections as 1x1 convolutions; diffusers as linear layers."""
    if ".attentions." in key and value.ndim == 4 and key.endswith("weight") and value.shape[2:] == (1, 1):
        return value[:, :, 0, 0]
    return value


def select(
    tensors: Mapping[str, Tensor] | Iterable[str], prefix: str, rename: Callable[[str], str | None]
) -> dict[str, str]:
    """Map of new name to full key for every key under ``prefix`` that ``rename`` knows."""
    chosen: dict[str, str] = {}
    for key in tensors:
        if key.startswith(prefix):
            renamed = rename(key[len(prefix) :])
            if renamed is not None:
                chosen[renamed] = key
    return chosen
