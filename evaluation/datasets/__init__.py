"""Depth data sets in the layouts they are distributed in, one file each; :func:`open_dataset` by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from vision3d.errors import InputError

if TYPE_CHECKING:
    from vision3d.evaluation.datasets.base import DepthDataset

__all__ = ["DatasetName", "open_dataset"]

DatasetName = Literal["nyu", "kitti", "eth3d", "scannet", "diode", "samples", "procedural"]


def open_dataset(name: DatasetName, root: Path | None = None, *, split: Path | None = None) -> DepthDataset:
    """A data set by its short name.

    Args:
        name: nyu, kitti, eth3d, scannet, diode, samples (a folder of a few real images), or procedural
            (held-out images of the synthetic world).
        root: its folder as distributed; for procedural, a folder of rendered shards or None to render.
        split: a file with the list of images, for data sets that have one and do not keep it in ``root``.

    Raises:
        InputError: unknown name, no folder, files missing.
    """
    if name == "procedural":
        from vision3d.evaluation.datasets.procedural import Procedural

        return Procedural(shards=root)
    if name not in get_args(DatasetName):
        raise InputError(f"data set {name!r}", f"use one of {', '.join(get_args(DatasetName))}")
    if root is None:
        raise InputError(f"data set {name} without its folder", "give --root DIR")
    if name == "nyu":
        from vision3d.evaluation.datasets.nyu import NYUv2

        return NYUv2(root, split=split)
    if name == "kitti":
        from vision3d.evaluation.datasets.kitti import KITTIEigen

        return KITTIEigen(root, split=split)
    if name == "scannet":
        from vision3d.evaluation.datasets.scannet import ScanNet

        return ScanNet(root, split=split)
    if split is not None:
        raise InputError(
            f"a list of images for {name}", "leave --split out: all images of the folder are used"
        )
    if name == "eth3d":
        from vision3d.evaluation.datasets.eth3d import ETH3D

        return ETH3D(root)
    if name == "diode":
        from vision3d.evaluation.datasets.diode import DIODE

        return DIODE(root)
    from vision3d.evaluation.datasets.samples import RealSamples

    return RealSamples(root)
