"""Crops, masks and ranges of the depth benchmarks, each a named function.

They follow the scripts by which published tables were made, so that numbers can be compared; where a data set
is evaluated in several ways, the one used for affine-invariant depth is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vision3d.errors import InputError

KITTI_CROP = (352, 1216)
DMCALIB_KITTI_CROP = (342, 1216)
"""The window that DM-Calib's published numbers are taken in, ten rows lower than everyone else's."""


@dataclass(frozen=True)
class DepthRange:
    """Depths in metres that are scored: predictions are clipped to it, other ground truth is left out."""

    near: float
    far: float

    def contains(self, depth: np.ndarray) -> np.ndarray:
        """Bool of the same shape: finite and strictly inside, as the published scripts mask."""
        return np.isfinite(depth) & (depth > self.near) & (depth < self.far)


NYU_RANGE = DepthRange(1e-3, 10.0)
KITTI_RANGE = DepthRange(1e-5, 80.0)
ETH3D_RANGE = DepthRange(1e-5, float("inf"))
SCANNET_RANGE = DepthRange(1e-3, 10.0)
DIODE_RANGE = DepthRange(0.6, 350.0)

# ETH3D's photographs have 24 megapixels; its fit is made on maps of at most this side.
ETH3D_FIT_RESOLUTION = 1024


def kitti_crop_origin(height: int, width: int, crop: tuple[int, int] = KITTI_CROP) -> tuple[int, int]:
    """(left, top) of KITTI's benchmark crop: 352 × 1216 pixels (or ``crop``) at the bottom, centred.

    Raises:
        InputError: the image is smaller than the crop.
    """
    crop_height, crop_width = crop
    if height < crop_height or width < crop_width:
        raise InputError(
            f"KITTI image of {width}×{height} pixels",
            f"give the originals, at least {crop_width}×{crop_height}",
        )
    return int((width - crop_width) / 2), height - crop_height


def kitti_benchmark_crop(array: np.ndarray) -> np.ndarray:
    """The benchmark crop (352, 1216, ...) of an image or map (H, W, ...) of KITTI, as a view."""
    left, top = kitti_crop_origin(*array.shape[:2])
    return array[top : top + KITTI_CROP[0], left : left + KITTI_CROP[1]]


def kitti_eigen_mask(height: int, width: int) -> np.ndarray:
    """(H, W) bool: the part of a cropped KITTI image that Eigen et al. (2014) score."""
    mask = np.zeros((height, width), dtype=bool)
    mask[
        int(0.3324324 * height) : int(0.91351351 * height),
        int(0.0359477 * width) : int(0.96405229 * width),
    ] = True
    return mask


def nyu_eigen_mask(height: int, width: int) -> np.ndarray:
    """(480, 640) bool: the part of a NYUv2 image that Eigen et al. (2014) score, rows 45:471, columns 41:601.

    Raises:
        InputError: another size.
    """
    if (height, width) != (480, 640):
        raise InputError(f"NYUv2 image of {width}×{height} pixels", "give the originals of 640×480")
    mask = np.zeros((height, width), dtype=bool)
    mask[45:471, 41:601] = True
    return mask
