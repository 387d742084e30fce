"""Optical flow between frames of a video: where pixels came from, how maps are carried along, what does not match."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Motion:
    """Backward motion from a frame to the one before it.

    Attributes:
        flow: (H, W, 2) float32; pixel (x, y) of this frame was at (x, y) + flow in the one before.
        match: (H, W) float32 in [0, 1]: how far the two frames agree there; 0 where the pixel was hidden or outside.
    """

    flow: np.ndarray
    match: np.ndarray

    def resized(self, size: tuple[int, int]) -> Motion:
        """The same motion on a grid of ``size`` (height, width), in its pixels."""
        import cv2

        height, width = size
        scale = np.array([width / self.flow.shape[1], height / self.flow.shape[0]], np.float32)
        flow = cv2.resize(self.flow, (width, height), interpolation=cv2.INTER_AREA) * scale
        return Motion(flow, cv2.resize(self.match, (width, height), interpolation=cv2.INTER_AREA))


def motion(previous: np.ndarray, current: np.ndarray) -> Motion:
    """Motion between two frames (H, W, 3) uint8 by DIS optical flow, checked forwards and backwards.

    A pixel matches as far as the way there and back ends where it started (within a pixel or a hundredth of the way)
    and both pixels look alike.
    """
    import cv2

    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (previous, current)]
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    back = finder.calc(grey[1], grey[0], None)
    forth = finder.calc(grey[0], grey[1], None)
    astray = np.linalg.norm(back + warp(forth, back), axis=-1)
    tolerance = 1.0 + 0.01 * np.linalg.norm(back, axis=-1)
    unlike = np.abs(warp(previous.astype(np.float32), back) - current).mean(axis=-1)
    match = np.exp(-np.square(astray / tolerance)) * np.exp(-np.square(unlike / 24.0))
    height, width = grey[0].shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    there = np.stack([x, y], -1) + back
    inside = ((there >= 0) & (there <= np.array([width - 1, height - 1]))).all(-1)
    return Motion(back, (match * inside).astype(np.float32))


def warp(values: np.ndarray, flow: np.ndarray, *, nearest: bool = False) -> np.ndarray:
    """Values (H, W) or (H, W, C) of the frame before, carried to this one by its backward flow (H, W, 2).

    Args:
        values: of the frame before.
        flow: see :class:`Motion`.
        nearest: take the nearest pixel instead of a mixture, which keeps the variance of noise.
    """
    import cv2

    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    method = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return cv2.remap(
        np.ascontiguousarray(values),
        x + flow[..., 0],
        y + flow[..., 1],
        method,
        borderMode=cv2.BORDER_REPLICATE,
    )


def flicker(fields: list[np.ndarray], motions: list[Motion], threshold: float = 0.5) -> float:
    """Mean angle in degrees between normals and those of the frame before carried along, where frames match.

    Args:
        fields: (H, W, 3) unit normals of successive frames.
        motions: from each frame but the first to the one before it, of the same size.
        threshold: least match of a pixel that counts.

    Returns:
        The mean over pixels and frames; NaN where no pixel matches.
    """
    angles = []
    for (before, field), moved in zip(pairwise(fields), motions, strict=True):
        carried = warp(before, moved.flow)
        lengths = np.linalg.norm(carried, axis=-1) * np.linalg.norm(field, axis=-1)
        counted = (moved.match > threshold) & (lengths > 0.25)
        cosine = (carried * field).sum(-1)[counted] / lengths[counted]
        angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    heap = np.concatenate(angles) if angles else np.empty(0)
    return float(heap.mean()) if heap.size else float("nan")
