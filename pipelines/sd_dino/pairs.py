"""All pairs of two sets of images: each image encoded once, memory bounded, a folder of results per pair."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision3d.errors import InputError, ResourceError, Vision3DError, WeightsError
from vision3d.paths import numbered
from vision3d.progress import progress, warn
from vision3d.runs import (
    Outcome,
    RunSummary,
    check_inputs,
    failure,
    photo_refs,
    remove_remains,
    until_one_is_free,
)

if TYPE_CHECKING:
    from vision3d.io.images import Photo, PhotoRef
    from vision3d.prediction import Prediction

MEMORY = 1_500_000_000
"""Bytes of features (in half precision) that a run keeps at hand by default."""


@dataclass(frozen=True)
class PairJob:
    """One pair.

    Attributes:
        first, second: names in :class:`Images`.
        name: of its results.
    """

    first: str
    second: str
    name: str


class Images:
    """The images of a run by name; at most a few decoded at once.

    Args:
        inputs: as a verb takes them.
        recursive: look into nested folders.

    Raises:
        InputError: nothing there, or a video.
    """

    def __init__(self, inputs: Sequence[str], *, recursive: bool = False) -> None:
        if check_inputs(inputs, recursive=recursive) is None:
            raise InputError(
                f"there is a video in {', '.join(inputs)}, where images are needed",
                "save its frames as images, or leave it out by a pattern such as 'photos/*.jpg'",
            )
        self.refs: dict[str, PhotoRef] = {r.name: r for r in photo_refs(list(inputs), recursive=recursive)}
        self._decoded: OrderedDict[str, Photo] = OrderedDict()

    def __len__(self) -> int:
        return len(self.refs)

    def __iter__(self) -> Iterator[str]:
        return iter(self.refs)

    def label(self, name: str) -> str:
        """What messages call an image."""
        return self.refs[name].label

    def photo(self, name: str) -> Photo:
        """An image. Raises InputError for one that cannot be read."""
        if name not in self._decoded:
            self._decoded[name] = self.refs[name].load()
            while len(self._decoded) > 16:
                self._decoded.popitem(last=False)
        self._decoded.move_to_end(name)
        return self._decoded[name]


def pair_jobs(first: Images, second: Images) -> list[PairJob]:
    """Every pair of an image of one set with one of the other; where both sets are one, each pair once and none alone.

    The second set changes fastest, in alternating directions, so that the features at hand are used again.
    """
    same = [r.path for r in first.refs.values()] == [r.path for r in second.refs.values()] and len(first) > 1
    single = len(first) == 1 and len(second) == 1
    jobs: list[PairJob] = []
    taken: set[str] = set()
    names = list(second)
    for i, a in enumerate(first):
        others = names[i + 1 :] if same else names
        for b in others[:: 1 if i % 2 == 0 else -1]:
            title = f"{a}__{b}" if single else f"{a}__{b}".replace("/", "-")
            title = numbered(title, taken.__contains__)  # names may hold what joins them
            taken.add(title)
            jobs.append(PairJob(a, b, title))
    return jobs


class Kept:
    """The most recently used values, up to a number of bytes.

    Args:
        make: computes the value of a key that is not there.
        limit: bytes.

    Attributes:
        made: values that were computed.
    """

    def __init__(self, make: Callable[[str], Any], limit: int) -> None:
        self.make, self.limit = make, limit
        self.made = 0
        self._values: OrderedDict[str, Any] = OrderedDict()
        self._bytes = 0

    def __call__(self, key: str) -> Any:
        """The value of a key."""
        if key not in self._values:
            value = self.make(key)
            self.made += 1
            self._values[key] = value
            self._bytes += value.nbytes
            while self._bytes > self.limit and len(self._values) > 2:
                _, dropped = self._values.popitem(last=False)
                self._bytes -= dropped.nbytes
        self._values.move_to_end(key)
        return self._values[key]


def run_pairs(
    jobs: Sequence[PairJob],
    sets: tuple[Images, Images],
    process: Callable[[PairJob, Photo, Photo], Prediction],
    out: Path,
    *,
    kind: str,
    fingerprint: Callable[[Photo, Photo], str],
    overwrite: bool = False,
    description: str = "pairs",
) -> RunSummary:
    """Process pairs into ``out/<name>/``, skipping what is complete and right, going on after a bad one.

    What another living run is making is left to it and looked at again in the end.

    Args:
        jobs: the pairs.
        sets: where their images are.
        process: the loaded method.
        out: output folder.
        kind: of the results; where one of another kind is, nothing is computed.
        fingerprint: of the work on a pair, which its saved result must bear to be skipped.
        overwrite: process everything again.
        description: what the bar counts.

    Raises:
        Vision3DError: what stops all work, and what was wrong if there is only one pair.
        KeyboardInterrupt: with a text that says what was finished.
    """
    from vision3d.io.claims import claim
    from vision3d.io.files import check_writable
    from vision3d.prediction import is_complete, refuse_other_kind

    if not jobs:
        raise InputError("there is no pair of different images", "name another image or folder")
    check_writable(out)
    remove_remains(out)
    summary = RunSummary(out)
    started = time.monotonic()
    bar: Any = progress(total=len(jobs), description=description)

    def one(job: PairJob) -> Outcome | None:
        """What came of a pair; None where another run has it."""
        label = f"{sets[0].label(job.first)} and {sets[1].label(job.second)}"
        folder = out / job.name
        try:
            first, second = sets[0].photo(job.first), sets[1].photo(job.second)
            mark = fingerprint(first, second)
            refuse_other_kind(folder, kind)
            skipped = Outcome(job.name, label, "skipped", folder)
            if not overwrite and is_complete(folder, mark):
                return skipped
            ours = claim(folder)
            if ours is None:
                return None
            try:
                # Another run may have finished it since the first look.
                if not overwrite and is_complete(folder, mark):
                    return skipped
                process(job, first, second).save(folder)
            finally:
                ours.release()
        except (WeightsError, ResourceError):
            raise
        except Exception as error:
            return failure(job.name, label, error)
        return Outcome(job.name, label, "done", folder)

    left = list(jobs)
    try:
        with bar:
            while left:
                elsewhere = []
                for job in left:
                    outcome = one(job)
                    if outcome is None:
                        elsewhere.append(job)
                        continue
                    if outcome.stop and outcome.error is not None:
                        raise summary.ended_by(outcome.error) if len(jobs) > 1 else outcome.error
                    summary.add(outcome)
                    bar.advance()
                    if outcome.status == "failed" and len(jobs) > 1:
                        warn(f"{outcome.label}: {outcome.reason}")
                if elsewhere:
                    until_one_is_free(out, [job.name for job in elsewhere])
                left = elsewhere
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted with {summary.progress}") from None
    finally:
        summary.seconds = time.monotonic() - started
    error: Vision3DError | None = summary.outcomes[0].error if len(jobs) == 1 else None
    if error is not None:
        raise error
    return summary
