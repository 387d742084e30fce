"""The procedural world's labels against independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("open3d")

from vision3d.errors import InputError
from vision3d.synthetic import render_sample
from vision3d.synthetic.ade20k import CLASSES, INDEX, NONE
from vision3d.synthetic.cameras import View, look
from vision3d.synthetic.draw import Draw
from vision3d.synthetic.materials import paint
from vision3d.synthetic.render import VIEWS, render_view
from vision3d.synthetic.sample import Sample
from vision3d.synthetic.scene import Light, Scene, rotation_to, rotation_z
from vision3d.synthetic.worlds import finish, world

SEEDS = (3, 27, 36, 100, 168, 184)


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [render_sample(seed, (96, 128)) for seed in SEEDS]


def rays_of(sample: Sample) -> np.ndarray:
    """Camera-frame directions with z = 1 through the pixel centres (H, W, 3), from K alone."""
    height, width = sample.size
    x = (np.arange(width) + 0.5 - sample.K[0, 2]) / sample.K[0, 0]
    y = (np.arange(height) + 0.5 - sample.K[1, 2]) / sample.K[1, 1]
    return np.stack([*np.meshgrid(x, y), np.ones((height, width))], -1)


def nearest_triangle(corners: np.ndarray, origin: np.ndarray, direction: np.ndarray) -> float:
    """Möller–Trumbore over all triangles (T, 3, 3): distance in lengths of the direction, inf for none."""
    a, u, v = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    p = np.cross(direction, v)
    determinant = (u * p).sum(1)
    inverse = 1 / np.where(np.abs(determinant) < 1e-12, np.inf, determinant)
    s = origin - a
    first = (s * p).sum(1) * inverse
    q = np.cross(s, u)
    second = (q @ direction) * inverse
    t = (v * q).sum(1) * inverse
    hit = (inverse != 0) & (first >= 0) & (second >= 0) & (first + second <= 1) & (t > 1e-6)
    return float(t[hit].min(initial=np.inf))


def test_same_seed_and_size_give_identical_arrays() -> None:
    first = render_sample(1234, (48, 64))
    world.cache_clear()
    second = render_sample(1234, (48, 64))
    for name in (
        "image",
        "depth",
        "normals",
        "object_id",
        "part_id",
        "semantic",
        "K",
        "cam_to_world",
        "keypoints",
    ):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
    assert first.caption == second.caption
    assert not np.array_equal(first.image, render_sample(1235, (48, 64)).image)


def test_camera_does_not_depend_on_resolution() -> None:
    small, large = render_sample(77, (48, 64)), render_sample(77, (96, 128))
    np.testing.assert_allclose(small.cam_to_world, large.cam_to_world)
    np.testing.assert_allclose(small.K[:2] * 2, large.K[:2])


def test_shapes_types_and_ranges(samples: list[Sample]) -> None:
    for s in samples:
        assert s.image.shape == (96, 128, 3) and s.image.dtype == np.uint8
        assert s.depth.dtype == np.float32 and s.depth.min() > 0
        assert s.normals.dtype == np.float32 and s.semantic.dtype == np.uint8
        assert s.object_id.dtype == np.int32 and s.part_id.dtype == np.int32
        assert set(np.unique(s.semantic)) <= {*range(150), NONE}
        np.testing.assert_allclose(s.cam_to_world[:3, :3] @ s.cam_to_world[:3, :3].T, np.eye(3), atol=1e-9)
        assert np.linalg.det(s.cam_to_world[:3, :3]) == pytest.approx(1)
        assert s.caption and s.image.std() > 5


def test_sky_is_infinitely_far_and_has_no_normal(samples: list[Sample]) -> None:
    seen = False
    for s in samples:
        sky = ~np.isfinite(s.depth)
        seen |= bool(sky.any())
        np.testing.assert_array_equal(sky, s.semantic == INDEX["sky"])
        np.testing.assert_array_equal(sky, s.object_id == 0)
        np.testing.assert_array_equal(sky, s.part_id == 0)
        assert not s.normals[sky].any()
    assert seen


def test_normals_are_unit_and_face_the_camera(samples: list[Sample]) -> None:
    for s in samples:
        there = np.isfinite(s.depth)
        np.testing.assert_allclose(np.linalg.norm(s.normals[there], axis=1), 1, atol=1e-4)
        assert ((s.normals * rays_of(s)).sum(-1)[there] < 0).all()


def test_normals_agree_with_those_of_the_depth(samples: list[Sample]) -> None:
    angles = []
    for s in samples:
        points = rays_of(s) * np.where(np.isfinite(s.depth), s.depth, 0)[..., None]
        across = points[1:-1, 2:] - points[1:-1, :-2]
        down = points[2:, 1:-1] - points[:-2, 1:-1]
        derived = np.cross(down, across)
        derived /= np.maximum(np.linalg.norm(derived, axis=-1, keepdims=True), 1e-12)
        inside = np.isfinite(s.depth[1:-1, 1:-1])
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                inside &= s.part_id[1 + dy : 95 + dy, 1 + dx : 127 + dx] == s.part_id[1:-1, 1:-1]
        cosine = (derived * s.normals[1:-1, 1:-1]).sum(-1)[inside]
        angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    joined = np.concatenate(angles)
    assert np.median(joined) < 0.5
    assert np.mean(joined < 15) > 0.93


def test_depth_of_a_whole_scene_agrees_with_brute_force() -> None:
    for seed in (36, 184):
        s = render_sample(seed, (96, 128))
        geometry = world(seed // VIEWS).geometry
        corners = geometry.vertices[geometry.triangles].astype(np.float64)
        rays = rays_of(s) @ s.cam_to_world[:3, :3].T
        rng = np.random.default_rng(0)
        for _ in range(25):
            i, j = rng.integers(0, 96), rng.integers(0, 128)
            expected = nearest_triangle(corners, s.cam_to_world[:3, 3], rays[i, j])
            assert s.depth[i, j] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def simple_scene() -> Scene:
    scene = Scene("test")
    draw = Draw(0)
    ground = scene.add("ground", semantic="floor")
    ground.box("plate", (0, 0, -0.5), (200, 200, 1.0), paint(draw))
    box = scene.add("box", (4.0, 0.5, 0.0), 0.3, semantic="box", phrase="a box", salience=1.0)
    box.box("body", (0, 0, 0.5), (1.0, 1.4, 1.0), paint(draw))
    box.keypoint("near_top", (-0.5, 0.0, 1.0))
    box.keypoint("far_bottom", (0.5, 0.0, 0.0))
    ball = scene.add("ball", (5.0, -1.2, 0.0), semantic="ball")
    ball.ball("ball", (0, 0, 0.6), (1.2, 1.2, 1.2), paint(draw), detail=3)
    scene.lights.append(Light((0.3, 0.2, 0.93), (1.0, 1.0, 1.0), distant=True))
    return scene


def simple_view() -> View:
    return View((0.9, 0.9), (0.52, 0.36), look((0.0, 0.0, 1.5), 0.0, math.radians(-10), math.radians(4)))


def test_simple_scene_agrees_with_closed_forms() -> None:
    scene = simple_scene()
    s = render_view(finish(scene), simple_view(), Draw(1), (72, 96))
    pose = s.cam_to_world
    d = rays_of(s) @ pose[:3, :3].T
    o = pose[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        plane = np.where(d[..., 2] < 0, -o[2] / d[..., 2], np.inf)
        turned_o, turned_d = rotation_z(-0.3) @ (o - [4.0, 0.5, 0.5]), d @ rotation_z(0.3)
        half = np.array([0.5, 0.7, 0.5])
        t0, t1 = (-half - turned_o) / turned_d, (half - turned_o) / turned_d
    near, far = np.minimum(t0, t1).max(-1), np.maximum(t0, t1).min(-1)
    box = np.where((near <= far) & (near > 0), near, np.inf)
    c = np.array([5.0, -1.2, 0.6]) - o
    a, b = (d * d).sum(-1), (d * c).sum(-1)
    root = b * b - a * (c @ c - 0.36)
    ball = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
    plane = np.where(
        np.abs((o + d * np.where(np.isfinite(plane), plane, 0)[..., None])[..., :2]).max(-1) < 100,
        plane,
        np.inf,
    )
    exact = np.minimum(plane, box)
    seen = s.object_id != 3
    sure = seen & (ball == np.inf)
    np.testing.assert_allclose(s.depth[sure], exact[sure], rtol=2e-5)
    # The ball is a mesh of 1280 triangles, inside the true sphere by less than 1 % of its radius.
    on = s.object_id == 3
    assert on.sum() > 50 and np.abs(s.depth[on] - ball[on])[ball[on] < np.inf].mean() < 0.02
    centre = pose[:3, :3].T @ c
    points = rays_of(s) * np.where(on, s.depth, 0)[..., None]
    true = (points - centre) / np.linalg.norm(points - centre, axis=-1, keepdims=True)
    cosine = (true * s.normals).sum(-1)[on]
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean() < 3
    assert (s.semantic[sure & (box < plane)] == INDEX["box"]).all()


def test_keypoints_project_where_their_object_is() -> None:
    s = render_view(finish(simple_scene()), simple_view(), Draw(1), (72, 96))
    by_name = {str(k["name"]): k for k in s.keypoints}
    for name, local, visible in (("near_top", (-0.5, 0, 1.0), True), ("far_bottom", (0.5, 0, 0.0), False)):
        point = rotation_z(0.3) @ np.array(local) + [4.0, 0.5, 0.0]
        camera = s.cam_to_world[:3, :3].T @ (point - s.cam_to_world[:3, 3])
        pixel = s.K @ camera / camera[2]
        k = by_name[name]
        assert (k["x"], k["y"]) == (pytest.approx(pixel[0], abs=1e-3), pytest.approx(pixel[1], abs=1e-3))
        assert k["z_cam"] == pytest.approx(camera[2], rel=1e-5)
        assert bool(k["visible"]) is visible


def test_visible_keypoints_lie_on_their_objects(samples: list[Sample]) -> None:
    near, total = 0, 0
    for s in samples:
        for k in s.keypoints[s.keypoints["visible"]]:
            i, j = int(k["y"]), int(k["x"])
            window = s.object_id[max(0, i - 2) : i + 3, max(0, j - 2) : j + 3]
            total += 1
            near += int((window == k["object_id"]).any())
    assert total > 20
    assert near / total > 0.9


def test_every_instance_of_a_category_has_the_same_keypoints() -> None:
    from vision3d.synthetic import creatures, rooms, vehicles

    names: dict[str, set[str]] = {}
    makers = (creatures.quadruped, creatures.bird, creatures.person, vehicles.car, vehicles.bicycle)
    for maker in makers:
        for seed in range(12):
            scene = Scene("test")
            maker(scene, Draw(seed, 9), (0.0, 0.0, 0.0), 0.0)
            thing = scene.things[-1]
            found = {name for name, _ in thing.keypoints}
            assert found == names.setdefault(thing.category, found), thing.category
            assert len(found) >= 8
    for seed in range(7000, 7060):
        draw = Draw(1, seed)
        scene = Scene("")
        rooms.room(scene, draw)
        for thing in scene.things:
            found = {name for name, _ in thing.keypoints}
            assert found == names.setdefault(thing.category, found), thing.category


def test_parts_name_the_ids_of_the_image(samples: list[Sample]) -> None:
    for s in samples:
        table = {p.part_id: p for p in s.parts}
        ids = np.unique(s.part_id)
        assert set(ids[ids > 0].tolist()) == set(table)
        for part_id, part in table.items():
            assert np.unique(s.object_id[s.part_id == part_id]).tolist() == [part.object_id]
            assert part.name and part.category


def test_objects_stand_on_the_ground_and_not_below() -> None:
    from vision3d.synthetic import creatures, furniture, vehicles

    for seed in range(6):
        scene = Scene("test")
        draw = Draw(seed, 5)
        for index, (maker, depth, width) in enumerate(furniture.FURNITURE.values()):
            maker(scene, draw, (10.0 * index, 0.0, 0.0), 0.0, draw.uniform(*depth), draw.uniform(*width))
        for index, make in enumerate(
            (creatures.quadruped, creatures.bird, creatures.person, vehicles.car, vehicles.truck)
        ):
            make(scene, draw, (20.0 * index, 20.0, 0.0), 0.0)
        place = finish(scene)
        for thing, box in zip(scene.things, place.boxes, strict=True):
            assert box[0, 2] > -0.13, thing.category


def test_rotation_to_takes_z_to_the_direction() -> None:
    rng = np.random.default_rng(0)
    for direction in (*rng.normal(size=(20, 3)), np.array([0, 0, -1.0]), np.array([0, 0, 1.0])):
        unit = direction / np.linalg.norm(direction)
        turn = rotation_to((float(unit[0]), float(unit[1]), float(unit[2])))
        np.testing.assert_allclose(turn @ [0, 0, 1], unit, atol=1e-9)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)


def test_worlds_are_worth_looking_at() -> None:
    """Few views show mostly sky or nothing near; exposure is that of a photograph."""
    views = [render_sample(seed, (48, 64)) for seed in range(6000, 6120, 3)]
    sky = np.array([np.mean(~np.isfinite(s.depth)) for s in views])
    brightness = np.array([s.image.mean() for s in views])
    parts = np.array([len(np.unique(s.part_id)) for s in views])
    assert np.mean(sky > 0.6) < 0.05
    assert 80 < brightness.mean() < 160 and brightness.min() > 30 and brightness.max() < 235
    assert np.median(parts) > 15
    assert len({s.kind for s in views}) >= 6
    assert len({s.caption for s in views}) > 25


def test_classes_are_those_of_the_benchmark() -> None:
    assert len(CLASSES) == len(set(CLASSES)) == 150
    for name, index in (("wall", 0), ("sky", 2), ("person", 12), ("car", 20), ("animal", 126), ("flag", 149)):
        assert INDEX[name] == index


@pytest.mark.parametrize(("seed", "size"), [(-1, (64, 64)), (0, (8, 64))])
def test_impossible_requests_are_refused(seed: int, size: tuple[int, int]) -> None:
    with pytest.raises(InputError):
        render_sample(seed, size)


def test_a_handheld_camera_is_indoors_near_things_and_tilted() -> None:
    usual = [render_sample(seed, (24, 32)) for seed in range(0, 240, 3)]
    handheld = [render_sample(seed, (24, 32), handheld=True) for seed in range(0, 240, 3)]

    def tilt(sample: Sample) -> tuple[float, float]:
        """How far it looks down, and its roll, in degrees."""
        right, _, forward = sample.cam_to_world[:3, :3].T
        return -math.degrees(math.asin(forward[2])), abs(math.degrees(math.asin(right[2])))

    assert {s.kind for s in handheld} <= {
        "kitchen", "office", "living", "bedroom", "bathroom", "storage", "corridor", "hall", "shapes",
    }  # fmt: skip
    down, roll = np.mean([tilt(s) for s in handheld], 0)
    usual_down, usual_roll = np.mean([tilt(s) for s in usual], 0)
    assert down > usual_down + 5 and roll > 1.5 * usual_roll
    assert np.median([np.median(s.depth) for s in handheld]) < 0.7 * np.median(
        [np.median(s.depth) for s in usual]
    )
