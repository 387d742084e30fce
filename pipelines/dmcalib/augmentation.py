"""Geometric augmentation of photographs with intrinsics (DM-Calib's training): what a picture's camera becomes.

All matrices map pixels with centres at +0.5; ``K`` are (3, 3) without skew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


def crop_zoom_transform(
    width: int, height: int, enlarged: tuple[int, int], offset: tuple[int, int]
) -> np.ndarray:
    """(3, 3) that takes a pixel of a window of the enlarged picture to the pixel of the picture it came from.

    Args:
        width, height: of the picture, and of the window.
        enlarged: (width, height) that the picture is enlarged to.
        offset: of the window there, (x, y).
    """
    sx, sy = width / enlarged[0], height / enlarged[1]
    return np.array([[sx, 0.0, offset[0] * sx], [0.0, sy, offset[1] * sy], [0.0, 0.0, 1.0]])


def crop_zoom(
    image: np.ndarray, K: np.ndarray, enlarged: tuple[int, int], offset: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A window of the original size out of the enlarged picture, sampled bilinearly in one go.

    Args:
        image: (C, H, W) float.
        K: (3, 3) intrinsics of it.
        enlarged: (width, height) to enlarge to.
        offset: of the window, (x, y), in enlarged pixels.

    Returns:
        picture (C, H, W) float32, intrinsics (3, 3) float64, and the transform from its pixels to the input's.
    """
    height, width = image.shape[1:]
    transform = crop_zoom_transform(width, height, enlarged, offset)
    sampled = sample_bilinear(torch.from_numpy(np.ascontiguousarray(image))[None], transform)[0].numpy()
    return sampled, np.linalg.inv(transform) @ np.asarray(K, np.float64), transform


def sample_bilinear(images: torch.Tensor, transform: np.ndarray) -> torch.Tensor:
    """Images (B, C, H, W) seen through ``transform`` (output to input pixels), as the published code samples.

    Its grid is normalised as 2 x / W - 1 and read with aligned corners, which shifts the picture by up to half a
    pixel; outside there is black.
    """
    height, width = images.shape[-2:]
    u, v = np.arange(width) + 0.5, np.arange(height) + 0.5
    x = (transform[0, 0] * u + transform[0, 2]) / width * 2 - 1
    y = (transform[1, 1] * v + transform[1, 2]) / height * 2 - 1
    grid = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1)
    where = torch.from_numpy(grid).to(images)[None].expand(len(images), -1, -1, -1)
    return F.grid_sample(images, where, mode="bilinear", padding_mode="zeros", align_corners=True)


def zoomed(K: np.ndarray, factor: float) -> np.ndarray:
    """Intrinsics of a picture that is enlarged about its principal point and cut to its size: longer focal lengths."""
    K = np.array(K, np.float64)
    K[0, 0] *= factor
    K[1, 1] *= factor
    return K


def centre_cropped(K: np.ndarray, factor: float) -> np.ndarray:
    """Intrinsics of the central ``1 / factor`` of a picture whose principal point is in the middle."""
    K = np.array(K, np.float64)
    K[0, 2] /= factor
    K[1, 2] /= factor
    return K


@dataclass(frozen=True)
class ResizedCrop:
    """A random resized crop for depth: scaled until the short axis covers the target, then a window.

    Attributes:
        enlarged: (width, height) after scaling.
        offset: of the window, (x, y).
        size: (width, height) of the window.
    """

    enlarged: tuple[int, int]
    offset: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def draw(
        cls,
        width: int,
        height: int,
        size: tuple[int, int],
        rng: np.random.Generator,
        zoom: tuple[float, float] = (1.0, 1.2),
    ) -> ResizedCrop:
        """One for a picture of ``width`` × ``height``."""
        scale = max(size[0] / width, size[1] / height) * rng.uniform(*zoom)
        enlarged = max(size[0], math.ceil(width * scale)), max(size[1], math.ceil(height * scale))
        x, y = (int(rng.integers(0, e - s + 1)) for e, s in zip(enlarged, size, strict=True))
        return cls(enlarged, (x, y), size)

    def intrinsics(self, K: np.ndarray, width: int, height: int, *, mean_offset: bool = False) -> np.ndarray:
        """Intrinsics of the window.

        Args:
            K: of the picture.
            width, height: of the picture.
            mean_offset: subtract the mean offset instead of the window's own, as the published helper does; wrong
                for windows that are off the middle.
        """
        K = np.array(K, np.float64)
        K[0] *= self.enlarged[0] / width
        K[1] *= self.enlarged[1] / height
        centre = tuple((e - s) / 2 for e, s in zip(self.enlarged, self.size, strict=True))
        x, y = centre if mean_offset else self.offset
        K[0, 2] -= x
        K[1, 2] -= y
        return K


def zero_bands(height: int, width: int, rng: np.random.Generator, largest: int = 30) -> tuple[slice, slice]:
    """The rows and columns that stay when two opposite sides get black bands of up to ``largest`` pixels.

    The Camera Image is -1 in the bands, and depth is not known there.
    """
    first, second = (int(n) for n in rng.integers(0, largest + 1, 2))
    if rng.random() < 0.5:
        return slice(first, max(first + 1, height - second)), slice(0, width)
    return slice(0, height), slice(first, max(first + 1, width - second))


def resize_sparse_depth(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Sparse depth (H, W), 0 where unknown, moved to a grid of ``size`` (height, width).

    Every point keeps its value; where several fall into one pixel, the nearest to the camera stays.
    """
    rows, columns = np.nonzero(depth)
    values = depth[rows, columns]
    out = np.full(size, np.inf, np.float64)
    target = (
        np.minimum((rows + 0.5) * size[0] / depth.shape[0], size[0] - 1).astype(np.int64),
        np.minimum((columns + 0.5) * size[1] / depth.shape[1], size[1] - 1).astype(np.int64),
    )
    np.minimum.at(out, target, values)
    return np.where(np.isfinite(out), out, 0).astype(np.float32)
