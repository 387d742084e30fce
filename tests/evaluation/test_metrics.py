from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision3d.errors import InputError
from vision3d.evaluation.metrics import (
    DepthMetrics,
    align_depth,
    align_inverse_depth,
    depth_metrics,
    fit_affine,
    nearest_reduction,
)


@pytest.fixture(scope="module")
def published(request):
    """Arrays and tolerances of the published evaluation, from the repository or the folder beside it."""
    folder = request.getfixturevalue("golden") / "primedepth"
    if not (folder / "depth_eval.npz").is_file():
        folder = request.getfixturevalue("shared") / "golden" / "primedepth"
    spec = json.loads((folder / "depth_eval.json").read_text())
    return spec, dict(np.load(folder / "depth_eval.npz"))


def close(spec, arrays, name, got):
    tolerance = spec["outputs"][name]
    np.testing.assert_allclose(
        got, arrays[name], rtol=tolerance["rtol"], atol=tolerance["atol"], err_msg=name
    )


def test_the_ten_metrics_after_alignment_in_depth_are_the_published_ones(published):
    spec, a = published
    depth, fit = align_depth(a["pred_depth"], a["gt"], a["valid"], *spec["range"])
    close(spec, a, "depth_scale_shift", [fit.scale, fit.shift])
    close(spec, a, "depth_metrics", depth_metrics(depth, a["gt"], a["valid"]).as_array())
    order = [name.removesuffix("(x100)") for name in spec["metric_order"]]
    assert list(DepthMetrics.names()) == order


@pytest.mark.parametrize(("name", "positive_only"), [("inv_posmask", True), ("inv_nomask", False)])
def test_alignment_in_inverse_depth_is_the_published_one(published, name, positive_only):
    spec, a = published
    depth, fit = align_inverse_depth(
        a["pred_inverse"], a["gt"], a["valid"], *spec["range"], positive_only=positive_only
    )
    close(spec, a, f"{name}_scale_shift", [fit.scale, fit.shift])
    close(spec, a, f"{name}_metrics", depth_metrics(depth, a["gt"], a["valid"]).as_array())


def test_the_published_fit_at_limited_resolution_shrinks_the_width_only(published):
    spec, a = published
    limit = {"max_resolution": spec["max_resolution"]}
    quirk = fit_affine(a["pred_depth"], a["gt"], a["valid"], **limit, width_only_resize=True)
    close(spec, a, "depth_scale_shift_maxres40", [quirk.scale, quirk.shift])
    both = fit_affine(a["pred_depth"], a["gt"], a["valid"], **limit)
    assert 1e-4 < abs(both.scale / quirk.scale - 1) < 2e-2


def test_reduction_keeps_the_documented_rows_and_columns():
    image = np.arange(6 * 10).reshape(6, 10)
    rows, columns = nearest_reduction(image.shape, 4)
    assert rows.ravel().tolist() == [0, 2] and columns.ravel().tolist() == [0, 2, 5, 7]
    assert image[nearest_reduction(image.shape, 4, width_only=True)].shape == (6, 4)
    np.testing.assert_array_equal(image[nearest_reduction(image.shape, 10)], image)


@given(
    scale=st.floats(-50, 50).filter(lambda s: abs(s) > 1e-2),
    shift=st.floats(-1e4, 1e4),
    seed=st.integers(0, 2**16),
)
def test_the_fit_undoes_any_scale_and_shift(scale, shift, seed):
    rng = np.random.default_rng(seed)
    target = rng.uniform(0.1, 2, (7, 9))
    valid = rng.random((7, 9)) < 0.6
    valid[0, :2] = True
    fit = fit_affine((target - shift) / scale, target, valid)
    np.testing.assert_allclose([fit.scale, fit.shift], [scale, shift], rtol=1e-6, atol=1e-6)


def test_the_fit_equals_numpys_least_squares():
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(2, 12, 8))
    valid = rng.random((12, 8)) < 0.5
    want, *_ = np.linalg.lstsq(np.stack([x[valid], np.ones(valid.sum())], 1), y[valid], rcond=None)
    fit = fit_affine(x, y, valid)
    np.testing.assert_allclose([fit.scale, fit.shift], want, rtol=1e-10)


def test_a_constant_prediction_becomes_the_mean():
    target = np.array([[1.0, 2.0], [3.0, 6.0]])
    fit = fit_affine(np.full((2, 2), 7.0), target, np.ones((2, 2), bool))
    assert fit(np.full((1, 1), 7.0)).item() == pytest.approx(3.0)


def test_metrics_of_a_depth_that_is_twice_too_large():
    truth = np.array([[1.0, 2.0], [4.0, 8.0]])
    got = depth_metrics(2 * truth, truth, np.ones((2, 2), bool))
    assert got.abs_rel == pytest.approx(1)
    assert got.sq_rel == pytest.approx(truth.mean())
    assert got.rmse == pytest.approx(math.sqrt((truth**2).mean()))
    assert got.rmse_log == pytest.approx(math.log(2))
    assert got.log10 == pytest.approx(math.log10(2))
    assert (got.delta1, got.delta2, got.delta3) == (0, 0, 0)
    assert got.i_rmse == pytest.approx(math.sqrt(((0.5 / truth) ** 2).mean()))
    assert got.silog == pytest.approx(0, abs=1e-5)


def test_delta_thresholds_are_strict_powers():
    truth = np.ones((1, 4))
    got = depth_metrics(np.array([[1.24, 1 / 1.24, 1.5, 1.9]]), truth, np.ones((1, 4), bool))
    assert (got.delta1, got.delta2, got.delta3) == (0.5, 0.75, 1.0)


def test_invalid_pixels_count_nowhere():
    truth = np.array([[1.0, 2.0, np.nan, 0.0]])
    prediction = np.array([[1.0, 2.0, 5.0, np.nan]])
    valid = np.array([[True, True, False, False]])
    assert depth_metrics(prediction, truth, valid).abs_rel == 0
    depth, _ = align_inverse_depth(np.array([[3.0, 2.0, 2.0, 3.0]]), truth, valid, 0.1, 10)
    np.testing.assert_allclose(depth[0, :2], [1, 2])


def test_average_gives_each_image_the_same_weight():
    one, two = (DepthMetrics(*np.full(10, v)) for v in (1.0, 3.0))
    assert DepthMetrics.average([one, two]).as_array().tolist() == [2.0] * 10


@pytest.mark.parametrize(
    "call",
    [
        lambda: depth_metrics(np.ones((2, 2)), np.ones((2, 3)), np.ones((2, 2), bool)),
        lambda: depth_metrics(np.ones((2, 2)), np.ones((2, 2)), np.zeros((2, 2), bool)),
        lambda: depth_metrics(np.zeros((2, 2)), np.ones((2, 2)), np.ones((2, 2), bool)),
        lambda: fit_affine(np.full((2, 2), np.nan), np.ones((2, 2)), np.ones((2, 2), bool)),
        lambda: fit_affine(np.ones(4), np.ones(4), np.ones(4, bool)),
        lambda: DepthMetrics.average([]),
    ],
)
def test_what_cannot_be_scored_is_one_clear_line(call):
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value) and ";" in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "width"), [(20, 116), (20, 84), (40, 58), (36, 150), (30, 159), (50, 145), (64, 200)]
)
def test_nearest_reduction_is_that_of_torch(limit: int, width: int) -> None:
    import torch

    values = torch.arange(width, dtype=torch.float32)[None, None].expand(1, 40, width)
    expected = torch.nn.Upsample(scale_factor=min(limit / 40, limit / width), mode="nearest")(values)[0, 0]
    rows, columns = nearest_reduction((40, width), limit, width_only=True)
    np.testing.assert_array_equal(columns[0], expected.numpy().astype(int))
    assert len(rows) == 40
