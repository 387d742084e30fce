"""Metrology on scenes whose lengths are known."""

from __future__ import annotations

import numpy as np
import pytest

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.geometry.measure import Metrology, fit_plane

CAMERA = Intrinsics(300.0, 310.0, 165.0, 118.0, 320, 240)


def room(camera: Intrinsics = CAMERA) -> np.ndarray:
    """z-depth of a floor 0.8 m below the camera that ends at a wall 4 m away."""
    rays = camera.rays().astype(np.float64)
    with np.errstate(divide="ignore"):
        floor = np.where(rays[..., 1] > 0, 0.8 / rays[..., 1], np.inf)
    return np.minimum(floor, 4.0)


def pixel(point: tuple[float, float, float]) -> tuple[float, float]:
    uv, _ = CAMERA.project(np.array(point))
    return float(uv[0]), float(uv[1])


def test_a_distance_on_two_surfaces_is_the_euclidean_one() -> None:
    p, q = (-0.8, 0.4, 4.0), (0.5, 0.8, 2.6)
    found = Metrology(room(), CAMERA, scale_sigma=0.0, click_sigma=0.0).distance(pixel(p), pixel(q))
    assert found.value == pytest.approx(np.linalg.norm(np.subtract(p, q)), rel=2e-3)
    np.testing.assert_allclose(found.points, [p, q], atol=0.01)
    assert found.sigma < 0.01


def test_the_uncertainty_is_that_of_repeated_measurements() -> None:
    """Camera, clicks, depth noise and scale are drawn anew each time; the stated sigma must be their scatter."""
    rng = np.random.default_rng(0)
    p, q = pixel((-0.8, 0.4, 4.0)), pixel((0.5, 0.8, 2.6))
    covariance = np.diag([9.0, 9.0, 4.0, 4.0])
    exact = room()
    values, stated = [], []
    for _ in range(150):
        shift = rng.normal(0, [3, 3, 2, 2])
        camera = Intrinsics(*(np.array([300, 310, 165, 118]) + shift), 320, 240)
        depth = exact * rng.normal(1, 0.05)
        clicks = np.array([p, q]) + rng.normal(0, 1.0, (2, 2))
        metrology = Metrology(depth, camera, covariance, scale_sigma=0.05, click_sigma=1.0)
        found = metrology.distance(tuple(clicks[0]), tuple(clicks[1]))
        values.append(found.value)
        stated.append(found.sigma)
    assert np.mean(stated) == pytest.approx(np.std(values), rel=0.25)


def test_noise_of_the_depth_is_seen() -> None:
    rng = np.random.default_rng(0)
    depth = room() * (1 + 0.02 * rng.normal(size=(240, 320)))
    metrology = Metrology(depth, CAMERA)
    z, sigma, _ = metrology.depth_at(pixel((-0.8, 0.4, 4.0)))
    assert z == pytest.approx(4.0, rel=0.03)
    assert 0.03 < sigma < 0.16  # 0.08 m of noise


def test_heights_are_above_the_floor_that_is_found() -> None:
    metrology = Metrology(room(), CAMERA)
    ground = metrology.ground()
    assert ground.offset == pytest.approx(0.8, rel=0.01) and ground.tilt < 1
    found = metrology.height(pixel((0.3, 0.2, 4.0)), ground)
    assert found.value == pytest.approx(0.6, abs=0.02)


def test_planes_ignore_what_stands_on_them() -> None:
    rng = np.random.default_rng(0)
    floor = np.stack([rng.uniform(-1, 1, 800), np.full(800, 1.2), rng.uniform(2, 4, 800)], axis=1)
    clutter = rng.uniform([-1, 0, 2], [1, 1.1, 4], (300, 3))
    plane = fit_plane(np.concatenate([floor + rng.normal(0, 0.002, floor.shape), clutter]))
    np.testing.assert_allclose(plane.normal, [0, -1, 0], atol=0.01)
    assert plane.offset == pytest.approx(1.2, abs=0.01)
    assert plane.inlier_ratio == pytest.approx(800 / 1100, abs=0.06)
    np.testing.assert_allclose(plane.distance([0, 0.2, 3]), 1.0, atol=0.02)


def test_a_click_beside_an_edge_takes_the_side_that_is_clicked() -> None:
    depth = np.full((240, 320), 4.0)
    depth[:, 160:] = 2.0
    metrology = Metrology(depth, CAMERA)
    assert metrology.depth_at((159.2, 100))[0] == pytest.approx(4.0, rel=1e-3)
    assert metrology.depth_at((160.8, 100))[0] == pytest.approx(2.0, rel=1e-3)


def test_what_cannot_be_measured_is_said() -> None:
    depth = room()
    depth[:40] = np.inf
    metrology = Metrology(depth, CAMERA)
    with pytest.raises(InputError, match="outside"):
        metrology.distance((400, 10), (10, 100))
    with pytest.raises(InputError, match="no depth at pixel"):
        metrology.distance((100, 10), (10, 100))
    with pytest.raises(InputError, match="no level floor"):
        Metrology(np.full((240, 320), 2.0), CAMERA).ground()
    with pytest.raises(InputError, match="one line"):
        fit_plane(np.linspace(0, 1, 20)[:, None] * [1.0, 2.0, 3.0])
