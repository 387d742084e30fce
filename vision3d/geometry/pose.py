"""Where photographs were taken relative to each other, when their intrinsics are known.

Two views: the five-point algorithm and its cheirality check (OpenCV), in normalised coordinates so that the views
may have different cameras. The unit of length comes from metric depth: the median ratio of depth to the depth of
triangulated points. More views: a spanning tree of the best pairs, joined by common scale, then refined together.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vision3d.camera import Intrinsics, invert_pose, transform_points
from vision3d.errors import InputError, ResourceError

MAX_DISTANCE = 1e3
"""Baselines to the farthest point that may tell a motion; OpenCV's own 50 would leave landscapes out."""
MIN_MATCHES = 12


@dataclass(frozen=True, eq=False)
class RelativePose:
    """Two views.

    Attributes:
        b_to_a: (4, 4) pose of camera b in camera a's axes (OpenCV); its translation has length 1 unless ``metric``.
        inliers: (N,) bool, the matches that agree with it.
        points: (M, 3) triangulated inliers in camera a's axes, in the translation's unit.
        metric: whether the unit is the metre.
        scale_spread: relative standard deviation of the metric scale, 0 where there is none.
    """

    b_to_a: np.ndarray
    inliers: np.ndarray
    points: np.ndarray
    metric: bool = False
    scale_spread: float = 0.0

    def scaled(self, factor: float, *, metric: bool, spread: float = 0.0) -> RelativePose:
        """In another unit of length."""
        pose = self.b_to_a.copy()
        pose[:3, 3] *= factor
        return replace(self, b_to_a=pose, points=self.points * factor, metric=metric, scale_spread=spread)


def match_features(
    image_a: np.ndarray, image_b: np.ndarray, *, max_features: int = 4000, ratio: float = 0.8
) -> tuple[np.ndarray, np.ndarray]:
    """Corresponding points (N, 2), (N, 2) of two images (H, W, 3) uint8: SIFT, ratio test, mutual best.

    Pixel centres are at +0.5.
    """
    import cv2

    # without the precise enlargement, places are a quarter of a pixel off
    sift = cv2.SIFT_create(nfeatures=max_features, enable_precise_upscale=True)  # type: ignore[attr-defined]
    found = [
        sift.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None) for image in (image_a, image_b)
    ]
    empty = np.zeros((0, 2))
    if any(descriptors is None or len(descriptors) < 2 for _, descriptors in found):
        return empty, empty
    (keys_a, desc_a), (keys_b, desc_b) = found
    matcher = cv2.BFMatcher(cv2.NORM_L2)

    def best(one: np.ndarray, other: np.ndarray) -> dict[int, int]:
        pairs = matcher.knnMatch(one, other, k=2)
        return {
            p[0].queryIdx: p[0].trainIdx
            for p in pairs
            if len(p) == 2 and p[0].distance < ratio * p[1].distance
        }

    forward, backward = best(desc_a, desc_b), best(desc_b, desc_a)
    mutual = [(i, j) for i, j in forward.items() if backward.get(j) == i]
    if not mutual:
        return empty, empty
    # OpenCV's keypoints have pixel centres at integers.
    a = np.array([keys_a[i].pt for i, _ in mutual]) + 0.5
    b = np.array([keys_b[j].pt for _, j in mutual]) + 0.5
    return a, b


def normalised(points: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """Pixels (N, 2) as coordinates on the plane z = 1."""
    return camera.unproject(np.asarray(points, np.float64), 1.0)[..., :2]


def relative_pose(
    points_a: np.ndarray,
    points_b: np.ndarray,
    camera_a: Intrinsics,
    camera_b: Intrinsics,
    *,
    threshold: float = 1.0,
    seed: int = 0,
) -> RelativePose:
    """Pose of b relative to a from corresponding pixels (N, 2), up to the length of the translation.

    Args:
        points_a, points_b: pixels, centres at +0.5.
        camera_a, camera_b: intrinsics.
        threshold: distance from the epipolar line in pixels.
        seed: of the random samples.

    Raises:
        InputError: too few matches, or too few of them agree.
    """
    import cv2

    if len(points_a) != len(points_b) or len(points_a) < 5:
        raise InputError(
            f"{len(points_a)} and {len(points_b)} matched points", "give at least 5 corresponding points"
        )
    a, b = normalised(points_a, camera_a), normalised(points_b, camera_b)
    cv2.setRNGSeed(seed)
    focal = (camera_a.fx + camera_a.fy + camera_b.fx + camera_b.fy) / 4
    essential, mask = cv2.findEssentialMat(
        a, b, np.eye(3), method=cv2.RANSAC, prob=0.9999, threshold=threshold / focal
    )
    if essential is None or mask is None:
        raise InputError("no motion agrees with the matches", "give photographs that overlap")
    # Several solutions may be stacked; the one with the most points in front of both cameras is taken.
    solutions = []
    for part in np.asarray(essential).reshape(-1, 3, 3):
        count, rotation, translation, kept, _ = cv2.recoverPose(
            part, a, b, np.eye(3), distanceThresh=MAX_DISTANCE, mask=mask.copy()
        )
        solutions.append((count, rotation, translation, kept))
    count, rotation, translation, kept = max(solutions, key=lambda s: s[0])
    inliers = kept.ravel() > 0
    if count < 5:
        raise InputError(f"only {count} matches agree with one motion", "give photographs that overlap more")
    a_to_b = np.eye(4)
    a_to_b[:3, :3], a_to_b[:3, 3] = rotation, translation.ravel()
    pose = invert_pose(_refined(a_to_b, a[inliers], b[inliers], threshold / focal))
    return RelativePose(pose, inliers, triangulate(a[inliers], b[inliers], pose))


def _refined(a_to_b: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """The motion near ``a_to_b`` with the least Sampson errors of normalised coordinates (N, 2), robustly.

    Five points decide what RANSAC returns; all that agree with it know better.
    """
    from scipy.optimize import least_squares
    from scipy.spatial.transform import Rotation

    rays_a, rays_b = (np.concatenate([p, np.ones((len(p), 1))], axis=1) for p in (a, b))
    start = a_to_b[:3, :3]
    # The translation moves on the sphere, along two directions perpendicular to it.
    t0 = a_to_b[:3, 3] / np.linalg.norm(a_to_b[:3, 3])
    basis = np.linalg.svd(t0[None])[2][1:]

    def motion(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        t = t0 + x[3:] @ basis
        return Rotation.from_rotvec(x[:3]).as_matrix() @ start, t / np.linalg.norm(t)

    def sampson(x: np.ndarray) -> np.ndarray:
        rotation, t = motion(x)
        cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
        essential = cross @ rotation
        lines_b, lines_a = rays_a @ essential.T, rays_b @ essential
        error = np.sum(rays_b * lines_b, axis=1)
        return error / np.sqrt(np.square(lines_b[:, :2]).sum(1) + np.square(lines_a[:, :2]).sum(1) + 1e-18)

    solution = least_squares(sampson, np.zeros(5), loss="soft_l1", f_scale=scale / 3)
    rotation, t = motion(solution.x)
    refined = np.eye(4)
    refined[:3, :3], refined[:3, 3] = rotation, t
    return refined


def triangulate(a: np.ndarray, b: np.ndarray, b_to_a: np.ndarray) -> np.ndarray:
    """Points (N, 3) in camera a's axes from normalised coordinates (N, 2) in both views: midpoints of the rays."""
    rays_a = np.concatenate([a, np.ones((len(a), 1))], axis=1)
    rays_b = np.concatenate([b, np.ones((len(b), 1))], axis=1) @ b_to_a[:3, :3].T
    origin = b_to_a[:3, 3]
    aa, bb = np.sum(rays_a**2, axis=1), np.sum(rays_b**2, axis=1)
    ab = np.sum(rays_a * rays_b, axis=1)
    ao, bo = rays_a @ origin, rays_b @ origin
    determinant = np.maximum(aa * bb - ab * ab, 1e-15)
    s, t = (ao * bb - bo * ab) / determinant, (ao * ab - bo * aa) / determinant
    return (rays_a * s[:, None] + rays_b * t[:, None] + origin) / 2


def with_metric_scale(
    pose: RelativePose,
    points_a: np.ndarray,
    points_b: np.ndarray,
    depth_a: np.ndarray | None,
    depth_b: np.ndarray | None = None,
) -> RelativePose:
    """The pose in metres: median ratio of metric depth to the depth of the triangulated points, over both views.

    Args:
        pose: of :func:`relative_pose`.
        points_a, points_b: the matches that it was found from.
        depth_a, depth_b: (H, W) z-depth in metres of the views, or None.

    Raises:
        InputError: no match has depth.
    """
    ratios = []
    in_b = transform_points(invert_pose(pose.b_to_a), pose.points)
    for points, depth, z in ((points_a, depth_a, pose.points[:, 2]), (points_b, depth_b, in_b[:, 2])):
        if depth is None:
            continue
        pixels = np.asarray(points)[pose.inliers]
        column = np.clip(pixels[:, 0].astype(int), 0, depth.shape[1] - 1)
        row = np.clip(pixels[:, 1].astype(int), 0, depth.shape[0] - 1)
        metric = depth[row, column]
        fine = np.isfinite(metric) & (metric > 0) & (z > 0)
        ratios.append(metric[fine] / z[fine])
    found = np.concatenate(ratios) if ratios else np.zeros(0)
    if len(found) < 3:
        raise InputError("no matched point has metric depth", "give depth maps of the views")
    scale = float(np.median(found))
    spread = 1.4826 * float(np.median(np.abs(found / scale - 1)))
    return pose.scaled(scale, metric=True, spread=spread)


@dataclass(frozen=True, eq=False)
class Views:
    """Poses of several views.

    Attributes:
        poses: (N, 4, 4) camera-to-world, OpenCV axes; the first view's is the identity.
        matches: number of matches that each view shares with the others.
        metric: whether lengths are in metres.
        reprojection: root mean square distance in pixels of refined points from where they were seen.
    """

    poses: np.ndarray
    matches: np.ndarray
    metric: bool
    reprojection: float


def poses_of_views(
    images: Sequence[np.ndarray],
    cameras: Sequence[Intrinsics],
    depths: Sequence[np.ndarray | None] | None = None,
    *,
    threshold: float = 1.5,
    refine: bool = True,
    seed: int = 0,
) -> Views:
    """Poses of two to a few dozen overlapping photographs with known intrinsics.

    Args:
        images: (H, W, 3) uint8.
        cameras: their intrinsics.
        depths: (H, W) z-depth in metres; sets the unit of length. If neither view of the first pair has it (the first
            view and the one with most matches in it), their distance is 1.
        threshold: distance from the epipolar line in pixels.
        refine: move poses and points together until the reprojection errors are least.
        seed: of the random samples.

    Raises:
        InputError: fewer than two views, or one that overlaps with no other.
    """
    count = len(images)
    if count < 2 or len(cameras) != count or (depths is not None and len(depths) != count):
        raise InputError(
            f"{count} views with {len(cameras)} cameras", "give two or more views, a camera each"
        )
    depths = [None] * count if depths is None else list(depths)
    edges = _pairs(images, cameras, depths, threshold, seed)
    order = _spanning_tree(edges, count)
    poses, scales = _chain(edges, order, cameras)
    metric = scales[0].pose.metric
    shared = np.zeros(count, int)
    for (i, j), edge in edges.items():
        shared[i] += int(edge.pose.inliers.sum())
        shared[j] += int(edge.pose.inliers.sum())
    result = Views(np.stack(poses), shared, metric, float("nan"))
    return _bundle_adjusted(result, edges, cameras) if refine else result


@dataclass(frozen=True, eq=False)
class _Edge:
    a: np.ndarray  # (N, 2) matched pixels
    b: np.ndarray
    pose: RelativePose


def _pairs(
    images: Sequence[np.ndarray],
    cameras: Sequence[Intrinsics],
    depths: Sequence[np.ndarray | None],
    threshold: float,
    seed: int,
) -> dict[tuple[int, int], _Edge]:
    edges = {}
    for i, j in itertools.combinations(range(len(images)), 2):
        a, b = match_features(images[i], images[j])
        if len(a) < MIN_MATCHES:
            continue
        try:
            pose = relative_pose(a, b, cameras[i], cameras[j], threshold=threshold, seed=seed)
        except InputError:
            continue
        if pose.inliers.sum() < MIN_MATCHES:
            continue
        if depths[i] is not None or depths[j] is not None:
            with suppress(InputError):  # no depth where they match: other pairs tell the scale
                pose = with_metric_scale(pose, a, b, depths[i], depths[j])
        edges[i, j] = _Edge(a, b, pose)
    return edges


def _spanning_tree(edges: dict[tuple[int, int], _Edge], count: int) -> list[tuple[int, int]]:
    """(known view, new view) in the order in which views are added, along the pairs with most matches (Prim)."""
    known, order = {0}, []
    while len(known) < count:
        open_edges = [
            (int(edge.pose.inliers.sum()), pair)
            for pair, edge in edges.items()
            if len(known & set(pair)) == 1
        ]
        if not open_edges:
            lost = ", ".join(str(i + 1) for i in range(count) if i not in known)
            raise InputError(f"photograph {lost} overlaps too little with the others", "leave it out")
        _, (i, j) = max(open_edges)
        new = j if i in known else i
        order.append((i if new == j else j, new))
        known.add(new)
    return order


def _directed(edges: dict[tuple[int, int], _Edge], first: int, second: int) -> tuple[_Edge, np.ndarray]:
    """The edge of two views, and the pose of the second in the first's axes."""
    if (first, second) in edges:
        edge = edges[first, second]
        return edge, edge.pose.b_to_a
    edge = edges[second, first]
    return edge, invert_pose(edge.pose.b_to_a)


def _chain(
    edges: dict[tuple[int, int], _Edge], order: list[tuple[int, int]], cameras: Sequence[Intrinsics]
) -> tuple[list[np.ndarray], list[_Edge]]:
    """Camera-to-world poses along the tree, in the unit of its first pair.

    Pairs of another unit (all but metric ones after a metric one) are brought to it by points they share.
    """
    poses: dict[int, np.ndarray] = {0: np.eye(4)}
    seen: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}  # view → (pixels, depth in the world's unit)
    used: list[_Edge] = []
    for known, new in order:
        edge, relative = _directed(edges, known, new)
        forward = (known, new) in edges
        inliers = edge.pose.inliers
        pixels_known, pixels_new = (edge.a, edge.b) if forward else (edge.b, edge.a)
        pixels_known, pixels_new = pixels_known[inliers], pixels_new[inliers]
        points = edge.pose.points
        if not forward:
            points = transform_points(invert_pose(edge.pose.b_to_a), points)
        factor = 1.0
        if used and not (used[0].pose.metric and edge.pose.metric):
            factor = _common_scale(seen[known], pixels_known, points[:, 2])
        relative = relative.copy()
        relative[:3, 3] *= factor
        points = points * factor
        poses[new] = poses[known] @ relative
        seen.setdefault(known, []).append((pixels_known, points[:, 2]))
        in_new = transform_points(invert_pose(relative), points)
        seen.setdefault(new, []).append((pixels_new, in_new[:, 2]))
        used.append(edge)
    return [poses[i] for i in range(len(poses))], used


def _common_scale(seen: list[tuple[np.ndarray, np.ndarray]], pixels: np.ndarray, depth: np.ndarray) -> float:
    """Factor that brings depths at pixels to those that earlier pairs found at the same pixels of the view."""
    from scipy.spatial import cKDTree

    known_pixels = np.concatenate([p for p, _ in seen])
    known_depth = np.concatenate([d for _, d in seen])
    distance, nearest = cKDTree(known_pixels).query(pixels, distance_upper_bound=1.5)
    hit = np.isfinite(distance)
    ratios = known_depth[nearest[hit]] / depth[hit]
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    if len(ratios) < 5:
        raise InputError(
            "three photographs share too few points to give their distances one unit",
            "give metric depth, or photographs that overlap more",
        )
    return float(np.median(ratios))


def _bundle_adjusted(
    views: Views, edges: dict[tuple[int, int], _Edge], cameras: Sequence[Intrinsics]
) -> Views:
    """Poses that make the reprojection errors of all pairs' points least; each pair's points are its own.

    The first pose stays, and the distance of the second view from it keeps its length: the errors do not depend on
    the unit.
    """
    from scipy.optimize import least_squares
    from scipy.sparse import lil_matrix
    from scipy.spatial.transform import Rotation

    count = len(views.poses)
    observations: list[tuple[int, int, np.ndarray]] = []  # view, point, pixel
    start: list[np.ndarray] = []
    rng = np.random.default_rng(0)
    for (i, j), edge in edges.items():
        rows = np.flatnonzero(edge.pose.inliers)
        if len(rows) > 300:
            rows = np.sort(rng.choice(rows, 300, replace=False))
        a, b = normalised(edge.a[rows], cameras[i]), normalised(edge.b[rows], cameras[j])
        relative = invert_pose(views.poses[i]) @ views.poses[j]
        points = triangulate(a, b, relative)
        in_j = transform_points(invert_pose(relative), points)
        fine = (points[:, 2] > 0) & (in_j[:, 2] > 0)
        world = transform_points(views.poses[i], points)
        for row, point, good in zip(rows, world, fine, strict=True):
            if good:
                number = len(start)
                start.append(point)
                observations += [(i, number, edge.a[row]), (j, number, edge.b[row])]
    if len(start) < 3 * count:
        return views
    view = np.array([o[0] for o in observations])
    point = np.array([o[1] for o in observations])
    pixel = np.array([o[2] for o in observations])
    lens = np.array([[c.fx, c.fy, c.cx, c.cy] for c in cameras])[view]
    inverse = invert_pose(views.poses)
    turns = Rotation.from_matrix(inverse[1:, :3, :3]).as_rotvec()
    unit = float(np.median(np.linalg.norm(np.array(start), axis=1)))
    x0 = np.concatenate(
        [np.concatenate([turns, inverse[1:, :3, 3] / unit], axis=1).ravel(), np.ravel(start) / unit]
    )
    cut = 6 * (count - 1)

    def poses_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = x[:cut].reshape(-1, 6)
        rotations = np.concatenate([np.eye(3)[None], Rotation.from_rotvec(parts[:, :3]).as_matrix()])
        return rotations, np.concatenate([np.zeros((1, 3)), parts[:, 3:]])

    def residuals(x: np.ndarray) -> np.ndarray:
        rotations, moves = poses_of(x)
        world = x[cut:].reshape(-1, 3)[point]
        seen = np.einsum("nij,nj->ni", rotations[view], world) + moves[view]
        z = np.maximum(seen[:, 2:], 1e-6)
        projected = seen[:, :2] / z * lens[:, :2] + lens[:, 2:]
        return (projected - pixel).ravel()

    pattern = lil_matrix((2 * len(view), len(x0)), dtype=np.int8)
    for line, (seen_by, number) in enumerate(zip(view.tolist(), point.tolist(), strict=True)):
        for r in (2 * line, 2 * line + 1):
            if seen_by:
                pattern[r, 6 * (seen_by - 1) : 6 * seen_by] = 1
            pattern[r, cut + 3 * number : cut + 3 * number + 3] = 1
    solution = least_squares(
        residuals, x0, jac_sparsity=pattern, loss="soft_l1", x_scale="jac", max_nfev=30, method="trf"
    )
    rotations, moves = poses_of(solution.x)
    refined = np.tile(np.eye(4), (count, 1, 1))
    refined[:, :3, :3], refined[:, :3, 3] = rotations, moves * unit
    refined = invert_pose(refined)
    before = np.linalg.norm(views.poses[1:, :3, 3], axis=1).sum()
    after = np.linalg.norm(refined[1:, :3, 3], axis=1).sum()
    refined[:, :3, 3] *= before / max(after, 1e-12)
    error = float(np.sqrt(np.mean(np.square(residuals(solution.x)).reshape(-1, 2).sum(axis=1))))
    return replace(views, poses=refined, reprojection=error)


def poses_by_colmap(paths: Sequence[Path], camera: Intrinsics, folder: Path) -> dict[str, np.ndarray]:
    """Camera-to-world poses (4, 4) by file name of many photographs of one known camera, by COLMAP.

    Args:
        paths: image files of one folder.
        camera: their intrinsics, which stay fixed.
        folder: for COLMAP's database and model; those of an earlier run are replaced.

    Raises:
        ResourceError: pycolmap is not installed.
        InputError: no model could be made.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise ResourceError(
            "this needs pycolmap, which is not installed", "pip install 'vision3d[sfm]'"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    database, sparse = folder / "database.db", folder / "sparse"
    # COLMAP would go on with the cameras and photographs of an earlier run.
    for file in folder.glob("database.db*"):
        file.unlink()
    shutil.rmtree(sparse, ignore_errors=True)
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "PINHOLE"
    reader.camera_params = ",".join(str(v) for v in (camera.fx, camera.fy, camera.cx, camera.cy))
    root = paths[0].parent
    pycolmap.extract_features(
        database,
        root,
        image_names=[p.name for p in paths],
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=reader,
    )
    pycolmap.match_exhaustive(database)
    options = pycolmap.IncrementalPipelineOptions()
    options.ba_refine_focal_length = False
    options.ba_refine_principal_point = False
    options.ba_refine_extra_params = False
    models = pycolmap.incremental_mapping(database, root, sparse, options)
    if not models:
        raise InputError("COLMAP found no model", "give photographs that overlap more")
    best = max(models.values(), key=lambda model: model.num_reg_images())
    poses = {}
    for image in best.images.values():
        found = image.cam_from_world
        matrix = np.eye(4)
        matrix[:3] = (found() if callable(found) else found).matrix()
        poses[image.name] = invert_pose(matrix)
    return poses
