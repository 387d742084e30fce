"""Scale and shift between batches of maps, in torch: for losses and for tiles.

The evaluation's fits, in float64 and one map at a time, are in :mod:`vision3d.geometry.align`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fit_scale_shift(
    values: Tensor,  # [B, H, W]
    target: Tensor,  # [B, H, W]
    valid: Tensor | None = None,  # [B, H, W] bool
) -> tuple[Tensor, Tensor]:
    """Least-squares scale and shift of each map that take ``values`` to ``target``, both ``(B, 1, 1)``.

    Args:
        values: maps to be fitted.
        target: maps to fit to; finite where valid.
        valid: pixels that count; all when None.
    """
    weight = torch.ones_like(values) if valid is None else valid.to(values)
    count = weight.sum((1, 2), keepdim=True).clamp_min(1)
    mean_v = (values * weight).sum((1, 2), keepdim=True) / count
    mean_t = (target * weight).sum((1, 2), keepdim=True) / count
    v, t = (values - mean_v) * weight, (target - mean_t) * weight
    scale = (v * t).sum((1, 2), keepdim=True) / v.square().sum((1, 2), keepdim=True).clamp_min(1e-8)
    return scale, mean_t - scale * mean_v
