"""Normals of planes, spheres and steps against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from vision3d.camera import Intrinsics
from vision3d.geometry.normals import normals_from_depth

CAMERA = Intrinsics.from_fov(60, 80, 60)


def angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((a * b).sum(-1), -1, 1)))


@pytest.mark.parametrize("normal", [[0, 0, -1], [0.5, 0, -1], [-0.3, -0.8, -0.7], [0.1, 0.6, -0.4]])
def test_a_plane_has_its_normal_everywhere(normal: list[float]) -> None:
    unit = np.array(normal) / np.linalg.norm(normal)
    slope = CAMERA.rays().astype(np.float64) @ unit
    depth = -2 / np.minimum(slope, -1e-3)  # n · (z ray) = -2
    seen = slope < -0.1
    normals = normals_from_depth(depth, CAMERA)
    assert angles(normals, unit)[seen].max() < 0.1
    np.testing.assert_allclose(np.linalg.norm(normals[seen], axis=-1), 1, rtol=1e-5)


def test_a_sphere_has_radial_normals() -> None:
    centre, radius = np.array([0.1, -0.05, 3]), 1.0
    rays = CAMERA.rays(unit=True).astype(np.float64)
    along = rays @ centre
    inside = along**2 - centre @ centre + radius**2
    hit = inside > 0.2
    distance = along - np.sqrt(np.maximum(inside, 0))
    depth = np.where(hit, distance * rays[..., 2], np.nan)
    points = rays * distance[..., None]
    normals = normals_from_depth(depth, CAMERA)
    inner = hit.copy()
    inner[1:-1, 1:-1] &= hit[:-2, 1:-1] & hit[2:, 1:-1] & hit[1:-1, :-2] & hit[1:-1, 2:]
    assert angles(normals, (points - centre) / radius)[inner].max() < 1.0
    assert (np.einsum("hwc,hwc->hw", normals, rays)[inner] < 0).all()
    assert not normals[~hit].any()


def test_normals_do_not_bend_across_a_step() -> None:
    depth = np.full((60, 80), 2.0)
    depth[:, 40:] = 4
    normals = normals_from_depth(depth, CAMERA)
    assert angles(normals, np.array([0, 0, -1.0])).max() < 0.1


def test_invalid_pixels_have_no_normal_and_do_not_touch_others() -> None:
    depth = np.full((60, 80), 2.0)
    valid = np.ones((60, 80), bool)
    depth[30, 40], valid[30, 40] = 77, False
    normals = normals_from_depth(depth, CAMERA, valid)
    assert not normals[30, 40].any()
    normals[30, 40] = [0, 0, -1]
    assert angles(normals, np.array([0, 0, -1.0])).max() < 0.1
