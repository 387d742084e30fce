"""Large photographs in tiles: each tile's detail on the whole picture's shapes, without seams.

A tile sees too little of the scene to know how its large surfaces lie. So what the tile says beyond its own smooth
version is carried over to the smooth version of the whole, by the rotation between the two, and tiles are
cross-faded where they overlap.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vision3d.geometry.tiling import Tiling, ramp
from vision3d.pipelines.stablenormal.imaging import unit


def rotate_onto(vectors: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """``vectors`` turned by the smallest rotation that takes ``start`` to ``end``; all ``(B, 3, H, W)``, unit.

    Rodrigues' formula without angles. Where start and end are opposed the rotation is not defined, and the vectors
    are left as they are.
    """
    axis = torch.linalg.cross(start, end, dim=1)
    cosine = (start * end).sum(1, keepdim=True)
    along = (axis * vectors).sum(1, keepdim=True)
    turned = (
        cosine * vectors
        + torch.linalg.cross(axis, vectors, dim=1)
        + axis * along / (1 + cosine).clamp_min(1e-3)
    )
    return torch.where(cosine > -0.99, turned, vectors)


def smooth(normals: Tensor, radius: float) -> Tensor:
    """Directions averaged over about ``radius`` pixels, ``(B, 3, H, W)``; borders count the pixels that are there."""
    reach = max(1, round(radius))
    kernel = torch.hann_window(2 * reach + 3, periodic=False, dtype=torch.float32)[1:-1].to(normals.device)
    kernel = kernel / kernel.sum()
    x = normals.float()
    weight = torch.ones_like(x[:, :1])
    stacked = torch.cat([x, weight], 1).flatten(0, 1)[:, None]
    rows = F.conv2d(stacked, kernel[None, None, :, None], padding=(reach, 0))
    both = F.conv2d(rows, kernel[None, None, None], padding=(0, reach))
    blurred = both[:, 0].unflatten(0, (x.shape[0], 4))
    return unit(blurred[:, :3] / blurred[:, 3:])


def blend_normals(parts: Sequence[Tensor], tiling: Tiling, whole: Tensor, smoothing: float) -> Tensor:
    """One map ``(B, 3, H, W)`` from tiles and a view of the whole.

    Args:
        parts: unit normals ``(B, 3, h, w)`` for every box of the tiling.
        tiling: where the tiles lie.
        whole: unit normals of the whole picture, enlarged to ``(B, 3, H, W)``.
        smoothing: pixels of the large picture to one of the view of the whole; detail finer than some of these is
            taken from the tiles.
    """
    total, weight = torch.zeros_like(whole), torch.zeros_like(whole[:, :1])
    radius = 4 * max(smoothing, 1.0)
    base = smooth(whole, radius)
    for (top, left, bottom, right), part in zip(tiling.boxes, parts, strict=True):
        window = (slice(None), slice(None), slice(top, bottom), slice(left, right))
        fitted = rotate_onto(part, smooth(part, radius), base[window])
        share = torch.outer(ramp(bottom - top), ramp(right - left)).to(fitted)
        total[window] += fitted * share
        weight[window] += share
    return unit(total / weight)
