"""Normals of any method on a folder of pictures, by both protocols in use (see :mod:`.normal_metrics`).

The folder is in the layout of the published StableNormal script: ``NAME_gt.png`` (ground truth), ``NAME_ref.png``
(the photograph), and a picture per prediction of the same photograph, ``NAME_init.png``, ``NAME_step3.png`` or any
other label. All are 8-bit, ``x / 255 * 2 - 1``. Pictures that are there are scored as they are; a predictor adds its
own, ``LABEL_seedK`` for several seeds, which are kept in the output folder, so that an interrupted evaluation goes on.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.errors import InputError
from vision3d.evaluation.datasets.base import limited, read_rgb
from vision3d.evaluation.normal_metrics import (
    NormalMetrics,
    PictureErrors,
    picture_errors,
    pooled_metrics,
    seed_variance,
)
from vision3d.evaluation.script import Measured
from vision3d.io.files import atomic_path, atomic_write_bytes, atomic_write_json, make_folder
from vision3d.prediction import Provenance, plain
from vision3d.progress import progress

PREDICTIONS = "predictions"
RECORD = "predictions.json"
"""In the output folder: what made the pictures in :data:`PREDICTIONS`."""

Predictor = Callable[[np.ndarray, int], np.ndarray]
"""Image (H, W, 3) uint8 and seed to the 8-bit picture of its normals (H, W, 3), in the ground truth's axes."""


class NormalPictures:
    """The pictures of a folder by photograph.

    Args:
        root: folder, see the module.

    Raises:
        InputError: no ground truth in it.
    """

    name = "pictures"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.names = sorted(p.name.removesuffix("_gt.png") for p in root.glob("*_gt.png"))
        if not self.names:
            raise InputError(f"no NAME_gt.png in {root}", "give a folder of ground truths and predictions")

    def target(self, name: str) -> np.ndarray:
        """(H, W, 3) uint8, the ground truth."""
        return read_rgb(self.root / f"{name}_gt.png")

    def photograph(self, name: str) -> np.ndarray:
        """(H, W, 3) uint8. Raises InputError where there is none."""
        path = self.root / f"{name}_ref.png"
        if not path.is_file():
            raise InputError(
                f"no photograph {path}", "put it there, or score the pictures only (--no-predict)"
            )
        return read_rgb(path)

    def predictions(self, name: str) -> dict[str, Path]:
        """Pictures of a photograph's predictions, by label."""
        # another photograph's name may begin with this one's
        longer = tuple(f"{other}_" for other in self.names if other.startswith(f"{name}_"))
        found = {}
        for path in sorted(self.root.glob("*.png")):
            if path.name.startswith(f"{name}_") and not path.name.startswith(longer):
                found[path.stem[len(name) + 1 :]] = path
        return {label: path for label, path in found.items() if label not in ("gt", "ref")}


@dataclass
class NormalReport(Measured):
    """The outcome of an evaluation.

    Attributes:
        dataset: its name.
        images: how many were scored.
        protocol: everything that the numbers depend on.
        scores: by label: ``pooled`` and ``per_image`` measures, ``distance`` (the published "rmse", no angle) and how
            many ``images`` have such a picture.
        variance: by label before ``_seedK``: mean over images of the variance over seeds, in square degrees.
        out: folder with report.json, table.md and per_image.csv.
    """

    dataset: str
    images: int
    protocol: dict[str, Any]
    scores: dict[str, dict[str, Any]]
    variance: dict[str, float]
    out: Path

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = {name: value for name, value in vars(self).items() if name != "out"}
        return dict(plain(values))

    def table(self) -> str:
        """Markdown: two rows per label, one for each protocol."""
        names = NormalMetrics.names()
        lines = [
            "| prediction | protocol | images | " + " | ".join(names) + " |",
            "|---|---|---|" + "---|" * len(names),
        ]
        for label, score in self.scores.items():
            for protocol in ("per_image", "pooled"):
                values = " | ".join(f"{score[protocol][name]:.2f}" for name in names)
                lines.append(f"| {label} | {protocol.replace('_', ' ')} | {score['images']} | {values} |")
        return "\n".join(lines)

    def __str__(self) -> str:
        spread = [
            f"{label}: variance over seeds {value:.3f} square degrees"
            for label, value in self.variance.items()
        ]
        return "\n".join([self.table(), *spread, f"report in {self.out}"])


def evaluate_normals(
    data: NormalPictures,
    out: Path,
    *,
    predict: Predictor | None = None,
    provenance: Provenance | None = None,
    label: str = "vision3d",
    seeds: int = 1,
    limit: int | None = None,
) -> NormalReport:
    """Score the predictions of a folder, and those of a predictor.

    Args:
        data: the pictures.
        out: folder for report.json, table.md, per_image.csv and the predicted pictures.
        predict: method whose pictures are made; None scores what is there.
        provenance: of ``predict``; pictures of another are made again.
        label: what its predictions are called.
        seeds: so many predictions of each photograph.
        limit: only the first so many photographs.

    Raises:
        InputError: nothing to score, or a picture that cannot be read.
        OutputError: ``out`` cannot be written.
    """
    names = data.names[: limited(len(data.names), limit, f"photograph in {data.root}")]
    if seeds < 1:
        raise InputError(f"{seeds} seeds", "give at least 1")
    make_folder(out)
    own: dict[str, dict[str, Path]] = {name: {} for name in names}
    if predict is not None:
        labels = [label] if seeds == 1 else [f"{label}_seed{k}" for k in range(seeds)]
        made = _kept(out, provenance)
        tasks = [(name, seed) for name in names for seed in range(seeds)]
        for name, seed in progress(tasks, description="normals"):
            path = own[name][labels[seed]] = made / f"{name}_{labels[seed]}.png"
            if not path.is_file():
                _write_picture(path, predict(data.photograph(name), seed))
    errors: dict[str, dict[str, PictureErrors]] = {}
    for name in progress(names, description="scores"):
        target = data.target(name)
        for kind, path in {**data.predictions(name), **own[name]}.items():
            found = picture_errors(read_rgb(path), target)
            if found.angles.size:
                errors.setdefault(kind, {})[name] = found
    if not errors:
        raise InputError(
            f"no prediction of a photograph with valid ground truth in {data.root}",
            "add NAME_LABEL.png, or let a method predict",
        )
    protocol = {
        "pooled": "all valid pixels of all images in one heap; ground truth of length 0.5 to 1.5, not normalised",
        "per_image": "angles of unit vectors; measures of each image over its valid pixels, averaged over images",
        "pictures": "8-bit; predictions of another size are resized bilinearly as pictures",
        "provenance": None if provenance is None else asdict(provenance),
    }
    report = NormalReport(
        data.name,
        len(names),
        protocol,
        {kind: _scores(list(found.values())) for kind, found in errors.items()},
        _variances(errors),
        out,
    )
    _write(report, errors)
    return report


def _kept(out: Path, provenance: Provenance | None) -> Path:
    """The folder of predicted pictures, emptied if something else made those in it."""
    from vision3d.prediction import read_record

    folder = make_folder(out / PREDICTIONS)
    mark = {"fingerprint": None if provenance is None else provenance.fingerprint(None)}
    if read_record(out, RECORD) != mark:
        for path in folder.glob("*.png"):
            path.unlink()
        atomic_write_json(out / RECORD, mark)
    return folder


def _write_picture(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)


def _scores(errors: list[PictureErrors]) -> dict[str, Any]:
    return {
        "images": len(errors),
        "pooled": pooled_metrics(errors).as_dict(),
        "per_image": NormalMetrics.average(NormalMetrics.of_angles(e.unit_angles) for e in errors).as_dict(),
        "distance": float(np.mean([e.distance for e in errors])),
    }


def _variances(errors: dict[str, dict[str, PictureErrors]]) -> dict[str, float]:
    """Spread over seeds of every label that has more than one, on the photographs that have them all."""
    groups: dict[str, list[str]] = {}
    for kind in errors:
        if match := re.fullmatch(r"(.+)_seed\d+", kind):
            groups.setdefault(match[1], []).append(kind)
    result = {}
    for label, kinds in groups.items():
        common = set.intersection(*(set(errors[kind]) for kind in kinds))
        if len(kinds) > 1 and common:
            means = [[float(errors[kind][name].angles.mean()) for kind in kinds] for name in sorted(common)]
            result[label] = seed_variance(means)
    return result


def _write(report: NormalReport, errors: dict[str, dict[str, PictureErrors]]) -> None:
    atomic_write_json(report.out / "report.json", report.to_dict())
    atomic_write_bytes(report.out / "table.md", (report.table() + "\n").encode())
    with (
        atomic_path(report.out / "per_image.csv") as path,
        path.open("w", newline="", encoding="utf-8", errors="replace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["name", "prediction", "valid_pixels", *NormalMetrics.names(), "distance"])
        for kind, found in errors.items():
            for name, error in found.items():
                values = NormalMetrics.of_angles(error.unit_angles).as_dict().values()
                writer.writerow([name, kind, error.angles.size, *values, error.distance])
