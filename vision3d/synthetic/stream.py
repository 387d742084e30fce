"""Samples in the order of their seeds, rendered by worker processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType

from vision3d.errors import InputError, ResourceError, Vision3DError
from vision3d.synthetic.render import VIEWS, render_sample
from vision3d.synthetic.sample import Sample


def _work(pipe: Connection, size: tuple[int, int], handheld: bool) -> None:
    """Renders the seeds that come through the pipe until it closes."""
    # One thread each: the workers themselves are the parallelism.
    import cv2

    cv2.setNumThreads(1)
    try:
        while True:
            seeds = pipe.recv()
            if seeds is None:
                return
            for seed in seeds:
                pipe.send((seed, render_sample(seed, size, handheld)))
    except (EOFError, BrokenPipeError, KeyboardInterrupt, ConnectionResetError):
        return
    except (Vision3DError, ModuleNotFoundError) as error:
        with contextlib.suppress(OSError):
            pipe.send((None, error))
    except Exception:
        with contextlib.suppress(OSError):
            pipe.send((None, ResourceError(f"a rendering process failed: {traceback.format_exc()}")))


class WorldStream:
    """Iterates over samples ``seeds[0], seeds[1], …`` in order.

    Args:
        seeds: which samples, for example ``range(10_000)``.
        size: height and width in pixels.
        workers: processes; 0 renders in this one.
        prefetch: how many samples may be ready or in work at once (bounds memory).
        handheld: see :func:`vision3d.synthetic.render_sample`.

    Use it as a context manager or call :meth:`close`; workers also end with the process that made them. What a
    worker raises is raised where the stream is read; an unexpected error as ``ResourceError`` with its traceback.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        size: tuple[int, int] = (128, 128),
        workers: int = 1,
        prefetch: int | None = None,
        handheld: bool = False,
    ) -> None:
        if workers < 0:
            raise InputError(f"{workers} workers", "give 0 to render in this process, or a positive number")
        self.seeds, self.size, self.workers, self.handheld = seeds, size, workers, handheld
        self.prefetch = max(prefetch or 4 * VIEWS * max(1, workers), VIEWS * max(1, workers))
        self._processes: list[multiprocessing.process.BaseProcess] = []
        self._pipes: list[Connection] = []

    def __len__(self) -> int:
        return len(self.seeds)

    def __enter__(self) -> WorldStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Sample]:
        if self.workers == 0:
            for seed in self.seeds:
                yield render_sample(seed, self.size, self.handheld)
            return
        try:
            yield from self._parallel()
        finally:
            self.close()

    def close(self) -> None:
        """Ends the workers; safe to call more than once."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()
        self._pipes, self._processes = [], []

    def _start(self) -> None:
        # Threads of torch or Open3D do not survive a fork; a fresh interpreter is safe everywhere.
        context = multiprocessing.get_context("spawn")
        threads = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = "1"
        try:
            for _ in range(self.workers):
                here, there = context.Pipe()
                process = context.Process(target=_work, args=(there, self.size, self.handheld), daemon=True)
                process.start()
                there.close()
                self._pipes.append(here)
                self._processes.append(process)
        finally:
            if threads is None:
                del os.environ["OMP_NUM_THREADS"]
            else:
                os.environ["OMP_NUM_THREADS"] = threads

    def _parallel(self) -> Iterator[Sample]:
        self.close()
        self._start()
        blocks = _blocks(self.seeds)
        ready: dict[int, Sample] = {}
        owed = {id(pipe): 0 for pipe in self._pipes}
        waiting = 0
        exhausted = False

        def feed(pipe: Connection) -> None:
            nonlocal waiting, exhausted
            # The next block goes out while the last one is in work, so that no worker runs dry.
            while not exhausted and owed[id(pipe)] <= 1 and waiting + len(ready) < self.prefetch:
                block = next(blocks, None)
                if block is None:
                    exhausted = True
                    return
                with _while_alive():
                    pipe.send(block)
                owed[id(pipe)] += len(block)
                waiting += len(block)

        for seed in self.seeds:
            while seed not in ready:
                for pipe in self._pipes:
                    feed(pipe)
                for source in wait(self._pipes):
                    assert isinstance(source, Connection)
                    with _while_alive():
                        number, sample = source.recv()
                    if number is None:
                        raise sample
                    owed[id(source)] -= 1
                    waiting -= 1
                    ready[number] = sample
            sample = ready.pop(seed)
            for pipe in self._pipes:
                feed(pipe)
            yield sample


@contextlib.contextmanager
def _while_alive() -> Iterator[None]:
    """Says in one line that the worker at the other end of a pipe is gone."""
    try:
        yield
    except (EOFError, OSError):
        raise ResourceError("a rendering process died", "see whether memory ran out") from None


def _blocks(seeds: Sequence[int]) -> Iterator[list[int]]:
    """Seeds that share a scene stay together: one worker builds it once."""
    block: list[int] = []
    for seed in seeds:
        if block and seed // VIEWS != block[0] // VIEWS:
            yield block
            block = []
        block.append(seed)
    if block:
        yield block
