"""Surface normals of depth maps and point grids: unit length, camera axes, pointing towards the camera."""

from __future__ import annotations

from typing import Any

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.geometry.unproject import unproject_depth


def normals_from_depth(depth: np.ndarray, camera: Intrinsics, valid: np.ndarray | None = None) -> np.ndarray:
    """(H, W, 3) float32 normals of a z-depth map (H, W); see :func:`normals_from_points`."""
    return normals_from_points(unproject_depth(depth, camera), valid)


def normals_from_points(points: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Normals of a grid of points by cross products of its two directions.

    In each direction the central difference is used where both neighbours lie on one surface, else the side
    whose step is clearly smaller, so that normals do not bend across depth edges.

    Args:
        points: (H, W, 3) in camera axes; non-finite points count as missing.
        valid: (H, W) bool, or None.

    Returns:
        (H, W, 3) float32 with n · ray < 0; zero where no normal can be computed.
    """
    grid = np.asarray(points, dtype=np.float64)
    there = np.asarray(np.isfinite(grid).all(axis=-1))
    if valid is not None:
        there &= valid
    grid = np.where(there[..., None], grid, np.nan)
    right, down = _tangent(grid, axis=1), _tangent(grid, axis=0)
    normals = np.cross(down, right)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        normals = normals / length
    facing_away = np.einsum("hwc,hwc->hw", normals, grid) > 0
    normals[facing_away] *= -1
    normals[~np.isfinite(normals).all(axis=-1)] = 0
    return normals.astype(np.float32)


def normals_by_plane_fit(
    depth: np.ndarray,
    camera: Intrinsics,
    valid: np.ndarray | None = None,
    *,
    radius: int = 7,
    min_share: float = 0.6,
    max_residual: float = 0.005,
) -> np.ndarray:
    """Normals of a noisy or incomplete z-depth map: a plane through the square window around each pixel.

    A plane n · P = d is affine in inverse depth, 1/z = (n · ray)/d with ray = (x/z, y/z, 1), so one linear least
    squares in inverse depth gives n; there the noise of stereo and structured light is also the same everywhere.

    Args:
        depth: (H, W) metres; what is not positive and finite is missing.
        camera: its intrinsics.
        valid: (H, W) bool, or None.
        radius: the window has 2 · radius + 1 pixels on a side.
        min_share: of the window's pixels that must have depth; at the border those outside count as missing.
        max_residual: largest root mean square of the residuals relative to the window's mean inverse depth, which
            leaves out depth edges and creases. The default suits windows that see about 1.5 degrees.

    Returns:
        (H, W, 3) float32 with n · ray < 0; zero where no plane fits.

    Raises:
        InputError: shapes that do not fit, or a window of a single pixel.
    """
    import cv2

    depth = np.asarray(depth, np.float64)
    if depth.shape != (camera.height, camera.width) or (valid is not None and valid.shape != depth.shape):
        raise InputError(
            f"depth {depth.shape} for a camera of {(camera.height, camera.width)}",
            "give depth, mask and intrinsics of one size",
        )
    if radius < 1:
        raise InputError(f"windows of radius {radius}", "give at least 1 pixel")
    there = np.isfinite(depth) & (depth > 0)
    if valid is not None:
        there &= valid
    inverse = np.where(there, 1 / np.where(there, depth, 1), 0)
    u = np.where(there, np.arange(camera.width) + 0.5 - camera.cx, 0)
    v = np.where(there, np.arange(camera.height)[:, None] + 0.5 - camera.cy, 0)
    side = 2 * radius + 1

    def window_sum(values: np.ndarray) -> np.ndarray:
        border = cv2.BORDER_CONSTANT
        return cv2.boxFilter(values, cv2.CV_64F, (side, side), normalize=False, borderType=border)

    count = window_sum(there.astype(np.float64))
    dense = there & (count >= max(3.0, min_share * side**2))
    means = [window_sum(values)[dense] / count[dense] for values in (u, v, inverse)]

    def covariance(i: int, j: int) -> np.ndarray:
        values = (u, v, inverse)
        return window_sum(values[i] * values[j])[dense] / count[dense] - means[i] * means[j]

    uu, uv, vv, uw, vw, ww = (covariance(i, j) for i, j in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2)))
    determinant = uu * vv - uv**2
    spans = determinant > 1e-3  # square pixels²; pixels on one line determine no plane
    determinant = np.where(spans, determinant, 1)
    slope_u, slope_v = (uw * vv - vw * uv) / determinant, (vw * uu - uw * uv) / determinant
    residual = np.sqrt(np.maximum(ww - slope_u * uw - slope_v * vw, 0))
    level = means[2] - slope_u * means[0] - slope_v * means[1]
    plane = np.stack([slope_u * camera.fx, slope_v * camera.fy, level], axis=-1)
    # The plane's inverse depth at the pixel is positive where the surface is in front of the camera.
    seen = level + slope_u * u[dense] + slope_v * v[dense] > 0
    unit = -plane / np.maximum(np.linalg.norm(plane, axis=-1, keepdims=True), 1e-12)
    fits = spans & seen & (residual <= max_residual * means[2])
    normals = np.zeros((*depth.shape, 3), np.float32)
    normals[dense] = np.where(fits[:, None], unit, 0)
    return normals


def _tangent(grid: np.ndarray, axis: int) -> np.ndarray:
    """Derivative of the points along one axis of the grid; NaN where neither neighbour is there."""
    step = np.diff(grid, axis=axis)
    missing = np.full_like(np.take(step, [0], axis=axis), np.nan)
    forward = np.concatenate([step, missing], axis=axis)
    backward = np.concatenate([missing, step], axis=axis)
    size_f = np.abs(forward[..., 2])
    size_b = np.abs(backward[..., 2])
    only_f = np.isnan(size_b) | (size_b > 3 * size_f + 1e-4 * np.abs(grid[..., 2]))
    only_b = np.isnan(size_f) | (size_f > 3 * size_b + 1e-4 * np.abs(grid[..., 2]))
    tangent = (forward + backward) / 2
    tangent = np.where(only_f[..., None], forward, tangent)
    return np.where((only_b & ~(only_f & only_b))[..., None], backward, tangent)


# Frames -------------------------------------------------------------------------------------------------

FRAMES = {
    "opencv": (1, 1, 1),
    "opengl": (1, -1, -1),
    "directx": (1, 1, -1),
    "stablenormal": (-1, -1, -1),
    "marigold": (1, -1, -1),
}
"""Signs that take a vector in OpenCV camera axes (x right, y down, z forward) to another frame.

``opengl``: x right, y up, z to the viewer, also the green-up convention of tangent-space pictures, and Marigold's;
``directx``: x right, y down, z to the viewer (green-down pictures); ``stablenormal``: x left, y up, z to the camera,
what the published networks predict.
"""


def convert_normals(normals: Any, source: str, target: str) -> Any:
    """Normals with the last axis x, y, z in another of :data:`FRAMES`; arrays and tensors alike.

    Raises:
        InputError: no such frame.
    """
    for name in (source, target):
        if name not in FRAMES:
            raise InputError(f"no frame is called {name!r}", f"choose from {', '.join(FRAMES)}")
    signs = [a * b for a, b in zip(FRAMES[source], FRAMES[target], strict=True)]
    if isinstance(normals, np.ndarray):
        return normals * np.array(signs, normals.dtype)
    return normals * normals.new_tensor(signs)


def rotate_normals(normals: np.ndarray, cam_to_world: np.ndarray) -> np.ndarray:
    """Normals in OpenCV camera axes ``(..., 3)`` in world axes.

    Args:
        normals: unit vectors; zero vectors stay zero.
        cam_to_world: (4, 4) or (3, 3) pose of the camera (OpenCV axes); only its rotation matters.

    Raises:
        InputError: the pose's rotation is none.
    """
    rotation = np.asarray(cam_to_world, np.float64)[:3, :3]
    if rotation.shape != (3, 3) or not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4):
        raise InputError("a pose whose rotation is not orthonormal", "give a camera-to-world matrix of 4 × 4")
    return (normals.astype(np.float64) @ rotation.T).astype(np.float32)
