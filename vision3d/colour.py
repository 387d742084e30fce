"""Colours for looking at maps: Spectral for depth (near is warm), x-y-z colours for normals, previews."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from vision3d.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

INVALID_GREY = 128
UNKNOWN_FLOW = 1e9
"""Larger components of a flow mark, by Middlebury's convention, that it is unknown."""
_NORMAL_SIGNS = np.array([0.5, -0.5, -0.5], np.float32)


@lru_cache(maxsize=8)
def palette(name: str = "Spectral") -> np.ndarray:
    """(256, 3) uint8 colours of a matplotlib colour map. Raises InputError for an unknown name."""
    import matplotlib as mpl

    try:
        colours = mpl.colormaps[name]
    except KeyError as error:
        raise InputError(
            f"colour map {name!r} is unknown", "use a matplotlib name such as Spectral"
        ) from error
    table = (colours(np.arange(256))[:, :3] * 255).astype(
        np.uint8
    )  # truncated, as the published pictures are
    table.setflags(write=False)
    return table


def colour_values(
    values: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    limits: tuple[float, float] | None = None,
    reverse: bool = False,
    name: str = "Spectral",
) -> np.ndarray:
    """Map (H, W) numbers to (H, W, 3) uint8 colours; invalid and non-finite pixels are grey.

    Args:
        values: any real numbers.
        valid: (H, W) bool, or None.
        limits: values that get the first and last colour; by default the 1st and 99th percentile.
        reverse: turn the colour map over.
        name: a matplotlib colour map.
    """
    values = np.asarray(values, dtype=np.float32)
    there = np.isfinite(values) if valid is None else np.isfinite(values) & valid
    if not there.any():
        return np.full((*values.shape, 3), INVALID_GREY, np.uint8)
    low, high = limits if limits is not None else np.percentile(values[there], [1, 99])
    if not high > low:
        low, high = low - 0.5, low + 0.5
    share = np.clip((np.where(there, values, low) - low) / (high - low), 0, 1)
    if reverse:
        share = 1 - share
    colours = palette(name)[np.minimum((share * 256).astype(np.uint16), 255)]  # as matplotlib indexes
    colours[~there] = INVALID_GREY
    return colours


def colour_depth(depth: np.ndarray, valid: np.ndarray | None = None, *, inverse: bool = False) -> np.ndarray:
    """Spectral colours (H, W, 3) uint8 of depth, or inverse depth if ``inverse``: near is red, far is blue.

    Sky and other infinite depth of a metric map are grey.
    """
    return colour_values(depth, valid, reverse=inverse)


def colour_uncertainty(degrees: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """(H, W, 3) uint8 of angles of doubt (H, W): black for 0, white from 30 degrees on, grey where invalid."""
    return colour_values(degrees, valid, limits=(0, 30), name="magma")


def colour_normals(normals: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 of camera-space normals in OpenCV axes, zero vectors grey.

    The usual picture: red grows to the right, green upwards, blue towards the camera.
    """
    normals = np.asarray(normals, dtype=np.float32)
    colours = np.round(np.clip(normals * _NORMAL_SIGNS + 0.5, 0, 1) * 255).astype(np.uint8)
    colours[np.square(normals).sum(axis=-1) < 0.25] = INVALID_GREY
    return colours


def side_by_side(images: list[np.ndarray], *, max_side: int = 1600, gap: int = 8) -> Image.Image:
    """uint8 images (H, W, 3) of one size in a row (panoramas in a column), each at most ``max_side`` long."""
    from PIL import Image

    height, width = images[0].shape[:2]
    scale = min(1.0, max_side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    stacked = width > 2 * height  # a wide panorama reads better above its map than beside it
    step = (0, size[1] + gap) if stacked else (size[0] + gap, 0)
    count = len(images)
    canvas = Image.new("RGB", (size[0] + step[0] * (count - 1), size[1] + step[1] * (count - 1)), "white")
    for number, pixels in enumerate(images):
        image = Image.fromarray(pixels)
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        canvas.paste(image, (step[0] * number, step[1] * number))
    return canvas


def contact_sheet(
    panels: list[tuple[str, np.ndarray]], *, columns: int = 3, max_side: int = 640, gap: int = 8
) -> Image.Image:
    """uint8 images (H, W, 3) in rows, each under its title and at most ``max_side`` long.

    Cells have the first image's shape; images of another one are fitted into them.
    """
    from PIL import Image, ImageDraw, ImageFont

    height, width = panels[0][1].shape[:2]
    scale = min(1.0, max_side / max(height, width))
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    line = 22
    rows = -(-len(panels) // columns)
    columns = min(columns, len(panels))
    sheet = Image.new("RGB", (columns * (w + gap) - gap, rows * (h + line + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for number, (title, pixels) in enumerate(panels):
        x, y = number % columns * (w + gap), number // columns * (h + line + gap)
        draw.text((x + 2, y + 2), title, fill="black", font=font)
        image = Image.fromarray(pixels)
        share = min(w / image.width, h / image.height)
        size = max(1, round(image.width * share)), max(1, round(image.height * share))
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS)
        sheet.paste(image, (x + (w - size[0]) // 2, y + line + (h - size[1]) // 2))
    return sheet


def shade_normals(normals: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 grey relief of camera-space normals, lit from the upper left behind the camera."""
    n = np.asarray(normals, dtype=np.float32)
    light = np.array([-0.4, -0.55, -0.73], np.float32)
    bright = np.clip(n @ (light / np.linalg.norm(light)), 0, 1) * 215 + 30
    grey = np.where(np.square(n).sum(axis=-1) > 0.25, bright, INVALID_GREY).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


@lru_cache(maxsize=1)
def label_palette() -> np.ndarray:
    """(256, 3) uint8 colours for class indices, neighbours far apart in hue; 255 (no class) is black."""
    import colorsys

    golden = 0.6180339887498949
    colours = [
        colorsys.hsv_to_rgb((0.07 + i * golden) % 1, 0.45 + 0.18 * (i % 4), 0.95 - 0.15 * (i % 3))
        for i in range(256)
    ]
    table = np.round(np.array(colours) * 255).astype(np.uint8)
    table[255] = 0
    table.setflags(write=False)
    return table


def colour_labels(labels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 colours of (H, W) class indices."""
    return label_palette()[np.asarray(labels).astype(np.uint8)]


def colour_wheel() -> np.ndarray:
    """(55, 3) colours of Middlebury's wheel, 0 to 255: red, yellow, green, cyan, blue, magenta, red."""
    segments = (
        (15, 0, 1, True),
        (6, 1, 0, False),
        (4, 1, 2, True),
        (11, 2, 1, False),
        (13, 2, 0, True),
        (6, 0, 2, False),
    )
    rows = []
    for length, steady, moving, rising in segments:
        part = np.zeros((length, 3))
        part[:, steady] = 255
        ramp = np.floor(255 * np.arange(length) / length)
        part[:, moving] = ramp if rising else 255 - ramp
        rows.append(part)
    return np.concatenate(rows)


def colour_flow(flow: np.ndarray, max_radius: float | None = None) -> np.ndarray:
    """Middlebury's picture ``(H, W, 3)`` uint8 of a flow ``(H, W, 2)``: direction is hue, length is saturation.

    Args:
        flow: x, y in pixels; unknown (not finite or huge) vectors are black.
        max_radius: length in pixels at full saturation; longer ones are darkened. None takes the longest.
    """
    known = np.isfinite(flow).all(-1) & (np.abs(flow) < UNKNOWN_FLOW).all(-1)
    u, v = (np.where(known, flow[..., i], 0.0) for i in (0, 1))
    radius = np.hypot(u, v)
    longest = float(max_radius) if max_radius else float(radius.max()) or 1.0
    u, v = u / longest, v / longest
    radius = np.hypot(u, v)
    wheel = colour_wheel()
    place = (np.arctan2(-v, -u) / np.pi + 1) / 2 * (len(wheel) - 1)
    low = np.floor(place).astype(np.int64)
    high = np.where(low + 1 == len(wheel), 0, low + 1)
    part = (place - low)[..., None]
    colour = ((1 - part) * wheel[low] + part * wheel[high]) / 255
    radius = radius[..., None]
    colour = np.where(radius <= 1, 1 - radius * (1 - colour), 0.75 * colour)
    return np.where(known[..., None], np.floor(255 * colour), 0).astype(np.uint8)
