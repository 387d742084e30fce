"""What every depth data set gives: photographs with metric depth, the pixels that count, and the range.

A reader lists and checks its files when it is made, so that a wrong folder is one error at the start of a run
instead of one in its middle; images are decoded when asked for.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.evaluation.protocols import DepthRange
from vision3d.io.depth import read_grey


@dataclass(frozen=True, eq=False)
class DepthSample:
    """One photograph with its ground truth.

    Attributes:
        name: unique in its data set; may hold "/".
        group: the part of the data set it belongs to ("indoors", a scene kind, a sensor), or "".
        image: (H, W, 3) uint8 RGB.
        depth: (H, W) float32 z-depth in metres, 0 where unknown.
        valid: (H, W) bool, the pixels that are scored: known, in range, inside the benchmark's mask.
        camera: intrinsics of ``image``, or None where the data set has none (or no pinhole ones).
        normals: (H, W, 3) float32 unit normals in OpenCV camera axes towards the camera, zero where unknown; None
            where the data set has none or they were not asked for.
    """

    name: str
    group: str
    image: np.ndarray
    depth: np.ndarray
    valid: np.ndarray
    camera: Intrinsics | None = None
    normals: np.ndarray | None = None


@dataclass(frozen=True)
class Entry:
    """The files of one sample."""

    name: str
    group: str
    image: Path
    depth: Path


def limited(available: int, limit: int | None, what: str) -> int:
    """How many of a data set's images or pairs to evaluate. Raises InputError for none, naming ``what``."""
    count = available if limit is None else min(limit, available)
    if count < 1:
        raise InputError(f"no {what} to evaluate", "give a limit of at least 1")
    return count


class DepthDataset(ABC):
    """Base of the readers: a sequence of :class:`DepthSample`.

    Attributes:
        name: short name for tables.
        range: depths that are scored.
        fit_resolution: side to which maps are reduced for the fit, or None for full resolution.
        official_size: number of images of the official evaluation, or None.
    """

    name: str
    range: DepthRange
    fit_resolution: int | None = None
    official_size: int | None = None

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """The samples' names in order."""

    @abstractmethod
    def __getitem__(self, index: int) -> DepthSample:
        """Read one sample. Raises IndexError past the end, InputError for a file that cannot be read."""

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[DepthSample]:
        return (self[index] for index in range(len(self)))

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this data set from others of its name, as JSON: scores of one are not taken for another's."""
        return {"names": hashlib.sha256("\n".join(self.names).encode()).hexdigest()}

    def range_of(self, sample: DepthSample) -> DepthRange:
        """The range one sample is scored in; differs from :attr:`range` only in mixed collections."""
        return self.range

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {len(self)} images"


class FileDataset(DepthDataset):
    """A data set of files on disk: subclasses list :class:`Entry` objects and read one."""

    def __init__(self, root: str | Path) -> None:
        self.root = existing_folder(root, self.name)
        self.entries = self._list()
        if not self.entries:
            raise InputError(f"{self.root} holds no images of {self.name}", "give the folder as distributed")
        self._check_files()

    @abstractmethod
    def _list(self) -> list[Entry]:
        """All samples, in the official order. Raises InputError when the layout is not recognised."""

    @abstractmethod
    def _read(self, entry: Entry) -> DepthSample:
        """Decode one sample."""

    def _check_files(self) -> None:
        missing = [p for entry in self.entries for p in (entry.image, entry.depth) if not p.is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of {2 * len(self.entries)} files of {self.name} are missing, "
                f"the first is {missing[0]}",
                "complete the data set, or give a shorter list of images",
            )

    @property
    def names(self) -> Sequence[str]:
        """See :class:`DepthDataset`."""
        return [entry.name for entry in self.entries]

    @property
    def identity(self) -> dict[str, Any]:
        """The folder, and a checksum of the samples' names and their files' sizes; see :class:`DepthDataset`."""
        rows = (f"{e.name}|{e.image.stat().st_size}|{e.depth.stat().st_size}" for e in self.entries)
        return {
            "root": str(self.root.resolve()),
            "files": hashlib.sha256("\n".join(rows).encode()).hexdigest(),
        }

    def __getitem__(self, index: int) -> DepthSample:
        return self._read(self.entries[index])


def existing_folder(folder: str | Path, name: str) -> Path:
    """``folder`` as a path. Raises InputError if it is not a folder."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"no folder {folder} with {name}", "give the folder the data set was unpacked in")
    return folder


def first_existing(folders: Sequence[Path], relative: str | Path) -> Path:
    """``relative`` below the first folder that has it; below the first folder if none does."""
    return next((f / relative for f in folders if (f / relative).exists()), folders[0] / relative)


def read_split(
    name: str, folders: Sequence[Path], candidates: Sequence[str], given: str | Path | None = None
) -> list[list[str]]:
    """The lines of a list of images, split at white space, without empty ones.

    Args:
        name: of the data set, for messages.
        folders: where to look.
        candidates: patterns of the list's file name, the preferred one first.
        given: the list's path, if the user gave it.

    Raises:
        InputError: no list, an empty one, or no text.
    """
    if given is not None:
        path = Path(given).expanduser()
        if not path.is_file():
            raise InputError(f"no list of images at {path}", "check --split")
    else:
        found = (hit for pattern in candidates for folder in folders for hit in sorted(folder.glob(pattern)))
        path = next(found, Path())
        if not path.is_file():
            raise InputError(
                f"no list of the test images of {name} in {folders[0]}",
                f"put {candidates[0]} there or give it with --split",
            )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read as a list of images ({error})", "give a text file"
        ) from error
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path} is empty", f"give the list of the test images of {name}")
    return lines


def read_rgb(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 exactly as stored: no EXIF rotation, so that it stays registered with its depth map.

    Raises:
        InputError: not an image.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as an image ({error})", "copy it again") from error


def read_depth_png(path: Path, per_metre: float, *, missing: Sequence[int] = (0,)) -> np.ndarray:
    """(H, W) float32 metres of a 16-bit PNG, 0 where unknown.

    Args:
        path: the file.
        per_metre: what stands for one metre (1000 for millimetres).
        missing: values that mean "unknown".

    Raises:
        InputError: not a 16-bit grey image. An 8-bit one is a picture of a depth map, not a depth map.
    """
    raw = read_grey(path, 16)
    depth = raw.astype(np.float32) / np.float32(per_metre)
    depth[np.isin(raw, missing)] = 0
    return depth


def make_sample(
    entry: Entry,
    image: np.ndarray,
    depth: np.ndarray,
    range_: DepthRange,
    *,
    mask: np.ndarray | None = None,
    camera: Intrinsics | None = None,
) -> DepthSample:
    """Put a sample together: unknown depth becomes 0, ``valid`` is range and mask.

    Args:
        entry: names and files.
        image: (H, W, 3) uint8.
        depth: (H, W) metres; non-finite or ≤ 0 is unknown.
        range_: depths that are scored.
        mask: (H, W) bool of the benchmark, or None.
        camera: of ``image``.

    Raises:
        InputError: image and depth differ in size.
    """
    if image.shape[:2] != depth.shape:
        raise InputError(
            f"{entry.image} is {image.shape[1]}×{image.shape[0]} pixels, "
            f"its depth {depth.shape[1]}×{depth.shape[0]}",
            "give images registered with their depth, as distributed",
        )
    known = np.isfinite(depth) & (depth > 0)
    depth = np.where(known, depth, 0).astype(np.float32)
    valid = known & range_.contains(depth)
    if mask is not None:
        valid &= mask
    return DepthSample(entry.name, entry.group, image, depth, valid, camera)
