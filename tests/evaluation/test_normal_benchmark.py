"""Normals on a folder of pictures: both protocols, seeds, going on, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision3d.cli import main
from vision3d.errors import InputError
from vision3d.evaluation.normal_benchmark import NormalPictures, evaluate_normals
from vision3d.prediction import Provenance

FLAT, TILTED = (0.0, 0.0, 1.0), (np.sin(np.radians(20)), 0.0, np.cos(np.radians(20)))


def picture(normal: tuple[float, float, float], size: tuple[int, int] = (24, 32)) -> np.ndarray:
    values = np.broadcast_to(np.array(normal), (*size, 3))
    return np.round((values + 1) / 2 * 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two photographs of different size, one name beginning with the other; the larger has only half a truth."""
    root = tmp_path / "pictures"
    root.mkdir()
    truth = picture(FLAT, (48, 64))
    truth[:24] = 127  # a vector of hardly any length: unknown
    save(root / "room_gt.png", picture(FLAT))
    save(root / "room_b_gt.png", truth)
    for name in ("room", "room_b"):
        save(root / f"{name}_ref.png", np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8))
    save(root / "room_init.png", picture(TILTED))
    save(root / "room_b_init.png", picture(FLAT))
    save(root / "room_b_step2.png", picture(TILTED))
    return root


def test_pictures_belong_to_the_longest_name(folder: Path) -> None:
    data = NormalPictures(folder)
    assert data.names == ["room", "room_b"]
    assert list(data.predictions("room")) == ["init"] and list(data.predictions("room_b")) == [
        "init",
        "step2",
    ]


def test_both_protocols_are_reported_and_differ_as_they_must(folder: Path, tmp_path: Path) -> None:
    report = evaluate_normals(NormalPictures(folder), tmp_path / "out")
    init, step = report.scores["init"], report.scores["step2"]
    assert (init["images"], step["images"]) == (2, 1)
    # 768 pixels at 20 degrees, 1,536 at 0
    assert init["per_image"]["mean"] == pytest.approx(10, abs=0.5)
    assert init["pooled"]["mean"] == pytest.approx(20 / 3, abs=0.5)
    assert init["pooled"]["below_11_25"] == pytest.approx(200 / 3) and init["per_image"]["below_11_25"] == 50
    assert step["pooled"]["mean"] == pytest.approx(20, abs=0.5)
    rows = (tmp_path / "out" / "per_image.csv").read_text().splitlines()
    assert len(rows) == 4 and {row.split(",")[2] for row in rows[1:]} == {"768", "1536"}
    assert json.loads((tmp_path / "out" / "report.json").read_text())["scores"].keys() == {"init", "step2"}


def test_seeds_have_a_variance_and_an_interrupted_run_goes_on(folder: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def predict(image: np.ndarray, seed: int) -> np.ndarray:
        assert image.shape == (24, 32, 3)
        asked.append(seed)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return picture(TILTED if seed else FLAT)

    def run(weights: str):
        made_by = Provenance("test", weights)
        return evaluate_normals(
            NormalPictures(folder),
            tmp_path / "out",
            predict=predict,
            provenance=made_by,
            label="ours",
            seeds=2,
        )

    with pytest.raises(KeyboardInterrupt):
        run("a")
    report = run("a")
    assert asked == [0, 1, 0, 0, 1]
    # errors of 0 and 20 degrees: a variance of 10 squared
    assert report.variance["ours"] == pytest.approx(100, rel=0.05)
    assert report.scores["ours_seed1"]["per_image"]["mean"] == pytest.approx(20, abs=0.5)
    run("a")
    assert len(asked) == 5
    run("b")
    assert len(asked) == 9, "pictures of other weights are made again"


def test_the_verb_predicts_with_the_embedded_weights(folder: Path, tmp_path: Path, capsys) -> None:
    words = ["evaluate", "normals", "--dataset", "pictures", "--root", str(folder), "--out"]
    assert main([*words, str(tmp_path / "out"), "--turbo", "--limit", "1", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores.keys() == {"init", "vision3d"} and 0 < scores["vision3d"]["pooled"]["mean"] < 180
    assert [p.name for p in (tmp_path / "out" / "predictions").iterdir()] == ["room_vision3d.png"]
    assert main([*words, str(tmp_path / "none"), "--no-predict", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"].keys() == {"init", "step2"}


def test_what_cannot_be_scored_is_refused_in_one_line(folder: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(InputError, match=r"no NAME_gt\.png"):
        NormalPictures(tmp_path)
    words = [
        "evaluate",
        "normals",
        "--dataset",
        "pictures",
        "--root",
        str(folder),
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*words, "--frame", "sideways"]) == 2
    assert "no frame is called 'sideways'" in capsys.readouterr().err
    assert main(["evaluate", "normals", "--dataset", "nyu", *words[4:]]) == 2
    assert "choose one of pictures" in capsys.readouterr().err
    (folder / "room_ref.png").unlink()
    with pytest.raises(InputError, match=r"no photograph .*room_ref\.png"):
        evaluate_normals(NormalPictures(folder), tmp_path / "o", predict=lambda image, seed: image)
    for path in [*folder.glob("*_init.png"), *folder.glob("*_step2.png")]:
        path.unlink()
    with pytest.raises(InputError, match="add NAME_LABEL"):
        evaluate_normals(NormalPictures(folder), tmp_path / "o")


def test_per_image_compares_unit_vectors_and_pooled_does_not(tmp_path: Path) -> None:
    directions = np.random.default_rng(0).normal(size=(24, 32, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    same = np.round((directions + 1) / 2 * 255).astype(np.uint8)
    save(tmp_path / "a_gt.png", same)
    save(tmp_path / "a_same.png", same)
    scores = evaluate_normals(NormalPictures(tmp_path), tmp_path / "out").scores["same"]
    assert scores["per_image"]["mean"] < 1e-5 and scores["pooled"]["mean"] > 0.5
