"""Grid meshes: complete on surfaces, cut at edges, facing the camera, no larger than asked."""

from __future__ import annotations

import numpy as np
import pytest

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.geometry.mesh import TriangleMesh, grid_mesh
from vision3d.geometry.unproject import unproject_depth

CAMERA = Intrinsics.from_fov(60, 80, 60)


def facing(mesh: TriangleMesh) -> np.ndarray:
    p = mesh.vertices[mesh.faces].astype(np.float64)
    normals = np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0])
    return np.einsum("nc,nc->n", normals, p.mean(axis=1))


def test_a_plane_is_meshed_without_holes() -> None:
    mesh = grid_mesh(unproject_depth(np.full((60, 80), 2.0), CAMERA))
    assert mesh.vertices.shape == (60 * 80, 3)
    assert mesh.faces.shape == (59 * 79 * 2, 3)
    p = mesh.vertices[mesh.faces]
    area = np.linalg.norm(np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]), axis=-1).sum() / 2
    assert area == pytest.approx((79 * 2 / CAMERA.fx) * (59 * 2 / CAMERA.fy), rel=1e-4)
    assert (facing(mesh) < 0).all()


def test_texture_coordinates_are_the_pixels_the_vertices_are_seen_in() -> None:
    depth = np.random.default_rng(0).uniform(2, 2.01, (60, 80))
    for limit in (10_000, 500):
        mesh = grid_mesh(unproject_depth(depth, CAMERA), max_vertices=limit)
        pixels, _ = CAMERA.project(mesh.vertices)
        np.testing.assert_allclose(mesh.uv, pixels / [80, 60], atol=1e-5)


@pytest.mark.parametrize("far", [2.5, 4.0])
@pytest.mark.parametrize("limit", [10_000, 900])
def test_no_triangle_spans_a_depth_edge(far: float, limit: int) -> None:
    depth = np.full((60, 80), 2.0)
    depth[20:40, 25:55] = far
    mesh = grid_mesh(unproject_depth(depth, CAMERA), max_vertices=limit)
    z = mesh.vertices[mesh.faces][..., 2]
    np.testing.assert_array_equal(z.min(axis=1), z.max(axis=1))
    assert set(np.unique(z)) == {np.float32(2), np.float32(far)}


def test_a_soft_edge_is_cut_by_its_grazing_angle() -> None:
    depth = np.full((60, 80), 2.0)
    depth[:, 35:45] = np.linspace(2, 6, 10)
    depth[:, 45:] = 6
    mesh = grid_mesh(unproject_depth(depth, CAMERA), max_incidence=75, max_jump=10)
    z = mesh.vertices[mesh.faces][..., 2]
    assert (z.max(axis=1) - z.min(axis=1)).max() < 0.02
    whole = grid_mesh(unproject_depth(depth, CAMERA), max_incidence=90, max_jump=10)
    assert len(whole.faces) == 59 * 79 * 2


def test_a_slanted_floor_stays_whole() -> None:
    """Seen at up to 80° from its normal: no edge, however thinned."""
    rays = CAMERA.rays().astype(np.float64)
    tilt = np.radians(70)
    normal = np.array([0, -np.sin(tilt), -np.cos(tilt)])
    slope = rays @ normal
    seen = slope < -0.2
    depth = np.where(seen, -1.5 / np.minimum(slope, -0.2), np.nan)
    for limit in (10_000, 600):
        mesh = grid_mesh(unproject_depth(depth, CAMERA), max_vertices=limit)
        assert len(mesh.faces) > 1.5 * len(mesh.vertices)
        assert len(mesh.vertices) > 0.9 * min(seen.sum(), limit * seen.mean() * 0.8)


def test_the_grid_is_thinned_to_the_limit_and_keeps_the_outline() -> None:
    points = unproject_depth(np.full((60, 80), 2.0), CAMERA)
    mesh = grid_mesh(points, max_vertices=300)
    assert 200 <= len(mesh.vertices) <= 300
    np.testing.assert_array_equal(mesh.vertices.min(axis=0), points.reshape(-1, 3).min(axis=0))
    np.testing.assert_array_equal(mesh.vertices.max(axis=0), points.reshape(-1, 3).max(axis=0))


def test_what_is_not_there_is_left_out() -> None:
    depth = np.full((60, 80), 2.0)
    depth[:, :10] = np.nan
    depth[:, 70:] = np.inf
    valid = np.ones((60, 80), bool)
    valid[:10] = False
    mesh = grid_mesh(unproject_depth(depth, CAMERA), valid)
    assert len(mesh.vertices) == 50 * 60
    assert mesh.faces.max() == len(mesh.vertices) - 1


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(InputError, match="no surface is left"):
        grid_mesh(np.full((60, 80, 3), np.nan))
    with pytest.raises(InputError, match="shape"):
        grid_mesh(np.zeros((60, 80)))
