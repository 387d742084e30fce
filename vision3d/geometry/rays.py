"""Directions of the rays of batches of cameras, in torch: for training. One camera: ``Intrinsics.rays``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ray_angles(
    focal: Tensor,  # (B, 2), fx, fy in pixels
    centre: Tensor,  # (B, 2), cx, cy in pixels, pixel centres at +0.5
    size: Sequence[int],  # (height, width)
) -> Tensor:  # (B, 2, H, W), radians
    """Azimuth to the right and elevation downwards of the ray through every pixel's centre."""
    height, width = size
    x = (torch.arange(width, device=focal.device) + 0.5)[None] - centre[:, :1]
    y = (torch.arange(height, device=focal.device) + 0.5)[None] - centre[:, 1:]
    x, y = x / focal[:, :1], y / focal[:, 1:]
    azimuth = torch.arctan(x)[:, None, :].expand(-1, height, -1)
    elevation = torch.arctan(y[:, :, None] / torch.sqrt(1 + x.square())[:, None, :])
    return torch.stack([azimuth, elevation], dim=1)
