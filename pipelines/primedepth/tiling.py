"""Large images in pieces: each tile knows its own scale only, so tiles are fitted to a view of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vision3d.geometry.affine import fit_scale_shift


def _starts(length: int, tile: int) -> list[int]:
    """Starts (multiples of 8) of equal tiles that cover ``length`` with at least a quarter of overlap."""
    if length <= tile:
        return [0]
    count = -(-(length - tile // 4) // (tile - tile // 4))
    last = length - tile
    return sorted({min(last, round(last * i / (count - 1) / 8) * 8) for i in range(count)})


@dataclass(frozen=True)
class Tiling:
    """Overlapping tiles of side ``tile`` over an image of ``height x width`` pixels."""

    height: int
    width: int
    tile: int

    @property
    def boxes(self) -> list[tuple[int, int, int, int]]:
        """``(top, left, bottom, right)`` of every tile, row by row."""
        return [
            (top, left, min(top + self.tile, self.height), min(left + self.tile, self.width))
            for top in _starts(self.height, self.tile)
            for left in _starts(self.width, self.tile)
        ]


def blend_tiles(parts: Sequence[Tensor], tiling: Tiling, reference: Tensor) -> Tensor:
    """One map ``(B, 1, H, W)`` from tiles fitted to ``reference`` and cross-faded where they overlap.

    Args:
        parts: ``(B, 1, h, w)`` for every box of the tiling.
        tiling: where the tiles lie.
        reference: prediction for the whole image, enlarged to ``(B, 1, H, W)``.
    """
    total, weight = torch.zeros_like(reference), torch.zeros_like(reference)
    for (top, left, bottom, right), part in zip(tiling.boxes, parts, strict=True):
        window = (slice(None), slice(None), slice(top, bottom), slice(left, right))
        scale, shift = fit_scale_shift(part[:, 0], reference[window][:, 0])
        if (scale <= 0).any():  # flat, or contradicting the whole: it is only shifted
            flat = scale <= 0
            scale = torch.where(flat, 1.0, scale)
            means = (reference[window] - part).mean((1, 2, 3))[:, None, None]
            shift = torch.where(flat, means, shift)
        fitted = part * scale[:, None] + shift[:, None]
        ramp = torch.outer(_ramp(bottom - top), _ramp(right - left)).to(fitted)
        total[window] += fitted * ramp
        weight[window] += ramp
    return total / weight


def _ramp(length: int) -> Tensor:
    """A Hann-like weight that stays above zero at the ends."""
    position = (torch.arange(length) + 0.5) / length
    return (torch.sin(torch.pi * position) ** 2).clamp_min(1e-3)
