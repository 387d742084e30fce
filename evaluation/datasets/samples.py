"""A folder of a few real photographs with depth, one folder per source, for development and the mini weights.

* ``nyu``: ``rgb_*.jpg``, ``depth_*.png``, uint16 millimetres (NYU Depth v2, raw and synchronised); intrinsics in
  ``annotations.json``.
* ``kitti``: ``rgb_*.png``, ``depth_*.png``, uint16 1/256 m (KITTI, LiDAR); intrinsics in ``annotations.json``.
* ``tum_desk``: ``1.png``, ``1_depth.png``, uint16 1/5000 m (TUM RGB-D freiburg2); intrinsics fixed.
* ``sevenscenes``: ``frame-*.color.jpg``, ``frame-*.depth.png``, uint16 millimetres, 65535 or 0 unknown (7-Scenes);
  intrinsics in ``camera-intrinsics.txt``.
* ``motorcycle``: ``motorcycle_left.png``, ``motorcycle_disp.npz``, float disparity (Middlebury 2014); intrinsics fixed.
* ``dsine_office``: ``NAME.png`` and ``NAME.txt`` with fx, fy, cx, cy; no depth, read by the comparison of cameras only.

Scored as the benchmark of the source does where there is one: NYU inside Eigen's mask, KITTI cropped to
352 × 1216 and inside Eigen's mask.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.evaluation.datasets.base import (
    DepthSample,
    Entry,
    FileDataset,
    make_sample,
    read_depth_png,
    read_rgb,
)
from vision3d.evaluation.protocols import (
    KITTI_CROP,
    KITTI_RANGE,
    NYU_RANGE,
    DepthRange,
    kitti_benchmark_crop,
    kitti_crop_origin,
    kitti_eigen_mask,
    nyu_eigen_mask,
)
from vision3d.io.files import DAMAGED

# Consumer depth cameras and a table-top stereo pair: the range of the indoor benchmarks.
INDOOR_RANGE = NYU_RANGE
RANGES: dict[str, DepthRange] = {
    "nyu": NYU_RANGE,
    "kitti": KITTI_RANGE,
    "tum_desk": INDOOR_RANGE,
    "sevenscenes": INDOOR_RANGE,
    "motorcycle": INDOOR_RANGE,
}


class RealSamples(FileDataset):
    """Whatever of the folders above there is; ``group`` is the folder's name.

    Args:
        root: the folder of folders.
        groups: which of them to read; all that are there by default.

    Raises:
        InputError: none there, an asked-for one missing, files missing.
    """

    name = "samples"
    range = INDOOR_RANGE

    def __init__(self, root: str | Path, *, groups: Sequence[str] | None = None) -> None:
        self.groups = groups
        super().__init__(root)

    def range_of(self, sample: DepthSample) -> DepthRange:
        """The range of the sample's source."""
        return RANGES[sample.group]

    def _list(self) -> list[Entry]:
        wanted = list(RANGES) if self.groups is None else list(self.groups)
        unknown = [group for group in wanted if group not in RANGES]
        if unknown:
            raise InputError(f"group {unknown[0]!r} of real samples", f"use some of {', '.join(RANGES)}")
        found = {group: _LISTS[group](self.root / group) for group in wanted if (self.root / group).is_dir()}
        lost = [group for group in wanted if not found.get(group)]
        if not any(found.values()) or (self.groups is not None and lost):
            raise InputError(
                f"{self.root} holds no real samples in {', '.join(lost)}",
                f"give a folder with {', '.join(RANGES)} or some of these",
            )
        return [
            Entry(f"{group}/{name}", group, image, depth)
            for group, files in found.items()
            for name, image, depth in files
        ]

    def _read(self, entry: Entry) -> DepthSample:
        return _READERS[entry.group](entry)


_Files = list[tuple[str, Path, Path]]


def _pairs(folder: Path, pattern: str, image_name: Callable[[str], list[str]]) -> _Files:
    """(name, image, depth) for every depth file that matches ``pattern``, whose first group is the name."""
    files = []
    for depth in sorted(folder.iterdir()):
        match = re.fullmatch(pattern, depth.name)
        if match:
            names = image_name(match[1])
            image = next((folder / n for n in names if (folder / n).is_file()), folder / names[0])
            files.append((match[1], image, depth))
    return files


def _annotated(folder: Path) -> _Files:
    return _pairs(folder, r"depth_(\d+)\.png", lambda n: [f"rgb_{n}.jpg", f"rgb_{n}.png"])


def _motorcycle_files(folder: Path) -> _Files:
    return _pairs(folder, r"(motorcycle)_disp\.npz", lambda n: [f"{n}_left.png"])


_LISTS: dict[str, Callable[[Path], _Files]] = {
    "nyu": _annotated,
    "kitti": _annotated,
    "tum_desk": lambda folder: _pairs(folder, r"(\d+)_depth\.png", lambda n: [f"{n}.png"]),
    "sevenscenes": lambda folder: _pairs(folder, r"(frame-\d+)\.depth\.png", lambda n: [f"{n}.color.jpg"]),
    "motorcycle": _motorcycle_files,
}


def _annotation(entry: Entry) -> dict[str, Any]:
    """The entry of annotations.json about this image: ``cam_in`` (fx, fy, cx, cy) and ``depth_scale``."""
    path = entry.image.parent / "annotations.json"
    number = entry.image.stem.removeprefix("rgb_")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))["files"]
        return next(r for r in records if Path(r["rgb"]).stem.removeprefix("rgb_") == number)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise InputError(
            f"{path} does not describe image {number}", "give the folder as distributed"
        ) from error


def _pinhole(calibration: Sequence[float], size: tuple[int, ...]) -> Intrinsics:
    """From fx, fy, cx, cy for a ``size`` of (height, width); these calibrations put centres at integers."""
    fx, fy, cx, cy = calibration
    return Intrinsics.from_integer_centres([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], size[1], size[0])


def _read_nyu(entry: Entry) -> DepthSample:
    annotation = _annotation(entry)
    depth = read_depth_png(entry.depth, annotation["depth_scale"])
    return make_sample(
        entry,
        read_rgb(entry.image),
        depth,
        RANGES["nyu"],
        mask=nyu_eigen_mask(*depth.shape),
        camera=_pinhole(annotation["cam_in"], depth.shape),
    )


def _read_kitti(entry: Entry) -> DepthSample:
    annotation = _annotation(entry)
    depth = read_depth_png(entry.depth, annotation["depth_scale"])
    left, top = kitti_crop_origin(*depth.shape)
    camera = _pinhole(annotation["cam_in"], depth.shape)
    return make_sample(
        entry,
        kitti_benchmark_crop(read_rgb(entry.image)),
        kitti_benchmark_crop(depth),
        RANGES["kitti"],
        mask=kitti_eigen_mask(*KITTI_CROP),
        camera=camera.cropped(left, top, KITTI_CROP[1], KITTI_CROP[0]),
    )


def _read_tum(entry: Entry) -> DepthSample:
    depth = read_depth_png(entry.depth, 5000)
    camera = _pinhole((520.9, 521.0, 325.1, 249.7), depth.shape)
    return make_sample(entry, read_rgb(entry.image), depth, RANGES["tum_desk"], camera=camera)


def _read_sevenscenes(entry: Entry) -> DepthSample:
    depth = read_depth_png(entry.depth, 1000, missing=(0, 65535))
    path = entry.image.parent / "camera-intrinsics.txt"
    try:
        K = np.loadtxt(path)
    except (OSError, ValueError) as error:
        raise InputError(f"no 3×3 intrinsics in {path}", "give the folder as distributed") from error
    camera = Intrinsics.from_integer_centres(K, depth.shape[1], depth.shape[0])
    return make_sample(entry, read_rgb(entry.image), depth, RANGES["sevenscenes"], camera=camera)


def _read_motorcycle(entry: Entry) -> DepthSample:
    """Depth = f · baseline / (disparity + offset of the principal points between right and left)."""
    focal, baseline, offset = 994.978, 0.193001, 31.086
    try:
        disparity = np.load(entry.depth, allow_pickle=False)["arr_0"].astype(np.float64)
    except DAMAGED as error:
        raise InputError(f"{entry.depth} holds no disparity", "give it as distributed") from error
    known = np.isfinite(disparity)
    depth = np.where(known, focal * baseline / (np.where(known, disparity, 1) + offset), 0)
    # The calibration is that of the full-size image divided by four: an integer centre c becomes (c + 0.5)/4.
    camera = Intrinsics(focal, focal, 311.193 + 0.125, 254.877 + 0.125, depth.shape[1], depth.shape[0])
    return make_sample(entry, read_rgb(entry.image), depth, RANGES["motorcycle"], camera=camera)


_READERS: dict[str, Callable[[Entry], DepthSample]] = {
    "nyu": _read_nyu,
    "kitti": _read_kitti,
    "tum_desk": _read_tum,
    "sevenscenes": _read_sevenscenes,
    "motorcycle": _read_motorcycle,
}
