from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from vision3d.errors import InputError, OutputError
from vision3d.evaluation.datasets.base import DepthDataset, DepthSample
from vision3d.evaluation.depth_benchmark import (
    LINES,
    Protocol,
    SheetRow,
    aligned_depth,
    contact_sheet,
    evaluate_depth,
    reduced_image,
    resize_map,
    score_image,
)
from vision3d.evaluation.protocols import DepthRange
from vision3d.prediction import Provenance
from vision3d.results import DepthPrediction

RANGE = DepthRange(1e-3, 50.0)


class Scenes(DepthDataset):
    """Images that hold their own depth: the red channel is 10 times the depth in metres."""

    name = "scenes"
    range = RANGE
    official_size = 6

    def __init__(self, count=6, size=(24, 32), without=()):
        self.count, self.size, self.without = count, size, without

    @property
    def names(self):
        return [f"{i:02d}" for i in range(self.count)]

    def __getitem__(self, index):
        red = np.random.default_rng(index).integers(10, 200, self.size).astype(np.uint8)
        image = np.stack([red, red, red], -1)
        depth = (red / 10).astype(np.float32)
        valid = np.full(self.size, index not in self.without)
        valid[0, : 1 + index] = False
        group = "even" if index % 2 == 0 else "odd"
        return DepthSample(f"{index:02d}", group, image, depth, valid)


def seeing(calls=None, weights="a", noise=0.0):
    """A predictor that reads the depth off the image, in inverse depth of its own scale and shift."""

    def predict(image):
        if calls is not None:
            calls.append(image.shape)
        depth = image[..., 0] / 10
        wobble = 1 + noise * np.sin(np.arange(depth.size)).reshape(depth.shape)
        return DepthPrediction(
            -3 + 7 / (depth * wobble),
            "affine-invariant inverse depth",
            provenance=Provenance("seeing", weights),
        )

    return predict


def test_a_perfect_affine_prediction_scores_perfectly_in_every_space():
    sample = Scenes()[1]
    depth = sample.depth.astype(np.float64)
    for values, space in (
        (5 / depth - 2, "affine-invariant inverse depth"),
        (3 * depth + 8, "affine-invariant depth"),
        (depth, "metric depth"),
    ):
        score = score_image(DepthPrediction(values, space), sample, RANGE)
        assert score.metrics.abs_rel < 1e-5, space
        assert score.metrics.delta1 == 1
        assert score.valid_pixels == 24 * 32 - 2
    score = score_image(DepthPrediction(2 * depth, "metric depth"), sample, RANGE)
    assert score.metrics.abs_rel > 0.9, "metric depth is not aligned"


def test_predictions_are_brought_to_the_size_of_the_ground_truth_and_into_range():
    ramp = np.linspace(1, 4, 64, dtype=np.float32)
    depth = np.repeat(ramp[:, None], 48, 1)
    sample = DepthSample("a", "", np.zeros((64, 48, 3), np.uint8), depth, np.ones((64, 48), bool))
    small = DepthPrediction(depth[1::2, ::2], "affine-invariant depth")
    aligned, _ = aligned_depth(small, sample, DepthRange(1e-3, 3.5))
    assert aligned.shape == (64, 48) and aligned.max() == 3.5
    assert np.abs(aligned - np.minimum(depth, 3.5)).mean() < 0.03


def test_resizing_puts_pixel_centres_at_half():
    import torch

    values = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    want = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], (20, 9), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    np.testing.assert_allclose(resize_map(values, (20, 9)), want, atol=1e-5)


def test_a_prediction_with_holes_is_refused():
    sample = Scenes()[0]
    values = sample.depth.copy()
    values[5, 5] = np.nan
    with pytest.raises(InputError, match="1 scored pixels"):
        score_image(DepthPrediction(values, "metric depth"), sample, RANGE)
    valid = np.ones(values.shape, bool)
    valid[6, 6:8] = False
    with pytest.raises(InputError, match="2 scored pixels"):
        score_image(DepthPrediction(sample.depth, "metric depth", valid=valid), sample, RANGE)


def test_images_are_reduced_but_never_enlarged():
    image = np.zeros((352, 1216, 3), np.uint8)
    assert reduced_image(image, 192).shape == (56, 192, 3)
    assert reduced_image(image, None) is image
    assert reduced_image(image, 2000) is image


def test_an_evaluation_writes_its_report_table_scores_and_previews(tmp_path):
    report = evaluate_depth(seeing(noise=0.05), Scenes(), tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    rows = list(csv.DictReader((tmp_path / "per_image.csv").open()))
    assert [row["name"] for row in rows] == [f"{i:02d}" for i in range(6)]
    mean = np.mean([float(row["abs_rel"]) for row in rows])
    assert written["average"]["abs_rel"] == pytest.approx(mean) == pytest.approx(report.average.abs_rel)
    evens = np.mean([float(row["abs_rel"]) for row in rows if row["group"] == "even"])
    assert written["groups"]["even"]["abs_rel"] == pytest.approx(evens)
    assert written["complete"] and written["images"] == 6
    assert written["method"] == "seeing" and 0.001 < mean < 0.2
    assert "| even | 3 |" in (tmp_path / "table.md").read_text()
    assert Image.open(tmp_path / "previews.png").width == 4 * 320 + 12


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path):
    whole = evaluate_depth(seeing(), Scenes(), tmp_path / "whole")
    calls = []

    def failing(image):
        if len(calls) == 4:
            raise KeyboardInterrupt
        return seeing(calls)(image)

    out = tmp_path / "resumed"
    with pytest.raises(KeyboardInterrupt):
        evaluate_depth(failing, Scenes(), out)
    with (out / LINES).open("a") as file:
        file.write('{"name": "05", "gro')  # torn by the interruption
    calls.clear()
    resumed = evaluate_depth(seeing(calls), Scenes(), out)
    assert resumed.scores == whole.scores
    previews = 6
    assert len(calls) == 1 + 2 + previews, "the first, the two that were left, the previews"
    assert (out / "report.json").read_bytes() == (tmp_path / "whole" / "report.json").read_bytes()
    assert len((out / LINES).read_text().splitlines()) == 7


@pytest.mark.parametrize(
    "change",
    [
        {"predict": seeing(weights="b")},
        {"protocol": Protocol(size=16)},
        {"protocol": Protocol(positive_only=True)},
    ],
)
def test_scores_of_other_weights_or_protocols_are_not_reused(tmp_path, change):
    evaluate_depth(seeing(), Scenes(), tmp_path)
    calls = []
    arguments = {"predict": seeing(), "protocol": Protocol(), **change}
    predict = arguments.pop("predict")
    evaluate_depth(lambda image: calls.append(1) or predict(image), Scenes(), tmp_path, **arguments)
    assert len(calls) == 6 + 6


def test_batches_give_the_same_scores(tmp_path):
    sizes = []

    def many(images):
        sizes.append(len(images))
        return [seeing()(image) for image in images]

    one = evaluate_depth(seeing(), Scenes(), tmp_path / "one")
    four = evaluate_depth(many, Scenes(), tmp_path / "four", batch_size=4)
    assert one.scores == four.scores
    assert sizes[:3] == [1, 4, 2]


def test_images_without_ground_truth_are_left_out_and_named(tmp_path, capsys):
    report = evaluate_depth(seeing(), Scenes(without=(2,)), tmp_path)
    assert report.skipped == ["02"] and len(report.scores) == 5 and not report.complete
    assert "not the 6" in capsys.readouterr().err
    with pytest.raises(InputError, match="valid ground truth"):
        evaluate_depth(seeing(), Scenes(2, without=(0, 1)), tmp_path / "none")


def test_a_limit_takes_the_first_images(tmp_path):
    assert [s.name for s in evaluate_depth(seeing(), Scenes(), tmp_path, limit=2).scores] == ["00", "01"]
    with pytest.raises(InputError, match="limit"):
        evaluate_depth(seeing(), Scenes(), tmp_path, limit=0)


def test_an_unwritable_folder_is_found_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        evaluate_depth(lambda image: pytest.fail("predicted"), Scenes(), tmp_path / "file" / "out")


def test_the_contact_sheet_has_a_row_for_each_image():
    rows = [SheetRow(s, s.depth + 1.0, s.name) for s in Scenes(2)]
    sheet = contact_sheet(rows, width=64)
    assert sheet.size == (4 * 64 + 12, 2 * (48 + 20))
    with pytest.raises(InputError):
        contact_sheet([])
