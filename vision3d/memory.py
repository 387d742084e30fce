"""What to do when memory runs out: fewer images at once, then smaller pieces, and say so."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from vision3d.errors import InputError
from vision3d.progress import say

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")

# How libraries say it that have no exception for it: torch's CPU allocator, MPS, cuBLAS, cuDNN, OpenCV.
_PHRASES = (
    "can't allocate memory",
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "failed to allocate",
    "insufficient memory",
    "cannot allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception of Python, NumPy, torch or OpenCV says that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if not isinstance(error, RuntimeError) and type(error).__module__ != "cv2":
        return False
    text = str(error).lower()
    return any(phrase in text for phrase in _PHRASES)


def free_memory() -> None:
    """Give back what nothing refers to any more, the cache of torch's CUDA allocator included."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


class BackOff(Generic[T, R]):
    """Calls a method with as many items at once as memory allows, and remembers how many that are.

    Args:
        process: results of items, in order; may run out of memory.
        use_less: makes the method need less for each item from now on and says how, or returns None if it can do
            no more; it is asked once items go one by one.
    """

    def __init__(
        self,
        process: Callable[[Sequence[T]], Sequence[R]],
        use_less: Callable[[], str | None] | None = None,
    ) -> None:
        self._process, self._use_less = process, use_less
        self.most: int | None = None
        """Items at once that memory allows; None: no bound has been met."""

    def __call__(self, items: Sequence[T]) -> list[R]:
        """Results of all items, in order.

        Raises:
            Exception: whatever the method raises; running out of memory only when nothing helps any more.
        """
        results: list[R] = []
        while len(results) < len(items):
            count = min(self.most or len(items), len(items) - len(results))
            try:
                results += self._process(items[len(results) : len(results) + count])
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                remedy = self._remedy(count)
                if remedy is None:
                    raise
            # Here, not above: the traceback of the error held everything that the attempt had allocated.
            free_memory()
            say(f"out of memory with {count} {'image' if count == 1 else 'images'} at once; {remedy}")
        return results

    def _remedy(self, count: int) -> str | None:
        if count > 1:
            self.most = count // 2
            return f"going on with {self.most}"
        return self._use_less() if self._use_less is not None else None


def in_batches(
    process: Callable[[Sequence[T]], Sequence[R]],
    items: Iterable[T],
    batch_size: int,
    *,
    use_less: Callable[[], str | None] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[R]:
    """Results one after the other, reading ``items`` only as far as the next batch; backs off when memory runs out.

    Args:
        process: results of a batch, in order.
        items: what there is to process.
        batch_size: items at once.
        use_less: see :class:`BackOff`.
        generator: what ``process`` draws from; another attempt at a batch draws the same numbers.
    """

    def repeatable(batch: Sequence[T]) -> Sequence[R]:
        before = generator.get_state() if generator is not None else None
        try:
            return process(batch)
        except Exception:
            if generator is not None and before is not None:
                generator.set_state(before)
            raise

    if batch_size < 1:
        raise InputError(f"batch_size {batch_size}", "give at least 1")
    attempt = BackOff(repeatable, use_less)
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == batch_size:
            yield from attempt(batch)
            batch = []
    if batch:
        yield from attempt(batch)
