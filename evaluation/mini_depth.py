"""What the mini depth weights are worth: against the best image-independent predictor, on held-out procedural
images and on real ones.

    python -m vision3d.evaluation.mini_depth --weights DIR --real DIR --out report.json

Fixed maps are learned on training scenes and chosen on each evaluation set in their own favour; model and
maps are aligned by the same least-squares fit in inverse depth. Beside ``report.json`` come ``report.png``
(photograph, ground truth, prediction, error) and the folder ``report/`` with every image's scores and the
maps. Without ``--weights`` only the maps are scored: the mark to beat.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.errors import InputError
from vision3d.evaluation.baselines import (
    BaselineTable,
    FixedMap,
    closed_form_maps,
    learned_maps,
    load_maps,
    save_maps,
    score_baselines,
)
from vision3d.evaluation.datasets.base import DepthDataset
from vision3d.evaluation.datasets.procedural import (
    PROCEDURAL_RANGE,
    TEST_SEEDS,
    Procedural,
    training_samples,
)
from vision3d.evaluation.datasets.samples import RealSamples
from vision3d.evaluation.depth_benchmark import (
    BatchPredictor,
    DepthReport,
    Protocol,
    SheetRow,
    aligned_depth,
    contact_sheet,
    evaluate_depth,
    reduced_image,
)
from vision3d.evaluation.script import check_report, run_script
from vision3d.io.files import atomic_path, atomic_write_json, check_writable, make_folder
from vision3d.progress import say

PROCEDURAL_GOAL, REAL_GOAL = 0.6, 0.85
"""AbsRel relative to the best fixed map that the mini weights are to reach."""
SHEET_PROCEDURAL = 6


def main(
    out: Path,
    weights: Path | None = None,
    real: Path | None = None,
    seeds: tuple[int, int] = (TEST_SEEDS.start, TEST_SEEDS.stop),
    shards: Path | None = None,
    training_scenes: int = 600,
    training_shards: Path | None = None,
    maps: Path | None = None,
    procedural: bool = True,
    render_size: int = 160,
    size: int = 192,
    batch_size: int = 8,
    device: str = "auto",
) -> int:
    """Compare the mini depth weights with the best image-independent predictor.

    Args:
        out: report to write, a .json file; pictures and details go beside it.
        weights: folder of the weights; only the fixed maps are scored without it.
        real: folder of real samples; left out without it.
        seeds: first and one past the last held-out scene, at least 500 for the record.
        shards: rendered held-out shards to read instead of rendering.
        training_scenes: how many training scenes fixed maps are learned from; 0 for closed forms only.
        training_shards: rendered training shards to learn them from instead of rendering.
        maps: learned maps of an earlier run (its fixed_maps.npz), to save the learning.
        procedural: evaluate on the procedural world, too.
        render_size: side in pixels of rendered images.
        size: longest side in pixels of the images given to the model.
        batch_size: images per pass.
        device: where to compute.
    """
    check_report(out)
    details = out.with_suffix("")
    check_writable(details)
    make_folder(details)
    datasets: list[DepthDataset] = []
    if procedural:
        held_out = Procedural(range(*seeds), shards=shards, size=(render_size, render_size), keep=True)
        datasets.append(held_out)
    if real is not None:
        datasets.append(RealSamples(real))
    if not datasets:
        raise InputError("nothing to evaluate on", "give --real DIR or leave --procedural on")

    if maps is not None:
        learned = load_maps(maps)
    elif training_scenes == 0:
        learned = []
    else:
        learned = learn_maps(training_scenes, training_shards, render_size)
    save_maps(learned, details / "fixed_maps.npz")
    candidates = [*closed_form_maps(), *learned]

    predict = None if weights is None else _model(weights, batch_size, device)
    result: dict[str, Any] = {}
    rows: list[SheetRow] = []
    for dataset in datasets:
        table = score_baselines(candidates, dataset)
        report = None
        if predict is not None:
            protocol = Protocol(size=size)
            report = evaluate_depth(
                predict, dataset, details / dataset.name, protocol=protocol, batch_size=batch_size
            )
            rows += _sheet_rows(predict, dataset, report)
        goal = PROCEDURAL_GOAL if isinstance(dataset, Procedural) else REAL_GOAL
        result[dataset.name] = compare(table, report, goal)
        say(summary(dataset.name, result[dataset.name]))
    atomic_write_json(out, result)
    if rows:
        with atomic_path(out.with_suffix(".png")) as path:
            contact_sheet(rows).save(path)
    return 0


def learn_maps(scenes: int, shards: Path | None, render_size: int) -> list[FixedMap]:
    """Fixed maps of training scenes, rendered or from shards. Raises as :func:`learned_maps`."""
    size = (render_size, render_size)
    samples = training_samples(scenes, shards, size, description="training scenes for fixed maps")
    depths = (np.asarray(sample.depth) for sample in samples)
    return learned_maps(depths, near=PROCEDURAL_RANGE.near, far=PROCEDURAL_RANGE.far)


def compare(table: BaselineTable, report: DepthReport | None, goal: float) -> dict[str, Any]:
    """The model beside every fixed map, as JSON.

    ``best`` holds three readings of "best image-independent predictor", each the least AbsRel among all
    maps: one map for the average over images; one map for the average over groups (data sets), each group
    counting the same; and every group choosing its own map.
    """
    averages, by_group = table.averages(), table.by_group()
    name, metrics = table.best()
    result: dict[str, Any] = {
        "images": len(next(iter(table.scores.values()))),
        "goal": goal,
        "best": {"over_images": {"map": name, "abs_rel": metrics.abs_rel, "delta1": metrics.delta1}},
        "maps": {
            name: {
                "abs_rel": m.abs_rel,
                "delta1": m.delta1,
                "groups": {g: gm.abs_rel for g, gm in by_group[name].items()},
            }
            for name, m in sorted(averages.items(), key=lambda item: item[1].abs_rel)
        },
    }
    best = result["best"]
    choices = table.best_by_group()
    own = {g: {"map": n, "abs_rel": m.abs_rel, "delta1": m.delta1} for g, (n, m) in choices.items()}
    own_mean = float(np.mean([m.abs_rel for _, m in choices.values()])) if choices else 0.0
    if choices:
        one, over_groups = table.best_over_groups()
        best["over_groups"] = {"map": one, "abs_rel": over_groups}
        best["own_map_per_group"] = {"abs_rel": own_mean, "groups": own}
    if report is None:
        return result
    mine, groups = report.average, report.groups
    result["model"] = {
        "weights": report.provenance.weights,
        "weights_sha256": report.provenance.weights_sha256,
        "size": report.protocol.size,
        "abs_rel": mine.abs_rel,
        "delta1": mine.delta1,
        "groups": {g: {"abs_rel": m.abs_rel, "delta1": m.delta1} for g, m in groups.items()},
    }
    ratio: dict[str, Any] = {"over_images": mine.abs_rel / metrics.abs_rel}
    if choices:
        mean = float(np.mean([m.abs_rel for m in groups.values()]))
        result["model"]["abs_rel_over_groups"] = mean
        ratio["over_groups"] = mean / over_groups
        ratio["own_map_per_group"] = mean / own_mean
    result["reached"] = {reading: value <= goal for reading, value in ratio.items()}
    ratio["groups"] = {g: m.abs_rel / choices[g][1].abs_rel for g, m in groups.items()}
    result["ratio"] = ratio
    return result


def summary(name: str, result: dict[str, Any]) -> str:
    """One line about one data set."""
    best = result["best"]["over_images"]
    text = f"{name}, {result['images']} images: best fixed map {best['map']!r} AbsRel {best['abs_rel']:.4f}"
    if "over_groups" in result["best"]:
        groups = result["best"]["over_groups"]
        text += f" (over groups {groups['map']!r} {groups['abs_rel']:.4f})"
    if "model" not in result:
        return f"{text}; goal {result['goal'] * best['abs_rel']:.4f}"
    ratios = ", ".join(
        f"{key.replace('_', ' ')} {v:.3f}" for key, v in result["ratio"].items() if key != "groups"
    )
    model = result["model"]
    reached = [reading for reading, yes in result["reached"].items() if yes]
    verdict = (
        f"reached for {', '.join(reading.replace('_', ' ') for reading in reached)}"
        if reached
        else "not reached"
    )
    return (
        f"{text}; model {model['abs_rel']:.4f}, delta1 {model['delta1']:.3f}; "
        f"ratio {ratios}; goal {result['goal']} {verdict}"
    )


def _model(weights: Path, batch_size: int, device: str) -> BatchPredictor:
    from vision3d.pipelines.primedepth import PrimeDepth

    pipeline = PrimeDepth.from_pretrained(weights, device=device)
    return lambda images: pipeline(images, batch_size=batch_size)  # type: ignore[return-value]


def _sheet_rows(predict: BatchPredictor, dataset: DepthDataset, report: DepthReport) -> list[SheetRow]:
    """The first image of each group, or the first few of a data set without groups."""
    firsts: dict[str, str] = {}
    for score in report.scores:
        firsts.setdefault(score.group or score.name, score.name)
    chosen = list(firsts.values())[:SHEET_PROCEDURAL]
    by_name = {score.name: score for score in report.scores}
    index = {name: i for i, name in enumerate(dataset.names)}
    rows = []
    for name in chosen:
        sample = dataset[index[name]]
        prediction = predict([reduced_image(sample.image, report.protocol.size)])[0]
        depth, _ = aligned_depth(
            prediction,
            sample,
            dataset.range_of(sample),
            report.protocol,
            fit_resolution=dataset.fit_resolution,
        )
        m = by_name[name].metrics
        rows.append(SheetRow(sample, depth, f"{name}  AbsRel {m.abs_rel:.3f}  d1 {m.delta1:.3f}"))
    return rows


def run(arguments: Sequence[str] | None = None) -> int:
    """Command line, see :func:`run_script`."""
    return run_script(main, arguments)


if __name__ == "__main__":
    sys.exit(run())
