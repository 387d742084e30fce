"""Worker processes, shards on disk, augmentation and the verb."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("open3d")

from vision3d.errors import InputError, OutputError, ResourceError
from vision3d.synthetic import ShardCache, WorldStream, augment, render_sample
from vision3d.synthetic import cache as cache_module
from vision3d.synthetic.sample import Sample
from vision3d.synthetic.stream import _blocks

SIZE = (32, 40)


def test_stream_gives_the_seeds_in_order_whatever_the_workers() -> None:
    with WorldStream(range(5, 16), SIZE, workers=2) as stream:
        assert len(stream) == 11
        samples = list(stream)
    assert [s.seed for s in samples] == list(range(5, 16))
    for s in samples[::5]:
        np.testing.assert_array_equal(s.image, render_sample(s.seed, SIZE).image)
    assert not multiprocessing.active_children()


def test_leaving_a_stream_early_ends_its_workers() -> None:
    with WorldStream(range(10_000), SIZE, workers=2) as stream:
        iterator = iter(stream)
        assert next(iterator).seed == 0
        assert len(multiprocessing.active_children()) == 2
    deadline = time.time() + 10
    while multiprocessing.active_children() and time.time() < deadline:
        time.sleep(0.05)
    assert not multiprocessing.active_children()


def test_an_error_in_a_worker_reaches_the_reader() -> None:
    for seeds, size, error, message in (
        (range(3), (4, 4), InputError, r"^size 4x4 is too small; give"),
        ([-3], SIZE, InputError, r"^seed -3 is negative; give"),
        (["x"], SIZE, ResourceError, r"^a rendering process failed: Traceback .*TypeError"),
    ):
        with WorldStream(seeds, size, workers=1) as stream, pytest.raises(error, match=message):  # type: ignore[arg-type]
            list(stream)


def test_blocks_keep_the_views_of_a_scene_together() -> None:
    assert list(_blocks(range(2, 8))) == [[2], [3, 4, 5], [6, 7]]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> ShardCache:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_module, "SHARD", 6)
        cache = ShardCache(folder)
        cache.fill(range(9), SIZE, workers=0)
    return cache


def test_cache_returns_what_was_rendered(filled: ShardCache) -> None:
    assert len(filled) == 9 and filled.sizes == [SIZE, SIZE]
    np.testing.assert_array_equal(filled.seeds(), np.arange(9))
    for position in (0, 5, 6, -1):
        got = filled[position]
        want = render_sample(got.seed, SIZE)
        for name in ("image", "depth", "semantic", "object_id", "part_id", "K", "cam_to_world", "keypoints"):
            np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)
        np.testing.assert_allclose(got.normals, want.normals, atol=0.5 / 127)
        assert (got.caption, got.kind) == (want.caption, want.kind)
        assert filled.caption(position) == want.caption
    assert filled.array("normals", 3).dtype == np.int8
    with pytest.raises(IndexError):
        filled[9]


def test_filling_again_renders_only_what_is_missing(
    filled: ShardCache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cache_module, "SHARD", 6)
    before = {p: p.stat().st_mtime_ns for p in filled.folder.rglob("*.npy")}
    filled.fill(range(9), SIZE, workers=0)
    assert before == {p: p.stat().st_mtime_ns for p in filled.folder.rglob("*.npy")}
    assert not [p for p in filled.folder.iterdir() if p.name.startswith(".")]
    filled.fill(range(2), SIZE, workers=0)  # a shorter run deletes nothing either
    assert before == {p: p.stat().st_mtime_ns for p in filled.folder.rglob("*.npy")} and len(filled) == 9
    with pytest.raises(InputError, match="32x40"):
        filled.fill(range(9), (64, 64), workers=0)


def test_a_shard_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache")
    with pytest.raises(InputError):
        cache.write_shard(5, iter([render_sample(0, SIZE)]), SIZE, 1)
    assert not list((tmp_path / "cache").iterdir())
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(OutputError):
        ShardCache(blocker / "below").write_shard(0, iter([]), SIZE, 1)


def test_a_shard_gives_way_to_a_longer_one_when_that_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "SHARD", 6)
    size = (16, 24)
    cache = ShardCache(tmp_path)
    cache.fill(range(2), size, workers=0)
    # stopped on the way
    with pytest.raises(RuntimeError, match="stop"):
        cache.write_shard(0, _stopping(), size, 4)
    assert ShardCache(tmp_path).shards == [(0, 2)]
    cache.fill(range(4), size, workers=0)
    assert cache.shards == [(0, 4)]
    kept = (tmp_path / "shard-000000000" / "image.npy").stat().st_ino
    # another process was faster, with more
    cache.write_shard(0, iter([render_sample(0, size), render_sample(1, size)]), size, 2)
    assert (tmp_path / "shard-000000000" / "image.npy").stat().st_ino == kept
    # a damaged one is as good as none
    (tmp_path / "shard-000000000" / "meta.json").unlink()
    cache.refresh()
    cache.fill(range(2), size, workers=0)
    assert cache.shards == [(0, 2)]
    assert [path.name for path in tmp_path.iterdir()] == ["shard-000000000"]


def _stopping() -> Iterator[Sample]:
    yield render_sample(0, (16, 24))
    raise RuntimeError("stop")


def test_handheld_views_are_rendered_recorded_and_kept_apart(tmp_path: Path) -> None:
    from vision3d.training.data import describe_source

    size = (16, 24)
    cache = ShardCache(tmp_path)
    cache.fill(range(3), size, workers=1, handheld=True)
    want = render_sample(2, size, handheld=True)
    np.testing.assert_array_equal(cache[2].image, want.image)
    assert not np.array_equal(want.image, render_sample(2, size).image)
    with pytest.raises(InputError, match="holds hand-held views of these seeds"):
        cache.fill(range(3), size, workers=0)
    assert describe_source(cache)["handheld"] == [[0, 3]]
    cache.fill(range(120, 123), size, workers=0)
    assert describe_source(cache)["seeds"] == [[0, 3], [120, 123]]
    assert describe_source(cache)["handheld"] == [[0, 3]]
    with pytest.raises(InputError, match="holds usual views of these seeds"):
        cache.fill(range(120, 123), size, workers=0, handheld=True)


def test_reading_a_sample_is_fast(filled: ShardCache) -> None:
    filled[0]
    start = time.perf_counter()
    for k in range(50):
        filled[k % 9]
    assert (time.perf_counter() - start) / 50 < 0.01


def test_augment_keeps_shape_and_type_and_depends_on_the_generator_only() -> None:
    image = render_sample(0, (64, 96)).image
    kept = image.copy()
    results = [augment(image, np.random.default_rng(seed)) for seed in range(60)]
    np.testing.assert_array_equal(image, kept)
    for result in results:
        assert result.shape == image.shape and result.dtype == np.uint8
    np.testing.assert_array_equal(results[7], augment(image, np.random.default_rng(7)))
    change = np.array([np.abs(r.astype(int) - image).mean() for r in results])
    assert np.median(change) > 8 and change.max() > 30
    # The content must survive: most results still correlate with the image.
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).ravel()
    kin = [np.corrcoef(cv2.cvtColor(r, cv2.COLOR_RGB2GRAY).ravel(), grey)[0, 1] for r in results]
    assert np.median(kin) > 0.8 and min(kin) > 0.1


def test_synthesize_writes_folders_and_a_sheet(tmp_path: Path) -> None:
    from vision3d.synthetic.verb import synthesize

    report = synthesize(tmp_path / "out", count=3, size=(48, 64), seed=30, workers=0)
    assert report.exit_code == 0 and report.to_dict()["images"] == report.rendered == 3
    assert str(tmp_path / "out" / "sheet.png") in str(report)
    folder = tmp_path / "out" / "000031"
    document = json.loads((folder / "sample.json").read_text())
    want = render_sample(31, (48, 64))
    assert document["caption"] == want.caption
    np.testing.assert_allclose(document["K"], want.K)
    np.testing.assert_array_equal(cv2.imread(str(folder / "image.png"))[..., ::-1], want.image)
    np.testing.assert_array_equal(np.load(folder / "depth.npy"), want.depth)
    np.testing.assert_array_equal(np.load(folder / "normals.npy"), want.normals)
    np.testing.assert_array_equal(
        cv2.imread(str(folder / "semantic.png"), cv2.IMREAD_UNCHANGED), want.semantic
    )
    assert (tmp_path / "out" / "sheet.png").stat().st_size > 1000


def test_synthesize_renders_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vision3d.synthetic import stream, verb

    out, rendered = tmp_path / "out", []
    real = stream.render_sample
    fail_at = 1

    def render(seed, size, handheld):
        if len(rendered) == fail_at:
            raise KeyboardInterrupt
        rendered.append(seed)
        return real(seed, size, handheld)

    monkeypatch.setattr(stream, "render_sample", render)
    with pytest.raises(KeyboardInterrupt, match=r"1 of 3 images .* goes on"):
        verb.synthesize(out, count=3, size=(24, 32), seed=30, workers=0)
    first = {path: path.read_bytes() for path in (out / "000030").iterdir()}
    (out / ".000031.1-00000000.partial").mkdir()
    fail_at = -1
    verb.synthesize(out, count=3, size=(24, 32), seed=30, workers=0)
    assert rendered == [30, 31, 32]
    assert first == {path: path.read_bytes() for path in (out / "000030").iterdir()}
    assert sorted(path.name for path in out.iterdir()) == ["000030", "000031", "000032", "sheet.png"]
    (out / "000031" / "depth.npy").unlink()
    verb.synthesize(out, count=3, size=(24, 32), seed=30, workers=0)
    assert rendered == [30, 31, 32, 31]
    verb.synthesize(out, count=1, size=(32, 24), seed=30, workers=0)
    assert rendered == [30, 31, 32, 31, 30]
    verb.synthesize(out, count=1, size=(32, 24), seed=30, workers=0, handheld=True)
    assert rendered == [30, 31, 32, 31, 30, 30]


def test_shards_for_training_are_written_by_the_verb_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vision3d import cli

    monkeypatch.setattr(cache_module, "SHARD", 3)
    words = ["synthesize", "--shards", "--seed", "30", "--out", str(tmp_path / "scenes"), "--size"]
    assert cli.main([*words, "24", "32", "--count", "3"]) == 0
    assert cli.main([*words, "24", "32", "--count", "6"]) == 0
    assert "6 images" in capsys.readouterr().out
    cache = ShardCache(tmp_path / "scenes")
    assert cache.seeds().tolist() == list(range(30, 36)) and cache.sizes == [(24, 32)] * 2
    np.testing.assert_array_equal(cache[4].image, render_sample(34, (24, 32)).image)
    assert cli.main([*words, "24", "32", "--count", "6", "--overwrite"]) == 2
    assert cli.main([*words, "32", "32", "--count", "9"]) == 2
    assert "24x32" in capsys.readouterr().err


def test_shards_of_other_seeds_may_have_another_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vision3d.training.data import describe_source

    monkeypatch.setattr(cache_module, "SHARD", 3)
    cache = ShardCache(tmp_path)
    cache.fill(range(30, 36), (24, 32), workers=0)
    assert describe_source(cache)["size"] == [24, 32]
    cache.fill(range(36, 38), (32, 24), workers=0)
    assert cache[5].image.shape == (24, 32, 3) and cache[6].image.shape == (32, 24, 3)
    told = describe_source(cache)
    assert told["seeds"] == [[30, 36], [36, 38]] and told["sizes"] == [[24, 32], [32, 24]]
    assert "24x32" in repr(cache) and "32x24" in repr(cache)


def test_a_full_disk_is_noticed_before_a_shard_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OutputError, match="disk is full"):
        ShardCache(tmp_path).write_shard(0, iter([render_sample(0, SIZE)]), SIZE, 1)
    assert not list(tmp_path.iterdir())


def test_a_damaged_shard_is_rendered_again_and_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vision3d.training.data import open_source

    monkeypatch.setattr(cache_module, "SHARD", 3)
    ShardCache(tmp_path).fill(range(6), SIZE, workers=0)
    (tmp_path / "shard-000000003" / "meta.json").write_text("")
    with pytest.raises(InputError, match="shard-000000003 is damaged"):
        open_source(tmp_path)
    assert ShardCache(tmp_path).fill(range(6), SIZE, workers=0) == 3
    assert len(open_source(tmp_path)) == 6


def test_a_worker_that_dies_is_told_and_is_no_silent_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vision3d import cli
    from vision3d.synthetic import verb

    def killed(*_: object, **__: object) -> None:
        with WorldStream(range(10_000), SIZE, workers=1) as stream:
            iterator = iter(stream)
            next(iterator)
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
            list(iterator)

    monkeypatch.setattr(verb, "_fill_shards", killed)
    assert cli.main(["synthesize", "--shards", "--out", str(tmp_path / "out")]) == 2
    assert "a rendering process died" in capsys.readouterr().err
