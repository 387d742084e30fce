"""What happens to pixels before the first network and after the last one (StableNormal and Marigold's rules)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from vision3d.errors import InputError

GRID = 64
"""Sides of the image that the predictor hands to the pipeline are multiples of this."""


def working_size(height: int, width: int, resolution: int) -> tuple[int, int]:
    """Size at which the published predictor hands an image on: longest side about ``resolution``, multiples of 64.

    The aspect ratio is not quite kept. Halves are rounded to even; no side becomes 0.
    """
    scale = resolution / max(height, width)
    return tuple(max(GRID, round(side * scale / GRID) * GRID) for side in (height, width))  # type: ignore[return-value]


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pillow's LANCZOS resize of ``(H, W, 3)`` or ``(H, W)`` uint8 to ``size`` (height, width)."""
    if image.shape[:2] == tuple(size):
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour resize of a bool mask ``(H, W)``."""
    if mask.shape[:2] == tuple(size):
        return mask
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.NEAREST)) > 127


@dataclass(frozen=True)
class Canvas:
    """How an image lies in the tensor that the networks see.

    Attributes:
        size: (height, width) that the result is resized to: that of the image before preprocessing.
        pad: rows and columns that were added at the bottom and at the right.
    """

    size: tuple[int, int]
    pad: tuple[int, int]


def preprocess(images: Tensor, resolution: int) -> tuple[Tensor, Canvas]:
    """Images for the autoencoder.

    Longest side to ``resolution`` (smaller images grow, too), bilinear with antialiasing, the other side rounded
    down; the last row and column repeated up to a multiple of 8.

    Args:
        images: ``(B, 3, H, W)`` in [0, 1].
        resolution: longest side in pixels; 0 keeps the size.

    Returns:
        ``(B, 3, h, w)`` in [-1, 1], and where the image lies in it.
    """
    height, width = images.shape[-2:]
    x = images * 2 - 1
    if resolution:
        longest = max(height, width)
        size = tuple(max(1, side * resolution // longest) for side in (height, width))
        x = F.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
    pad = (-x.shape[-2] % 8, -x.shape[-1] % 8)
    return F.pad(x, (0, pad[1], 0, pad[0]), mode="replicate"), Canvas((height, width), pad)


def unit(vectors: Tensor, dim: int = 1) -> Tensor:
    """Vectors of length 1; lengths below 1e-6 count as 1e-6, as published."""
    return vectors / torch.linalg.vector_norm(vectors, dim=dim, keepdim=True).clamp_min(1e-6)


def postprocess(decoded: Tensor, canvas: Canvas, *, one_step: bool, resize: bool = True) -> Tensor:
    """Unit normals of what the decoder gave.

    The one-step pipeline normalises before and after resizing, the two-stage one only after, and clips.

    Args:
        decoded: ``(B, 3, h, w)``.
        canvas: from :func:`preprocess`.
        one_step: which of the two.
        resize: back to the image's size; otherwise the network's own size is kept.

    Returns:
        ``(B, 3, H, W)`` in the raw frame.
    """
    x = unit(decoded) if one_step else decoded
    x = x[:, :, : x.shape[-2] - canvas.pad[0], : x.shape[-1] - canvas.pad[1]]
    if resize and tuple(x.shape[-2:]) != tuple(canvas.size):
        x = F.interpolate(x, size=canvas.size, mode="bilinear", align_corners=False)
    x = unit(x)
    return x if one_step else x.clamp(-1, 1)


def encode_8bit(normals: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """The published picture of normals ``(H, W, 3)``: ``(n + 1) / 2 * 255`` truncated to uint8, invalid white."""
    values = (np.clip(normals, -1, 1) + 1) / 2
    if valid is not None:
        values = np.where(valid[..., None], values, 1.0)
    return (values * 255).astype(np.uint8)


def check_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A person's own mask as bool at the photograph's size: numbers above the middle of their range are inside.

    Args:
        mask: (H, W), or (H, W, C) whose first channel counts, or the last of 2 or 4 where the mask is transparent
            here and there. The range is that of uint8, uint16 or [0, 1]; of other integers, 0 to their largest value.
        size: (height, width) of the photograph.

    Raises:
        InputError: it is no picture, or of another aspect ratio.
    """
    mask = np.asarray(mask)
    if mask.ndim not in (2, 3) or 0 in mask.shape:
        raise InputError(f"mask of shape {mask.shape}", "give a picture with one channel")
    if mask.ndim == 3:
        alpha = mask[..., -1]
        transparent = mask.shape[-1] in (2, 4) and alpha.min() < alpha.max()
        mask = alpha if transparent else mask[..., 0]
    wide, expected = mask.shape[1] / mask.shape[0], size[1] / size[0]
    if abs(wide / expected - 1) > 0.02:
        raise InputError(
            f"a mask of {mask.shape[1]}×{mask.shape[0]} for a photograph of {size[1]}×{size[0]}",
            "give a mask of the same shape",
        )
    if mask.dtype != bool:
        tops = {"uint8": 255, "uint16": 65535}
        top = tops.get(mask.dtype.name, mask.max()) if mask.dtype.kind in "iu" else 1.0
        mask = mask > top / 2 if mask.max() > 1 or mask.dtype.kind == "f" else mask > 0
    return resize_mask(mask, size)
