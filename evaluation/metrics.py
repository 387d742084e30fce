"""Depth metrics and the affine alignment that precedes them, in float64.

Affine-invariant predictions are known up to a scale and a shift, either of depth or of inverse depth, so
each is first fitted to the ground truth by least squares over the valid pixels and then scored as metric
depth. The fit exists in a published variant (``width_only_resize``) whose numbers differ by 0.5–1 %;
comparisons with tables computed that way need it.

Sources: the PrimeDepth evaluation protocol, and the ten measures of the depth literature (Eigen et al. 2014;
scale-invariant logarithmic error in the KITTI benchmark's form).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from vision3d.errors import InputError
from vision3d.geometry.align import Affine, align_affine

# Aligned inverse depth is kept above this before it is inverted: 1000 m.
INVERSE_DEPTH_FLOOR = 1e-3


@dataclass(frozen=True)
class DepthMetrics:
    """The ten measures of one image, or their average over images; fields in the published order.

    With d the prediction, g the ground truth, l = ln d - ln g, over valid pixels:

    Attributes:
        abs_rel: mean of |d - g| / g.
        sq_rel: mean of (d - g)² / g.
        rmse: root mean square of d - g, in the unit of depth.
        rmse_log: root mean square of l.
        log10: mean of |log10 d - log10 g|.
        delta1, delta2, delta3: share of pixels with max(d/g, g/d) below 1.25, 1.25², 1.25³.
        i_rmse: root mean square of 1/d - 1/g.
        silog: 100 times the standard deviation of l.
    """

    abs_rel: float
    sq_rel: float
    rmse: float
    rmse_log: float
    log10: float
    delta1: float
    delta2: float
    delta3: float
    i_rmse: float
    silog: float

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The measures' names in the published order."""
        return tuple(field.name for field in fields(cls))

    def as_array(self) -> np.ndarray:
        """(10,) float64 in the published order."""
        return np.array([getattr(self, name) for name in self.names()])

    def as_dict(self) -> dict[str, float]:
        """Name to value, for JSON."""
        return asdict(self)

    @classmethod
    def average(cls, per_image: Iterable[DepthMetrics]) -> DepthMetrics:
        """Mean over images of each measure, every image counting the same. InputError when there is none."""
        rows = [metrics.as_array() for metrics in per_image]
        if not rows:
            raise InputError("an average over no images", "evaluate at least one image")
        return cls(*np.mean(rows, axis=0).tolist())


def depth_metrics(prediction: Any, target: Any, valid: Any) -> DepthMetrics:
    """The ten measures of one image.

    Args:
        prediction: (H, W) depth, positive where valid.
        target: (H, W) ground-truth depth in the same unit, positive where valid.
        valid: (H, W) bool, the pixels that count.

    Raises:
        InputError: shapes differ, nothing is valid, or a valid value is not positive and finite.
    """
    d, g = _valid_values(prediction, target, valid)
    for name, values in (("prediction", d), ("ground truth", g)):
        if not np.isfinite(values).all() or values.min() <= 0:
            raise InputError(
                f"{name} with valid depths that are not positive and finite", "mask or clip them first"
            )
    error = d - g
    log_ratio = np.log(d) - np.log(g)
    ratio = np.maximum(d / g, g / d)
    # The variance is formed as published (mean square minus squared mean), guarded against rounding below
    # zero.
    variance = max(np.mean(log_ratio**2) - np.mean(log_ratio) ** 2, 0.0)
    return DepthMetrics(
        abs_rel=float(np.mean(np.abs(error) / g)),
        sq_rel=float(np.mean(error**2 / g)),
        rmse=float(np.sqrt(np.mean(error**2))),
        rmse_log=float(np.sqrt(np.mean(log_ratio**2))),
        log10=float(np.mean(np.abs(np.log10(d) - np.log10(g)))),
        delta1=float(np.mean(ratio < 1.25)),
        delta2=float(np.mean(ratio < 1.25**2)),
        delta3=float(np.mean(ratio < 1.25**3)),
        i_rmse=float(np.sqrt(np.mean((1 / d - 1 / g) ** 2))),
        silog=float(100 * np.sqrt(variance)),
    )


def delta_accuracy(prediction: Any, target: Any, valid: Any, threshold: float) -> float:
    """Share of the valid pixels with max(d/g, g/d) below a threshold; arguments as in :func:`depth_metrics`."""
    d, g = _valid_values(prediction, target, valid)
    return float(np.mean(np.maximum(d / g, g / d) < threshold))


def fit_affine(
    prediction: Any,
    target: Any,
    valid: Any,
    *,
    max_resolution: int | None = None,
    width_only_resize: bool = False,
) -> Affine:
    """Least-squares scale and shift of a prediction to its target over the valid pixels.

    Args:
        prediction: (H, W), any real values.
        target: (H, W), depth or inverse depth.
        valid: (H, W) bool.
        max_resolution: fit on maps reduced by nearest neighbour so that no side is longer than this.
        width_only_resize: reduce columns only and keep every row, as the published evaluation scripts do.

    Returns:
        the map that takes ``prediction`` to ``target``. A prediction that is constant over the valid pixels
        gets scale 0 and the target's mean.

    Raises:
        InputError: shapes differ, nothing is valid, or a valid value is not finite.
    """
    prediction, target, valid = (np.asarray(a) for a in (prediction, target, valid))
    _check_shapes(prediction, target, valid)
    if max_resolution is not None:
        keep = nearest_reduction(prediction.shape, max_resolution, width_only=width_only_resize)
        prediction, target, valid = (a[keep] for a in (prediction, target, valid))
    x, y = _valid_values(prediction, target, valid)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("a fit over values that are not finite", "take them out of the valid mask")
    return align_affine(x, y)


def nearest_reduction(
    shape: tuple[int, ...], max_resolution: int, *, width_only: bool = False
) -> tuple[np.ndarray, ...]:
    """Rows and columns that a nearest-neighbour reduction to at most ``max_resolution`` keeps.

    With s = min(R/h, R/w) below 1, output index j takes source floor(j · 1/s), j < floor(s · size), the product in
    float32: torch's nearest interpolation, in which the published scripts run. ``width_only`` leaves the rows alone:
    they hand a 2-D map to a 1-D resize, so only the last axis shrinks.

    Returns:
        an open mesh to index an (H, W) array with.
    """
    height, width = shape[:2]
    factor = min(max_resolution / height, max_resolution / width)
    if factor >= 1:
        return np.ix_(np.arange(height), np.arange(width))

    def kept(size: int) -> np.ndarray:
        steps = np.arange(max(1, int(size * factor)), dtype=np.float32)
        indices = np.floor(steps * np.float32(1 / factor)).astype(int)
        return np.minimum(indices, size - 1)

    return np.ix_(np.arange(height) if width_only else kept(height), kept(width))


def align_depth(
    prediction: Any,
    target: Any,
    valid: Any,
    near: float,
    far: float,
    *,
    max_resolution: int | None = None,
    width_only_resize: bool = False,
) -> tuple[np.ndarray, Affine]:
    """Align an affine-invariant depth prediction in depth and clip it to the data set's range.

    Args:
        prediction: (H, W) affine-invariant depth, larger = farther.
        target: (H, W) metres.
        valid: (H, W) bool.
        near, far: range in metres; ``far`` may be infinite.
        max_resolution, width_only_resize: see :func:`fit_affine`.

    Returns:
        depth (H, W) float64 in metres, and the fit.
    """
    affine = fit_affine(
        prediction, target, valid, max_resolution=max_resolution, width_only_resize=width_only_resize
    )
    return np.clip(affine(np.asarray(prediction, np.float64)), near, far), affine


def align_inverse_depth(
    prediction: Any,
    target: Any,
    valid: Any,
    near: float,
    far: float,
    *,
    positive_only: bool = False,
    max_resolution: int | None = None,
    width_only_resize: bool = False,
) -> tuple[np.ndarray, Affine]:
    """Align an affine-invariant inverse-depth prediction to 1/depth, invert, clip to the data set's range.

    Args:
        prediction: (H, W) affine-invariant inverse depth, larger = nearer, unbounded.
        target: (H, W) depth in metres, positive where valid.
        valid: (H, W) bool.
        near, far: range in metres; ``far`` may be infinite.
        positive_only: leave pixels with a prediction ≤ 0 out of the fit. Published scripts do so for methods
            whose disparity is positive by construction; for unbounded predictions (PrimeDepth) it is wrong.
        max_resolution, width_only_resize: see :func:`fit_affine`.

    Returns:
        depth (H, W) float64 in metres, and the fit in inverse depth (1/m).
    """
    prediction, target = np.asarray(prediction, np.float64), np.asarray(target, np.float64)
    valid = np.asarray(valid, bool)
    _check_shapes(prediction, target, valid)
    inverse = np.divide(1.0, target, out=np.zeros_like(target), where=valid & (target > 0))
    fitted = valid & (target > 0)
    if positive_only:
        fitted &= prediction > 0
    affine = fit_affine(
        prediction, inverse, fitted, max_resolution=max_resolution, width_only_resize=width_only_resize
    )
    depth = 1.0 / np.maximum(affine(prediction), INVERSE_DEPTH_FLOOR)
    return np.clip(depth, near, far), affine


def _check_shapes(prediction: np.ndarray, target: np.ndarray, valid: np.ndarray) -> None:
    if prediction.ndim != 2 or not prediction.shape == target.shape == valid.shape:
        raise InputError(
            f"prediction {prediction.shape}, ground truth {target.shape} and mask {valid.shape}",
            "give three maps of one shape (H, W)",
        )


def _valid_values(prediction: Any, target: Any, valid: Any) -> tuple[np.ndarray, np.ndarray]:
    """The valid pixels of two maps as two float64 vectors."""
    prediction, target, valid = np.asarray(prediction), np.asarray(target), np.asarray(valid, dtype=bool)
    _check_shapes(prediction, target, valid)
    if not valid.any():
        raise InputError(
            "ground truth without a single valid pixel", "leave this image out or check its range"
        )
    return prediction[valid].astype(np.float64), target[valid].astype(np.float64)
