"""TSS (Taniai, Sinha, Sato 2016): pairs of images with dense flow in both directions inside the objects' masks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision3d.errors import InputError
from vision3d.evaluation.datasets.base import existing_folder

SETS = ("FG3DCar", "JODS", "PASCAL")
OFFICIAL_PAIRS = {"FG3DCar": 195, "JODS": 81, "PASCAL": 124}


@dataclass(frozen=True, eq=False)
class FlowPair:
    """One direction of a pair, padded to a common shape.

    Attributes:
        name: unique, with its direction.
        group: FG3DCar, JODS or PASCAL.
        source, target: (H, W, 3) uint8.
        flow: (H, W, 2) float32 x, y from the target's pixels to the source's.
        mask: (H, W) bool, the object in the target.
        source_size: (height, width) of the source before padding.
    """

    name: str
    group: str
    source: np.ndarray
    target: np.ndarray
    flow: np.ndarray
    mask: np.ndarray
    source_size: tuple[int, int]


def pad_pair(
    source: np.ndarray,  # [H, W, 3]
    target: np.ndarray,  # [h, w, 3]
    flow: np.ndarray,  # [h, w, 2], of the target
    mask: np.ndarray,  # [h, w]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A pair at its common shape: padding right and below, images and mask with zeros, flow with its border."""
    height = max(source.shape[0], target.shape[0])
    width = max(source.shape[1], target.shape[1])

    def pad(array: np.ndarray, mode: str) -> np.ndarray:
        margins = [(0, height - array.shape[0]), (0, width - array.shape[1])] + [(0, 0)] * (array.ndim - 2)
        return np.pad(array, margins, mode=mode)  # type: ignore[call-overload]

    return pad(source, "constant"), pad(target, "constant"), pad(flow, "edge"), pad(mask, "constant")


class TSS:
    """The data set as distributed: ``TSS_CVPR2016/{FG3DCar,JODS,PASCAL}/<pair>/``.

    Each pair comes twice: image 1 to image 2 with ``flow2`` and ``mask2``, and back with ``flow1`` and ``mask1``.

    Args:
        root: folder ``TSS_CVPR2016`` or the one around it.
        groups: which of the three sets.

    Raises:
        InputError: no such folder, or files missing.
    """

    name = "tss"

    def __init__(self, root: str | Path, *, groups: tuple[str, ...] = SETS) -> None:
        folder = existing_folder(root, "TSS")
        if (folder / "TSS_CVPR2016").is_dir():
            folder = folder / "TSS_CVPR2016"
        self.root = folder
        self.entries: list[tuple[str, Path, int]] = []
        for group in groups:
            for pair in sorted(p for p in (folder / group).glob("*") if p.is_dir()):
                needed = [f"{stem}{i}.{suffix}" for i in (1, 2) for stem, suffix in _FILES]
                missing = [name for name in needed if not (pair / name).is_file()]
                if missing:
                    raise InputError(f"{pair}: {missing[0]} is missing", "complete the data set")
                self.entries += [(group, pair, 1), (group, pair, 2)]
        if not self.entries:
            raise InputError(f"{folder} holds no pairs of TSS", "give the folder as distributed")

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[FlowPair]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> FlowPair:
        from vision3d.io.flow import read_flo
        from vision3d.io.photo import load_photo

        group, folder, source = self.entries[index]
        target = 3 - source
        images = [load_photo(folder / f"image{i}.png").rgb8 for i in (source, target)]
        flow = read_flo(folder / f"flow{target}.flo")
        # only the exact value 255 counts as object
        grey = _grey(folder / f"mask{target}.png")
        mask = (grey / 255).astype(np.uint8).astype(np.float64)
        size = images[0].shape[:2]
        a, b, flow, mask = pad_pair(images[0], images[1], flow, mask)
        return FlowPair(
            f"{group}/{folder.name}/{source}to{target}", group, a, b, flow, mask > 0, (size[0], size[1])
        )


_FILES = (("image", "png"), ("flow", "flo"), ("mask", "png"))


def _grey(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error})", "get it again") from error
