"""Normal metrics, in float64, by both protocols in use.

*Pooled*, the published StableNormal script: 8-bit pictures, the prediction resized as such, angles of all valid
pixels of all images in one heap; a ground-truth vector counts if its length lies between 0.5 and 1.5, and it is not
normalised. *Per image*, that of Marigold and most tables: float maps, pixels where the ground truth is not zero,
measures of each image averaged over images. They differ; tables must say which one they follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from vision3d.errors import InputError


@dataclass(frozen=True)
class NormalMetrics:
    """Angular errors over pixels.

    Attributes:
        mean, median, rmse: in degrees.
        below_5, below_7_5, below_11_25, below_22_5, below_30: percent of pixels with an angle below that.
    """

    mean: float
    median: float
    rmse: float
    below_5: float
    below_7_5: float
    below_11_25: float
    below_22_5: float
    below_30: float

    @classmethod
    def of_angles(cls, angles: np.ndarray) -> NormalMetrics:
        """Measures of angles in degrees, at least one. Raises InputError when there is none."""
        if not angles.size:
            raise InputError("normals without a single valid pixel", "leave this image out")
        shares = [100 * float(np.mean(angles < limit)) for limit in (5, 7.5, 11.25, 22.5, 30)]
        rmse = float(np.sqrt(np.mean(angles**2)))
        return cls(float(np.mean(angles)), float(np.median(angles)), rmse, *shares)

    @classmethod
    def average(cls, per_image: Iterable[NormalMetrics]) -> NormalMetrics:
        """Mean over images of each measure. Raises InputError when there is none."""
        rows = [list(asdict(metrics).values()) for metrics in per_image]
        if not rows:
            raise InputError("an average over no images", "evaluate at least one image")
        return cls(*np.mean(rows, axis=0).tolist())

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The measures' names in order."""
        return tuple(field.name for field in fields(cls))

    def as_dict(self) -> dict[str, float]:
        """Name to value, for JSON."""
        return asdict(self)


def angular_errors(prediction: Any, target: Any, valid: Any = None) -> np.ndarray:
    """Angles in degrees ``(N,)`` between two maps ``(H, W, 3)`` over the valid pixels.

    Neither needs unit length. By default a pixel counts where the target is not zero.

    Raises:
        InputError: shapes differ.
    """
    p, g = (np.asarray(a, np.float64) for a in (prediction, target))
    if p.shape != g.shape or p.ndim != 3 or p.shape[-1] != 3:
        raise InputError(f"normals {p.shape} against {g.shape}", "give two maps of one shape (H, W, 3)")
    lengths = np.linalg.norm(g, axis=-1)
    there = lengths > 0 if valid is None else np.asarray(valid, bool)
    p, g, lengths = p[there], g[there], lengths[there]
    scale = np.maximum(np.linalg.norm(p, axis=-1) * lengths, 1e-12)
    return np.degrees(np.arccos(np.clip(np.einsum("nc,nc->n", p, g) / scale, -1, 1)))


def normal_metrics(prediction: Any, target: Any, valid: Any = None) -> NormalMetrics:
    """The per-image protocol for one image; arguments as in :func:`angular_errors`."""
    return NormalMetrics.of_angles(angular_errors(prediction, target, valid))


# The published script -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PictureErrors:
    """One prediction against one ground truth, both as 8-bit pictures.

    Attributes:
        angles: (N,) degrees over valid pixels, the ground truth not normalised: rounding to 8 bits counts.
        unit_angles: (N,) the same between unit vectors.
        distance: root mean of the squared length of (unit prediction - ground truth); what the published script
            calls rmse, and no angle.
    """

    angles: np.ndarray
    unit_angles: np.ndarray
    distance: float


def picture_errors(prediction: np.ndarray, target: np.ndarray) -> PictureErrors:
    """Errors of an 8-bit prediction ``(h, w, 3)`` against an 8-bit ground truth ``(H, W, 3)``.

    The prediction is resized bilinearly as a picture if it has another size.
    """
    import cv2

    if prediction.shape != target.shape:
        prediction = cv2.resize(prediction, target.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    p, g = (a.astype(np.float64) / 255 * 2 - 1 for a in (prediction, target))
    p = p / np.maximum(np.linalg.norm(p, axis=-1, keepdims=True), 1e-12)
    length = np.linalg.norm(g, axis=-1)
    valid = (length > 0.5) & (length < 1.5)
    p, g = p[valid], g[valid]
    cosine = np.einsum("nc,nc->n", p, g)
    angles, unit = (np.degrees(np.arccos(np.clip(c, -1, 1))) for c in (cosine, cosine / length[valid]))
    distance = float(np.sqrt(np.mean(np.square(p - g).sum(-1)))) if len(p) else float("nan")
    return PictureErrors(angles, unit, distance)


def pooled_metrics(errors: Iterable[PictureErrors]) -> NormalMetrics:
    """Measures over all pixels of all images in one heap."""
    heap = [e.angles for e in errors]
    return NormalMetrics.of_angles(np.concatenate(heap) if heap else np.empty(0))


def seed_variance(means: Sequence[Sequence[float]]) -> float:
    """Mean over images of the population variance over seeds of the mean angular error, in square degrees.

    Args:
        means: one row per image, one mean angular error in degrees per seed.
    """
    return float(np.mean(np.var(np.asarray(means, np.float64), axis=1)))
