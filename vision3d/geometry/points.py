"""Coloured point clouds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vision3d.geometry.mesh import decimation_step, grid_samples


@dataclass
class PointCloud:
    """Points in OpenCV axes.

    Attributes:
        positions: (N, 3) float32.
        colours: (N, 3) uint8, or None.
        normals: (N, 3) float32, or None.
    """

    positions: np.ndarray
    colours: np.ndarray | None = None
    normals: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        return f"PointCloud of {len(self):,} points{' with colours' if self.colours is not None else ''}"


def grid_points(
    points: np.ndarray,
    valid: np.ndarray | None = None,
    colours: np.ndarray | None = None,
    *,
    max_points: int = 1_000_000,
) -> PointCloud:
    """Point cloud of a grid (H, W, 3) with colours (H, W, 3) uint8, thinned evenly to ``max_points``.

    Non-finite points and those with ``valid`` (H, W) False are left out.
    """
    step = decimation_step(points.shape[0], points.shape[1], max_points)
    where = np.ix_(grid_samples(points.shape[0], step), grid_samples(points.shape[1], step))
    grid = points[where]
    there = np.isfinite(grid).all(axis=-1)
    if valid is not None:
        there &= valid[where]
    return PointCloud(grid[there].astype(np.float32), None if colours is None else colours[where][there])
