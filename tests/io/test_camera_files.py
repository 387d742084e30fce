"""COLMAP's and nerfstudio's camera files, there and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vision3d.camera import Intrinsics, look_at
from vision3d.errors import InputError
from vision3d.io.colmap import read_cameras, read_images, write_model
from vision3d.io.transforms import read_transforms, write_transforms

CAMERAS = {"a.jpg": Intrinsics(500.5, 501, 320, 240, 640, 480), "b.jpg": Intrinsics(90, 91, 32, 24, 64, 48)}
POSES = {"a.jpg": np.eye(4), "b.jpg": look_at([1.0, -0.4, 0.2], [0, 0, 5])}


def test_colmap_text_models(tmp_path: Path) -> None:
    write_model(tmp_path, CAMERAS, POSES)
    assert list(read_cameras(tmp_path / "cameras.txt").values()) == list(CAMERAS.values())
    lines = (tmp_path / "cameras.txt").read_text().splitlines()
    assert lines[-2:] == ["# 2: b.jpg", "2 PINHOLE 64 48 90.0 91.0 32.0 24.0"]
    # COLMAP opens no model without a list of points
    assert all(line.startswith("#") for line in (tmp_path / "points3D.txt").read_text().splitlines())
    images = read_images(tmp_path / "images.txt")
    for name, pose in POSES.items():
        np.testing.assert_allclose(images[name][0], pose, atol=1e-12)
    # COLMAP's own convention: the world's origin in the camera's axes is the translation.
    row = next(r for r in (tmp_path / "images.txt").read_text().splitlines() if r.endswith("b.jpg")).split()
    rotation, centre = POSES["b.jpg"][:3, :3], POSES["b.jpg"][:3, 3]
    np.testing.assert_allclose([float(v) for v in row[5:8]], -rotation.T @ centre, atol=1e-12)


def test_equal_cameras_are_one(tmp_path: Path) -> None:
    write_model(tmp_path, {"b.jpg": CAMERAS["b.jpg"], **CAMERAS, "c.jpg": CAMERAS["a.jpg"]}, POSES)
    assert len(read_cameras(tmp_path / "cameras.txt")) == 2
    assert {name: camera for name, (_, camera) in read_images(tmp_path / "images.txt").items()} == {
        "a.jpg": 2,
        "b.jpg": 1,
    }
    write_model(tmp_path / "alone", CAMERAS)
    assert [file.name for file in (tmp_path / "alone").iterdir()] == ["cameras.txt"]


def test_other_models_and_damage_are_named(tmp_path: Path) -> None:
    file = tmp_path / "cameras.txt"
    file.write_text("1 OPENCV 640 480 500 500 320 240 0 0 0 0\n")
    with pytest.raises(InputError, match="OPENCV"):
        read_cameras(file)
    for line in ("1 PINHOLE 640\n", "1 SIMPLE_PINHOLE 640 480\n"):
        file.write_text(line)
        with pytest.raises(InputError, match="damaged"):
            read_cameras(file)
    file.write_bytes(b"\x01\xff\xfe")
    for read in (read_cameras, read_images):
        with pytest.raises(InputError, match="no text file"):
            read(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_cameras(tmp_path / "none.txt")


def test_transforms_for_nerfstudio(tmp_path: Path) -> None:
    file = tmp_path / "transforms.json"
    write_transforms(file, CAMERAS, POSES)
    for name, (camera, pose) in read_transforms(file).items():
        assert camera == CAMERAS[name]
        np.testing.assert_allclose(pose, POSES[name], atol=1e-12)
    frames = json.loads(file.read_text())["frames"]
    # An OpenGL camera in a world with z up: the first one looks along +y, with its up along +z.
    first = np.array(frames[0]["transform_matrix"])
    np.testing.assert_allclose(first[:3, 1], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(-first[:3, 2], [0, 1, 0], atol=1e-12)
    one = dict.fromkeys(POSES, CAMERAS["a.jpg"])
    write_transforms(file, one, POSES)
    assert json.loads(file.read_text())["fl_x"] == 500.5
    with pytest.raises(InputError, match="different images"):
        write_transforms(file, CAMERAS, {"a.jpg": np.eye(4)})


def test_distortion_is_not_dropped(tmp_path: Path) -> None:
    file = tmp_path / "transforms.json"
    write_transforms(file, CAMERAS)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "k1": 0.0, "p2": 0}))
    assert len(read_transforms(file)) == 2
    file.write_text(json.dumps({**content, "k1": -0.02}))
    with pytest.raises(InputError, match="undistort"):
        read_transforms(file)


def test_a_model_without_poses_keeps_none_of_an_earlier_one(tmp_path: Path) -> None:
    camera = Intrinsics(500.0, 510.0, 320.0, 240.0, 640, 480)
    write_model(tmp_path, {"a.jpg": camera}, {"a.jpg": np.eye(4)})
    assert (tmp_path / "images.txt").is_file()
    write_model(tmp_path, {"a.jpg": camera})
    assert [path.name for path in tmp_path.iterdir()] == ["cameras.txt"]
