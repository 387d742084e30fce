"""Normal integration and fusion against surfaces with a closed form, and on the procedural world."""

from __future__ import annotations

import numpy as np
import pytest

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.geometry.integration import (
    fuse_depth_normals,
    integrate_normals,
    resize_surface,
    smooth_on_surfaces,
)
from vision3d.geometry.normals import normals_from_depth

CAMERA = Intrinsics(150.0, 140.0, 58.0, 51.0, 120, 100)


def plane(
    normal: tuple[float, float, float], distance: float, camera: Intrinsics
) -> tuple[np.ndarray, np.ndarray]:
    """Depth and normals of n · X = -distance."""
    n = np.array(normal) / np.linalg.norm(normal)
    return -distance / (camera.rays() @ n), np.broadcast_to(n, (camera.height, camera.width, 3))


def sphere(centre: tuple[float, float, float], radius: float, camera: Intrinsics) -> tuple[np.ndarray, ...]:
    """Depth, normals and mask of a sphere."""
    r, c = camera.rays().astype(np.float64), np.array(centre)
    b, a = r @ c, np.einsum("hwc,hwc->hw", r, r)
    under = b * b - a * (c @ c - radius**2)
    t = (b - np.sqrt(np.maximum(under, 0))) / a
    return t, (r * t[..., None] - c) / radius, under > 0


def up_to_scale(depth: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Relative error after the best scale."""
    return np.abs(depth / truth / np.nanmedian(depth / truth) - 1)


def test_a_plane_in_perspective_is_found_up_to_scale() -> None:
    truth, normals = plane((0.3, -0.5, -1), 2, CAMERA)
    surface = integrate_normals(normals, CAMERA)
    assert up_to_scale(surface.depth, truth).max() < 1e-4
    assert np.median(surface.depth) == pytest.approx(1, rel=1e-5)
    assert surface.converged


def test_a_prior_sets_the_scale() -> None:
    truth, normals = plane((0.3, -0.5, -1), 2, CAMERA)
    prior = truth * np.exp(np.random.default_rng(0).normal(size=truth.shape) * 0.05)
    found = integrate_normals(normals, CAMERA, depth=prior).depth
    assert np.abs(found / truth - 1).max() < 0.012  # the noise of 12,000 pixels averages out


def test_a_sphere_in_perspective() -> None:
    truth, normals, mask = sphere((0.1, -0.05, 4.0), 0.9, CAMERA)
    surface = integrate_normals(normals, CAMERA, mask)
    error = up_to_scale(surface.depth[mask], truth[mask])
    assert error.mean() < 1e-3
    assert np.isnan(surface.depth[~mask]).all()


def test_a_paraboloid_in_orthographic_view() -> None:
    v, u = np.mgrid[-30:31, -40:41].astype(np.float64)
    truth = 0.004 * (u**2 + 2 * v**2)
    normals = np.stack([0.008 * u, 0.016 * v, -np.ones_like(u)], axis=-1)
    found = integrate_normals(normals / np.linalg.norm(normals, axis=-1, keepdims=True), sharpness=0).depth
    # Trapezoids integrate a quadratic exactly.
    np.testing.assert_allclose(found - found.mean(), truth - truth.mean(), atol=2e-3)


@pytest.mark.parametrize("camera", [CAMERA, None], ids=["perspective", "orthographic"])
def test_a_step_stays_a_step(camera: Intrinsics | None) -> None:
    """Two facing planes, one in front: the prior knows the step only with noise, the normals not at all."""
    normals = np.zeros((100, 120, 3))
    normals[..., 2] = -1
    truth = np.full((100, 120), 2.0) if camera else np.zeros((100, 120))
    truth[30:70, 40:90] = 1.4 if camera else -40.0
    rng = np.random.default_rng(1)
    if camera:
        prior = truth * np.exp(0.02 * rng.normal(size=truth.shape))
        broken = integrate_normals(normals, camera, depth=prior, start=truth, depth_noise=0.02)
        smooth = integrate_normals(normals, camera, depth=prior, sharpness=0, depth_noise=0.02)
    else:
        prior = truth + 0.5 * rng.normal(size=truth.shape)
        broken = integrate_normals(normals, depth=prior, start=truth, depth_noise=5.0)
        smooth = integrate_normals(normals, depth=prior, sharpness=0, depth_noise=5.0)
    scale = 1.0 if camera else 100.0
    assert np.abs(broken.depth - truth).max() / scale < 0.02
    assert np.abs(smooth.depth - truth).max() / scale > 0.1
    edges = np.zeros(truth.shape, bool)
    for axis in (0, 1):
        step = np.abs(np.diff(truth, axis=axis)) > 0
        edges |= np.pad(step, [(0, 1), (0, 0)] if axis == 0 else [(0, 0), (0, 1)])
        edges |= np.pad(step, [(1, 0), (0, 0)] if axis == 0 else [(0, 0), (1, 0)])
    np.testing.assert_array_equal(broken.edges(), edges)


def test_the_bilateral_weights_find_a_step_that_plain_least_squares_smears() -> None:
    """The paper's claim: no mask, no prior at all on the front patch's border pixels."""
    truth, normals, mask = sphere((0.0, 0.0, 3.0), 0.6, CAMERA)
    depth = np.where(mask, truth, 4.0)
    field = np.where(mask[..., None], normals, [0, 0, -1.0])
    known = np.where(np.random.default_rng(0).uniform(size=depth.shape) < 0.1, depth, np.nan)
    errors = [
        np.abs(
            integrate_normals(field, CAMERA, depth=known, sharpness=k, depth_noise=0.01).depth / depth - 1
        ).mean()
        for k in (0.0, 2.0)
    ]
    assert errors[1] < 0.5 * errors[0], errors


def test_confidence_decides_between_normals() -> None:
    truth, normals = plane((0.0, 0.0, -1), 2, CAMERA)
    lying = np.array(normals)
    lying[:, :60] = np.array([0.5, 0, -1]) / np.linalg.norm([0.5, 0, -1])
    trust = np.ones(truth.shape)
    trust[:, :60] = 0
    prior = np.where(np.arange(120) % 10 == 0, truth, np.nan)
    believed = integrate_normals(lying, CAMERA, depth=prior, confidence=trust + 0.001, depth_noise=0.02)
    assert np.abs(believed.depth / truth - 1)[:, 70:].max() < 1e-3
    doubted = np.abs(integrate_normals(lying, CAMERA, depth=prior, depth_noise=0.02).depth / truth - 1)
    assert np.abs(believed.depth / truth - 1).mean() < 0.3 * doubted.mean()


def test_outliers_of_the_prior_can_be_rejected() -> None:
    truth, normals = plane((0.2, 0.1, -1), 2, CAMERA)
    prior = truth.copy()
    prior[40:50, 40:50] *= 2
    plain = integrate_normals(normals, CAMERA, depth=prior, depth_noise=0.02)
    robust = integrate_normals(normals, CAMERA, depth=prior, depth_noise=0.02, robust_depth=3.0)
    errors = [np.abs(s.depth / truth - 1).max() for s in (plain, robust)]
    assert errors[1] < 0.3 * errors[0] and errors[1] < 0.03, errors


def test_bad_input_is_named() -> None:
    _, normals = plane((0, 0, -1), 2, CAMERA)
    with pytest.raises(InputError, match="normals of shape"):
        integrate_normals(normals[..., :2], CAMERA)
    with pytest.raises(InputError, match="mask of shape"):
        integrate_normals(normals, CAMERA, np.ones((3, 3), bool))
    with pytest.raises(InputError, match="no pixel has a normal"):
        integrate_normals(np.zeros((100, 120, 3)), CAMERA)
    with pytest.raises(InputError, match="noise is positive"):
        integrate_normals(normals, CAMERA, normal_noise=0)
    with pytest.raises(InputError, match="no pixel has a depth"):
        fuse_depth_normals(np.full((100, 120), np.nan), normals, CAMERA)
    with pytest.raises(InputError, match="with depth of shape"):
        fuse_depth_normals(np.ones((100, 120)), normals[:50], CAMERA)


def test_smoothing_keeps_planes_and_edges_and_measures_the_noise() -> None:
    near, n1 = plane((0.5, -0.3, -1), 1.2, CAMERA)
    far, n2 = plane((-0.2, 0.6, -1), 4, CAMERA)
    front = np.zeros(near.shape, bool)
    front[:, 50:] = True
    truth, normals = np.where(front, near, far), np.where(front[..., None], n1, n2)
    rng = np.random.default_rng(2)
    noisy = truth * np.exp(0.02 * rng.normal(size=truth.shape))
    first = smooth_on_surfaces(noisy, normals, CAMERA, rounds=0)
    assert first.noise == pytest.approx(0.02, rel=0.1)
    clean = smooth_on_surfaces(noisy, normals, CAMERA)
    error = np.abs(np.exp(clean.log_depth) / truth - 1)
    assert error.mean() < 0.006  # 25 samples of 2 % noise, twice
    assert error[:, 48:52].mean() < 0.012


def test_fusion_on_the_procedural_world_improves_depth_and_normals_and_keeps_edges() -> None:
    """The acceptance of the scene, on a few small scenes; evaluation/fusion.py measures more and larger ones."""
    pytest.importorskip("open3d")
    from vision3d.evaluation.fusion import compare
    from vision3d.synthetic import render_sample

    rows = [compare(render_sample(seed, (96, 128)), seed) for seed in (900_000_006, 900_000_012, 900_000_021)]
    mean = {name: np.mean([getattr(row, name) for row in rows]) for name in rows[0].__dataclass_fields__}
    assert mean["fused_normal_error"] <= 0.7 * mean["depth_normal_error"]
    assert mean["fused_normal_error"] <= 0.9 * mean["normal_error"]
    assert mean["fused_depth_error"] <= 0.95 * mean["depth_error"]
    assert mean["fused_edge_error"] <= 1.1 * mean["edge_error"]
    assert mean["edges_kept"] >= 0.95


def test_normals_of_an_exact_depth_survive_fusion() -> None:
    truth, normals, mask = sphere((0.0, 0.0, 3.0), 0.8, CAMERA)
    depth = np.where(mask, truth, 5.0)
    field = np.where(mask[..., None], normals, [0, 0, -1.0])
    fused = fuse_depth_normals(depth, field, CAMERA).depth
    inner = mask & (np.einsum("hwc,hwc->hw", normals, CAMERA.rays(unit=True)) < -0.5)
    cosine = np.einsum("hwc,hwc->hw", normals_from_depth(fused, CAMERA), normals)[inner]
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean() < 1.5
    assert np.abs(fused / depth - 1)[~mask].max() < 0.01
    assert np.abs(fused / depth - 1)[inner].max() < 0.02


def test_resizing_a_surface_never_invents_depth_between_two() -> None:
    depth = np.full((30, 40), 4.0, np.float32)
    depth[10:20, 10:30] = 2.0
    large = resize_surface(depth, (90, 100))
    assert large.shape == (90, 100)
    assert set(np.unique(np.round(large, 4))) == {2.0, 4.0}
    slope = np.broadcast_to(1 + 0.01 * np.arange(40, dtype=np.float32), (30, 40))
    smooth = resize_surface(slope, (60, 80))
    expected = 1 + 0.01 * ((np.arange(80) + 0.5) / 2 - 0.5)
    np.testing.assert_allclose(smooth[:, 2:-2], np.broadcast_to(expected, (60, 80))[:, 2:-2], rtol=1e-4)


def test_depth_without_normals_stays_in_the_fused_surface() -> None:
    camera = Intrinsics.from_fov(60, 48, 40)
    normals = np.tile(np.array([0, 0, -1], np.float32), (40, 48, 1))
    normals[10:20, 10:20] = 0
    fused = fuse_depth_normals(np.full((40, 48), 2.0, np.float32), normals, camera)
    assert np.isfinite(fused.depth).all()
    np.testing.assert_allclose(fused.depth, 2.0, rtol=0.02)
