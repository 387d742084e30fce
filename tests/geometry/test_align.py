"""Alignment against numpy's and SciPy's solvers, and against known transformations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vision3d.errors import InputError
from vision3d.geometry.align import (
    Affine,
    RobustFit,
    affine_inverse_to_depth,
    align_affine,
    align_affine_inverse,
    align_inverse_to_metric,
    align_scale,
    merge_depths,
)

seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.floats(0.01, 100), st.floats(-50, 50))
def test_an_exact_relation_is_found(seed: int, scale: float, shift: float) -> None:
    x = np.random.default_rng(seed).normal(size=(6, 7))
    for robust in ("none", "l1", "trimmed"):
        fit = align_affine(x, scale * x + shift, robust=robust)  # type: ignore[arg-type]
        np.testing.assert_allclose([fit.scale, fit.shift], [scale, shift], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(fit(x), scale * x + shift, rtol=1e-6, atol=1e-6)


@given(seeds)
def test_least_squares_agrees_with_lstsq(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, w = rng.normal(size=50), rng.normal(size=50), rng.uniform(0.1, 3, 50)
    valid = rng.uniform(size=50) < 0.8
    root = np.sqrt(w[valid])
    expected, *_ = np.linalg.lstsq(np.stack([x[valid] * root, root], axis=-1), y[valid] * root, rcond=None)
    fit = align_affine(x, y, valid, weights=w)
    np.testing.assert_allclose([fit.scale, fit.shift], expected, rtol=1e-8, atol=1e-10)


def test_large_shifts_cost_no_digits() -> None:
    x = np.linspace(0, 1, 1000, dtype=np.float32).astype(np.float64) + 1e6
    fit = align_affine(x, 3 * x - 5)
    np.testing.assert_allclose(fit.scale * x + fit.shift, 3 * x - 5, rtol=1e-12)


def test_least_absolute_deviations_agree_with_linear_programming() -> None:
    from scipy.optimize import linprog

    rng = np.random.default_rng(3)
    x = rng.normal(size=40)
    y = 2 * x - 1 + rng.standard_t(1, 40) * 0.1
    # min Σ t  with  -t ≤ a x + b - y ≤ t
    n = len(x)
    design = np.stack([x, np.ones(n)], axis=-1)
    rows = np.block([[design, -np.eye(n)], [-design, -np.eye(n)]])
    solution = linprog(
        np.r_[0, 0, np.ones(n)], A_ub=rows, b_ub=np.r_[y, -y], bounds=[(None, None)] * 2 + [(0, None)] * n
    )
    fit = align_affine(x, y, robust="l1")
    ours = np.abs(fit.scale * x + fit.shift - y).sum()
    assert ours <= solution.fun * (1 + 1e-3)


@pytest.mark.parametrize("robust", ["l1", "trimmed"])
def test_robust_fits_ignore_outliers_that_ruin_least_squares(robust: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, 500)
    y = 3 * x + 1 + rng.normal(scale=0.001, size=500)
    y[:75] += rng.uniform(5, 50, 75) * (x[:75] > 0.5)
    plain = align_affine(x, y)
    fit = align_affine(x, y, robust=robust)  # type: ignore[arg-type]
    assert abs(plain.scale - 3) > 0.5
    np.testing.assert_allclose([fit.scale, fit.shift], [3, 1], atol=0.01)


def test_what_is_not_finite_or_not_valid_is_left_out() -> None:
    x = np.arange(10.0)
    y = 2 * x + 3
    x[1], y[2] = np.nan, np.inf
    valid = np.ones(10, bool)
    y[3], valid[3] = 99, False
    fit = align_affine(x, y, valid)
    np.testing.assert_allclose([fit.scale, fit.shift], [2, 3])


def test_a_constant_prediction_becomes_the_mean() -> None:
    fit = align_affine(np.full(10, 7.0), np.arange(10.0))
    assert fit.scale == 0
    assert fit.shift == pytest.approx(4.5)


def test_scale_alone() -> None:
    x = np.random.default_rng(0).uniform(1, 2, 101)
    y = 4 * x
    assert align_scale(x, y) == pytest.approx(4)
    y[:20] = 100
    assert align_scale(x, y, robust=True) == pytest.approx(4)
    assert align_scale(x, y) == pytest.approx(np.linalg.lstsq(x[:, None], y, rcond=None)[0][0])


@given(seeds, st.floats(0.1, 10), st.floats(-1, 1))
def test_inverse_depth_round_trip(seed: int, scale: float, shift: float) -> None:
    depth = np.random.default_rng(seed).uniform(0.5, 20, (5, 6))
    prediction = (1 / depth - shift) / scale
    fit = align_affine_inverse(prediction, depth)
    np.testing.assert_allclose([fit.scale, fit.shift], [scale, shift], rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(affine_inverse_to_depth(prediction, fit), depth, rtol=1e-5)


def test_targets_without_depth_are_left_out_and_far_stays_finite() -> None:
    depth = np.array([1.0, 2, 4, 0, -1, np.nan, np.inf])
    fit = align_affine_inverse(np.array([1.0, 0.5, 0.25, 9, 9, 9, 0]), depth)
    np.testing.assert_allclose([fit.scale, fit.shift], [1, 0], atol=1e-9)
    far = affine_inverse_to_depth(np.array([-1.0, 0, 1e-9, 5]), farthest=80, nearest=0.5)
    np.testing.assert_allclose(far, [80, 80, 80, 0.5])


def test_mistakes_are_refused() -> None:
    with pytest.raises(InputError, match="shape"):
        align_affine(np.ones(3), np.ones(4))
    with pytest.raises(InputError, match="usable samples"):
        align_affine(np.ones(3), np.full(3, np.nan))
    with pytest.raises(InputError, match="none, l1 or trimmed"):
        align_affine(np.arange(3.0), np.arange(3.0), robust="huber")  # type: ignore[arg-type]


def slanted_room(shape: tuple[int, int] = (60, 80)) -> np.ndarray:
    """Depth from 1 to 8 metres with a step in the middle."""
    v, u = np.mgrid[: shape[0], : shape[1]]
    return 1 + 3 * v / shape[0] + 4 * (u > shape[1] // 2)


@given(seeds, st.floats(0.05, 20), st.floats(-0.3, 0.3))
@settings(max_examples=15, deadline=None)
def test_forty_percent_of_outliers_do_not_move_the_metric_alignment(
    seed: int, scale: float, shift: float
) -> None:
    rng = np.random.default_rng(seed)
    truth = slanted_room()
    inverse = (1 / truth - shift) / scale
    metric = truth * np.exp(0.01 * rng.normal(size=truth.shape))
    wrong = rng.uniform(size=truth.shape) < 0.4
    metric[wrong] = rng.uniform(0.3, 50, truth.shape)[wrong]
    metric[0], metric[1], metric[2] = np.inf, np.nan, -1.0  # sky and invalid
    fit = align_inverse_to_metric(inverse, metric, threshold=0.06)
    aligned = 1 / fit.affine(inverse)
    assert np.abs(aligned / truth - 1).max() < 0.02
    assert fit.inlier_share == pytest.approx(0.6, abs=0.06)
    assert not fit.inliers[:3].any()
    assert (fit.inliers[3:] | wrong[3:]).all()
    assert fit.spread == pytest.approx(0.01, rel=0.25)


def test_plain_least_squares_is_moved_by_the_same_outliers() -> None:
    truth = slanted_room()
    metric = truth.copy()
    metric[:, :20] = 0.3
    assert np.abs(align_affine_inverse(1 / truth, metric)(1 / truth) * truth - 1).max() > 0.2
    fit = align_inverse_to_metric(1 / truth, metric)
    np.testing.assert_allclose([fit.affine.scale, fit.affine.shift], [1, 0], atol=1e-6)
    np.testing.assert_array_equal(fit.inliers[:, 20:], True)


def test_alignments_that_make_no_sense_are_refused() -> None:
    truth = slanted_room()
    with pytest.raises(InputError, match="says nearer"):
        align_inverse_to_metric(truth, truth)
    with pytest.raises(InputError, match="constant"):
        align_inverse_to_metric(np.ones(truth.shape), truth)
    with pytest.raises(InputError, match="usable samples"):
        align_inverse_to_metric(1 / truth, np.full(truth.shape, np.inf))
    with pytest.raises(InputError, match="valid of shape"):
        align_inverse_to_metric(1 / truth, truth, np.ones((3, 3), bool))


def test_merging_takes_edges_from_one_and_large_scales_from_the_other() -> None:
    from scipy.ndimage import gaussian_filter

    truth = slanted_room((120, 160))
    # Metric: right on the whole, no edges. Relative: sharp, but bent towards one side.
    metric = np.exp(gaussian_filter(np.log(truth), 4))
    bent = truth * np.exp(np.linspace(-0.08, 0.08, 160))
    fit = align_inverse_to_metric(1 / bent, metric, threshold=0.15)
    merged = merge_depths(metric, 1 / bent, fit)
    aligned = 1 / fit.affine(1 / bent)
    step = np.diff(np.log(merged), axis=1)[:, 80]
    np.testing.assert_allclose(step, np.diff(np.log(truth), axis=1)[:, 80], rtol=0.2)
    away = np.abs(np.arange(160) - 80.5) > 12
    errors = [np.abs(d / truth - 1)[:, away].mean() for d in (aligned, merged)]
    assert errors[1] < 0.6 * errors[0], errors


def test_depth_behind_infinity_keeps_the_metric_value() -> None:
    metric = slanted_room()
    inverse = 1 / metric
    inverse[:5] = -1.0
    fit = RobustFit(Affine(1.0, 0.0), inverse > 0, 1.0, 0.0, 0.1)
    merged = merge_depths(metric, inverse, fit)
    np.testing.assert_allclose(merged, metric, rtol=1e-4)


def test_what_the_relative_depth_puts_beyond_all_metric_depth_keeps_the_metric_value() -> None:
    metric = slanted_room()
    inverse = 1 / metric
    inverse[:5] = 1e-3  # a window that looks a kilometre away
    fit = RobustFit(Affine(1.0, 0.0), inverse > 2e-3, 1.0, 0.0, 0.1)
    assert merge_depths(metric, inverse, fit).max() <= 1.1 * metric.max() + 1e-3
