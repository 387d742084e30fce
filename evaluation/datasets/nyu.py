"""NYU Depth v2, the 654 labelled test images (Silberman et al. 2012).

Layouts understood, in this order:

* ``nyu_depth_v2_labeled.mat`` with ``splits.mat``, as the authors distribute it (needs h5py);
* a list of images (``*test*.txt``: RGB path, depth path per line) and the files it names, PNG or JPEG with
  16-bit depth in millimetres;
* ``[.../]test/<scene>/rgb_0045.png`` beside ``depth_0045.png`` or ``sync_depth_0045.png``, without a list.

Scored is the raw Kinect depth, not the in-painted one, inside Eigen's mask.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.errors import InputError, ResourceError
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
from vision3d.evaluation.protocols import NYU_RANGE, nyu_eigen_mask

LABELLED = "nyu_depth_v2_labeled.mat"
# From the toolbox's camera_params.m.
NYU_CAMERA = Intrinsics.from_integer_centres(
    [[518.85790117, 0, 325.58244941], [0, 519.46961112, 253.73616633], [0, 0, 1]], 640, 480
)


class NYUv2(FileDataset):
    """The test images; ``group`` is the kind of scene ("kitchen").

    Args:
        root: folder in one of the layouts above.
        split: list of images, if it lies elsewhere.

    Raises:
        InputError: nothing recognised, files missing.
        ResourceError: the .mat layout without h5py.
    """

    name = "nyu"
    range = NYU_RANGE
    official_size = 654

    def __init__(self, root: str | Path, *, split: str | Path | None = None) -> None:
        self.split = split
        super().__init__(root)

    def _folders(self) -> list[Path]:
        inside = ("nyu_labeled_extracted", "official_splits/test", "official_splits", "test")
        return [self.root, *(self.root / name for name in inside)]

    def _list(self) -> list[Entry]:
        if self.split is None and (self.root / LABELLED).is_file():
            return self._list_labelled()
        lists = ("filename_list_test.txt", "nyudepthv2_test_files_with_gt.txt", "*test*.txt")
        if self.split is not None or any(self.root.glob(pattern) for pattern in lists):
            try:
                lines = read_split(self.name, [self.root], lists, self.split)
            except InputError:
                if self.split is not None:
                    raise
            else:
                return self._list_lines(lines)
        return self._list_folder()

    def _list_lines(self, lines: list[list[str]]) -> list[Entry]:
        entries = []
        for line in lines:
            if len(line) < 2:
                raise InputError(
                    f"line {line[0]!r} in the list of NYUv2", "give an image and a depth path per line"
                )
            image = first_existing(self._folders(), line[0].lstrip("/"))
            depth = first_existing(self._folders(), line[1].lstrip("/"))
            entries.append(Entry(_plain_name(line[0]), image.parent.name, image, depth))
        return entries

    def _list_folder(self) -> list[Entry]:
        for folder in (*(f / "test" for f in self._folders()), *self._folders()):
            images = sorted(
                p for p in folder.glob("*/rgb_*") if p.suffix.lower() in (".png", ".jpg") and p.is_file()
            )
            if images:
                break
        else:
            raise InputError(
                f"{self.root} holds no NYUv2 test images",
                f"give a folder with {LABELLED} and splits.mat, "
                "or with test/<scene>/rgb_*.png and depth_*.png",
            )
        entries = []
        for image in images:
            number = image.stem.removeprefix("rgb_")
            names = (f"depth_{number}.png", f"sync_depth_{number}.png")
            depth = next((image.with_name(n) for n in names if image.with_name(n).is_file()), None)
            entries.append(
                Entry(
                    f"{image.parent.name}/{number}",
                    image.parent.name,
                    image,
                    depth or image.with_name(names[0]),
                )
            )
        return entries

    def _list_labelled(self) -> list[Entry]:
        splits = self.root / "splits.mat"
        if not splits.is_file():
            raise InputError(
                f"{self.root} has {LABELLED} but no splits.mat", "put the authors' splits.mat beside it"
            )
        from scipy.io import loadmat

        try:
            numbers = loadmat(str(splits))["testNdxs"].ravel()
        except (KeyError, ValueError, OSError, NotImplementedError) as error:
            raise InputError(f"{splits} has no testNdxs", "give the authors' splits.mat") from error
        path = self.root / LABELLED
        kinds = self._scene_kinds()
        return [
            Entry(f"{number:04d}", kinds[number - 1] if kinds else "", path, path)
            for number in map(int, numbers)
        ]

    @cached_property
    def _labelled(self) -> Any:
        try:
            import h5py
        except ImportError as error:
            raise ResourceError(
                f"reading {LABELLED} needs h5py", "pip install h5py, or give the extracted images"
            ) from error
        try:
            return h5py.File(self.root / LABELLED, "r")
        except OSError as error:
            raise InputError(f"{self.root / LABELLED} is damaged ({error})", "download it again") from error

    def _scene_kinds(self) -> list[str]:
        file = self._labelled
        if "sceneTypes" not in file:
            return []
        return ["".join(map(chr, np.ravel(file[ref]))) for ref in np.ravel(file["sceneTypes"])]

    def _read(self, entry: Entry) -> DepthSample:
        if entry.image.name == LABELLED:
            # MATLAB's arrays are column-major: h5py sees image (N, 3, W, H) and depth (N, W, H).
            index = int(entry.name) - 1
            image = np.ascontiguousarray(self._labelled["images"][index].transpose(2, 1, 0))
            depth = self._labelled["rawDepths"][index].T
        else:
            image, depth = read_rgb(entry.image), read_depth_png(entry.depth, 1000)
        mask = nyu_eigen_mask(*depth.shape)
        return make_sample(entry, image, depth, self.range, mask=mask, camera=NYU_CAMERA)


def _plain_name(relative: str) -> str:
    """ "test/bathroom/rgb_0045.png" → "bathroom/0045"."""
    path = Path(relative)
    return f"{path.parent.name}/{path.stem.removeprefix('rgb_')}".lstrip("/")
