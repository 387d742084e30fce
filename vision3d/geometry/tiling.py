"""Large maps in overlapping pieces: where the tiles lie, and how much each counts where they overlap."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def _starts(length: int, tile: int) -> list[int]:
    """Starts of equal tiles that cover ``length``, overlapping by about a quarter; multiples of 8 but for the last."""
    if length <= tile:
        return [0]
    count = -(-(length - tile // 4) // (tile - tile // 4))
    last = length - tile
    return sorted({min(last, round(last * i / (count - 1) / 8) * 8) for i in range(count - 1)} | {last})


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


def ramp(length: int) -> Tensor:
    """A Hann-like weight that stays above zero at the ends."""
    position = (torch.arange(length) + 0.5) / length
    return (torch.sin(torch.pi * position) ** 2).clamp_min(1e-3)
