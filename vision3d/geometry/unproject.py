"""Depth maps to points and back. Depth is z-depth (along the optical axis) unless it says distance."""

from __future__ import annotations

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.errors import InputError


def check_depth(depth: np.ndarray, camera: Intrinsics | None = None) -> None:
    """Raise InputError unless ``depth`` is (H, W) and of the camera's size."""
    if depth.ndim != 2:
        raise InputError(f"depth of shape {depth.shape}", "give an array of shape (H, W)")
    if camera is not None and depth.shape != (camera.height, camera.width):
        raise InputError(
            f"depth of {depth.shape[1]}×{depth.shape[0]} with a camera for {camera.width}×{camera.height}",
            "resize the camera with camera.resized(width, height)",
        )


def unproject_depth(depth: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """Points of a depth map.

    Args:
        depth: (H, W) z-depth, in any unit.
        camera: intrinsics for this size.

    Returns:
        (H, W, 3) float32 points in OpenCV camera axes, in the unit of ``depth``; NaN and infinity carry over.

    Raises:
        InputError: shapes that do not fit.
    """
    depth = np.asarray(depth)
    check_depth(depth, camera)
    points = np.empty((*depth.shape, 3), np.float32)
    # Row and column factors, so that a large map needs no (H, W, 2) grid of coordinates.
    points[..., 0] = depth * ((np.arange(camera.width) + 0.5 - camera.cx) / camera.fx)
    points[..., 1] = depth * ((np.arange(camera.height) + 0.5 - camera.cy) / camera.fy)[:, None]
    points[..., 2] = depth
    return points


def depth_to_distance(depth: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """z-depth (H, W) to distance from the camera's centre along each pixel's ray, float32."""
    depth = np.asarray(depth)
    check_depth(depth, camera)
    return (depth * np.linalg.norm(camera.rays(), axis=-1)).astype(np.float32)


def distance_to_depth(distance: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """Distance along each pixel's ray (H, W) to z-depth, float32."""
    distance = np.asarray(distance)
    check_depth(distance, camera)
    return (distance / np.linalg.norm(camera.rays(), axis=-1)).astype(np.float32)
