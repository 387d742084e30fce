"""``vision3d depth`` from the command line, with the embedded weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from vision3d.cli import main
from vision3d.weights import MINI

FILES = {"depth.npy", "depth.png", "preview.png", "points.ply", "mesh.glb", "result.json"}


def small_picture(path: Path, size: tuple[int, int] = (64, 48), mode: str = "RGB", **options: object) -> Path:
    coarse = np.random.default_rng(len(path.name)).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path, **options)
    return path


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_photograph_becomes_all_the_files(tmp_path: Path, example_photo: Path, capsys) -> None:
    code, out, _ = run(
        "depth", example_photo, "--out", tmp_path, "--formats", "npz", "obj", "exr", "--json", capsys=capsys
    )
    assert code == 0
    folder = tmp_path / "desk"
    names = {path.name for path in folder.iterdir()}
    assert names >= FILES | {"depth.npz", "depth.exr", "mesh.obj"}
    assert json.loads(out)["done"] == 1
    depth = np.load(folder / "depth.npy")
    assert depth.shape == (480, 640) and depth.dtype == np.float32
    record = json.loads((folder / "result.json").read_text())
    assert "mini" in json.dumps(record) and "affine-invariant inverse depth" in json.dumps(record)
    import trimesh

    scene = trimesh.load(folder / "mesh.glb")
    assert sum(len(g.faces) for g in scene.geometry.values()) > 10_000


def test_the_mini_weights_order_the_desk_roughly(
    tmp_path: Path,
    example_photo: Path,
    capsys,
) -> None:
    assert run("depth", example_photo, "--out", tmp_path, "--quiet", capsys=capsys)[0] == 0
    inverse = np.load(tmp_path / "desk" / "depth.npy").astype(np.float64)
    stored = np.asarray(Image.open(example_photo.with_name("desk_depth.png")))
    valid = stored > 0
    truth = 5000.0 / stored[valid]
    assert np.corrcoef(inverse[valid], truth)[0, 1] > 0.4  # soft outlines so far


def test_a_second_run_skips_and_another_setting_does_not(tmp_path: Path, capsys) -> None:
    photo = small_picture(tmp_path / "a.png")
    out = tmp_path / "out"
    assert json.loads(run("depth", photo, "--out", out, "--json", capsys=capsys)[1])["done"] == 1
    before = (out / "a" / "depth.npy").read_bytes()
    assert json.loads(run("depth", photo, "--out", out, "--json", capsys=capsys)[1])["skipped"] == 1
    (out / "a" / "depth.npy").write_bytes(before[:-4])
    assert json.loads(run("depth", photo, "--out", out, "--json", capsys=capsys)[1])["done"] == 1
    assert (out / "a" / "depth.npy").read_bytes() == before
    assert (
        json.loads(run("depth", photo, "--out", out, "--json", "--seed", "3", capsys=capsys)[1])["done"] == 1
    )


def test_a_folder_goes_on_after_bad_files_and_reports(tmp_path: Path, capsys) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    small_picture(photos / "1.png")
    (photos / "2.png").write_bytes(b"")
    (photos / "3.jpg").write_bytes(b"\xff\xd8\xff\xe0 nonsense")
    small_picture(photos / "4.png", mode="L")
    small_picture(photos / "5.jpg", mode="CMYK")
    small_picture(photos / "6.png", mode="RGBA")
    deep = np.random.default_rng(0).integers(0, 65535, (48, 64), dtype=np.uint16)
    Image.fromarray(deep).save(photos / "7.png")
    code, out, _ = run("depth", photos, "--out", tmp_path / "out", "--json", capsys=capsys)
    report = json.loads(out)
    assert code == 2 and report["done"] == 5 and len(report["failed"]) == 2
    assert {Path(f["input"]).name for f in report["failed"]} == {"2.png", "3.jpg"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"1", "4", "5", "6", "7"}


def test_a_cut_off_jpeg_is_processed_with_a_warning(tmp_path: Path, capsys) -> None:
    photo = small_picture(tmp_path / "cut.jpg", size=(320, 240), quality=95)
    photo.write_bytes(photo.read_bytes()[: photo.stat().st_size * 2 // 3])
    code, _, err = run("depth", photo, "--out", tmp_path / "out", capsys=capsys)
    assert code == 0 and "cut" in err and (tmp_path / "out" / "cut" / "result.json").is_file()


def bad_inputs(folder: Path) -> dict[str, tuple[list[object], str]]:
    (folder / "text.jpg").write_text("this is no image")
    (folder / "zero.png").write_bytes(b"")
    (folder / "header.png").write_bytes(small_picture(folder / "ok.png").read_bytes()[:20])
    small_picture(folder / "dot.png", size=(1, 1))
    small_picture(folder / "line.png", size=(10000, 1))
    (folder / "empty").mkdir()
    np.save(folder / "x.npy", np.zeros(3))
    file = folder / "a_file"
    file.write_text("in the way")
    ok = folder / "ok.png"
    foreign = folder / "foreign.safetensors"
    save_file({"blocks.0.weight": torch.ones(2, 2)}, foreign)
    broken = folder / "nan"
    import shutil

    shutil.copytree(MINI / "primedepth", broken)
    weights = broken / "depth_head" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["decoder.conv_out.bias"][:] = torch.nan
    save_file(tensors, weights)

    class Code:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {folder / 'executed'}",)

    pickled = folder / "pickled.ckpt"
    torch.save({"state_dict": {"labeller.x": Code()}}, pickled)
    return {
        "not an image": ([folder / "text.jpg"], "text.jpg"),
        "zero bytes": ([folder / "zero.png"], "zero.png"),
        "truncated header": ([folder / "header.png"], "header.png"),
        "1x1": ([folder / "dot.png"], "1"),
        "1x10000": ([folder / "line.png"], "10000"),
        "empty folder": ([folder / "empty"], "empty"),
        "missing file": ([folder / "nowhere.jpg"], "nowhere.jpg"),
        "unwritable output": ([ok, "--out", file / "out"], "a_file"),
        "another model": ([ok, "--weights", foreign], "foreign.safetensors"),
        "NaN weights": ([ok, "--weights", broken], "NaN"),
        "pickled code": ([ok, "--weights", pickled], "pickled code"),
        "no weights": ([ok, "--weights", folder / "none.ckpt"], "none.ckpt"),
        "bad size": ([ok, "--max-size", "3"], "max_size"),
        "bad memory": ([ok, "--memory", "much"], "much"),
    }


def test_each_bad_input_is_one_clear_line_and_nothing_is_written(tmp_path: Path, capsys) -> None:
    cases = bad_inputs(tmp_path)
    for what, (arguments, words) in cases.items():
        out = tmp_path / "out"
        extra = [] if "--out" in arguments else ["--out", out]
        code, _, err = run("depth", *arguments, *extra, "--quiet", capsys=capsys)
        lines = [line for line in err.splitlines() if line.strip()]
        assert code == 2, f"{what}: exit {code}"
        assert len(lines) == 1 and words in lines[0], f"{what}: {err!r}"
        assert not out.exists() or not any(out.iterdir()), what
    assert not (tmp_path / "executed").exists()


def test_the_command_works_outside_the_checkout(tmp_path: Path) -> None:
    photo = small_picture(tmp_path / "a.png")
    command = [
        sys.executable,
        "-m",
        "vision3d",
        "depth",
        str(photo),
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "out" / "a").iterdir()} == FILES
