"""Surfaces from normals, against spheres, whose normals are known."""

from __future__ import annotations

import numpy as np
import pytest

from vision3d.camera import Intrinsics, look_at
from vision3d.errors import InputError
from vision3d.geometry.flow import flicker, motion, warp
from vision3d.geometry.mesh import TriangleMesh
from vision3d.geometry.normals import FRAMES, convert_normals, rotate_normals
from vision3d.geometry.surface import (
    NormalView,
    enhance_depth_normals,
    enhance_mesh_normals,
    surface_from_views,
    vertex_normals,
)

CAMERA = Intrinsics.from_focal(120.0, 96, 80)


def sphere_view(eye: tuple[float, float, float]) -> NormalView:
    """A unit sphere at the origin seen from ``eye``: exact depth and normals."""
    pose = look_at(np.array(eye), np.zeros(3))
    y, x = np.mgrid[: CAMERA.height, : CAMERA.width] + 0.5
    k = CAMERA.K
    rays = np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], np.ones_like(x)], -1)
    centre = -pose[:3, :3].T @ pose[:3, 3]
    a, b, c = (rays * rays).sum(-1), rays @ centre, centre @ centre - 1
    root = b * b - a * c
    z = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.nan)
    normals = np.where((root > 0)[..., None], rays * z[..., None] - centre, 0)
    return NormalView(np.nan_to_num(normals).astype(np.float32), CAMERA, pose, z.astype(np.float32))


EYES = [(0, 0, -3), (0, 0, 3), (3, 0, 0), (-3, 0, 0), (0, 3, 0.1), (0, -3, 0.1)]


def test_six_views_of_a_sphere_become_a_sphere() -> None:
    mesh = surface_from_views([sphere_view(eye) for eye in EYES], depth=6, trim=0.0)
    radius = np.linalg.norm(mesh.vertices, axis=1)
    assert abs(radius.mean() - 1) < 0.01 and radius.std() < 0.02
    outward = (vertex_normals(mesh) * mesh.vertices).sum(1)
    assert (outward > 0.9).mean() > 0.99


def test_noise_of_a_depth_map_gives_way_to_the_predictions_detail() -> None:
    view = sphere_view((0, 0, -3))
    assert view.depth is not None
    rng = np.random.default_rng(0)
    noisy = view.depth + rng.normal(0, 0.004, view.depth.shape).astype(np.float32)
    angle = np.deg2rad(15)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    biased = rotate_normals(view.normals, turn)  # sharp, and wrong as a whole
    inside = np.isfinite(view.depth)
    inner = inside & (view.normals[..., 2] < -0.5)

    def error(field: np.ndarray) -> float:
        cosine = (field * view.normals).sum(-1)[inner]
        return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean())

    from vision3d.geometry.normals import normals_from_depth

    enhanced = enhance_depth_normals(noisy, CAMERA, biased, sigma=5)
    assert error(enhanced) < 0.5 * error(normals_from_depth(noisy, CAMERA))
    assert error(enhanced) < 0.5 * error(biased)


def test_a_coarse_mesh_takes_the_normals_of_its_views() -> None:
    import trimesh

    ball = trimesh.creation.icosphere(subdivisions=3)
    rng = np.random.default_rng(1)
    bumpy = ball.vertices * (1 + rng.normal(0, 0.01, (len(ball.vertices), 1)))
    mesh = TriangleMesh(bumpy.astype(np.float32), ball.faces.astype(np.int32))

    def error(field: np.ndarray) -> float:
        return float(np.degrees(np.arccos(np.clip((field * ball.vertices).sum(1), -1, 1))).mean())

    enhanced = enhance_mesh_normals(mesh, [sphere_view(eye) for eye in EYES], weight=1.0)
    assert error(enhanced) < 0.4 * error(vertex_normals(mesh))
    front = enhance_mesh_normals(mesh, [sphere_view((0, 0, -3))], weight=1.0)
    back = ball.vertices[:, 2] > 0.5
    assert np.allclose(front[back], vertex_normals(mesh)[back], atol=1e-5)  # hidden from that view


def test_surfaces_need_depth() -> None:
    view = sphere_view((0, 0, -3))
    with pytest.raises(InputError, match="depth"):
        surface_from_views([NormalView(view.normals, view.camera, view.pose)])


def test_frames_are_signs_of_opencv_axes_and_convert_back() -> None:
    forward = np.array([0.0, 0.6, -0.8])  # towards a camera, pointing down in the picture
    assert convert_normals(forward, "opencv", "opengl").tolist() == [0, -0.6, 0.8]
    assert convert_normals(forward, "opencv", "directx").tolist() == [0, 0.6, 0.8]
    assert convert_normals(forward, "opencv", "stablenormal").tolist() == [0, -0.6, 0.8]
    vector = np.array([0.1, -0.2, 0.3])
    for a in FRAMES:
        for b in FRAMES:
            assert np.array_equal(convert_normals(convert_normals(vector, a, b), b, a), vector)
    with pytest.raises(InputError, match="sideways"):
        convert_normals(vector, "opencv", "sideways")


def test_flow_finds_a_shift_and_flicker_is_the_angle_between_frames() -> None:
    rng = np.random.default_rng(0)
    import cv2

    wide = cv2.GaussianBlur((rng.random((80, 140, 3)) * 255).astype(np.uint8), (0, 0), 2)
    wide = cv2.normalize(wide, None, 0, 255, cv2.NORM_MINMAX)
    a, b = np.ascontiguousarray(wide[:, :120]), np.ascontiguousarray(wide[:, 5:125])
    moved = motion(a, b)
    middle = (slice(15, 65), slice(15, 100))
    assert np.abs(moved.flow[middle] - [5, 0]).mean() < 0.3 and moved.match[middle].mean() > 0.7
    assert moved.match[:, -3:].mean() < 0.1  # has just come into view
    assert np.abs(warp(a.astype(np.float32), moved.flow)[middle] - b[middle]).mean() < 3
    still = np.zeros((80, 120, 3), np.float32)
    still[..., 2] = -1
    tilted = np.zeros_like(still)
    tilted[..., 0], tilted[..., 2] = np.sin(np.deg2rad(10)), -np.cos(np.deg2rad(10))
    assert flicker([still, still], [moved]) == pytest.approx(0, abs=0.05)
    assert flicker([still, tilted], [moved]) == pytest.approx(10, abs=0.05)
