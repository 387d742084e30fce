"""A person's own photographs with labels beside them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from vision3d import cli
from vision3d.errors import InputError
from vision3d.training.data import open_source
from vision3d.training.pictures import FLOOR, NEAREST, PictureFolder

SIZE = (90, 120)


def photo(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, size[::-1]))
    return path


def ramp(size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.linspace(1, 4, size[0] * size[1], dtype=np.float32).reshape(size)


def test_every_kind_of_label_is_read(tmp_path):
    metres = ramp().astype(np.float64)
    metres[0, :3] = np.nan, 0, np.inf
    np.save(photo(tmp_path / "a.jpg").with_name("a_depth.npy"), metres)
    (tmp_path / "a.txt").write_text("a red\n kitchen ")
    photo(tmp_path / "deeper" / "b.png")
    cv2.imwrite(str(tmp_path / "deeper" / "b_depth.png"), np.full(SIZE, 2500, np.uint16))
    inverse = ramp()
    inverse[5] = np.nan
    np.save(photo(tmp_path / "c.png").with_name("c_inverse.npy"), inverse)
    normals = np.zeros((*SIZE, 3), np.float32)
    normals[..., 2] = -1
    np.save(photo(tmp_path / "d.png").with_name("d_normals.npy"), normals)
    cv2.imwrite(str(tmp_path / "d_classes.png"), np.full(SIZE, 7, np.uint8))
    photo(tmp_path / "unlabelled.png")

    source = PictureFolder(tmp_path, ("image", "depth"))
    a, c, b = (source[i] for i in range(len(source)))
    assert [path.name for path in source.files] == ["a.jpg", "c.png", "b.png"]
    assert a.depth[0, :3].tolist() == [0, 0, np.inf] and a.depth[1, 0] == pytest.approx(metres[1, 0])
    assert a.caption == source.caption(0) == "a red kitchen" and b.caption == ""
    assert (b.depth == 2.5).all() and (b.normals == 0).all() and (b.semantic == 255).all()
    assert (c.depth[5] == 0).all() and c.depth[0, 0] == pytest.approx(NEAREST / FLOOR)
    assert c.depth[-1, -1] == pytest.approx(NEAREST / (1 + FLOOR))
    (d,) = (sample for sample in PictureFolder(tmp_path, ("image", "normals")))
    assert (d.normals == [0, 0, -1]).all() and (d.semantic == 7).all()
    assert len(PictureFolder(tmp_path, ("image",))) == 5
    described = source.describe()
    assert described["samples"] == 3 and str(tmp_path) not in json.dumps(described)
    (tmp_path / "a.txt").unlink()
    assert source.describe() == described
    np.save(tmp_path / "a_depth.npy", metres[:-1])
    assert source.describe() != described


def test_a_photograph_takes_the_size_of_its_labels(tmp_path):
    np.save(photo(tmp_path / "a.png", (180, 240)).with_name("a_depth.npy"), ramp())
    assert PictureFolder(tmp_path, ("depth",))[0].image.shape == (*SIZE, 3)


@pytest.mark.parametrize(
    ("name", "label", "words"),
    [
        ("a_depth.npy", ramp((90, 90)), "is 120x90, its labels 90x90"),
        ("a_depth.npy", ramp()[None], r"shape \(1, 90, 120\)"),
        ("a_depth.npy", ramp().astype(np.int32), "int32"),
        ("a_depth.npy", np.array([{}]), "cannot be read"),
        ("a_depth.png", np.zeros(SIZE, np.uint8), "not a 16-bit grey picture"),
        ("a_normals.npy", ramp(), r"give \(H, W, 3\)"),
    ],
)
def test_labels_that_do_not_fit_are_named(tmp_path, name, label, words):
    photo(tmp_path / "a.png")
    if name.endswith("npy"):
        np.save(tmp_path / name, label)
    else:
        cv2.imwrite(str(tmp_path / name), label)
    sample = PictureFolder(tmp_path, ("depth", "normals"))[0]
    with pytest.raises(InputError, match=words):
        [getattr(sample, name) for name in ("image", "depth", "normals")]


def test_only_what_is_wanted_is_read(tmp_path):
    photo(tmp_path / "a.png", (180, 240))
    np.save(tmp_path / "a_depth.npy", ramp())
    normals = np.zeros((45, 60, 3), np.float32)
    np.save(tmp_path / "a_normals.npy", normals)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    assert PictureFolder(tmp_path, ("image",))[0].image.shape == (180, 240, 3)
    assert PictureFolder(tmp_path, ("image", "normals"))[0].image.shape == (45, 60, 3)
    sample = PictureFolder(tmp_path, ("image", "depth"))[0]
    assert sample.depth.shape == SIZE
    with pytest.raises(InputError, match="60x45"):
        _ = sample.normals
    with pytest.raises(InputError, match="UTF-8"):
        _ = sample.caption


def test_hidden_files_and_galleries_are_no_photographs(tmp_path):
    photo(tmp_path / "._a.png")
    photo(tmp_path / ".cache" / "b.png")
    (tmp_path / "folder.png").mkdir()
    assert len(PictureFolder(tmp_path, ("image",))) == 0
    photo(tmp_path / "gallery" / "000001" / "image.png")
    (tmp_path / "gallery" / "000001" / "sample.json").write_text("{}")
    with pytest.raises(InputError, match="--shards"):
        PictureFolder(tmp_path / "gallery", ("image",))


def test_inverse_depth_without_a_unit_does_not_count_as_metres(tmp_path):
    from vision3d.training.losses import aligned_absrel, inverse_depth

    np.save(photo(tmp_path / "a.png").with_name("a_inverse.npy"), ramp())
    depth = torch.from_numpy(PictureFolder(tmp_path, ("depth",))[0].depth)[None]
    inverse, valid = inverse_depth(depth, "far")
    assert valid.all() and inverse.unique().numel() > 1000
    prediction = torch.randn(inverse.shape, requires_grad=True)
    loss = aligned_absrel(prediction, inverse, valid)
    loss.backward()
    assert loss == 0 and (prediction.grad == 0).all()


def test_tasks_that_need_more_refuse_photographs(tmp_path):
    np.save(photo(tmp_path / "a.png").with_name("a_depth.npy"), ramp())
    with pytest.raises(InputError, match="holds photographs, where this task needs rendered scenes"):
        open_source(tmp_path)
    assert len(open_source(tmp_path, pictures=("depth",))) == 1
    (tmp_path / "a_depth.npy").unlink()
    with pytest.raises(InputError, match="holds no samples"):
        open_source(tmp_path, pictures=("depth",))


def test_depth_is_trained_on_photographs(tmp_path):
    for i in range(3):
        np.save(photo(tmp_path / f"{i}.png", seed=i).with_name(f"{i}_inverse.npy"), ramp())
    words = ["train", "primedepth", "--preset", "mini-askew", "--init", "mini", "--batch-size", "2"]
    words += ["--data", str(tmp_path), "--out", str(tmp_path / "run"), "--steps", "2", "--device", "cpu"]
    assert cli.main([*words, "--quiet"]) == 0
    record = json.loads((tmp_path / "run" / "weights" / "training.json").read_text())
    assert record["description"]["data"]["source"] == "photographs"


def test_the_published_sizes_name_their_lengths():
    from vision3d.pipelines.primedepth.training import PRESETS
    from vision3d.pipelines.stablenormal.training import PRESETS as NORMALS
    from vision3d.training.dense import recipe_settings

    assert recipe_settings(PRESETS["full-pseudo"])["steps"] == 100_000
    assert recipe_settings(PRESETS["full-synthetic"])["steps"] == 25_000
    assert "steps" not in recipe_settings(PRESETS["mini"])
    assert not any("steps" in recipe_settings(recipe) for recipe in NORMALS.values())
