"""Comparison of normals with answers that do not look at the image; planes fitted to depth."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.evaluation import mini_normals
from vision3d.evaluation.datasets.base import DepthSample
from vision3d.geometry.normals import normals_by_plane_fit, normals_from_depth


def tilted(degrees: float) -> np.ndarray:
    """Facing the camera, turned to the right by an angle."""
    angle = np.radians(degrees)
    return np.array([np.sin(angle), 0, -np.cos(angle)], np.float32)


def sample(i: int, degrees: float, group: str = "a", shape: tuple[int, int] = (12, 16)) -> DepthSample:
    normals = np.broadcast_to(tilted(degrees), (*shape, 3)).copy()
    normals[:2] = 0  # sky
    depth = np.ones(shape, np.float32)
    return DepthSample(
        f"{group}/{i}", group, np.full((*shape, 3), i, np.uint8), depth, depth > 0, normals=normals
    )


def turned(samples: list[DepthSample], degrees: float):
    """A predictor that is wrong by a known angle; images are told apart by their colour."""
    truth = {int(s.image[0, 0, 0]): s.normals for s in samples}

    def predict(images):
        results = []
        for image in images:
            normals = truth[int(image[0, 0, 0])]
            angle = np.arctan2(normals[..., 0], -normals[..., 2]) + np.radians(degrees)
            results.append(np.stack([np.sin(angle), 0 * angle, -np.cos(angle)], -1).astype(np.float32))
        return results

    return predict


def test_ratios_are_to_the_mean_map_on_the_same_images() -> None:
    samples = [sample(1, -40), sample(2, 0), sample(3, 10), sample(4, 50, "b")]
    mean_map = np.broadcast_to(tilted(20), (6, 8, 3))
    scores, panels = mini_normals.score(
        "x",
        samples,
        mean_map,
        turned(samples, 9),
        turned(samples, -6),
        refined_images=2,
        batch_size=3,
        rows=2,
    )
    result = mini_normals.compare(scores)
    assert result["mean_map"]["over_images"] == pytest.approx((60 + 20 + 10 + 30) / 4, abs=1e-3)
    assert result["mean_map"]["groups"] == pytest.approx({"a": 30, "b": 30}, abs=1e-3)
    # On one great circle every normal between the two middle ones has the least mean angle.
    assert result["constant"]["over_images"] == pytest.approx((50 + 10 + 0 + 40) / 4, abs=0.15)
    assert 0 <= np.degrees(np.arcsin(result["constant"]["normal"][0])) <= 10.2
    one, refined = result["one_step"], result["refined"]
    assert one["over_images"] == pytest.approx(9, abs=1e-3) and one["images"] == 4
    assert one["ratio"]["over_images"] == pytest.approx(9 / 30, abs=1e-4)
    assert refined["images"] == 2 and refined["over_images"] == pytest.approx(6, abs=1e-3)
    assert refined["ratio"]["over_images"] == pytest.approx(6 / 45, abs=1e-4), "images 1 and 4 only"
    assert refined["one_step"]["over_images"] == pytest.approx(9, abs=1e-3)
    assert one["reached"] == {"over_images": True, "over_groups": True}
    assert [title for title, _ in panels] == [
        *("1", "ground truth", "one step 9.0°", "refined 6.0°"),
        *("4", "ground truth", "one step 9.0°", "refined 6.0°"),
    ]
    assert "(one step there 9.00°), ratio 0.133" in mini_normals.summary("x", result)
    with pytest.raises(InputError):
        mini_normals.compare([])


def test_the_mean_normal_map_is_the_direction_of_the_sum() -> None:
    left, right = (np.broadcast_to(tilted(d), (2, 3, 3)).copy() for d in (-30, 90))
    left[0], right[0, 0] = 0, 0
    found = mini_normals.mean_normal_map([left, right])
    assert found[1] == pytest.approx(np.tile(tilted(30), (3, 1)), abs=1e-6)
    assert found[0, 1] == pytest.approx(tilted(90), abs=1e-6), "one map only"
    # (0, 0) has none: three of the left and five of the right together.
    assert found[0, 0] == pytest.approx(
        (3 * tilted(-30) + 5 * tilted(90)) / np.linalg.norm(3 * tilted(-30) + 5 * tilted(90)), abs=1e-6
    )
    larger = mini_normals.resized_normals(found, (7, 9))
    assert larger.shape == (7, 9, 3) and np.linalg.norm(larger, axis=-1) == pytest.approx(1)
    for maps in ([], [left, right[:1]], [0 * left]):
        with pytest.raises(InputError):
            mini_normals.mean_normal_map(maps)


def test_the_best_constant_is_the_direction_that_a_search_finds() -> None:
    rng = np.random.default_rng(0)
    scores = []
    for i in range(5):
        vectors = rng.normal((0.5, -1.5, -1), size=(200, 3))
        unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        scores.append(mini_normals.Score(str(i), "", 0, unit))
    from scipy.optimize import minimize

    def cost(v: np.ndarray) -> float:
        angles = [np.degrees(np.arccos(np.clip(s.normals @ (v / np.linalg.norm(v)), -1, 1))) for s in scores]
        return float(np.mean(angles))

    best = minimize(cost, [0.3, -0.8, -0.6], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
    normal, errors = mini_normals.best_constant_normal(scores)
    assert np.linalg.norm(normal) == pytest.approx(1)
    assert np.mean(list(errors.values())) == pytest.approx(best.fun, abs=0.02)


# Planes of depth ----------------------------------------------------------------------------------------

CAMERA = Intrinsics(70.0, 80.0, 30.0, 22.0, 64, 48)


def plane_depth(normal: np.ndarray, distance: float = 2.0) -> np.ndarray:
    v, u = np.mgrid[0:48, 0:64] + 0.5
    rays = np.stack([(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, np.ones_like(u)], -1)
    return -distance / (rays @ normal)


def test_a_plane_fit_returns_the_plane_and_averages_noise() -> None:
    normal = np.array([0.3, -0.4, -0.866])
    normal /= np.linalg.norm(normal)
    depth = plane_depth(normal)
    found = normals_by_plane_fit(depth, CAMERA, radius=3)
    inside = found[3:-3, 3:-3]
    assert inside == pytest.approx(np.broadcast_to(normal, inside.shape), abs=1e-5)
    assert not found[0, 0].any(), "a corner has a window of 16 of 49 pixels"
    noisy = 1 / (1 / depth + np.random.default_rng(1).normal(0, 5e-4, depth.shape))

    def error(normals: np.ndarray) -> float:
        return float(np.degrees(np.arccos(np.clip(normals[5:-5, 5:-5] @ normal, -1, 1))).mean())

    assert error(normals_by_plane_fit(noisy, CAMERA, radius=3)) < 0.2 * error(
        normals_from_depth(noisy, CAMERA)
    )


def test_where_no_plane_fits_there_is_no_normal() -> None:
    facing = np.array([0, 0, -1.0])
    depth = plane_depth(facing)
    depth[:, 32:] *= 1.5
    found = normals_by_plane_fit(depth, CAMERA, radius=3)
    assert not found[5:-5, 29:35].any(), "a depth edge in the window"
    assert found[5:-5, 5:28] == pytest.approx(np.broadcast_to(facing, (38, 23, 3)), abs=1e-5)
    sparse = np.indices(depth.shape).sum(axis=0) % 2 == 0  # a chessboard: half of every window
    assert not normals_by_plane_fit(plane_depth(facing), CAMERA, sparse, radius=3).any()
    half = np.random.default_rng(3).random(depth.shape) < 0.75
    some = normals_by_plane_fit(plane_depth(facing), CAMERA, half, radius=3)
    assert not some[~half].any() and some[10:-10, 10:-10][half[10:-10, 10:-10]].any(axis=-1).mean() > 0.9
    line = np.zeros(depth.shape, bool)
    line[20] = True
    assert not normals_by_plane_fit(plane_depth(facing), CAMERA, line, radius=2, min_share=0.1).any()
    for wrong in ({"radius": 0}, {"valid": half[:5]}):
        with pytest.raises(InputError):
            normals_by_plane_fit(depth, CAMERA, **wrong)


# Reports ------------------------------------------------------------------------------------------------


@pytest.fixture
def world(monkeypatch):
    import vision3d.synthetic

    def scene(seed: int, size: tuple[int, int]) -> SimpleNamespace:
        made = sample(seed % 200, seed % 60 - 30, shape=size)
        K = np.array([[size[1], 0, size[1] / 2], [0, size[1], size[0] / 2], [0, 0, 1.0]])
        return SimpleNamespace(
            image=made.image, depth=made.depth, normals=made.normals, K=K, kind="room", seed=seed
        )

    monkeypatch.setattr(vision3d.synthetic, "render_sample", scene)


def test_a_report_on_both_sets_leaves_sparse_depth_out(world, tmp_path: Path, monkeypatch, capsys) -> None:
    desk = tmp_path / "real" / "tum_desk"
    desk.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, share in ((1, 1.0), (2, 0.05)):
        metres = np.full((480, 640), 2.0) * (rng.random((480, 640)) < share)
        Image.fromarray(np.full((480, 640, 3), 250, np.uint8)).save(desk / f"{number}.png")
        Image.fromarray(np.round(metres * 5000).astype(np.uint16)).save(desk / f"{number}_depth.png")

    def facing(images):
        return [np.broadcast_to(tilted(0), image.shape) for image in images]

    monkeypatch.setattr(mini_normals, "_predictors", lambda *a: (facing, None, {"name": "facing"}))
    out = tmp_path / "report.json"
    arguments = f"--out {out} --weights {tmp_path} --real {desk.parent} --seeds 900300000 900300020"
    rest = "--training-scenes 11 --render-size 16 --batch-size 3"
    assert mini_normals.run([*arguments.split(), *rest.split()]) == 0
    report = json.loads(out.read_text())
    real = report["real"]
    assert real["images"] == 1 and real["skipped"] == ["tum_desk/2"]
    assert real["one_step"]["over_images"] == pytest.approx(0, abs=0.01)
    assert real["mean_map"]["over_images"] == pytest.approx(25, abs=0.1)  # mean of -30 … -20 degrees
    tilts = [(900300000 + i) % 60 - 30 for i in range(20)]
    one = report["procedural"]["one_step"]
    assert one["over_images"] == pytest.approx(np.mean(np.abs(tilts)), abs=0.01)
    assert "refined" not in report["procedural"] and report["weights"] == {"name": "facing"}
    # Cells have the first image's size, 16 pixels; six procedural rows and one real one.
    assert Image.open(out.with_suffix(".png")).size == (3 * 24 - 8, 7 * (16 + 22 + 8) - 8)
    assert "1 images (1 with depth too sparse" in capsys.readouterr().err


def test_the_fixed_answers_alone_are_a_report(world, tmp_path: Path, capsys) -> None:
    out = tmp_path / "report.json"
    arguments = ["--seeds", "900300000", "900300004", "--training-scenes", "3", "--render-size", "16"]
    assert mini_normals.run(["--out", str(out), *arguments]) == 0
    assert set(json.loads(out.read_text())["procedural"]) == {"images", "goal", "mean_map", "constant"}
    assert not out.with_suffix(".png").exists()
    capsys.readouterr()
    for wrong in (
        ["--out", str(tmp_path / "report.txt")],
        ["--out", str(out), "--no-procedural"],
        ["--out", str(out), "--batch-size", "0"],
        ["--out", str(out), "--refined-images", "-1"],
        ["--out", str(out), "--seeds", "5", "9"],
    ):
        assert mini_normals.run(wrong) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
