"""Large images in pieces: each tile knows its own scale only, so tiles are fitted to a view of the whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vision3d.geometry.affine import fit_scale_shift
from vision3d.geometry.tiling import Tiling, ramp


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
        share = torch.outer(ramp(bottom - top), ramp(right - left)).to(fitted)
        total[window] += fitted * share
        weight[window] += share
    return total / weight
