"""Depth to points and distances, against projection and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.geometry.points import grid_points
from vision3d.geometry.unproject import depth_to_distance, distance_to_depth, unproject_depth

CAMERA = Intrinsics(fx=50, fy=45, cx=21.3, cy=14.2, width=40, height=30)


def test_points_project_back_onto_their_pixels() -> None:
    depth = np.random.default_rng(0).uniform(1, 5, (30, 40)).astype(np.float32)
    points = unproject_depth(depth, CAMERA)
    pixels, z = CAMERA.project(points)
    np.testing.assert_allclose(pixels, CAMERA.pixel_centres(), atol=1e-4)
    np.testing.assert_allclose(z, depth)
    np.testing.assert_allclose(points, CAMERA.rays() * depth[..., None], rtol=1e-6, atol=1e-6)


def test_points_agree_with_open3d() -> None:
    """Open3D has pixel centres at integers."""
    o3d = pytest.importorskip("open3d")
    depth = np.random.default_rng(0).uniform(1, 5, (30, 40)).astype(np.float32)
    K = CAMERA.K_integer_centres
    camera = o3d.camera.PinholeCameraIntrinsic(40, 30, K[0, 0], K[1, 1], K[0, 2], K[1, 2])
    cloud = o3d.geometry.PointCloud.create_from_depth_image(
        o3d.geometry.Image(depth), camera, depth_scale=1.0, depth_trunc=100.0
    )
    ours = unproject_depth(depth, CAMERA).reshape(-1, 3)
    np.testing.assert_allclose(ours, np.asarray(cloud.points), atol=1e-5)


def test_a_sphere_around_the_camera_has_one_distance() -> None:
    depth = distance_to_depth(np.full((30, 40), 2.0), CAMERA)
    np.testing.assert_allclose(np.linalg.norm(unproject_depth(depth, CAMERA), axis=-1), 2, rtol=1e-6)
    np.testing.assert_allclose(depth_to_distance(depth, CAMERA), 2, rtol=1e-6)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="30×40 with a camera for 40×30"):
        unproject_depth(np.ones((40, 30)), CAMERA)
    with pytest.raises(InputError, match=r"\(H, W\)"):
        unproject_depth(np.ones((30, 40, 1)), CAMERA)


@pytest.mark.parametrize("at_most", [4, 37, 500, 10_000])
def test_grid_points_are_thinned_evenly_and_keep_the_corners(at_most: int) -> None:
    points = unproject_depth(np.ones((30, 40), np.float32), CAMERA)
    colours = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    cloud = grid_points(points, None, colours, max_points=at_most)
    assert at_most / 3 <= len(cloud) <= at_most or len(cloud) == 1200
    for corner in (points[0, 0], points[-1, -1]):
        nearest = np.linalg.norm(cloud.positions - corner, axis=1).argmin()
        np.testing.assert_array_equal(cloud.positions[nearest], corner)
    np.testing.assert_array_equal(cloud.colours[0], colours[0, 0])


def test_grid_points_leave_out_what_is_not_there() -> None:
    depth = np.ones((30, 40), np.float32)
    depth[0, :10] = np.nan
    valid = np.ones((30, 40), bool)
    valid[5] = False
    assert len(grid_points(unproject_depth(depth, CAMERA), valid)) == 1200 - 10 - 40
