"""Photographs in, result folders out: what every verb that processes images shares.

A run goes through its inputs once, loads an image only when its turn comes, skips what is already there and
right, goes on after a bad file, and ends with a summary. The method is loaded when the first image needs it:
a run with nothing to do loads nothing, and a run whose only image is broken says so at once.

A run may be killed at any moment, and several may share an output folder, also from several machines: every result
is either whole or absent, and made by the one run that has claimed it. What a killed run left is done by the next;
what another living run has claimed is left to it, and looked at again in the end.

What runs where is the engine's business (:mod:`vision3d.engines`): every one applies the same picklable
:class:`Worker` to the same batches.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vision3d.engines import Engine, LocalEngine
from vision3d.errors import InputError, OutputError, ResourceError, Vision3DError, WeightsError
from vision3d.memory import BackOff, is_out_of_memory
from vision3d.progress import Progress, progress, say, show_traceback, warn

if TYPE_CHECKING:
    from vision3d.io.claims import Claim
    from vision3d.io.images import Photo, PhotoRef, Sources
    from vision3d.prediction import Prediction

Process = Callable[[Sequence["Photo"]], Sequence["Prediction"]]
"""A loaded method: predictions for photographs of one size, in order.

When memory runs out it gets fewer photographs at once. If it has a method ``use_less_memory() -> str | None``, that
is called when even one is too much: from then on each photograph has to need less (smaller tiles, say), and the
answer says how, or is None when nothing is left to try.
"""

MAX_WAITING_PIXELS = 64_000_000
"""Images of other sizes that wait for company in their batch hold at most so many pixels."""
_DISK_IS_OUT = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_LOOK_AGAIN_SECONDS = 0.5
"""Time between looks at whether another run has finished or died."""


@dataclass(frozen=True)
class Job:
    """One image to be processed.

    Attributes:
        name: of its results, unique in the run.
        label: what to call it in messages.
        folder: where its results go.
        photo: the image.
    """

    name: str
    label: str
    folder: Path
    photo: Photo


@dataclass(frozen=True)
class Outcome:
    """What became of one image.

    Attributes:
        name, label: as in :class:`Job`.
        status: "done", "skipped" (was complete and right already) or "failed".
        folder: with its results, or None if there are none.
        reason: why it failed.
        error: what was raised, if it is of our error family; a summary of several drops it.
        stop: whether trying further images is pointless (the disk is full).
    """

    name: str
    label: str
    status: Literal["done", "skipped", "failed"]
    folder: Path | None = None
    reason: str | None = None
    error: Vision3DError | None = None
    stop: bool = False


@dataclass
class RunSummary:
    """How a run over many images went.

    Attributes:
        out: the output folder.
        outcomes: one for each image, in the order of completion.
        seconds: of the whole run.
    """

    out: Path
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Append an outcome. Only a lone one keeps its error, whose traceback holds on to photographs and maps."""
        self.outcomes.append(outcome)
        if len(self.outcomes) > 1:
            self.outcomes[-2:] = [dataclasses.replace(o, error=None) for o in self.outcomes[-2:]]

    def count(self, status: str) -> int:
        """Number of images with a status."""
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def exit_code(self) -> int:
        """0 if every image has its results, else 2."""
        return 2 if self.count("failed") else 0

    @property
    def progress(self) -> str:
        """How far it came, for a run that ends early."""
        there = self.count("done") + self.count("skipped")
        return f"{there} finished in {self.out}; the same command goes on from there"

    def ended_by(self, error: Vision3DError) -> OutputError:
        """What to raise when nothing more can be written: the error, and how far the run came."""
        ended = OutputError(error.message, f"{error.hint} ({self.progress})" if error.hint else self.progress)
        ended.details = self.to_dict()
        return ended

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "out": str(self.out),
            "done": self.count("done"),
            "skipped": self.count("skipped"),
            "failed": [{"input": o.label, "reason": o.reason} for o in self.outcomes if o.status == "failed"],
            "results": {o.name: str(o.folder) for o in self.outcomes if o.folder is not None},
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        counts = f"{self.count('done')} done, {self.count('skipped')} skipped, {self.count('failed')} failed"
        lines = [f"  failed: {o.label}: {o.reason}" for o in self.outcomes if o.status == "failed"]
        folders = [o.folder for o in self.outcomes if o.folder is not None]
        where = folders[0] if len(folders) == 1 else self.out
        place = f"; results in {where}" if folders else ""
        return "\n".join([f"{counts} in {self.seconds:.1f} s{place}", *lines])


class Worker:
    """Processes and saves one batch after another; loads its method for the first.

    Args:
        load: makes the method; called once in each process.
        formats: extra formats to save.
    """

    def __init__(self, load: Callable[[], Process], formats: tuple[str, ...] = ()) -> None:
        self.load, self.formats = load, formats
        self._process: BackOff[Photo, Prediction] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"load": self.load, "formats": self.formats, "_process": None}

    def __call__(self, batch: list[Job]) -> list[Outcome]:
        """Outcomes of the jobs, in order. Errors of weights and device are raised: they spare no job."""
        if self._process is None:
            method = self.load()
            self._process = BackOff(method, getattr(method, "use_less_memory", None))
        try:
            predictions = self._process([job.photo for job in batch])
        except (WeightsError, ResourceError):
            raise
        except Exception as error:
            if len(batch) > 1:  # one of them may be to blame
                return [outcome for job in batch for outcome in self([job])]
            return [failure(batch[0].name, batch[0].label, error)]
        return [self._save(job, p) for job, p in zip(batch, predictions, strict=True)]

    def _save(self, job: Job, prediction: Prediction) -> Outcome:
        try:
            prediction.save(job.folder, self.formats)
        except Exception as error:
            return failure(job.name, job.label, error)
        return Outcome(job.name, job.label, "done", job.folder)


def failure(name: str, label: str, error: Exception) -> Outcome:
    """The outcome of an image that could not be processed."""
    if isinstance(error, Vision3DError):
        # The label is named beside the reason already.
        reason = str(error).removeprefix(label).removeprefix(":").strip()
        cause = error.__cause__
        stop = isinstance(error, OutputError) and isinstance(cause, OSError) and cause.errno in _DISK_IS_OUT
        return Outcome(name, label, "failed", reason=reason, error=error, stop=stop)
    show_traceback(error)
    if is_out_of_memory(error):
        exhausted = ResourceError(
            "out of memory", "try smaller images (--help names the option) or a --memory budget"
        )
        return Outcome(name, label, "failed", reason=str(exhausted), error=exhausted)
    text = " ".join(str(error).split())
    return Outcome(
        name, label, "failed", reason=f"unexpected {type(error).__name__}: {text}; --debug shows where"
    )


def photo_refs(
    sources: Sources, *, recursive: bool = False, failed: Callable[[Outcome], None] | None = None
) -> Iterator[PhotoRef]:
    """Every image of ``sources``, videos frame by frame, going on after a video that cannot be read.

    Args:
        sources: as :func:`vision3d.io.images.expand_inputs` takes them.
        recursive: enter nested folders.
        failed: told about inputs that cannot be read at all; by default they raise.

    Raises:
        InputError: nothing there.
    """
    from vision3d.io.images import expand_inputs, iter_photos

    for name, item in expand_inputs(sources, recursive=recursive):
        try:
            for ref in iter_photos([item]):
                # A name that is unique among this item's frames is not yet unique among all inputs.
                _, slash, frame = ref.name.rpartition("/")
                yield dataclasses.replace(ref, name=f"{name}/{frame}" if slash else name)
        except InputError as error:
            if failed is None:
                raise
            failed(failure(name, str(item) if isinstance(item, Path) else name, error))


def readable_refs(sources: Sources, *, recursive: bool = False) -> Iterator[PhotoRef]:
    """As :func:`photo_refs`, without inputs that cannot be read at all, of which the run itself tells."""
    return photo_refs(sources, recursive=recursive, failed=lambda outcome: None)


def photographs_digest(refs: Iterable[PhotoRef]) -> str:
    """Checksum of all photographs that can be read, for results that depend on all of them."""
    digest = hashlib.sha256()
    for ref in refs:
        with suppress(InputError):
            digest.update(ref.load().sha256.encode())
    return digest.hexdigest()


def check_inputs(sources: Sequence[str | Path], *, recursive: bool = False) -> int | None:
    """Look whether all inputs are there, without decoding any.

    Returns:
        the number of images, or None with videos among them.

    Raises:
        InputError: none given, one missing, a folder or pattern without images.
    """
    from vision3d.io.images import expand_inputs, is_video

    if not sources:
        raise InputError("no input given", "name a photograph, a folder, a pattern or a video")
    items = expand_inputs(list(sources), recursive=recursive)
    for _, item in items:
        if isinstance(item, Path) and not item.exists():
            raise InputError(f"no such file: {item}", "check the path")
    return None if any(isinstance(item, Path) and is_video(item) for _, item in items) else len(items)


def check_run(
    inputs: Sequence[str | Path],
    out: Path,
    *,
    recursive: bool = False,
    batch_size: int = 1,
    memory: str = "auto",
) -> int | None:
    """Look at what every verb over photographs is given, before any work.

    Returns:
        As :func:`check_inputs`.

    Raises:
        InputError: as :func:`check_inputs`; a batch size below 1; a memory budget that cannot be read.
        OutputError: ``out`` cannot be written.
    """
    from vision3d.device import parse_bytes
    from vision3d.io.files import check_writable

    total = check_inputs(inputs, recursive=recursive)
    check_writable(out)
    if batch_size < 1:
        raise InputError(f"batch_size {batch_size}", "give 1 or more")
    if memory != "auto":
        parse_bytes(memory)
    return total


def run_folder(
    refs: Callable[[Callable[[Outcome], None]], Iterable[PhotoRef]] | Sequence[PhotoRef],
    load: Callable[[], Process],
    out: str | Path,
    *,
    kind: str,
    fingerprint: Callable[[Photo], str],
    formats: tuple[str, ...] = (),
    batch_size: int = 1,
    overwrite: bool = False,
    total: int | None = None,
    description: str = "images",
    engine: Engine | None = None,
) -> RunSummary:
    """Process images into ``out/<name>/``, skipping what is complete and right.

    Args:
        refs: the images; or a function that makes them, given where to report inputs that cannot be read. What
            another run is making is looked for in them again.
        load: makes the method; called when the first image needs it.
        out: output folder; nothing is created in it before there is a result.
        kind: of the results; where one of another kind is, nothing is computed.
        fingerprint: of the work on a photograph, which its saved result must bear to be skipped.
        formats: extra formats to save.
        batch_size: images of one size that are processed together.
        overwrite: process everything again.
        total: number of inputs, for the progress bar, if known.
        description: what the progress bar counts.
        engine: where to work; by default here.

    Raises:
        Vision3DError: what stops all work: the output folder, a full disk, the weights, the device; and what was
            wrong with the input if there is only one.
        KeyboardInterrupt: with a text that says what was finished.
    """
    from vision3d.io.claims import claim
    from vision3d.io.files import check_writable
    from vision3d.prediction import refuse_other_kind

    out = Path(out)
    check_writable(out)
    summary = RunSummary(out)
    started = time.monotonic()
    bar: Progress[Job] = progress(total=total, description=description)
    claims: dict[str, Claim] = {}
    elsewhere: set[str] = set()
    swept: set[Path] = set()
    stopped: list[Outcome] = []

    def only_error() -> Vision3DError | None:
        """What is wrong with the only input: it is raised in the end, so no warning needs to say it."""
        return summary.outcomes[0].error if len(summary.outcomes) == 1 and total in (None, 1) else None

    def record(outcome: Outcome) -> None:
        if outcome.name in claims:
            claims.pop(outcome.name).release()
        if outcome.stop:
            stopped.append(outcome)
            return
        summary.add(outcome)
        bar.advance()
        if outcome.status == "failed" and only_error() is None:
            warn(f"{outcome.label}: {outcome.reason}")

    def sweep(folder: Path) -> None:
        if folder not in swept:
            swept.add(folder)
            remove_remains(folder)

    def jobs(images: Iterable[PhotoRef]) -> Iterator[Job]:
        for ref in images:
            folder = out / ref.name
            try:
                photo = ref.load()
                sweep(folder.parent)
                mark = fingerprint(photo)
                refuse_other_kind(folder, kind)
                finished = not overwrite and _is_finished(folder, mark, formats)
                if not finished:
                    ours = claim(folder)
                    if ours is None:
                        elsewhere.add(ref.name)
                        continue
                    claims[ref.name] = ours
                    # Another run may have finished it since the first look.
                    finished = not overwrite and _is_finished(folder, mark, formats)
            except Exception as error:
                record(failure(ref.name, ref.label, error))
            else:
                if finished:
                    record(Outcome(ref.name, ref.label, "skipped", folder))
                else:
                    yield Job(ref.name, ref.label, folder, photo)
            if stopped:
                return

    worker = Worker(load, formats)

    def references(failed: Callable[[Outcome], None]) -> Iterable[PhotoRef]:
        return refs(failed) if callable(refs) else refs

    images = references(record)
    try:
        with bar:
            while not stopped:
                for outcomes in (engine or LocalEngine()).map(worker, batches(jobs(images), batch_size)):
                    for outcome in outcomes:
                        record(outcome)
                    if stopped:
                        break
                if stopped or not elsewhere:
                    break
                # No claim is held while waiting, so two runs cannot wait for each other.
                wanted = until_one_is_free(out, elsewhere)
                elsewhere.clear()
                images = _named(references(lambda outcome: None), wanted)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted with {summary.progress}") from None
    finally:
        for left in claims.values():
            left.release()
        summary.seconds = time.monotonic() - started
    if stopped and stopped[0].error is not None:
        raise stopped[0].error if total == 1 else summary.ended_by(stopped[0].error)
    if alone := only_error():
        raise alone
    return summary


def _named(refs: Iterable[PhotoRef], wanted: set[str]) -> Iterator[PhotoRef]:
    return (ref for ref in refs if ref.name in wanted)


def until_one_is_free(out: Path, names: Iterable[str]) -> set[str]:
    """Wait until another run lets go of one of the results ``names`` in ``out``; returns them all."""
    from vision3d.io.claims import is_claimed

    wanted = set(names)
    said = False
    while all(is_claimed(out / name) for name in wanted):
        if not said:
            say(f"waiting for another run that makes {len(wanted)} of the results in {out}")
            said = True
        time.sleep(_LOOK_AGAIN_SECONDS)
    return wanted


def remove_remains(folder: Path) -> None:
    """Remove what killed runs left in a folder of results, before the disk gets fuller."""
    from vision3d.io.claims import remove_dead_claims
    from vision3d.io.files import remove_stagings

    remove_stagings(folder)
    remove_dead_claims(folder)


def _is_finished(folder: Path, fingerprint: str, formats: tuple[str, ...]) -> bool:
    from vision3d.prediction import RECORD, is_complete

    return (folder / RECORD).exists() and is_complete(folder, fingerprint, formats)


def batches(jobs: Iterable[Job], size: int) -> Iterator[list[Job]]:
    """Group jobs whose photographs have the same size, ``size`` at a time, holding few of them at once.

    A batch is given out when it is full. When the waiting images together grow too large, the group that has
    waited longest goes out as it is.
    """
    if size < 1:
        raise InputError(f"batch size {size}", "give 1 or more")
    waiting: dict[tuple[int, int], list[Job]] = {}

    def pixels() -> int:
        return sum(h * w * len(group) for (h, w), group in waiting.items())

    for job in jobs:
        group = waiting.setdefault(job.photo.size, [])
        group.append(job)
        if len(group) == size:
            yield waiting.pop(job.photo.size)
        while waiting and (pixels() > MAX_WAITING_PIXELS or len(waiting) > 2 * size):
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()
