"""Pairs of images with corresponding keypoints, in the layouts of SPair-71k and PF-Pascal.

Readers list and check their files when they are made; nothing is decoded before a pair is used.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vision3d.errors import InputError
from vision3d.evaluation.datasets.base import existing_folder

SPAIR_PAIRS = {
    "aeroplane": 690, "bicycle": 650, "bird": 702, "boat": 702, "bottle": 870, "bus": 644, "car": 564, "cat": 600,
    "chair": 646, "cow": 640, "dog": 600, "horse": 600, "motorbike": 702, "person": 650, "pottedplant": 862,
    "sheep": 664, "train": 756, "tvmonitor": 692,
}  # fmt: skip
"""Test pairs per category of SPair-71k, 12,234 in all: the weights of the published mean."""
PASCAL_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
PASCAL_PAIRS = dict(
    zip(
        PASCAL_CLASSES,
        (15, 30, 10, 6, 8, 32, 19, 27, 13, 3, 8, 24, 9, 27, 12, 7, 1, 13, 20, 15),
        strict=True,
    )
)
"""Test pairs per class of PF-Pascal, 299 in all."""


@dataclass(frozen=True, eq=False)
class KeypointPair:
    """Two images of one category and the keypoints that are visible in both.

    Attributes:
        name: unique in its data set.
        category: of the objects.
        source, target: image files.
        source_size, target_size: (height, width) in pixels.
        source_points, target_points: (N, 2) x, y in pixels, as annotated (counted from whole numbers).
        ids: (N,) names of the keypoints.
        target_box: x0, y0, x1, y1 of the object in the target, or None where the set has none.
        source_box: the same in the source.
    """

    name: str
    category: str
    source: Path
    target: Path
    source_size: tuple[int, int]
    target_size: tuple[int, int]
    source_points: np.ndarray
    target_points: np.ndarray
    ids: tuple[str, ...]
    target_box: tuple[float, float, float, float] | None = None
    source_box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.source_points.shape != self.target_points.shape or self.source_points.shape[1:] != (2,):
            raise InputError(
                f"{self.name}: {len(self.source_points)} source and {len(self.target_points)} target keypoints",
                "the annotation is damaged",
            )


class KeypointPairs:
    """Base of the readers: a sequence of :class:`KeypointPair`.

    Attributes:
        name: short name for tables.
        alphas: thresholds of the published tables.
        weights: published number of pairs per category.
        has_boxes: whether thresholds may be relative to the object's box.
        pairs: in the official order.
    """

    name: str
    alphas: tuple[float, ...]
    weights: dict[str, int]
    has_boxes: bool
    pairs: list[KeypointPair]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> KeypointPair:
        return self.pairs[index]

    def __iter__(self) -> Iterator[KeypointPair]:
        return iter(self.pairs)

    @property
    def categories(self) -> list[str]:
        """In alphabetical order."""
        return sorted({pair.category for pair in self.pairs})

    def sampled(self, per_category: int) -> list[KeypointPair]:
        """So many pairs of every category, drawn with replacement as the published script does by default.

        The generator is seeded with 42 anew for every category. Zero keeps all.
        """
        if per_category <= 0:
            return list(self.pairs)
        chosen = []
        for category in self.categories:
            members = [pair for pair in self.pairs if pair.category == category]
            chosen += [members[i] for i in sample_indices(len(members), per_category)]
        return chosen


def sample_indices(count: int, wanted: int, seed: int = 42) -> np.ndarray:
    """The published draw of ``wanted`` out of ``count``, with replacement."""
    return np.random.RandomState(seed).choice(count, wanted)


class SPair71k(KeypointPairs):
    """SPair-71k as distributed: ``JPEGImages``, ``ImageAnnotation``, ``PairAnnotation/{trn,val,test}``.

    Args:
        root: folder ``SPair-71k`` or the one around it.
        split: trn, val or test.
        categories: restrict to these.

    Raises:
        InputError: no such folder, no pairs in it, or a damaged annotation.
    """

    name = "spair"
    alphas = (0.1, 0.05, 0.01)
    weights = SPAIR_PAIRS
    has_boxes = True

    def __init__(
        self,
        root: str | Path,
        *,
        split: Literal["trn", "val", "test"] = "test",
        categories: tuple[str, ...] = (),
    ) -> None:
        folder = existing_folder(root, "SPair-71k")
        if (folder / "SPair-71k").is_dir():
            folder = folder / "SPair-71k"
        self.root = folder
        files = sorted((folder / "PairAnnotation" / split).glob("*.json"))
        if categories:
            files = [f for f in files if f.stem.rpartition(":")[2] in categories]
        if not files:
            raise InputError(
                f"{folder} holds no pairs of SPair-71k ({split})", "give the folder as distributed"
            )
        self.pairs = [self._read(file) for file in files]

    def _read(self, file: Path) -> KeypointPair:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            return spair_pair(content, file.stem, self.root)
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise InputError(f"{file}: not an annotation of a pair ({error})", "get it again") from error


def spair_pair(content: dict[str, Any], name: str, root: Path = Path()) -> KeypointPair:
    """A pair from the content of its annotation file."""
    category = content["category"]
    images = root / "JPEGImages" / category

    def size(key: str) -> tuple[int, int]:
        width, height = content[key][:2]
        return int(height), int(width)

    def box(key: str) -> tuple[float, float, float, float]:
        x0, y0, x1, y1 = map(float, content[key])
        return x0, y0, x1, y1

    return KeypointPair(
        name=name,
        category=category,
        source=images / content["src_imname"],
        target=images / content["trg_imname"],
        source_size=size("src_imsize"),
        target_size=size("trg_imsize"),
        source_points=np.array(content["src_kps"], np.float64).reshape(-1, 2),
        target_points=np.array(content["trg_kps"], np.float64).reshape(-1, 2),
        ids=tuple(map(str, content["kps_ids"])),
        target_box=box("trg_bndbox"),
        source_box=box("src_bndbox"),
    )


def published_tables(pairs: list[KeypointPair], keypoints: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints and thresholds as the published script stacks them.

    Args:
        pairs: of one category.
        keypoints: how many the category has.
        side: of the canvas in pixels.

    Returns:
        (2 * pairs, K, 3) x, y, visible on the canvas, source and target in turn, without keypoints that no image
        shows; (pairs,) larger side of the target's box on the canvas.
    """
    from vision3d.pipelines.sd_dino.canvas import published_keypoints

    stacked, thresholds = [], []
    for pair in pairs:
        for points, (height, width) in (
            (pair.source_points, pair.source_size),
            (pair.target_points, pair.target_size),
        ):
            table = np.zeros((keypoints, 3))
            table[[int(i) for i in pair.ids]] = np.column_stack([points, np.ones(len(points))])
            placed, (_, _, scale) = published_keypoints(table, width, height, side)
            stacked.append(placed)
        assert pair.target_box is not None
        x0, y0, x1, y1 = pair.target_box
        thresholds.append(max(x1 - x0, y1 - y0) * scale)
    result = np.stack(stacked)
    return result[:, (result[..., 2] > 0).any(0)], np.array(thresholds)


class PFPascal(KeypointPairs):
    """PF-Pascal as distributed: ``PF-dataset-PASCAL`` with its images and ``test_pairs_pf_pascal.csv``.

    There are no boxes: thresholds are relative to the image.

    Args:
        root: folder ``PF-dataset-PASCAL`` or the one around it.
        pairs: the list of pairs, if it lies elsewhere.

    Raises:
        InputError: no such folder or list, or one that makes no sense.
    """

    name = "pfpascal"
    alphas = (0.05, 0.1, 0.15)
    weights = PASCAL_PAIRS
    has_boxes = False

    def __init__(self, root: str | Path, *, pairs: str | Path | None = None) -> None:
        folder = existing_folder(root, "PF-Pascal")
        if (folder / "PF-dataset-PASCAL").is_dir():
            folder = folder / "PF-dataset-PASCAL"
        self.root = folder
        table = Path(pairs) if pairs is not None else folder / "test_pairs_pf_pascal.csv"
        if not table.is_file():
            raise InputError(
                f"no list of pairs {table}", "give the folder as distributed, or the list with --split"
            )
        try:
            with table.open(newline="", encoding="utf-8") as file:
                self.pairs = [self._pair(i, row) for i, row in enumerate(csv.DictReader(file))]
        except (KeyError, ValueError, AttributeError, TypeError, csv.Error) as error:
            raise InputError(f"{table}: not PF-Pascal's list of pairs ({error})", "get it again") from error
        if not self.pairs:
            raise InputError(f"{table} lists no pairs", "get it again")

    def _pair(self, index: int, row: dict[str, str]) -> KeypointPair:
        from PIL import Image

        def points(x: str, y: str) -> np.ndarray:
            values = [np.array(row[name].strip().strip(";").split(";"), np.float64) for name in (x, y)]
            return np.stack(values, axis=1)

        files = []
        for column in ("source_image", "target_image"):
            # paths are relative to the parent of the data set's folder
            file = self.root.parent / row[column].strip()
            if not file.is_file():
                file = self.root / Path(row[column].strip()).parent.name / Path(row[column].strip()).name
            if not file.is_file():
                raise InputError(f"PF-Pascal's image {row[column]} is missing", "complete the data set")
            files.append(file)
        sizes = []
        for file in files:
            try:
                with Image.open(file) as image:
                    sizes.append((image.height, image.width))
            except OSError as error:
                raise InputError(f"{file} cannot be read as an image ({error})", "copy it again") from error
        source, target = points("XA", "YA"), points("XB", "YB")
        number = int(row["class"])
        if not 1 <= number <= len(PASCAL_CLASSES):
            raise ValueError(f"class {number}")
        visible = np.isfinite(source).all(1) & np.isfinite(target).all(1)
        return KeypointPair(
            name=f"{index:04d}",
            category=PASCAL_CLASSES[number - 1],
            source=files[0],
            target=files[1],
            source_size=sizes[0],
            target_size=sizes[1],
            source_points=source[visible],
            target_points=target[visible],
            ids=tuple(str(i) for i in np.flatnonzero(visible)),
        )
