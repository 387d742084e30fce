"""One photograph: loading it from what people have, checking it, its pixels in the forms that code needs."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vision3d.errors import InputError
from vision3d.io.video import is_video
from vision3d.paths import as_path

if TYPE_CHECKING:
    import torch
    from PIL import Image

    Source = str | os.PathLike[str] | Image.Image | np.ndarray | torch.Tensor

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

    @property
    def opaque(self) -> np.ndarray | None:
        """(H, W) bool: where more than half is covered, or all that is, if no more than half is anywhere.

        None if the image is not transparent anywhere.
        """
        if self.alpha is None:
            return None
        covered = self._alpha8 > 128
        return covered if covered.any() else self.alpha > 0

    @property
    def on_white(self) -> np.ndarray:
        """(H, W, 3) uint8: what is seen of a transparent image on white paper, as Pillow composites; else ``rgb8``."""
        if self.alpha is None:
            return self.rgb8
        from PIL import Image

        white = Image.new("RGB", self.size[::-1], (255, 255, 255))
        return np.asarray(Image.composite(self.to_pil(), white, Image.fromarray(self._alpha8)))

    def shown_at(self, size: tuple[int, int]) -> np.ndarray:
        """(h, w, 3) uint8: as :attr:`on_white`, at a size (height, width)."""
        if size == self.size:
            return self.on_white
        from PIL import Image

        return np.asarray(Image.fromarray(self.on_white).resize(size[::-1], Image.Resampling.LANCZOS))

    @property
    def _alpha8(self) -> np.ndarray:
        assert self.alpha is not None
        return np.round(self.alpha * 255).astype(np.uint8)

    @cached_property
    def sha256(self) -> str:
        """Checksum of the pixels (with their size and type) and their transparency, however they were stored."""
        digest = hashlib.sha256(f"{self.pixels.dtype.name} {self.pixels.shape}".encode())
        digest.update(np.ascontiguousarray(self.pixels).data)
        if self.alpha is not None:
            digest.update(np.ascontiguousarray(self.alpha).data)
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


def load_photo(source: Source | Photo, *, min_side: int = MIN_SIDE, max_aspect: float = MAX_ASPECT) -> Photo:
    """One photograph from a path, a Pillow image, an array or a tensor.

    Arrays and tensors are (H, W), (H, W, C), (C, H, W) or (1, C, H, W) with C of 1 to 4 (grey, grey + alpha,
    RGB, RGBA), of uint8, uint16, or floating point in [0, 1].

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
        photo = _load_file(as_path(source))
    elif (image := _as_pil(source)) is not None:
        photo = _from_pil(image)
    else:
        photo = _from_array(_as_numpy(source))
    check_shape(photo, min_side, max_aspect)
    if photo.opaque is not None and not photo.opaque.any():
        raise InputError(
            f"{photo.path or photo.name} is transparent everywhere", "give one that shows something"
        )
    return photo


def _load_file(path: Path) -> Photo:
    from vision3d.io.decode import decode_image

    if path.is_dir():
        raise InputError(f"{path} is a folder, not an image", "give a file in it")
    if not path.exists():
        raise InputError(f"no such file: {path}", "check the path")
    if not path.is_file():
        raise InputError(f"{path} is not a regular file", "give an image file")
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
        decoded.pixels,
        path.stem,
        path,
        decoded.focal_px,
        decoded.alpha,
        decoded.info,
        truncated=decoded.truncated,
    )


def _as_pil(source: Any) -> Image.Image | None:
    """``source`` if it is a Pillow image; Pillow is only imported if so."""
    return source if any(base.__module__ == "PIL.Image" for base in type(source).__mro__) else None


def _from_pil(image: Image.Image) -> Photo:
    from vision3d.io.decode import decode_pil

    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"Pillow image cannot be decoded ({error})", "give an image that loads") from error
    decoded = decode_pil(image, "Pillow image")
    filename = getattr(image, "filename", "")
    path = Path(filename) if isinstance(filename, str) and filename else None
    name = path.stem if path else "image"
    return Photo(decoded.pixels, name, path, decoded.focal_px, decoded.alpha, decoded.info)


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
    if array.dtype.kind == "u" and array.dtype.itemsize <= 2:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
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


def check_shape(photo: Photo, min_side: int = MIN_SIDE, max_aspect: float = MAX_ASPECT) -> None:
    """Raise InputError for a photo that is too small or a strip (see :func:`load_photo`)."""
    height, width = photo.size
    label = str(photo.path) if photo.path else "image"
    if min(height, width) < min_side:
        raise InputError(
            f"{label} is {width}×{height} pixels", f"give an image of at least {min_side}×{min_side}"
        )
    if max(height, width) > max_aspect * min(height, width):
        raise InputError(
            f"{label} is a strip of {width}×{height} pixels", f"crop it to at most 1:{max_aspect:g}"
        )
