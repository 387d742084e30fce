"""Surfaces from normals: meshes whose normals predictions sharpen, and Poisson reconstruction of several views.

Poses are camera-to-world in OpenCV axes. Open3D is needed (the extra ``geometry``) for ray casting and Poisson.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vision3d.camera import Intrinsics, transform_points
from vision3d.errors import InputError
from vision3d.geometry.mesh import TriangleMesh
from vision3d.geometry.normals import normals_from_depth, rotate_normals
from vision3d.geometry.unproject import unproject_depth


@dataclass(frozen=True)
class NormalView:
    """Normals of one view of a scene.

    Attributes:
        normals: (H, W, 3) unit vectors in the camera's OpenCV axes, zero where there are none.
        camera: intrinsics for (H, W).
        pose: (4, 4) camera-to-world.
        depth: (H, W) z-depth in the scene's unit, or None; not finite or not positive where there is none.
    """

    normals: np.ndarray
    camera: Intrinsics
    pose: np.ndarray
    depth: np.ndarray | None = None

    def __post_init__(self) -> None:
        size = (self.camera.height, self.camera.width)
        if self.normals.shape != (*size, 3):
            raise InputError(f"normals {self.normals.shape} for a camera of {size}", "resize one of them")
        if self.depth is not None and self.depth.shape != size:
            raise InputError(f"depth {self.depth.shape} for a camera of {size}", "resize one of them")


def smooth_directions(normals: np.ndarray, sigma: float) -> np.ndarray:
    """Unit vectors (H, W, 3) averaged over a Gaussian of ``sigma`` pixels; zero vectors do not count."""
    from scipy.ndimage import gaussian_filter

    field = np.asarray(normals, np.float64)
    there = (np.square(field).sum(-1) > 0.25).astype(np.float64)
    summed = np.stack([gaussian_filter(field[..., i] * there, sigma) for i in range(3)], -1)
    length = np.linalg.norm(summed, axis=-1, keepdims=True)
    return np.where(length > 1e-9, summed / np.maximum(length, 1e-9), 0).astype(np.float32)


def rotate_onto(vectors: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """``vectors`` turned by the smallest rotation from ``start`` to ``end``; all (..., 3) unit, in float64."""
    v, a, b = (np.asarray(x, np.float64) for x in (vectors, start, end))
    axis, cosine = np.cross(a, b), (a * b).sum(-1, keepdims=True)
    along = (axis * v).sum(-1, keepdims=True)
    turned = cosine * v + np.cross(axis, v) + axis * along / np.maximum(1 + cosine, 1e-3)
    return np.where(cosine > -0.99, turned, v)


def enhance_normals(base: np.ndarray, predicted: np.ndarray, sigma: float = 6.0) -> np.ndarray:
    """Geometry's large shapes with a prediction's detail.

    What a prediction says beyond its own smooth version is carried over to the smooth version of the given normals. A
    network's bias about how large surfaces lie so does not reach the result, and the noise of a scan does not either.

    Args:
        base: (H, W, 3) normals of a depth map or of a rendered mesh, zero where there are none.
        predicted: (H, W, 3) normals of the same view, same axes.
        sigma: pixels; detail finer than this is taken from the prediction.

    Returns:
        (H, W, 3) float32 unit, zero where ``base`` has none.

    Raises:
        InputError: shapes differ.
    """
    if base.shape != predicted.shape or base.ndim != 3 or base.shape[-1] != 3:
        raise InputError(
            f"normals {base.shape} and {predicted.shape}", "give two maps of one shape (H, W, 3)"
        )
    coarse, own = smooth_directions(base, sigma), smooth_directions(predicted, sigma)
    turned = rotate_onto(predicted, own, coarse)
    length = np.linalg.norm(turned, axis=-1, keepdims=True)
    there = (np.square(base).sum(-1, keepdims=True) > 0.25) & (length > 1e-6)
    return np.where(there, turned / np.maximum(length, 1e-6), 0).astype(np.float32)


def enhance_depth_normals(
    depth: np.ndarray, camera: Intrinsics, predicted: np.ndarray, sigma: float = 6.0
) -> np.ndarray:
    """Normals (H, W, 3) of a z-depth map, its noise replaced by a prediction's detail; see :func:`enhance_normals`."""
    return enhance_normals(normals_from_depth(depth, camera), predicted, sigma)


def enhance_mesh_normals(mesh: TriangleMesh, views: Sequence[NormalView], weight: float = 0.8) -> np.ndarray:
    """Vertex normals of a mesh in world axes, sharpened by normals predicted in views of it.

    Every vertex takes from each view that sees it the predicted normal at its pixel, weighted by how squarely it is
    seen; unseen ones keep their own.

    Args:
        mesh: in world axes (OpenCV handedness), triangles counter-clockwise from outside.
        views: predictions with cameras and poses.
        weight: share of the prediction where a vertex is seen squarely.

    Returns:
        (N, 3) float32 unit.

    Raises:
        InputError: no views.
    """
    if not views:
        raise InputError("no views of the mesh", "give at least one")
    vertices = mesh.vertices.astype(np.float64)
    own = vertex_normals(mesh)
    scene = _raycasting(mesh)
    total = np.zeros_like(vertices)
    seen = np.zeros(len(vertices))
    span = float(np.linalg.norm(np.ptp(vertices, axis=0)))
    for view in views:
        eye = np.asarray(view.pose, np.float64)[:3, 3]
        local = transform_points(np.linalg.inv(view.pose), vertices)
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels, _ = view.camera.project(local)
        u, v = (np.floor(np.nan_to_num(pixels[:, i], nan=-1.0)).astype(int) for i in (0, 1))
        inside = (
            (local[:, 2] > 1e-6) & (u >= 0) & (v >= 0) & (u < view.camera.width) & (v < view.camera.height)
        )
        towards = eye - vertices
        distance = np.linalg.norm(towards, axis=1, keepdims=True)
        facing = (own * towards / np.maximum(distance, 1e-12)).sum(1)
        visible = inside & (facing > 0.05)
        visible[visible] &= _reaches(scene, eye, vertices[visible], 2e-3 * span)
        predicted = rotate_normals(view.normals, view.pose)[v[visible], u[visible]]
        there = np.square(predicted).sum(1) > 0.25
        index = np.flatnonzero(visible)[there]
        total[index] += predicted[there] * facing[index, None]
        seen[index] += facing[index]
    share = weight * np.clip(seen, 0, 1)[:, None]
    mean = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9)
    mixed = (1 - share) * own + share * mean
    return (mixed / np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def vertex_normals(mesh: TriangleMesh) -> np.ndarray:
    """(N, 3) float64 unit normals of a mesh's vertices, its triangles' weighted by area."""
    vertices = mesh.vertices.astype(np.float64)
    corners = vertices[mesh.faces]
    faces = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.zeros_like(vertices)
    for i in range(3):
        np.add.at(total, mesh.faces[:, i], faces)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def oriented_points(views: Sequence[NormalView], max_points: int = 400_000) -> tuple[np.ndarray, np.ndarray]:
    """Points and normals in world axes of views with depth, thinned evenly.

    Returns:
        (N, 3) float64 points and (N, 3) float64 unit normals.

    Raises:
        InputError: no view has depth, or no pixel has both.
    """
    points, normals = [], []
    for view in views:
        if view.depth is None:
            continue
        there = np.isfinite(view.depth) & (view.depth > 0) & (np.square(view.normals).sum(-1) > 0.25)
        local = unproject_depth(np.where(there, view.depth, np.nan), view.camera)[there]
        points.append(transform_points(view.pose, local.astype(np.float64)))
        normals.append(rotate_normals(view.normals, view.pose)[there].astype(np.float64))
    if not points or not sum(map(len, points)):
        raise InputError(
            "no view with depth and normals", "integrate the normals first, or give depth maps with them"
        )
    p, n = np.concatenate(points), np.concatenate(normals)
    if len(p) > max_points:
        kept = np.linspace(0, len(p) - 1, max_points).astype(np.int64)
        p, n = p[kept], n[kept]
    return p, n / np.linalg.norm(n, axis=1, keepdims=True)


def poisson_surface(
    points: np.ndarray, normals: np.ndarray, *, depth: int = 8, trim: float = 0.02
) -> TriangleMesh:
    """Screened Poisson reconstruction (Kazhdan and Hoppe 2013) of oriented points.

    Args:
        points: (N, 3).
        normals: (N, 3) unit, outwards.
        depth: of the octree; each step halves the cells.
        trim: share of vertices with the least support that is cut off; 0 keeps the closed surface.

    Raises:
        InputError: fewer than 100 points, shapes that differ, or values that are not finite.
    """
    import open3d as o3d

    if points.shape != normals.shape or points.ndim != 2 or points.shape[1] != 3 or len(points) < 100:
        raise InputError(
            f"points {points.shape} with normals {normals.shape}", "give two arrays (N, 3), N at least 100"
        )
    if not (np.isfinite(points).all() and np.isfinite(normals).all()):
        raise InputError("oriented points that are not finite", "leave them out")
    cloud = o3d.geometry.PointCloud()
    cloud.points = o3d.utility.Vector3dVector(points.astype(np.float64))
    cloud.normals = o3d.utility.Vector3dVector(normals.astype(np.float64))
    mesh, support = o3d.geometry.TriangleMesh.create_from_point_cloud_poisson(cloud, depth=depth, n_threads=1)
    if trim > 0:
        support = np.asarray(support)
        mesh.remove_vertices_by_mask(support < np.quantile(support, trim))
    return TriangleMesh(np.asarray(mesh.vertices, np.float32), np.asarray(mesh.triangles, np.int32))


def surface_from_views(views: Sequence[NormalView], *, depth: int = 8, trim: float = 0.02) -> TriangleMesh:
    """A mesh of several views with depth (measured, or integrated from their normals); see :func:`poisson_surface`."""
    points, normals = oriented_points(views)
    return poisson_surface(points, normals, depth=depth, trim=trim)


def _raycasting(mesh: TriangleMesh) -> Any:
    import open3d as o3d

    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(
        o3d.core.Tensor(np.ascontiguousarray(mesh.vertices, np.float32)),
        o3d.core.Tensor(np.ascontiguousarray(mesh.faces, np.uint32)),
    )
    return scene


def _reaches(scene: Any, eye: np.ndarray, targets: np.ndarray, tolerance: float) -> np.ndarray:
    """Whether nothing stands between the eye and each target (N, 3)."""
    import open3d as o3d

    towards = targets - eye
    distance = np.linalg.norm(towards, axis=1)
    rays = np.concatenate([np.broadcast_to(eye, towards.shape), towards / distance[:, None]], 1)
    hit = scene.cast_rays(o3d.core.Tensor(rays.astype(np.float32)))["t_hit"].numpy()
    return hit > distance - tolerance
