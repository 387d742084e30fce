"""What fusing depth and normals gains, on procedural scenes whose truth is known.

Depth gets smooth noise of 5 % (an eighth of the image wide) and white noise of 2 %, normals get white and smooth
noise, together about 14 degrees; then both are fused.

    python -m vision3d.evaluation.fusion --seeds 900000000:900000048:3 --size 256
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.geometry.integration import fuse_depth_normals
from vision3d.geometry.normals import normals_from_depth

if TYPE_CHECKING:
    from vision3d.synthetic import Sample

STEP = 0.1
"""Log depth between neighbours from which on the truth has an edge."""


@dataclass(frozen=True)
class Comparison:
    """Errors before and after fusion.

    Attributes:
        depth_error, fused_depth_error: mean absolute relative error.
        edge_error, fused_edge_error: the same over pixels at true depth edges.
        normal_error: of the given normals, mean degrees.
        depth_normal_error: of the normals of the given depth.
        fused_normal_error: of the normals of the fused depth.
        edges_kept: share of the true edges over which the fused depth steps at least half as far.
        false_steps: share of the other pairs of neighbours between which it steps 5 % wrong.
        seconds: of the fusion.
    """

    depth_error: float
    fused_depth_error: float
    edge_error: float
    fused_edge_error: float
    normal_error: float
    depth_normal_error: float
    fused_normal_error: float
    edges_kept: float
    false_steps: float
    seconds: float


def disturb(
    depth: np.ndarray, normals: np.ndarray, seed: int, *, white: float = 0.02, smooth: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """Noisy depth (NaN for sky) and noisy unit normals (zero for sky)."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)

    def low(sigma: float) -> np.ndarray:
        field = gaussian_filter(rng.normal(size=depth.shape), sigma)
        return field / field.std()

    there, width = np.isfinite(depth), depth.shape[1]
    noisy = np.where(there, depth, np.nan)
    noisy = noisy * np.exp(white * rng.normal(size=depth.shape) + smooth * low(width / 8))
    turn = [10 * rng.normal(size=depth.shape) + 6 * low(width / 25) for _ in range(3)]
    turned = normals + np.cross(np.radians(np.stack(turn, axis=-1)), normals)
    turned /= np.maximum(np.linalg.norm(turned, axis=-1, keepdims=True), 1e-9)
    return noisy.astype(np.float32), np.where(there[..., None], turned, 0).astype(np.float32)


def compare(sample: Sample, seed: int) -> Comparison:
    """Disturb one sample, fuse it, and measure both."""
    height, width = sample.depth.shape
    camera = Intrinsics.from_K(sample.K, width, height)
    truth, there = sample.depth, np.isfinite(sample.depth)
    depth, normals = disturb(truth, sample.normals, seed)
    start = time.perf_counter()
    fused = fuse_depth_normals(depth, normals, camera, there).depth
    seconds = time.perf_counter() - start
    edge = _near_edges(truth, there)

    def angle(field: np.ndarray) -> float:
        known = there & (np.square(field).sum(-1) > 0.25)
        cosine = np.einsum("nc,nc->n", field[known], sample.normals[known])
        return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean())

    def error(found: np.ndarray, where: np.ndarray) -> float:
        return float(np.abs(found[where] / truth[where] - 1).mean()) if where.any() else float("nan")

    kept, false = _steps(fused, truth, there)
    return Comparison(
        error(depth, there),
        error(fused, there),
        error(depth, edge),
        error(fused, edge),
        angle(normals),
        angle(normals_from_depth(depth, camera)),
        angle(normals_from_depth(fused, camera)),
        kept,
        false,
        seconds,
    )


def _pairs(depth: np.ndarray, there: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps of log depth along an axis, and where both ends are there."""
    log = np.log(np.where(there, depth, 1.0))
    first, second = (there[1:], there[:-1]) if axis == 0 else (there[:, 1:], there[:, :-1])
    return np.diff(log, axis=axis), first & second


def _steps(fused: np.ndarray, truth: np.ndarray, there: np.ndarray) -> tuple[float, float]:
    true_steps, steps = [], []
    for axis in (0, 1):
        step, both = _pairs(truth, there, axis)
        true_steps.append(step[both])
        steps.append(_pairs(fused, there, axis)[0][both])
    true_step, step = np.concatenate(true_steps), np.concatenate(steps)
    edge = np.abs(true_step) > STEP
    kept = (step * np.sign(true_step) > 0.5 * np.abs(true_step))[edge].mean() if edge.any() else np.nan
    return float(kept), float((np.abs(step - true_step) > STEP / 2)[~edge].mean())


def _near_edges(truth: np.ndarray, there: np.ndarray) -> np.ndarray:
    near = np.zeros(truth.shape, bool)
    for axis in (0, 1):
        step, both = _pairs(truth, there, axis)
        wide = (np.abs(step) > STEP) & both
        before, after = [(0, 0), (0, 0)], [(0, 0), (0, 0)]
        before[axis], after[axis] = (0, 1), (1, 0)
        near |= np.pad(wide, before) | np.pad(wide, after)
    return near


def main() -> None:
    """Measure and print."""
    from vision3d.synthetic import render_sample

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="900000000:900000048:3", help="first:end:step")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for seed in range(*map(int, arguments.seeds.split(":"))):
        sample = render_sample(seed, (arguments.size, arguments.size))
        if np.isfinite(sample.depth).mean() < 0.1:
            continue
        rows.append(compare(sample, seed))
    mean = {f.name: float(np.nanmean([getattr(row, f.name) for row in rows])) for f in fields(Comparison)}
    print(f"{len(rows)} scenes of {arguments.size}×{arguments.size}")
    for name, value in mean.items():
        print(f"  {name.ljust(20)} {value:.4f}")
    print(
        f"  normals: {mean['fused_normal_error'] / mean['depth_normal_error']:.3f} of the depth's, ", end=""
    )
    print(f"{mean['fused_normal_error'] / mean['normal_error']:.3f} of the given normals'; ", end="")
    print(f"depth: {mean['fused_depth_error'] / mean['depth_error']:.3f} of the given error")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"mean": mean, "rows": [asdict(r) for r in rows]}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
