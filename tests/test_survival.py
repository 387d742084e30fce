"""``vision3d depth FOLDER`` is killed at any moment, runs twice at once, fills the disk, may not write.

Importing torch takes longer than the work on small pictures. So one process imports everything and forks a child
for each run, which makes the moments of death fall into the work instead of the imports.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision3d.prediction import RECORD, read_record

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs fork, mounts and capabilities"
)

SERVER = textwrap.dedent(
    """
    import ctypes, json, os, signal, sys
    import vision3d.pipelines.primedepth.verb, vision3d.pipelines.primedepth.pipeline, vision3d.results
    import vision3d.io.mesh, vision3d.io.depth, scipy.spatial, PIL.Image, cv2, tyro, trimesh, plyfile
    from vision3d.cli import main

    def obey_permissions():
        # Without CAP_DAC_OVERRIDE (1) and CAP_DAC_READ_SEARCH (2) even root is asked for permissions.
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        libc = ctypes.CDLL(None)
        libc.capget(header, data)
        data[0], data[1] = data[0] & ~6, data[1] & ~6
        libc.capset(header, data)

    # Nothing is computed here: the threads would not be there in the children.
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            print(os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            code = 70
            try:
                log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(log, 1), os.dup2(log, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                obey_permissions()
                code = main(order["run"])
                sys.stdout.flush(), sys.stderr.flush()
            finally:
                os._exit(code)
        print(child, flush=True)
    """
)


class Runs:
    """Starts runs of the command line as forks of a process that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline().strip()

    def order(self, **order: object) -> int:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order) + "\n")
        self._server.stdin.flush()
        return int(self._read())

    def start(self, *words: object) -> Run:
        """Start ``vision3d WORDS``."""
        self._count += 1
        log = self._folder / f"{self._count}.log"
        return Run(self, self.order(run=[str(word) for word in words], log=str(log)), log)

    def __call__(self, *words: object) -> tuple[int, str]:
        """Exit code and everything that was printed."""
        return self.start(*words).wait()

    def stop(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()


@dataclass
class Run:
    """One of them."""

    runs: Runs
    pid: int
    log: Path

    def end(self, number: int) -> tuple[int, str]:
        """Send a signal and wait."""
        os.kill(self.pid, number)  # until it is waited for, the number is not given to another process
        return self.wait()

    def wait(self) -> tuple[int, str]:
        """Exit code and everything that was printed."""
        code = self.runs.order(wait=self.pid)
        return code, self.log.read_text()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    running = Runs(tmp_path_factory.mktemp("logs"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i in range(6):
        coarse = np.random.default_rng(i).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((80, 64), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """All files, hidden ones too, by their place in ``folder``."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@dataclass
class Undisturbed:
    """A run that nothing happened to."""

    files: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(runs: Runs, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    started = time.monotonic()
    code, text = runs("depth", photos, "--out", out, "--quiet")
    assert (code, text) == (0, "")
    files = contents(out)
    assert sum(name.endswith("depth.npy") for name in files) == 6
    return Undisturbed(files, time.monotonic() - started)


def assert_whatever_looks_finished_is(out: Path, truth: dict[str, bytes]) -> int:
    """Every result with a record is the right one; returns how many there are."""
    found = [record.parent for record in out.rglob(RECORD) if not record.parent.name.startswith(".")]
    for folder in found:
        for name in (RECORD, *read_record(folder)["files"]):  # type: ignore[index]
            assert (folder / name).read_bytes() == truth[f"{folder.name}/{name}"]
    return len(found)


def kill_at_random_points(
    runs: Runs, photos: Path, undisturbed: Undisturbed, out: Path, kills: int
) -> list[int]:
    """Kills that many runs, up to three before one is left alone; results that each had when it died.

    Every other one gets a random time, the rest a random number of results and a little more: how fast the machine
    is changes from one moment to the next.
    """
    rng = random.Random(kills)
    had = []
    while len(had) < kills:
        for _ in range(min(rng.randint(1, 3), kills - len(had))):
            run = runs.start("depth", photos, "--out", out, "--quiet")
            if len(had) % 2:
                time.sleep(rng.uniform(0, 1.1 * undisturbed.seconds))
            else:
                wanted, ends = rng.randint(0, 5), time.monotonic() + 3 * undisturbed.seconds
                while len(list(out.glob(f"[!.]*/{RECORD}"))) < wanted and time.monotonic() < ends:
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, undisturbed.seconds / 6))
            run.end(signal.SIGKILL)
            had.append(assert_whatever_looks_finished_is(out, undisturbed.files))
        assert runs("depth", photos, "--out", out, "--quiet") == (0, "")
        assert contents(out) == undisturbed.files
        shutil.rmtree(out)
    return had


def test_a_killed_run_is_made_good_to_the_byte(runs, photos, undisturbed, tmp_path) -> None:
    had = kill_at_random_points(runs, photos, undisturbed, tmp_path / "out", 5)
    assert any(0 < count < 6 for count in had)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_killed_runs_are_made_good_to_the_byte(runs, photos, undisturbed, tmp_path) -> None:
    had = kill_at_random_points(runs, photos, undisturbed, tmp_path / "out", 50)
    print("results there at each death:", had)
    assert sum(0 < count < 6 for count in had) > 15


def test_two_runs_share_the_work_of_one_folder(runs, photos, undisturbed, tmp_path) -> None:
    both = [runs.start("depth", photos, "--out", tmp_path / "out", "--quiet", "--json") for _ in range(2)]
    reports = [json.loads(text.splitlines()[-1]) for _, text in (run.wait() for run in both)]
    assert [report["exit_code"] for report in reports] == [0, 0]
    assert sum(report["done"] for report in reports) == 6
    assert all(report["done"] + report["skipped"] == 6 for report in reports)
    assert contents(tmp_path / "out") == undisturbed.files


def test_a_run_takes_over_from_one_that_is_killed_beside_it(runs, photos, undisturbed, tmp_path) -> None:
    first, second = (runs.start("depth", photos, "--out", tmp_path / "out", "--quiet") for _ in range(2))
    time.sleep(undisturbed.seconds * 0.4)
    first.end(signal.SIGKILL)
    assert second.wait() == (0, "")
    assert contents(tmp_path / "out") == undisturbed.files


def test_ctrl_c_is_one_line_that_says_what_was_done(runs, photos, undisturbed, tmp_path) -> None:
    out = tmp_path / "out"
    run = runs.start("depth", photos, "--out", out, "--quiet")
    while not list(out.glob(f"[!.]*/{RECORD}")):
        time.sleep(0.005)
    code, text = run.end(signal.SIGINT)
    there = assert_whatever_looks_finished_is(out, undisturbed.files)
    (line,) = text.splitlines()
    assert code == 130
    assert line.startswith("interrupted with ") and "the same command goes on from there" in line
    assert abs(int(line.split()[2]) - there) <= 1  # it may fall between writing a result and counting it
    assert runs("depth", photos, "--out", out, "--quiet") == (0, "")
    assert contents(out) == undisturbed.files


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with 10 MB until it is mounted again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", disk], capture_output=True
    ).returncode:
        pytest.skip("may not mount file systems")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk_is_one_line_and_the_next_run_completes(runs, photos, undisturbed, small_disk) -> None:
    """From a disk that takes next to nothing to one that takes all but the end, with every format."""
    command = ("depth", photos, "--quiet", "--formats", "exr", "npz", "obj", "--out")
    assert runs(*command, small_disk / "whole") == (0, "")
    truth = contents(small_disk / "whole")
    assert {name: truth[name] for name in truth if name.endswith(".npy")} == {
        name: undisturbed.files[name] for name in undisturbed.files if name.endswith(".npy")
    }
    pages = sum(-(-len(content) // 4096) for content in truth.values())
    shutil.rmtree(small_disk / "whole")
    out = small_disk / "out"
    filling = small_disk / "filling"
    outcomes = set()
    for share in (0.02, 0.3, 0.6, 0.98):
        room = int(pages * share) * 4096
        filling.write_bytes(b"\0" * (shutil.disk_usage(small_disk).free - room))
        code, text = runs(*command, out)
        (line,) = text.splitlines()
        assert code == 2 and line.startswith(f"vision3d: cannot write {out}") and "the disk is full" in line
        there = assert_whatever_looks_finished_is(out, truth)
        assert f"({there} finished in {out}" in line
        assert set(contents(small_disk)) <= {f"out/{name}" for name in truth} | {"filling"}
        outcomes.add(there)
        filling.unlink()
        assert runs(*command, out) == (0, "")
        assert contents(out) == truth
        shutil.rmtree(out)
    assert len(outcomes) >= 3


def test_a_disk_that_may_not_be_written_is_one_line(runs, photos, undisturbed, small_disk) -> None:
    for out in (small_disk / "out", small_disk / "new" / "deep"):
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        code, text = runs("depth", photos, "--out", out, "--quiet")
        (line,) = text.splitlines()
        assert code == 2 and "the file system is read-only" in line
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        assert runs("depth", photos, "--out", out, "--quiet") == (0, "")
        assert contents(out) == undisturbed.files


def test_no_permission_is_one_line_and_the_next_run_completes(runs, photos, undisturbed, tmp_path) -> None:
    out = tmp_path / "out"
    tmp_path.chmod(0o555)
    code, text = runs("depth", photos, "--out", out, "--quiet")
    tmp_path.chmod(0o755)
    (line,) = text.splitlines()
    assert code == 2 and line.startswith(f"vision3d: cannot write {out}: there is no permission")
    assert not out.exists()
    # A folder of one earlier result that somebody has closed: it alone fails.
    (out / "3").mkdir(parents=True)
    (out / "3").chmod(0o555)
    code, text = runs("depth", photos, "--out", out, "--quiet")
    assert code == 2 and "there is no permission to write there" in text.splitlines()[0]
    assert assert_whatever_looks_finished_is(out, undisturbed.files) == 5
    assert not any(Path(name).parts[0] in ("3", ".3") for name in contents(out))
    (out / "3").chmod(0o755)
    assert runs("depth", photos, "--out", out, "--quiet") == (0, "")
    assert contents(out) == undisturbed.files
