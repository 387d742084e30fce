"""Scale and shift between a prediction and a reference, in depth or in inverse depth; all in float64.

Affine-invariant predictions are known up to ``scale * prediction + shift``; :func:`align_inverse_to_metric` finds both
against a metric depth that is wrong in places, and :func:`merge_depths` joins the two. The shift may be fitted in depth
or in inverse depth, whichever space the prediction lives in: the two are different models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vision3d.errors import InputError

Robust = Literal["none", "l1", "trimmed"]


@dataclass(frozen=True)
class Affine:
    """``scale * x + shift``; call it with an array."""

    scale: float
    shift: float

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Apply it; the result keeps the input's floating-point type."""
        values = np.asarray(values)
        kind = values.dtype if values.dtype.kind == "f" else np.float64
        return (np.float64(self.scale) * values + np.float64(self.shift)).astype(kind)


def align_affine(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    weights: np.ndarray | None = None,
    robust: Robust = "none",
    trim: float = 0.2,
    iterations: int = 50,
) -> Affine:
    """The affine map that brings ``prediction`` closest to ``target``.

    Args:
        prediction, target: arrays of one shape.
        valid: bool of the same shape; non-finite values are left out in any case.
        weights: non-negative, of the same shape.
        robust: "none": least squares; "l1": least absolute deviations, by iteratively reweighted least
            squares; "trimmed": least squares over the best-fitting share ``1 - trim``, refitted until that
            set stays.
        trim: share of samples given up by "trimmed".
        iterations: at most so many refits.

    Raises:
        InputError: shapes differ, or fewer than two usable samples. A constant prediction gives scale 0 and
            the (weighted) mean of the target.
    """
    x, y, w = _samples(prediction, target, valid, weights, needed=2)
    fit = _least_squares(x, y, w)
    if robust == "none":
        return fit
    if robust not in ("l1", "trimmed"):
        raise InputError(f"robust={robust!r}", "use none, l1 or trimmed")
    if robust == "trimmed":
        return _trimmed(x, y, w, trim, iterations)
    spread = float(np.median(np.abs(y - np.median(y)))) or float(np.abs(y).max()) or 1.0
    for _ in range(iterations):
        residual = np.abs(y - (fit.scale * x + fit.shift))
        refit = _least_squares(x, y, w / np.maximum(residual, 1e-6 * spread))
        done = (
            abs(refit.scale - fit.scale) <= 1e-9 * abs(fit.scale)
            and abs(refit.shift - fit.shift) <= 1e-9 * spread
        )
        fit = refit
        if done:
            break
    return fit


def align_scale(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    weights: np.ndarray | None = None,
    robust: bool = False,
) -> float:
    """The factor from ``prediction`` to ``target``: least squares, or the median ratio if ``robust``.

    Raises:
        InputError: shapes differ or nothing usable.
    """
    x, y, w = _samples(prediction, target, valid, weights, needed=1)
    if robust:
        usable = (x != 0) & (w > 0)
        return float(np.median(y[usable] / x[usable])) if usable.any() else 0.0
    power = float(np.sum(w * x * x))
    return float(np.sum(w * x * y) / power) if power > 0 else 0.0


def align_affine_inverse(
    inverse_prediction: np.ndarray,
    target_depth: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    weights: np.ndarray | None = None,
    robust: Robust = "none",
) -> Affine:
    """Fit ``scale * inverse_prediction + shift`` to ``1 / target_depth`` where the target is positive.

    :func:`affine_inverse_to_depth` turns the aligned prediction into depth. Raises as :func:`align_affine`.
    """
    target_depth = np.asarray(target_depth, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(target_depth > 0, 1 / target_depth, np.nan)
    return align_affine(inverse_prediction, inverse, valid, weights=weights, robust=robust)


@dataclass(frozen=True, eq=False)
class RobustFit:
    """An affine-invariant inverse depth brought to metric scale.

    Attributes:
        affine: ``1 / z = scale * inverse + shift``.
        inliers: (H, W) bool: usable pixels where both depths agree within the threshold.
        inlier_share: of the usable pixels.
        spread: robust standard deviation (1.4826 median absolute deviation) of log depth over the inliers.
        threshold: relative difference of depth up to which a pixel agrees.
    """

    affine: Affine
    inliers: np.ndarray
    inlier_share: float
    spread: float
    threshold: float


def align_inverse_to_metric(
    inverse_prediction: np.ndarray,
    metric_depth: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    threshold: float = 0.1,
    trials: int = 300,
    samples: int = 20_000,
    seed: int = 0,
) -> RobustFit:
    """Scale and shift of an inverse depth that most of a metric depth agrees with.

    Random pairs of pixels propose fits (RANSAC); each is scored by its truncated squared errors (MSAC), measured as
    relative errors of depth, for a metric network is as wrong in proportion near as far. The best is refined by
    iteratively reweighted least squares with Tukey's biweight. Deterministic for a seed.

    Args:
        inverse_prediction: (H, W), larger is nearer.
        metric_depth: (H, W) z-depth in metres; sky (infinite), missing (NaN) and ≤ 0 are left out.
        valid: (H, W) bool, or None: what else to leave out, such as sky.
        threshold: relative difference of depth up to which a pixel is an inlier.
        trials: proposals.
        samples: at most so many pixels, evenly spread, score the proposals.
        seed: of the proposals.

    Raises:
        InputError: shapes differ, fewer than two usable pixels, a constant prediction, or no fit with positive scale
            that any tenth of the pixels agrees with.
    """
    if not 0 < threshold < 1:
        raise InputError(f"threshold {threshold}", "give a relative difference between 0 and 1")
    inverse = np.asarray(inverse_prediction, dtype=np.float64)
    metric = np.asarray(metric_depth, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        usable = np.isfinite(metric) & (metric > 0) & np.isfinite(inverse)
    if valid is not None and np.shape(valid) == usable.shape:
        usable &= np.asarray(valid, dtype=bool)
    x, z, _ = _samples(
        inverse, metric, usable if valid is None or np.shape(valid) == usable.shape else valid, None, 2
    )
    low, high = float(x.min()), float(x.max())
    if not high > low:
        raise InputError("the relative depth is constant", "nothing can be aligned")
    # With x in [0, 1] the fit is as well conditioned as it can be.
    x = (x - low) / (high - low)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(x))[:samples]
    xs, zs = x[chosen], z[chosen]
    first, second = rng.integers(0, len(xs), (2, trials))
    gap = xs[first] - xs[second]
    with np.errstate(divide="ignore", invalid="ignore"):
        scales = (1 / zs[first] - 1 / zs[second]) / gap
    proposals = [
        (scale, 1 / zs[i] - scale * xs[i])
        for scale, i in zip(scales, first, strict=True)
        if 0 < scale < np.inf
    ]
    plain = _least_squares(xs, 1 / zs, zs * zs)
    proposals.append((plain.scale, plain.shift))

    def score(fit: tuple[float, float]) -> float:
        return float(np.minimum(((fit[0] * xs + fit[1]) * zs - 1) ** 2, threshold**2).sum())

    scale, shift = min(proposals, key=score)
    # Tukey's function rejects at 4.685 standard deviations; the threshold stands for 2.5.
    reach = 4.685 / 2.5 * threshold
    for _ in range(30):
        error = (scale * x + shift) * z - 1
        weights = np.where(np.abs(error) < reach, (1 - (error / reach) ** 2) ** 2, 0) * z * z
        if np.count_nonzero(weights) < 2:
            break
        refit = _least_squares(x, 1 / z, weights)
        settled = abs(refit.scale - scale) + abs(refit.shift - shift) <= 1e-9 * (abs(scale) + abs(shift))
        scale, shift = refit.scale, refit.shift
        if settled:
            break
    affine = Affine(scale / (high - low), shift - scale * low / (high - low))
    aligned = affine.scale * inverse + affine.shift
    with np.errstate(invalid="ignore", divide="ignore"):
        departure = np.log(np.where(aligned > 0, aligned, np.nan) * np.where(usable, metric, np.nan))
        inliers = np.abs(departure) <= np.log1p(threshold)
    share = float(inliers.sum()) / max(1, int(usable.sum()))
    if not scale > 0:
        raise InputError(
            "relative depth that falls where metric depth says nearer",
            "check that larger relative depth means nearer, or go without one of the two",
        )
    if share < 0.1:
        raise InputError(
            f"relative and metric depth agree on {100 * share:.0f} % of the pixels",
            "check that larger relative depth means nearer, or go without one of the two",
        )
    inside = departure[inliers]
    spread = 1.4826 * float(np.median(np.abs(inside - np.median(inside))))
    return RobustFit(affine, inliers, float(share), spread, threshold)


def merge_depths(
    metric_depth: np.ndarray, inverse_prediction: np.ndarray, fit: RobustFit, *, radius: int | None = None
) -> np.ndarray:
    """One depth with the metric depth's large-scale values and the relative depth's sharp edges, (H, W) float32.

    The aligned relative depth is corrected by the log ratio of both, smoothed by a guided filter (He, Sun, Tang 2013,
    guide: the aligned log depth) over the inliers: the correction may follow the relative depth's own edges, but
    brings in none of the metric depth's. What the fit puts farther than any metric depth ends there; what it puts
    behind infinity keeps the metric depth.

    Args:
        metric_depth: (H, W) metres.
        inverse_prediction: (H, W), as given to :func:`align_inverse_to_metric`.
        fit: its result.
        radius: of the filter's window in pixels; by default a sixteenth of the longer side.
    """
    import cv2

    metric = np.asarray(metric_depth, dtype=np.float64)
    inverse = fit.affine.scale * np.asarray(inverse_prediction, dtype=np.float64) + fit.affine.shift
    farthest = (1 + fit.threshold) * np.max(metric[np.isfinite(metric)], initial=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ahead = inverse > 1e-4
        inverse = np.maximum(inverse, 1 / np.float64(farthest))
    guide = -np.log(np.where(ahead, inverse, 1.0))
    weight = (fit.inliers & ahead).astype(np.float64)
    ratio = np.where(weight > 0, np.log(np.where(weight > 0, metric, 1.0)) - guide, 0.0)
    radius = max(2, max(metric.shape) // 16) if radius is None else radius

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT_101)

    share = mean(weight)
    there = share > 1e-3
    safe = np.where(there, share, 1.0)
    mean_g, mean_r = mean(weight * guide) / safe, mean(weight * ratio) / safe
    variance = np.maximum(mean(weight * guide * guide) / safe - mean_g**2, 0)
    slope = (mean(weight * guide * ratio) / safe - mean_g * mean_r) / (variance + 0.1**2)
    constant = mean_r - slope * mean_g
    slope, constant = np.where(there, slope, 0), np.where(there, constant, 0)
    correction = mean(slope) * guide + mean(constant)
    merged = np.exp(guide + np.clip(correction, -np.log1p(fit.threshold) * 2, np.log1p(fit.threshold) * 2))
    return np.where(ahead, merged, metric).astype(np.float32)


def affine_inverse_to_depth(
    inverse_prediction: np.ndarray,
    affine: Affine | None = None,
    *,
    nearest: float = 1e-3,
    farthest: float = 1e3,
) -> np.ndarray:
    """Depth of an (aligned) inverse depth, kept within [nearest, farthest]; float32.

    Inverse depth at or below ``1 / farthest``, where an affine fit may well go, becomes ``farthest``.
    """
    inverse = np.asarray(inverse_prediction, dtype=np.float64)
    if affine is not None:
        inverse = affine.scale * inverse + affine.shift
    return (1 / np.clip(inverse, 1 / farthest, 1 / nearest)).astype(np.float32)


def _samples(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray | None,
    weights: np.ndarray | None,
    needed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = np.asarray(prediction, dtype=np.float64), np.asarray(target, dtype=np.float64)
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=np.float64)
    for name, other in (("target", y), ("valid", valid), ("weights", w)):
        if other is not None and np.shape(other) != x.shape:
            raise InputError(
                f"prediction of shape {x.shape} with {name} of shape {np.shape(other)}", "resize one"
            )
    usable = np.isfinite(x) & np.isfinite(y) & np.isfinite(w) & (w > 0)
    if valid is not None:
        usable &= np.asarray(valid, dtype=bool)
    if np.count_nonzero(usable) < needed:
        raise InputError(
            f"only {np.count_nonzero(usable)} usable samples to align", f"give at least {needed}"
        )
    return x[usable], y[usable], w[usable]


def _least_squares(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> Affine:
    """Weighted simple regression about the means, which keeps its digits when the shift is large."""
    w = w / w.sum()
    mean_x, mean_y = float(w @ x), float(w @ y)
    dx = x - mean_x
    variance = float(w @ (dx * dx))
    if variance <= 1e-24 * max(mean_x * mean_x, 1e-300):
        return Affine(0.0, mean_y)
    scale = float(w @ (dx * (y - mean_y))) / variance
    return Affine(scale, mean_y - scale * mean_x)


def _trimmed(x: np.ndarray, y: np.ndarray, w: np.ndarray, trim: float, iterations: int) -> Affine:
    """Least trimmed squares by concentration steps, from the l1 fit that outliers hardly move."""
    if not 0 <= trim < 1:
        raise InputError(f"trim={trim}", "give a share from 0 up to 1")
    fit = align_affine(x, y, weights=w, robust="l1")
    keep_count = max(2, round((1 - trim) * len(x)))
    before = None
    for _ in range(iterations):
        kept = np.argpartition(np.abs(y - (fit.scale * x + fit.shift)), keep_count - 1)[:keep_count]
        kept.sort()
        if before is not None and np.array_equal(kept, before):
            break
        fit, before = _least_squares(x[kept], y[kept], w[kept]), kept
    return fit
