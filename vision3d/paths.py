"""Where vision3d keeps what it may make again."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """``$VISION3D_HOME``, else ``~/.cache/vision3d``."""
    chosen = os.environ.get("VISION3D_HOME")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "vision3d"


def cache_dir(name: str) -> Path:
    """A folder below :func:`home`, made if it is not there."""
    folder = home() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
