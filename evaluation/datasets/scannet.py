"""ScanNet, 800 frames of the validation scans (Dai et al. 2017; the sample that Marigold's tables use).

Layout: the frames as the authors' reader exports them (``scene0011_00/color/000000.jpg`` and
``scene0011_00/depth/000000.png`` in millimetres, in the root, in ``scannet/`` or in ``scans/``) and a list
with an image path and a depth path per line. Colour frames larger than their depth are reduced to its size,
as the published evaluation does.
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
from vision3d.evaluation.protocols import SCANNET_RANGE

LISTS = ("scannet_sampled_list_800_1.txt", "*scannet*.txt", "*list*.txt")


class ScanNet(FileDataset):
    """The sampled frames; ``group`` is the scan.

    Args:
        root: folder in the layout above.
        split: list of images, if it lies elsewhere.

    Raises:
        InputError: no list, files missing.
    """

    name = "scannet"
    range = SCANNET_RANGE
    official_size = 800

    def __init__(self, root: str | Path, *, split: str | Path | None = None) -> None:
        self.split = split
        super().__init__(root)

    def _list(self) -> list[Entry]:
        folders = [self.root, self.root / "scannet", self.root / "scans"]
        entries = []
        for line in read_split(self.name, [self.root], LISTS, self.split):
            if len(line) < 2:
                raise InputError(
                    f"line {line[0]!r} in the list of ScanNet", "give an image and a depth path per line"
                )
            image, depth = (first_existing(folders, relative) for relative in line[:2])
            scan = image.parents[1].name
            entries.append(Entry(f"{scan}/{image.stem}", scan, image, depth))
        return entries

    def _read(self, entry: Entry) -> DepthSample:
        from PIL import Image

        image, depth = read_rgb(entry.image), read_depth_png(entry.depth, 1000)
        height, width = depth.shape
        if image.shape[:2] != depth.shape:
            image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        return make_sample(
            entry, image, depth, self.range, camera=_camera(entry.image.parents[1], width, height)
        )


def _camera(scan: Path, width: int, height: int) -> Intrinsics | None:
    """The depth camera's intrinsics from the scan's ``intrinsic/intrinsic_depth.txt``, or None without it."""
    path = scan / "intrinsic" / "intrinsic_depth.txt"
    if not path.is_file():
        return None
    K = np.loadtxt(path)[:3, :3]
    return Intrinsics.from_integer_centres(K, width, height)
