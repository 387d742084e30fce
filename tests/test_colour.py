"""Colours against matplotlib and against what a person expects."""

from __future__ import annotations

import numpy as np
import pytest

from vision3d.colour import (
    colour_depth,
    colour_labels,
    colour_normals,
    colour_values,
    label_palette,
    side_by_side,
)
from vision3d.errors import InputError


def test_values_get_matplotlibs_colours() -> None:
    import matplotlib as mpl

    values = np.random.default_rng(0).uniform(0, 1, (30, 40)).astype(np.float32)
    expected = mpl.colormaps["Spectral"](values, bytes=True)[..., :3]
    ours = colour_values(values, limits=(0, 1))
    assert np.abs(ours.astype(int) - expected).max() <= 1
    assert np.abs(colour_values(values, limits=(0, 1), reverse=True).astype(int)[::1] - ours).max() > 50


def test_depth_and_inverse_depth_look_alike() -> None:
    depth = np.linspace(1, 5, 1200).reshape(30, 40)
    near, far = colour_depth(depth)[0, 0].astype(int), colour_depth(depth)[-1, -1].astype(int)
    assert near[0] > near[2] + 50
    assert far[2] > far[0] + 50
    inverse = colour_depth(6 - depth, inverse=True)
    assert np.abs(inverse.astype(int) - colour_depth(depth)).max() <= 8


def test_outliers_do_not_wash_out_the_picture() -> None:
    depth = np.linspace(1, 5, 1200).reshape(30, 40)
    spoilt = depth.copy()
    spoilt[0, 0] = 1e6
    assert np.abs(colour_depth(spoilt).astype(int) - colour_depth(depth))[1:].mean() < 4


def test_nothing_finite_is_grey() -> None:
    assert (colour_depth(np.full((3, 4), np.nan)) == 128).all()
    assert (colour_depth(np.ones((3, 4)), np.zeros((3, 4), bool)) == 128).all()


def test_normals_have_the_usual_colours() -> None:
    towards_camera, right, up = [0, 0, -1], [1, 0, 0], [0, -1, 0]
    colours = colour_normals(np.array([[towards_camera, right, up, [0, 0, 0]]]))[0]
    np.testing.assert_allclose(
        colours, [[128, 128, 255], [255, 128, 128], [128, 255, 128], [128] * 3], atol=1
    )


def test_labels_are_told_apart() -> None:
    colours = label_palette()[:150].astype(int)
    distance = np.abs(colours[:, None] - colours[None]).sum(axis=-1) + np.eye(150, dtype=int) * 999
    assert distance.min() > 0
    assert (colour_labels(np.array([[255]])) == 0).all()


def test_panels_stand_side_by_side_and_panoramas_above_each_other() -> None:
    assert side_by_side([np.zeros((30, 40, 3), np.uint8)] * 2, gap=4).size == (84, 30)
    assert side_by_side([np.zeros((30, 100, 3), np.uint8)] * 2, gap=4).size == (100, 64)
    assert side_by_side([np.zeros((300, 400, 3), np.uint8)] * 2, max_side=200, gap=0).size == (400, 150)


def test_unknown_colour_map() -> None:
    with pytest.raises(InputError, match="matplotlib"):
        colour_values(np.ones((3, 4)), name="Rainbowish")
