"""Photographs as people have them: a path, a folder, a pattern, a video, a Pillow image, an array, a tensor.

:func:`load_photo` gives one :class:`Photo`; :func:`iter_photos` goes through anything lazily, with an output
name for each that no other has.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from vision3d.errors import InputError
from vision3d.io.photo import Photo, check_shape, load_photo
from vision3d.io.video import VIDEO_SUFFIXES, is_video, iter_frames
from vision3d.paths import as_path, numbered

if TYPE_CHECKING:
    from vision3d.io.photo import Source

    Sources = Source | Photo | Sequence[Source | Photo]

__all__ = [
    "IMAGE_SUFFIXES",
    "Photo",
    "PhotoRef",
    "expand_inputs",
    "holds_many",
    "is_video",
    "iter_photos",
    "load_photo",
]

IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".png",
        ".tif",
        ".tiff",
        ".webp",
        ".bmp",
        ".gif",
        ".mpo",
        ".ppm",
        ".pgm",
        ".avif",
    }
    | {".heic", ".heif", ".jp2", ".tga"}
)


@dataclass(frozen=True)
class PhotoRef:
    """A photograph that is read when :meth:`load` is called.

    Attributes:
        name: name of its results, unique among those of one call; may hold "/" for nested folders and videos.
        label: what to call it in messages.
        path: the file (the video for a frame), or None.
    """

    name: str
    label: str
    path: Path | None
    _load: Callable[[], Photo] = field(repr=False)

    def load(self) -> Photo:
        """Read and check it. Raises InputError."""
        photo = self._load()
        return photo if photo.name == self.name else replace(photo, name=self.name)


def expand_inputs(source: Sources, *, recursive: bool = False) -> list[tuple[str, Any]]:
    """Everything that ``source`` stands for, as (unique output name, path or in-memory image).

    A folder gives its images and videos in natural order (img2 before img10), nested folders with
    ``recursive`` (then named "sub/img2"; pictures of earlier results are left out); a pattern such as
    ``photos/*.jpg`` gives its matches; a list gives all of each. When two would be called the same, the later one
    takes its suffix along: ``a.jpg``, ``a.png`` → "a", "a_png"; so does a video that is called as a folder of
    others, where its frames would lie.

    Raises:
        InputError: nothing there, nothing usable in it.
    """
    found = _expand(source, recursive)
    if not found:
        raise InputError("an empty list of images", "give at least one")
    if recursive:
        found = [(name, item) for name, item in found if not _is_of_a_result(item)]
        if not found:
            raise InputError("there are only pictures of earlier results", "name a folder of photographs")
    taken: set[str] = set()
    folders = {str(folder) for name, _ in found for folder in PurePosixPath(name.casefold()).parents}

    def is_used(name: str, item: Any) -> bool:
        key = name.casefold()
        return key in taken or (key in folders and isinstance(item, Path) and is_video(item))

    named = []
    for name, item in found:
        unique = name
        if is_used(unique, item) and isinstance(item, Path):
            unique = f"{name}_{item.suffix[1:].lower()}"
        if is_used(unique, item):
            unique = numbered(name, partial(is_used, item=item))
        taken.add(unique.casefold())
        named.append((unique, item))
    return named


def _is_of_a_result(item: Any) -> bool:
    from vision3d.prediction import RECORD

    return isinstance(item, Path) and (item.parent / RECORD).exists()


def _expand(source: Any, recursive: bool) -> list[tuple[str, Any]]:
    if isinstance(source, (list, tuple)):
        return [pair for item in source for pair in _expand(item, recursive)]
    if isinstance(source, Photo):
        return [(source.name, source)]
    if not isinstance(source, (str, os.PathLike)):
        if getattr(source, "ndim", 0) == 4 and source.shape[0] != 1:
            return [("image", image) for image in source]
        filename = getattr(source, "filename", "")
        return [(Path(filename).stem if isinstance(filename, str) and filename else "image", source)]
    path = as_path(source)
    if path.is_dir():
        return _expand_folder(path, recursive)
    if not path.exists() and glob.has_magic(str(path)):
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)), key=natural_key)  # noqa: PTH207
        if not matches:
            raise InputError(f"nothing matches {path}", "check the pattern")
        usable = [p for p in matches if p.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and p.is_file()]
        if not usable:
            raise InputError(
                f"none of the {len(matches)} matches of {path} is an image or a video", "check it"
            )
        return [(_stem(p), p) for p in usable]
    return [(_stem(path), path)]


def usable_files(folder: Path, suffixes: Collection[str], *, recursive: bool = True) -> list[Path]:
    """Files of these suffixes in a folder, none of them hidden, numbers in their names in order.

    Raises:
        InputError: the folder cannot be read.
    """

    def usable(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        return (
            path.suffix.lower() in suffixes and not any(p.startswith(".") for p in parts) and path.is_file()
        )

    try:
        found = [p for p in (folder.rglob("*") if recursive else folder.iterdir()) if usable(p)]
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror})", "check its permissions") from error
    return sorted(found, key=lambda p: natural_key(p.relative_to(folder)))


def _expand_folder(folder: Path, recursive: bool) -> list[tuple[str, Any]]:
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    found = usable_files(folder, suffixes, recursive=recursive)
    if not found:
        nested = not recursive and bool(usable_files(folder, suffixes))
        hint = (
            "its subfolders do: use --recursive"
            if nested
            else "give a folder with JPEG, PNG, … or video files"
        )
        raise InputError(f"{folder} holds no images or videos", hint)
    return [((p.relative_to(folder).parent / _stem(p)).as_posix(), p) for p in found]


def natural_key(path: str | os.PathLike[str]) -> list[Any]:
    """Sort key with numbers by value and letters regardless of case: img2 < img10."""
    parts = re.split(r"([0-9]+)", os.fspath(path))
    return [
        [(1, int(p), "") if i % 2 else (0, 0, p.casefold()) for i, p in enumerate(parts)],
        os.fspath(path),
    ]


def _stem(path: Path) -> str:
    """A name that is safe as a folder: no control characters, not hidden, never empty."""
    return re.sub(r'[\x00-\x1f<>:"|?*\\]', "_", path.stem).strip(". ") or "image"


def iter_photos(
    source: Sources, *, recursive: bool = False, every: int = 1, limit: int | None = None
) -> Iterator[PhotoRef]:
    """Go through everything that ``source`` stands for (see :func:`expand_inputs`), videos frame by frame.

    Images are read when their reference's ``load()`` is called; the frames of a video are decoded as the
    iteration reaches them and named "clip/000000" onwards, so keep no list of them.

    Args:
        source: path, folder, pattern, video, Pillow image, array, tensor, or a list of these.
        recursive: enter nested folders.
        every: use each ``every``-th frame of a video.
        limit: at most so many frames of each video.

    Raises:
        InputError: nothing there; a video that cannot be decoded (when the iteration reaches it).
    """
    for name, item in expand_inputs(source, recursive=recursive):
        if isinstance(item, Path) and is_video(item):
            for number, frame in iter_frames(item, every=every, limit=limit):
                frame_name = f"{name}/{number:06d}"
                load = partial(_frame_photo, frame, frame_name, item)
                yield PhotoRef(frame_name, f"{item} frame {number}", item, load)
        elif isinstance(item, Path):
            yield PhotoRef(name, str(item), item, partial(load_photo, item))
        else:
            yield PhotoRef(name, name, None, partial(load_photo, item))


def _frame_photo(frame: np.ndarray, name: str, video: Path) -> Photo:
    photo = Photo(frame, name, video)
    check_shape(photo)
    return photo


def holds_many(source: Any) -> bool:
    """Whether a source is a folder, pattern, video or batch rather than one image. Raises as :func:`as_path`."""
    if isinstance(source, (str, os.PathLike)):
        path = as_path(source)
        return path.is_dir() or is_video(path) or (not path.exists() and glob.has_magic(str(path)))
    return getattr(source, "ndim", 0) == 4 and source.shape[0] != 1
