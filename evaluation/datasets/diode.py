"""DIODE, the validation images: 325 indoors, 446 outdoors (Vasiljevic et al. 2019).

Layout: ``[val/]indoors/scene_00019/scan_00183/00019_00183_indoors_000_010.png`` beside ``…_depth.npy``
(H × W × 1, metres) and ``…_depth_mask.npy`` (1 where the laser returned).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.evaluation.datasets.base import DepthSample, Entry, FileDataset, make_sample, read_rgb
from vision3d.evaluation.protocols import DIODE_RANGE
from vision3d.io.files import read_npy


class DIODE(FileDataset):
    """The validation images; ``group`` is "indoors" or "outdoor".

    Args:
        root: folder in the layout above.

    Raises:
        InputError: nothing recognised, files missing.
    """

    name = "diode"
    range = DIODE_RANGE
    official_size = 771

    def _list(self) -> list[Entry]:
        folder = self.root / "val" if (self.root / "val").is_dir() else self.root
        entries = []
        for group in ("indoors", "outdoor"):
            for image in sorted((folder / group).glob("scene_*/scan_*/*.png")):
                depth = image.with_name(f"{image.stem}_depth.npy")
                entries.append(Entry(f"{group}/{image.stem}", group, image, depth))
        if not entries:
            raise InputError(
                f"{self.root} holds no DIODE images",
                "give the folder with val/indoors and val/outdoor as unpacked",
            )
        return entries

    def _check_files(self) -> None:
        super()._check_files()
        missing = [entry for entry in self.entries if not _mask_path(entry.depth).is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(self.entries)} masks of DIODE are missing, "
                f"the first is {_mask_path(missing[0].depth)}",
                "unpack the depth archive again",
            )

    def _read(self, entry: Entry) -> DepthSample:
        depth, mask = _load(entry.depth), _load(_mask_path(entry.depth)) > 0
        image = read_rgb(entry.image)
        height, width = image.shape[:2]
        # The devkit's intrinsics, for images of 1024 × 768.
        camera = Intrinsics(886.81, 927.06, 512.0, 384.0, 1024, 768).resized(width, height)
        return make_sample(entry, image, depth, self.range, mask=mask, camera=camera)


def _mask_path(depth: Path) -> Path:
    return depth.with_name(f"{depth.stem}_mask.npy")


def _load(path: Path) -> np.ndarray:
    """(H, W) array of a ``.npy``. Raises InputError."""
    array = read_npy(path)
    return array[..., 0] if array.ndim == 3 else array
