"""Files that are either there and right, or not there: written under a hidden name first, then renamed.

A reader never sees half a file, an interrupted run leaves nothing that looks finished, and a full disk or a
folder without permission is one line that says what to do.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vision3d.errors import InputError, OutputError
from vision3d.io.locks import try_lock, unlock_and_close

if TYPE_CHECKING:
    import numpy as np

# What the operating system reports, what it means to the person, what they can do.
_REASONS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("the disk is full", "free some space or choose another output folder"),
    errno.EDQUOT: ("your disk quota is used up", "free some space or choose another output folder"),
    errno.EACCES: (
        "there is no permission to write there",
        "change its permissions or choose another folder",
    ),
    errno.EPERM: ("there is no permission to write there", "change its permissions or choose another folder"),
    errno.EROFS: ("the file system is read-only", "choose an output folder on a writable disk"),
    errno.EISDIR: ("a folder is in the way", "remove it or choose another output folder"),
    errno.ENOTEMPTY: ("a folder is in the way", "remove it or choose another output folder"),
    errno.ENOTDIR: ("a file stands where a folder is needed", "remove it or choose another output folder"),
    errno.EEXIST: ("a file stands where a folder is needed", "remove it or choose another output folder"),
    errno.ENAMETOOLONG: ("the name is too long", "rename the input or choose a shorter output folder"),
    errno.EFBIG: ("the file is too large for this file system", "choose another output folder"),
    errno.EIO: ("the disk reports an input/output error", "check the disk or choose another output folder"),
}
DAMAGED = (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged ``.npy``, ``.npz`` or JSON file may raise."""
_STALE_SECONDS = 3600.0
"""Age at which a leftover is nobody's any more, on file systems without locks."""


def as_output_error(error: OSError, target: Path) -> OutputError:
    """The one line for a write to ``target`` that the operating system refused."""
    reason, remedy = _REASONS.get(
        error.errno or 0, (error.strerror or str(error) or "the write failed", "choose another output folder")
    )
    if error.errno in (errno.ENOTDIR, errno.EEXIST) and not (there := _nearest_existing(target)).is_dir():
        reason = f"{there} is a file, where a folder is needed"
    return OutputError(f"cannot write {target}: {reason}", remedy)


def _nearest_existing(path: Path) -> Path:
    """``path`` itself or the closest of its parents that exists."""
    path = path.absolute()
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


@contextmanager
def output_errors(target: Path) -> Iterator[None]:
    """Turn every ``OSError`` inside into an :class:`OutputError` about ``target``, and what libraries make of one."""
    try:
        yield
    except OSError as error:
        raise as_output_error(error, target) from error
    except Exception as error:
        if (number := _refused(error)) is None:
            raise
        raise as_output_error(OSError(number, str(error)), target) from error


def _refused(error: Exception) -> int | None:
    """The number of the ``OSError`` that safetensors or torch hide when a file cannot be written."""
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return int(found[1])
    # torch says only that it failed
    return (
        errno.ENOSPC
        if re.search(r"PytorchStreamWriter|unexpected pos \d+|iostream error", str(error))
        else None
    )


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Create ``folder`` and its parents. Raises OutputError in one line."""
    folder = Path(folder)
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Raise OutputError if ``folder`` could not be created or written; creates nothing.

    Meant for the start of a run, so that a mistyped ``--out`` costs no computation.
    """
    folder = Path(folder)
    there = _nearest_existing(folder)
    if not there.is_dir():
        raise as_output_error(OSError(errno.ENOTDIR, ""), folder)
    if not os.access(there, os.W_OK | os.X_OK):
        read_only = bool(os.statvfs(there).f_flag & os.ST_RDONLY) if hasattr(os, "statvfs") else False
        raise as_output_error(OSError(errno.EROFS if read_only else errno.EACCES, ""), folder)


def fsync_path(path: Path) -> None:
    """Ask the disk to keep a file or folder; file systems that cannot are left alone."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a hidden name beside ``path`` to write to; rename it to ``path`` when the block ends well.

    The name keeps the suffix of ``path``, so that writers which choose a format by suffix work. Missing
    parent folders are made. Whatever happens inside, no partial file stays behind.

    Raises:
        OutputError: the file cannot be written (full disk, no permission, read-only, something in the way).
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:80]}.{os.getpid()}-{os.urandom(4).hex()}.partial{path.suffix}")
    try:
        with output_errors(path):
            if path.is_dir():
                raise OSError(errno.EISDIR, "")
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            fsync_path(temporary)
            os.replace(temporary, path)  # noqa: PTH105 - the atomic call, by its name
            fsync_path(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def staged_folder(folder: str | os.PathLike[str], *, last: str) -> Iterator[Path]:
    """Yield a hidden folder to fill; if the block ends well its files move into ``folder``.

    It lies in ``folder`` if that is there (which may be a mount, or its parent read-only), else beside it.

    Nothing in ``folder`` is touched until every new file is complete on disk. Then ``last`` (the file whose
    presence says that a folder is complete) is taken away, the other files are renamed into place, and the
    new ``last`` is renamed at the very end: a crash in between leaves a folder that reads as incomplete.
    Files of other origin in ``folder`` stay.

    Raises:
        OutputError: as :func:`atomic_path`.
    """
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 - resolve() would follow a link given as output
    staging, lock = None, -1
    try:
        with output_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            remove_stagings(folder.parent, folder.name)
            if folder.exists() and not folder.is_dir():
                raise OSError(errno.ENOTDIR, "")
            staging, lock = _make_staging(folder)
            yield staging
            files = sorted(path.relative_to(staging) for path in staging.rglob("*") if path.is_file())
            for file in files:
                fsync_path(staging / file)
            fsync_path(staging)
            if not _moved_to(staging, folder):
                (folder / last).unlink(missing_ok=True)
                fsync_path(folder)
                for file in [*(f for f in files if str(f) != last), Path(last)]:
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(staging / file, folder / file)  # noqa: PTH105
                fsync_path(folder)
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if lock >= 0:
            unlock_and_close(lock)


def _moved_to(staging: Path, folder: Path) -> bool:
    """Rename a staging to ``folder``, unless something is there, even if it came this moment."""
    if folder.exists():
        return False
    try:
        os.replace(staging, folder)  # noqa: PTH105
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        return False
    fsync_path(folder.parent)
    return True


def _make_staging(folder: Path) -> tuple[Path, int]:
    """A hidden folder in or beside ``folder``, and the lock by which others see that it is being filled (-1: none)."""
    place = folder if folder.exists() else folder.parent
    while True:
        staging = place / f".{folder.name[:80] or 'root'}.{os.getpid()}-{os.urandom(4).hex()}.partial"
        staging.mkdir()
        if os.name == "nt":  # which cannot open folders
            return staging, -1
        lock = os.open(staging, os.O_RDONLY)
        locked = try_lock(lock)
        if locked is None:
            os.close(lock)
            return staging, -1
        if locked and staging.exists():
            return staging, lock
        os.close(lock)  # taken for a leftover before it was locked


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing if it has just gone, or is none."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def remove_stagings(parent: Path, name: str | None = None) -> None:
    """Delete the half-filled folders that killed runs left of folders in ``parent``: of all, or of ``name``.

    One that is being filled is locked and stays. Where there are no locks, it stays until it is old.
    """
    own = ".+" if name is None else re.escape(name[:80] or "root")
    staging = re.compile(rf"\.{own}\.[0-9]+-[0-9a-f]{{8}}\.partial")
    beside = _entries(parent)
    folders = beside if name is None else [parent / name]
    inside = [entry for folder in folders if not staging.fullmatch(folder.name) for entry in _entries(folder)]
    for leftover in [*beside, *inside]:
        if not staging.fullmatch(leftover.name):
            continue
        with suppress(OSError):
            lock, dead = -1, None
            if os.name != "nt":
                lock = os.open(leftover, os.O_RDONLY)
                dead = try_lock(lock)
            if dead is None:
                dead = time.time() - leftover.stat().st_mtime > _STALE_SECONDS
            if dead:
                shutil.rmtree(leftover, ignore_errors=True)
            if lock >= 0:
                os.close(lock)


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes | Iterable[bytes]) -> None:
    """Write bytes, or a sequence of chunks, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for chunk in [data] if isinstance(data, (bytes, bytearray, memoryview)) else data:
            file.write(chunk)


def json_bytes(value: Any) -> bytes:
    """UTF-8 JSON for people: indented, keys in the given order, no NaN (which JSON does not have).

    What is not UTF-8 in a file's name (a lone surrogate in Python) becomes an escape of JSON, which reads back.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def atomic_write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as JSON atomically."""
    atomic_write_bytes(path, json_bytes(value))


def write_npy(path: Path, array: np.ndarray) -> None:
    """Write one array as ``.npy``; a full disk is an ``OSError`` with its errno (``np.save`` loses it)."""
    import numpy as np

    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.reshape(-1).view(np.uint8).data)


def read_npy(path: Path, hint: str = "copy it again") -> np.ndarray:
    """The array of a ``.npy``, never pickled.

    Raises:
        InputError: it cannot be read; ``hint`` says what to do.
    """
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except DAMAGED as error:
        raise InputError(f"{path} cannot be read ({error})", hint) from error


def atomic_write_npy(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write one array as ``.npy`` atomically."""
    with atomic_path(path) as temporary:
        write_npy(temporary, array)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, in hexadecimal; reads 1 MiB at a time."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
