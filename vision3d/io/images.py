"""Photographs as people have them: a path, a folder, a pattern, a video, a Pillow image, an array, a tensor.

:func:`load_photo` gives one :class:`Photo`; :func:`iter_photos` goes through anything lazily, with an output
name for each that no other has.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from vision3d.errors import InputError
from vision3d.io.video import VIDEO_SUFFIXES, is_video, iter_frames

if TYPE_CHECKING:
    import torch
    from PIL import Image

    Source = Union[str, os.PathLike[str], Image.Image, np.ndarray, torch.Tensor]
    Sources = Union[Source, Sequence[Source]]

__all__ = ["IMAGE_SUFFIXES", "Photo", "PhotoRef", "expand_inputs", "is_video", "iter_photos", "load_photo"]

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif", ".mpo", ".ppm", ".pgm", ".avif"}
    | {".heic", ".heif", ".jp2", ".tga"}
)
# Camera raw files are TIFF inside; Pillow would quietly open the thumbnail.
RAW_SUFFIXES = frozenset({".dng", ".nef", ".cr2", ".cr3", ".arw", ".raf", ".orf", ".rw2", ".pef"})
MIN_SIDE = 16
MAX_ASPECT = 50


@dataclass(eq=False)
class Photo:
    """One photograph, upright, in RGB.

    Attributes:
        pixels: (H, W, 3) as stored: uint8, uint16, or float32 in [0, 1].
        name: what its results are called.
        path: where it came from, or None.
        focal_px: focal length from EXIF in pixels of this image, or None.
        alpha: (H, W) float32 in [0, 1] if the image is transparent anywhere; the colours are not composited.
        info: format, mode, camera and lens as the file says.
        truncated: the file was cut off; the part that could not be decoded is grey or black.
    """

    pixels: np.ndarray
    name: str = "image"
    path: Path | None = None
    focal_px: float | None = None
    alpha: np.ndarray | None = None
    info: dict[str, Any] = field(default_factory=dict)
    truncated: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def rgb(self) -> np.ndarray:
        """(H, W, 3) float32 in [0, 1]; computed anew each time."""
        if self.pixels.dtype.kind == "f":
            return self.pixels
        return self.pixels.astype(np.float32) / np.float32(np.iinfo(self.pixels.dtype).max)

    @property
    def rgb8(self) -> np.ndarray:
        """(H, W, 3) uint8, rounded."""
        if self.pixels.dtype == np.uint8:
            return self.pixels
        if self.pixels.dtype == np.uint16:
            return ((self.pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.round(self.pixels * 255).astype(np.uint8)

    @cached_property
    def sha256(self) -> str:
        """Checksum of the pixels (with their size and type), however they were stored."""
        digest = hashlib.sha256(f"{self.pixels.dtype.name} {self.pixels.shape}".encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()

    def to_tensor(self) -> torch.Tensor:
        """(1, 3, H, W) float32 in [0, 1], on the CPU."""
        import torch

        return torch.from_numpy(np.ascontiguousarray(self.rgb.transpose(2, 0, 1)))[None]

    def to_pil(self) -> Image.Image:
        """8-bit RGB Pillow image."""
        from PIL import Image

        return Image.fromarray(self.rgb8)

    def __repr__(self) -> str:
        height, width = self.size
        lens = f", focal length {self.focal_px:.0f} px" if self.focal_px else ""
        return f"Photo {self.name!r} {width}×{height} {self.pixels.dtype}{lens}"


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
        photo.name = self.name
        return photo


def load_photo(source: Source | Photo, *, min_side: int = MIN_SIDE, max_aspect: float = MAX_ASPECT) -> Photo:
    """One photograph from a path, a Pillow image, an array or a tensor.

    Arrays and tensors are (H, W), (H, W, C), (C, H, W) or (1, C, H, W) with C of 1 to 4 (grey, grey + alpha, RGB,
    RGBA), of uint8, uint16, or floating point in [0, 1].

    Args:
        source: what to load; a Photo is returned as it is.
        min_side: smallest width and height accepted, in pixels.
        max_aspect: largest ratio of the sides accepted.

    Raises:
        InputError: one line that says what is wrong with it.
    """
    if isinstance(source, Photo):
        return source
    if isinstance(source, (str, os.PathLike)):
        photo = _load_file(Path(source).expanduser())
    elif _is_pil(source):
        from vision3d.io.decode import decode_pil

        try:
            source.load()
        except OSError as error:
            raise InputError(f"Pillow image cannot be decoded ({error})", "give an image that loads") from error
        decoded = decode_pil(source, "Pillow image")
        path = Path(source.filename) if getattr(source, "filename", "") else None
        photo = Photo(decoded.pixels, path.stem if path else "image", path, decoded.focal_px, decoded.alpha, decoded.info)
    else:
        photo = _from_array(_as_numpy(source))
    _check_shape(photo, min_side, max_aspect)
    return photo


def _load_file(path: Path) -> Photo:
    from vision3d.io.decode import decode_image

    if re.match(r"^[a-z]+:/", str(path)) and "://" in str(path).replace(":/", "://", 1):
        raise InputError(f"{path} is an address, not a file", "download it and give the file")
    if path.is_dir():
        raise InputError(f"{path} is a folder, not an image", "give a file in it")
    if not path.exists():
        raise InputError(f"no such file: {path}", "check the path")
    if path.suffix.lower() in RAW_SUFFIXES:
        raise InputError(f"{path} is a camera raw file", "develop it to JPEG, PNG or TIFF")
    if is_video(path):
        raise InputError(f"{path} is a video, where one image is needed", "give an image")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "check its permissions") from error
    decoded = decode_image(data, str(path))
    return Photo(
        decoded.pixels, path.stem, path, decoded.focal_px, decoded.alpha, decoded.info, truncated=decoded.truncated
    )


def _is_pil(source: Any) -> bool:
    return type(source).__module__.startswith("PIL.") or any(
        base.__module__ == "PIL.Image" for base in type(source).__mro__
    )


def _as_numpy(source: Any) -> np.ndarray:
    if type(source).__module__.split(".")[0] == "torch" and hasattr(source, "detach"):
        source = source.detach().cpu()
        return (source.float() if source.is_floating_point() else source).numpy()
    if isinstance(source, np.ndarray):
        return source
    raise InputError(
        f"{type(source).__name__} is not an image",
        "give a path, a Pillow image, a numpy array or a torch tensor",
    )


def _from_array(array: np.ndarray) -> Photo:
    shape = array.shape
    if array.ndim == 4 and shape[0] == 1:
        array = array[0]
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3:
        raise InputError(f"array of shape {shape} is not one image", "give (H, W, 3) or (3, H, W)")
    if array.shape[-1] > 4 and array.shape[0] <= 4:
        array = np.moveaxis(array, 0, -1)
    if not 1 <= array.shape[-1] <= 4 or 0 in shape:
        raise InputError(f"array of shape {shape} is not an image", "give (H, W, 3) or (3, H, W)")
    array = _checked_values(array)
    alpha = None
    if array.shape[-1] in (2, 4):
        top = 1 if array.dtype.kind == "f" else np.iinfo(array.dtype).max
        alpha = array[..., -1].astype(np.float32) / np.float32(top)
        alpha = None if (alpha == 1).all() else alpha
        array = array[..., :-1]
    if array.shape[-1] == 1:
        array = np.repeat(array, 3, axis=-1)
    return Photo(np.ascontiguousarray(array), alpha=alpha)


def _checked_values(array: np.ndarray) -> np.ndarray:
    """uint8 and uint16 as they are, floats in [0, 1] as float32. Raises InputError for anything else."""
    if array.dtype in (np.uint8, np.uint16):
        return array
    if array.dtype.kind != "f":
        raise InputError(f"array of type {array.dtype}", "give uint8, uint16, or floats in [0, 1]")
    if not np.isfinite(array).all():
        raise InputError("array holds NaN or infinite values", "give finite values in [0, 1]")
    low, high = float(array.min()), float(array.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise InputError(
            f"floating-point array with values from {low:.4g} to {high:.4g}",
            "scale it to [0, 1] or give uint8",
        )
    return np.clip(array, 0, 1).astype(np.float32)


def _check_shape(photo: Photo, min_side: int, max_aspect: float) -> None:
    height, width = photo.size
    label = str(photo.path) if photo.path else "image"
    if min(height, width) < min_side:
        raise InputError(
            f"{label} is {width}×{height} pixels", f"give an image of at least {min_side}×{min_side}"
        )
    if max(height, width) > max_aspect * min(height, width):
        raise InputError(f"{label} is a strip of {width}×{height} pixels", f"crop it to at most 1:{max_aspect:g}")


def expand_inputs(source: Sources, *, recursive: bool = False) -> list[tuple[str, Any]]:
    """Everything that ``source`` stands for, as (unique output name, path or in-memory image).

    A folder gives its images and videos in natural order (img2 before img10), nested folders with ``recursive``
    (then named "sub/img2"); a pattern such as ``photos/*.jpg`` gives its matches; a list gives all of each. When
    two would be called the same, the later one takes its suffix along: ``a.jpg``, ``a.png`` → "a", "a_png".

    Raises:
        InputError: nothing there, nothing usable in it.
    """
    found = _expand(source, recursive)
    if not found:
        raise InputError("an empty list of images", "give at least one")
    taken: set[str] = set()
    named = []
    for name, item in found:
        unique = name
        if unique.casefold() in taken and isinstance(item, Path):
            unique = f"{name}_{item.suffix[1:].lower()}"
        number = 2
        while unique.casefold() in taken:
            unique, number = f"{name}_{number}", number + 1
        taken.add(unique.casefold())
        named.append((unique, item))
    return named


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
    path = Path(source).expanduser()
    if path.is_dir():
        return _expand_folder(path, recursive)
    if not path.exists() and glob.has_magic(str(path)):
        matches = sorted(map(Path, glob.glob(str(path), recursive=True)), key=natural_key)  # noqa: PTH207
        if not matches:
            raise InputError(f"nothing matches {path}", "check the pattern")
        usable = [p for p in matches if p.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and p.is_file()]
        if not usable:
            raise InputError(f"none of the {len(matches)} matches of {path} is an image or a video", "check it")
        return [(_stem(p), p) for p in usable]
    return [(_stem(path), path)]


def _expand_folder(folder: Path, recursive: bool) -> list[tuple[str, Any]]:
    suffixes = IMAGE_SUFFIXES | VIDEO_SUFFIXES

    def usable(path: Path) -> bool:
        parts = path.relative_to(folder).parts
        return path.suffix.lower() in suffixes and not any(p.startswith(".") for p in parts) and path.is_file()

    try:
        found = [p for p in (folder.rglob("*") if recursive else folder.iterdir()) if usable(p)]
        nested = not found and not recursive and any(usable(p) for p in folder.rglob("*"))
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror})", "check its permissions") from error
    if not found:
        hint = "its subfolders do: use --recursive" if nested else "give a folder with JPEG, PNG, … or video files"
        raise InputError(f"{folder} holds no images or videos", hint)
    found.sort(key=lambda p: natural_key(p.relative_to(folder)))
    return [((p.relative_to(folder).parent / _stem(p)).as_posix(), p) for p in found]


def natural_key(path: str | os.PathLike[str]) -> list[Any]:
    """Sort key with numbers by value and letters regardless of case: img2 < img10, the name itself as a tie-break."""
    parts = re.split(r"(\d+)", os.fspath(path))
    return [[(1, int(p), "") if p.isdigit() else (0, 0, p.casefold()) for p in parts], os.fspath(path)]


def _stem(path: Path) -> str:
    """A name that is safe as a folder: no control characters, not hidden, never empty."""
    return re.sub(r'[\x00-\x1f<>:"|?*\\]', "_", path.stem).strip(". ") or "image"


def iter_photos(
    source: Sources, *, recursive: bool = False, every: int = 1, limit: int | None = None
) -> Iterator[PhotoRef]:
    """Go through everything that ``source`` stands for (see :func:`expand_inputs`), videos frame by frame.

    Images are read when their reference's ``load()`` is called; the frames of a video are decoded as the iteration
    reaches them and named "clip/000000" onwards, so keep no list of them.

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
                yield PhotoRef(f"{name}/{number:06d}", f"{item} frame {number}", item, _frame_loader(frame, item))
        elif isinstance(item, Path):
            yield PhotoRef(name, str(item), item, lambda item=item: load_photo(item))  # type: ignore[misc]
        else:
            yield PhotoRef(name, name, None, lambda item=item: load_photo(item))  # type: ignore[misc]


def _frame_loader(frame: np.ndarray, video: Path) -> Callable[[], Photo]:
    def load() -> Photo:
        photo = Photo(frame, path=video)
        _check_shape(photo, MIN_SIDE, MAX_ASPECT)
        return photo

    return load
