"""KITTI, the test images of Eigen et al. (2014) with the improved ground truth of the depth benchmark.

Layout: the raw data (``2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000069.png``, in the root, in
``raw/`` or in ``kitti_eigen_split_test/``), the annotated depth (``2011_09_26_drive_0002_sync/proj_depth/
groundtruth/image_02/0000000069.png``, in the root, in ``data_depth_annotated/`` or in its ``train/`` and
``val/``), and the list of 697 images. Lists come in two forms: image path, depth path or ``None``, focal
length (``eigen_test_files_with_gt.txt``); or folder, frame, side (``test_files.txt``). 45 of the 697 have no
annotated depth and are left out.

Images and depth are cropped to the benchmark's 352 × 1216 pixels; scored is Eigen's part of that.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.evaluation.datasets.base import (
    DepthSample,
    Entry,
    FileDataset,
    first_existing,
    make_sample,
    read_depth_png,
    read_rgb,
    read_split,
)
from vision3d.evaluation.protocols import (
    KITTI_CROP,
    KITTI_RANGE,
    kitti_benchmark_crop,
    kitti_crop_origin,
    kitti_eigen_mask,
)

LISTS = ("eigen_test_files_with_gt.txt", "*eigen*test*.txt", "test_files.txt")


class KITTIEigen(FileDataset):
    """The 652 test images with ground truth; ``group`` is the drive.

    Args:
        root: folder in the layout above.
        split: list of images, if it lies elsewhere.

    Raises:
        InputError: no list, files missing.
    """

    name = "kitti"
    range = KITTI_RANGE
    official_size = 652

    def __init__(self, root: str | Path, *, split: str | Path | None = None) -> None:
        self.split = split
        self._cameras: dict[Path, np.ndarray | None] = {}
        super().__init__(root)

    def _list(self) -> list[Entry]:
        inside = ("raw", "kitti_raw", "kitti_eigen_split_test", "data_depth_annotated", "train", "val")
        folders = [self.root, *(self.root / name for name in inside)]
        folders += [self.root / "data_depth_annotated" / part for part in ("train", "val")]
        lines = read_split(self.name, [self.root, self.root / "splits"], LISTS, self.split)
        entries = []
        for line in lines:
            if len(line) == 3 and line[2] in ("l", "r"):
                entry = self._entry_of_frame(folders, *line)
                if not entry.depth.is_file():  # such lists do not say which images have no ground truth
                    continue
            elif len(line) >= 2:
                if line[1] == "None":
                    continue
                entry = _entry(first_existing(folders, line[0]), first_existing(folders, line[1]))
            else:
                raise InputError(
                    f"line {' '.join(line)!r} in the list of KITTI",
                    "give lines of image path, depth path, focal length",
                )
            entries.append(entry)
        if not entries:
            raise InputError(
                f"none of the {len(lines)} listed images of KITTI has annotated depth in {self.root}",
                "put data_depth_annotated there",
            )
        return entries

    def _entry_of_frame(self, folders: list[Path], folder: str, frame: str, side: str) -> Entry:
        camera = "image_02" if side == "l" else "image_03"
        number = f"{int(frame):010d}"
        image = first_existing(folders, f"{folder}/{camera}/data/{number}.png")
        if not image.is_file() and image.with_suffix(".jpg").is_file():
            image = image.with_suffix(".jpg")
        drive = Path(folder).name
        return _entry(image, first_existing(folders, f"{drive}/proj_depth/groundtruth/{camera}/{number}.png"))

    def _read(self, entry: Entry) -> DepthSample:
        image, depth = read_rgb(entry.image), read_depth_png(entry.depth, 256)
        if image.shape[:2] != depth.shape:
            raise InputError(f"{entry.image} and its depth differ in size", "give the raw data, not resized")
        height, width = depth.shape
        left, top = kitti_crop_origin(height, width)
        K = self._calibration(entry.image)
        camera = None
        if K is not None:
            whole = Intrinsics.from_integer_centres(K, width, height)
            camera = whole.cropped(left, top, KITTI_CROP[1], KITTI_CROP[0])
        return make_sample(
            entry,
            kitti_benchmark_crop(image),
            kitti_benchmark_crop(depth),
            self.range,
            mask=kitti_eigen_mask(*KITTI_CROP),
            camera=camera,
        )

    def _calibration(self, image: Path) -> np.ndarray | None:
        """(3, 3) rectified intrinsics from the day's ``calib_cam_to_cam.txt``, or None without it."""
        day, camera = image.parents[3], image.parent.parent.name.removeprefix("image_")
        path = day / "calib_cam_to_cam.txt"
        key = path / camera
        if key not in self._cameras:
            self._cameras[key] = None
            if path.is_file():
                for line in path.read_text(encoding="utf-8").splitlines():
                    if line.startswith(f"P_rect_{camera}:"):
                        P = np.array(line.split()[1:], dtype=np.float64).reshape(3, 4)
                        self._cameras[key] = P[:, :3]
        return self._cameras[key]


def _entry(image: Path, depth: Path) -> Entry:
    drive = image.parents[2].name
    return Entry(f"{drive}/{image.stem}", drive, image, depth)
