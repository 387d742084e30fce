"""Carrying labels through a video: a mask or other label map of one frame, found again in all others.

The usual protocol for features that were not trained for it (Jabri et al., 2020; Caron et al., 2021): each cell of a
frame takes the labels of its nearest cells in the first frame and in a few frames before it, weighted by similarity.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vision3d.errors import InputError
from vision3d.pipelines.sd_dino import matching
from vision3d.pipelines.sd_dino.flow import on_pixels
from vision3d.pipelines.sd_dino.options import MatchOptions

if TYPE_CHECKING:
    from vision3d.pipelines.sd_dino.canvas import CellGrid
    from vision3d.pipelines.sd_dino.pipeline import Descriptors, SDDino

MAX_LABELS = 256


@dataclass(frozen=True)
class Propagation:
    """How labels travel.

    Attributes:
        neighbours: cells whose labels are averaged.
        context: frames before the present one that are looked at, besides the first.
        radius: cells that a thing may have moved since any of those frames; None for no limit.
        temperature: of the softmax over their similarities.
    """

    neighbours: int = 5
    context: int = 4
    radius: int | None = 12
    temperature: float = 0.1

    def check(self) -> None:
        """Refuses values that cannot work. Raises InputError."""
        if self.neighbours < 1 or self.context < 0 or self.temperature <= 0 or (self.radius or 1) < 1:
            raise InputError(f"propagation {self}", "use positive numbers")


def cell_labels(labels: np.ndarray, descriptors: Descriptors, count: int) -> Tensor:
    """Label shares ``(h * w, count)`` of cells, for a label map (H, W) of the image: each cell's nearest pixels'."""
    height, width = labels.shape
    y, x = np.nonzero(np.ones_like(labels, bool))
    cell = descriptors.grid.nearest(np.stack([x + 0.5, y + 0.5], 1))
    table = np.zeros((len(descriptors.cells), count), np.float32)
    np.add.at(table, (cell, labels.reshape(height * width)), 1.0)
    total = table.sum(1, keepdims=True)
    table[:, 0] += total[:, 0] == 0  # cells of the padding belong to the background
    return torch.from_numpy(table / np.maximum(total, 1.0))


@torch.no_grad()
def propagate_labels(
    pipeline: SDDino,
    frames: Iterable[Any],
    labels: np.ndarray,
    *,
    how: Propagation | None = None,
    options: MatchOptions | None = None,
) -> Iterator[np.ndarray]:
    """Label maps (H, W) of the frames, one after the other; the first is the given one.

    All frames are compared in one basis, that of the first frame's features, so that each is described once; memory
    holds the first frame and ``context`` others.

    Args:
        pipeline: the method.
        frames: images or paths of one size, in order; see :func:`vision3d.io.video.iter_frames` for those of a file.
        labels: (H, W) integers from 0 (background) to 255 of the first frame.
        how: neighbours, context and radius.
        options: settings of the features.

    Raises:
        InputError: labels of another size than the first frame, or out of range.
    """
    how, options = how or Propagation(), options or MatchOptions()
    how.check()
    labels = np.asarray(labels)
    if labels.dtype.kind not in "biu" or labels.ndim != 2 or labels.min() < 0 or labels.max() >= MAX_LABELS:
        raise InputError(
            f"labels of type {labels.dtype} and shape {labels.shape}", "give (H, W) integers 0 to 255"
        )
    labels = labels.astype(np.int64)
    names = np.union1d([0], labels)
    numbered = np.searchsorted(names, labels)
    bases: Any = None
    first: tuple[Tensor, Tensor] | None = None
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=max(1, how.context))
    for frame in frames:
        features = pipeline.encode(frame, options)
        if bases is None:
            if features.size != labels.shape:
                raise InputError(
                    f"labels of shape {labels.shape} for a frame of {features.size}", "use one size"
                )
            bases = pipeline.common_basis([features], options) if features.sd else {}
        described = pipeline.describe_in(features, bases, options)
        cells = F.normalize(described.cells, dim=-1)
        if first is None:
            first = cells, cell_labels(numbered, described, len(names)).to(cells.device)
            yield labels
            continue
        sources = [first, *(recent if how.context else ())]
        shares = _spread(cells, described.shape, sources, how)
        if how.context:
            recent.append((cells, shares))
        table = shares.T.unflatten(1, described.shape).permute(1, 2, 0).cpu().numpy()
        yield names[_largest(table, described.grid)]


def _largest(shares: np.ndarray, grid: CellGrid) -> np.ndarray:
    """Which of the shares (h, w, K) of cells is largest at each pixel (H, W); one map of them at a time."""
    best = on_pixels(shares[..., 0], grid)
    largest = np.zeros(best.shape, np.int64)
    for k in range(1, shares.shape[-1]):
        here = on_pixels(shares[..., k], grid)
        larger = here > best
        best[larger], largest[larger] = here[larger], k
    return largest


def _spread(
    cells: Tensor, shape: tuple[int, int], sources: list[tuple[Tensor, Tensor]], how: Propagation
) -> Tensor:
    """Label shares of cells from those of their nearest cells in other frames."""
    near = None if how.radius is None else _within(shape, how.radius, cells.device)
    results = []
    everyone = torch.cat([labels for _, labels in sources])
    for rows in torch.arange(len(cells), device=cells.device).split(1024):
        blocks = []
        for other, _ in sources:
            block = matching.query_rows(cells[rows], other, "cosine")
            blocks.append(block if near is None else block.masked_fill(~near(rows), float("-inf")))
        joined = torch.cat(blocks, dim=1)
        value, index = joined.topk(min(how.neighbours, joined.shape[1]), dim=1)
        weight = torch.softmax(value / how.temperature, dim=1)
        results.append((weight[..., None] * everyone[index]).sum(1))
    return torch.cat(results)


def _within(shape: tuple[int, int], radius: int, device: torch.device) -> Any:
    """A function that says for rows of cells which cells (N, M) are at most ``radius`` away along both axes."""
    width = shape[1]
    everywhere = torch.arange(shape[0] * width, device=device)

    def near(rows: Tensor) -> Tensor:
        dy = (rows[:, None] // width - everywhere // width).abs()
        dx = (rows[:, None] % width - everywhere % width).abs()
        return (dy <= radius) & (dx <= radius)

    return near
