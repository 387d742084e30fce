"""How the kinds of results of this package are shown."""

from __future__ import annotations

from typing import cast, get_args

import numpy as np

from vision3d.colour import colour_depth, colour_labels, colour_normals
from vision3d.errors import InputError
from vision3d.geometry.normals import normals_from_depth
from vision3d.results import DepthPrediction, DepthSpace
from vision3d.viewer.registry import ResultFolder, generic_layers, shows
from vision3d.viewer.scene import Layer


@shows("depth")
def depth_layers(result: ResultFolder) -> list[Layer]:
    """Camera, mesh and points with the depth's colours, the surface's normals and the classes laid over."""
    prediction = read_depth(result)
    usable = prediction.usable()
    looks = {"depth": colour_depth(prediction.depth, usable, inverse=prediction.is_inverse)}
    normals = normals_from_depth(prediction.to_depth(), prediction.resolved_camera()[0], usable)
    looks["normals"] = colour_normals(normals)
    labels = _labels(result, prediction.size)
    if labels is not None:
        looks["classes"] = colour_labels(labels)
    return generic_layers(result, looks)


def read_depth(result: ResultFolder) -> DepthPrediction:
    """The prediction that a folder was saved from, without its photograph.

    Raises:
        InputError: files that are missing, damaged, or do not fit together.
    """
    from vision3d.io.depth import read_depth_png

    again = "compute the result again with --overwrite"
    space = result.record.get("space")
    stem = "metric_depth" if space == "metric depth" else "depth"
    depth = result.array(f"{stem}.npy")
    if depth is None or depth.ndim != 2 or space not in get_args(DepthSpace):
        raise InputError(f"{result.path} holds no depth that can be shown", again)
    # The array holds values even where there is none to trust; the picture says where that is.
    picture = result.file(f"{stem}.png")
    valid = None if picture is None else np.isfinite(read_depth_png(picture))
    if valid is not None and valid.shape != depth.shape:
        raise InputError(f"{picture} and {stem}.npy have different sizes", again)
    space = cast(DepthSpace, space)
    return DepthPrediction(depth, space, unit=result.unit, valid=valid, camera=result.camera)


def _labels(result: ResultFolder, size: tuple[int, int]) -> np.ndarray | None:
    from PIL import Image

    path = result.file("segmentation.png")
    if path is None:
        return None
    try:
        with Image.open(path) as image:
            labels = np.asarray(image)
    except OSError as error:
        raise InputError(f"{path} is damaged", "compute the result again with --overwrite") from error
    return labels if labels.shape == size else None
