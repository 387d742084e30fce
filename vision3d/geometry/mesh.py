"""Triangle meshes of depth maps: the pixel grid, thinned, without the sheets that would span depth edges."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vision3d.errors import InputError


@dataclass
class TriangleMesh:
    """Vertices and triangles in OpenCV axes; seen from the outside, triangles go counter-clockwise.

    Attributes:
        vertices: (N, 3) float32.
        faces: (M, 3) int32 indices into ``vertices``.
        uv: (N, 2) float32 texture coordinates, (0, 0) at the image's top left corner, (1, 1) at its bottom
            right.
        colours: (N, 3) uint8.
        normals: (N, 3) float32.
        texture: (h, w, 3) uint8 image that ``uv`` refers to.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray | None = None
    colours: np.ndarray | None = None
    normals: np.ndarray | None = None
    texture: np.ndarray | None = None

    def __repr__(self) -> str:
        extras = [n for n in ("uv", "colours", "normals", "texture") if getattr(self, n) is not None]
        tail = f" with {', '.join(extras)}" if extras else ""
        return f"TriangleMesh of {len(self.vertices):,} vertices and {len(self.faces):,} triangles{tail}"


def grid_samples(size: int, step: float) -> np.ndarray:
    """Indices 0 … size - 1 about ``step`` apart, both ends included."""
    count = min(size, max(2, math.ceil((size - 1) / step) + 1))
    return np.unique(np.round(np.linspace(0, size - 1, count)).astype(np.int64))


def decimation_step(height: int, width: int, at_most: int) -> float:
    """Spacing of grid samples (≥ 1 pixel) that keeps their number at or below ``at_most`` (≥ 4)."""
    if at_most < 4:
        raise InputError(f"at most {at_most} points", "give 4 or more")
    step = max(1.0, math.sqrt(height * width / at_most))
    while len(grid_samples(height, step)) * len(grid_samples(width, step)) > at_most:
        step *= 1.01
    return step


def grid_mesh(
    points: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    max_vertices: int = 250_000,
    max_jump: float = 0.05,
    max_incidence: float = 87.0,
) -> TriangleMesh:
    """Mesh of a grid of points seen by a camera at the origin, cut at depth discontinuities.

    A triangle is left out when one of its edges jumps in depth by more than ``max_jump`` (relative to the
    nearer end, per pixel of the original grid), or when its surface is seen at more than ``max_incidence``
    degrees from
    its normal: the sheet between a foreground and its background is hardly ever real. Each quad is split
        along the
    diagonal with the smaller jump.

    Args:
        points: (H, W, 3) in camera axes; non-finite points and z ≤ 0 are left out.
        valid: (H, W) bool, or None.
        max_vertices: the grid is thinned to at most so many.
        max_jump: relative depth step per pixel above which an edge is cut.
        max_incidence: angle in degrees between a triangle's normal and the ray to it above which it is cut.

    Returns:
        A mesh with ``uv``; triangles face the camera.

    Raises:
        InputError: another shape, or no triangle is left.
    """
    points = np.asarray(points)
    if points.ndim != 3 or points.shape[-1] != 3:
        raise InputError(f"points of shape {points.shape}", "give an array of shape (H, W, 3)")
    height, width = points.shape[:2]
    step = decimation_step(height, width, max_vertices)
    rows, columns = grid_samples(height, step), grid_samples(width, step)
    grid = points[np.ix_(rows, columns)].astype(np.float32)
    there = np.isfinite(grid).all(axis=-1) & (grid[..., 2] > 0)
    if valid is not None:
        there &= valid[np.ix_(rows, columns)]
    z = np.where(there, grid[..., 2], 1).astype(np.float64)

    # Corners of each quad: a b over c d.
    index = np.arange(z.size, dtype=np.int32).reshape(z.shape)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    flat_z = z.reshape(-1)
    split_bc = np.abs(np.log(flat_z[b] / flat_z[c])) <= np.abs(np.log(flat_z[a] / flat_z[d]))
    first = np.where(split_bc[..., None], np.stack([a, c, b], -1), np.stack([a, c, d], -1))
    second = np.where(split_bc[..., None], np.stack([b, c, d], -1), np.stack([a, d, b], -1))
    faces = np.concatenate([first.reshape(-1, 3), second.reshape(-1, 3)])
    faces = faces[there.reshape(-1)[faces].all(axis=-1)]
    faces = faces[_continuous(grid.reshape(-1, 3), flat_z, faces, max_jump * step, max_incidence)]
    if not len(faces):
        raise InputError("no surface is left after cutting depth edges", "raise max_jump or max_incidence")

    used = np.zeros(z.size, bool)
    used[faces] = True
    renumber = np.cumsum(used, dtype=np.int32) - 1
    u, v = np.meshgrid((columns + 0.5) / width, (rows + 0.5) / height)
    uv = np.stack([u, v], axis=-1).reshape(-1, 2).astype(np.float32)
    order = np.argsort(
        faces[:, 0], kind="stable"
    )  # neighbours in the file: kinder to vertex caches and compressors
    return TriangleMesh(grid.reshape(-1, 3)[used], renumber[faces[order]], uv=uv[used])


def _continuous(
    vertices: np.ndarray, z: np.ndarray, faces: np.ndarray, max_jump: float, max_incidence: float
) -> np.ndarray:
    """(M,) bool: neither a depth jump along an edge nor a grazing view."""
    corner_z = z[faces]
    keep = corner_z.max(axis=-1) <= (1 + max_jump) * corner_z.min(axis=-1)
    p = vertices[faces].astype(np.float64)
    normals = np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0])
    centres = p.mean(axis=1)
    size = np.linalg.norm(normals, axis=-1) * np.linalg.norm(centres, axis=-1)
    cosine = -np.einsum("nc,nc->n", normals, centres) / np.maximum(size, 1e-300)
    return keep & (cosine >= math.cos(math.radians(max_incidence)))
