"""Depth maps to files and back: 16-bit PNG that says how to read it, and 32-bit OpenEXR."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vision3d.errors import InputError

_TOP = 65535
_EXR_LINES = 16  # scanlines per ZIP block, fixed by the format


@dataclass(frozen=True)
class PngScaling:
    """How 16-bit numbers stand for values: ``value = offset + scale * number``; 0 means "no value"."""

    scale: float
    offset: float


def png_scaling(values: np.ndarray, valid: np.ndarray, *, metric: bool) -> PngScaling:
    """Millimetres for metric depth up to 65.5 m, as depth cameras have it; else the range over 1 … 65535."""
    if not valid.any():
        return PngScaling(1.0, 0.0)
    low, high = float(values[valid].min()), float(values[valid].max())
    if metric and low >= 0.0005 and high <= _TOP / 1000:
        return PngScaling(0.001, 0.0)
    scale = (high - low) / (_TOP - 1) if high > low else 1.0
    return PngScaling(scale, low - scale)


def write_depth_png(
    path: Path, values: np.ndarray, valid: np.ndarray, scaling: PngScaling, text: dict[str, str] | None = None
) -> None:
    """16-bit grey PNG of (H, W) values, with "scale", "offset" and ``text`` as text chunks."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    safe = np.where(valid, values, 0).astype(np.float64)
    numbers = np.clip(np.round((safe - scaling.offset) / scaling.scale), 1, _TOP)
    numbers = np.where(valid, numbers, 0).astype(np.uint16)
    info = PngInfo()
    for key, value in {"scale": repr(scaling.scale), "offset": repr(scaling.offset), **(text or {})}.items():
        info.add_text(key, value)
    Image.fromarray(numbers).save(path, format="PNG", pnginfo=info)


def read_depth_png(path: Path) -> np.ndarray:
    """(H, W) float32 values of a PNG written by :func:`write_depth_png`; NaN where it has none.

    Raises:
        InputError: not such a file.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            numbers = np.asarray(image).astype(np.float64)
            scale, offset = float(image.info["scale"]), float(image.info["offset"])  # type: ignore[arg-type]
    except (OSError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} is not a depth PNG with scale and offset", "give a depth.png of vision3d"
        ) from error
    return np.where(numbers > 0, numbers * scale + offset, np.nan).astype(np.float32)


def read_grey(path: Path, bits: int) -> np.ndarray:
    """(H, W) numbers of a grey picture of 8 or 16 bits, as stored.

    Raises:
        InputError: not such a picture.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            numbers = np.asarray(image)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a picture ({error})", "copy it again") from error
    if numbers.ndim != 2 or numbers.dtype not in ((np.uint16, np.int32) if bits == 16 else (np.uint8,)):
        raise InputError(f"{path} is not a {bits}-bit grey picture", "write it as such a PNG")
    return numbers


def write_exr(path: Path, channels: dict[str, np.ndarray], text: dict[str, str] | None = None) -> None:
    """OpenEXR 2 scanline file of 32-bit float channels with lossless ZIP compression.

    Written here since OpenCV's codec is switched off by default and no other dependency has one.

    Args:
        path: file to write.
        channels: name to (H, W) array; depth goes into "Y", which every reader shows, normals into "R", "G",
            "B".
        text: further string attributes of the header.
    """
    names = sorted(channels)
    height, width = channels[names[0]].shape
    window = struct.pack("<4i", 0, 0, width - 1, height - 1)
    channel_list = (
        b"".join(name.encode() + b"\0" + struct.pack("<iB3xii", 2, 0, 1, 1) for name in names) + b"\0"
    )
    attributes = [
        ("channels", "chlist", channel_list),
        ("compression", "compression", b"\x03"),
        ("dataWindow", "box2i", window),
        ("displayWindow", "box2i", window),
        ("lineOrder", "lineOrder", b"\x00"),
        ("pixelAspectRatio", "float", struct.pack("<f", 1)),
        ("screenWindowCenter", "v2f", struct.pack("<2f", 0, 0)),
        ("screenWindowWidth", "float", struct.pack("<f", 1)),
    ]
    attributes += [(key, "string", value.encode()) for key, value in (text or {}).items()]
    header = struct.pack("<II", 20000630, 2)
    for name, kind, value in attributes:
        header += name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value
    header += b"\0"
    planes = np.stack(
        [channels[name].astype("<f4") for name in names], axis=1
    )  # (H, C, W): the order in the file
    blocks = [_exr_block(planes[y : y + _EXR_LINES].tobytes()) for y in range(0, height, _EXR_LINES)]
    position = len(header) + 8 * len(blocks)
    offsets = []
    for block in blocks:
        offsets.append(position)
        position += 8 + len(block)
    with path.open("wb") as file:
        file.write(header + struct.pack(f"<{len(offsets)}Q", *offsets))
        for number, block in enumerate(blocks):
            file.write(struct.pack("<ii", number * _EXR_LINES, len(block)) + block)


def _exr_block(raw: bytes) -> bytes:
    """ZIP as OpenEXR does it: bytes split by parity, biased differences, deflate; raw if no smaller."""
    data = np.frombuffer(raw, np.uint8)
    split = np.concatenate([data[0::2], data[1::2]])
    split[1:] = split[1:] - split[:-1] + np.uint8(128)  # wraps around, as meant
    packed = zlib.compress(split.tobytes(), 6)
    return packed if len(packed) < len(raw) else raw
