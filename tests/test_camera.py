"""Cameras against OpenCV and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision3d.camera import Intrinsics, convert_pose, invert_pose, look_at, transform_points
from vision3d.errors import InputError

cameras = st.builds(
    Intrinsics,
    fx=st.floats(20, 5000),
    fy=st.floats(20, 5000),
    cx=st.floats(-200, 900),
    cy=st.floats(-200, 900),
    width=st.integers(1, 700),
    height=st.integers(1, 700),
)
seeds = st.integers(0, 2**32 - 1)


def random_pose(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    rotation *= np.sign(np.linalg.det(rotation))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, rng.normal(size=3) * 3
    return pose


@given(cameras, seeds)
def test_projection_agrees_with_opencv(camera: Intrinsics, seed: int) -> None:
    import cv2

    rng = np.random.default_rng(seed)
    points = rng.uniform([-2, -2, 0.5], [2, 2, 9], (20, 3))
    ours, depth = camera.project(points)
    theirs, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), camera.K, None)
    np.testing.assert_allclose(ours, theirs[:, 0], rtol=1e-9, atol=1e-6)
    np.testing.assert_array_equal(depth, points[:, 2])


@given(cameras, seeds)
def test_unproject_undoes_project(camera: Intrinsics, seed: int) -> None:
    points = np.random.default_rng(seed).uniform([-2, -2, 0.5], [2, 2, 9], (4, 5, 3))
    np.testing.assert_allclose(camera.unproject(*camera.project(points)), points, rtol=1e-9, atol=1e-9)


def test_points_behind_the_camera_have_no_pixel() -> None:
    pixels, depth = Intrinsics.from_fov(60, 100, 80).project([[0.0, 0, -1], [0, 0, 0], [0, 0, 2]])
    assert np.isnan(pixels[:2]).all()
    np.testing.assert_array_equal(pixels[2], [50, 40])
    np.testing.assert_array_equal(depth, [-1, 0, 2])


def test_rays_pass_through_pixel_centres() -> None:
    camera = Intrinsics(fx=10, fy=20, cx=2, cy=1.5, width=4, height=3)
    rays = camera.rays()
    assert rays.shape == (3, 4, 3)
    np.testing.assert_allclose(rays[0, 0], [(0.5 - 2) / 10, (0.5 - 1.5) / 20, 1], rtol=1e-6)
    np.testing.assert_allclose(rays[1, 3], [(3.5 - 2) / 10, 0, 1], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(camera.rays(unit=True), axis=-1), 1, rtol=1e-6)


@given(st.floats(1, 170), st.integers(1, 5000), st.integers(1, 5000))
def test_field_of_view_round_trip(angle: float, width: int, height: int) -> None:
    camera = Intrinsics.from_fov(angle, width, height)
    assert camera.fov_x == pytest.approx(angle, rel=1e-9)
    assert camera.fx == camera.fy
    assert Intrinsics.from_fov(angle, width, height, fov_y=40).fov_y == pytest.approx(40, rel=1e-9)


def test_field_of_view_counts_both_sides_of_the_principal_point() -> None:
    camera = Intrinsics(fx=100, fy=100, cx=100, cy=0, width=200, height=100)
    assert camera.fov_x == pytest.approx(90)
    assert camera.fov_y == pytest.approx(45)


@given(cameras, st.integers(1, 2000), st.integers(1, 2000), seeds)
def test_resizing_moves_pixels_with_the_image(camera: Intrinsics, width: int, height: int, seed: int) -> None:
    """With centres at +0.5 continuous coordinates scale as the image does, corners included."""
    points = np.random.default_rng(seed).uniform([-2, -2, 0.5], [2, 2, 9], (10, 3))
    before, _ = camera.project(points)
    after, _ = camera.resized(width, height).project(points)
    np.testing.assert_allclose(
        after, before * [width / camera.width, height / camera.height], rtol=1e-9, atol=1e-6
    )


def test_resizing_agrees_with_opencvs_resize() -> None:
    """A dot drawn at a projected point is, in the halved image, where the resized camera projects it."""
    import cv2

    camera = Intrinsics.from_fov(60, 64, 48)
    (u, v), _ = camera.project([0.21, 0.13, 1.0])
    rows, columns = np.mgrid[:48, :64] + 0.5
    image = np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 18)
    half = cv2.resize(image, (32, 24), interpolation=cv2.INTER_AREA)
    rows, columns = np.mgrid[:24, :32] + 0.5
    centroid = np.array([(half * columns).sum(), (half * rows).sum()]) / half.sum()
    np.testing.assert_allclose(centroid, camera.resized(32, 24).project([0.21, 0.13, 1.0])[0], atol=0.01)


@given(cameras, st.integers(-50, 50), st.integers(-50, 50))
def test_cropping_shifts_pixels(camera: Intrinsics, x: int, y: int) -> None:
    point = [0.3, -0.2, 2.0]
    before, _ = camera.project(point)
    after, _ = camera.cropped(x, y, 30, 20).project(point)
    np.testing.assert_allclose(after, before - [x, y], atol=1e-9)
    assert camera.cropped(x, y, 30, 20).width == 30


@given(cameras)
def test_matrix_round_trips(camera: Intrinsics) -> None:
    assert Intrinsics.from_K(camera.K, camera.width, camera.height) == camera
    assert Intrinsics.from_dict(camera.to_dict()) == camera
    assert Intrinsics.from_nerfstudio(camera.to_nerfstudio()) == camera
    back = Intrinsics.from_integer_centres(camera.K_integer_centres, camera.width, camera.height)
    np.testing.assert_allclose(back.K, camera.K, rtol=1e-12, atol=1e-12)


@given(cameras, seeds)
def test_opengl_projection_lands_on_the_same_pixel(camera: Intrinsics, seed: int) -> None:
    points = np.random.default_rng(seed).uniform([-2, -2, 0.5], [2, 2, 9], (10, 3))
    pixels, _ = camera.project(points)
    in_opengl = np.concatenate([points * [1, -1, -1], np.ones((10, 1))], axis=1)
    clip = in_opengl @ camera.to_opengl(near=0.5, far=9).T
    ndc = clip[:, :3] / clip[:, 3:]
    expected = np.stack([2 * pixels[:, 0] / camera.width - 1, 1 - 2 * pixels[:, 1] / camera.height], axis=-1)
    np.testing.assert_allclose(ndc[:, :2], expected, rtol=1e-7, atol=1e-7)
    assert (np.abs(ndc[:, 2]) <= 1 + 1e-9).all()
    for depth, end in ((0.5, -1), (9, 1)):
        x = camera.to_opengl(near=0.5, far=9) @ [0, 0, -depth, 1]
        assert x[2] / x[3] == pytest.approx(end)


@given(seeds)
def test_pose_conversions_undo_each_other(seed: int) -> None:
    pose = random_pose(seed)
    for target in ("opengl", "blender", "nerfstudio"):
        for turn_world in (False, True):
            there = convert_pose(pose, "opencv", target, turn_world=turn_world)
            np.testing.assert_allclose(
                convert_pose(there, target, "opencv", turn_world=turn_world), pose, atol=1e-12
            )
            assert np.linalg.det(there[:3, :3]) == pytest.approx(1)


def test_a_forward_looking_camera_in_each_convention() -> None:
    identity = np.eye(4)
    # The world stays: the OpenGL camera's -z is OpenCV's +z, its y is OpenCV's -y.
    opengl = convert_pose(identity, "opencv", "opengl")
    np.testing.assert_array_equal(opengl @ [0, 0, -1, 0], [0, 0, 1, 0])
    np.testing.assert_array_equal(opengl @ [0, 1, 0, 0], [0, -1, 0, 0])
    # The world turns too: a level camera looks along Blender's +y with +z up; OpenGL's is the identity.
    blender = convert_pose(identity, "opencv", "blender", turn_world=True)
    np.testing.assert_array_equal(blender @ [0, 0, -1, 0], [0, 1, 0, 0])
    np.testing.assert_array_equal(blender @ [0, 1, 0, 0], [0, 0, 1, 0])
    np.testing.assert_array_equal(convert_pose(identity, "opencv", "opengl", turn_world=True), identity)


def test_poses_of_three_rows_and_batches() -> None:
    poses = np.stack([random_pose(1), random_pose(2)])
    np.testing.assert_allclose(
        convert_pose(poses[:, :3], "opencv", "opengl"), convert_pose(poses, "opencv", "opengl")
    )


@given(seeds)
def test_inverse_pose_undoes_it(seed: int) -> None:
    pose = random_pose(seed)
    np.testing.assert_allclose(invert_pose(pose), np.linalg.inv(pose), atol=1e-9)
    points = np.random.default_rng(seed).normal(size=(3, 4, 3))
    np.testing.assert_allclose(
        transform_points(invert_pose(pose), transform_points(pose, points)), points, atol=1e-9
    )


def test_look_at_puts_the_target_in_the_middle_and_up_upwards() -> None:
    pose = look_at([1, -2, -5], [0, 0, 1])
    camera = Intrinsics.from_fov(50, 100, 100)
    to_camera = invert_pose(pose)
    pixel, depth = camera.project(transform_points(to_camera, [0.0, 0, 1]))
    np.testing.assert_allclose(pixel, [50, 50], atol=1e-9)
    assert depth == pytest.approx(math.sqrt(1 + 4 + 36))
    above, _ = camera.project(transform_points(to_camera, [0.0, -0.5, 1]))
    assert above[1] < 50
    assert above[0] == pytest.approx(50)
    np.testing.assert_allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-12)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)


def test_the_assumed_camera_sees_55_degrees_along_the_longer_side() -> None:
    assert Intrinsics.assumed(640, 480).fov_x == pytest.approx(55)
    assert Intrinsics.assumed(480, 640).fov_y == pytest.approx(55)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Intrinsics(0, 1, 0, 0, 10, 10),
        lambda: Intrinsics(math.nan, 1, 0, 0, 10, 10),
        lambda: Intrinsics(1, 1, 0, 0, 0, 10),
        lambda: Intrinsics.from_K(np.eye(4), 10, 10),
        lambda: Intrinsics.from_K([[100, 5, 5], [0, 100, 5], [0, 0, 1]], 10, 10),
        lambda: Intrinsics.from_K([[100, 0, 5], [0, 100, 5], [0, 0, 2]], 10, 10),
        lambda: Intrinsics.from_fov(180, 10, 10),
        lambda: convert_pose(np.eye(3), "opencv", "opengl"),
        lambda: convert_pose(np.eye(4), "opencv", "unity"),  # type: ignore[arg-type]
        lambda: look_at([0, 0, 0], [0, 0, 0]),
        lambda: look_at([0, 0, 0], [0, 5, 0]),
    ],
)
def test_impossible_cameras_are_refused(make) -> None:
    with pytest.raises(InputError):
        make()


def test_a_mirrored_camera_sees_the_mirrored_point_at_the_mirrored_pixel() -> None:
    camera = Intrinsics(100, 110, 40, 30, 120, 90)
    pixels = camera.project([[0.3, 0.2, 2.0]])[0]
    mirrored = camera.mirrored().project([[-0.3, 0.2, 2.0]])[0]
    np.testing.assert_allclose(mirrored, [[120 - pixels[0, 0], pixels[0, 1]]])
    assert camera.mirrored().mirrored() == camera
