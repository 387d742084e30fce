"""Dense flow from nearest cells (section 3.8)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vision3d.pipelines.sd_dino.canvas import CellGrid

PUBLISHED_CELLS = 60
"""By which the published code divides, whatever its grid."""


def published_flow(
    nearest: Tensor,  # [h * w] int, source cell of every target cell
    grid: tuple[int, int],
    shape: tuple[int, int],  # (H, W) of the images
    *,
    parity: bool = False,
    cells: int | None = None,
) -> Tensor:
    """Flow ``(2, H, W)`` as x, y in pixels from target to source, by the published rule.

    Both images share one shape and one square canvas. Cells are enlarged to the canvas, values by ``long / cells``,
    then the padding is cut off.

    Args:
        nearest: as from ``nearest_cells(target, source).forward``.
        grid: (h, w) of the cells.
        shape: of the images.
        parity: keep the published slip of a true division, by which y is up to one cell too large.
        cells: along the canvas; None takes the grid's w, the published code :data:`PUBLISHED_CELLS`.
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
        long / (cells or width)
    )
    start = (long - short) // 2
    if shape[0] == long:
        return flow[:, :, start : start + short]
    return flow[:, start : start + short, :]


def cell_flow(places: np.ndarray, here: CellGrid, there: CellGrid) -> np.ndarray:
    """Flow ``(H, W, 2)`` float32 as x, y in pixels from an image to another of any size.

    Pixel (row i, column j), centre (j + 0.5, i + 0.5), corresponds to its centre plus the flow there. What is
    interpolated between the middles of cells is how far a place moves relative to the two images' sizes, so that it
    goes on smoothly beyond the outermost middles; cells on the padding take after the nearest one on the image.

    Args:
        places: (h * w, 2) x, y of each cell's match on the other grid, middles of cells at +0.5.
        here, there: the two images' cells.
    """
    from scipy.ndimage import distance_transform_edt

    size, other = (np.array([g.canvas.width, g.canvas.height], float) for g in (here, there))
    y, x = np.meshgrid(*here.middles(), indexing="ij")
    middles = here.canvas.to_image(np.stack([x, y], -1))
    moved = there.to_image(places).reshape(*here.shape, 2) / other - middles / size
    inside = here.inside().reshape(here.shape)
    rows, columns = distance_transform_edt(~inside, return_distances=False, return_indices=True)
    moved = on_pixels(moved[rows, columns], here).astype(np.float64)
    y, x = np.meshgrid(np.arange(here.canvas.height) + 0.5, np.arange(here.canvas.width) + 0.5, indexing="ij")
    pixels = np.stack([x, y], -1)
    targets = np.clip((pixels / size + moved) * other, 0, other)
    return (targets - pixels).astype(np.float32)


def on_pixels(values: np.ndarray, cells: CellGrid) -> np.ndarray:
    """Values ``(h, w)`` or ``(h, w, K)`` of cells at the image's pixels ``(H, W, ...)``, bilinear."""
    import cv2

    height, width = cells.canvas.height, cells.canvas.width
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    between = (cells.to_cells(np.stack([x, y], -1)) - 0.5).astype(np.float32)
    return cv2.remap(
        np.ascontiguousarray(values, np.float32),
        between[..., 0],
        between[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


def mapping(flow: np.ndarray) -> np.ndarray:
    """Absolute places ``(H, W, 2)`` of a flow, pixels counted from whole numbers."""
    y, x = np.meshgrid(np.arange(flow.shape[0]), np.arange(flow.shape[1]), indexing="ij")
    return flow + np.stack([x, y], -1).astype(flow.dtype)
