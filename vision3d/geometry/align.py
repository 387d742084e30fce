"""Scale and shift between a prediction and a reference, in depth or in inverse depth; all in float64.

Affine-invariant predictions are known up to ``scale * prediction + shift``. The shift may be fitted in depth
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
