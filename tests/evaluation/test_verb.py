from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vision3d.cli import main
from vision3d.prediction import Provenance
from vision3d.results import DepthPrediction


@pytest.fixture
def desk(tmp_path):
    folder = tmp_path / "data" / "tum_desk"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in (1, 2):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        depth = rng.integers(5000, 20000, (48, 64)).astype(np.uint16)
        Image.fromarray(depth).save(folder / f"{number}_depth.png")
    return folder.parent


@pytest.fixture
def pipeline(monkeypatch):
    """Stands in for PrimeDepth: inverse depth is the image's grey."""
    import vision3d.pipelines.primedepth as package

    seen = []

    class Grey:
        @classmethod
        def from_pretrained(cls, weights, **options):
            seen.append((weights, options))
            return cls()

        def __call__(self, images, *, batch_size):
            seen.append([image.shape for image in images])
            space = "affine-invariant inverse depth"
            return [DepthPrediction(i.mean(-1), space, provenance=Provenance("grey", "none")) for i in images]

    monkeypatch.setattr(package, "PrimeDepth", Grey)
    return seen


def test_evaluate_prints_the_table_and_writes_the_files(desk, pipeline, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["evaluate", "depth", "--dataset", "samples", "--root", str(desk), "--out", str(out)]
    assert main([*command, "--weights", "some", "--size", "32", "--batch-size", "2"]) == 0
    assert "| samples | images | AbsRel %" in capsys.readouterr().out
    assert pipeline[0] == ("some", {"device": "auto"})
    assert (24, 32, 3) in pipeline[1]
    assert {p.name for p in out.iterdir()} == {
        "per_image.csv", "per_image.jsonl", "previews.png", "report.json", "table.md",
    }  # fmt: skip


def test_scores_of_another_folder_are_not_reused(desk, pipeline, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(desk, other)
    deeper = 25000 - np.asarray(Image.open(other / "tum_desk" / "1_depth.png"))
    Image.fromarray(deeper.astype(np.uint16)).save(other / "tum_desk" / "1_depth.png")

    def report(root, out):
        command = [
            "evaluate",
            "depth",
            "--dataset",
            "samples",
            "--root",
            str(root),
            "--out",
            str(tmp_path / out),
        ]
        assert main(command) == 0
        return (tmp_path / out / "report.json").read_text()

    first, fresh = report(desk, "out"), report(other, "fresh")
    assert report(other, "out") == fresh != first


def test_evaluate_as_json_on_a_limited_number(desk, pipeline, tmp_path, capsys):
    command = ["evaluate", "depth", "--dataset", "samples", "--root", str(desk), "--out", str(tmp_path / "o")]
    assert main([*command, "--limit", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 1 and report["dataset"] == "samples"
    assert set(report["average"]) >= {"abs_rel", "delta1", "silog"}


@pytest.mark.parametrize("root", ["missing", "data/tum_desk"])
def test_evaluate_on_a_wrong_folder_is_one_line_and_writes_nothing(desk, pipeline, tmp_path, capsys, root):
    command = ["evaluate", "depth", "--dataset", "samples", "--root", str(tmp_path / root)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists() and not pipeline


def test_help_does_not_import_heavy_packages():
    code = (
        "import sys; from vision3d.cli import main; main(['evaluate', '--help']); "
        "print({'torch', 'numpy', 'cv2', 'diffusers'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--published-fit" in done.stdout and done.stderr.strip() == "set()"
