"""Detection and undoing of edits on Camera Images and photographs that were edited here."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.pipelines.dmcalib.camera_image import angles_to_channels
from vision3d.pipelines.dmcalib.edits import Edit, detect_edit, restore


def distorted_picture(
    camera: Intrinsics, k1: float = 0.0, k2: float = 0.0, noise: float = 0.003
) -> np.ndarray:
    """A Camera Image of a distorted camera; the rays are OpenCV's."""
    pixels = camera.pixel_centres().reshape(-1, 1, 2) - 0.5
    lens, criteria = (camera.K_integer_centres, np.array([k1, k2, 0, 0])), (cv2.TERM_CRITERIA_COUNT, 60, 0)
    if hasattr(cv2, "undistortPointsIter"):  # OpenCV 4
        rays = cv2.undistortPointsIter(pixels, *lens, None, None, criteria)
    else:
        rays = cv2.undistortPoints(pixels, *lens, criteria=criteria)
    x, y = rays.reshape(camera.height, camera.width, 2).transpose(2, 0, 1)
    angles = np.stack([np.arctan(x), np.pi / 2 - np.arctan(y / np.hypot(1, x))])
    picture = (angles_to_channels(angles) + 1) / 2
    rng = np.random.default_rng(0)
    return np.clip(picture + rng.normal(0, noise, picture.shape), 0, 1).astype(np.float32)


def test_an_untouched_photograph_shows_no_edit() -> None:
    edit = detect_edit(distorted_picture(Intrinsics(200, 200, 128, 96, 256, 192)))
    assert not (edit.resized or edit.cropped or edit.distorted) and str(edit) == "no edit detected"


def test_uneven_scaling_is_found() -> None:
    edit = detect_edit(distorted_picture(Intrinsics(200, 230, 128, 96, 256, 192)))
    assert edit.resized and not edit.cropped and not edit.distorted
    assert edit.aspect == pytest.approx(200 / 230, rel=0.01)


def test_a_crop_is_found() -> None:
    edit = detect_edit(distorted_picture(Intrinsics(200, 200, 170, 70, 256, 192)))
    assert edit.cropped and not edit.resized and not edit.distorted
    np.testing.assert_allclose(edit.offset, [170 / 256 - 0.5, 70 / 192 - 0.5], atol=0.005)


def test_distortion_is_found_as_opencv_defines_it() -> None:
    edit = detect_edit(distorted_picture(Intrinsics(200, 200, 128, 96, 256, 192), -0.15, 0.03))
    assert edit.distorted and not edit.cropped
    corner = (128 / 200) ** 2 + (96 / 200) ** 2
    assert edit.bend == pytest.approx(-0.15 * corner + 0.03 * corner**2, abs=0.01)


def test_restoring_undoes_crop_and_scaling() -> None:
    height, width = 120, 160
    y, x = np.mgrid[:height, :width]
    waves = 127 + 60 * np.sin(x / 9)[..., None] + 60 * np.cos(y / 7)[..., None]
    original = np.repeat(waves, 3, axis=-1).astype(np.uint8)
    window = original[10:100, 40:150]  # off the middle
    edited = cv2.resize(window, (110, 135), interpolation=cv2.INTER_CUBIC)  # rows enlarged by a half
    camera = Intrinsics(100, 150, 80 - 40, (60 - 10) * 1.5, 110, 135)
    edit = Edit(camera, 0.0, 0.0, 100 / 150, (0.0, 0.0), 0.0, (0, 0, 0, 0))
    restored = restore(edited, edit)
    assert restored.camera.fx == restored.camera.fy == 150
    assert (
        restored.camera.cx == restored.camera.width / 2 and restored.camera.cy == restored.camera.height / 2
    )
    # Enlarged by 1.5, so that nothing is lost; compare with the original at the same rays.
    grid = restored.camera.rays()
    u, v = 100 * grid[..., 0] + 80, 100 * grid[..., 1] + 60
    expected = cv2.remap(
        original, (u - 0.5).astype(np.float32), (v - 0.5).astype(np.float32), cv2.INTER_CUBIC
    )
    inside = cv2.erode(restored.valid.astype(np.uint8), np.ones((9, 9))).astype(bool)
    difference = np.abs(restored.image.astype(int) - expected.astype(int))[inside]
    assert difference.mean() < 2 and inside.mean() > 0.4
    assert (restored.image[~restored.valid] == 0).all()
    with pytest.raises(InputError, match="detect it anew"):
        restore(edited[:50], edit)


def test_restoring_straightens_what_the_lens_bent() -> None:
    camera = Intrinsics(150, 150, 100, 75, 200, 150)
    k1 = -0.2
    stripes = (127 + 100 * np.sin(np.arange(200) / 4)).astype(np.uint8)
    straight = np.ascontiguousarray(np.broadcast_to(stripes[None, :, None], (150, 200, 3)))
    # What a lens with k1 makes of the picture: each of its pixels looks along OpenCV's undistorted ray.
    pixels = camera.pixel_centres().reshape(-1, 1, 2) - 0.5
    rays = cv2.undistortPoints(pixels, camera.K_integer_centres, np.array([k1, 0, 0, 0.0])).reshape(
        150, 200, 2
    )
    bent = cv2.remap(
        straight,
        (rays[..., 0] * 150 + 99.5).astype(np.float32),
        (rays[..., 1] * 150 + 74.5).astype(np.float32),
        cv2.INTER_LINEAR,
    )
    edit = Edit(camera, k1, 0.0, 1.0, (0.0, 0.0), -0.1, (0, 0, 0, 0))
    restored = restore(bent, edit)
    inner = (slice(30, 120), slice(50, 150))
    before = np.abs(bent[inner].astype(int) - straight[inner].astype(int)).mean()
    after = np.abs(restored.image[inner].astype(int) - straight[inner].astype(int)).mean()
    assert after < 0.2 * before
