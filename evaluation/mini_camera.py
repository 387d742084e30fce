"""What the mini calibration and metric depth weights are worth: against always giving the same answer.

    python -m vision3d.evaluation.mini_camera --weights DIR --real DIR --out report.json

Cameras: median error of the horizontal field of view, against always answering the median of training scenes; and the
published errors e_f and e_b of focal length and principal point.
Depth: mean absolute relative error in metres without any alignment, from the estimated camera and from the true
one, against the one constant depth that is best on each evaluation set, chosen in its own favour. Without
``--weights`` only the constants are scored: the mark to beat.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.errors import InputError, Vision3DError
from vision3d.evaluation.datasets.base import DepthSample, read_rgb
from vision3d.evaluation.datasets.procedural import TEST_SEEDS, Procedural, training_samples
from vision3d.evaluation.datasets.samples import RealSamples
from vision3d.evaluation.script import check_report, run_script
from vision3d.io.files import atomic_write_json, check_writable
from vision3d.progress import progress, say

GOAL = 0.7
"""Error relative to that of the constant answer that the mini weights are to reach."""


@dataclass
class Score:
    """One image.

    Attributes:
        name, group: as in its data set.
        fov: true horizontal field of view in degrees.
        fov_error: absolute error of the estimate, or None without a model.
        e_f, e_b: of the estimate, see :func:`camera_errors`, or None.
        depth: valid true depths, thinned, for the constant; empty where there is no depth.
        abs_rel: of the prediction with the estimated camera, or None.
        abs_rel_true_camera: of the prediction with the true camera, or None.
    """

    name: str
    group: str
    fov: float
    fov_error: float | None = None
    e_f: float | None = None
    e_b: float | None = None
    depth: np.ndarray = field(default_factory=lambda: np.zeros(0))
    abs_rel: float | None = None
    abs_rel_true_camera: float | None = None


def main(
    out: Path,
    weights: Path | None = None,
    real: Path | None = None,
    seeds: tuple[int, int] = (TEST_SEEDS.start, TEST_SEEDS.stop),
    shards: Path | None = None,
    training_scenes: int = 600,
    training_shards: Path | None = None,
    procedural: bool = True,
    render_size: tuple[int, int] = (120, 160),
    device: str = "auto",
) -> int:
    """Compare the mini camera and metric depth weights with constant answers.

    Args:
        out: report to write, a .json file.
        weights: folder of the weights; only the constants are scored without it.
        real: folder of real samples; left out without it.
        seeds: first and one past the last held-out scene, at least 500 for the record.
        shards: rendered held-out shards to read instead of rendering.
        training_scenes: how many training scenes the constant field of view is the median of.
        training_shards: rendered training shards to read them from instead of rendering.
        procedural: evaluate on the procedural world, too.
        render_size: height and width of rendered images.
        device: where to compute.
    """
    check_report(out)
    check_writable(out.parent)
    sets: dict[str, Iterator[DepthSample]] = {}
    if procedural:
        held_out = Procedural(range(*seeds), shards=shards, size=render_size)
        sets["procedural"] = (held_out[i] for i in range(len(held_out)))
    if real is not None:
        sets["real"] = real_samples(real)
    if not sets:
        raise InputError("nothing to evaluate on", "give --real DIR or leave --procedural on")
    constant = training_fov(training_scenes, training_shards, render_size)
    pipeline = None
    if weights is not None:
        from vision3d.pipelines.dmcalib import DMCalib

        pipeline = DMCalib.from_pretrained(weights, device=device)
    result: dict[str, Any] = {"training_median_fov": constant}
    for name, samples in sets.items():
        bar = progress(samples, description=name)
        scores = [score(sample, pipeline) for sample in bar if sample.camera is not None]
        result[name] = compare(scores, constant)
        say(summary(name, result[name]))
    if pipeline is not None:
        result["weights"] = {"name": pipeline.weights_name, "sha256": pipeline.weights_sha256}
    atomic_write_json(out, result)
    return 0


def training_fov(scenes: int, shards: Path | None, size: tuple[int, int]) -> float:
    """Median horizontal field of view in degrees of training scenes."""
    angles = []
    for sample in training_samples(scenes, shards, size):
        height, width = np.asarray(sample.depth).shape
        angles.append(Intrinsics.from_K(sample.K, width, height).fov_x)
    return float(np.median(angles))


def real_samples(root: Path) -> Iterator[DepthSample]:
    """Real photographs with known intrinsics: those with depth, and calibrated ones without (``dsine_office``)."""
    data = RealSamples(root)
    yield from (data[i] for i in range(len(data)))
    for file in sorted((root / "dsine_office").glob("*.txt")):
        image = read_rgb(file.with_suffix(".png"))
        height, width = image.shape[:2]
        values = [float(v) for v in file.read_text().replace(",", " ").split()]
        if len(values) != 4:
            raise InputError(f"{file} holds {len(values)} numbers", "it should be fx, fy, cx, cy")
        nothing = np.zeros((height, width), np.float32)
        camera = Intrinsics(values[0], values[1], values[2], values[3], width, height)
        yield DepthSample(f"dsine_office/{file.stem}", "dsine_office", image, nothing, nothing > 0, camera)


def score(sample: DepthSample, pipeline: Any = None) -> Score:
    """One image's errors; an image that no camera can be read from counts as wrong by its whole field of view."""
    from vision3d.io.images import load_photo

    assert sample.camera is not None
    truth = sample.depth[sample.valid]
    result = Score(sample.name, sample.group, sample.camera.fov_x, depth=truth[:: max(1, len(truth) // 4096)])
    if pipeline is None:
        return result
    photo = load_photo(sample.image)
    wants_depth = len(truth) > 0 and pipeline.depth_unet is not None
    try:
        camera = pipeline(photo).intrinsics
    except Vision3DError:
        result.fov_error = result.fov
        camera = Intrinsics.assumed(sample.camera.width, sample.camera.height)
    else:
        result.fov_error = abs(camera.fov_x - result.fov)
    result.e_f, result.e_b = camera_errors(camera, sample.camera)
    if wants_depth:
        for name, lens in (("abs_rel", camera), ("abs_rel_true_camera", sample.camera)):
            depth = pipeline.depth(photo, lens).depth[sample.valid]
            setattr(result, name, float(np.mean(np.abs(depth - truth) / truth)))
    return result


def camera_errors(estimate: Intrinsics, truth: Intrinsics) -> tuple[float, float]:
    """The published errors e_f and e_b of a camera (WildCamera's protocol).

    Returns:
        The larger relative error of the two focal lengths, and the larger distance of the principal point from its
        place, in half sides of the image.
    """
    focal = max(abs(estimate.fx / truth.fx - 1), abs(estimate.fy / truth.fy - 1))
    centre = max(
        2 * abs(estimate.cx - truth.cx) / truth.width, 2 * abs(estimate.cy - truth.cy) / truth.height
    )
    return focal, centre


def best_constant_depths(scores: Sequence[Score]) -> tuple[dict[str, float], dict[str, Any]]:
    """The depths in metres with the least mean AbsRel over images and over groups, and these, as :func:`_both`."""
    candidates = np.geomspace(0.2, 80, 400)
    table = {
        s.name: np.abs(candidates[:, None] / s.depth[None] - 1).mean(axis=1) for s in scores if len(s.depth)
    }
    every = [
        _both(scores, {name: float(values[k]) for name, values in table.items()}, np.mean)
        for k in range(len(candidates))
    ]
    best = {
        way: min(range(len(every)), key=lambda k: every[k][way]) for way in ("over_images", "over_groups")
    }
    chosen = {way: every[k][way] for way, k in best.items()}
    return (
        {way: float(candidates[k]) for way, k in best.items()},
        {**every[best["over_images"]], **chosen},
    )


def compare(scores: Sequence[Score], constant_fov: float) -> dict[str, Any]:
    """Model and constants on one set, over images and with every group counting the same.

    The best constant depth is chosen for either; its groups are those of the one for images.
    """
    if not scores:
        raise InputError("no image with known intrinsics", "give other data")
    metres, constant = (
        best_constant_depths(scores)
        if any(len(s.depth) for s in scores)
        else ({}, _both(scores, {}, np.mean))
    )
    constant_errors = {s.name: abs(s.fov - constant_fov) for s in scores}
    result: dict[str, Any] = {
        "images": len(scores),
        "goal": GOAL,
        "fov": {"constant": _both(scores, constant_errors, np.median)},
        "depth": {"best_constant_metres": metres, "constant": constant},
    }
    for what in ("e_f", "e_b"):
        errors = {s.name: getattr(s, what) for s in scores if getattr(s, what) is not None}
        if errors:
            result[what] = _both(scores, errors, np.mean)
    models = {
        "fov": {"model": {s.name: s.fov_error for s in scores if s.fov_error is not None}},
        "depth": {
            "model": {s.name: s.abs_rel for s in scores if s.abs_rel is not None},
            "model_true_camera": {
                s.name: s.abs_rel_true_camera for s in scores if s.abs_rel_true_camera is not None
            },
        },
    }
    for what, kinds in models.items():
        for kind, values in kinds.items():
            if not values:
                continue
            measured = _both(scores, values, np.median if what == "fov" else np.mean)
            baseline = result[what]["constant"]
            result[what][kind] = measured
            result[what][f"{kind}_ratio"] = {
                key: measured[key] / max(baseline[key], 1e-12) for key in ("over_images", "over_groups")
            }
    return result


def _both(scores: Sequence[Score], values: dict[str, Any], average: Any) -> dict[str, Any]:
    """A measure over all images, over groups, and by group."""
    groups: dict[str, list[float]] = {}
    for s in scores:
        if s.name in values:
            groups.setdefault(s.group, []).append(values[s.name])
    everything = [v for members in groups.values() for v in members]
    by_group = {name: float(average(members)) for name, members in groups.items()}
    return {
        "over_images": float(average(everything)) if everything else float("nan"),
        "over_groups": float(np.mean(list(by_group.values()))) if by_group else float("nan"),
        "groups": by_group,
    }


def summary(name: str, result: dict[str, Any]) -> str:
    """One line about one set."""
    parts = [f"{name}, {result['images']} images"]
    units = {"fov": ("field of view, median error", "°"), "depth": ("depth, AbsRel", "")}
    for what, (title, unit) in units.items():
        entry = result[what]
        text = f"{title}: constant {entry['constant']['over_images']:.3f}{unit}"
        for kind, words in (("model", "model"), ("model_true_camera", "with the true camera")):
            if kind in entry:
                ratio = entry[f"{kind}_ratio"]
                text += (
                    f", {words} {entry[kind]['over_images']:.3f}{unit} "
                    f"(ratio {ratio['over_images']:.2f}, over groups {ratio['over_groups']:.2f})"
                )
        parts.append(text)
    return "; ".join(parts)


def run(arguments: Sequence[str] | None = None) -> int:
    """Command line, see :func:`run_script`."""
    return run_script(main, arguments)


if __name__ == "__main__":
    sys.exit(run())
