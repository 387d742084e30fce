"""``vision3d match`` and ``vision3d swap`` from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision3d.cli import main
from vision3d.io.photo import Photo
from vision3d.pipelines.sd_dino.options import MatchOptions
from vision3d.pipelines.sd_dino.verb import GeometricPairs, Networks


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISION3D_HOME", str(tmp_path / "home"))


@pytest.fixture
def photos(tmp_path: Path, picture: np.ndarray) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, image in (("one", picture), ("two", picture[:, ::-1]), ("three", 255 - picture)):
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_pair_becomes_all_the_files_and_is_then_skipped(
    photos: Path, sd_dino_folder: Path, tmp_path: Path, capsys
) -> None:
    command = (
        "match",
        photos / "one.png",
        photos / "two.png",
        "--out",
        tmp_path / "out",
        "--weights",
        sd_dino_folder,
    )
    code, out, _ = run(*command, "--dense", "--json", capsys=capsys)
    assert code == 0 and json.loads(out)["done"] == 1
    folder = tmp_path / "out" / "one__two"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"matches.npz", "matches.csv", "preview.png", "flow_ab.flo", "flow_ba.flo", "result.json"}
    assert json.loads(run(*command, "--dense", "--json", capsys=capsys)[1])["skipped"] == 1
    assert json.loads(run(*command, "--points", "12,13", "--json", capsys=capsys)[1])["done"] == 1
    assert not (folder / "flow_ab.flo").exists()
    rows = list(csv.DictReader((folder / "matches.csv").open()))
    assert [(r["x_a"], r["y_a"]) for r in rows] == [("12.000", "13.000")]


def test_folders_are_matched_all_with_all_each_image_encoded_once(
    photos: Path, sd_dino_folder: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vision3d.pipelines.sd_dino import SDDino

    encoded: list[str] = []
    compute = SDDino._compute_taps

    def counting(self, photo, *others):
        encoded.append(photo.name)
        return compute(self, photo, *others)

    monkeypatch.setattr(SDDino, "_compute_taps", counting)
    (photos / "broken.png").write_bytes(b"no picture")
    code, out, err = run(
        "match", photos, photos, "--out", tmp_path / "out", "--weights", sd_dino_folder, "--rank", "--json",
        capsys=capsys,
    )  # fmt: skip
    report = json.loads(out)
    assert code == 2 and report["done"] == 3 and len(report["failed"]) == 3 and "broken.png" in err
    assert sorted(encoded) == ["one", "three", "two"]
    ranking = list(csv.DictReader((tmp_path / "out" / "ranking.csv").open()))
    assert len(ranking) == 3


def test_a_projection_for_the_data_set_and_no_cache(
    photos: Path, sd_dino_folder: Path, tmp_path: Path, capsys
) -> None:
    code, _, _ = run(
        "match", photos / "one.png", photos, "--out", tmp_path / "out", "--weights", sd_dino_folder,
        "--projection", "dataset", "--no-cache", "--quiet", capsys=capsys,
    )  # fmt: skip
    assert code == 0 and not (tmp_path / "home" / "features").exists()
    with np.load(tmp_path / "out" / "one__one" / "matches.npz") as arrays:
        assert np.abs(arrays["points_a"] - arrays["points_b"]).max() < 8


def test_a_projection_for_the_data_set_is_of_all_images_that_can_be_read(
    photos: Path, sd_dino_folder: Path, tmp_path: Path, capsys
) -> None:
    (photos / "broken.png").write_bytes(b"no picture")
    command = (
        "match", photos / "one.png", photos, "--out", tmp_path / "out", "--weights", sd_dino_folder,
        "--projection", "dataset", "--json",
    )  # fmt: skip
    reports = [json.loads(run(*command, capsys=capsys)[1]) for _ in range(2)]
    assert [(r["done"], r["skipped"], len(r["failed"])) for r in reports] == [(3, 0, 1), (0, 3, 1)]
    assert "broken.png" in reports[0]["failed"][0]["input"]
    Image.open(photos / "three.png").rotate(90).save(photos / "four.png")
    again = json.loads(run(*command, capsys=capsys)[1])
    assert again["done"] == 4, "another image, another basis"


def test_results_of_other_weights_or_precision_are_not_taken_for_finished(
    sd_dino_folder: Path, tmp_path: Path, picture: np.ndarray
) -> None:
    captioner, clip, loftr = (
        tmp_path / name for name in ("captioner.pth", "clip/model.safetensors", "f.ckpt")
    )
    clip.parent.mkdir()
    for file in (captioner, clip, loftr):
        file.write_bytes(b"one")

    def mark(**more: str) -> str:
        net = Networks(**{"weights": str(sd_dino_folder), "device": "cpu", **more})  # type: ignore[arg-type]
        return net.provenance(MatchOptions(), net.plan("sd+dino")).fingerprint(None)

    def geometric() -> str:
        pairs = GeometricPairs("loftr", str(loftr), "cpu", MatchOptions(), (None, None), None, {})
        return pairs.fingerprint(Photo(picture))

    captions = {"captioner": str(captioner), "clip": str(clip.parent)}
    marks = [mark(), mark(dtype="bf16"), mark(**captions), geometric()]
    assert mark() == mark(dtype="fp32", device="cpu") == marks[0]
    for file in (captioner, clip, loftr):
        file.write_bytes(b"other")
        marks += [mark(**captions), geometric()]
    assert len(set(marks)) == 4 + 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--points", "1;2"), "x,y"),
        (("--points", "900,2"), "outside"),
        (("--mask-a", "none.png"), "none.png"),
        (("--weights", "nowhere"), "no such weights"),
        (("--conditioning", "text"), "--prompt"),
        (("--geometric", "loftr", "--geometric-weights", "none.ckpt"), "not on this machine"),
        (("--geometric", "lightglue"), "not on this machine"),
        (("--geometric", "loftr", "--dense"), "dense"),
        (("--min-confidence", "3"), "min_confidence"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    photos: Path, sd_dino_folder: Path, tmp_path: Path, capsys, more: tuple[str, ...], message: str
) -> None:
    weights = () if "--weights" in more else ("--weights", sd_dino_folder)
    code, _, err = run(
        "match",
        photos / "one.png",
        photos / "two.png",
        "--out",
        tmp_path / "out",
        *weights,
        *more,
        capsys=capsys,
    )
    lines = [line for line in err.splitlines() if not line.startswith(("SD+DINO weights:", "pairs:"))]
    assert code == 2 and len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "out").exists()


def test_swap_takes_masks_as_pictures_or_transparency(
    photos: Path, sd_dino_folder: Path, tmp_path: Path, picture: np.ndarray, capsys
) -> None:
    mask = np.zeros(picture.shape[:2], np.uint8)
    mask[20:60, 30:70] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(np.dstack([255 - picture, mask])).save(tmp_path / "cut.png")
    command = ("swap", photos / "one.png", tmp_path / "cut.png", "--out", tmp_path / "out")
    code, _, err = run(
        *command, "--weights", sd_dino_folder, "--mask-a", tmp_path / "mask.png", capsys=capsys
    )
    assert code == 0, err
    swapped = np.asarray(Image.open(tmp_path / "out" / "one__cut" / "swap.png"))
    assert np.array_equal(swapped[mask == 0], picture[mask == 0])
    assert not np.array_equal(swapped[mask > 0], picture[mask > 0])
    code, _, err = run(*command, "--weights", sd_dino_folder, capsys=capsys)
    assert code == 2 and "rembg" in err
    small = tmp_path / "small.png"
    Image.fromarray(mask[:30]).save(small)
    code, _, err = run(*command, "--weights", sd_dino_folder, "--mask-a", small, capsys=capsys)
    assert code == 2 and "96×30" in err
