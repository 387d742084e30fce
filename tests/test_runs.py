"""Runs over many images: what is skipped, what goes on, what stops, and what is said in the end."""

from __future__ import annotations

import gc
import json
import pickle
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision3d.errors import InputError, OutputError, WeightsError
from vision3d.io.images import Photo, iter_photos
from vision3d.results import DepthPrediction, Provenance
from vision3d.runs import Job, RunSummary, Worker, batches, check_inputs, photo_refs, run_folder

PROVENANCE = Provenance("ramp", "none", None, {"slope": 1}, 0)


def ramp(photos: Sequence[Photo]) -> list[DepthPrediction]:
    """A method that is quick: depth is the row."""
    results = []
    for photo in photos:
        height, width = photo.size
        depth = np.repeat(np.arange(height, dtype=np.float32)[:, None], width, axis=1)
        results.append(
            DepthPrediction(depth, "affine-invariant inverse depth", photo=photo, provenance=PROVENANCE)
        )
    return results


def load_ramp():
    return ramp


class Loads:
    """Counts how often a method is loaded, and notes the batches it is given."""

    def __init__(self) -> None:
        self.count = 0
        self.batches: list[list[str]] = []

    def __call__(self):
        self.count += 1

        def process(photos: Sequence[Photo]) -> list[DepthPrediction]:
            self.batches.append([photo.name for photo in photos])
            return ramp(photos)

        return process


def photograph(path: Path, size: tuple[int, int] = (24, 20), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(sources: list[str | Path], out: Path, load, **options) -> RunSummary:
    recursive = options.pop("recursive", False)
    total = check_inputs(sources, recursive=recursive)
    return run_folder(
        lambda failed: photo_refs(sources, recursive=recursive, failed=failed),
        load,
        out,
        kind="depth",
        fingerprint=PROVENANCE.fingerprint,
        total=total,
        **options,
    )


def test_results_of_each_input_lie_in_a_folder_of_its_name(tmp_path):
    photograph(tmp_path / "in" / "a.png")
    photograph(tmp_path / "in" / "b.jpg")
    summary = run([tmp_path / "in"], tmp_path / "out", load_ramp)
    assert summary.exit_code == 0
    assert summary.count("done") == 2
    for name in ("a", "b"):
        assert (tmp_path / "out" / name / "depth.npy").exists()
        assert json.loads((tmp_path / "out" / name / "result.json").read_text())["method"] == "ramp"
    assert str(tmp_path / "out") in str(summary)


def test_a_second_run_skips_everything_and_loads_nothing(tmp_path):
    photograph(tmp_path / "a.png")
    run([tmp_path / "a.png"], tmp_path / "out", load_ramp)
    loads = Loads()
    summary = run([tmp_path / "a.png"], tmp_path / "out", loads)
    assert (summary.count("skipped"), loads.count) == (1, 0)


@pytest.mark.parametrize("damage", ["changed photo", "truncated file", "missing file", "more formats"])
def test_what_is_not_complete_or_not_right_is_done_again(tmp_path, damage):
    photo = photograph(tmp_path / "a.png")
    run([photo], tmp_path / "out", load_ramp)
    result = tmp_path / "out" / "a"
    formats: tuple[str, ...] = ()
    if damage == "changed photo":
        photograph(photo, seed=1)
    elif damage == "truncated file":
        (result / "depth.npy").write_bytes((result / "depth.npy").read_bytes()[:-4])
    elif damage == "missing file":
        (result / "preview.png").unlink()
    else:
        formats = ("npz",)
    loads = Loads()
    summary = run([photo], tmp_path / "out", loads, formats=formats)
    assert (summary.count("done"), loads.count) == (1, 1)
    assert run([photo], tmp_path / "out", Loads(), formats=formats).count("skipped") == 1


def test_overwrite_computes_again(tmp_path):
    photo = photograph(tmp_path / "a.png")
    run([photo], tmp_path / "out", load_ramp)
    assert run([photo], tmp_path / "out", load_ramp, overwrite=True).count("done") == 1


def test_a_run_goes_on_after_a_bad_file_and_names_it(tmp_path, capsys):
    photograph(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"not an image at all")
    (tmp_path / "in" / "c.mp4").write_bytes(b"not a video at all")
    photograph(tmp_path / "in" / "d.png")
    summary = run([tmp_path / "in"], tmp_path / "out", load_ramp)
    assert (summary.count("done"), summary.count("failed"), summary.exit_code) == (2, 2, 2)
    assert {Path(f["input"]).name for f in summary.to_dict()["failed"]} == {"b.png", "c.mp4"}
    assert "b.png" in capsys.readouterr().err
    assert not (tmp_path / "out" / "b").exists()


def test_a_single_bad_file_is_one_error_and_costs_no_loading(tmp_path, capsys):
    bad = tmp_path / "a.png"
    bad.write_bytes(b"")
    loads = Loads()
    with pytest.raises(InputError):
        run([bad], tmp_path / "out", loads)
    assert loads.count == 0
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().err == ""


def test_an_image_that_breaks_the_method_does_not_take_its_batch_along(tmp_path):
    def load():
        def process(photos):
            if any(photo.name == "b" for photo in photos):
                raise ValueError("cannot do b")
            return ramp(photos)

        return process

    for name in "abc":
        photograph(tmp_path / "in" / f"{name}.png")
    summary = run([tmp_path / "in"], tmp_path / "out", load, batch_size=3)
    assert summary.count("done") == 2
    (failed,) = [outcome for outcome in summary.outcomes if outcome.status == "failed"]
    assert failed.name == "b"
    assert "cannot do b" in (failed.reason or "")


class Burden:
    """Stands for the maps that a method holds when it fails."""

    def __init__(self) -> None:
        self.alive: weakref.WeakSet[Burden] = weakref.WeakSet()

    def fail(self, *_):
        maps = Burden()
        self.alive.add(maps)
        raise InputError("nothing to see", "give another")


def test_what_failed_images_held_is_let_go(tmp_path):
    from vision3d.pipelines.sd_dino.pairs import Images, pair_jobs, run_pairs

    for name in "abc":
        photograph(tmp_path / "in" / f"{name}.png")
    burden = Burden()
    summary = run([tmp_path / "in"], tmp_path / "out", lambda: burden.fail)
    images = Images([str(tmp_path / "in")])
    pairs = run_pairs(
        pair_jobs(images, images),
        (images, images),
        burden.fail,
        tmp_path,
        kind="depth",
        fingerprint=lambda a, b: "none",
    )
    gc.collect()
    assert summary.count("failed") == pairs.count("failed") == 3
    assert not burden.alive


def test_bad_weights_stop_the_run_before_anything_is_written(tmp_path):
    def load():
        raise WeightsError("weights with NaN", "use others")

    photograph(tmp_path / "in" / "a.png")
    photograph(tmp_path / "in" / "b.png")
    with pytest.raises(WeightsError):
        run([tmp_path / "in"], tmp_path / "out", load)
    assert not (tmp_path / "out").exists()


def fill_the_disk(monkeypatch):
    """The second result that is saved finds no room; returns the names of the folders tried so far."""
    tried = []
    real = DepthPrediction.save

    def save(self, folder, formats=(), **options):
        tried.append(folder.name)
        if len(tried) == 2:
            raise OutputError("the disk is full", "free some space") from OSError(
                28, "No space left on device"
            )
        return real(self, folder, formats, **options)

    monkeypatch.setattr(DepthPrediction, "save", save)
    return tried


def test_a_full_disk_stops_the_run_and_is_one_line(tmp_path, monkeypatch, capsys):
    saved = fill_the_disk(monkeypatch)
    for name in "abc":
        photograph(tmp_path / "in" / f"{name}.png")
    with pytest.raises(
        OutputError, match=r"disk is full; free some space \(1 finished in .*goes on"
    ) as caught:
        run([tmp_path / "in"], tmp_path / "out", load_ramp)
    assert saved == ["a", "b"]
    assert caught.value.details["done"] == 1
    assert capsys.readouterr().err == ""
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a"]
    assert run([tmp_path / "in"], tmp_path / "out", load_ramp).count("done") == 2


def test_a_full_disk_stops_a_run_over_pairs_in_the_same_way(tmp_path, monkeypatch, capsys):
    from vision3d.pipelines.sd_dino.pairs import Images, pair_jobs, run_pairs

    tried = fill_the_disk(monkeypatch)
    for name in "abc":
        photograph(tmp_path / "in" / f"{name}.png")
    images = Images([str(tmp_path / "in")])
    with pytest.raises(
        OutputError, match=r"disk is full; free some space \(1 finished in .*goes on"
    ) as caught:
        run_pairs(
            pair_jobs(images, images),
            (images, images),
            lambda job, first, second: ramp([first])[0],
            tmp_path / "out",
            kind="depth",
            fingerprint=lambda first, second: "none",
        )
    assert tried == ["a__b", "a__c"]
    assert caught.value.details["done"] == 1
    assert capsys.readouterr().err == ""


def test_ctrl_c_says_what_is_finished_and_the_next_run_goes_on(tmp_path):
    def load():
        def process(photos):
            if photos[0].name == "c":
                raise KeyboardInterrupt
            return ramp(photos)

        return process

    for name in "abcd":
        photograph(tmp_path / "in" / f"{name}.png")
    with pytest.raises(KeyboardInterrupt, match="2 finished"):
        run([tmp_path / "in"], tmp_path / "out", load)
    summary = run([tmp_path / "in"], tmp_path / "out", load_ramp)
    assert (summary.count("skipped"), summary.count("done")) == (2, 2)


def test_what_another_run_has_claimed_is_left_to_it(tmp_path, monkeypatch):
    """The other run finishes "a" while this one waits for it, and dies with "c" unfinished."""
    from vision3d import runs
    from vision3d.io.claims import claim

    for name in "abc":
        photograph(tmp_path / "in" / f"{name}.png")
    out = tmp_path / "out"
    theirs = {name: claim(out / name) for name in "ac"}
    assert claim(out / "a") is None
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            (photo,) = (ref.load() for ref in photo_refs([tmp_path / "in" / "a.png"]))
            ramp([photo])[0].save(out / "a")
            theirs["a"].release()
        elif len(waits) == 3:
            theirs["c"].release()

    monkeypatch.setattr(runs.time, "sleep", sleep)
    loads = Loads()
    summary = run([tmp_path / "in"], out, loads, batch_size=2)
    assert loads.batches == [["b"], ["c"]]
    assert {o.name: o.status for o in summary.outcomes} == {"a": "skipped", "b": "done", "c": "done"}
    assert sorted(path.name for path in out.iterdir()) == ["a", "b", "c"]


def test_given_references_are_not_held_and_looked_through_again(tmp_path, monkeypatch):
    """Those of a video's frames hold the frames."""
    from vision3d import runs
    from vision3d.io.claims import claim

    class Refs:
        def __iter__(self):
            given = []
            for ref in iter_photos([np.full((24, 20, 3), i, np.uint8) for i in range(5)]):
                given.append(weakref.ref(ref))
                assert sum(earlier() is not None for earlier in given) <= 3
                yield ref

    theirs = claim(tmp_path / "image_2")
    monkeypatch.setattr(runs.time, "sleep", lambda seconds: theirs.release())
    summary = run_folder(Refs(), load_ramp, tmp_path, kind="depth", fingerprint=PROVENANCE.fingerprint)
    assert [outcome.name for outcome in summary.outcomes] == [
        "image",
        "image_3",
        "image_4",
        "image_5",
        "image_2",
    ]


def test_videos_are_not_matched(tmp_path):
    from vision3d.pipelines.sd_dino.pairs import Images

    photograph(tmp_path / "a.png")
    (tmp_path / "clip.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"there is a video in .*save its frames"):
        Images([str(tmp_path)])


def test_a_pair_that_another_run_has_claimed_is_left_to_it(tmp_path, monkeypatch):
    """The other run finishes "a__b" while this one waits for it, and dies with "a__c" unfinished."""
    from vision3d import runs
    from vision3d.io.claims import claim
    from vision3d.pipelines.sd_dino.pairs import Images, pair_jobs, run_pairs

    for name in "abc":
        photograph(tmp_path / "in" / f"{name}.png")
    images, out = Images([str(tmp_path / "in")]), tmp_path / "out"
    (out / ".old__pair.claim").parent.mkdir()
    (out / ".old__pair.claim").write_bytes(b"")
    theirs = {name: claim(out / name) for name in ("a__b", "a__c")}
    made, waits = [], []

    def process(job, first, second):
        made.append(job.name)
        return ramp([first])[0]

    def sleep(seconds):
        waits.append(seconds)
        ramp([images.photo("a")])[0].save(out / "a__b")
        for held in theirs.values():
            held.release()

    monkeypatch.setattr(runs.time, "sleep", sleep)
    mark = ramp([images.photo("a")])[0].fingerprint
    summary = run_pairs(
        pair_jobs(images, images),
        (images, images),
        process,
        out,
        kind="depth",
        fingerprint=lambda first, second: mark,
    )
    assert len(waits) == 1
    assert made == ["b__c", "a__c"]
    assert {o.name: o.status for o in summary.outcomes} == {"b__c": "done", "a__b": "skipped", "a__c": "done"}
    assert sorted(path.name for path in out.iterdir()) == ["a__b", "a__c", "b__c"]


def test_claims_go_with_whatever_ends_a_run(tmp_path):
    from vision3d.io.claims import claim

    def load():
        def process(photos):
            raise KeyboardInterrupt

        return process

    photograph(tmp_path / "in" / "a.png")
    photograph(tmp_path / "in" / "b.png")
    with pytest.raises(KeyboardInterrupt, match="0 finished"):
        run([tmp_path / "in"], tmp_path / "out", load)
    assert not (tmp_path / "out").exists()
    ours = claim(tmp_path / "out" / "a")
    assert ours is not None
    ours.release()
    assert not (tmp_path / "out").exists()


def test_what_a_killed_run_left_is_removed(tmp_path):
    photograph(tmp_path / "in" / "a.png")
    out = tmp_path / "out"
    run([tmp_path / "in"], out, load_ramp)
    (out / ".a.123-00000000.partial").mkdir()
    (out / ".a.123-00000000.partial" / "depth.npy").write_bytes(b"half")
    (out / ".a.claim").write_bytes(b"")
    (out / ".notes.claim.txt").write_bytes(b"of somebody else")
    assert run([tmp_path / "in"], out, load_ramp).count("skipped") == 1
    assert sorted(path.name for path in out.iterdir()) == [".notes.claim.txt", "a"]


class Hungry:
    """Runs out of memory with more than ``images`` at once, or with images of more than ``rows`` rows."""

    def __init__(self, images: int, rows: int, error: Exception) -> None:
        self.images, self.rows, self.error = images, rows, error
        self.attempts: list[int] = []

    def __call__(self, photos):
        self.attempts.append(len(photos))
        if len(photos) > self.images or photos[0].size[0] > self.rows:
            raise self.error
        return ramp(photos)

    def use_less_memory(self):
        if self.rows >= 40:
            return None
        self.rows += 8
        return f"going on with {self.rows} rows"


def numpys_own() -> MemoryError:
    try:
        np.empty(1 << 60, "f4")
    except MemoryError as error:
        return error
    raise AssertionError("an exabyte was there")


OUT_OF_MEMORY = [
    MemoryError(),
    numpys_own(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:20] or "MemoryError")
def test_less_memory_means_smaller_batches_then_smaller_pieces(tmp_path, capsys, error):
    for i in range(7):
        photograph(tmp_path / "in" / f"{i}.png", (32, 20), seed=i)
    hungry = Hungry(images=1, rows=16, error=error)
    summary = run([tmp_path / "in"], tmp_path / "out", lambda: hungry, batch_size=5)
    assert summary.count("done") == 7
    assert hungry.attempts == [5, 2, 1, 1, *[1] * 7]
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("images: ")]
    assert lines == [
        "out of memory with 5 images at once; going on with 2",
        "out of memory with 2 images at once; going on with 1",
        "out of memory with 1 image at once; going on with 24 rows",
        "out of memory with 1 image at once; going on with 32 rows",
    ]


def test_what_does_not_fit_at_all_fails_and_the_rest_goes_on(tmp_path):
    photograph(tmp_path / "in" / "a.png", (64, 20))
    photograph(tmp_path / "in" / "b.png", (32, 20))
    summary = run([tmp_path / "in"], tmp_path / "out", lambda: Hungry(1, 48, MemoryError()))
    assert {o.name: o.status for o in summary.outcomes} == {"a": "failed", "b": "done"}
    assert "out of memory; try smaller images" in (summary.outcomes[0].reason or "")


def test_other_errors_are_no_want_of_memory(tmp_path):
    photograph(tmp_path / "a.png", (64, 20))
    hungry = Hungry(1, 16, RuntimeError("shapes cannot be multiplied"))
    summary = run([tmp_path / "a.png"], tmp_path / "out", lambda: hungry)
    assert hungry.attempts == [1]
    assert "shapes cannot be multiplied" in (summary.outcomes[0].reason or "")


def test_only_images_of_one_size_share_a_batch(tmp_path):
    for i, size in enumerate([(24, 20), (20, 24), (24, 20), (24, 20), (20, 24)]):
        photograph(tmp_path / "in" / f"{i}.png", size)
    loads = Loads()
    assert run([tmp_path / "in"], tmp_path / "out", loads, batch_size=2).count("done") == 5
    assert sorted(map(tuple, loads.batches)) == [("0", "2"), ("1", "4"), ("3",)]
    assert loads.count == 1


def test_images_of_many_sizes_do_not_pile_up(tmp_path):
    read = given = most_waiting = 0

    def jobs():
        nonlocal read
        for i in range(40):
            read += 1
            yield Job(str(i), str(i), tmp_path, Photo(np.zeros((16 + i, 20, 3), np.uint8)))

    for batch in batches(jobs(), 2):
        most_waiting = max(most_waiting, read - given)
        given += len(batch)
    assert given == 40
    assert most_waiting <= 6


def test_results_of_earlier_runs_are_not_taken_for_photographs(tmp_path):
    photograph(tmp_path / "a.png")
    run([tmp_path], tmp_path / "maps", load_ramp, recursive=True)
    summary = run([tmp_path], tmp_path / "maps", load_ramp, recursive=True)
    assert [outcome.name for outcome in summary.outcomes] == ["a"]


def test_video_frames_get_a_folder_each(tmp_path):
    import cv2

    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (32, 24))
    for i in range(3):
        writer.write(np.full((24, 32, 3), 60 * i, np.uint8))
    writer.release()
    summary = run([tmp_path / "clip.avi"], tmp_path / "out", load_ramp)
    assert summary.count("done") == 3
    assert (tmp_path / "out" / "clip" / "000002" / "depth.npy").exists()


def test_inputs_of_one_name_do_not_overwrite_each_other(tmp_path):
    photograph(tmp_path / "x" / "a.png")
    photograph(tmp_path / "y" / "a.png", seed=1)
    summary = run([tmp_path / "x" / "a.png", tmp_path / "y" / "a.png"], tmp_path / "out", load_ramp)
    assert summary.count("done") == 2
    assert len({outcome.folder for outcome in summary.outcomes}) == 2


@pytest.mark.parametrize("sources", [[], ["missing.jpg"], ["empty"], ["none/*.jpg"]])
def test_inputs_that_are_not_there_are_noticed_before_any_work(tmp_path, monkeypatch, sources):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    with pytest.raises(InputError):
        check_inputs(sources)


def test_an_output_that_cannot_be_written_is_noticed_before_any_work(tmp_path):
    photo = photograph(tmp_path / "a.png")
    (tmp_path / "file").write_text("in the way")
    loads = Loads()
    with pytest.raises(OutputError):
        run([photo], tmp_path / "file" / "out", loads)
    assert loads.count == 0


def test_a_worker_travels_to_another_process_without_its_loaded_method(tmp_path):
    worker = Worker(load_ramp, ("npz",))
    job = Job("a", "a.png", tmp_path / "a", Photo(np.zeros((20, 24, 3), np.uint8), "a"))
    assert [outcome.status for outcome in worker([job])] == ["done"]
    travelled = pickle.loads(pickle.dumps(worker))
    assert [outcome.status for outcome in travelled([job])] == ["done"]
    assert (tmp_path / "a" / "depth.npz").exists()


def test_a_result_of_another_kind_is_refused_before_any_work(tmp_path):
    photograph(tmp_path / "a.png")
    run([tmp_path / "a.png"], tmp_path / "out", load_ramp)
    record = tmp_path / "out" / "a" / "result.json"
    record.write_text(record.read_text().replace('"kind": "depth"', '"kind": "normals"'))

    def never():
        raise AssertionError("nothing should be loaded")

    with pytest.raises(OutputError, match="already holds a result of kind 'normals'"):
        run([tmp_path / "a.png"], tmp_path / "out", never)


def test_pairs_whose_names_would_be_one_have_results_of_their_own(tmp_path):
    from vision3d.pipelines.sd_dino.pairs import Images, pair_jobs

    for folder, names in (("a", ("cat", "cat__1")), ("b", ("1__dog", "dog"))):
        for name in names:
            photograph(tmp_path / folder / f"{name}.png")
    jobs = pair_jobs(Images([str(tmp_path / "a")]), Images([str(tmp_path / "b")]))
    assert len(jobs) == len({job.name for job in jobs}) == 4
    assert {"cat__1__dog", "cat__1__dog_2"} <= {job.name for job in jobs}
