"""Runs on Ray: results as in one process, errors as they are, nothing read far ahead."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision3d.engines import LocalEngine, RayEngine, _Actor, engine_of, share_out
from vision3d.errors import ResourceError, WeightsError
from vision3d.progress import is_debug, is_quiet, set_debug, set_quiet


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ResourceError, match=r"vision3d\[ray\]"):
        engine_of("ray")
    assert isinstance(engine_of("local"), LocalEngine)


@pytest.mark.parametrize(
    ("machines", "actors", "shares"),
    [
        ([{"CPU": 64.0}, {"CPU": 4.0}], None, (2, 4, 0)),
        ([{"CPU": 16.0}], 2, (2, 8, 0)),
        ([{"CPU": 64.0}, {"CPU": 4.0}], 3, (3, 2, 0)),
        ([{"CPU": 8.0, "GPU": 4.0}, {"CPU": 32.0, "GPU": 1.0}, {"CPU": 64.0}], None, (5, 2, 1)),
        ([{"CPU": 2.0, "GPU": 8.0}], None, (2, 1, 1)),
        ([{"memory": 1e9}, {"CPU": 8.0}], None, (1, 8, 0)),  # the first only leads the cluster
    ],
)
def test_every_actor_finds_room_on_some_machine(
    machines: list[dict[str, float]], actors: int | None, shares: tuple[int, int, int]
) -> None:
    count, cpus, gpus = share_out(machines, actors)
    assert (count, cpus, gpus) == shares
    rooms = [min(m.get("CPU", 0) // cpus, m.get("GPU", 0) // gpus if gpus else 99) for m in machines]
    assert sum(rooms) >= count


class Doubles:
    """Twice a number; where that was computed; and an error for 13."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, number: int) -> tuple[int, int, str]:
        if number == 13:
            raise WeightsError("no weights for 13", "take 12")
        (self.folder / f"{number}-{os.getpid()}").touch()
        return 2 * number, os.getpid(), str(Path.cwd())


def test_actors_are_as_quiet_and_as_open_as_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path.parent)
    try:
        _Actor(Doubles(tmp_path), tmp_path, quiet=True, debug=True)
        assert is_quiet() and is_debug() and Path.cwd() == tmp_path
    finally:
        set_quiet(False), set_debug(False)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ray_applies_a_worker_in_processes_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    taken: list[int] = []

    def numbers(last: int) -> Iterator[int]:
        for number in range(last):
            taken.append(number)
            yield number

    results = []
    for result in RayEngine(actors=2).map(Doubles(tmp_path), numbers(12)):
        results.append(result)
        assert len(taken) <= len(results) + 3  # what two actors have, and the next
    assert sorted(value for value, _, _ in results) == list(range(0, 24, 2))
    pids = {pid for _, pid, _ in results}
    assert len(pids) == 2 and os.getpid() not in pids
    assert {folder for _, _, folder in results} == {str(Path.cwd())}
    assert len(list(tmp_path.iterdir())) == 12
    with pytest.raises(WeightsError, match="take 12"):
        list(RayEngine(actors=1).map(Doubles(tmp_path), numbers(15)))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_folder_comes_out_of_ray_as_it_does_here(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("ray")
    from vision3d.cli import main

    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(photos / f"{i}.png")
    (photos / "broken.png").write_bytes(b"not a picture")
    for engine in ("local", "ray"):
        command = ("depth", photos, "--out", tmp_path / engine, "--weights", "mini", "--engine", engine)
        code = main([str(part) for part in command])
        assert code == 2 and "broken.png" in capsys.readouterr().err
    for i in range(3):
        here, there = (np.load(tmp_path / engine / str(i) / "depth.npy") for engine in ("local", "ray"))
        np.testing.assert_allclose(here, there, atol=1e-4)


def test_frames_that_depend_on_each_other_stay_in_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    import cv2

    from vision3d.cli import main

    film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 48))
    for value in (80, 120):
        film.write(np.full((48, 64, 3), value, np.uint8))
    film.release()
    command = ["normals", str(tmp_path / "film.avi"), "--out", str(tmp_path / "out"), "--weights", "mini"]
    assert main([*command, "--engine", "ray"]) == 2
    assert "--stabilise 0" in capsys.readouterr().err and not (tmp_path / "out").exists()
