from __future__ import annotations

import numpy as np
import pytest

from vision3d.errors import InputError
from vision3d.evaluation.baselines import (
    FixedMap,
    closed_form_maps,
    learned_maps,
    load_maps,
    save_maps,
    score_baselines,
)
from vision3d.evaluation.datasets.base import DepthDataset, DepthSample
from vision3d.evaluation.protocols import DepthRange


def ground(horizon, camera_height=1.5, size=(48, 64), noise=0.0, seed=0):
    """Depth of a level ground that ends at a wall, which rises from a horizon at a share of the height."""
    rows = (np.arange(size[0]) + 0.5) / size[0]
    inverse = np.maximum(rows - horizon, 0) / camera_height + 0.05
    inverse = np.repeat(inverse[:, None], size[1], 1)
    wobble = 1 + noise * np.random.default_rng(seed).normal(size=size)
    return (1 / (inverse * np.clip(wobble, 0.3, 3))).astype(np.float32)


class Grounds(DepthDataset):
    name = "grounds"
    range = DepthRange(1e-3, 80.0)

    def __init__(self, horizons, groups=None):
        self.horizons, self.groups = horizons, groups or [""] * len(horizons)

    @property
    def names(self):
        return [str(i) for i in range(len(self.horizons))]

    def __getitem__(self, index):
        depth = ground(self.horizons[index])
        image = np.zeros((*depth.shape, 3), np.uint8)
        return DepthSample(str(index), self.groups[index], image, depth, self.range.contains(depth))


def test_closed_forms_are_distinct_finite_and_named_once():
    maps = closed_form_maps(64)
    assert len({m.name for m in maps}) == len(maps) >= 20
    for m in maps:
        assert np.isfinite(m.inverse_depth).all() and not m.learned


def test_a_map_ignores_the_image_but_fits_its_size():
    m = next(m for m in closed_form_maps() if m.name == "ramp")
    prediction = m(np.zeros((30, 200, 3), np.uint8))
    assert prediction.space == "affine-invariant inverse depth"
    np.testing.assert_allclose(prediction.depth[:, 7], (np.arange(30) + 0.5) / 30, atol=2e-3)
    same = m(np.full((30, 200, 3), 255, np.uint8))
    np.testing.assert_array_equal(prediction.depth, same.depth)


def test_the_ground_plane_is_found_by_the_ground_map_of_its_horizon():
    table = score_baselines(closed_form_maps(), Grounds([0.4, 0.4]))
    name, metrics = table.best()
    assert name == "ground 0.4" and metrics.abs_rel < 0.05
    averages = table.averages()
    assert averages["constant"].abs_rel > 5 * metrics.abs_rel


def test_groups_choose_their_own_maps_but_an_average_has_one():
    table = score_baselines(closed_form_maps(), Grounds([0.2, 0.2, 0.6], ["low", "low", "high"]))
    own = table.best_by_group()
    assert own["low"][0] == "ground 0.2" and own["high"][0] == "ground 0.6"
    name, mean = table.best_over_groups()
    by_group = table.by_group()[name]
    assert mean == pytest.approx((by_group["low"].abs_rel + by_group["high"].abs_rel) / 2)
    assert mean > np.mean([metrics.abs_rel for _, metrics in own.values()])


def test_learned_maps_beat_every_closed_form_on_scenes_of_their_kind():
    rng = np.random.default_rng(0)

    def scene(seed):
        # A tilted valley that no closed form describes, with its own scale, shift and noise.
        rows, columns = np.mgrid[0:48, 0:64] / 48
        shape = np.sin(3 * columns) + np.cos(4 * rows * columns)
        inverse = rng.uniform(0.2, 0.5) + rng.uniform(0.05, 0.09) * shape
        return 1 / (inverse * (1 + 0.05 * rng.normal(size=inverse.shape)))

    learned = learned_maps([scene(i) for i in range(24)], grid=16, steps=60)
    assert [m.name for m in learned] == [
        "mean inverse depth",
        "mean log depth",
        "leading component",
        "least aligned error",
    ]

    class Valleys(Grounds):
        def __getitem__(self, index):
            depth = scene(index).astype(np.float32)
            image = np.zeros((*depth.shape, 3), np.uint8)
            return DepthSample(str(index), "", image, depth, self.range.contains(depth))

    averages = score_baselines([*closed_form_maps(), *learned], Valleys([0] * 6)).averages()
    closed = min(averages[m.name].abs_rel for m in closed_form_maps())
    for m in learned:
        assert m.learned and averages[m.name].abs_rel < 0.7 * closed, m.name


def test_the_leading_component_is_the_least_squares_optimum():
    rng = np.random.default_rng(1)
    depths = [1 / rng.uniform(0.1, 1, (16, 16)) for _ in range(12)]
    leading = next(m for m in learned_maps(depths, grid=16, steps=0) if m.name == "leading component")
    rows = np.array([1 / d for d in depths]).reshape(12, -1)
    rows = rows - rows.mean(1, keepdims=True)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    def residual(m):
        m = m.ravel() - m.mean()
        m = m / np.linalg.norm(m)
        return np.sum(rows**2) - np.sum((rows @ m) ** 2)

    best = residual(leading.inverse_depth.astype(np.float64))
    singular = np.linalg.svd(rows, compute_uv=False)
    assert best == pytest.approx(12 - singular[0] ** 2, rel=1e-4)
    assert best < residual(np.mean(rows, axis=0))


def test_sky_counts_as_infinitely_far_and_holes_leave_an_image_out():
    sky = [np.where(np.arange(48)[:, None] < 10, np.inf, ground(0.2, seed=i)) for i in range(8)]
    holes = ground(0.3)
    holes[:20] = 0
    with_holes = learned_maps([*sky, holes], grid=16, steps=5)
    without = learned_maps(sky, grid=16, steps=5)
    for a, b in zip(with_holes, without, strict=True):
        np.testing.assert_array_equal(a.inverse_depth, b.inverse_depth)
        assert a.inverse_depth[0].mean() <= a.inverse_depth[-1].mean()
    with pytest.raises(InputError, match="at least 8"):
        learned_maps(sky[:3] + [holes] * 9, grid=16)


def test_maps_survive_saving(tmp_path):
    maps = learned_maps([ground(0.2 + 0.02 * i) for i in range(9)], grid=8, steps=3)
    save_maps(maps, tmp_path / "maps.npz")
    loaded = load_maps(tmp_path / "maps.npz")
    assert [m.name for m in loaded] == [m.name for m in maps]
    for a, b in zip(maps, loaded, strict=True):
        np.testing.assert_array_equal(a.inverse_depth, b.inverse_depth)
    whole = (tmp_path / "maps.npz").read_bytes()
    for bad in (b"nothing", b"", whole[: len(whole) // 2]):
        (tmp_path / "bad.npz").write_bytes(bad)
        with pytest.raises(InputError):
            load_maps(tmp_path / "bad.npz")


def test_nothing_to_score_is_said():
    with pytest.raises(InputError):
        score_baselines([], Grounds([0.3]))
    with pytest.raises(InputError):
        score_baselines([FixedMap("a", np.ones((4, 4), np.float32))], Grounds([]))
