"""Putting one image's colours where another's parts are: dense colour transfer and instance swap (section 3.9)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vision3d.matches import pair_fingerprint
from vision3d.pipelines.sd_dino.canvas import Canvas, CellGrid, square
from vision3d.pipelines.sd_dino.features import resize_map
from vision3d.pipelines.sd_dino.flow import on_pixels
from vision3d.prediction import GeometryLimits, Prediction, Writer

if TYPE_CHECKING:
    from PIL import Image

    from vision3d.io.images import Photo

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
        parity: as published: multiply by the mask's values, and take a channel sum of zero for what is masked out.
    """
    rows = resize_map(features, (resolution, resolution)).flatten(1).T
    if mask is None:
        return rows
    share = resized_mask(mask, resolution).flatten()
    if parity:
        rows = rows * share[:, None].to(rows)
        return rows.masked_fill((rows.sum(1) == 0)[:, None], FAR)
    return rows.masked_fill((share <= 0)[:, None], FAR)


def resized_mask(mask: Tensor, resolution: int) -> Tensor:
    """A mask's values at another resolution ``(R, R)`` float, nearest neighbour; what is above 0 is inside."""
    return F.interpolate(mask[None, None].float(), size=(resolution, resolution), mode="nearest")[0, 0]


def nearest_rows(first: Tensor, second: Tensor, block: int = 2048) -> Tensor:
    """(N,) for each row of ``first`` the index of the nearest of ``second``, in blocks."""
    return torch.cat([torch.cdist(part, second).argmin(1) for part in first.split(block)])


def swap_source(
    image: np.ndarray, mask: np.ndarray | None, resolution: int, *, parity: bool = False
) -> np.ndarray:
    """The colours to take: an image on a small canvas, masked, stretched to [0, 1] over all values, (R, R, 3)."""
    small = square(image, resolution).astype(np.float32)
    if mask is not None:
        share = resized_mask(torch.from_numpy(np.asarray(mask, np.float32)), resolution).numpy()
        small = small * (share if parity else (share > 0).astype(np.float32))[..., None]
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
        mask = None if masks[1] is None else masks[1].cpu().numpy()
        table = swap_source(image, mask, resolution, parity=parity)
    return transfer(table, nearest), table


def compose(
    image: np.ndarray,  # the first, [H, W, 3] uint8
    swapped: np.ndarray,  # [R, R, 3] in [0, 1], on the first one's canvas
    mask: np.ndarray,  # [H, W] bool, of the first
    feather: float = 1.5,
) -> np.ndarray:
    """The first image with its object replaced, ``(H, W, 3)`` uint8; see :func:`blend`."""
    full = canvas_to_image(swapped.astype(np.float32), image.shape[0], image.shape[1])
    return blend(image, 255 * full, mask, feather)


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


def paint(
    image: np.ndarray,  # A, [H, W, 3] uint8
    other: np.ndarray,  # B, [H', W', 3] uint8
    places: np.ndarray,  # [h * w, 2] x, y in cells of B
    certain: np.ndarray,  # [h * w], 0 outside A's object
    masks: tuple[np.ndarray, np.ndarray],  # [H, W], [H', W'] bool
    grids: tuple[CellGrid, CellGrid],
    *,
    smooth: float = 0.8,
    feather: float = 1.5,
) -> np.ndarray:
    """A with its object painted in B's pixels, ``(H, W, 3)`` uint8.

    Places are averaged with their neighbours' by how sure they are, so that a lone wrong match does not tear the
    picture, then interpolated to pixels. Pixels of B are only taken from its object: its surroundings are filled with
    the nearest of the object's colours first.

    Args:
        image, other: the two images.
        places, certain: for each cell of A.
        masks: of the objects.
        grids: cells of the two images.
        smooth: spread of the average, in cells; 0 for none.
        feather: softness of the edge in pixels.
    """
    import cv2

    here, there = grids
    targets = there.to_image(places).astype(np.float32).reshape(*here.shape, 2)
    weight = np.maximum(certain, 1e-6).astype(np.float32).reshape(here.shape)
    if smooth > 0:
        blurred = cv2.GaussianBlur(targets * weight[..., None], (0, 0), smooth)
        targets = blurred / cv2.GaussianBlur(weight, (0, 0), smooth)[..., None]
    source = on_pixels(targets, here)
    filled = fill_outside(other, masks[1])
    colours = cv2.remap(
        filled, source[..., 0] - 0.5, source[..., 1] - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return blend(image, colours, masks[0], feather)


def fill_outside(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image whose pixels outside the mask have the colour of the nearest one inside."""
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(~mask, return_distances=False, return_indices=True)
    return np.ascontiguousarray(image[rows, columns])


def blend(image: np.ndarray, inside: np.ndarray, mask: np.ndarray, feather: float) -> np.ndarray:
    """``inside`` within the mask and ``image`` outside, both uint8, the edge softened inwards by ``feather`` pixels."""
    import cv2

    weight = np.asarray(mask, np.float32)
    if feather > 0:
        weight = cv2.GaussianBlur(weight, (0, 0), feather) * weight
    mixed = image.astype(np.float32) * (1 - weight[..., None]) + inside.astype(np.float32) * weight[..., None]
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8)


def _write_mask(mask: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(mask.astype(np.uint8) * 255).save(path)


@dataclass(eq=False, repr=False)
class SwapResult(Prediction):
    """An image whose object was painted in another one's.

    Attributes:
        picture: (H, W, 3) uint8, the result.
        rough: (H, W, 3) uint8, before refinement by Stable Diffusion.
        masks: (H, W) bool of the two objects.
        photo_b: the second image.
    """

    kind: ClassVar[str] = "swap"

    picture: np.ndarray
    rough: np.ndarray
    masks: tuple[np.ndarray, np.ndarray]
    photo_b: Photo | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.picture.shape[0], self.picture.shape[1]

    @property
    def fingerprint(self) -> str:
        """As :attr:`Prediction.fingerprint`, of both images."""
        return pair_fingerprint(self.provenance.fingerprint(self.photo), self.photo_b)

    @property
    def is_refined(self) -> bool:
        """Whether Stable Diffusion went over it."""
        return not np.array_equal(self.picture, self.rough)

    def writers(self, formats: tuple[str, ...], limits: GeometryLimits) -> dict[str, tuple[str, Writer]]:
        """See :class:`Prediction`."""
        from PIL import Image

        files: dict[str, tuple[str, Writer]] = {
            "swap.png": (
                "the first image with the second one's object",
                lambda path: Image.fromarray(self.picture).save(path),
            ),
            "mask_a.png": ("the first image's object in white", partial(_write_mask, self.masks[0])),
            "mask_b.png": ("the second image's object in white", partial(_write_mask, self.masks[1])),
            "preview.png": ("both images and the result", lambda path: self.preview().save(path)),
        }
        if self.is_refined:
            files["rough.png"] = ("before refinement", lambda path: Image.fromarray(self.rough).save(path))
        return files

    def describe(self) -> dict[str, Any]:
        """See :class:`Prediction`."""
        second = self.photo_b
        return {
            "refined": self.is_refined,
            "second_input": None
            if second is None
            else {
                "name": second.path.name if second.path else second.name,
                "width": second.size[1],
                "height": second.size[0],
                "pixels_sha256": second.sha256,
            },
        }

    def preview(self) -> Image.Image:
        """First image, second image, result."""
        from PIL import Image

        pictures = [Image.fromarray(p.on_white) for p in (self.photo, self.photo_b) if p is not None]
        pictures.append(Image.fromarray(self.picture))
        height = min(480, max(p.height for p in pictures))
        scaled = [p.resize((max(1, round(p.width * height / p.height)), height)) for p in pictures]
        sheet = Image.new("RGB", (sum(p.width + 8 for p in scaled) - 8, height), "white")
        left = 0
        for picture in scaled:
            sheet.paste(picture, (left, 0))
            left += picture.width + 8
        return sheet

    def __repr__(self) -> str:
        refined = ", refined" if self.is_refined else ""
        made_by = f"{self.provenance.method} ({self.provenance.weights})"
        return f"SwapResult {self.size[1]}×{self.size[0]}{refined}; by {made_by}"
