"""nerfstudio's transforms.json: images, their cameras and, where they are known, their poses.

Its cameras look along -z with y up, in a world with z up; pixel centres are at +0.5.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.camera import Intrinsics, convert_pose
from vision3d.errors import InputError
from vision3d.io.files import atomic_write_json

_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")


def write_transforms(
    path: Path, cameras: Mapping[str, Intrinsics], poses: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write a ``transforms.json``.

    Args:
        path: of the file.
        cameras: image file → camera; nerfstudio looks for the file from the folder of ``path``, unless it is
            absolute. One camera for all goes to the top of the file, as nerfstudio likes it.
        poses: image file → (4, 4) camera-to-world pose in OpenCV axes, in metres where that is known. Without it
            every image gets the identity, which says where a camera is in its own frame and no more.

    Raises:
        InputError: no cameras, or poses for other images.
        OutputError: it cannot be written.
    """
    if not cameras:
        raise InputError("a transforms.json without cameras", "calibrate at least one photograph")
    if poses is not None and set(poses) != set(cameras):
        raise InputError("poses and cameras of different images", "give a pose for every image")
    content: dict[str, Any] = {"camera_model": "OPENCV"}
    one = len(set(cameras.values())) == 1
    if one:
        content |= next(iter(cameras.values())).to_nerfstudio()
    frames = []
    for name, camera in cameras.items():
        pose = np.eye(4) if poses is None else poses[name]
        turned = convert_pose(pose, "opencv", "nerfstudio", turn_world=True)
        frame = {"file_path": str(name), "transform_matrix": turned.tolist()}
        frames.append(frame if one else {**frame, **camera.to_nerfstudio()})
    atomic_write_json(path, {**content, "frames": frames})


def read_transforms(path: Path) -> dict[str, tuple[Intrinsics, np.ndarray]]:
    """Image file → (camera, camera-to-world pose (4, 4) in OpenCV axes) of a ``transforms.json``.

    Raises:
        InputError: missing, damaged, or a camera with distortion.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        result = {}
        for frame in content["frames"]:
            entry = {**content, **frame}
            if any(float(entry.get(name, 0)) for name in _DISTORTION):
                raise InputError(f"{path}: a camera with distortion", "undistort the images first")
            camera = Intrinsics.from_nerfstudio(entry)
            pose = np.array(frame["transform_matrix"], np.float64)
            result[str(frame["file_path"])] = camera, _from_nerfstudio(pose)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "check the path") from error
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged transforms.json ({error})", "export it again") from error
    return result


def _from_nerfstudio(pose: np.ndarray) -> np.ndarray:
    return convert_pose(pose, "nerfstudio", "opencv", turn_world=True)
