"""Locks that end with the process that holds them, however it ends."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress

_HELD = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK, errno.EDEADLK}


def try_lock(descriptor: int) -> bool | None:
    """Lock an open file or folder without waiting: whether it worked, or None where there are no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _HELD else None
    return True


def unlock_and_close(descriptor: int) -> None:
    """Unlock at once: a process that was forked meanwhile has the descriptor, too, and may live longer."""
    if sys.platform != "win32":
        import fcntl

        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)
