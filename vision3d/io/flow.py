"""Optical flow and correspondence fields in Middlebury's ``.flo`` format."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vision3d.errors import InputError

FLO_MAGIC = b"PIEH"


def write_flo(path: Path, flow: np.ndarray) -> None:
    """Middlebury's ``.flo``: magic, width, height, then x, y float32 row by row."""
    height, width = flow.shape[:2]
    with path.open("wb") as file:
        file.write(FLO_MAGIC)
        file.write(np.array([width, height], "<i4").tobytes())
        file.write(np.ascontiguousarray(flow, "<f4").tobytes())


def read_flo(path: str | Path) -> np.ndarray:
    """Flow ``(H, W, 2)`` float32 of a ``.flo`` file.

    Raises:
        InputError: no such file, or not one of that format.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "check the path") from error
    if len(data) < 12 or data[:4] != FLO_MAGIC:
        raise InputError(f"{path} is no .flo file", "give Middlebury's flow format")
    width, height = np.frombuffer(data, "<i4", 2, 4)
    if width < 1 or height < 1 or len(data) < 12 + 8 * int(width) * int(height):
        raise InputError(f"{path}: {width}×{height} vectors do not fit its {len(data)} bytes", "get it again")
    return np.frombuffer(data, "<f4", 2 * int(width) * int(height), 12).reshape(height, width, 2).copy()
