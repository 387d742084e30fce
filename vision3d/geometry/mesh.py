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
    max_incidence: float = 85.0,
) -> TriangleMesh:
    """Mesh of a grid of points seen by a camera at the origin, cut at depth discontinuities.

    The sheet between a foreground and its background is hardly ever real. Two rules find it. Along a row or
    column of a plane, inverse depth is linear, so a step in inverse depth that departs from the steps beside
    it by more than ``max_jump`` of the farther end is an edge: a floor seen at a low angle stays whole at any
    resolution. And a triangle seen at more than ``max_incidence`` degrees from its normal is the ramp of a
    blurred edge.

    Args:
        points: (H, W, 3) in camera axes; non-finite points and z ≤ 0 are left out.
        valid: (H, W) bool, or None.
        max_vertices: the grid is thinned to at most so many.
        max_jump: relative depth step, beyond that of the surface, at which the mesh is cut.
        max_incidence: angle in degrees between a triangle's normal and the ray to it at which it is cut.

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

    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(there, 1 / grid[..., 2].astype(np.float64), np.nan)
    across = _joined(inverse, columns, max_jump)  # (h, w - 1): (i, j) with (i, j + 1)
    down = _joined(inverse.T, rows, max_jump).T  # (h - 1, w): (i, j) with (i + 1, j)
    # Corners of each quad: a b over c d; split along the diagonal with the smaller step.
    index = np.arange(inverse.size, dtype=np.int32).reshape(inverse.shape)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, :-1], index[1:, 1:]
    top, bottom, left, right = across[:-1], across[1:], down[:, :-1], down[:, 1:]
    flat = inverse.reshape(-1)
    split_bc = ~(np.abs(flat[b] - flat[c]) > np.abs(flat[a] - flat[d]))
    faces = np.concatenate(
        [
            np.stack([a, c, b], axis=-1)[split_bc & top & left],
            np.stack([b, c, d], axis=-1)[split_bc & bottom & right],
            np.stack([a, c, d], axis=-1)[~split_bc & left & bottom],
            np.stack([a, d, b], axis=-1)[~split_bc & top & right],
        ]
    )
    vertices = grid.reshape(-1, 3)
    faces = faces[_incidence(vertices, faces) <= max_incidence]
    if not len(faces):
        raise InputError("no surface is left after cutting depth edges", "raise max_jump or max_incidence")

    used = np.zeros(inverse.size, bool)
    used[faces] = True
    renumber = np.cumsum(used, dtype=np.int32) - 1
    u, v = np.meshgrid((columns + 0.5) / width, (rows + 0.5) / height)
    uv = np.stack([u, v], axis=-1).reshape(-1, 2).astype(np.float32)
    order = np.argsort(faces[:, 0], kind="stable")  # row by row, kinder to vertex caches
    return TriangleMesh(vertices[used], renumber[faces[order]], uv=uv[used])


def drop_crumbs(mesh: TriangleMesh, least: int = 60) -> TriangleMesh:
    """The mesh without connected pieces of fewer than ``least`` triangles; all of it if there are no others.

    Cutting leaves crumbs along every edge, which float in the air when seen from the side.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    count = len(mesh.vertices)
    a, b = mesh.faces[:, [0, 1]].ravel(), mesh.faces[:, [1, 2]].ravel()
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    piece = connected_components(graph, directed=False)[1][mesh.faces[:, 0]]
    keep = np.bincount(piece)[piece] >= least
    if not keep.any() or keep.all():
        return mesh
    faces = mesh.faces[keep]
    used = np.zeros(count, bool)
    used[faces] = True
    renumber = np.cumsum(used, dtype=np.int32) - 1
    rest = {
        name: None if getattr(mesh, name) is None else getattr(mesh, name)[used]
        for name in ("uv", "colours", "normals")
    }
    return TriangleMesh(mesh.vertices[used], renumber[faces], texture=mesh.texture, **rest)


def _joined(inverse: np.ndarray, positions: np.ndarray, max_jump: float) -> np.ndarray:
    """(h, w - 1) bool: whether neighbours along a row of inverse depth (h, w) lie on one surface.

    ``positions`` (w,) are the samples' pixel columns, which are not quite evenly spaced after thinning.
    """
    spacing = np.diff(positions)
    slope = np.diff(inverse, axis=1) / spacing
    padded = np.pad(slope, ((0, 0), (1, 1)), constant_values=np.nan)
    before, after = padded[:, :-2], padded[:, 2:]
    # Beside a border or a hole one neighbour is all there is; a lone pair of points is judged by its own
    # step.
    before, after = np.where(np.isnan(before), after, before), np.where(np.isnan(after), before, after)
    expected = np.nan_to_num((before + after) / 2)
    farther = np.fmin(inverse[:, 1:], inverse[:, :-1])
    return np.abs(slope - expected) * spacing <= max_jump * farther  # False for NaN


def _incidence(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """(M,) degrees between the camera-facing normal of each triangle and the ray from it to the origin."""
    p = vertices[faces].astype(np.float64)
    normals = np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0])
    centres = p.mean(axis=1)
    size = np.linalg.norm(normals, axis=-1) * np.linalg.norm(centres, axis=-1)
    cosine = -np.einsum("nc,nc->n", normals, centres) / np.maximum(size, 1e-300)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))
