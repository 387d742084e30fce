"""The evaluation of the mini weights: pairs of held-out objects and what copying their places scores."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vision3d.errors import InputError
from vision3d.evaluation import mini_match
from vision3d.synthetic.sample import KEYPOINT
from vision3d.training import data


class Squares:
    """Scenes with one red square each and a keypoint in each of its corners."""

    first = data.HELD_OUT_SEED

    def __init__(self, *arguments: object) -> None:
        del arguments

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> SimpleNamespace:
        rng = np.random.default_rng(index)
        x, y, side = rng.integers(4, 16), rng.integers(4, 16), rng.integers(16, 24)
        image, owner = np.full((48, 48, 3), 90, np.uint8), np.zeros((48, 48), np.int32)
        image[y : y + side, x : x + side], owner[y : y + side, x : x + side] = (200, 0, 0), 1
        corners = [(x, y), (x + side, y), (x, y + side), (x + side, y + side)]
        rows = [(f"corner{i}", 1, "square", cx, cy, 1.0, True) for i, (cx, cy) in enumerate(corners)]
        return SimpleNamespace(
            image=image, object_id=owner, seed=self.first + index, keypoints=np.array(rows, KEYPOINT)
        )


def test_corners_of_squares_are_where_they_are_in_the_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "RenderedWorld", Squares)
    assert mini_match.main(tmp_path / "report.json", pairs=20) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["pairs"] == 20 and report["pck_0.1_per_point_bbox"] == {"same_place": 1.0}
    pairs = mini_match.held_out_pairs(20)
    assert all(p.source.name.split("_")[0] != p.target.name.split("_")[0] for p in pairs)
    assert [p.source.name for p in pairs] == [p.source.name for p in mini_match.held_out_pairs(20)]


def test_scenes_that_were_trained_on_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "RenderedWorld", Squares)
    monkeypatch.setattr(Squares, "first", 5)
    with pytest.raises(InputError, match="trained"):
        mini_match.held_out_pairs(3)


def test_goals_are_judged_by_the_fused_score() -> None:
    from vision3d.evaluation.correspondence import PCK, PairErrors

    def scoring(share: float) -> PCK:
        errors = np.where(np.arange(100) < 100 * share, 0.0, 99.0)
        return PCK([PairErrors("x", errors, 10.0, 10.0)])

    scores = {"same_place": scoring(0.1), "fused": scoring(0.4), "sd": scoring(0.2), "dino": scoring(0.41)}
    result = mini_match.compare(scores)
    assert result["ratio_to_same_place"] == pytest.approx(4.0)
    assert result["reached"] == {"fused_at_least_each": False, "three_times_same_place_or_0.6": True}
