"""The result type of all matching: shapes, files, pictures."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from vision3d.errors import InputError
from vision3d.io.flow import read_flo, write_flo
from vision3d.io.photo import Photo
from vision3d.matches import Matches, read_points


def some_matches(count: int = 5, **more: object) -> Matches:
    rng = np.random.default_rng(0)
    photos = [
        Photo(rng.integers(0, 256, (h, w, 3), dtype=np.uint8), n)
        for n, h, w in (("a", 40, 60), ("b", 50, 30))
    ]
    values = {
        "points_a": rng.uniform(0, 40, (count, 2)), "points_b": rng.uniform(0, 30, (count, 2)),
        "similarity": rng.random(count), "confidence": rng.random(count), "mutual": np.arange(count) % 2 == 0,
        "cycle_error": np.full(count, np.nan), "size_a": (40, 60), "size_b": (50, 30),
        "photo": photos[0], "photo_b": photos[1],
    }  # fmt: skip
    return Matches(**{**values, **more})  # type: ignore[arg-type]


def test_saved_files_hold_what_the_result_held(tmp_path: Path) -> None:
    flow = np.random.default_rng(1).normal(size=(40, 60, 2)).astype(np.float32)
    found = some_matches(flow_ab=flow)
    found.save(tmp_path / "pair")
    with np.load(tmp_path / "pair" / "matches.npz") as arrays:
        assert np.array_equal(arrays["points_b"], found.points_b) and np.array_equal(arrays["flow_ab"], flow)
    rows = list(csv.DictReader((tmp_path / "pair" / "matches.csv").open()))
    assert len(rows) == 5 and abs(float(rows[2]["x_b"]) - found.points_b[2, 0]) < 1e-3
    record = json.loads((tmp_path / "pair" / "result.json").read_text())
    assert record["second_input"]["width"] == 30 and "+0.5" in record["conventions"]["points"]
    assert {"flow_ab.flo", "flow_ab.png", "preview.png"} <= set(record["files"])


def test_flo_files_are_opencvs(tmp_path: Path) -> None:
    flow = np.random.default_rng(1).normal(size=(7, 9, 2)).astype(np.float32)
    write_flo(tmp_path / "a.flo", flow)
    assert np.array_equal(cv2.readOpticalFlow(str(tmp_path / "a.flo")), flow)
    cv2.writeOpticalFlow(str(tmp_path / "b.flo"), flow)
    assert np.array_equal(read_flo(tmp_path / "b.flo"), flow)
    (tmp_path / "c.flo").write_bytes((tmp_path / "a.flo").read_bytes()[:60])
    for broken in ("c.flo", "none.flo"):
        with pytest.raises(InputError, match=r"\.flo"):
            read_flo(tmp_path / broken)


def test_selections_keep_rows_together() -> None:
    found = some_matches(6)
    chosen = found.confident(0.0)
    assert len(chosen) == 3 and chosen.mutual.all() and np.array_equal(chosen.points_a, found.points_a[::2])
    assert len(found.select(np.array([4, 1]))) == 2


def test_other_second_images_are_other_work() -> None:
    one, two = some_matches(), some_matches(photo_b=Photo(np.zeros((50, 30, 3), np.uint8)))
    assert one.fingerprint == some_matches().fingerprint != two.fingerprint


@pytest.mark.parametrize(
    "wrong", [{"points_b": np.zeros((2, 2))}, {"mutual": np.ones(3, bool)}, {"flow_ab": np.zeros((4, 4, 2))}]
)
def test_shapes_that_do_not_fit_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError):
        some_matches(**wrong)


def test_a_result_without_matches_can_be_shown_and_saved(tmp_path: Path) -> None:
    empty = some_matches(0)
    assert empty.preview().width > 60
    empty.save(tmp_path / "none")


@pytest.mark.parametrize(
    "text", ["x,y\n1,2\n3.5,4\n", "1,2\n3.5,4", "\ufeff1,2\n3.5,4", "name,y_a,x_a\na,2,1\nb,4,3.5"]
)
def test_points_are_read_by_name_or_place(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.csv").write_text(text, encoding="utf-8")
    assert read_points(tmp_path / "p.csv").tolist() == [[1, 2], [3.5, 4]]


@pytest.mark.parametrize("text", ["", "x,y\n", "a,b\nc,d", "1\n2"])
def test_tables_without_points_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InputError, match=r"p\.csv"):
        read_points(tmp_path / "p.csv")
