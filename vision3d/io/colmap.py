"""COLMAP's text model: cameras.txt, images.txt, points3D.txt.

COLMAP puts pixel centres at +0.5, as this library does; its poses are world-to-camera.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vision3d.camera import Intrinsics, invert_pose
from vision3d.errors import InputError
from vision3d.io.files import atomic_write_bytes, output_errors

_HEAD = "# Camera list with one line of data per camera:\n#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n"


def write_model(
    folder: Path,
    cameras: Mapping[str, Intrinsics],
    poses: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write a model that COLMAP opens: ``cameras.txt``, and with poses ``images.txt`` and an empty ``points3D.txt``.

    Those of an earlier model are removed where there are no poses.

    Args:
        folder: for the files.
        cameras: of the images by their names, which are paths relative to the images' folder; PINHOLE. Equal ones are
            written once; a comment names the images of each.
        poses: (4, 4) camera-to-world by the same names, OpenCV axes.

    Raises:
        OutputError: it cannot be written.
    """
    numbers = {camera: number for number, camera in enumerate(dict.fromkeys(cameras.values()), 1)}
    lines = [_HEAD + f"# Number of cameras: {len(numbers)}"]
    for camera, number in numbers.items():
        lines += [f"# {number}: {name}" for name, own in cameras.items() if own == camera]
        values = " ".join(repr(float(value)) for value in (camera.fx, camera.fy, camera.cx, camera.cy))
        lines.append(f"{number} PINHOLE {camera.width} {camera.height} {values}")
    _write(folder / "cameras.txt", lines)
    if poses is not None:
        _write(folder / "images.txt", _images(poses, {name: numbers[cameras[name]] for name in poses}))
        _write(folder / "points3D.txt", ["#   POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]"])
    else:  # poses of an earlier run would be taken for those of these cameras
        with output_errors(folder):
            for name in ("images.txt", "points3D.txt"):
                (folder / name).unlink(missing_ok=True)


def _images(poses: Mapping[str, np.ndarray], cameras: Mapping[str, int]) -> list[str]:
    """Lines of ``images.txt`` without observed points."""
    from scipy.spatial.transform import Rotation

    lines = [
        "#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME",
        "#   POINTS2D[] as (X, Y, POINT3D_ID)",
    ]
    for number, (name, pose) in enumerate(poses.items(), 1):
        world_to_camera = invert_pose(pose)
        x, y, z, w = Rotation.from_matrix(world_to_camera[:3, :3]).as_quat()
        values = " ".join(repr(float(v)) for v in (w, x, y, z, *world_to_camera[:3, 3]))
        lines += [f"{number} {values} {cameras[name]} {name}", ""]
    return lines


def _write(path: Path, lines: Sequence[str]) -> None:
    atomic_write_bytes(path, ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))


def _lines(path: Path) -> list[str]:
    """Lines without comments. Raises InputError."""
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text file", "export the model as text") from error


def read_cameras(path: Path) -> dict[int, Intrinsics]:
    """Cameras of a ``cameras.txt`` by number; PINHOLE and SIMPLE_PINHOLE.

    Raises:
        InputError: missing, damaged, or a camera of another model.
    """
    cameras = {}
    for line in _lines(path):
        if not line.strip():
            continue
        try:
            number, model, width, height, *values = line.split()
            numbers = [float(value) for value in values]
            if model == "SIMPLE_PINHOLE":
                numbers = [numbers[0], *numbers]
            elif model != "PINHOLE":
                raise InputError(f"{path}: camera model {model}", "undistort the images to PINHOLE first")
            fx, fy, cx, cy = numbers
            cameras[int(number)] = Intrinsics(fx, fy, cx, cy, int(width), int(height))
        except (ValueError, IndexError) as error:
            raise InputError(f"{path}: damaged line {line!r}", "export the model as text again") from error
    return cameras


def read_images(path: Path) -> Mapping[str, tuple[np.ndarray, int]]:
    """Name → (camera-to-world pose (4, 4), camera number) of an ``images.txt``.

    Raises:
        InputError: missing or damaged.
    """
    from scipy.spatial.transform import Rotation

    images = {}
    for line in _lines(path)[::2]:
        if not line.strip():
            continue
        try:
            _, qw, qx, qy, qz, tx, ty, tz, camera, name = line.split(maxsplit=9)
            world_to_camera = np.eye(4)
            world_to_camera[:3, :3] = Rotation.from_quat([float(q) for q in (qx, qy, qz, qw)]).as_matrix()
            world_to_camera[:3, 3] = [float(t) for t in (tx, ty, tz)]
            images[name] = invert_pose(world_to_camera), int(camera)
        except ValueError as error:
            raise InputError(f"{path}: damaged line {line!r}", "export the model as text again") from error
    return images
