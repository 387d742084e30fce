"""The square canvases that both networks see, and the way of points onto them and back (section 3.1).

An image keeps its shape: its long side is resized to the canvas, the rest is black or repeats the border. Two
conventions for points meet here. Everywhere else in vision3d pixel centres lie at +0.5; the published evaluation
counts them from whole numbers and moves a keypoint by scale and offset only. Both are given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Canvas:
    """How an image lies on a square canvas.

    Attributes:
        height, width: of the image in pixels.
        side: of the canvas in pixels.
    """

    height: int
    width: int
    side: int

    @property
    def scale(self) -> float:
        """Canvas pixels per image pixel."""
        return self.side / max(self.height, self.width)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the resized image; the short side is rounded half to even, and at least 1."""
        short = max(1, self._short)
        return (short, self.side) if self.height <= self.width else (self.side, short)

    @property
    def _short(self) -> int:
        return int(np.around(self.side * min(self.height, self.width) / max(self.height, self.width)))

    @property
    def corner(self) -> tuple[int, int]:
        """(row, column) of the image's first pixel on the canvas."""
        height, width = self.shape
        return (self.side - height) // 2, (self.side - width) // 2

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas that the image covers."""
        (top, left), (height, width) = self.corner, self.shape
        return slice(top, top + height), slice(left, left + width)

    def to_canvas(self, points: np.ndarray) -> np.ndarray:
        """Image points (..., 2) as x, y with pixel centres at +0.5, on the canvas in the same convention."""
        (top, left), (height, width) = self.corner, self.shape
        ratio = np.array([width / self.width, height / self.height])
        return np.asarray(points, np.float64) * ratio + [left, top]

    def to_image(self, points: np.ndarray) -> np.ndarray:
        """Inverse of :meth:`to_canvas`; points in the padding come out beyond the image's border."""
        (top, left), (height, width) = self.corner, self.shape
        ratio = np.array([width / self.width, height / self.height])
        return (np.asarray(points, np.float64) - [left, top]) / ratio


@dataclass(frozen=True)
class CellGrid:
    """Cells on the canvas of one image.

    Attributes:
        canvas: of the image.
        shape: (h, w) cells.
        step: canvas pixels from one cell to the next.
        offset: canvas coordinate of the first cell's middle, the same for x and y.
    """

    canvas: Canvas
    shape: tuple[int, int]
    step: float
    offset: float

    def to_cells(self, points: np.ndarray) -> np.ndarray:
        """Image points (N, 2) as continuous places on the grid: x, y, middles of cells at +0.5."""
        return (self.canvas.to_canvas(points) - self.offset) / self.step + 0.5

    def to_image(self, places: np.ndarray) -> np.ndarray:
        """Inverse of :meth:`to_cells`, kept within the image."""
        points = self.canvas.to_image((np.asarray(places, np.float64) - 0.5) * self.step + self.offset)
        return np.clip(points, 0, [self.canvas.width, self.canvas.height])

    def nearest(self, points: np.ndarray) -> np.ndarray:
        """(N,) index ``row * w + column`` of the cell in which each image point lies, or of the closest one."""
        cell = np.floor(self.to_cells(points)).astype(np.int64)
        column, row = np.clip(cell[:, 0], 0, self.shape[1] - 1), np.clip(cell[:, 1], 0, self.shape[0] - 1)
        return row * self.shape[1] + column

    def middles(self) -> tuple[np.ndarray, np.ndarray]:
        """Canvas coordinates of the cells' middles: y (h,) and x (w,)."""
        return tuple(self.offset + self.step * np.arange(count) for count in self.shape)  # type: ignore[return-value]

    def covering(self) -> tuple[slice, slice]:
        """Rows and columns of the cells that are nearest to some place of the image."""
        height, width = self.canvas.height, self.canvas.width
        first, last = self.nearest(np.array([[0, 0], [width, height]]))
        columns = self.shape[1]
        return slice(first // columns, last // columns + 1), slice(first % columns, last % columns + 1)

    def inside(self, mask: np.ndarray | None = None) -> np.ndarray:
        """(h * w,) bool: cells at least a quarter of whose side lies on the image, with their middle in a mask of it.

        A mask (H, W) that holds no cell's middle keeps the cells that it touches.
        """
        y, x = np.meshgrid(*self.middles(), indexing="ij")
        points = self.canvas.to_image(np.stack([x, y], -1).reshape(-1, 2))
        height, width = self.canvas.height, self.canvas.width
        reach = 0.25 * self.step / self.canvas.scale
        limit = np.array([width, height]) + reach
        on = np.asarray(((points >= -reach) & (points <= limit)).all(axis=1))
        if mask is None:
            return on
        column, row = np.clip(points.astype(np.int64), 0, [width - 1, height - 1]).T
        chosen = on & np.asarray(mask, bool)[row, column]
        if not chosen.any():
            rows, columns = np.nonzero(mask)
            chosen[self.nearest(np.stack([columns + 0.5, rows + 0.5], 1))] = True
        return chosen


def square(image: np.ndarray, side: int, *, edge: bool = False) -> np.ndarray:
    """An image on a square canvas, centred, resized with Pillow's Lanczos filter.

    Args:
        image: (H, W, 3) or (H, W) uint8.
        side: of the canvas in pixels.
        edge: repeat border pixels in the padding instead of leaving it black.

    Returns:
        (side, side, 3) or (side, side) uint8.
    """
    canvas = Canvas(image.shape[0], image.shape[1], side)
    height, width = canvas.shape
    small = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
    top, left = canvas.corner
    margins = [(top, side - height - top), (left, side - width - left)] + [(0, 0)] * (image.ndim - 2)
    return np.pad(small, margins, mode="edge" if edge else "constant")


def published_keypoints(
    keypoints: np.ndarray, width: int, height: int, side: int
) -> tuple[np.ndarray, tuple[int, int, float]]:
    """Keypoints (N, 3) as x, y, visible on the canvas, by the published rule.

    Returns:
        (N, 3) float64, invisible rows zero; and (offset x, offset y, scale).
    """
    canvas = Canvas(height, width, side)
    pad = (side - canvas._short) // 2  # of a very long image by its short side of no pixel, as published
    top, left = (pad, 0) if height <= width else (0, pad)
    result = np.asarray(keypoints, np.float64).copy()
    result[:, :2] = result[:, :2] * canvas.scale + [left, top]
    result *= result[:, 2:3]
    return result, (left, top, canvas.scale)


def patch_count(side: int, patch: int, stride: int) -> int:
    """Cells along a side of the canvas, as the published evaluation counts them."""
    return int(patch / stride * (side // patch - 1) + 1)


def cells_of(points: np.ndarray, side: int, count: int, *, clamp: bool = True) -> np.ndarray:
    """Index ``row * count + column`` (N,) of the cell in which a canvas point (N, 2) as x, y lies.

    Truncates, as published. There a point on the far border leaves the grid; ``clamp`` keeps it in the last cell.
    """
    column, row = (
        (count / side * np.asarray(points, np.float64)[:, axis]).astype(np.int32) for axis in (0, 1)
    )
    if clamp:
        column, row = np.clip(column, 0, count - 1), np.clip(row, 0, count - 1)
    return row * count + column


def cell_points(cells: np.ndarray, count: int, stride: float, patch: float) -> np.ndarray:
    """Canvas points (N, 2) as x, y at the middle of cells, pixel centres at whole numbers, as published."""
    cells = np.asarray(cells)
    return np.stack([cells % count, cells // count], axis=-1) * stride + (patch // 2 - 0.5)
