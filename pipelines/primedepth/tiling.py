"""Large images in pieces: each tile knows its own scale only, so tiles are fitted to a view of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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


def fit_scale_shift(values: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares scale and shift per row that take ``values`` (B, N) to ``reference`` (B, N), each ``(B, 1)``.

    A tile whose best scale is not positive keeps scale 1 (it is flat, or contradicts the whole): only shifted.
    """
    mean_v, mean_r = values.mean(1, keepdim=True), reference.mean(1, keepdim=True)
    variance = (values - mean_v).square().mean(1, keepdim=True)
    covariance = ((values - mean_v) * (reference - mean_r)).mean(1, keepdim=True)
    scale = covariance / variance.clamp_min(1e-12)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, mean_r - scale * mean_v


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
        scale, shift = fit_scale_shift(part.flatten(1), reference[window].flatten(1))
        fitted = part * scale[..., None, None] + shift[..., None, None]
        ramp = torch.outer(_ramp(bottom - top), _ramp(right - left)).to(fitted)
        total[window] += fitted * ramp
        weight[window] += ramp
    return total / weight


def _ramp(length: int) -> Tensor:
    """A Hann-like weight that stays above zero at the ends."""
    position = (torch.arange(length) + 0.5) / length
    return (torch.sin(torch.pi * position) ** 2).clamp_min(1e-3)
