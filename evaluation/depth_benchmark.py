"""Any depth predictor on any data set: aligned, scored per image, averaged, with pictures of the best and
worst.

A run can be interrupted: finished images are kept as lines of ``per_image.jsonl`` and reused when the same
method with the same weights is evaluated on the same data in the same way again. At the end there are

* ``report.json``: what was evaluated how, the averages over images and per group;
* ``per_image.csv``: the ten measures and the fit of each image;
* ``table.md``: the averages as a table;
* ``previews.png``: photograph, ground truth, aligned prediction and error of the best and the worst images.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vision3d.errors import InputError
from vision3d.evaluation.datasets.base import DepthDataset, DepthSample, limited
from vision3d.evaluation.metrics import DepthMetrics, align_depth, align_inverse_depth, depth_metrics
from vision3d.evaluation.protocols import DepthRange
from vision3d.evaluation.script import Measured
from vision3d.geometry.align import Affine
from vision3d.io.files import (
    atomic_path,
    atomic_write_bytes,
    atomic_write_json,
    check_writable,
    make_folder,
    output_errors,
)
from vision3d.prediction import Provenance, plain
from vision3d.progress import Progress, progress, say, warn
from vision3d.results import DepthPrediction

if TYPE_CHECKING:
    from PIL import Image

# (H, W, 3) uint8 → a prediction of any size, which is resized to the ground truth's.
Predictor = Callable[[np.ndarray], DepthPrediction]
BatchPredictor = Callable[[list[np.ndarray]], list[DepthPrediction]]

LINES = "per_image.jsonl"
PREVIEW_ROWS = 4


@dataclass(frozen=True)
class Protocol:
    """How predictions are compared with ground truth.

    Attributes:
        size: longest side in pixels that images are reduced to before they are given to the predictor, or
            None.
        positive_only: leave non-positive predictions out of the fit in inverse depth. Published scripts do so
            for methods with positive disparity; it is wrong for unbounded ones.
        width_only_resize: where the fit is made at limited resolution (ETH3D), reduce the width only, as the
            published scripts do by mistake; their tables are reproduced by it.
    """

    size: int | None = None
    positive_only: bool = False
    width_only_resize: bool = False


@dataclass(frozen=True)
class ImageScore:
    """The result for one image.

    Attributes:
        name, group: of the sample.
        valid_pixels: how many were scored.
        affine: the fit, in depth or inverse depth; identity for metric depth.
        metrics: the ten measures.
    """

    name: str
    group: str
    valid_pixels: int
    affine: Affine
    metrics: DepthMetrics

    def as_dict(self) -> dict[str, Any]:
        """One flat row."""
        return {
            "name": self.name,
            "group": self.group,
            "valid_pixels": self.valid_pixels,
            "scale": self.affine.scale,
            "shift": self.affine.shift,
            **self.metrics.as_dict(),
        }

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> ImageScore:
        """The inverse of :meth:`as_dict`."""
        return cls(
            row["name"],
            row["group"],
            int(row["valid_pixels"]),
            Affine(row["scale"], row["shift"]),
            DepthMetrics(*(float(row[name]) for name in DepthMetrics.names())),
        )


@dataclass(frozen=True)
class DepthReport(Measured):
    """The outcome of one benchmark.

    Attributes:
        dataset: short name.
        official_size: images of the official evaluation, or None.
        protocol: how it was evaluated.
        provenance: of the predictions.
        scores: one for each image, in the data set's order.
        skipped: images without a single valid pixel.
    """

    dataset: str
    official_size: int | None
    protocol: Protocol
    provenance: Provenance
    scores: list[ImageScore]
    skipped: list[str] = field(default_factory=list)

    @property
    def average(self) -> DepthMetrics:
        """Mean over images."""
        return DepthMetrics.average(score.metrics for score in self.scores)

    @property
    def groups(self) -> dict[str, DepthMetrics]:
        """Mean over the images of each group, if there is more than one."""
        return group_averages(self.scores)

    @property
    def complete(self) -> bool:
        """Whether it covers the official evaluation."""
        return self.official_size is None or len(self.scores) == self.official_size

    def to_dict(self) -> dict[str, Any]:
        """For ``report.json``: everything but the single images."""
        return {
            "dataset": self.dataset,
            "images": len(self.scores),
            "official_images": self.official_size,
            "complete": self.complete,
            "without_valid_pixels": self.skipped,
            "method": self.provenance.method,
            "weights": self.provenance.weights,
            "weights_sha256": self.provenance.weights_sha256,
            "settings": plain(self.provenance.settings),
            "seed": self.provenance.seed,
            "version": self.provenance.version,
            "protocol": asdict(self.protocol),
            "average": self.average.as_dict(),
            "groups": {name: metrics.as_dict() for name, metrics in self.groups.items()},
        }

    def table(self) -> str:
        """The averages as a Markdown table, AbsRel and δ in per cent."""
        rows = [("all", len(self.scores), self.average)]
        counts = {g: sum(s.group == g for s in self.scores) for g in self.groups}
        rows += [(group, counts[group], metrics) for group, metrics in self.groups.items()]
        lines = [
            f"| {self.dataset} | images | AbsRel % | δ1 % | δ2 % | δ3 % "
            "| SqRel | RMSE | RMSE log | log10 | iRMSE | SILog |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for name, count, m in rows:
            shares = " | ".join(f"{100 * v:.2f}" for v in (m.abs_rel, m.delta1, m.delta2, m.delta3))
            others = " | ".join(
                f"{v:.4g}" for v in (m.sq_rel, m.rmse, m.rmse_log, m.log10, m.i_rmse, m.silog)
            )
            lines.append(f"| {name or '–'} | {count} | {shares} | {others} |")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def group_averages(scores: Sequence[ImageScore]) -> dict[str, DepthMetrics]:
    """Mean over the images of each group, in order of appearance; empty when there is only one group."""
    names = list(dict.fromkeys(score.group for score in scores))
    if len(names) < 2:
        return {}
    return {g: DepthMetrics.average(s.metrics for s in scores if s.group == g) for g in names}


def aligned_depth(
    prediction: DepthPrediction,
    sample: DepthSample,
    range_: DepthRange,
    protocol: Protocol = Protocol(),
    *,
    fit_resolution: int | None = None,
) -> tuple[np.ndarray, Affine]:
    """A prediction as metric depth at the ground truth's size, fitted in the space it lives in.

    Args:
        prediction: of any size and space; metric depth is not fitted.
        sample: ground truth.
        range_: depths that the result is clipped to.
        protocol: see :class:`Protocol`.
        fit_resolution: side to which maps are reduced for the fit, or None.

    Returns:
        depth (H, W) float64 in metres, and the fit.

    Raises:
        InputError: a scored pixel has no finite prediction.
    """
    values = resize_map(prediction.depth, sample.depth.shape)
    bad = sample.valid & ~np.isfinite(values)
    if prediction.valid is not None:
        bad |= sample.valid & (resize_map(prediction.valid.astype(np.float32), sample.depth.shape) < 1)
    if bad.any():
        raise InputError(
            f"prediction for {sample.name} has no value at {int(bad.sum())} scored pixels",
            "evaluate methods that give dense maps",
        )
    if prediction.space == "metric depth":
        return np.clip(values.astype(np.float64), range_.near, range_.far), Affine(1.0, 0.0)
    if prediction.space == "affine-invariant depth":
        return align_depth(
            values,
            sample.depth,
            sample.valid,
            range_.near,
            range_.far,
            max_resolution=fit_resolution,
            width_only_resize=protocol.width_only_resize,
        )
    return align_inverse_depth(
        values,
        sample.depth,
        sample.valid,
        range_.near,
        range_.far,
        positive_only=protocol.positive_only,
        max_resolution=fit_resolution,
        width_only_resize=protocol.width_only_resize,
    )


def score_image(
    prediction: DepthPrediction,
    sample: DepthSample,
    range_: DepthRange,
    protocol: Protocol = Protocol(),
    *,
    fit_resolution: int | None = None,
) -> ImageScore:
    """Align a prediction and compute the ten measures. Arguments and errors as :func:`aligned_depth`."""
    depth, affine = aligned_depth(prediction, sample, range_, protocol, fit_resolution=fit_resolution)
    metrics = depth_metrics(depth, sample.depth, sample.valid)
    return ImageScore(sample.name, sample.group, int(sample.valid.sum()), affine, metrics)


def evaluate_depth(
    predict: Predictor | BatchPredictor,
    dataset: DepthDataset,
    out: str | Path,
    *,
    protocol: Protocol = Protocol(),
    limit: int | None = None,
    batch_size: int | None = None,
) -> DepthReport:
    """Evaluate a predictor and write the files named at the top of this module.

    Args:
        predict: image to prediction; with ``batch_size``, list of images to list of predictions.
        dataset: any reader.
        out: folder for the files; a finished or interrupted evaluation in it is continued when it was made
            by the same method, weights, settings and protocol on the same data, and replaced otherwise.
        protocol: see :class:`Protocol`.
        limit: only the first so many images.
        batch_size: how many images ``predict`` gets at once; None if it takes one.

    Raises:
        InputError: no image, or no image with valid ground truth.
        OutputError: ``out`` cannot be written.
    """
    out = Path(out)
    check_writable(out)
    count = limited(len(dataset), limit, f"image of {dataset.name}")
    names = list(dataset.names[:count])

    def predict_all(samples: list[DepthSample]) -> list[DepthPrediction]:
        images = [reduced_image(sample.image, protocol.size) for sample in samples]
        if batch_size is None:
            return [predict(image) for image in images]  # type: ignore[arg-type, misc]
        return list(predict(images))  # type: ignore[arg-type]

    # The first image is predicted in any case: its provenance says whether earlier lines are of the same run.
    first = dataset[0]
    first_prediction = predict_all([first])[0]
    provenance = first_prediction.provenance
    header = {
        "dataset": dataset.name,
        "identity": dataset.identity,
        "protocol": asdict(protocol),
        "fingerprint": provenance.fingerprint(None),
    }
    make_folder(out)
    done = _read_lines(out / LINES, header)
    if done:
        say(f"continuing: {sum(name in done for name in names)} of {count} images are already evaluated")
    else:
        atomic_write_bytes(out / LINES, _line(header))

    pending = [index for index, name in enumerate(names) if name not in done]
    step = batch_size or 1
    bar: Progress[int] = progress(total=len(pending), description=f"evaluating {dataset.name}")
    with output_errors(out / LINES), (out / LINES).open("ab") as file, bar:
        for start in range(0, len(pending), step):
            chosen = pending[start : start + step]
            samples = [first if index == 0 else dataset[index] for index in chosen]
            wanted = [s for s in samples if s.valid.any()]
            predictions = [first_prediction] if chosen == [0] else predict_all(wanted) if wanted else []
            by_name = {s.name: p for s, p in zip(wanted, predictions, strict=False)}
            for sample in samples:
                row: dict[str, Any] = {"name": sample.name, "group": sample.group, "valid_pixels": 0}
                if sample.name in by_name:
                    row = score_image(
                        by_name[sample.name],
                        sample,
                        dataset.range_of(sample),
                        protocol,
                        fit_resolution=dataset.fit_resolution,
                    ).as_dict()
                done[sample.name] = row
                file.write(_line(row))
            file.flush()
            bar.advance(len(chosen))

    rows = [done[name] for name in names]
    scores = [ImageScore.from_dict(row) for row in rows if row["valid_pixels"]]
    skipped = [row["name"] for row in rows if not row["valid_pixels"]]
    if not scores:
        raise InputError(
            f"no image of {dataset.name} has valid ground truth", "check the depth files' encoding"
        )
    report = DepthReport(dataset.name, dataset.official_size, protocol, provenance, scores, skipped)
    if not report.complete:
        warn(f"{len(scores)} images of {dataset.name}, not the {dataset.official_size} of published tables")
    _write_report(report, out)
    _write_previews(report, dataset, lambda sample: predict_all([sample])[0], out)
    return report


def reduced_image(image: np.ndarray, size: int | None) -> np.ndarray:
    """``image`` (H, W, 3) uint8 with its longest side reduced to ``size``, antialiased; never enlarged."""
    height, width = image.shape[:2]
    if size is None or max(height, width) <= size:
        return image
    from PIL import Image

    factor = size / max(height, width)
    shape = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BILINEAR))


def resize_map(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """(H, W) float map resized to ``shape`` (height, width), bilinear, half-pixel centres."""
    if values.shape == tuple(shape):
        return values
    import cv2

    return cv2.resize(values.astype(np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


@dataclass(frozen=True, eq=False)
class SheetRow:
    """One row of a contact sheet.

    Attributes:
        sample: photograph and ground truth.
        depth: (H, W) metres, aligned.
        caption: a line below it.
    """

    sample: DepthSample
    depth: np.ndarray
    caption: str


def contact_sheet(rows: Sequence[SheetRow], *, width: int = 320) -> Image.Image:
    """Photograph | ground truth | aligned prediction | relative error, one row for each image.

    Depth is coloured as inverse depth on the ground truth's range (near is red); the error from black (0) to
    white (50 % or more). Pixels that are not scored are grey in ground truth and error.

    Raises:
        InputError: no rows.
    """
    from PIL import Image, ImageDraw

    from vision3d.colour import colour_values

    if not rows:
        raise InputError("a contact sheet without images", "give at least one")
    gap, text = 4, 16
    heights = [round(width * row.sample.depth.shape[0] / row.sample.depth.shape[1]) for row in rows]
    sheet = Image.new("RGB", (4 * width + 3 * gap, sum(heights) + len(rows) * (gap + text)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        s = row.sample
        with np.errstate(divide="ignore"):
            truth, predicted = 1 / s.depth, 1 / row.depth
        low, high = np.percentile(truth[s.valid], [1, 99])
        error = np.abs(row.depth - s.depth) / np.where(s.valid, s.depth, 1)
        panels = [
            s.image,
            colour_values(truth, s.valid, limits=(low, high), reverse=True),
            colour_values(predicted, limits=(low, high), reverse=True),
            colour_values(error, s.valid, limits=(0, 0.5), name="magma"),
        ]
        for column, panel in enumerate(panels):
            # Sparse ground truth would vanish in an average, so maps are sampled.
            how = Image.Resampling.BILINEAR if column in (0, 2) else Image.Resampling.NEAREST
            tile = Image.fromarray(np.ascontiguousarray(panel)).resize((width, height), how)
            sheet.paste(tile, (column * (width + gap), top))
        draw.text((2, top + height + 1), row.caption, fill="black")
        top += height + gap + text
    return sheet


def _line(row: dict[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def _read_lines(path: Path, header: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows by name, if the file is of the same evaluation; a line cut off by an interruption is dropped."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    rows = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    if not rows or rows[0] != header:
        return {}
    usable = {row["name"]: row for row in rows[1:] if "name" in row}
    if text and not text.endswith("\n"):  # later lines must not be glued to the torn one
        atomic_write_bytes(path, (_line(row) for row in [header, *usable.values()]))
    return usable


def _write_report(report: DepthReport, out: Path) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, list(report.scores[0].as_dict()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(score.as_dict() for score in report.scores)
    atomic_write_bytes(out / "per_image.csv", table.getvalue().encode())
    atomic_write_bytes(out / "table.md", (report.table() + "\n").encode())
    atomic_write_json(out / "report.json", report.to_dict())


def _write_previews(report: DepthReport, dataset: DepthDataset, predict: Callable, out: Path) -> None:
    """The best and the worst images by AbsRel, predicted once more: keeping all maps would cost far more."""
    ranked = sorted(report.scores, key=lambda score: score.metrics.abs_rel)
    half = min(PREVIEW_ROWS, (len(ranked) + 1) // 2)
    chosen = [*ranked[:half], *ranked[max(half, len(ranked) - half) :]]
    index = {name: i for i, name in enumerate(dataset.names)}
    rows = []
    for score in chosen:
        sample = dataset[index[score.name]]
        depth, _ = aligned_depth(
            predict(sample),
            sample,
            dataset.range_of(sample),
            report.protocol,
            fit_resolution=dataset.fit_resolution,
        )
        m = score.metrics
        rows.append(SheetRow(sample, depth, f"{score.name}  AbsRel {m.abs_rel:.3f}  d1 {m.delta1:.3f}"))
    with atomic_path(out / "previews.png") as path:
        contact_sheet(rows).save(path)
