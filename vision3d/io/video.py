"""Video frames, one at a time, through OpenCV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.errors import InputError

# FFmpeg's complaints, read by OpenCV when it is first used; what they mean is said here in one line.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ts"})


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether the name says that this is a video."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def iter_frames(
    path: str | os.PathLike[str], *, every: int = 1, limit: int | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (frame number from 0, (H, W, 3) uint8 RGB) in order; only one frame is in memory at a time.

    Rotation stored in the file is applied. A video that stops decoding before its announced end is used up to
    there, with a warning.

    Args:
        path: the video file.
        every: keep each ``every``-th frame only.
        limit: stop after so many kept frames.

    Raises:
        InputError: missing, empty, or nothing in it can be decoded.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no such video: {path}", "check the path")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes)", "give the video again; its copy or download failed")
    if every < 1:
        raise InputError(f"every={every} frames", "give 1 or more")
    import cv2

    capture = _open_quietly(path)
    number = kept = 0
    try:
        if not capture.isOpened():
            raise InputError(
                f"{path} cannot be opened as a video", "it may be cut off or of an unknown codec"
            )
        announced = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        while limit is None or kept < limit:
            # Frames that nobody wants are grabbed, not converted.
            if number % every:
                if not capture.grab():
                    break
            else:
                there, frame = capture.read()
                if not there:
                    break
                kept += 1
                yield number, np.ascontiguousarray(frame[..., ::-1])
            number += 1
        else:
            return
    finally:
        capture.release()
    if number == 0:
        raise InputError(f"no frame of {path} can be decoded", "it may be cut off or of an unknown codec")
    # Containers without an index only estimate their number of frames.
    if number < announced - max(2, announced // 50):
        from vision3d.progress import warn

        warn(f"{path} is cut off: {number} of {announced} frames could be decoded")


def _open_quietly(path: Path) -> Any:
    """Open a capture without OpenCV's own complaints on the screen."""
    import cv2

    logging = getattr(getattr(cv2, "utils", None), "logging", None)
    before = logging.getLogLevel() if logging else None
    if logging:
        logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        return cv2.VideoCapture(str(path))
    finally:
        if logging:
            logging.setLogLevel(before)
