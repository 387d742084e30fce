"""Masks from a few marks on a photograph: clicks and strokes on the object or beside it, and outlines around it.

The marks seed GrabCut (Rother, Kolmogorov, Blake: "GrabCut", SIGGRAPH 2004, as OpenCV has it), which finds the border
between two mixtures of colours; no network is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from vision3d.errors import InputError

MarkKind = Literal["object", "background", "outline"]
WORKING_SIDE = 400
"""Longest side in pixels at which the border is sought."""
_ROUNDS = 4
_ALIKE = 12.0  # of 255 in each channel of CIELAB between neighbours that one click takes together
_SEED = 0


@dataclass(frozen=True)
class Mark:
    """What a hand drew.

    Attributes:
        kind: a stroke on the object or on the background, or an outline around the object.
        points: (N, 2) x, y in pixels of the photograph; one for a click.
        width: of the stroke in pixels of the photograph.
    """

    kind: MarkKind
    points: np.ndarray
    width: float = 0.0

    def __post_init__(self) -> None:
        points = np.asarray(self.points, np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.isfinite(points).all():
            raise InputError(f"a mark at points of shape {points.shape}", "give (N, 2) numbers in pixels")
        if self.kind not in get_args(MarkKind) or not (0 <= self.width < np.inf):
            raise InputError(
                f"a mark of kind {self.kind!r}, {self.width:g} pixels wide",
                f"choose from {', '.join(get_args(MarkKind))}",
            )
        object.__setattr__(self, "points", points)


def mask_of_marks(image: np.ndarray, marks: Sequence[Mark]) -> np.ndarray:
    """The object that marks mean.

    With outlines the object is sought inside them, without in all of the photograph, starting from what is coloured
    like the places that were clicked. What was painted is kept as it is.

    Args:
        image: (H, W, 3) uint8.
        marks: in the order in which they were made; later ones cover earlier ones.

    Returns:
        (H, W) bool; empty if no mark is on an object.
    """
    import cv2

    height, width = image.shape[:2]
    scale = min(1.0, WORKING_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
    found = _cut(np.ascontiguousarray(small), _seeds(small, marks, np.array(size) / [width, height]))
    return cv2.resize(found.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5


def _seeds(image: np.ndarray, marks: Sequence[Mark], ratio: np.ndarray) -> np.ndarray:
    """(h, w) uint8 in GrabCut's terms: sure and probable background and object."""
    import cv2

    seeds = np.full(image.shape[:2], cv2.GC_PR_BGD, np.uint8)
    loops = [_pixels(mark, ratio) for mark in marks if mark.kind == "outline"]
    clicked = [_pixels(mark, ratio) for mark in marks if mark.kind == "object"]
    if loops:
        inside = np.zeros_like(seeds)
        for loop in loops:
            cv2.fillPoly(inside, [loop], 1)
        seeds = np.where(inside > 0, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    elif clicked:
        lab = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), (0, 0), 1.0)
        for stroke in clicked:
            for x, y in stroke.tolist():
                seeds[_alike(lab, (x, y))] = cv2.GC_PR_FGD
    for mark in marks:
        if mark.kind != "outline":
            value = cv2.GC_FGD if mark.kind == "object" else cv2.GC_BGD
            thickness = max(1, round(mark.width * float(ratio.mean())))
            stroke = _pixels(mark, ratio)
            cv2.polylines(seeds, [stroke], False, int(value), thickness)
            for x, y in (stroke[0].tolist(), stroke[-1].tolist()):
                cv2.circle(seeds, (x, y), thickness // 2, int(value), -1)
    return seeds


def _pixels(mark: Mark, ratio: np.ndarray) -> np.ndarray:
    """(N, 2) int32 pixels of the small picture."""
    return np.floor(mark.points * ratio).astype(np.int32)


def _alike(lab: np.ndarray, place: tuple[int, int]) -> np.ndarray:
    """(h, w) bool: what hangs together with a pixel and has its colour."""
    import cv2

    height, width = lab.shape[:2]
    x, y = min(max(place[0], 0), width - 1), min(max(place[1], 0), height - 1)
    region = np.zeros((height + 2, width + 2), np.uint8)
    reach = (_ALIKE,) * 3
    flags = 4 | cv2.FLOODFILL_MASK_ONLY | cv2.FLOODFILL_FIXED_RANGE | (1 << 8)
    cv2.floodFill(lab, region, (x, y), (0, 0, 0), reach, reach, flags)
    return region[1:-1, 1:-1] > 0


def _cut(image: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """(h, w) bool: GrabCut's object, without pieces that no mark is on and without pinholes."""
    import cv2

    sure = seeds == cv2.GC_FGD
    maybe = sure | (seeds == cv2.GC_PR_FGD)
    if not maybe.any() or maybe.all():
        return maybe
    result = seeds.copy()
    cv2.setRNGSeed(_SEED)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(image, result, None, *models, _ROUNDS, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
    found = (result == cv2.GC_FGD) | (result == cv2.GC_PR_FGD)
    return _whole(found, sure) & (seeds != cv2.GC_BGD)


def _whole(found: np.ndarray, sure: np.ndarray) -> np.ndarray:
    """Pieces that hold a sure pixel, else those not much smaller than the largest; holes below a share are filled."""
    from scipy.ndimage import label

    pieces, count = label(found)
    if not count:
        return found
    areas = np.bincount(pieces.ravel(), minlength=count + 1)
    areas[0] = 0
    marked = np.unique(pieces[sure & found])
    keep = marked if len(marked) else np.flatnonzero(areas >= 0.1 * areas.max())
    kept = np.isin(pieces, keep[keep > 0])
    holes, number = label(~kept)
    sizes = np.bincount(holes.ravel(), minlength=number + 1)
    small = np.flatnonzero(sizes < 0.01 * kept.sum())
    return kept | np.isin(holes, small[small > 0])
