"""Comparison of cameras and metric depth with constant answers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.evaluation import mini_camera
from vision3d.evaluation.datasets.base import DepthSample


def sample(i: int, fov: float, metres: float, group: str = "a") -> DepthSample:
    depth = np.full((24, 32), metres, np.float32)
    image = np.full((24, 32, 3), i, np.uint8)
    return DepthSample(f"{group}/{i}", group, image, depth, depth > 0, Intrinsics.from_fov(fov, 32, 24))


class HalfRight:
    """Halves the distance of the field of view to 60°, and predicts 1.5 times the depth of image number i."""

    depth_unet = object()

    def __init__(self, samples: list[DepthSample]) -> None:
        self.samples = {int(s.image[0, 0, 0]): s for s in samples}

    def __call__(self, photo):
        truth = self.samples[int(photo.rgb8[0, 0, 0])].camera
        assert truth is not None
        return SimpleNamespace(intrinsics=Intrinsics.from_fov((truth.fov_x + 60) / 2, 32, 24))

    def depth(self, photo, camera):
        return SimpleNamespace(depth=1.5 * self.samples[int(photo.rgb8[0, 0, 0])].depth)


def test_ratios_are_to_the_constant_answers() -> None:
    samples = [sample(1, 40, 2.0), sample(2, 60, 4.0), sample(3, 90, 8.0, "b"), sample(4, 100, 8.0, "b")]
    model = HalfRight(samples)
    result = mini_camera.compare([mini_camera.score(s, model) for s in samples], 60.0)
    assert result["fov"]["constant"]["over_images"] == pytest.approx(25)  # median of 20, 0, 30, 40
    assert result["fov"]["model_ratio"]["over_images"] == pytest.approx(0.5)
    assert result["fov"]["constant"]["groups"] == pytest.approx({"a": 10, "b": 35})
    grid = np.linspace(0.5, 10, 4000)
    best = min(np.mean([abs(c / d - 1) for d in (2, 4, 8, 8)]) for c in grid)
    assert result["depth"]["constant"]["over_images"] == pytest.approx(best, rel=0.01)
    by_groups = min(np.mean([(abs(c / 2 - 1) + abs(c / 4 - 1)) / 2, abs(c / 8 - 1)]) for c in grid)
    assert result["depth"]["constant"]["over_groups"] == pytest.approx(by_groups, rel=0.01)
    more = [*samples[1:], sample(5, 100, 8.0, "b")]
    other = mini_camera.compare([mini_camera.score(s) for s in more], 60.0)["depth"]
    assert other["best_constant_metres"]["over_images"] == pytest.approx(8, rel=0.02)
    assert other["best_constant_metres"]["over_groups"] == pytest.approx(4, rel=0.02)
    assert other["constant"]["over_images"] == pytest.approx(1 / 4, rel=0.05)
    assert other["constant"]["over_groups"] == pytest.approx(1 / 4, rel=0.05)
    assert result["depth"]["model"]["over_images"] == pytest.approx(0.5)
    assert "ratio" in mini_camera.summary("x", result)
    focal = [np.tan(np.radians(f) / 2) / np.tan(np.radians((f + 60) / 2) / 2) - 1 for f in (40, 60, 90, 100)]
    assert result["e_f"]["over_images"] == pytest.approx(np.mean(np.abs(focal)))
    assert result["e_b"]["over_images"] == 0


def test_the_published_errors_of_a_camera_are_those_of_its_worse_axis() -> None:
    truth = Intrinsics(100, 80, 32, 24, 64, 48)
    assert mini_camera.camera_errors(Intrinsics(110, 100, 36, 25, 64, 48), truth) == pytest.approx(
        (0.25, 0.125)
    )


def test_the_constants_alone_are_a_report(tmp_path: Path, monkeypatch) -> None:
    import vision3d.synthetic

    def scene(seed: int, size: tuple[int, int]) -> SimpleNamespace:
        s = sample(seed % 200, 40 + seed % 50, 1.0 + seed % 7)
        assert s.camera is not None
        return SimpleNamespace(image=s.image, depth=s.depth, K=s.camera.K, kind="room", seed=seed)

    monkeypatch.setattr(vision3d.synthetic, "render_sample", scene)
    out = tmp_path / "report.json"
    arguments = ["--out", str(out), "--seeds", "900300000", "900300020", "--training-scenes", "11"]
    assert mini_camera.run(arguments) == 0
    report = json.loads(out.read_text())
    assert report["procedural"]["images"] == 20 and report["training_median_fov"] == pytest.approx(
        45, abs=1e-6
    )
    assert "model" not in report["procedural"]["fov"]
    assert mini_camera.run(["--out", str(tmp_path / "report.txt")]) == 2


def test_real_photographs_with_calibration_only(shared: Path) -> None:
    found = [s for s in mini_camera.real_samples(shared / "data") if s.group == "dsine_office"]
    assert len(found) == 4 and all(s.camera is not None and not s.valid.any() for s in found)
    scores = [mini_camera.score(s) for s in found]
    assert all(30 < s.fov < 100 and not len(s.depth) for s in scores)
    with pytest.raises(InputError):
        mini_camera.compare([], 60)
