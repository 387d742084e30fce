"""Two runs with one output folder: each result is claimed by the run that makes it.

A claim is a lock on a hidden file beside the result. The operating system lets go of it when its process ends,
however it ends, so a killed run blocks nobody and there is no time to wait out. Where a file system has no locks,
everything is granted: results are whole all the same, but two runs may compute the same one.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from vision3d.io.files import make_folder, output_errors
from vision3d.io.locks import try_lock, unlock_and_close

SUFFIX = ".claim"


class Claim:
    """The right to write one result, until it is released or the process ends; made by :func:`claim`."""

    def __init__(self, path: Path, descriptor: int, made: list[Path]) -> None:
        self._path, self._descriptor, self._made = path, descriptor, made

    def release(self) -> None:
        """Let others have it; folders that were made for the claim alone go with it."""
        if self._descriptor < 0:
            return
        # Removed while still locked: whoever opened it meanwhile finds out that it is gone (see claim).
        with suppress(OSError):
            self._path.unlink()
        unlock_and_close(self._descriptor)
        self._descriptor = -1
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()


def _claim_path(folder: Path) -> Path:
    """The hidden file whose lock is the claim on ``folder``."""
    return folder.with_name(f".{folder.name[:80]}{SUFFIX}")


def claim(folder: Path) -> Claim | None:
    """Claim a result folder, or None if somebody has it.

    Raises:
        OutputError: nothing can be written there.
    """
    path = _claim_path(folder)
    made = [parent for parent in folder.parents if not parent.exists()]
    with output_errors(folder):
        while True:
            make_folder(folder.parent)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            except FileNotFoundError:
                continue  # another run has just removed the folder that it made for its claim
            if try_lock(descriptor) is False:
                os.close(descriptor)
                return None
            if _is_same(descriptor, path):
                return Claim(path, descriptor, made)
            unlock_and_close(descriptor)  # whoever had it has just removed it


def is_claimed(folder: Path) -> bool:
    """Whether a living process has claimed a result folder."""
    try:
        descriptor = os.open(_claim_path(folder), os.O_RDWR)
    except OSError:
        return False
    held = try_lock(descriptor) is False
    unlock_and_close(descriptor) if not held else os.close(descriptor)
    return held


def remove_dead_claims(folder: Path) -> None:
    """Delete what the claims of killed processes left in a folder of results."""
    try:
        names = [
            path.name for path in folder.iterdir() if path.name.startswith(".") and path.suffix == SUFFIX
        ]
    except OSError:
        return
    for name in names:
        with suppress(OSError):
            descriptor = os.open(folder / name, os.O_RDWR)
            if try_lock(descriptor) and _is_same(descriptor, folder / name):
                (folder / name).unlink()
            os.close(descriptor)


def _is_same(descriptor: int, path: Path) -> bool:
    """Whether ``path`` is still the file that was opened."""
    try:
        there = os.stat(path)  # noqa: PTH116 - compared with fstat
    except OSError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)
