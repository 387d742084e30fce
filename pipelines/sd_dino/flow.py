"""Dense flow from nearest cells, the picture of a flow, and ``.flo`` files (section 3.8)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vision3d.errors import InputError
from vision3d.pipelines.sd_dino.canvas import Canvas

FLO_MAGIC = b"PIEH"
UNKNOWN = 1e9
"""Middlebury's mark of an unknown flow vector is anything larger."""


def published_flow(
    nearest: Tensor,  # [h * w] int, source cell of every target cell
    grid: tuple[int, int],
    shape: tuple[int, int],  # (H, W) of the images
    *,
    parity: bool = False,
) -> Tensor:
    """Flow ``(2, H, W)`` as x, y in pixels from target to source, by the published rule.

    Both images share one shape and one square canvas. Cells are enlarged to the canvas, values by ``long / w``, then
    the padding is cut off.

    Args:
        nearest: as from ``nearest_cells(target, source).forward``.
        grid: (h, w) of the cells.
        shape: of the images.
        parity: keep the published slip of a true division, by which y is up to one cell too large.
    """
    height, width = grid
    rows = nearest.double() / width if parity else (nearest // width).double()
    source = torch.stack([(nearest % width).double(), rows]).float().unflatten(1, grid)
    y, x = torch.meshgrid(
        torch.arange(height, device=nearest.device), torch.arange(width, device=nearest.device), indexing="ij"
    )
    flow = source - torch.stack([x, y]).to(source)
    long, short = max(shape), min(shape)
    flow = F.interpolate(flow[None], size=(long, long), mode="bilinear", align_corners=False)[0] * (
        long / width
    )
    start = (long - short) // 2
    if shape[0] == long:
        return flow[:, :, start : start + short]
    return flow[:, start : start + short, :]


def cell_flow(
    positions: Tensor,  # [h * w, 2] x, y in cells of the other image (centres at +0.5)
    grid: tuple[int, int],
    other_grid: tuple[int, int],
    canvas: Canvas,
    other: Canvas,
) -> np.ndarray:
    """Flow ``(H, W, 2)`` float32 as x, y in pixels from an image to another of any size.

    Pixel (row i, column j), centre (j + 0.5, i + 0.5), corresponds to its centre plus the flow there. Positions are
    interpolated between the centres of cells.
    """
    points = positions.detach().double().cpu().numpy()
    scale = np.array([other.side / other_grid[1], other.side / other_grid[0]])
    there = other.to_image(points * scale).astype(np.float32).reshape(*grid, 2)
    # where the pixels' centres lie between the cells' centres
    y, x = np.meshgrid(np.arange(canvas.height) + 0.5, np.arange(canvas.width) + 0.5, indexing="ij")
    on_canvas = canvas.to_canvas(np.stack([x, y], -1))
    column = on_canvas[..., 0] * grid[1] / canvas.side - 0.5
    row = on_canvas[..., 1] * grid[0] / canvas.side - 0.5
    import cv2

    sampled = cv2.remap(
        there,
        column.astype(np.float32),
        row.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return sampled - np.stack([x, y], -1).astype(np.float32)


def mapping(flow: np.ndarray) -> np.ndarray:
    """Absolute places ``(H, W, 2)`` of a flow, pixels counted from whole numbers."""
    y, x = np.meshgrid(np.arange(flow.shape[0]), np.arange(flow.shape[1]), indexing="ij")
    return flow + np.stack([x, y], -1).astype(flow.dtype)


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
    known = np.isfinite(flow).all(-1) & (np.abs(flow) < UNKNOWN).all(-1)
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
