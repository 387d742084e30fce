"""Paths: those that people give, and where vision3d keeps what it may make again."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from vision3d.errors import InputError


def home() -> Path:
    """``$VISION3D_HOME``, else ``~/.cache/vision3d``."""
    chosen = os.environ.get("VISION3D_HOME")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "vision3d"


def cache_dir(name: str) -> Path:
    """A folder below :func:`home`, made if it is not there."""
    folder = home() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def as_path(source: str | os.PathLike[str]) -> Path:
    """The path meant by ``source``: as it is if it exists, else with ``~`` or ``~user`` expanded, if that is anybody's.

    Raises:
        InputError: an internet address, a name that is too long, or a folder on the way that may not be entered.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", os.fspath(source)):
        raise InputError(f"{source} is an address, not a file", "download it and give the file")
    path = Path(source)
    try:
        return path if path.exists() else path.expanduser()
    except RuntimeError:  # nobody is called so
        return path
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}", "check its name and permissions") from error


def numbered(name: str, is_used: Callable[[str], bool], pattern: str = "{}_{}") -> str:
    """A name, or the first of its numbered forms, from 2 on, that is not used yet."""
    unique, number = name, 2
    while is_used(unique):
        unique, number = pattern.format(name, number), number + 1
    return unique
