"""Directions of the rays of batches of cameras, in torch: for training. One camera: ``Intrinsics.rays``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

AZIMUTH = (-0.31, 0.31)
"""Range of theta / pi, the azimuth, that a Camera Image can hold (Deng et al., DM-Calib, section 3.1)."""
POLAR = (0.21, 0.79)
"""Range of phi / pi there, the polar angle from the +y axis."""
GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in its third channel."""


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


def angle_channels(
    angles: Tensor,  # (B, 2, H, W), azimuth and elevation in radians
) -> Tensor:  # (B, 2, H, W) in [-1, 1]
    """The first two channels of Camera Images; see :mod:`vision3d.pipelines.dmcalib.camera_image`."""
    azimuth, elevation = (angles / math.pi).unbind(1)
    span, polar = AZIMUTH[1] - AZIMUTH[0], POLAR[1] - POLAR[0]
    return torch.stack([2 * azimuth / span, -2 * elevation / polar], dim=1).clamp(-1, 1)
