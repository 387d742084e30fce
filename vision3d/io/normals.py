"""Normal maps to files and back: 16-bit and 8-bit PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vision3d.errors import InputError, OutputError

FULL_SCALE = {np.dtype(kind): float(np.iinfo(kind).max) for kind in (np.uint8, np.uint16)}
"""What stands for 1 in the pictures that are read."""


def write_normals_png(path: Path, normals: np.ndarray, valid: np.ndarray) -> None:
    """16-bit RGB PNG of (H, W, 3) unit vectors: ``round((n + 1) / 2 * 65535)``, white where invalid.

    Written through OpenCV, since Pillow has no 16-bit colour.
    """
    import cv2

    share = (np.clip(normals.astype(np.float64), -1, 1) + 1) / 2
    numbers = np.round(np.where(valid[..., None], share, 1) * 65535).astype(np.uint16)
    done, data = cv2.imencode(".png", np.ascontiguousarray(numbers[..., ::-1]))
    if not done:
        raise OutputError(f"{path}: the PNG cannot be encoded")
    path.write_bytes(data.tobytes())


def write_normals_png8(path: Path, normals: np.ndarray, valid: np.ndarray) -> None:
    """8-bit RGB PNG of (H, W, 3) unit vectors: ``(n + 1) / 2 * 255`` truncated, white where invalid."""
    from PIL import Image

    share = (np.clip(normals, -1, 1) + 1) / 2
    numbers = (np.where(valid[..., None], share, np.float32(1)) * 255).astype(np.uint8)
    Image.fromarray(numbers).save(path)


def read_normals_png(path: Path) -> np.ndarray:
    """(H, W, 3) float32 unit normals of an 8- or 16-bit colour PNG in the file's own frame, zero where invalid.

    Invalid is, as in the published evaluation, what has a length below 0.5 or above 1.5.

    Raises:
        InputError: not a colour picture.
    """
    import cv2

    data = np.frombuffer(path.read_bytes(), np.uint8) if path.is_file() else np.empty(0, np.uint8)
    numbers = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if numbers is None or numbers.ndim != 3 or numbers.dtype not in FULL_SCALE:
        raise InputError(f"{path} is not a colour picture of normals", "give a normals.png")
    vectors = numbers[..., 2::-1].astype(np.float64) / FULL_SCALE[numbers.dtype] * 2 - 1
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    there = (length > 0.5) & (length < 1.5)
    return np.where(there, vectors / np.maximum(length, 1e-12), 0).astype(np.float32)
