"""What a person sees while work goes on: bars, remarks and warnings, all on stderr.

On a terminal there are bars; in a log file, at most one line every ten seconds; under ``--quiet``, warnings
only.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")
LOG_SECONDS = 10.0
"""Least time between progress lines where stderr is not a terminal."""

_lock = threading.RLock()
_quiet = False
_debug = False
_bars: Any = None
"""The rich display that all running bars share; there can be only one on a terminal."""
_running = 0


def set_quiet(quiet: bool) -> None:
    """Silence (or allow again) bars and remarks; warnings stay."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether bars and remarks are silenced."""
    return _quiet


def set_debug(debug: bool) -> None:
    """Show (or hide again) the tracebacks of failures that a run survives."""
    global _debug
    _debug = debug


def is_debug() -> bool:
    """Whether those tracebacks are shown."""
    return _debug


def show_traceback(error: BaseException) -> None:
    """The traceback of a failure that is reported in one line elsewhere, if debugging."""
    if _debug:
        import traceback

        _write("".join(traceback.format_exception(error)).rstrip())


@contextlib.contextmanager
def no_library_bars() -> Iterator[None]:
    """Without the bars that transformers draws for every file it reads or writes, quiet or not."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def say(text: str) -> None:
    """One remark on stderr, unless quiet."""
    if not _quiet:
        _write(text)


def warn(text: str) -> None:
    """One warning on stderr, also when quiet."""
    _write(f"warning: {text}")


def _write(text: str) -> None:
    with _lock:
        if _bars is not None:
            _bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)


def progress(
    iterable: Iterable[T] | None = None,
    *,
    total: int | None = None,
    description: str = "",
    quiet: bool | None = None,
) -> Progress[T]:
    """Show how far a loop is.

    Iterate over it (``for x in progress(items, description="images")``), or count by hand::

        with progress(total=100, description="steps") as bar:
            bar.advance()

    Bars may nest. Where the total is unknown, the count and the time are shown.

    Args:
        iterable: what to go through.
        total: number of steps; taken from the iterable if it has a length.
        description: what is counted.
        quiet: show nothing; by default what :func:`set_quiet` says.
    """
    return Progress(iterable, total, description, _quiet if quiet is None else quiet)


class Progress(Generic[T]):
    """One bar, made by :func:`progress`."""

    def __init__(
        self, iterable: Iterable[T] | None, total: int | None, description: str, quiet: bool
    ) -> None:
        self._iterable = iterable
        if total is None and iterable is not None:
            total = len(iterable) if isinstance(iterable, Sized) else None
        self.total, self.description, self.done = total, description, 0
        self._quiet = quiet
        self._task: Any = None
        self._started = self._last_line = time.monotonic()

    def __iter__(self) -> Iterator[T]:
        if self._iterable is None:
            raise TypeError("this progress has nothing to iterate over; use it in a with statement")
        with self:
            for item in self._iterable:
                yield item
                self.advance()

    def __enter__(self) -> Progress[T]:
        self._started = self._last_line = time.monotonic()
        # While a bar is shown, sys.stderr is rich's stand-in, which says that it is no terminal.
        if not self._quiet and (_bars is not None or sys.stderr.isatty()):
            with _lock:
                self._task = _open_bar().add_task(self.description, total=self.total)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            with _lock:
                _close_bar(self._task)
            self._task = None

    def advance(self, steps: int = 1) -> None:
        """Count ``steps`` more as done."""
        self.done += steps
        if self._task is not None:
            _bars.update(self._task, advance=steps)
        elif not self._quiet and time.monotonic() - self._last_line >= LOG_SECONDS:
            self._last_line = time.monotonic()
            _write(self._line())

    def _line(self) -> str:
        elapsed = time.monotonic() - self._started
        text = f"{self.description or 'progress'}: {self.done}"
        if self.total:
            left = elapsed / max(self.done, 1) * max(self.total - self.done, 0)
            return f"{text}/{self.total}, {elapsed:.0f} s, about {left:.0f} s left"
        return f"{text}, {elapsed:.0f} s"


def _open_bar() -> Any:
    global _bars, _running
    if _bars is None:
        from rich import progress as rich_progress
        from rich.console import Console

        _bars = rich_progress.Progress(
            rich_progress.TextColumn("{task.description}"),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeElapsedColumn(),
            rich_progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        _bars.start()
    _running += 1
    return _bars


def _close_bar(task: Any) -> None:
    global _bars, _running
    _bars.remove_task(task)
    _running -= 1
    if _running == 0:
        _bars.stop()
        _bars = None
