"""ETH3D, the 454 DSLR photographs of the high-resolution multi-view training scenes (Schöps et al. 2017).

Layout, as the archives unpack, for every scene: ``<scene>/images/dslr_images/DSC_0286.JPG`` and
``<scene>/ground_truth_depth/dslr_images/DSC_0286.JPG``; the latter are raw little-endian float32 files in
spite of their suffix, of the photograph's size, infinite where unknown. Scenes lie in the root, in one
folder per archive (``courtyard_dslr_depth/courtyard``), or as ``rgb/<scene>`` and
``depth/<scene>_dslr_depth/<scene>``.

The photographs are distorted (a fisheye model), so samples carry no pinhole camera.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vision3d.errors import InputError
from vision3d.evaluation.datasets.base import DepthSample, Entry, FileDataset, make_sample, read_rgb
from vision3d.evaluation.protocols import ETH3D_FIT_RESOLUTION, ETH3D_RANGE


class ETH3D(FileDataset):
    """The photographs with laser-scanned depth; ``group`` is the scene.

    Args:
        root: folder in the layout above.

    Raises:
        InputError: nothing recognised, files missing.
    """

    name = "eth3d"
    range = ETH3D_RANGE
    official_size = 454
    fit_resolution = ETH3D_FIT_RESOLUTION

    def _list(self) -> list[Entry]:
        truth = "ground_truth_depth/dslr_images/*.JPG"
        depths = next(
            (
                found
                for level in ("*", "*/*", "*/*/*")
                if (found := sorted(self.root.glob(f"{level}/{truth}")))
            ),
            [],
        )
        if not depths:
            raise InputError(
                f"{self.root} holds no ETH3D depth",
                "give the folder with <scene>/ground_truth_depth/dslr_images and <scene>/images/dslr_images",
            )
        entries = []
        for depth in depths:
            scene_folder = depth.parents[2]
            scene = scene_folder.name
            photo = Path("images") / "dslr_images" / depth.name
            places = (
                scene_folder,
                self.root / scene,
                self.root / "rgb" / scene,
                self.root / f"{scene}_dslr_jpg" / scene,
                self.root / "rgb" / f"{scene}_dslr_jpg" / scene,
            )
            image = next((p / photo for p in places if (p / photo).is_file()), scene_folder / photo)
            entries.append(Entry(f"{scene}/{depth.stem}", scene, image, depth))
        return entries

    def _read(self, entry: Entry) -> DepthSample:
        image = read_rgb(entry.image)
        height, width = image.shape[:2]
        stored, needed = entry.depth.stat().st_size, 4 * height * width
        if stored != needed:
            raise InputError(
                f"{entry.depth} has {stored} bytes, not the {needed} of a float32 map of {width}×{height}",
                "give the depth as distributed and the distorted photographs (dslr_images)",
            )
        depth = np.fromfile(entry.depth, dtype="<f4").reshape(height, width)
        return make_sample(entry, image, depth, self.range)
