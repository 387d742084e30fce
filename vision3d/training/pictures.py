"""A person's own photographs with depth, normals or neither, to train on.

In a folder, nested or not, beside each photograph ``NAME.jpg`` (or ``.png``, ``.tif``, ``.webp``) may lie

- ``NAME_depth.npy``: z-depth in metres, (H, W) floating point; 0 or NaN where it is unknown, infinite for sky;
- ``NAME_depth.png``: the same as 16-bit grey, in millimetres, 0 where it is unknown;
- ``NAME_inverse.npy``: inverse depth up to scale and shift, as another network predicts it; NaN where it is unknown;
- ``NAME_normals.npy``: (H, W, 3) unit vectors in the OpenCV camera frame, towards the camera; 0 where there is none;
- ``NAME_classes.png``: 8-bit grey, indices of ADE20K's 150 classes, 255 for none;
- ``NAME.txt``: a caption.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.errors import InputError
from vision3d.io.depth import read_grey
from vision3d.io.files import read_npy

DEPTHS = ("_depth.npy", "_depth.png", "_inverse.npy")
NORMALS, CLASSES = "_normals.npy", "_classes.png"
LABELS = (*DEPTHS, NORMALS, CLASSES)
NONE = 255
"""Class of an unlabelled pixel."""
FLOOR = 0.01
"""What the farthest inverse depth becomes where the nearest is 1: no depth is infinite that is only far."""
NEAREST = 100.0
"""Depth that stands for the nearest of an inverse depth without a unit: too far for losses that count metres."""


class Picture:
    """One photograph and what is known of it; the attributes are those of a rendered ``Sample``, read when asked for.

    Attributes:
        image: (H, W, 3) uint8, in the size of its labels.
        depth: (H, W) float32, 0 where it is unknown; metres, or for inverse depth without a unit far more than 80.
        normals: (H, W, 3) float32, zero where they are unknown.
        semantic: (H, W) uint8.
        K: (3, 3) with square pixels, otherwise nominal.
        caption: what the text beside it says.
    """

    def __init__(self, path: Path, wanted: tuple[str, ...]) -> None:
        self.path, self._wanted = path, wanted

    def _label(self, name: str) -> np.ndarray | None:
        if name == "depth":
            return _depth(self.path)
        if name == "normals":
            return _array(_beside(self.path, NORMALS), 3)
        classes = _beside(self.path, CLASSES)
        return read_grey(classes, 8) if classes.is_file() else None

    @cached_property
    def _labels(self) -> dict[str, np.ndarray]:
        read = {name: self._label(name) for name in ("depth", "normals", "semantic") if name in self._wanted}
        return {name: values for name, values in read.items() if values is not None}

    @cached_property
    def image(self) -> np.ndarray:
        """See the class. Raises InputError where a label has another shape."""
        from vision3d.io.photo import load_photo

        image = load_photo(self.path).rgb8
        size = next((values.shape[:2] for values in self._labels.values()), image.shape[:2])
        if abs(size[0] * image.shape[1] - size[1] * image.shape[0]) > 0.02 * size[1] * image.shape[0]:
            raise InputError(
                f"{self.path} is {image.shape[1]}x{image.shape[0]}, its labels {size[1]}x{size[0]}",
                "give labels of the photograph's shape",
            )
        if image.shape[:2] == size:
            return image
        import cv2

        method = cv2.INTER_AREA if size[0] < image.shape[0] else cv2.INTER_CUBIC
        return cv2.resize(image, size[::-1], interpolation=method)

    def _map(self, name: str, absent: np.ndarray) -> np.ndarray:
        """A label, or where there is none ``absent`` in the image's size."""
        values = self._labels.get(name) if name in self._wanted else self._label(name)
        size = self.image.shape[:2]
        if values is None:
            return np.broadcast_to(absent, (*size, *absent.shape))
        if values.shape[:2] != size:
            raise InputError(
                f"labels of {self.path} are {size[1]}x{size[0]} and {values.shape[1]}x{values.shape[0]}",
                "give one size",
            )
        return values

    @property
    def depth(self) -> np.ndarray:
        """See the class."""
        return self._map("depth", np.zeros((), np.float32))

    @property
    def normals(self) -> np.ndarray:
        """See the class."""
        return np.nan_to_num(self._map("normals", np.zeros(3, np.float32)))

    @property
    def semantic(self) -> np.ndarray:
        """See the class."""
        return self._map("semantic", np.full((), NONE, np.uint8))

    @property
    def K(self) -> np.ndarray:
        """See the class."""
        height, width = self.image.shape[:2]
        focal = float(max(height, width))
        return np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])

    @property
    def caption(self) -> str:
        """See the class. Raises InputError for a text that is not UTF-8."""
        file = self.path.with_suffix(".txt")
        try:
            return " ".join(file.read_text(encoding="utf-8").split()) if file.is_file() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read as text", "write it as UTF-8") from error


@dataclass
class PictureFolder:
    """Photographs of a folder that have at least one of the wanted labels.

    Args:
        folder: searched with all below it.
        wanted: fields of a batch; photographs without any label of these are left out.
    """

    folder: Path
    wanted: tuple[str, ...]
    files: list[Path] = field(init=False)

    def __post_init__(self) -> None:
        from vision3d.io.images import IMAGE_SUFFIXES, usable_files

        photos = [p for p in usable_files(self.folder, IMAGE_SUFFIXES) if not p.name.endswith(LABELS)]
        if photos and (photos[0].parent / "sample.json").is_file():
            raise InputError(
                f"{self.folder} holds rendered scenes to look at",
                "render them with --shards to train on them",
            )
        self.files = [path for path in photos if self._is_labelled(path)]

    def _is_labelled(self, photo: Path) -> bool:
        labels = {"depth": DEPTHS, "normals": (NORMALS,)}
        asked = [end for name in self.wanted for end in labels.get(name, ())]
        return not asked or any(_beside(photo, end).is_file() for end in asked)

    def __len__(self) -> int:
        return len(self.files)

    def caption(self, position: int) -> str:
        """What the text beside a photograph says; empty without one."""
        return self[position].caption

    def __getitem__(self, position: int) -> Picture:
        return Picture(self.files[position], self.wanted)

    def describe(self) -> dict[str, Any]:
        """Their number and a checksum of names and sizes, for the record of a training; no paths."""
        digest = hashlib.sha256()
        for photo in self.files:
            for path in (photo, *(_beside(photo, end) for end in LABELS)):
                if path.is_file():
                    name = path.relative_to(self.folder).as_posix()
                    digest.update(f"{name}|{path.stat().st_size}|".encode())
        return {"source": "photographs", "samples": len(self), "sha256": digest.hexdigest()}


def _beside(photo: Path, end: str) -> Path:
    return photo.with_name(photo.stem + end)


def _array(file: Path, channels: int) -> np.ndarray | None:
    """A stored map (H, W) or (H, W, channels) as float32, or None where there is none."""
    if not file.is_file():
        return None
    values = read_npy(file, "write it with numpy.save")
    shape = values.shape[2:] if channels > 1 else ()
    if values.dtype.kind != "f" or values.ndim != 2 + len(shape) or shape not in ((), (channels,)):
        raise InputError(
            f"{file} holds {values.dtype} of shape {values.shape}",
            f"give floating point of shape (H, W{f', {channels}' if channels > 1 else ''})",
        )
    if (channels > 1) != bool(shape):
        raise InputError(f"{file} has shape {values.shape}", f"give (H, W, {channels})")
    return values.astype(np.float32)


def _depth(photo: Path) -> np.ndarray | None:
    """Depth (H, W) float32, 0 where it is unknown, or None for a photograph without."""
    metres = _array(_beside(photo, DEPTHS[0]), 1)
    if metres is not None:
        return np.where(metres > 0, metres, 0)  # NaN is not above 0
    millimetres = _beside(photo, DEPTHS[1])
    if millimetres.is_file():
        return read_grey(millimetres, 16).astype(np.float32) / 1000
    inverse = _array(_beside(photo, DEPTHS[2]), 1)
    if inverse is None:
        return None
    known = np.isfinite(inverse)
    if not known.any() or np.ptp(inverse[known]) == 0:
        return np.zeros_like(inverse)
    low, high = inverse[known].min(), inverse[known].max()
    share = np.where(known, (inverse - low) / (high - low), 0)
    return np.where(known, NEAREST / (FLOOR + share), 0).astype(np.float32)
