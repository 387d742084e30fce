"""Writes are all or nothing, and every refusal of the operating system is one line."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vision3d.errors import OutputError
from vision3d.io import files
from vision3d.io.files import (
    atomic_path,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_npy,
    check_writable,
    remove_stagings,
    sha256_file,
    staged_folder,
)

Complaints = Callable[[list[Callable[[], None]]], list[str]]


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_written_files_read_back(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    atomic_write_npy(tmp_path / "deep" / "a.npy", array)
    atomic_write_json(tmp_path / "b.json", {"größe": 1.5})
    atomic_write_bytes(tmp_path / "c.bin", (bytes([i]) for i in range(3)))
    np.testing.assert_array_equal(np.load(tmp_path / "deep" / "a.npy"), array)
    assert json.loads((tmp_path / "b.json").read_text(encoding="utf-8")) == {"größe": 1.5}
    assert (tmp_path / "c.bin").read_bytes() == b"\x00\x01\x02"
    assert everything_in(tmp_path) == ["b.json", "c.bin", "deep", "deep/a.npy"]


def test_names_that_are_not_utf8_survive_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    atomic_write_json(tmp_path / "a.json", {name: "größe"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {name: "größe"}


def test_npy_is_what_numpy_itself_writes(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    atomic_write_npy(tmp_path / "ours.npy", array)
    np.save(tmp_path / "theirs.npy", array)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert everything_in(tmp_path) == ["a.txt"]


def test_the_temporary_name_is_hidden_and_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "photo.png") as temporary:
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"x")


def test_sha256_is_hashlibs(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "x").write_bytes(data)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EACCES, "permission"),
        (errno.EROFS, "read-only"),
        (errno.EDQUOT, "quota"),
    ],
)
def test_refusals_name_the_place_and_the_remedy(tmp_path: Path, code: int, said: str) -> None:
    with pytest.raises(OutputError) as caught, atomic_path(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"some")
        raise OSError(code, os.strerror(code))
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "choose" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert everything_in(tmp_path) == []


def test_a_folder_in_the_way_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(OutputError, match="folder is in the way"):
        atomic_write_bytes(tmp_path / "a.bin", b"x")
    assert everything_in(tmp_path) == ["a.bin"]


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for write in (
        lambda: atomic_write_bytes(tmp_path / "out" / "desk" / "a.bin", b"x"),
        lambda: check_writable(tmp_path / "out" / "desk"),
        lambda: staged_folder(tmp_path / "out" / "desk", last="x").__enter__(),
        lambda: staged_folder(tmp_path / "out", last="x").__enter__(),
    ):
        with pytest.raises(OutputError, match=r"out is a file, where a folder is needed"):
            write()
    assert (tmp_path / "out").read_text() == "mine"
    assert everything_in(tmp_path) == ["out"]


def test_a_name_too_long_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="name is too long"):
        atomic_write_bytes(tmp_path / ("n" * 300), b"x")


def test_a_folder_without_permission(complaints_as_nobody: Complaints) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "locked"
        folder.mkdir(mode=0o555)
        said = complaints_as_nobody(
            [
                lambda: atomic_write_bytes(folder / "a.bin", b"x"),
                lambda: check_writable(folder),
                lambda: staged_folder(folder / "desk", last="x").__enter__(),
                lambda: staged_folder("/", last="x").__enter__(),
            ]
        )
        assert len(said) == 4
        assert all("no permission" in line for line in said)
        assert all(str(folder) in line for line in said[:3])
        assert everything_in(folder) == []


def test_a_folder_is_filled_whose_parent_may_not_be_written(complaints_as_nobody: Complaints) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "mine"
        folder.mkdir()
        folder.chmod(0o777)

        def fill() -> None:
            with staged_folder(folder, last="done") as staging:
                (staging / "done").write_text("new")

        assert complaints_as_nobody([fill]) == ["written"]
        assert everything_in(Path(name)) == ["mine", "mine/done"]


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no permission to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_nothing_behind(small_disk: Path) -> None:
    with pytest.raises(OutputError, match="disk is full; free some space"):
        atomic_write_bytes(small_disk / "a.bin", b"x" * 1_000_000)
    with pytest.raises(OutputError, match="disk is full"):
        atomic_write_npy(small_disk / "a.npy", np.zeros((1000, 1000), np.float32))
    assert everything_in(small_disk) == []
    atomic_write_bytes(small_disk / "b.bin", b"x" * 1000)
    assert everything_in(small_disk) == ["b.bin"]


def test_a_read_only_disk(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OutputError, match="read-only"):
        atomic_write_bytes(small_disk / "a.bin", b"x")
    with pytest.raises(OutputError, match="read-only"):
        check_writable(small_disk / "new" / "deeper")


def test_a_mounted_folder_is_filled(small_disk: Path) -> None:
    (small_disk / "done").write_text("old")
    with staged_folder(small_disk, last="done") as staging:
        (staging / "done").write_text("new")
    assert (small_disk / "done").read_text() == "new"
    assert everything_in(small_disk) == ["done"]


def test_check_writable_creates_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert everything_in(tmp_path) == []


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "out" / "desk", last="done") as staging:
        (staging / "a").write_text("1")
        (staging / "sub").mkdir()
        (staging / "sub" / "b").write_text("2")
        (staging / "done").write_text("")
        assert not (tmp_path / "out" / "desk").exists()
    assert everything_in(tmp_path / "out") == ["desk", "desk/a", "desk/done", "desk/sub", "desk/sub/b"]


def test_replacing_a_folder_keeps_foreign_files(tmp_path: Path) -> None:
    folder = tmp_path / "desk"
    (folder / "sub").mkdir(parents=True)
    for name in ("notes.txt", "a", "done", "sub/b"):
        (folder / name).write_text("old")
    with staged_folder(folder, last="done") as staging:
        (staging / "sub").mkdir()
        for name in ("a", "done", "sub/b"):
            (staging / name).write_text("new")
    assert (folder / "notes.txt").read_text() == "old"
    assert [(folder / n).read_text() for n in ("a", "done", "sub/b")] == ["new"] * 3
    assert everything_in(tmp_path) == [
        "desk",
        "desk/a",
        "desk/done",
        "desk/notes.txt",
        "desk/sub",
        "desk/sub/b",
    ]


def test_a_failure_while_staging_leaves_the_old_folder_untouched(tmp_path: Path) -> None:
    folder = tmp_path / "desk"
    folder.mkdir()
    (folder / "a").write_text("old")
    (folder / "done").write_text("old")
    with pytest.raises(OutputError, match="disk is full"), staged_folder(folder, last="done") as staging:
        (staging / "a").write_text("new")
        raise OSError(errno.ENOSPC, "")
    assert (folder / "a").read_text() == (folder / "done").read_text() == "old"
    assert everything_in(tmp_path) == ["desk", "desk/a", "desk/done"]


def test_a_crash_while_moving_files_reads_as_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "desk"
    folder.mkdir()
    for name in ("a", "b", "done"):
        (folder / name).write_text("old")
    real, calls = os.replace, []

    def replace_once(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace_once)
    with pytest.raises(OutputError), staged_folder(folder, last="done") as staging:
        for name in ("a", "b", "done"):
            (staging / name).write_text("new")
    assert not (folder / "done").exists()
    assert everything_in(tmp_path) == ["desk", "desk/a", "desk/b"]


def test_leftovers_of_killed_runs_go_and_those_of_living_runs_stay(tmp_path: Path) -> None:
    dead, other = tmp_path / ".desk.1-00000000.partial", tmp_path / ".desk.2.3-00000000.partial"
    for leftover in (dead, other):
        leftover.mkdir()
        (leftover / "x").write_text("")
    with staged_folder(tmp_path / "desk", last="done") as living:
        assert not dead.exists()
        assert other.exists()  # of a result called "desk.2"
        with staged_folder(tmp_path / "desk", last="done") as staging:
            (staging / "done").write_text("")
        assert living.exists()
        (living / "done").write_text("again")
    assert (tmp_path / "desk" / "done").read_text() == "again"
    inside = tmp_path / "desk" / ".desk.1-00000000.partial"
    inside.mkdir()
    with staged_folder(tmp_path / "desk", last="done") as staging:
        assert staging.parent == tmp_path / "desk" and not inside.exists()
        inside.mkdir()
        (staging / "done").write_text("")
    remove_stagings(tmp_path)
    assert everything_in(tmp_path) == ["desk", "desk/done"]


def test_without_locks_leftovers_go_once_they_are_old(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files, "try_lock", lambda descriptor: None)
    old, young = tmp_path / ".desk.1-00000000.partial", tmp_path / ".desk.2-00000000.partial"
    for leftover in (old, young):
        leftover.mkdir()
    os.utime(old, (0, 0))
    with staged_folder(tmp_path / "desk", last="done") as staging:
        (staging / "done").write_text("")
    assert not old.exists()
    assert young.exists()


def test_a_full_disk_is_told_through_the_libraries_that_hide_it(small_disk: Path) -> None:
    import torch
    from safetensors.torch import save_file

    big = {"weight": torch.zeros(1 << 20)}
    with (
        pytest.raises(OutputError, match="disk is full"),
        atomic_path(small_disk / "a.safetensors") as path,
    ):
        save_file(big, path)
    with pytest.raises(OutputError, match="disk is full"), atomic_path(small_disk / "a.ckpt") as path:
        torch.save(big, path)
    assert everything_in(small_disk) == []


def test_a_folder_that_another_process_made_meanwhile_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "shard"
    move = os.replace

    def slow(source: Path, destination: Path) -> None:
        if destination == target and not target.exists():
            target.mkdir()
            (target / "done").write_text("theirs")
        move(source, destination)

    monkeypatch.setattr(os, "replace", slow)
    with staged_folder(target, last="done") as staging:
        (staging / "done").write_text("ours")
    assert everything_in(tmp_path) == ["shard", "shard/done"] and (target / "done").read_text() == "ours"
