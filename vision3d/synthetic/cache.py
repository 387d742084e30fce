"""Rendered samples on disk, so that training re-reads them instead of rendering them again.

A cache is a folder of shards, each with ``SHARD`` consecutive seeds as plain ``.npy`` arrays that are
memory-mapped: reading one sample touches its own bytes only. A shard appears under its name when it is
complete, never before, so filling may be stopped and resumed at will, by several processes at once.

Fill one with ``vision3d synthesize --shards --out DIR --count 20000 --size 128 128 --workers 2``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.errors import InputError
from vision3d.io.files import DAMAGED, remove_stagings, staged_folder, write_npy
from vision3d.progress import progress
from vision3d.synthetic.sample import KEYPOINT, Sample

SHARD = 120
"""Samples per shard; a multiple of the views per scene."""

VERSION = 1


class _MadeElsewhere(Exception):
    """Another process was faster."""


@dataclass(frozen=True)
class CachedSample:
    """What a cache keeps of a sample. Arrays are copies or cheap conversions of mapped memory."""

    image: np.ndarray  # (H, W, 3) uint8
    depth: np.ndarray  # (H, W) float32 metres, inf for sky
    normals: np.ndarray  # (H, W, 3) float32, unit within 0.5°
    semantic: np.ndarray  # (H, W) uint8
    object_id: np.ndarray  # (H, W) uint16
    part_id: np.ndarray  # (H, W) uint16
    K: np.ndarray  # (3, 3) float64
    cam_to_world: np.ndarray  # (4, 4) float64
    keypoints: np.ndarray  # (N,) of sample.KEYPOINT
    caption: str
    kind: str
    seed: int


_ARRAYS: dict[str, tuple[str, tuple[int, ...]]] = {
    "image": ("u1", (3,)),
    "depth": ("f4", ()),
    "normals": ("i1", (3,)),
    "semantic": ("u1", ()),
    "object_id": ("u2", ()),
    "part_id": ("u2", ()),
}


class ShardCache:
    """A folder of rendered samples, random access by position.

    Args:
        folder: where the shards are; made by :meth:`fill` or :meth:`write_shard`.

    Positions 0 … len - 1 run over the seeds of all complete shards in rising order.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._open: dict[int, dict[str, Any]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Looks for shards that were completed since."""
        self.shards: list[tuple[int, int]] = []  # (first seed, count)
        self.sizes: list[tuple[int, int]] = []  # height and width of every shard's samples
        self.handheld: list[bool] = []  # whether they are views of a hand-held camera
        self.damaged: list[Path] = []  # shards that cannot be read
        for path in sorted(self.folder.glob("shard-*/meta.json")):
            try:
                meta = json.loads(path.read_text())
                if meta["version"] != VERSION:
                    raise InputError(
                        f"{path.parent} is of cache version {meta['version']}", "render it again"
                    )
                held, size = (meta["first"], meta["count"]), (meta["size"][0], meta["size"][1])
                handheld = bool(meta.get("handheld", False))
            except DAMAGED:
                self.damaged.append(path.parent)
                continue
            self.shards.append(held)
            self.sizes.append(size)
            self.handheld.append(handheld)
        self._ends = np.cumsum([count for _, count in self.shards]) if self.shards else np.zeros(0, int)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __repr__(self) -> str:
        sizes = ", ".join(f"{height}x{width}" for height, width in sorted(set(self.sizes)))
        return f"ShardCache({str(self.folder)!r}: {len(self)} samples of {sizes})"

    def seeds(self) -> np.ndarray:
        """(N,) int64 seed of every position."""
        parts = [np.arange(first, first + count) for first, count in self.shards]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _shard(self, index: int) -> dict[str, Any]:
        if index not in self._open:
            folder = self.folder / _name(self.shards[index][0])
            arrays: dict[str, Any] = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in (*_ARRAYS, "K", "pose")
            }
            arrays["keypoints"] = np.load(folder / "keypoints.npy")
            arrays["keypoint_ends"] = np.load(folder / "keypoint_ends.npy")
            arrays["meta"] = json.loads((folder / "meta.json").read_text())
            self._open[index] = arrays
        return self._open[index]

    def _locate(self, position: int) -> tuple[dict[str, Any], int]:
        if not -len(self) <= position < len(self):
            raise IndexError(f"position {position} of {len(self)}")
        position %= len(self)
        index = int(np.searchsorted(self._ends, position, side="right"))
        return self._shard(index), position - (int(self._ends[index - 1]) if index else 0)

    def array(self, name: str, position: int) -> np.ndarray:
        """One stored array as it lies on disk (normals: int8, times 1/127); nothing else is read."""
        shard, row = self._locate(position)
        return shard[name][row]

    def caption(self, position: int) -> str:
        """The caption alone."""
        shard, row = self._locate(position)
        return shard["meta"]["captions"][row]

    def __getitem__(self, position: int) -> CachedSample:
        shard, row = self._locate(position)
        ends = shard["keypoint_ends"]
        start = int(ends[row - 1]) if row else 0
        return CachedSample(
            image=np.array(shard["image"][row]),
            depth=np.array(shard["depth"][row]),
            normals=shard["normals"][row].astype(np.float32) * np.float32(1 / 127),
            semantic=np.array(shard["semantic"][row]),
            object_id=np.array(shard["object_id"][row]),
            part_id=np.array(shard["part_id"][row]),
            K=np.array(shard["K"][row]),
            cam_to_world=np.array(shard["pose"][row]),
            keypoints=shard["keypoints"][start : int(ends[row])],
            caption=shard["meta"]["captions"][row],
            kind=shard["meta"]["kinds"][row],
            seed=shard["meta"]["first"] + row,
        )

    def write_shard(
        self, first: int, samples: Iterator[Sample], size: tuple[int, int], count: int, handheld: bool = False
    ) -> Path:
        """Writes ``count`` samples with seeds from ``first`` on as one shard, atomically; a shorter one is replaced.

        Raises:
            OutputError: where the folder cannot be written; nothing is left behind.
        """
        target = self.folder / _name(first)
        with suppress(_MadeElsewhere), staged_folder(target, last="meta.json") as work:
            arrays = {
                name: _mapped(work / f"{name}.npy", dtype, (count, *size, *tail))
                for name, (dtype, tail) in _ARRAYS.items()
            }
            K, pose = np.zeros((count, 3, 3)), np.zeros((count, 4, 4))
            keypoints, ends, captions, kinds = [np.zeros(0, KEYPOINT)], [], [], []
            total = 0
            for row in range(count):
                s = next(samples)
                if s.seed != first + row:
                    raise InputError(f"sample of seed {s.seed} where {first + row} belongs")
                arrays["image"][row] = s.image
                arrays["depth"][row] = s.depth
                arrays["normals"][row] = np.rint(s.normals * 127)
                arrays["semantic"][row] = s.semantic
                arrays["object_id"][row] = np.minimum(s.object_id, 65535)
                arrays["part_id"][row] = np.minimum(s.part_id, 65535)
                K[row], pose[row] = s.K, s.cam_to_world
                keypoints.append(s.keypoints)
                total += len(s.keypoints)
                ends.append(total)
                captions.append(s.caption)
                kinds.append(s.kind)
            for array in arrays.values():
                array.flush()
            del arrays
            write_npy(work / "K.npy", K)
            write_npy(work / "pose.npy", pose)
            write_npy(work / "keypoints.npy", np.concatenate(keypoints))
            write_npy(work / "keypoint_ends.npy", np.array(ends))
            meta = {
                "version": VERSION,
                "first": first,
                "count": count,
                "size": list(size),
                "handheld": handheld,
                "captions": captions,
                "kinds": kinds,
            }
            (work / "meta.json").write_text(json.dumps(meta))
            if _holds(target, count, handheld):  # the same seeds give the same bytes
                raise _MadeElsewhere
        return target

    def fill(self, seeds: range, size: tuple[int, int], workers: int = 1, handheld: bool = False) -> int:
        """Renders the shards that are missing.

        Args:
            seeds: consecutive; begin and end at multiples of ``SHARD`` for shards that others can share.
            size: height and width; shards of other seeds may have another.
            workers: rendering processes.
            handheld: see :func:`vision3d.synthetic.render_sample`.

        Returns:
            How many samples were rendered.
        """
        if seeds.step != 1 or not len(seeds):
            raise InputError(f"seeds {seeds} are not a rising run", "give a first and a last seed")
        remove_stagings(self.folder)
        have = {
            first: (count, shape, kind)
            for (first, count), shape, kind in zip(self.shards, self.sizes, self.handheld, strict=True)
        }
        runs = []
        for first in range(seeds.start, seeds.stop, SHARD):
            count = min(SHARD, seeds.stop - first)
            present, shape, kind = have.get(first, (0, tuple(size), handheld))
            if shape != tuple(size):
                raise InputError(
                    f"{self.folder} holds samples of these seeds in {shape[0]}x{shape[1]}",
                    "use another folder for this size, or other seeds",
                )
            if kind != handheld:
                raise InputError(
                    f"{self.folder} holds {'hand-held' if kind else 'usual'} views of these seeds",
                    "use another folder for these, or other seeds",
                )
            if present < count:
                runs.append((first, count))
        todo = sum(count for _, count in runs)
        with closing(_rendered(runs, size, workers, handheld)) as rendered:
            samples = iter(progress(rendered, total=todo, description="synthesize"))
            for first, count in runs:
                self.write_shard(first, samples, size, count, handheld)
        self.refresh()
        return todo


def _mapped(path: Path, dtype: str, shape: tuple[int, ...]) -> np.memmap:
    """A new ``.npy`` file to fill through memory. Raises OSError where there is no room for all of it."""
    array: np.memmap = np.lib.format.open_memmap(path, "w+", dtype, shape)
    # a sparse file on a full disk would end the process when it is written
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def _rendered(
    runs: list[tuple[int, int]], size: tuple[int, int], workers: int, handheld: bool
) -> Generator[Sample, None, None]:
    """The samples of runs of seeds, each given by its first and its length."""
    from vision3d.synthetic.stream import WorldStream

    for group in _consecutive(runs):
        low, high = group[0][0], group[-1][0] + group[-1][1]
        with WorldStream(range(low, high), size, workers, handheld=handheld) as stream:
            yield from stream


def _consecutive(runs: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Groups of runs without gaps, so that one stream serves each group."""
    group: list[tuple[int, int]] = []
    for first, count in runs:
        if group and group[-1][0] + group[-1][1] != first:
            yield group
            group = []
        group.append((first, count))
    if group:
        yield group


def _holds(shard: Path, count: int, handheld: bool) -> bool:
    """Whether a shard is there with so many samples of that kind."""
    try:
        meta = json.loads((shard / "meta.json").read_text())
        return meta["count"] >= count and meta.get("handheld", False) == handheld
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _name(first: int) -> str:
    return f"shard-{first:09d}"
