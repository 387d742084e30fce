from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vision3d.errors import InputError
from vision3d.evaluation import mini_depth
from vision3d.evaluation.datasets.procedural import PROCEDURAL_RANGE, TEST_SEEDS, Procedural
from vision3d.prediction import Provenance
from vision3d.results import DepthPrediction
from vision3d.training.data import HELD_OUT_SEED


def fake_scene(seed, size=(48, 48)):
    """A scene whose image shows its inverse depth in red; a slope of random direction, sky at the top."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[0:height, 0:width] / height
    slope = rng.normal(size=2)
    inverse = 0.2 + 0.1 * (slope[0] * x + slope[1] * y) / np.abs(slope).sum()
    depth = (1 / inverse).astype(np.float32)
    depth[:2] = np.inf
    red = np.round(inverse * 600).astype(np.uint8)
    K = np.array([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
    return SimpleNamespace(image=np.stack([red] * 3, -1), depth=depth, K=K, seed=seed, kind="slope")


@pytest.fixture
def world(monkeypatch):
    import vision3d.synthetic

    monkeypatch.setattr(vision3d.synthetic, "render_sample", fake_scene, raising=False)


def seeing(images):
    return [
        DepthPrediction(
            image[..., 0].astype(np.float32) * 3 - 7,
            "affine-invariant inverse depth",
            provenance=Provenance("seeing", "eyes", "0" * 64),
        )
        for image in images
    ]


def test_held_out_scenes_are_rendered_with_sky_and_distance_left_out(world):
    data = Procedural(range(HELD_OUT_SEED, HELD_OUT_SEED + 3), size=(48, 64), keep=True)
    assert len(data) == 3 and data.names[1] == f"seed_{HELD_OUT_SEED + 1}"
    sample = data[1]
    assert sample.image.shape == (48, 64, 3) and sample.camera.fx == 64
    assert not sample.valid[:2].any() and sample.valid[2:].all() and sample.depth[0, 0] == 0
    assert data[1] is sample, "kept for the next pass"
    assert PROCEDURAL_RANGE.far == 80 and len(TEST_SEEDS) >= 500 and TEST_SEEDS.start > HELD_OUT_SEED


def test_scenes_that_training_may_have_seen_are_refused(world):
    with pytest.raises(InputError, match="trained on"):
        Procedural(range(100, 110))
    with pytest.raises(InputError):
        Procedural(range(0))


def test_the_report_compares_the_model_with_the_best_fixed_map(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mini_depth, "_model", lambda *arguments: seeing)
    desk = tmp_path / "real" / "tum_desk"
    desk.mkdir(parents=True)
    for number in (1, 2):
        scene = fake_scene(number, (60, 80))
        Image.fromarray(scene.image).save(desk / f"{number}.png")
        metres = np.where(np.isfinite(scene.depth), scene.depth, 0)
        Image.fromarray(np.round(metres * 5000).astype(np.uint16)).save(desk / f"{number}_depth.png")
    out = tmp_path / "report.json"
    arguments = f"--out {out} --weights {tmp_path} --real {desk.parent} --seeds 900000000 900000012"
    rest = "--training-scenes 16 --render-size 48 --size 40 --batch-size 5"
    assert mini_depth.run([*arguments.split(), *rest.split()]) == 0
    report = json.loads(out.read_text())
    assert set(report) == {"procedural", "samples"}
    procedural = report["procedural"]
    best = procedural["best"]["over_images"]
    assert procedural["images"] == 12 and procedural["goal"] == 0.6
    assert best["abs_rel"] == min(m["abs_rel"] for m in procedural["maps"].values())
    assert {"ramp", "mean inverse depth", "least aligned error"} <= set(procedural["maps"])
    assert procedural["model"]["abs_rel"] < 0.02
    assert procedural["ratio"]["over_images"] == pytest.approx(
        procedural["model"]["abs_rel"] / best["abs_rel"]
    )
    assert procedural["reached"] == {"over_images": True} and report["samples"]["goal"] == 0.85
    assert procedural["model"]["weights_sha256"] == "0" * 64
    assert Image.open(tmp_path / "report.png").width == 4 * 320 + 12
    assert (tmp_path / "report" / "procedural" / "per_image.csv").is_file()
    assert "reached" in capsys.readouterr().err


def test_without_weights_the_mark_to_beat_is_reported(world, tmp_path):
    out = tmp_path / "marks.json"
    arguments = ["--out", str(out), "--seeds", "900000000", "900000004", "--render-size", "48"]
    assert mini_depth.run([*arguments, "--training-scenes", "12"]) == 0
    report = json.loads(out.read_text())["procedural"]
    assert "model" not in report and report["best"]["over_images"]["abs_rel"] > 0
    assert not out.with_suffix(".png").exists()
    again = tmp_path / "again.json"
    reused = ["--maps", str(tmp_path / "marks" / "fixed_maps.npz")]
    assert mini_depth.run([*arguments[2:], *reused, "--out", str(again)]) == 0
    assert json.loads(again.read_text()) == json.loads(out.read_text())


@pytest.mark.parametrize("arguments", ["--out report.txt", "--out report.json --no-procedural"])
def test_what_cannot_be_reported_is_one_line(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert mini_depth.run(arguments.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "; " in error
