"""Relative poses of synthetic and real views."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vision3d.camera import Intrinsics, invert_pose, look_at, transform_points
from vision3d.errors import InputError
from vision3d.geometry.pose import (
    poses_by_colmap,
    poses_of_views,
    relative_pose,
    triangulate,
    with_metric_scale,
)

A = Intrinsics(500.0, 500.0, 320.0, 240.0, 640, 480)
B = Intrinsics(650.0, 640.0, 350.0, 230.0, 700, 460)


def angle_between(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.degrees(Rotation.from_matrix(one[:3, :3].T @ other[:3, :3]).magnitude()))


def two_views(outliers: float = 0.2, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matched pixels in A and B, and B's pose in A's axes."""
    rng = np.random.default_rng(0)
    b_to_a = look_at([0.9, -0.2, 0.1], [0.1, 0, 6])
    points = rng.uniform([-2, -1.5, 4], [2, 1.5, 9], (400, 3))
    a, _ = A.project(points)
    b, _ = B.project(transform_points(invert_pose(b_to_a), points))
    a, b = a + rng.normal(0, noise, a.shape), b + rng.normal(0, noise, b.shape)
    wrong = rng.random(400) < outliers
    b[wrong] = rng.uniform(0, 450, (int(wrong.sum()), 2))
    return a, b, b_to_a


def test_two_views_of_different_cameras() -> None:
    a, b, truth = two_views()
    pose = relative_pose(a, b, A, B, threshold=1.5)
    assert angle_between(pose.b_to_a, truth) < 0.5
    direction = truth[:3, 3] / np.linalg.norm(truth[:3, 3])
    assert pose.b_to_a[:3, 3] @ direction > np.cos(np.radians(3))
    assert 0.7 < pose.inliers.mean() < 0.85 and not pose.metric


def test_metric_depth_gives_the_translation_its_length() -> None:
    a, b, truth = two_views(outliers=0.1)
    pose = relative_pose(a, b, A, B, threshold=1.5)
    exact = np.full((480, 640), np.nan)
    true_points = triangulate(
        A.unproject(a, 1.0)[:, :2][pose.inliers], B.unproject(b, 1.0)[:, :2][pose.inliers], truth
    )
    columns, rows = (a[pose.inliers].astype(int)).T
    inside = (columns >= 0) & (columns < 640) & (rows >= 0) & (rows < 480)
    exact[rows[inside], columns[inside]] = true_points[inside, 2]
    metric = with_metric_scale(pose, a, b, exact)
    assert metric.metric
    assert np.linalg.norm(metric.b_to_a[:3, 3]) == pytest.approx(np.linalg.norm(truth[:3, 3]), rel=0.05)
    with pytest.raises(InputError, match="no matched point"):
        with_metric_scale(pose, a, b, np.full((480, 640), np.nan))


def test_triangulation_inverts_projection() -> None:
    points = np.random.default_rng(1).uniform([-1, -1, 3], [1, 1, 6], (50, 3))
    b_to_a = look_at([0.5, 0.1, 0], [0, 0, 5])
    in_b = transform_points(invert_pose(b_to_a), points)
    a, b = points[:, :2] / points[:, 2:], in_b[:, :2] / in_b[:, 2:]
    np.testing.assert_allclose(triangulate(a, b, b_to_a), points, atol=1e-9)


def textured_views(count: int) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Views of two textured planes, their depths and poses, made by warping."""
    import cv2

    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 255, (600, 800, 3), dtype=np.uint8), (0, 0), 2)
    texture = cv2.normalize(texture, np.zeros_like(texture), 0, 255, cv2.NORM_MINMAX)
    images, depths, poses = [], [], []
    camera = Intrinsics(300, 300, 160, 120, 320, 240)
    for i in range(count):
        pose = look_at([0.45 * i, -0.1 * i, 0.05 * i], [0.2 * i, 0, 4])
        world = camera.rays().astype(np.float64) @ pose[:3, :3].T
        # The wall z = 4, and the floor y = 1.2.
        with np.errstate(divide="ignore"):
            wall, floor = (4 - pose[2, 3]) / world[..., 2], (1.2 - pose[1, 3]) / world[..., 1]
        floor = np.where(floor > 0, floor, np.inf)
        z = np.minimum(wall, floor)
        hit = pose[:3, 3] + z[..., None] * world
        on_floor = floor < wall
        u = hit[..., 0] * 90 + 300
        v = np.where(on_floor, hit[..., 2] * 90 + 200, hit[..., 1] * 90 + 200)
        images.append(cv2.remap(texture, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR))
        depths.append(z)
        poses.append(invert_pose(poses[0]) @ pose if poses else pose)
    first = poses[0]
    poses = [np.eye(4), *poses[1:]]
    assert np.isfinite(first).all()
    return images, depths, poses


def test_three_views_in_metres() -> None:
    images, depths, truth = textured_views(3)
    camera = Intrinsics(300, 300, 160, 120, 320, 240)
    views = poses_of_views(images, [camera] * 3, depths)
    assert views.metric and views.reprojection < 1.0
    for pose, true in zip(views.poses, truth, strict=True):
        assert angle_between(pose, true) < 0.7
        assert np.linalg.norm(pose[:3, 3] - true[:3, 3]) < 0.05


def test_three_views_without_depth_share_one_unit() -> None:
    images, _, truth = textured_views(3)
    views = poses_of_views(images, [Intrinsics(300, 300, 160, 120, 320, 240)] * 3)
    assert not views.metric
    lengths = np.linalg.norm(views.poses[1:, :3, 3], axis=1)
    expected = np.linalg.norm(np.array(truth)[1:, :3, 3], axis=1)
    assert lengths[1] / lengths[0] == pytest.approx(expected[1] / expected[0], rel=0.06)


def test_depth_of_the_last_view_alone_does_not_mix_units() -> None:
    images, depths, truth = textured_views(3)
    camera = Intrinsics(300, 300, 160, 120, 320, 240)
    views = poses_of_views(images, [camera] * 3, [None, None, depths[2]], refine=False)
    unit = np.linalg.norm(truth[1][:3, 3])
    assert not views.metric
    for pose, true in zip(views.poses, truth, strict=True):
        assert np.linalg.norm(unit * pose[:3, 3] - true[:3, 3]) < 0.08


def test_colmap_starts_without_what_an_earlier_run_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COLMAP itself is stood in for: it finds nothing, and notes what there was."""
    (tmp_path / "sparse").mkdir()
    (tmp_path / "database.db").write_bytes(b"of other photographs")
    left: list[Path] = []
    colmap = SimpleNamespace(
        ImageReaderOptions=SimpleNamespace,
        IncrementalPipelineOptions=SimpleNamespace,
        CameraMode=SimpleNamespace(SINGLE=0),
        extract_features=lambda database, *_, **__: left.extend(database.parent.iterdir()),
        match_exhaustive=lambda database: None,
        incremental_mapping=lambda *_: {},
    )
    monkeypatch.setitem(sys.modules, "pycolmap", colmap)
    with pytest.raises(InputError, match="no model"):
        poses_by_colmap([tmp_path / "a.png"], A, tmp_path)
    assert left == []


def test_photographs_without_overlap_are_named() -> None:
    images, depths, _ = textured_views(2)
    flat = np.full_like(images[0], 127)
    camera = Intrinsics(300, 300, 160, 120, 320, 240)
    with pytest.raises(InputError, match="photograph 3 overlaps too little"):
        poses_of_views([*images, flat], [camera] * 3, [*depths, depths[0]])


def test_real_views_agree_with_their_recorded_poses(shared: Path) -> None:
    import cv2
    from PIL import Image

    folder = shared / "data" / "sevenscenes"
    images, depths, truth = [], [], []
    for number in (0, 50):
        images.append(np.asarray(Image.open(folder / f"frame-{number:06d}.color.jpg")))
        depth = cv2.imread(str(folder / f"frame-{number:06d}.depth.png"), cv2.IMREAD_UNCHANGED).astype(float)
        depths.append(np.where((depth == 0) | (depth == 65535), np.nan, depth / 1000))
        truth.append(np.loadtxt(folder / f"frame-{number:06d}.pose.txt"))
    views = poses_of_views(images, [Intrinsics(585, 585, 320, 240, 640, 480)] * 2, depths)
    relative = invert_pose(truth[0]) @ truth[1]
    assert np.linalg.norm(views.poses[1][:3, 3] - relative[:3, 3]) < 0.03
    assert angle_between(views.poses[1], relative) < 1.5


def test_scenes_a_hundred_baselines_away_are_no_outliers() -> None:
    rng = np.random.default_rng(0)
    camera = Intrinsics(1000.0, 1000.0, 500.0, 400.0, 1000, 800)
    b_to_a = np.eye(4)
    b_to_a[:3, 3] = [1, 0, 0]
    points = rng.uniform([-20, -15, 60], [20, 15, 90], (300, 3))
    a, _ = camera.project(points)
    b, _ = camera.project(transform_points(invert_pose(b_to_a), points))
    pose = relative_pose(a + rng.normal(0, 0.1, a.shape), b + rng.normal(0, 0.1, b.shape), camera, camera)
    assert pose.inliers.mean() > 0.95
    assert pose.b_to_a[0, 3] > 0.98


def test_features_lie_where_their_blobs_are() -> None:
    import cv2

    from vision3d.geometry.pose import match_features

    middles = np.random.default_rng(0).uniform(30, 270, (40, 2))
    middles = middles[[all(np.hypot(*(m - o)) > 25 for o in middles[:i]) for i, m in enumerate(middles)]]
    x, y = np.meshgrid(np.arange(300) + 0.5, np.arange(300) + 0.5)
    image = np.full((300, 300), 40.0)
    for i, (cx, cy) in enumerate(middles):
        image += (120 + 5 * i % 80) * np.exp(-((x - cx) ** 2 / (14 + i % 5) + (y - cy) ** 2 / (26 + i % 3)))
    picture = cv2.cvtColor(np.clip(image, 0, 255).astype(np.uint8), cv2.COLOR_GRAY2RGB)
    found, _ = match_features(picture, picture, ratio=1.1)
    offsets = [found[np.hypot(*(found - m).T).argmin()] - m for m in middles]
    near = np.array([o for o in offsets if np.hypot(*o) < 2])
    assert len(near) > 5
    np.testing.assert_allclose(np.median(near, axis=0), 0, atol=0.1)


def test_a_pair_without_depth_leaves_the_scale_to_the_others() -> None:
    images, depths, poses = textured_views(3)
    camera = Intrinsics(300, 300, 160, 120, 320, 240)
    nothing = np.full_like(depths[2], np.nan)
    views = poses_of_views(images, [camera] * 3, [depths[0], None, nothing])
    assert views.metric
    for found, truth in zip(views.poses[1:], poses[1:], strict=True):
        assert np.linalg.norm(found[:3, 3]) == pytest.approx(np.linalg.norm(truth[:3, 3]), rel=0.1)
