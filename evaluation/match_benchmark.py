"""Correspondence on SPair-71k, PF-Pascal and TSS by the published protocols, every convention named.

Each image is encoded once, however many pairs it is in. Keypoints are compared on the canvas on which the published
code compares them; ``published`` keeps that code's rules (cells only, slips included), otherwise places between cells
are predicted and points on the far border stay on the image.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vision3d.evaluation.correspondence import PCK, TSS_ALPHAS, PairErrors, flow_errors
from vision3d.evaluation.datasets.base import limited
from vision3d.evaluation.datasets.correspondence import KeypointPair, KeypointPairs
from vision3d.evaluation.datasets.tss import TSS, FlowPair
from vision3d.evaluation.script import Measured
from vision3d.io.files import atomic_path, atomic_write_json, make_folder
from vision3d.pipelines.sd_dino.options import MatchOptions
from vision3d.progress import progress

if TYPE_CHECKING:
    from vision3d.pipelines.sd_dino.pipeline import ImageFeatures, SDDino

PUBLISHED_SIDE = 840
"""Canvas in pixels on which the published evaluation measures errors."""


@dataclass
class MatchReport(Measured):
    """What an evaluation found.

    Attributes:
        dataset: its name.
        protocol: everything that the numbers depend on.
        scores: the measures.
        out: folder with report.json and per_pair.csv.
    """

    dataset: str
    protocol: dict[str, Any]
    scores: dict[str, Any]
    out: Path

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"dataset": self.dataset, "protocol": self.protocol, "scores": self.scores}

    def __str__(self) -> str:
        lines = [f"{self.dataset}: {self.scores.get('pairs', 0)} pairs; report in {self.out}"]
        alphas = self.scores.get("alphas", [])
        for name, table in self.scores.items():
            if isinstance(table, dict) and "all_pairs" in table:
                shares = ", ".join(f"@{a:g} {v:.3f}" for a, v in zip(alphas, table["all_pairs"], strict=True))
                means = ", ".join(
                    f"@{a:g} {v:.3f}" for a, v in zip(alphas, table["mean_of_categories"], strict=True)
                )
                lines.append(f"  PCK {name}: {shares} over all pairs; {means} mean of categories")
            elif isinstance(table, dict) and "pck" in table:
                shares = ", ".join(f"@{a:g} {v:.3f}" for a, v in zip(alphas, table["pck"], strict=True))
                lines.append(f"  {name}: PCK {shares}; AEPE {table['aepe']:.2f} px")
        return "\n".join(lines)


def evaluate_keypoints(
    pipeline: SDDino,
    dataset: KeypointPairs,
    out: Path,
    *,
    options: MatchOptions | None = None,
    sample: int = 0,
    category_prompt: bool = False,
    published: bool = False,
    limit: int | None = None,
) -> MatchReport:
    """PCK of keypoint transfer.

    Args:
        pipeline: the method.
        dataset: pairs with keypoints.
        out: folder for report.json and per_pair.csv.
        options: settings of the method.
        sample: so many pairs per category, drawn with replacement as the published script does by default (20); 0 takes
            all, which is what the paper's numbers are of.
        category_prompt: caption each image "a photo of a CATEGORY", as the published benchmark's option does.
        published: keep the published rules for cells and borders.
        limit: only the first so many pairs.

    Raises:
        InputError: no pairs.
    """
    options = options or MatchOptions()
    if published:
        options = replace(options, subcell=False, padding=True)
    pairs = dataset.sampled(sample)
    pairs = pairs[: limited(len(pairs), limit, f"pairs of {dataset.name}")]
    make_folder(out)
    encode = _encoder(pipeline)
    errors, rows = [], []
    for pair in progress(pairs, description=f"pairs of {dataset.name}"):
        settings = replace(options, prompt=f"a photo of {pair.category}") if category_prompt else options
        predicted = transfer_keypoints(pipeline, pair, encode, settings, published=published)
        result = pair_errors(pair, predicted)
        errors.append(result)
        share = float(result.correct(dataset.alphas[0], "bbox" if dataset.has_boxes else "image").mean())
        rows.append([pair.name, pair.category, len(predicted), f"{share:.4f}"])
    scores = PCK(errors, dataset.alphas).table(None if limit or sample else dataset.weights)
    protocol = {
        "errors": f"on a canvas of {PUBLISHED_SIDE} pixels",
        "thresholds": "strictly below alpha times the longer side of the box (bbox) or of the canvas (image)",
        "sample_per_category": sample or "all pairs",
        "caption": "a photo of CATEGORY" if category_prompt else options.prompt or options.conditioning,
        "rules": "published" if published else "places between cells, borders clamped",
        "weights": pipeline.weights_name,
        "weights_sha256": pipeline.weights_sha256,
        "options": asdict(options),
        "config": pipeline.config.reading(options.features).to_dict(),
    }
    return _finish(dataset.name, protocol, scores, out, ["pair", "category", "points", "pck"], rows)


def transfer_keypoints(
    pipeline: SDDino,
    pair: KeypointPair,
    encode: Callable[[Any, MatchOptions], ImageFeatures],
    options: MatchOptions,
    *,
    published: bool = False,
) -> np.ndarray:
    """Predicted target keypoints (N, 2) on the published canvas, pixels counted from whole numbers."""
    from vision3d.pipelines.sd_dino import matching
    from vision3d.pipelines.sd_dino.canvas import Canvas, cell_points, cells_of, published_keypoints

    a, b = encode(pair.source, options), encode(pair.target, options)
    descriptors = pipeline.describe(a, b, options)
    if not published:
        found = pipeline.match_described(
            a.photo, b.photo, descriptors, _kept(pair, a.size) + 0.5, options=options
        )
        # the published canvas moves pixel indices by scale and offset
        canvas = Canvas(*b.size, PUBLISHED_SIDE)
        return (found.points_b - 0.5) * canvas.scale + canvas.corner[::-1]
    import torch

    side = PUBLISHED_SIDE
    points, _ = published_keypoints(
        np.column_stack([pair.source_points, np.ones(len(pair.source_points))]), a.size[1], a.size[0], side
    )
    count = descriptors[0].shape[0]
    # a point on the far border wraps to the next row there, and past the last row raises; the latter is clamped
    cells = np.minimum(cells_of(points[:, :2], side, count, clamp=False), count * count - 1)
    queries = descriptors[0].cells[torch.from_numpy(cells).to(pipeline.device)]
    metric: Any = options.resolved_metric
    rows = matching.query_rows(queries, descriptors[1].cells, metric, halves=descriptors[0].halves)
    stride = side / count
    return cell_points(rows.argmax(1).cpu().numpy(), count, stride, stride)


def _kept(pair: KeypointPair, size: tuple[int, int]) -> np.ndarray:
    """Source keypoints within the image: some annotations lie a pixel outside."""
    return np.clip(pair.source_points, -0.5, [size[1] - 0.5, size[0] - 0.5])


def pair_errors(pair: KeypointPair, predicted: np.ndarray) -> PairErrors:
    """Errors of predictions on the published canvas."""
    from vision3d.pipelines.sd_dino.canvas import published_keypoints

    height, width = pair.target_size
    truth, (_, _, scale) = published_keypoints(
        np.column_stack([pair.target_points, np.ones(len(pair.target_points))]), width, height, PUBLISHED_SIDE
    )
    box = float("nan")
    if pair.target_box is not None:
        x0, y0, x1, y1 = pair.target_box
        box = max(x1 - x0, y1 - y0) * scale
    return PairErrors(
        pair.category, np.linalg.norm(predicted - truth[:, :2], axis=1), box, float(PUBLISHED_SIDE)
    )


def evaluate_flow(
    pipeline: SDDino,
    dataset: TSS,
    out: Path,
    *,
    options: MatchOptions | None = None,
    published: bool = False,
    limit: int | None = None,
) -> MatchReport:
    """Dense flow on TSS: endpoint error, PCK per image, smoothness, all and by set.

    Args:
        pipeline: the method.
        dataset: pairs with flow.
        out: folder for report.json and per_pair.csv.
        options: settings of the method.
        published: weigh layers after the norm, as published; keep the published slip by which rows come out up to one
            cell too large, and its rounding.
        limit: only the first so many directions.

    Raises:
        InputError: no pairs.
    """
    options = replace(options or MatchOptions(), dense=True, padding=True, weigh_after=published)
    count = limited(len(dataset), limit, f"pairs of {dataset.name}")
    make_folder(out)
    groups: dict[str, list[Any]] = {}
    rows = []
    for i in progress(range(count), description="pairs of tss"):
        pair = dataset[i]
        flow = predict_flow(pipeline, pair, options, published=published)
        length = float(max(*pair.source_size, 3))
        found = flow_errors(flow, pair.flow, pair.mask, length)
        groups.setdefault(pair.group, []).append(found)
        rows.append([pair.name, pair.group, f"{found.aepe:.4f}", *(f"{v:.4f}" for v in found.pck)])

    def mean(results: Sequence[Any]) -> dict[str, Any]:
        return {
            "pck": np.mean([r.pck for r in results], axis=0).tolist(),
            "aepe": float(np.mean([r.aepe for r in results])),
            "smoothness": float(np.mean([r.smoothness for r in results])),
            "true_smoothness": float(np.mean([r.true_smoothness for r in results])),
            "pairs": len(results),
        }

    everything = [r for results in groups.values() for r in results]
    scores: dict[str, Any] = {"alphas": list(TSS_ALPHAS), "pairs": len(everything)}
    scores |= {group: mean(results) for group, results in groups.items()}
    scores["all"] = mean(everything)
    protocol = {
        "pck": "per image, inside the mask, error at most alpha times the longer side of the source",
        "rules": "published" if published else "whole rows, layers and halves weighted",
        "weights": pipeline.weights_name,
        "weights_sha256": pipeline.weights_sha256,
        "options": asdict(options),
        "config": pipeline.config.reading(options.features).to_dict(),
    }
    header = ["pair", "set", "aepe", *(f"pck@{a:g}" for a in TSS_ALPHAS)]
    return _finish(dataset.name, protocol, scores, out, header, rows)


def predict_flow(
    pipeline: SDDino, pair: FlowPair, options: MatchOptions, *, published: bool = False
) -> np.ndarray:
    """Flow (H, W, 2) from the target's pixels to the source."""
    from vision3d.pipelines.sd_dino.flow import published_flow
    from vision3d.pipelines.sd_dino.matching import nearest_cells

    source, target = pipeline.encode(pair.source, options), pipeline.encode(pair.target, options)
    a, b = pipeline.describe(source, target, options)
    if published:
        metric: Any = options.resolved_metric
        nearest = nearest_cells(b.cells, a.cells, a.shape, metric, halves=a.halves).forward
        flow = published_flow(
            nearest.cpu(), a.shape, (pair.target.shape[0], pair.target.shape[1]), parity=True
        )
        return flow.permute(1, 2, 0).numpy()
    found = pipeline.match_described(target.photo, source.photo, (b, a), options=options)
    assert found.flow_ab is not None
    return found.flow_ab


def _encoder(pipeline: SDDino) -> Callable[[Any, MatchOptions], ImageFeatures]:
    """Encodes files, the latest of them kept in memory."""
    from vision3d.pipelines.sd_dino.pairs import MEMORY, Kept

    stores: dict[str | None, Kept] = {}

    def encode(file: Any, options: MatchOptions) -> ImageFeatures:
        if options.prompt not in stores:
            stores.clear()  # categories come one after the other
            stores[options.prompt] = Kept(lambda path: pipeline.encode(path, options), MEMORY)
        return stores[options.prompt](str(file))

    return encode


def _finish(
    name: str,
    protocol: dict[str, Any],
    scores: dict[str, Any],
    out: Path,
    header: list[str],
    rows: list[list[Any]],
) -> MatchReport:
    report = MatchReport(name, protocol, scores, out)
    from vision3d.prediction import plain

    atomic_write_json(out / "report.json", plain(report.to_dict()))
    with atomic_path(out / "per_pair.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return report
