"""Stable Diffusion 1.x and 2.x from any of its layouts: diffusers folder, component file, LDM single file.

Configurations are read off the tensors' shapes where no ``config.json`` lies beside them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
    load_component,
    open_checkpoint,
    pixel_dtype,
    read_config,
)
from vision3d.backbone.schedule import PredictionType
from vision3d.backbone.vae import SCALING_FACTOR
from vision3d.errors import WeightsError
from vision3d.weights import locate

LDM_UNET, LDM_VAE = "model.diffusion_model.", "first_stage_model."


@dataclass
class StableDiffusion:
    """The networks of one Stable Diffusion checkpoint, without their text tower.

    Attributes:
        unet: the denoiser, or None if the source holds only an autoencoder.
        vae: the autoencoder, or None if the source holds only a denoiser.
        prediction_type: what the denoiser predicts. Single files do not say, see :func:`predicted_by`.
        family: ``sd1`` (768-wide text) or ``sd2`` (1024-wide), ``other`` for any other width.
        source: file or folder.
    """

    unet: UNet2DConditionModel | None
    vae: AutoencoderKL | None
    prediction_type: PredictionType
    family: str
    source: Path


def _count(names: Mapping[str, Any], pattern: str) -> int:
    found = {int(match[1]) for name in names if (match := re.match(pattern, name))}
    return max(found) + 1 if found else 0


def unet_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Configuration of a UNet from its tensors' diffusers names and shapes.

    The number of attention heads leaves no trace in the shapes: it is 8 in networks with convolutional
    projections (SD 1.x) and one per 64 channels in those with linear ones (SD 2.x).

    Raises:
        WeightsError: these are not the tensors of an SD 1.x or 2.x UNet.
    """
    levels = _count(shapes, r"down_blocks\.(\d+)\.")
    try:
        widths = tuple(shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(levels))
        attends = [any(n.startswith(f"down_blocks.{i}.attentions.") for n in shapes) for i in range(levels)]
        first = f"down_blocks.{attends.index(True)}.attentions.0"
        linear = len(shapes[f"{first}.proj_in.weight"]) == 2
        return {
            "in_channels": shapes["conv_in.weight"][1],
            "out_channels": shapes["conv_out.weight"][0],
            "block_out_channels": widths,
            "layers_per_block": _count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
            "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            "up_block_types": tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            "cross_attention_dim": shapes[f"{first}.transformer_blocks.0.attn2.to_k.weight"][1],
            "attention_head_dim": tuple(max(1, w // 64) for w in widths) if linear else 8,
            "use_linear_projection": linear,
            "sample_size": 96 if linear else 64,
        }
    except (KeyError, ValueError, IndexError) as error:
        raise WeightsError(
            f"these tensors are no Stable Diffusion 1.x or 2.x UNet (no {error})",
            "give a UNet of that family",
        ) from error


def vae_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Configuration of an autoencoder from its tensors' diffusers names and shapes.

    Raises:
        WeightsError: these are not the tensors of a KL autoencoder.
    """
    levels = _count(shapes, r"encoder\.down_blocks\.(\d+)\.")
    try:
        widths = tuple(shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in range(levels))
        return {
            "block_out_channels": widths,
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "layers_per_block": _count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
            "latent_channels": shapes["quant_conv.weight"][1] // 2,
            "scaling_factor": SCALING_FACTOR,
        }
    except KeyError as error:
        raise WeightsError(
            f"these tensors are no Stable Diffusion autoencoder (no {error})", "give one of that family"
        ) from error


def family_of(width: int) -> str:
    """``sd1`` or ``sd2`` by the width of the text context, ``other`` for neither."""
    return {768: "sd1", 1024: "sd2"}.get(width, "other")


def predicted_by(family: str, name: str) -> PredictionType:
    """What the UNet of a single file predicts: velocity in SD 2.x files with "768" in their name, else the noise."""
    return "v_prediction" if family == "sd2" and "768" in name else "epsilon"


def load_stable_diffusion(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    prediction_type: PredictionType | None = None,
    family: str | None = None,
    load: bool = True,
) -> StableDiffusion:
    """The UNet and autoencoder of a checkpoint, memory-mapped.

    Args:
        source: diffusers folder (with ``unet/`` and ``vae/``), component folder, component file, or LDM single file;
            its path, its name in the manifest, or a repository in the hub's cache.
        dtype: floating dtype to load as; None keeps the file's. The autoencoder takes float32 in place of 16 bits.
        prediction_type: what the UNet predicts, where the source does not say.
        family: ``sd1`` or ``sd2`` if the task needs that one.
        load: read the weights now; otherwise at first use.

    Raises:
        WeightsError: nothing there, damaged, not Stable Diffusion, or of the other family.
    """
    path = locate(source)[0]
    found = _from_folder(path, dtype, load) if path.is_dir() else _from_file(path, dtype, load)
    if prediction_type is not None:
        found.prediction_type = prediction_type
    if family is not None and found.unet is not None and found.family != family:
        names = {"sd1": "SD 1.x", "sd2": "SD 2.x", "other": "another family"}
        raise WeightsError(f"{path.name}: this is {names[found.family]}, the task needs {names[family]}")
    return found


def _from_folder(folder: Path, dtype: torch.dtype | None, load: bool) -> StableDiffusion:
    parts: dict[str, Any] = {}
    for name, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        if (folder / name).is_dir():
            parts[name] = load_component(kind, folder / name, dtype=dtype, load=load)
    if not parts:
        declared = read_config(folder).get("_class_name")
        kinds = {"UNet2DConditionModel": UNet2DConditionModel, "AutoencoderKL": AutoencoderKL}
        if declared not in kinds:
            raise WeightsError(f"{folder}: no unet/ or vae/ in this folder", "give a Stable Diffusion folder")
        parts["unet" if "UNet" in declared else "vae"] = load_component(
            kinds[declared], folder, dtype=dtype, load=load
        )
    unet = parts.get("unet")
    predicts: PredictionType = "epsilon"
    if (folder / "scheduler" / "scheduler_config.json").is_file():
        predicts = read_config(folder / "scheduler", "scheduler_config.json").get(
            "prediction_type", "epsilon"
        )
    family = family_of(unet.config.cross_attention_dim) if unet is not None else "other"
    return StableDiffusion(unet, parts.get("vae"), predicts, family, folder)


def _from_file(path: Path, dtype: torch.dtype | None, load: bool) -> StableDiffusion:
    tensors = open_checkpoint(path)
    unet = vae = None
    if any(name.startswith(LDM_UNET) for name in tensors):
        unet = _build(
            UNet2DConditionModel, path, tensors, LDM_UNET, _unet_rename(tensors), unet_config, dtype, load
        )
    if any(name.startswith(LDM_VAE) for name in tensors):
        vae = _build(AutoencoderKL, path, tensors, LDM_VAE, keymap.vae_key, vae_config, dtype, load)
    if unet is None and vae is None:
        if "conv_in.weight" in tensors and "time_embedding.linear_1.weight" in tensors:
            unet = _build(UNet2DConditionModel, path, tensors, "", lambda n: n, unet_config, dtype, load)
        elif "encoder.conv_in.weight" in tensors:
            modern = any(name.startswith("encoder.down_blocks.") for name in tensors)
            rename = keymap.modern_attention if modern else keymap.vae_key
            vae = _build(AutoencoderKL, path, tensors, "", rename, vae_config, dtype, load)
        elif "input_blocks.0.0.weight" in tensors:
            unet = _build(
                UNet2DConditionModel, path, tensors, "", _unet_rename(tensors), unet_config, dtype, load
            )
        else:
            examples = ", ".join(sorted(tensors)[:2])
            raise WeightsError(
                f"{path.name}: no Stable Diffusion tensors in this file but {examples} ...",
                "give a UNet, an autoencoder, or an LDM checkpoint",
            )
    family = family_of(unet.config.cross_attention_dim) if unet is not None else "other"
    return StableDiffusion(unet, vae, predicted_by(family, path.name), family, path)


def _unet_rename(tensors: Mapping[str, Tensor]) -> Callable[[str], str | None]:
    """The renaming rule for this many ResNets per level, which sets where the LDM layout puts a level's end."""
    ends = [int(m[1]) for n in tensors if (m := re.search(r"input_blocks\.(\d+)\.0\.op\.weight$", n))]
    res_blocks = min(ends) - 1 if ends else 2
    return lambda key: keymap.unet_key(key, res_blocks)


def _build(
    cls: type,
    path: Path,
    tensors: Mapping[str, Tensor],
    prefix: str,
    rename: Callable[[str], str | None],
    configure: Callable[[Mapping[str, tuple[int, ...]]], dict[str, Any]],
    dtype: torch.dtype | None,
    load: bool,
) -> Any:
    names = keymap.select(tensors, prefix, rename)
    config = configure({name: tuple(tensors[key].shape) for name, key in names.items()})
    with empty_weights():
        module: nn.Module = cls(**config)
    source = WeightSource(path, names, dtype=dtype, label=cls.__name__)
    if cls is AutoencoderKL:
        source.dtype = pixel_dtype(dtype)
        source.transform = keymap.as_linear
    return attach(module, source, load=load)
