"""Depth without looking: the image-independent predictors that a small model has to beat.

After scale and shift are fitted, a constant is a poor yardstick: most photographs are near at the bottom and
far at the top, so a vertical ramp already explains much of them. The strongest honest yardstick is the best
of many fixed maps, chosen on each evaluation set in the yardstick's own favour. Candidates are

* closed forms: ramps, ground planes with several horizons, corridors, boxes, bowls;
* maps learned from training images: the mean standardised inverse depth, the mean standardised log depth, the
  leading component of inverse depth, and the map found by minimising the aligned error itself.

All live in inverse depth (larger = nearer); the fit may turn their sign.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.errors import InputError
from vision3d.evaluation.datasets.base import DepthDataset
from vision3d.evaluation.depth_benchmark import (
    ImageScore,
    Protocol,
    group_averages,
    resize_map,
    score_image,
)
from vision3d.evaluation.metrics import INVERSE_DEPTH_FLOOR, DepthMetrics
from vision3d.io.files import DAMAGED, atomic_path
from vision3d.prediction import Provenance
from vision3d.progress import progress
from vision3d.results import DepthPrediction

GRID = 32
"""Side of learned maps; they are smooth, so more would only fit noise."""


@dataclass(frozen=True, eq=False)
class FixedMap:
    """A predictor that gives every image the same inverse depth, stretched to its size.

    Attributes:
        name: for tables.
        inverse_depth: (h, w) float32, affine-invariant.
        learned: whether it was made from training images.
    """

    name: str
    inverse_depth: np.ndarray
    learned: bool = False

    def __call__(self, image: np.ndarray) -> DepthPrediction:
        """The map at the size of ``image`` (H, W, 3), whatever the image shows."""
        return DepthPrediction(
            resize_map(self.inverse_depth, image.shape[:2]),
            "affine-invariant inverse depth",
            provenance=Provenance(f"fixed map: {self.name}", "none"),
        )


def closed_form_maps(side: int = 256) -> list[FixedMap]:
    """Maps that need no training images.

    With row y from 0 (top) to 1 (bottom), column x and centred row v from -1 to 1:

    * constant; ramp: y; column: x; far centre / bowl: x² + v²;
    * tilted plane c: 1 / (c - y), depth linear in the row;
    * ground h: max(y - h, 0), a ground plane with its horizon at h and everything above it infinitely far;
    * corridor h: |y - h|, ground and ceiling; box: max(|x|, |v|), an axis-aligned corridor with walls;
    * ramp with bowl a: y + a (x² + v²).
    """
    centres = (np.arange(side) + 0.5) / side
    x, y = np.meshgrid(2 * centres - 1, centres)
    v = 2 * y - 1
    maps = {
        "constant": np.zeros_like(y),
        "ramp": y,
        "column": x,
        "bowl": x**2 + v**2,
        "cone": np.hypot(x, v),
        "box": np.maximum(np.abs(x), np.abs(v)),
        "walls": np.abs(x),
    }
    maps |= {f"tilted plane {c}": 1 / (c - y) for c in (1.1, 1.3, 1.6, 2.5)}
    maps |= {f"tilted ceiling {c}": 1 / (c + y) for c in (0.1, 0.3, 0.6, 1.5)}
    maps |= {f"ground {h}": np.maximum(y - h, 0) for h in (0.2, 0.3, 0.4, 0.5, 0.6)}
    maps |= {f"corridor {h}": np.abs(y - h) for h in (0.3, 0.4, 0.5)}
    maps |= {f"ramp with bowl {a}": y + a * (x**2 + v**2) for a in (-0.6, -0.3, -0.15, 0.15, 0.3, 0.6)}
    return [FixedMap(name, values.astype(np.float32)) for name, values in maps.items()]


def learned_maps(
    depths: Iterable[np.ndarray],
    *,
    grid: int = GRID,
    near: float = 1e-3,
    far: float = 1e3,
    steps: int = 300,
    seed: int = 0,
) -> list[FixedMap]:
    """Fixed maps from training depth.

    Each training map is reduced to ``grid`` × ``grid`` cells. Four maps result: the mean over images of
    inverse depth standardised by median and mean absolute deviation; the same of log depth, turned into
    inverse depth; the leading component, which minimises the squared error in inverse depth after every
    image's own scale and shift; and the map that minimises AbsRel itself (least-squares fit in inverse
    depth, floor, clip), found by gradient descent from the best of the others.

    Args:
        depths: (H, W) metres, infinite for sky (inverse depth 0), ≤ 0 or NaN where unknown.
        grid: cells per side.
        near, far: range that aligned depth is clipped to in the descent.
        steps: of the descent.
        seed: of the order of images.

    Raises:
        InputError: fewer than 8 usable images.
    """
    cells = [_cells(depth, grid) for depth in depths]
    # A cell of unknown depth would need weights everywhere; such images are left out of training.
    inverse = np.array([c for c in cells if np.isfinite(c).all() and np.ptp(c) > 1e-9])
    if len(inverse) < 8:
        raise InputError(f"{len(inverse)} usable training depth maps", "give at least 8 dense ones")
    inverse = inverse.reshape(len(inverse), -1)
    log_depth = -np.log(np.maximum(inverse, INVERSE_DEPTH_FLOOR))
    centred, spread = _standardise(log_depth)
    normalised = inverse - inverse.mean(axis=1, keepdims=True)
    normalised /= np.linalg.norm(normalised, axis=1, keepdims=True)
    leading = np.linalg.eigh(normalised.T @ normalised)[1][:, -1]
    maps = {
        "mean inverse depth": _standardise(inverse)[0].mean(axis=0),
        "mean log depth": np.exp(-np.median(spread) * centred.mean(axis=0)),
        "leading component": leading * np.sign(leading @ normalised.mean(axis=0) or 1.0),
    }
    best = min(maps.values(), key=lambda m: _mean_abs_rel(m, inverse, near, far))
    maps["least aligned error"] = _descend(best, inverse, near, far, steps, seed)
    return [
        FixedMap(name, values.reshape(grid, grid).astype(np.float32), learned=True)
        for name, values in maps.items()
    ]


def save_maps(maps: Sequence[FixedMap], path: str | Path) -> None:
    """Write fixed maps to one ``.npz``, atomically."""
    arrays: dict[str, Any] = {m.name: m.inverse_depth for m in maps}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_maps(path: str | Path) -> list[FixedMap]:
    """Learned maps written by :func:`save_maps`. Raises InputError for another file."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [FixedMap(name, arrays[name], learned=True) for name in arrays.files]
    except DAMAGED as error:
        raise InputError(f"{path} holds no fixed maps", "give the file that mini_depth wrote") from error


@dataclass(frozen=True)
class BaselineTable:
    """Scores of fixed maps on one data set.

    Attributes:
        dataset: short name.
        scores: map name to one score per image, all in the same order.
    """

    dataset: str
    scores: dict[str, list[ImageScore]]

    def averages(self) -> dict[str, DepthMetrics]:
        """Mean over images, by map."""
        return {name: DepthMetrics.average(s.metrics for s in rows) for name, rows in self.scores.items()}

    def by_group(self) -> dict[str, dict[str, DepthMetrics]]:
        """Mean over the images of each group, by map then group."""
        return {name: group_averages(rows) for name, rows in self.scores.items()}

    def best(self) -> tuple[str, DepthMetrics]:
        """The map with the least AbsRel averaged over images."""
        return min(self.averages().items(), key=lambda item: item[1].abs_rel)

    def best_by_group(self) -> dict[str, tuple[str, DepthMetrics]]:
        """The map with the least AbsRel of each group, each group choosing its own."""
        table = self.by_group()
        groups = list(next(iter(table.values())))
        return {
            group: min(
                ((name, rows[group]) for name, rows in table.items()), key=lambda item: item[1].abs_rel
            )
            for group in groups
        }

    def best_over_groups(self) -> tuple[str, float]:
        """The one map with the least AbsRel averaged over groups, and that AbsRel."""
        means = {
            name: float(np.mean([m.abs_rel for m in groups.values()]))
            for name, groups in self.by_group().items()
        }
        return min(means.items(), key=lambda item: item[1])


def score_baselines(
    maps: Sequence[FixedMap], dataset: DepthDataset, *, limit: int | None = None
) -> BaselineTable:
    """Score fixed maps with the protocol that predictions are scored with.

    Images without valid ground truth are left out.

    Raises:
        InputError: no maps, or nothing to score.
    """
    if not maps:
        raise InputError("no fixed maps to score", "give at least one")
    scores: dict[str, list[ImageScore]] = {m.name: [] for m in maps}
    count = len(dataset) if limit is None else min(limit, len(dataset))
    for index in progress(range(count), description=f"fixed maps on {dataset.name}"):
        sample = dataset[index]
        if not sample.valid.any():
            continue
        for m in maps:
            scores[m.name].append(
                score_image(
                    m(sample.image),
                    sample,
                    dataset.range_of(sample),
                    Protocol(),
                    fit_resolution=dataset.fit_resolution,
                )
            )
    if not next(iter(scores.values())):
        raise InputError(
            f"no image of {dataset.name} has valid ground truth", "check the depth files' encoding"
        )
    return BaselineTable(dataset.name, scores)


def _cells(depth: np.ndarray, grid: int) -> np.ndarray:
    """(grid, grid) float64 mean inverse depth of the known pixels of each cell; NaN where there is none."""
    depth = np.asarray(depth, dtype=np.float64)
    known = depth > 0  # infinity is known: sky
    inverse = np.divide(1.0, depth, out=np.zeros_like(depth), where=known)
    rows, columns = (np.minimum(np.arange(n) * grid // n, grid - 1) for n in depth.shape)
    if min(depth.shape) < grid:
        raise InputError(
            f"training depth of {depth.shape[1]}×{depth.shape[0]}", f"give at least {grid}×{grid}"
        )
    cell = (rows[:, None] * grid + columns[None, :]).ravel()
    total = np.bincount(cell, (inverse * known).ravel(), grid * grid)
    weight = np.bincount(cell, known.ravel().astype(np.float64), grid * grid)
    return np.divide(total, weight, out=np.full(grid * grid, np.nan), where=weight > 0).reshape(grid, grid)


def _standardise(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows minus their median over their mean absolute deviation from it; and those deviations."""
    centred = rows - np.median(rows, axis=1, keepdims=True)
    spread = np.maximum(np.abs(centred).mean(axis=1, keepdims=True), 1e-9)
    return centred / spread, spread[:, 0]


def _mean_abs_rel(values: np.ndarray, inverse: np.ndarray, near: float, far: float) -> float:
    import torch

    with torch.no_grad():
        return float(_aligned_abs_rel(torch.from_numpy(values), torch.from_numpy(inverse), near, far))


def _aligned_abs_rel(values: Any, inverse: Any, near: float, far: float) -> Any:
    """AbsRel of one map (P,) fitted to each row of ``inverse`` (N, P) without its sky, mean over rows."""
    seen = (inverse > INVERSE_DEPTH_FLOOR).to(inverse)
    count = seen.sum(1, keepdim=True).clamp(min=2)
    x = values[None] - (values * seen).sum(1, keepdim=True) / count
    mean_y = (inverse * seen).sum(1, keepdim=True) / count
    scale = (x * (inverse - mean_y) * seen).sum(1, keepdim=True) / (x * x * seen).sum(1, keepdim=True).clamp(
        min=1e-12
    )
    depth = (1 / (scale * x + mean_y).clamp(min=INVERSE_DEPTH_FLOOR)).clamp(near, far)
    return (((depth * inverse - 1).abs() * seen).sum(1) / count[:, 0]).mean()


def _descend(
    start: np.ndarray, inverse: np.ndarray, near: float, far: float, steps: int, seed: int
) -> np.ndarray:
    """The map of least AbsRel on training images, by Adam with a falling rate; no worse than ``start``."""
    import torch

    data = torch.from_numpy(inverse)
    begin = torch.from_numpy((start - start.mean()) / max(start.std(), 1e-9))
    values = begin.clone().requires_grad_()
    optimiser = torch.optim.Adam([values], lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(data), (min(256, len(data)),), generator=order)
        optimiser.zero_grad()
        _aligned_abs_rel(values, data[rows], near, far).backward()
        optimiser.step()
        schedule.step()
    found = values.detach().numpy()
    candidates = [found, begin.numpy()]
    return min(candidates, key=lambda m: _mean_abs_rel(m, inverse, near, far))
