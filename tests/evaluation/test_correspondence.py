"""PCK on cases counted by hand, flow errors, and the official layouts of the correspondence data sets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vision3d.errors import InputError
from vision3d.evaluation.correspondence import PCK, PairErrors, flow_errors, smoothness
from vision3d.evaluation.datasets.correspondence import SPAIR_PAIRS, PFPascal, SPair71k
from vision3d.evaluation.datasets.tss import TSS
from vision3d.io.flow import write_flo


def test_the_four_conventions_by_hand() -> None:
    """Two pairs: 1 of 4 and 1 of 1 within the box's limit, 2 of 4 and 0... of the image's."""
    pairs = [
        PairErrors(
            "cat", np.array([0.5, 1.0, 3.0, 30.0]), box=10.0, image=20.0
        ),  # limits 1 and 2, strictly below
        PairErrors("dog", np.array([4.0]), box=50.0, image=30.0),  # limits 5 and 3
    ]
    scores = PCK(pairs, (0.1,))
    assert scores.of("per_point_bbox").tolist() == [2 / 5]
    assert scores.of("per_image_bbox").tolist() == [(1 / 4 + 1) / 2]
    assert scores.of("per_point_image").tolist() == [2 / 5]
    assert scores.of("per_image_image").tolist() == [(2 / 4 + 0) / 2]
    table = scores.table({"cat": 3, "dog": 1})
    assert table["per_point_bbox"]["mean_of_categories"] == [(1 / 4 + 1) / 2]
    assert table["per_point_bbox"]["weighted_by_pairs"] == [(3 * 1 / 4 + 1) / 4]
    assert table["per_point_bbox"]["categories"] == {"cat": [0.25], "dog": [1.0]}


def test_sets_without_boxes_have_no_box_convention() -> None:
    table = PCK([PairErrors("cat", np.array([1.0]), float("nan"), 100.0)]).table()
    assert "per_point_image" in table and "per_point_bbox" not in table


def test_flow_errors_by_hand() -> None:
    truth = np.zeros((2, 3, 2))
    flow = truth.copy()
    flow[0, 0] = (3, 4)  # error 5
    flow[0, 1] = (0, 1)
    mask = np.array([[True, True, False], [True, False, False]])
    found = flow_errors(flow, truth, mask, length=10, alphas=(0.1, 0.5))
    assert found.aepe == 2.0
    assert found.pck == (2 / 3, 1.0)  # at most alpha times the length
    assert found.true_smoothness == 0
    column = np.zeros((2, 2, 2))
    column[:, 1] = 1  # one step of 1 in both components and both rows
    assert smoothness(column, np.ones((2, 2), bool)) == 4 / 4


def spair(folder: Path, boxes: bool = True) -> Path:
    root = folder / "SPair-71k"
    (root / "JPEGImages" / "cat").mkdir(parents=True)
    (root / "PairAnnotation" / "test").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a", (96, 72)), ("b", (60, 90))):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(root / "JPEGImages" / "cat" / f"{name}.jpg")
    for i, (source, target) in enumerate((("a", "b"), ("b", "a"), ("a", "a"))):
        sizes = {"a": [96, 72, 3], "b": [60, 90, 3]}
        points = [[10, 20], [40, 50], [59, 71]] if source == "a" else [[10, 20], [40, 50], [55, 60]]
        content = {
            "category": "cat", "src_imname": f"{source}.jpg", "trg_imname": f"{target}.jpg",
            "src_imsize": sizes[source], "trg_imsize": sizes[target], "src_bndbox": [5, 5, 50, 60],
            "trg_bndbox": [5, 5, 45, 65], "kps_ids": ["0", "3", "4"], "src_kps": points, "trg_kps": points,
        }  # fmt: skip
        (root / "PairAnnotation" / "test" / f"00000{i}-{source}-{target}:cat.json").write_text(
            json.dumps(content)
        )
    return root


def test_spair_is_read_in_its_layout(tmp_path: Path) -> None:
    root = spair(tmp_path)
    reader = SPair71k(tmp_path)
    assert len(reader) == 3 and reader.categories == ["cat"] and sum(SPAIR_PAIRS.values()) == 12_234
    pair = reader[1]
    assert pair.source_size == (90, 60) and pair.target_box == (5, 5, 45, 65) and pair.ids == ("0", "3", "4")
    assert len(reader.sampled(5)) == 5 and len(reader.sampled(0)) == 3
    (root / "PairAnnotation" / "test" / "000009-x-y:cat.json").write_text("{}")
    with pytest.raises(InputError, match="000009"):
        SPair71k(root)
    with pytest.raises(InputError, match="SPair-71k"):
        SPair71k(root, split="trn")


def test_pf_pascal_is_read_in_its_layout(tmp_path: Path) -> None:
    root = tmp_path / "PF-dataset-PASCAL"
    (root / "JPEGImages").mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (50, 40)).save(root / "JPEGImages" / f"{name}.jpg")
    folder = "PF-dataset-PASCAL/JPEGImages"
    (root / "test_pairs_pf_pascal.csv").write_text(
        "source_image,target_image,class,XA,YA,XB,YB\n"
        f"{folder}/a.jpg,{folder}/b.jpg,8,1;2.5;nan,3;4;5,6;7;8,9;10;11\n"
    )
    (pair,) = PFPascal(tmp_path)
    assert pair.category == "cat" and pair.source_points.tolist() == [[1, 3], [2.5, 4]]
    assert pair.target_points.tolist() == [[6, 9], [7, 10]] and pair.target_box is None
    table = root / "test_pairs_pf_pascal.csv"
    whole = table.read_text()
    for damaged in (
        whole.replace(",8,1", ",0,1"),
        whole.replace(",8,1", ",21,1"),
        whole[: whole.index(",9;")],
    ):
        table.write_text(damaged)
        with pytest.raises(InputError, match="test_pairs"):
            PFPascal(root)
    table.write_text(whole)
    for damage in (lambda path: path.write_bytes(b"no picture"), Path.unlink):
        damage(root / "JPEGImages" / "b.jpg")
        with pytest.raises(InputError, match=r"b\.jpg"):
            PFPascal(root)


def tss(folder: Path) -> Path:
    pair = folder / "TSS_CVPR2016" / "JODS" / "pair1"
    pair.mkdir(parents=True)
    for i, (height, width) in ((1, (30, 40)), (2, (34, 36))):
        Image.fromarray(np.full((height, width, 3), 50 * i, np.uint8)).save(pair / f"image{i}.png")
        write_flo(pair / f"flow{i}.flo", np.full((height, width, 2), float(i), np.float32))
        mask = np.full((height, width), 254, np.uint8)
        mask[5:10, 5:10] = 255  # only the exact value counts
        Image.fromarray(mask).save(pair / f"mask{i}.png")
    return folder


def test_tss_is_read_both_ways_at_a_common_size(tmp_path: Path) -> None:
    reader = TSS(tss(tmp_path))
    first, second = reader
    assert first.source.shape == first.target.shape == (34, 40, 3) and first.source_size == (30, 40)
    assert (first.flow == 2).all() and (second.flow == 1).all() and first.mask.sum() == 25
    assert first.source[31, 0].tolist() == [0, 0, 0] and first.target[31, 0].tolist() == [100] * 3
    (tmp_path / "TSS_CVPR2016" / "JODS" / "pair1" / "flow2.flo").unlink()
    with pytest.raises(InputError, match="flow2"):
        TSS(tmp_path)


@pytest.mark.parametrize("published", [False, True])
def test_an_image_against_itself_scores_within_a_cell(
    tmp_path: Path, sd_dino_folder: Path, published: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third pair is an image and itself: every keypoint falls into its own cell of 70 canvas pixels."""
    from vision3d.evaluation.match_benchmark import evaluate_keypoints
    from vision3d.pipelines.sd_dino import SDDino

    reader = SPair71k(spair(tmp_path))
    reader.pairs = [reader[2]]
    pipeline = SDDino.from_pretrained(sd_dino_folder, cache=False)
    report = evaluate_keypoints(pipeline, reader, tmp_path / "out", published=published)
    assert report.scores["per_point_image"]["all_pairs"][0] == 1.0
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored["protocol"]["sample_per_category"] == "all pairs" and "per_image_bbox" in stored["scores"]
    assert "per_point_bbox" in str(report)


def test_published_cells_lie_where_they_are_whatever_their_number(
    tmp_path: Path, sd_dino_folder: Path
) -> None:
    """23 cells do not divide the published canvas; an image matches itself, so that cells are off by chance alone."""
    from vision3d.evaluation.match_benchmark import pair_errors, transfer_keypoints
    from vision3d.pipelines.sd_dino import SDDino
    from vision3d.pipelines.sd_dino.options import MatchOptions

    pair = SPair71k(spair(tmp_path))[2]
    y, x = np.mgrid[: pair.source_size[0] : 3, : pair.source_size[1] : 3]
    points = np.stack([x.ravel(), y.ravel()], 1).astype(float)
    pair = replace(pair, source_points=points, target_points=points, ids=tuple(map(str, range(len(points)))))
    pipeline = SDDino.from_pretrained(sd_dino_folder, cache=False, dino_size=184, features="dino")
    options = MatchOptions(features="dino", subcell=False, padding=True)
    predicted = transfer_keypoints(pipeline, pair, pipeline.encode, options, published=True)
    errors = pair_errors(pair, predicted).errors
    assert errors.max() < 840 / 23 / 2 * 2**0.5 + 1


def test_layers_weighed_after_the_norm_are_the_plain_ones_times_their_weights(
    tmp_path: Path, sd_dino_folder: Path
) -> None:
    from vision3d.pipelines.sd_dino import SDDino
    from vision3d.pipelines.sd_dino.options import MatchOptions
    from vision3d.pipelines.sd_dino.pca import co_pca

    weights = {"s5": 0.5, "s4": 2.0, "s3": 0.25}
    weighed = SDDino.from_pretrained(sd_dino_folder, cache=False, layer_weights=weights, sd_weight=0.1)
    plain = SDDino.from_pretrained(sd_dino_folder, cache=False)
    pair = TSS(tss(tmp_path))[0]
    images = [weighed.encode(picture) for picture in (pair.source, pair.target)]
    found = weighed.describe(*images, MatchOptions(weigh_after=True))[0].cells
    expected = plain.describe(*images)[0].cells.clone()
    layers, _ = co_pca(images[0].sd, images[1].sd, plain.config.dims)
    finest_first = ("s3", "s4", "s5")
    factors = np.repeat([weights[n] for n in finest_first], [len(layers[n]) for n in finest_first])
    expected[:, : len(factors)] *= torch.from_numpy(factors).float()
    torch.testing.assert_close(found, expected)


def test_evaluating_from_the_command_line(
    tmp_path: Path, sd_dino_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vision3d.cli import main

    monkeypatch.setenv("VISION3D_HOME", str(tmp_path / "home"))
    common = ["--weights", str(sd_dino_folder), "--out", str(tmp_path / "out"), "--json"]

    def scores(*words: object) -> dict:
        assert main(["evaluate", "match", *map(str, words), *common]) == 0
        return json.loads(capsys.readouterr().out)["scores"]

    found = scores("--dataset", "spair", "--root", spair(tmp_path), "--sample", 2)
    assert found["pairs"] == 2 and set(found["per_point_bbox"]["categories"]) == {"cat"}
    for more in ([], ["--published"]):
        root = tss(tmp_path / f"tss{len(more)}")
        assert scores("--dataset", "tss", "--root", root, *more)["all"]["pairs"] == 2
        stored = json.loads((tmp_path / "out" / "report.json").read_text())
        assert stored["protocol"]["options"]["weigh_after"] == bool(more)
    for words, message in (
        (["match", "--dataset", "spair"], "--root"),
        (["match", "--dataset", "spair", "--root", str(tmp_path), "--limit", "-1"], "at least 1"),
        (["match", "--dataset", "tss", "--root", str(tmp_path / "tss0"), "--limit", "0"], "at least 1"),
        (["match", "--dataset", "nyu", "--root", "."], "spair"),
        (
            ["match", "--dataset", "tss", "--root", str(tmp_path / "tss0"), "--captioner", "nowhere"],
            "nowhere",
        ),
        (
            ["match", "--dataset", "tss", "--root", str(tmp_path / "tss0"), "--conditioning", "implicit"],
            "--captioner",
        ),
        (["depth", "--dataset", "spair", "--root", "."], "nyu"),
    ):
        assert main(["evaluate", *words, *common]) == 2
        assert message in capsys.readouterr().err
