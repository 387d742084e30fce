"""How a photograph becomes the calibration network's input: scaled to a longest side, then padded to a square."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def working_size(width: int, height: int, max_size: int = 768) -> tuple[int, int]:
    """(width, height) after scaling to a longest side of ``max_size``, up or down; both are truncated."""
    scale = min(max_size / width, max_size / height)
    return max(1, int(width * scale)), max(1, int(height * scale))


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """PIL's bicubic resize of (H, W, 3) uint8 to ``size`` (width, height)."""
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Canvas:
    """Where a picture lies on the padded canvas.

    Attributes:
        height, width: of the picture on the canvas.
        left, right, top, bottom: padding around it.
    """

    height: int
    width: int
    left: int
    right: int
    top: int
    bottom: int

    @classmethod
    def fit(cls, height: int, width: int, canvas_height: int, canvas_width: int) -> Canvas:
        """The largest picture of that shape on a canvas, in its middle; halves are rounded down."""
        is_tall = canvas_width / canvas_height > width / height
        ratio = canvas_height / height if is_tall else canvas_width / width
        h, w = math.ceil(height * ratio - 0.5), math.ceil(width * ratio - 0.5)
        x, y = canvas_width - w, canvas_height - h
        return cls(h, w, x // 2, x - x // 2, y // 2, y - y // 2)

    def pad(self, images: Tensor, value: float = 0.0) -> Tensor:
        """Images (B, C, h, w) resized (bilinear, antialiased) and padded to the canvas."""
        size = self.height, self.width
        if images.shape[-2:] != size:
            images = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        return F.pad(images, (self.left, self.right, self.top, self.bottom), value=value)

    def crop(self, images: Tensor) -> Tensor:
        """The picture (..., h, w) without its padding."""
        return images[..., self.top : self.top + self.height, self.left : self.left + self.width]


def to_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 → (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
