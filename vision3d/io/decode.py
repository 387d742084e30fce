"""From the bytes of an image file to pixels the way a person sees them.

Pillow decodes everything but 16-bit colour, which it would round to 8 bits and OpenCV keeps. EXIF orientation
is applied, the lens is read, alpha is set aside without compositing, and a file that cannot be used says why.
"""

from __future__ import annotations

import contextlib
import io
import math
import threading
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vision3d.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

# Pillow refuses to open images above this; a decoded one would take 0.5 GB, its float copy 2 GB.
MAX_PIXELS = 178_956_970
FULL_FRAME_DIAGONAL_MM = 43.27  # of 36 × 24 mm, which "35 mm equivalent" refers to

_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"II*\x00": "TIFF", b"MM\x00*": "TIFF"}
_MAGIC |= {b"RIFF": "WebP", b"BM": "BMP"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_TOLD = ("orientation", "make", "model", "lens", "focal_mm", "focal_35mm")  # of EXIF, in Photo.info
UNDECODABLE = (OSError, SyntaxError, ValueError, IndexError, EOFError, RuntimeError)
"""What Pillow's decoders raise for damaged data."""
_truncated_lock = threading.Lock()  # Pillow's switch for damaged files is global


@dataclass
class Decoded:
    """Pixels and what the file says about them.

    Attributes:
        pixels: (H, W, 3) uint8 or uint16, RGB, upright.
        alpha: (H, W) float32 in [0, 1], or None.
        focal_px: focal length in pixels of this image, or None.
        info: what a person may want to know (format, mode, camera, lens).
        truncated: the file was cut off; what could not be decoded is grey or black.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    focal_px: float | None
    info: dict[str, Any] = field(default_factory=dict)
    truncated: bool = False


def decode_image(data: bytes, label: str) -> Decoded:
    """Decode the first frame of an image file.

    Args:
        data: the whole file.
        label: what to call it in messages.

    Raises:
        InputError: empty, not an image, cut off before any pixel, of a format that needs another package, or
            larger than :data:`MAX_PIXELS`.
    """
    if not data:
        raise InputError(f"{label} is empty (0 bytes)", "give the image again; its copy or download failed")
    _check_known_strangers(data, label)
    truncated = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own half-way limit and broken EXIF blocks
        try:
            image = _open(data, label)
            # Before load(), which turns TIFF files upright itself and forgets that it did.
            exif, size = read_exif(image), image.size
            try:
                image.load()
            except UNDECODABLE as error:
                image, truncated = _salvage(data, label, error), True
            decoded = _decode(image, label, exif, size, None if truncated else data)
        except (MemoryError, OverflowError) as error:
            raise InputError(f"{label} is too large to decode", "give a smaller image") from error
    decoded.truncated = truncated
    if truncated:
        _warn_truncated(decoded, label)
    return decoded


def _open(data: bytes, label: str) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{label} has more than {MAX_PIXELS / 1e6:.0f} million pixels", "resize it first"
        ) from error
    except (UnidentifiedImageError, TypeError, *UNDECODABLE) as error:
        kind = next((name for magic, name in _MAGIC.items() if data.startswith(magic)), None)
        if kind == "TIFF":
            raise InputError(
                f"{label} is a TIFF that is damaged or cut off, or whose kind of samples is not read",
                "give the original file, or convert it to 8 or 16 bits",
            ) from error
        if kind:
            raise InputError(
                f"{label} is a {kind} that is damaged or cut off within its header ({len(data)} bytes)",
                "give the original file",
            ) from error
        raise InputError(
            f"{label} is not an image", "give a JPEG, PNG, TIFF, WebP, GIF or BMP file"
        ) from error


def _check_known_strangers(data: bytes, label: str) -> None:
    """Formats that people have and that need a word of their own."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        try:
            import pillow_heif
        except ImportError as error:
            raise InputError(
                f"{label} is a HEIC image, which needs the package pillow-heif",
                "pip install pillow-heif, or convert it to JPEG",
            ) from error
        pillow_heif.register_heif_opener()
    elif data[:4] == b"\x76\x2f\x31\x01":
        raise InputError(f"{label} is an OpenEXR image", "convert the photograph to PNG, TIFF or JPEG")
    elif data[:5] == b"%PDF-":
        raise InputError(f"{label} is a PDF document", "export its page as PNG or JPEG")


def _salvage(data: bytes, label: str, cause: Exception) -> Image.Image:
    """What can be decoded of a file that ends too early. Raises InputError when that is nothing."""
    from PIL import ImageFile

    if data.startswith(b"\xff\xd8"):
        # With an end marker libjpeg finishes what it has, all scans of a progressive file included.
        image = _open(data + b"\xff\xd9", label)
        with contextlib.suppress(*UNDECODABLE):
            image.load()
            if _decoded_rows(np.asarray(image)) > 0:
                return image
    else:
        with _truncated_lock:
            before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
            try:
                image = _open(data, label)
                image.load()
                if _decoded_rows(np.asarray(image)) > 0:
                    return image
            except UNDECODABLE:
                pass
            finally:
                ImageFile.LOAD_TRUNCATED_IMAGES = before
    raise InputError(
        f"{label} is damaged or cut off before its first pixels ({len(data)} bytes)", "give the original file"
    ) from cause


def _decoded_rows(pixels: np.ndarray) -> int:
    """Rows up to the last one that is not of one colour: what follows was never decoded."""
    rows = pixels.reshape(pixels.shape[0], pixels.shape[1], -1)
    varied = np.flatnonzero((rows != rows[:, :1]).any(axis=(1, 2)))
    return int(varied[-1]) + 1 if len(varied) else 0


def _warn_truncated(decoded: Decoded, label: str) -> None:
    from vision3d.progress import warn

    rows, height = _decoded_rows(decoded.pixels), decoded.pixels.shape[0]
    share = "to its last row" if rows == height else f"for about {100 * rows // height} % of its rows"
    warn(f"{label} is cut off; it could be decoded {share}, and the results mean nothing beyond")


def decode_pil(image: Image.Image, label: str) -> Decoded:
    """Pixels of a loaded Pillow image, upright and in RGB.

    Raises:
        InputError: too large, or of a mode that is not a picture (32-bit data beyond 16 bits, CIE Lab).
    """
    return _decode(image, label, read_exif(image), image.size, None)


def _decode(
    image: Image.Image, label: str, exif: dict[str, Any], size: tuple[int, int], data: bytes | None
) -> Decoded:
    """``exif`` and ``size`` are those before turning upright; ``data`` is the file, for 16-bit colour."""
    from PIL import ImageOps

    width, height = size
    if width * height > MAX_PIXELS:
        raise InputError(f"{label} has {width * height / 1e6:.0f} million pixels", "resize it first")
    focal_px = focal_in_pixels(exif, width, height)
    info = {"format": image.format, "mode": image.mode, **{k: exif[k] for k in _TOLD if exif.get(k)}}
    deep = _decode_deep(image, size, data)
    if deep is not None:
        colour, opacity = deep
        # OpenCV turns TIFF files upright itself, and no others when it reads them unchanged.
        orientation = 1 if image.format == "TIFF" else exif.get("orientation", 1)
        opacity = None if opacity is None else turn_upright(opacity, orientation)
        return Decoded(turn_upright(colour, orientation), opacity, focal_px, {**info, "bits": 16})
    with contextlib.suppress(Exception):  # a broken EXIF block must not cost the picture
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Decoded(_deep_grey(np.asarray(image), label), None, focal_px, info)
    alpha = None
    try:
        if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
            image = image.convert("RGBA")
            channel = np.asarray(image.getchannel("A"))
            alpha = channel.astype(np.float32) / 255 if (channel < 255).any() else None
        # From RGBA this drops alpha and keeps the colours under it as they are stored.
        pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    except (ValueError, OSError) as error:
        raise InputError(f"{label} has colours of mode {image.mode}", "convert it to RGB") from error
    return Decoded(np.ascontiguousarray(pixels), alpha, focal_px, info)


def _deep_grey(values: np.ndarray, label: str) -> np.ndarray:
    """(H, W) 16-bit, 32-bit or float grey to (H, W, 3) uint16."""
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise InputError(f"{label} holds floating-point values outside [0, 1]", "scale them to [0, 1]")
        values = np.round(values * 65535)
    elif values.min() < 0 or values.max() > 65535:
        raise InputError(f"{label} holds 32-bit values beyond 16 bits", "convert it to 16 bits")
    return np.repeat(values.astype(np.uint16)[..., None], 3, axis=-1)


def _decode_deep(
    image: Image.Image, size: tuple[int, int], data: bytes | None
) -> tuple[np.ndarray, np.ndarray | None] | None:
    """16-bit colour through OpenCV: RGB (H, W, 3) uint16 and alpha, or None if the file has none."""
    if data is None or image.mode not in ("RGB", "RGBA", "LA") or ";16" not in _raw_mode(data):
        return None
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.shape[:2] not in (size, size[::-1]):
        return None
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    alpha = pixels[..., -1].astype(np.float32) / 65535 if pixels.shape[-1] in (2, 4) else None
    colour = pixels[..., 2::-1] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)
    if alpha is not None and (alpha == 1).all():
        alpha = None
    return np.ascontiguousarray(colour), alpha


def _raw_mode(data: bytes) -> str:
    """The file's sample layout as Pillow's decoder sees it, e.g. 'RGB;16B' (``mode`` hides the depth)."""
    from PIL import Image

    tile = getattr(Image.open(io.BytesIO(data)), "tile", None)
    return str(tile[0][3]) if tile else ""


def turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation (1–8) to (H, W, ...) pixels."""
    turned = {
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
        8: lambda p: np.rot90(p, 1),
    }.get(orientation, lambda p: p)(pixels)
    return np.ascontiguousarray(turned)


def read_exif(image: Image.Image) -> dict[str, Any]:
    """The EXIF fields used here, plain and checked: orientation, camera, lens, focal length and its scale."""
    try:
        exif = image.getexif()
        detail = exif.get_ifd(0x8769)
    except Exception:  # Pillow raises anything on damaged EXIF; the picture is still good
        return {}

    def number(value: Any) -> float | None:
        try:
            result = float(value)
        except (TypeError, ValueError, ZeroDivisionError):
            return None
        return result if math.isfinite(result) and result > 0 else None

    def text(value: Any) -> str | None:
        return value.strip("\x00 ") if isinstance(value, str) else None

    return {
        "orientation": int(number(exif.get(274)) or 1),
        "make": text(exif.get(271)),
        "model": text(exif.get(272)),
        "lens": text(detail.get(42036)),
        "focal_mm": number(detail.get(37386)),
        "focal_35mm": number(detail.get(41989)),
        "plane_x_resolution": number(detail.get(41486)),
        "plane_unit_mm": {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}.get(int(number(detail.get(41488)) or 2)),
        "exif_width": number(detail.get(40962)),
        "exif_height": number(detail.get(40963)),
    }


def focal_in_pixels(exif: dict[str, Any], width: int, height: int) -> float | None:
    """Focal length in pixels of an image of ``width`` × ``height``, or None.

    From the 35 mm equivalent by the diagonal, else from the focal length and the sensor's resolution; the
    latter refers to the image as recorded, so a resized one is scaled by its recorded width. Lenses outside
    3°–170° of the diagonal are taken for wrong entries.
    """
    diagonal = math.hypot(width, height)
    focal = None
    if exif.get("focal_35mm"):
        focal = exif["focal_35mm"] * diagonal / FULL_FRAME_DIAGONAL_MM
    elif exif.get("focal_mm") and exif.get("plane_x_resolution") and exif.get("plane_unit_mm"):
        focal = exif["focal_mm"] * exif["plane_x_resolution"] / exif["plane_unit_mm"]
        recorded = max(exif.get("exif_width") or 0, exif.get("exif_height") or 0)
        focal *= max(width, height) / (recorded or max(width, height))
    if focal is None or not 3 < 2 * math.degrees(math.atan2(diagonal / 2, focal)) < 170:
        return None
    return focal
