"""Measures of correspondence: PCK in its four published conventions, and the errors of dense flow.

A point is correct when its error is below ``alpha`` times a reference length. What differs between papers is the
length (the larger side of the target's bounding box, or of the image) and the mean: over all points of a category
("per point"), or over pairs, each with its own share ("per image"). Numbers of different conventions cannot be
compared, so a result always carries the name of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ALPHAS = (0.1, 0.05, 0.01)
CONVENTIONS = ("per_point_bbox", "per_point_image", "per_image_bbox", "per_image_image")


@dataclass(frozen=True)
class PairErrors:
    """What one pair contributes.

    Attributes:
        category: of its objects.
        errors: (N,) distances of the predicted from the true points, in pixels.
        box: larger side of the target's bounding box in the same pixels, NaN where the set has none.
        image: larger side of the target image in the same pixels.
    """

    category: str
    errors: np.ndarray
    box: float
    image: float

    def correct(self, alpha: float, threshold: str) -> np.ndarray:
        """(N,) bool: error strictly below ``alpha`` times the ``bbox`` or ``image`` length."""
        return self.errors < alpha * (self.box if threshold == "bbox" else self.image)


@dataclass
class PCK:
    """Shares of correct points of many pairs.

    Attributes:
        pairs: what is counted.
        alphas: thresholds, relative to the reference length.
    """

    pairs: list[PairErrors] = field(default_factory=list)
    alphas: tuple[float, ...] = ALPHAS

    def per_point(self, threshold: str = "bbox", category: str | None = None) -> np.ndarray:
        """(alphas,) share over all points pooled."""
        chosen = self._of(category)
        total = sum(len(pair.errors) for pair in chosen)
        counts = [sum(int(pair.correct(a, threshold).sum()) for pair in chosen) for a in self.alphas]
        return np.array(counts) / total if total else np.full(len(self.alphas), np.nan)

    def per_image_each(self, threshold: str = "bbox", category: str | None = None) -> np.ndarray:
        """(pairs, alphas) each pair's own share; pairs without points are left out."""
        chosen = [pair for pair in self._of(category) if len(pair.errors)]
        shares = [[pair.correct(a, threshold).mean() for a in self.alphas] for pair in chosen]
        return np.array(shares).reshape(len(chosen), len(self.alphas))

    def per_image(self, threshold: str = "bbox", category: str | None = None) -> np.ndarray:
        """(alphas,) mean over pairs of each pair's share."""
        each = self.per_image_each(threshold, category)
        return each.mean(0) if len(each) else np.full(len(self.alphas), np.nan)

    def of(self, convention: str, category: str | None = None) -> np.ndarray:
        """(alphas,) by the name of a convention, one of :data:`CONVENTIONS`."""
        averaging, _, threshold = convention.rpartition("_")
        return (self.per_point if averaging == "per_point" else self.per_image)(threshold, category)

    @property
    def categories(self) -> list[str]:
        """Names in alphabetical order."""
        return sorted({pair.category for pair in self.pairs})

    def table(self, weights: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Everything as JSON: each convention over all pairs, per category, plain and weighted means of categories.

        Args:
            weights: of the categories, the published numbers of test pairs; by default the pairs counted here.
        """
        weights = dict(weights or {c: len(self._of(c)) for c in self.categories})
        result: dict[str, Any] = {"alphas": list(self.alphas), "pairs": len(self.pairs)}
        result["points"] = sum(len(pair.errors) for pair in self.pairs)
        for convention in CONVENTIONS:
            by_category = {c: self.of(convention, c) for c in self.categories}
            values = np.array([by_category[c] for c in self.categories]).reshape(-1, len(self.alphas))
            if convention.endswith("bbox") and not all(np.isfinite(p.box) for p in self.pairs):
                continue
            counted = np.array([float(weights.get(c, 0)) for c in self.categories])
            result[convention] = {
                "all_pairs": self.of(convention).tolist(),
                "mean_of_categories": values.mean(0).tolist(),
                "weighted_by_pairs": (counted @ values / counted.sum()).tolist() if counted.sum() else None,
                "categories": {c: v.tolist() for c, v in by_category.items()},
            }
        return result

    def _of(self, category: str | None) -> list[PairErrors]:
        return [p for p in self.pairs if category is None or p.category == category]


def endpoint_error(flow: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(H, W) distance between two flows ``(H, W, 2)``, in pixels."""
    return np.linalg.norm(np.asarray(flow, np.float64) - np.asarray(truth, np.float64), axis=-1)


def smoothness(flow: np.ndarray, mask: np.ndarray) -> float:
    """Total variation of a masked flow per masked pixel: forward differences in both directions, border repeated."""
    masked = np.where(mask[..., None], np.asarray(flow, np.float64), 0.0)
    vertical = np.abs(np.diff(masked, axis=0)).sum()
    horizontal = np.abs(np.diff(masked, axis=1)).sum()
    return float((vertical + horizontal) / max(1, int(mask.sum())))


@dataclass(frozen=True)
class FlowErrors:
    """Errors of one flow field inside a mask.

    Attributes:
        aepe: mean endpoint error in pixels.
        pck: for each alpha, share of pixels with an error of at most alpha times the length.
        smoothness, true_smoothness: see :func:`smoothness`.
    """

    aepe: float
    pck: tuple[float, ...]
    smoothness: float
    true_smoothness: float


TSS_ALPHAS = (0.01, 0.05, 0.1, 0.15)


def flow_errors(
    flow: np.ndarray,  # [H, W, 2]
    truth: np.ndarray,
    mask: np.ndarray,  # [H, W] bool
    length: float,
    alphas: Sequence[float] = TSS_ALPHAS,
) -> FlowErrors:
    """Errors of a flow against the true one.

    Args:
        flow, truth: x, y in pixels.
        mask: what counts.
        length: reference of the thresholds: the larger side of the source image (in the published code the largest
            entry of its shape, channels included).
        alphas: thresholds, inclusive.
    """
    errors = endpoint_error(flow, truth)[mask]
    shares = tuple(float((errors <= a * length).mean()) if len(errors) else float("nan") for a in alphas)
    mean = float(errors.mean()) if len(errors) else float("nan")
    return FlowErrors(mean, shares, smoothness(flow, mask), smoothness(truth, mask))
