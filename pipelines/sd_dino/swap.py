"""Putting one image's colours where another's parts are: dense colour transfer and instance swap (section 3.9)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vision3d.pipelines.sd_dino.canvas import Canvas, square
from vision3d.pipelines.sd_dino.features import resize_map

FAR = 1e5
"""In every channel of a masked-out descriptor, so that it is near to nothing but other masked-out ones."""


def masked_features(
    features: Tensor,  # [C, h, w]
    mask: Tensor | None,  # [H, W]
    resolution: int,
    *,
    parity: bool = False,
) -> Tensor:
    """Descriptors ``(R * R, C)`` at a working resolution, those outside the mask far from all others.

    Args:
        features: of an image's canvas.
        mask: of the canvas, at any resolution; None keeps all.
        resolution: R, cells along a side.
        parity: take a channel sum of zero as the sign of being masked out, as published, instead of the mask.
    """
    rows = resize_map(features, (resolution, resolution)).flatten(1).T
    if mask is None:
        return rows
    inside = resized_mask(mask, resolution).flatten()
    rows = rows * inside[:, None].to(rows)
    outside = rows.sum(1) == 0 if parity else ~inside
    return rows.masked_fill(outside[:, None], FAR)


def resized_mask(mask: Tensor, resolution: int) -> Tensor:
    """A mask at another resolution ``(R, R)`` bool, nearest neighbour."""
    return F.interpolate(mask[None, None].float(), size=(resolution, resolution), mode="nearest")[0, 0] > 0


def nearest_rows(first: Tensor, second: Tensor, block: int = 2048) -> Tensor:
    """(N,) for each row of ``first`` the index of the nearest of ``second``, in blocks."""
    return torch.cat([torch.cdist(part, second).argmin(1) for part in first.split(block)])


def swap_source(image: np.ndarray, mask: np.ndarray | None, resolution: int) -> np.ndarray:
    """The colours to take: an image on a small canvas, masked, stretched to [0, 1] over all values, (R, R, 3)."""
    small = square(image, resolution).astype(np.float32)
    if mask is not None:
        inside = resized_mask(torch.from_numpy(np.asarray(mask, np.float32)), resolution).numpy()
        small = small * inside[..., None]
    low, high = float(small.min()), float(small.max())
    return (small - low) / ((high - low) or 1.0)


def transfer(
    table: np.ndarray,  # [R, R, K] values of the second image
    nearest: Tensor,  # [R * R] cell of the second image for every cell of the first
) -> np.ndarray:
    """Values ``(R, R, K)`` of the second image laid out as the first is."""
    resolution, channels = table.shape[0], table.shape[-1]
    return table.reshape(-1, channels)[nearest.cpu().numpy()].reshape(resolution, resolution, channels)


def swap_colours(
    first: Tensor,  # [C, h, w]
    second: Tensor,
    image: np.ndarray,  # the second, [H, W, 3] uint8
    masks: tuple[Tensor | None, Tensor | None],
    resolution: int = 156,
    *,
    table: np.ndarray | None = None,
    parity: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The second image's object in the first one's shape.

    Args:
        first, second: descriptors on the two canvases.
        image: whose colours are taken.
        masks: of the two canvases.
        resolution: working resolution; 156 for swaps and 128 for colours in the published scripts.
        table: (R, R, K) other values to carry over, instead of the image's colours.
        parity: see :func:`masked_features`.

    Returns:
        Values ``(R, R, K)`` laid out as the first image, and the table that they come from.
    """
    nearest = nearest_rows(
        masked_features(first, masks[0], resolution, parity=parity),
        masked_features(second, masks[1], resolution, parity=parity),
    )
    if table is None:
        table = swap_source(image, None if masks[1] is None else masks[1].cpu().numpy(), resolution)
    return transfer(table, nearest), table


def compose(
    image: np.ndarray,  # the first, [H, W, 3] uint8
    swapped: np.ndarray,  # [R, R, 3] in [0, 1], on the first one's canvas
    mask: np.ndarray,  # [H, W] bool, of the first
    feather: float = 1.5,
) -> np.ndarray:
    """The first image with its object replaced, ``(H, W, 3)`` uint8.

    Args:
        image: of which everything outside the mask is kept.
        swapped: what comes inside.
        mask: the object.
        feather: softness of the edge in pixels; 0 for a hard one.
    """
    import cv2

    full = canvas_to_image(swapped.astype(np.float32), image.shape[0], image.shape[1])
    weight = np.asarray(mask, np.float32)
    if feather > 0:
        weight = cv2.GaussianBlur(weight, (0, 0), feather) * weight
    mixed = image.astype(np.float32) * (1 - weight[..., None]) + 255 * full * weight[..., None]
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8)


def canvas_to_image(values: np.ndarray, height: int, width: int, *, smooth: bool = True) -> np.ndarray:
    """Values ``(R, R, ...)`` on a canvas at the size of the image that it shows, padding cut off."""
    import cv2

    canvas = Canvas(height, width, max(height, width))
    method = cv2.INTER_CUBIC if smooth else cv2.INTER_NEAREST
    whole = cv2.resize(values, (canvas.side, canvas.side), interpolation=method)
    rows, columns = canvas.window
    part = whole[rows, columns]
    return np.clip(part, 0, 1) if smooth else part


def image_to_canvas(mask: np.ndarray, side: int) -> Tensor:
    """A mask ``(H, W)`` of an image on its canvas ``(side, side)`` bool, nearest neighbour, outside is False."""
    import cv2

    canvas = Canvas(mask.shape[0], mask.shape[1], side)
    height, width = canvas.shape
    small = cv2.resize(np.asarray(mask, np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    result = torch.zeros(side, side, dtype=torch.bool)
    rows, columns = canvas.window
    result[rows, columns] = torch.from_numpy(small > 0)
    return result
