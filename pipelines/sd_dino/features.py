"""What Stable Diffusion holds of an image: four tiles, one lightly noised pass each, three taps (section 3.2).

The published method calls the tensors by where they enter the decoder of the original code: ``s5``, ``s4``, ``s3``
and ``s2``, at 1/64, 1/32, 1/16 and 1/8 of the image; ``dift0`` to ``dift3`` are where the decoder's levels end. Nothing
after the last one asked for is computed, and nothing of the image decoder at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor

from vision3d.backbone.schedule import add_noise
from vision3d.backbone.unet import read_taps, tap_name
from vision3d.errors import InputError
from vision3d.pipelines.sd_dino.options import STRIDES

TILE = 512
LEVELS = {"s5": 0, "s4": 1, "s3": 2, "s2": 3}
"""Decoder level at whose end the tap lies."""
TapMode = Literal["decoder", "concat", "encoder", "resblock"]


def tile_boxes(height: int, width: int, tile: int | None = TILE) -> list[tuple[int, int, int, int]]:
    """Tiles (top, left, height, width) that cover an image, row by row; the last ones are shifted back to fit.

    Args:
        height, width: of the image in pixels.
        tile: largest side of a tile; None takes the whole image as one.
    """
    if tile is None:
        return [(0, 0, height, width)]
    side = min(tile, height, width)

    def origins(length: int) -> list[int]:
        return [min(i * side, length - side) for i in range(max(length - 1, 0) // side + 1)]

    return [(top, left, side, side) for top in origins(height) for left in origins(width)]


def feature_size(height: int, width: int, name: str) -> tuple[int, int]:
    """Cells of a tap over an image."""
    return height // STRIDES[name], width // STRIDES[name]


def check_size(height: int, width: int, tile: int | None) -> None:
    """Refuses image sizes whose tiles would not lie on the cells.

    Raises:
        InputError: a side that is no multiple of 64, or tiles that are none.
    """
    if min(height, width) < 64 or height % 64 or width % 64:
        raise InputError(
            f"an image of {width}x{height} for Stable Diffusion", "use sides that are multiples of 64"
        )
    if tile is not None and (tile < 64 or tile % 64):
        raise InputError(f"tile {tile}", "use a multiple of 64, 512 as published")


def cut_tiles(image: Tensor, boxes: Sequence[tuple[int, int, int, int]]) -> Tensor:
    """Tiles ``(N, 3, h, w)`` of one image ``(3, H, W)``."""
    return torch.stack([image[:, top : top + h, left : left + w] for top, left, h, w in boxes])


def average_tiles(
    parts: Tensor,  # [N, C, h, w], one per box
    boxes: Sequence[tuple[int, int, int, int]],
    size: tuple[int, int],
    stride: int,
) -> Tensor:
    """The features of an image ``(C, *size)``: tiles at their places, averaged where they overlap."""
    total = parts.new_zeros((parts.shape[1], *size))
    count = parts.new_zeros(size)
    for part, (top, left, _, _) in zip(parts, boxes, strict=True):
        rows = slice(top // stride, top // stride + part.shape[-2])
        columns = slice(left // stride, left // stride + part.shape[-1])
        total[:, rows, columns] += part
        count[rows, columns] += 1
    return total / count


def noised(latents: Tensor, noise: Tensor, t: int) -> tuple[Tensor, int]:
    """Noisy latents and the step the UNet is told; a negative ``t`` means no noise and step 0, 0 does not."""
    return (latents, 0) if t < 0 else (add_noise(latents, noise, t), t)


def tap_modes(unet: UNet2DConditionModel, names: Sequence[str], mode: TapMode) -> dict[str, str]:
    """For each of ``s5`` … ``s2``, the intermediate that a tap mode reads (names of :mod:`vision3d.backbone.unet`).

    ``dift0`` … ``dift3`` are read by ``decoder`` alone.

    ``decoder``: what enters the last block of a level, before the skip is concatenated (the method's default).
    ``concat``: after it; ``encoder``: only the skip; ``resblock``: that block's output (from which
    :func:`read_features` subtracts the shortcut).

    Raises:
        InputError: no such tap or mode.
    """
    if mode not in get_args(TapMode):
        raise InputError(f"tap mode {mode!r}", f"choose one of {', '.join(get_args(TapMode))}")
    unknown = [name for name in names if name not in STRIDES]
    if unknown:
        raise InputError(f"no tap {unknown[0]!r}", f"choose from {', '.join(STRIDES)}")
    if mode == "decoder":
        return {name: tap_name(unet, name) for name in names}
    unknown = [name for name in names if name not in LEVELS]
    if unknown:
        raise InputError(f"tap {unknown[0]!r} in mode {mode!r}", f"choose from {', '.join(LEVELS)}")
    per_level = len(unet.up_blocks[0].resnets)
    last = per_level - 1
    skips = per_level * len(unet.up_blocks) - 1
    found = {}
    for name in names:
        place = LEVELS[name] * per_level + last
        found[name] = {
            "concat": f"in{place}",
            "encoder": f"d{skips - place}",
            "resblock": f"u{LEVELS[name]}r{last}",
        }[mode]
    return found


@torch.no_grad()
def read_features(
    unet: UNet2DConditionModel,
    noisy: Tensor,  # [B, 4, h, w]
    t: int,
    context: Tensor,  # [1 or B, tokens, width]
    names: Sequence[str] = ("s5", "s4", "s3"),
    *,
    time_add: Tensor | None = None,
    mode: TapMode = "decoder",
) -> dict[str, Tensor]:
    """Taps of noisy latents by name; the pass ends at the last one."""
    places = tap_modes(unet, names, mode)
    wanted = set(places.values())
    if mode == "resblock":
        inputs = tap_modes(unet, names, "concat")
        wanted |= set(inputs.values())
    found = read_taps(unet, noisy, t, context, sorted(wanted), time_add=time_add)
    if mode != "resblock":
        return {name: found[place] for name, place in places.items()}
    result = {}
    for name, place in places.items():
        shortcut = unet.up_blocks[LEVELS[name]].resnets[-1].conv_shortcut
        entering = found[inputs[name]]
        result[name] = found[place] - (entering if shortcut is None else shortcut(entering))
    return result


def resize_map(features: Tensor, size: tuple[int, int]) -> Tensor:
    """A feature map ``(C, h, w)`` at another grid, bilinear, cells as areas (``align_corners=False``)."""
    if tuple(features.shape[-2:]) == tuple(size):
        return features
    return F.interpolate(features[None], size=size, mode="bilinear", align_corners=False)[0]


def sample_map(features: Tensor, middles: tuple[Tensor, Tensor], side: int) -> Tensor:
    """A map ``(C, h, w)`` of a square canvas at other places, bilinear: ``(C, len(y), len(x))``.

    Args:
        features: the map; its cells divide the canvas evenly.
        middles: canvas coordinates y and x.
        side: of the canvas, in the same units.
    """
    y, x = (2 * m.to(features) / side - 1 for m in middles)
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    return F.grid_sample(features[None], grid[None], align_corners=False, padding_mode="border")[0]
