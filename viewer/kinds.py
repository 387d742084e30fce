"""How the kinds of results of this package are shown."""

from __future__ import annotations

from typing import cast, get_args

import numpy as np

from vision3d.camera import invert_pose
from vision3d.colour import colour_depth, colour_labels, colour_normals, colour_uncertainty, shade_normals
from vision3d.errors import InputError
from vision3d.geometry.normals import FRAMES, convert_normals, normals_from_depth, rotate_normals
from vision3d.results import DepthPrediction, DepthSpace
from vision3d.scene import ScenePrediction
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


@shows("normals")
def normals_layers(result: ResultFolder) -> list[Layer]:
    """The photograph in its camera with the normals' colours, a lit relief and the uncertainty laid over."""
    normals = read_normals(result)
    looks = {"normals": colour_normals(normals), "relief": shade_normals(normals)}
    uncertainty = result.array("uncertainty.npy")
    if uncertainty is not None and uncertainty.shape == normals.shape[:2]:
        there = np.square(normals).sum(-1) > 0.25
        looks["uncertainty"] = colour_uncertainty(uncertainty, there)
    return generic_layers(result, looks)


@shows("camera")
def camera_layers(result: ResultFolder) -> list[Layer]:
    """The photograph in its camera; with metric depth, also all that depth shows."""
    return list(depth_layers(result)) if result.record.get("space") else generic_layers(result)


@shows("scene")
def scene_layers(result: ResultFolder) -> list[Layer]:
    """Camera, mesh and points of the fused surface, with every map that it was fused from laid over."""
    scene = ScenePrediction.load(result.path)
    return generic_layers(
        result, scene.pictures() | {"surface normals": colour_normals(scene.fused_normals())}
    )


def read_normals(result: ResultFolder) -> np.ndarray:
    """(H, W, 3) float32 normals in OpenCV camera axes, whatever frame the files of a result are in.

    Raises:
        InputError: files that are missing or damaged.
    """
    field = result.array("normals.npy")
    frame, again = result.record.get("frame"), "compute the result again with --overwrite"
    if field is not None and result.size is not None and field.shape != (*result.size, 3):
        raise InputError(f"{result.path / 'normals.npy'} is {field.shape}, not {(*result.size, 3)}", again)
    if field is None or (frame not in FRAMES and frame != "world"):
        raise InputError(f"{result.path} holds no normals that can be shown", again)
    if frame != "world":
        return convert_normals(field, frame, "opencv")
    try:
        return rotate_normals(field, invert_pose(np.asarray(result.record["pose"], np.float64)))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the pose of {result.path} is damaged", again) from error


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
