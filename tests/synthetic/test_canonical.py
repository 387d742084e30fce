"""Shapes of categories: laid over objects they give the same place the same coordinates."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from vision3d.synthetic.canonical import (
    Placement,
    keypoints_in_space,
    mean_shape,
    mirrored_name,
    places_on,
)
from vision3d.synthetic.sample import KEYPOINT

BOX = {
    f"{end}_{side}_{level}": np.array([x, y, z])
    for end, y in (("front", -2.0), ("rear", 2.0))
    for side, x in (("left", 1.0), ("right", -1.0))
    for level, z in (("low", 0.0), ("high", 1.5))
}


def turned(points: np.ndarray, angle: float, scale: float, shift: tuple[float, float, float]) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.asarray(scale * points @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]).T + shift)


def test_an_upright_object_is_turned_scaled_and_shifted_back() -> None:
    shape = np.stack(list(BOX.values()))
    placed = Placement.upright(turned(shape, 2.5, 0.3, (4, -5, 6)), shape)
    np.testing.assert_allclose(placed(turned(shape, 2.5, 0.3, (4, -5, 6))), shape, atol=1e-9)
    # of one point only the shift is known
    np.testing.assert_allclose(Placement.fitted(shape[:1] + 3, shape[:1])(shape[:1] + 3), shape[:1])


def test_other_proportions_are_made_up_for_even_where_all_keypoints_lie_in_a_plane() -> None:
    shape = np.stack(list(BOX.values()))
    longer = turned(shape * [1, 1.6, 0.8], -1, 1, (1, 2, 3))
    rigid = np.abs(Placement.upright(longer, shape)(longer) - shape).max()
    assert np.abs(Placement.fitted(longer, shape)(longer) - shape).max() < 0.2 * rigid
    top = shape[shape[:, 2] > 1]
    placed = Placement.fitted(turned(top, 1, 2, (0, 0, 0)), top)
    # below the plane it goes on at the objects' scale
    np.testing.assert_allclose(placed(turned(shape, 1, 2, (0, 0, 0))), shape, atol=1e-6)


def test_a_category_s_shape_is_centred_of_unit_size_and_left_is_at_positive_x() -> None:
    rng = np.random.default_rng(0)
    names = list(BOX)
    objects = []
    for _ in range(12):
        points = turned(
            np.stack(list(BOX.values())) * rng.uniform(0.8, 1.2, 3), rng.uniform(0, 6), 2, (5, 5, 0)
        )
        kept = rng.permutation(len(names))[:7]  # not all have all keypoints
        objects.append({names[i]: points[i] for i in kept})
    shape = mean_shape(objects)
    values = np.stack([shape[name] for name in names])
    np.testing.assert_allclose(np.mean(values, 0), 0, atol=0.05)
    assert np.sqrt((values**2).sum(1).mean()) == pytest.approx(1, abs=0.02)
    expected = np.stack(list(BOX.values()))
    expected = (expected - expected.mean(0)) / np.sqrt(((expected - expected.mean(0)) ** 2).sum(1).mean())
    np.testing.assert_allclose(values, expected, atol=0.12)
    for name in names:
        np.testing.assert_allclose(shape[mirrored_name(name)], shape[name] * [-1, 1, 1], atol=1e-9)
    assert mean_shape([{"one": np.zeros(3)}]) == {}
    # without a left it is widest along y
    long = mean_shape([{"cap": np.array([0.0, 0, 3]), "handle": np.array([2.0, 0, 1])}])
    assert abs(long["handle"][1]) > 0.5 and abs(long["handle"][0]) < 1e-6


def sample() -> SimpleNamespace:
    """A wall 5 m away, of which the middle is an object with the corners as keypoints."""
    K = np.array([[40.0, 0, 32], [0, 40, 24], [0, 0, 1]])
    owner = np.zeros((48, 64), np.uint16)
    owner[12:36, 16:48] = 3
    corners = [("top_left", 16, 12), ("top_right", 48, 12), ("bottom_left", 16, 36), ("bottom_right", 48, 36)]
    rows = [(name, 3, "picture", x, y, 5.0, True) for name, x, y in corners]
    pose = np.array([[1.0, 0, 0, 2], [0, 0, 1, 3], [0, -1, 0, 4], [0, 0, 0, 1]])  # looks along the world's y
    return SimpleNamespace(
        K=K, cam_to_world=pose, object_id=owner, depth=np.full((48, 64), 5.0, np.float32),
        keypoints=np.array(rows, KEYPOINT), seed=0,
    )  # fmt: skip


def test_pixels_get_their_place_on_the_shape() -> None:
    shown = sample()
    points = keypoints_in_space(shown, 3)
    np.testing.assert_allclose(points["top_left"], [0, 8, 5.5], atol=1e-5)
    shape = mean_shape([points])
    pixels = np.array([[16.0, 12], [47.9, 35.9], [32, 24], [5, 5], [70, 24]])
    places, there = places_on(shown, 3, shape, pixels)
    assert there.tolist() == [True, True, True, False, False]
    np.testing.assert_allclose(places[0], shape["top_left"], atol=0.02)
    np.testing.assert_allclose(places[1], shape["bottom_right"], atol=0.02)
    np.testing.assert_allclose(places[2], 0, atol=0.02)
    shown.depth[24, 32] = np.inf
    assert not places_on(shown, 3, shape, pixels[2:3])[1].any()
    assert not places_on(shown, 3, {"other": np.zeros(3)}, pixels)[1].any()


def test_keypoints_of_rendered_objects_lie_at_their_places() -> None:
    from vision3d.synthetic import render_sample
    from vision3d.synthetic.objects import instances

    found: dict[str, list] = {}
    for seed in range(12):
        rendered = render_sample(seed, size=(96, 128))
        for each in instances(rendered, min_keypoints=4):
            found.setdefault(each.category, []).append((rendered, each))
    offsets = []
    for members in found.values():
        shape = mean_shape(keypoints_in_space(s, i.object_id) for s, i in members)
        for s, i in members:
            places, there = places_on(s, i.object_id, shape, i.points)
            wanted = np.stack([shape[name] for name in i.names])
            offsets += list(np.linalg.norm(places - wanted, axis=1)[there])
    assert len(offsets) > 20 and np.median(offsets) < 0.25
