"""From descriptors to correspondences: nearest cells both ways, how sure they are, and places between cells."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vision3d.pipelines.sd_dino.fusion import Metric, prepare, prepared_similarity, similarity_rows

TEMPERATURE = 0.05
"""Of the softmax over cosine similarities behind confidences and places between cells."""
REACH = 2
"""Cells around the best one that share in a place between cells."""


@dataclass(frozen=True)
class CellMatches:
    """Nearest cells of two grids, both ways.

    Attributes:
        forward: (N,) int64, for each cell of A the most similar one of B; the first where several are.
        backward: (M,) int64, for each cell of B that of A.
        similarity: (N,) of the forward matches.
        cosine: (N,) the same on the scale of a cosine, see :func:`as_cosine`.
        share: (N,) share of the softmax over all cells of B that lies within one cell of the match; 0 to 1.
    """

    forward: Tensor
    backward: Tensor
    similarity: Tensor
    cosine: Tensor
    share: Tensor

    @property
    def mutual(self) -> Tensor:
        """(N,) bool: the match's own match is the cell that one came from."""
        return self.backward[self.forward] == torch.arange(len(self.forward), device=self.forward.device)

    def cycle_cells(self, grid: tuple[int, int]) -> Tensor:
        """(N,) float: cells between a cell of A (of this grid) and where its match leads back to."""
        back = self.backward[self.forward]
        here = torch.arange(len(back), device=back.device)
        width = grid[1]
        rows, columns = back // width - here // width, back % width - here % width
        return torch.hypot(rows.float(), columns.float())


def nearest_cells(
    first: Tensor,  # [N, C]
    second: Tensor,  # [M, C]
    grid: tuple[int, int],  # of the second: M = h * w
    metric: Metric = "l2",
    *,
    halves: int | None = None,
    first_mask: Tensor | None = None,  # [N] bool
    second_mask: Tensor | None = None,  # [M] bool
    rows: int = 1024,
) -> CellMatches:
    """Nearest cells both ways in one pass over blocks of rows; no more than ``rows`` x M values exist at once.

    Args:
        first, second: descriptors of the cells of A and B.
        grid: (h, w) of B's cells.
        metric: see :func:`vision3d.pipelines.sd_dino.fusion.similarity`.
        halves: for the ``plus`` metrics.
        first_mask, second_mask: cells that may be matched to; the others are nobody's nearest.
        rows: size of a block.
    """
    infinity = float("inf")
    length = squared_length(second, metric, halves)
    forward, best, cosine, share = [], [], [], []
    column_best = second.new_full((len(second),), -infinity, dtype=torch.float32)
    backward = torch.zeros(len(second), dtype=torch.int64, device=second.device)
    for start, block in similarity_rows(first, second, metric, halves=halves, rows=rows):
        columns = block
        if first_mask is not None:
            columns = block.masked_fill(~first_mask[start : start + len(block), None], -infinity)
        value, index = columns.max(0)
        better = value > column_best
        column_best = torch.where(better, value, column_best)
        backward = torch.where(better, index + start, backward)
        if second_mask is not None:
            block = block.masked_fill(~second_mask, -infinity)
        value, index = block.max(1)
        forward.append(index)
        best.append(value)
        scaled = _as_cosine(block, metric, length)
        cosine.append(scaled.gather(1, index[:, None])[:, 0])
        share.append(softmax_share(scaled, index, grid))
    return CellMatches(torch.cat(forward), backward, torch.cat(best), torch.cat(cosine), torch.cat(share))


def squared_length(
    descriptors: Tensor,  # [N, C]
    metric: Metric,
    halves: int | None = None,
) -> Tensor:
    """Mean squared length of descriptors as a metric compares them: 2 for the published ones, whose halves have 1."""
    return prepare(descriptors, metric, halves).square().sum(-1).mean()


def _as_cosine(block: Tensor, metric: Metric, length: Tensor) -> Tensor:
    """Similarities on the scale of a cosine, so that one temperature fits, however the halves are weighted."""
    if metric.startswith("l2"):
        return 1 - block.square() / (2 * length).clamp_min(1e-12)
    if metric in ("cosine", "plus", "plus_norm"):
        return block
    finite = block[torch.isfinite(block)]
    return block / finite.abs().mean().clamp_min(1e-12) if finite.numel() else block


def softmax_share(block: Tensor, index: Tensor, grid: tuple[int, int]) -> Tensor:
    """Share ``(N,)`` of each row's softmax (similarities on the scale of a cosine) within one cell of ``index``."""
    weights = torch.softmax(block / TEMPERATURE, dim=1)
    height, width = grid
    row, column = index // width, index % width
    total = torch.zeros_like(weights[:, 0])
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            y, x = row + dy, column + dx
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            place = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1))[:, None]
            total += weights.gather(1, place)[:, 0] * inside
    return total


def confidence(share: Tensor, cycle_cells: Tensor) -> Tensor:
    """A score in [0, 1]: how much of the softmax agrees with the match, less where the way back leads elsewhere.

    It orders matches; it is not a calibrated probability.
    """
    return share * torch.exp(-cycle_cells.square() / 8)


def between_cells(
    row: Tensor,  # [N, M] similarities on the scale of a cosine
    index: Tensor,  # [N] the best cell
    grid: tuple[int, int],
    reach: int = REACH,
) -> Tensor:
    """Continuous places (N, 2) as x, y in cells (centres at +0.5): softmax-weighted mean around the best cell."""
    height, width = grid
    y0, x0 = index // width, index % width
    steps = torch.arange(-reach, reach + 1, device=row.device)
    y, x = (y0[:, None, None] + steps[:, None]), (x0[:, None, None] + steps)
    y, x = torch.broadcast_tensors(y, x)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    place = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(1)
    values = row.gather(1, place).masked_fill(~inside.flatten(1), float("-inf"))
    weights = torch.softmax(values / TEMPERATURE, dim=1)
    return torch.stack(
        [(weights * (x.flatten(1) + 0.5)).sum(1), (weights * (y.flatten(1) + 0.5)).sum(1)], dim=1
    )


def query_rows(
    queries: Tensor,  # [N, C]
    second: Tensor,  # [M, C]
    metric: Metric,
    *,
    halves: int | None = None,
    second_mask: Tensor | None = None,
) -> Tensor:
    """Similarities ``(N, M)`` of a few descriptors to all cells; cells outside the mask are -inf."""
    rows = prepared_similarity(prepare(queries, metric, halves), prepare(second, metric, halves), metric)
    return rows if second_mask is None else rows.masked_fill(~second_mask, float("-inf"))


def as_cosine(rows: Tensor, metric: Metric, length: Tensor) -> Tensor:
    """Similarities of :func:`query_rows` on the scale of a cosine; -inf stays. For ``length`` see
    :func:`squared_length`.
    """
    return _as_cosine(rows, metric, length)
