"""What the mini normal weights are worth: against answers that do not look at the image.

    python -m vision3d.evaluation.mini_normals --weights DIR --real DIR --out report.json

The measure is the mean angular error in degrees of each image, averaged over images, of the one-step and of
the refined prediction. They are compared with the mean normal map of training scenes and with the one constant
normal that is best on each evaluation set, chosen in its own favour. Ground truth of real photographs is planes
fitted to their measured depth; those whose depth is too sparse or noisy for it are left out and named. Beside
``report.json`` comes ``report.png`` (photograph, ground truth, one step, refined). Without ``--weights`` only
the fixed answers are scored: the mark to beat.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.colour import colour_normals, contact_sheet
from vision3d.errors import InputError
from vision3d.evaluation.datasets.base import DepthSample
from vision3d.evaluation.datasets.procedural import TEST_SEEDS, Procedural, training_samples
from vision3d.evaluation.datasets.samples import RealSamples
from vision3d.evaluation.normal_metrics import normal_metrics
from vision3d.evaluation.script import check_report, run_script
from vision3d.geometry.normals import normals_by_plane_fit
from vision3d.io.files import atomic_path, atomic_write_json, check_writable
from vision3d.progress import Progress, progress, say

GOAL = 0.7
"""Mean angular error relative to that of the mean normal map that the mini weights are to reach."""
MIN_COVERAGE = 0.1
"""Share of a real photograph's pixels that must get a ground-truth normal."""
WINDOW = 1 / 45
"""Side of the windows that planes are fitted in, relative to the image's width: 15 pixels of 640."""
SHEET_PROCEDURAL = 6
THINNED = 1024

BatchPredictor = Callable[[list[np.ndarray]], list[np.ndarray]]
"""Images (H, W, 3) uint8 to normals (H, W, 3) in OpenCV camera axes, of the same sizes."""


@dataclass
class Score:
    """One image.

    Attributes:
        name, group: as in its data set.
        mean_map: mean angular error in degrees of the mean normal map.
        normals: (N, 3) valid true normals, thinned, for the constant.
        one_step, refined: of the predictions, or None where there is none.
    """

    name: str
    group: str
    mean_map: float
    normals: np.ndarray = field(repr=False)
    one_step: float | None = None
    refined: float | None = None


def main(
    out: Path,
    weights: Path | None = None,
    real: Path | None = None,
    seeds: tuple[int, int] = (TEST_SEEDS.start, TEST_SEEDS.stop),
    shards: Path | None = None,
    training_scenes: int = 600,
    training_shards: Path | None = None,
    procedural: bool = True,
    refined_images: int | None = None,
    render_size: int = 160,
    batch_size: int = 8,
    device: str = "auto",
) -> int:
    """Compare the mini normal weights with answers that do not look at the image.

    Args:
        out: report to write, a .json file; a picture goes beside it.
        weights: folder of the weights; only the fixed answers are scored without it.
        real: folder of real samples; left out without it.
        seeds: first and one past the last held-out scene, at least 500 for the record.
        shards: rendered held-out shards to read instead of rendering.
        training_scenes: how many training scenes the mean normal map is learned from.
        training_shards: rendered training shards to read them from instead of rendering.
        procedural: evaluate on the procedural world, too.
        refined_images: how many images of each set are refined as well, spread over it; all by default.
        render_size: side in pixels of rendered images.
        batch_size: images per pass.
        device: where to compute.
    """
    check_report(out)
    if batch_size < 1 or training_scenes < 1:
        raise InputError("a batch size or number of training scenes below 1", "give at least 1")
    if refined_images is not None and refined_images < 0:
        raise InputError(f"{refined_images} refined images", "give 0 or more")
    check_writable(out.parent)
    size = (render_size, render_size)
    sets: dict[str, Sequence[DepthSample] | Procedural] = {}
    skipped: list[str] = []
    if procedural:
        sets["procedural"] = Procedural(range(*seeds), shards=shards, size=size, normals=True)
    if real is not None:
        sets["real"], skipped = real_samples(real)
    if not sets:
        raise InputError("nothing to evaluate on", "give --real DIR or leave --procedural on")
    samples = training_samples(training_scenes, training_shards, size)
    mean_map = mean_normal_map(sample.normals for sample in samples)
    one_step = refine = None
    result: dict[str, Any] = {}
    if weights is not None:
        one_step, refine, result["weights"] = _predictors(weights, batch_size, device)
    panels: list[tuple[str, np.ndarray]] = []
    for name, members in sets.items():
        rows = SHEET_PROCEDURAL if name == "procedural" else len(members)
        scores, pictures = score(
            name,
            members,
            mean_map,
            one_step,
            refine,
            refined_images=refined_images,
            batch_size=batch_size,
            rows=rows,
        )
        panels += pictures
        result[name] = compare(scores)
        if name == "real":
            result[name]["skipped"] = skipped
        say(summary(name, result[name]))
    atomic_write_json(out, result)
    if one_step is not None:
        with atomic_path(out.with_suffix(".png")) as path:
            contact_sheet(panels, columns=4 if refine is not None else 3, max_side=240).save(path)
    return 0


def mean_normal_map(normals: Iterable[np.ndarray]) -> np.ndarray:
    """(H, W, 3) float32 direction of the mean normal at each pixel.

    Args:
        normals: maps of one size (H, W, 3), zero where there is none. Where no map has one, the mean over the
            image stands.

    Raises:
        InputError: no maps, different sizes, or none with a normal.
    """
    total: np.ndarray | None = None
    for values in normals:
        values = np.asarray(values, np.float64)
        if total is not None and values.shape != total.shape:
            raise InputError(
                f"training scenes of {values.shape[:2]} and {total.shape[:2]} pixels", "give one size"
            )
        total = values if total is None else total + values
    if total is None or not total.any():
        raise InputError("no training scene with normals", "give more")
    total[np.linalg.norm(total, axis=-1) < 1e-9] = total.sum(axis=(0, 1))
    return _unit(total).astype(np.float32)


def resized_normals(normals: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A dense normal map (h, w, 3) at ``size`` (height, width): bilinear, unit length."""
    import cv2

    if normals.shape[:2] == size:
        return normals
    return _unit(cv2.resize(normals, size[::-1], interpolation=cv2.INTER_LINEAR))


def real_samples(root: Path) -> tuple[list[DepthSample], list[str]]:
    """Real photographs with normals by plane fits to their depth, and the names of those whose depth is too
    sparse or noisy for it.

    Raises:
        InputError: no samples in the folder.
    """
    data = RealSamples(root)
    found, skipped = [], []
    for index, name in enumerate(progress(data.names, description="planes of real depth")):
        sample = data[index]
        if sample.camera is None:
            skipped.append(name)
            continue
        radius = max(2, round((sample.camera.width * WINDOW - 1) / 2))
        known = data.range_of(sample).contains(sample.depth)
        # Pixels outside a benchmark's mask support fits, but are not scored.
        normals = normals_by_plane_fit(sample.depth, sample.camera, known, radius=radius)
        normals[~sample.valid] = 0
        if np.mean(normals.any(axis=-1)) < MIN_COVERAGE:
            skipped.append(name)
        else:
            found.append(replace(sample, normals=normals))
    if not found:
        raise InputError(f"no depth in {root} is dense enough for normals", "give other photographs")
    return found, skipped


def score(
    name: str,
    samples: Sequence[DepthSample] | Procedural,
    mean_map: np.ndarray,
    one_step: BatchPredictor | None = None,
    refine: BatchPredictor | None = None,
    *,
    refined_images: int | None = None,
    batch_size: int = 8,
    rows: int = 0,
) -> tuple[list[Score], list[tuple[str, np.ndarray]]]:
    """Scores of one set, and the panels of ``rows`` images spread over it for a contact sheet.

    Args:
        name: of the set, for the progress bar.
        samples: with normals; images without a single one are left out.
        mean_map: (h, w, 3), see :func:`mean_normal_map`.
        one_step, refine: predictors, or None.
        refined_images: how many images are refined, spread over the set; None for all.
        batch_size: images per call of a predictor.
        rows: images that get panels.
    """
    count = len(samples)
    refined = _spread(count, count if refined_images is None else refined_images)
    shown = _spread(count, rows)
    # Of a few images, those shown are among those refined.
    if refined and rows < count and not shown <= refined:
        ordered = sorted(refined)
        shown = {ordered[i] for i in _spread(len(ordered), rows)}
    scores: list[Score] = []
    panels: list[tuple[str, np.ndarray]] = []
    bar: Progress[int] = progress(total=count, description=name)
    indices = iter(range(count))
    with bar:
        while chunk := list(islice(indices, batch_size)):
            batch = [(i, s) for i in chunk if (s := samples[i]).normals is not None and s.normals.any()]
            first = _predict(one_step, batch)
            second = _predict(refine, [(i, s) for i, s in batch if i in refined])
            for i, sample in batch:
                result = _score_image(sample, mean_map, first.get(i), second.get(i))
                scores.append(result)
                if i in shown:
                    panels += _panels(
                        sample, result, first.get(i), second.get(i), columns=4 if refine is not None else 3
                    )
            bar.advance(len(chunk))
    return scores, panels


def _score_image(
    sample: DepthSample, mean_map: np.ndarray, first: np.ndarray | None, second: np.ndarray | None
) -> Score:
    truth = sample.normals
    assert truth is not None

    def error(prediction: np.ndarray | None) -> float | None:
        return None if prediction is None else normal_metrics(prediction, truth).mean

    fixed = normal_metrics(resized_normals(mean_map, (truth.shape[0], truth.shape[1])), truth).mean
    known = truth[truth.any(axis=-1)]
    thinned = known[np.unique(np.linspace(0, len(known) - 1, THINNED).astype(int))]
    return Score(sample.name, sample.group, fixed, thinned, error(first), error(second))


def _predict(
    predict: BatchPredictor | None, batch: Sequence[tuple[int, DepthSample]]
) -> dict[int, np.ndarray]:
    if predict is None or not batch:
        return {}
    return {i: n for (i, _), n in zip(batch, predict([s.image for _, s in batch]), strict=True)}


def _panels(
    sample: DepthSample, result: Score, first: np.ndarray | None, second: np.ndarray | None, *, columns: int
) -> list[tuple[str, np.ndarray]]:
    assert sample.normals is not None
    nothing = np.zeros_like(sample.normals)
    row = [(Path(sample.name).name, sample.image), ("ground truth", colour_normals(sample.normals))]
    for title, normals, error in (("one step", first, result.one_step), ("refined", second, result.refined)):
        text = f"{title} {error:.1f}°" if error is not None else f"not {title}"
        row.append((text, colour_normals(nothing if normals is None else normals)))
    return row[:columns]


def best_constant_normal(scores: Sequence[Score]) -> tuple[np.ndarray, dict[str, float]]:
    """The unit normal (3,) with the least mean angular error over images, and each image's error with it.

    Found among directions 8 degrees apart and then ever closer around the best; measured on thinned pixels.
    """
    centre, radius, best = np.array([0.0, 0.0, -1.0]), 90.0, np.zeros(len(scores))
    while radius > 0.1:
        candidates = np.concatenate([centre[None], _cap(centre, radius, 400)])
        table = np.stack([np.degrees(_angles(s.normals, candidates)).mean(axis=0) for s in scores])
        choice = int(table.mean(axis=0).argmin())
        centre, best = candidates[choice], table[:, choice]
        radius /= 6
    return centre, {s.name: float(error) for s, error in zip(scores, best, strict=True)}


def _angles(normals: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """(N, M) radians between unit vectors (N, 3) and (M, 3)."""
    return np.arccos(np.clip(normals @ candidates.T.astype(np.float32), -1, 1))


def _cap(centre: np.ndarray, radius: float, count: int) -> np.ndarray:
    """(count, 3) unit vectors evenly over the cap of ``radius`` degrees around ``centre``, on a spiral."""
    step = np.arange(count) + 0.5
    height = 1 - step / count * (1 - np.cos(np.radians(radius)))
    turn = np.pi * (3 - np.sqrt(5)) * step
    ring = np.sqrt(1 - height**2)
    # Any orthonormal pair across the centre will do.
    across = np.cross(centre, np.eye(3)[int(np.abs(centre).argmin())])
    across = across / np.linalg.norm(across)
    other = np.cross(centre, across)
    points = (ring * np.cos(turn))[:, None] * across + (ring * np.sin(turn))[:, None] * other
    return points + height[:, None] * centre


def compare(scores: Sequence[Score]) -> dict[str, Any]:
    """Model and fixed answers on one set, over images and with every group counting the same.

    ``ratio`` is to the mean normal map on the same images, which for ``refined`` may be fewer than all; its
    ``one_step`` is on those, too.

    Raises:
        InputError: no scores.
    """
    if not scores:
        raise InputError("no image with normals", "give other data")
    constant, by_name = best_constant_normal(scores)
    result: dict[str, Any] = {
        "images": len(scores),
        "goal": GOAL,
        "mean_map": _averages(scores, lambda s: s.mean_map),
        "constant": {"normal": constant.tolist(), **_averages(scores, lambda s: by_name[s.name])},
    }
    for kind in ("one_step", "refined"):
        mine = [s for s in scores if getattr(s, kind) is not None]
        if not mine:
            continue
        entry: dict[str, Any] = {"images": len(mine), **_averages(mine, lambda s, k=kind: getattr(s, k))}
        for other, fixed in (
            ("ratio", _averages(mine, lambda s: s.mean_map)),
            ("ratio_to_constant", _averages(mine, lambda s: by_name[s.name])),
        ):
            # the constant was chosen for the mean over images alone
            ways = ("over_images",) if other == "ratio_to_constant" else ("over_images", "over_groups")
            entry[other] = {key: entry[key] / max(fixed[key], 1e-12) for key in ways}
        entry["reached"] = {key: value <= GOAL for key, value in entry["ratio"].items()}
        if kind == "refined":
            entry["one_step"] = _averages(mine, lambda s: s.one_step)
        result[kind] = entry
    return result


def _averages(scores: Sequence[Score], value: Callable[..., Any]) -> dict[str, Any]:
    """A measure over all images, over groups, and by group."""
    groups: dict[str, list[float]] = {}
    for s in scores:
        groups.setdefault(s.group, []).append(value(s))
    by_group = {name: float(np.mean(members)) for name, members in groups.items()}
    return {
        "over_images": float(np.mean([value(s) for s in scores])),
        "over_groups": float(np.mean(list(by_group.values()))),
        "groups": by_group,
    }


def summary(name: str, result: dict[str, Any]) -> str:
    """One line about one set."""
    text = f"{name}, {result['images']} images, mean angular error"
    if result.get("skipped"):
        text = text.replace(
            " images", f" images ({len(result['skipped'])} with depth too sparse or noisy left out)", 1
        )
    parts = [
        f"{text}: mean map {result['mean_map']['over_images']:.2f}°",
        f"constant {result['constant']['over_images']:.2f}°",
    ]
    for kind in ("one_step", "refined"):
        if kind in result:
            entry = result[kind]
            ratio, some = entry["ratio"], entry["images"] < result["images"]
            parts.append(
                f"{kind.replace('_', ' ')} {entry['over_images']:.2f}°"
                + (
                    f" on {entry['images']} (one step there {entry['one_step']['over_images']:.2f}°)"
                    if some
                    else ""
                )
                + f", ratio {ratio['over_images']:.3f}, over groups {ratio['over_groups']:.3f}, "
                f"goal {result['goal']} {'' if entry['reached']['over_images'] else 'not '}reached"
            )
    return "; ".join(parts)


def _predictors(
    weights: Path, batch_size: int, device: str
) -> tuple[BatchPredictor, BatchPredictor | None, dict[str, Any]]:
    """The one-step prediction, the refined one where the weights have it, and what the weights are."""
    from vision3d.pipelines.stablenormal import StableNormal

    pipeline = StableNormal.from_pretrained(weights, device=device)

    def predictor(turbo: bool) -> BatchPredictor:
        def predict(images: list[np.ndarray]) -> list[np.ndarray]:
            found = pipeline(images, batch_size=batch_size, turbo=turbo)
            return [p.normals for p in found]  # type: ignore[union-attr]

        return predict

    about = {"name": pipeline.weights_name, "sha256": pipeline.weights_sha256, "refines": pipeline.refines}
    return predictor(True), predictor(False) if pipeline.refines else None, about


def _spread(count: int, chosen: int) -> set[int]:
    """At most ``chosen`` of ``count`` indices, evenly over all."""
    return set(np.linspace(0, count - 1, min(chosen, count)).round().astype(int).tolist())


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def run(arguments: Sequence[str] | None = None) -> int:
    """Command line, see :func:`run_script`."""
    return run_script(main, arguments)


if __name__ == "__main__":
    sys.exit(run())
