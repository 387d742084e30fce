"""What the procedural world hands out: an image with everything that is known about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

KEYPOINT = np.dtype(
    [
        ("name", "U32"),
        ("object_id", np.int32),
        ("category", "U32"),
        ("x", np.float32),  # pixels, centres at +0.5; may lie outside the image
        ("y", np.float32),
        ("z_cam", np.float32),  # metres along the optical axis; negative behind the camera
        ("visible", np.bool_),  # in the image and not hidden by anything
    ]
)
"""One row of :attr:`Sample.keypoints`."""


@dataclass(frozen=True)
class PartInfo:
    """A named part of an object, as ``part_id`` numbers it."""

    part_id: int
    object_id: int
    name: str
    category: str  # of the object


@dataclass(frozen=True)
class Sample:
    """One rendered view. Camera frame: OpenCV (x right, y down, z forward); pixel centres at +0.5."""

    image: np.ndarray  # (H, W, 3) uint8 sRGB
    depth: np.ndarray  # (H, W) float32 z-depth in metres, inf for sky
    normals: np.ndarray  # (H, W, 3) float32 unit, camera frame, towards the camera; 0 for sky
    object_id: np.ndarray  # (H, W) int32, 0 for sky
    part_id: np.ndarray  # (H, W) int32, 0 for sky
    semantic: np.ndarray  # (H, W) uint8 ADE20K-150 index, 255 for none
    K: np.ndarray  # (3, 3) float64
    cam_to_world: np.ndarray  # (4, 4) float64, world z up, metres
    keypoints: np.ndarray  # (N,) of KEYPOINT: every object with a pixel in the image
    caption: str
    seed: int
    parts: tuple[PartInfo, ...] = ()  # those with a pixel in the image
    kind: str = ""  # of scene: "kitchen", "street", …

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.depth.shape[0], self.depth.shape[1]
