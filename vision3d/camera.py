"""Cameras and the one set of conventions: OpenCV axes (x right, y down, z forward), camera-to-world poses.

Pixel coordinates are continuous with pixel centres at +0.5: the pixel in column j and row i covers
[j, j + 1) × [i, i + 1) and its centre is (u, v) = (j + 0.5, i + 0.5). Resizing an image therefore scales
``cx`` and ``cy`` exactly as it scales ``fx`` and ``fy``. Libraries that put centres at integers (OpenCV's
calibration, COLMAP before 3.0) hold ``cx - 0.5``; see :meth:`Intrinsics.from_integer_centres`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from vision3d.errors import InputError

# A photograph that says nothing about its lens is taken to see this much along its longer side: between a
# phone's main camera (about 70°) and a 50 mm lens (40°).
ASSUMED_FOV_DEGREES = 55.0

Convention = Literal["opencv", "opengl", "blender", "nerfstudio"]


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera for an image of ``width`` × ``height`` pixels; all lengths in pixels.

    Attributes:
        fx, fy: focal lengths.
        cx, cy: principal point, in continuous coordinates (pixel centres at +0.5).
        width, height: image size the other numbers refer to.

    Raises:
        InputError: focal lengths or size not positive and finite.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def __post_init__(self) -> None:
        if (
            not all(math.isfinite(v) for v in (self.fx, self.fy, self.cx, self.cy))
            or min(self.fx, self.fy) <= 0
        ):
            raise InputError(
                f"camera with fx={self.fx}, fy={self.fy}, cx={self.cx}, cy={self.cy}",
                "focal lengths are positive and all four numbers finite, in pixels",
            )
        if self.width < 1 or self.height < 1:
            raise InputError(f"camera for an image of {self.width}×{self.height} pixels", "give a size ≥ 1×1")

    @classmethod
    def from_K(cls, K: Any, width: int, height: int) -> Intrinsics:
        """From a 3×3 matrix without skew. Raises InputError for another shape, skew, or a bad last row."""
        K = np.asarray(K, dtype=np.float64)
        if K.shape != (3, 3):
            raise InputError(f"intrinsics of shape {K.shape}", "give a 3×3 matrix K")
        if not np.allclose(K[2], [0, 0, 1]) or abs(K[0, 1]) > 1e-6 * abs(K[0, 0]) or abs(K[1, 0]) > 1e-9:
            raise InputError(
                f"intrinsics {K.tolist()} have skew or a last row other than 0 0 1",
                "give [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels",
            )
        return cls(float(K[0, 0]), float(K[1, 1]), float(K[0, 2]), float(K[1, 2]), int(width), int(height))

    @classmethod
    def from_integer_centres(cls, K: Any, width: int, height: int) -> Intrinsics:
        """From the matrix of a library with pixel centres at integers (OpenCV's calibration)."""
        camera = cls.from_K(K, width, height)
        return cls(camera.fx, camera.fy, camera.cx + 0.5, camera.cy + 0.5, width, height)

    @classmethod
    def from_focal(cls, focal_px: float, width: int, height: int) -> Intrinsics:
        """Square pixels, principal point in the middle of the image."""
        return cls(float(focal_px), float(focal_px), width / 2, height / 2, int(width), int(height))

    @classmethod
    def from_fov(cls, fov_x: float, width: int, height: int, fov_y: float | None = None) -> Intrinsics:
        """From the full angles of view in degrees; square pixels unless ``fov_y`` is given too."""
        for angle in (fov_x, fov_y):
            if angle is not None and not 0 < angle < 180:
                raise InputError(f"field of view of {angle}°", "give an angle between 0 and 180 degrees")
        fx = width / 2 / math.tan(math.radians(fov_x) / 2)
        fy = fx if fov_y is None else height / 2 / math.tan(math.radians(fov_y) / 2)
        return cls(fx, fy, width / 2, height / 2, int(width), int(height))

    @classmethod
    def assumed(cls, width: int, height: int) -> Intrinsics:
        """The camera used when nothing is known: 55° along the longer side, principal point in the middle."""
        focal = max(width, height) / 2 / math.tan(math.radians(ASSUMED_FOV_DEGREES) / 2)
        return cls.from_focal(focal, width, height)

    @property
    def K(self) -> np.ndarray:
        """(3, 3) float64, pixel centres at +0.5."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @property
    def K_integer_centres(self) -> np.ndarray:
        """(3, 3) float64 for libraries that put pixel centres at integers."""
        return np.array([[self.fx, 0.0, self.cx - 0.5], [0.0, self.fy, self.cy - 0.5], [0.0, 0.0, 1.0]])

    @property
    def fov_x(self) -> float:
        """Full horizontal angle of view in degrees, also for a principal point off the middle."""
        return math.degrees(math.atan2(self.cx, self.fx) + math.atan2(self.width - self.cx, self.fx))

    @property
    def fov_y(self) -> float:
        """Full vertical angle of view in degrees."""
        return math.degrees(math.atan2(self.cy, self.fy) + math.atan2(self.height - self.cy, self.fy))

    def resized(self, width: int, height: int) -> Intrinsics:
        """The camera of the same image resampled to ``width`` × ``height``."""
        sx, sy = width / self.width, height / self.height
        return Intrinsics(self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy, int(width), int(height))

    def cropped(self, x: int, y: int, width: int, height: int) -> Intrinsics:
        """The camera of the window whose top left corner is pixel (x, y); negative values pad."""
        return Intrinsics(self.fx, self.fy, self.cx - x, self.cy - y, int(width), int(height))

    def mirrored(self) -> Intrinsics:
        """The camera of the same image turned left to right."""
        return replace(self, cx=self.width - self.cx)

    def pixel_centres(self) -> np.ndarray:
        """(H, W, 2) float64: (u, v) of every pixel's centre."""
        u, v = np.meshgrid(np.arange(self.width) + 0.5, np.arange(self.height) + 0.5)
        return np.stack([u, v], axis=-1)

    def rays(self, *, unit: bool = False) -> np.ndarray:
        """(H, W, 3) float32 directions through the pixel centres; z = 1, or length 1 if ``unit``."""
        rays = self.unproject(self.pixel_centres(), 1.0)
        if unit:
            rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
        return rays.astype(np.float32)

    def project(self, points: Any) -> tuple[np.ndarray, np.ndarray]:
        """Points (..., 3) in camera axes to pixels (..., 2) and z-depth (...).

        Points with z ≤ 0 lie behind the camera and get NaN pixels.
        """
        points = np.asarray(points, dtype=np.float64)
        z = points[..., 2]
        safe = np.where(z > 0, z, np.nan)
        u = self.fx * points[..., 0] / safe + self.cx
        v = self.fy * points[..., 1] / safe + self.cy
        return np.stack([u, v], axis=-1), z

    def unproject(self, pixels: Any, depth: Any) -> np.ndarray:
        """Pixels (..., 2) and z-depth (broadcast to (...)) to points (..., 3) float64 in camera axes."""
        pixels = np.asarray(pixels, dtype=np.float64)
        depth = np.broadcast_to(np.asarray(depth, dtype=np.float64), pixels.shape[:-1])
        x = (pixels[..., 0] - self.cx) / self.fx * depth
        y = (pixels[..., 1] - self.cy) / self.fy * depth
        return np.stack([x, y, depth], axis=-1)

    def to_opengl(self, near: float = 0.01, far: float = 100.0) -> np.ndarray:
        """(4, 4) projection matrix from OpenGL camera axes (y up, looking along -z) to clip space.

        Normalised device coordinates: x = 2u/W - 1, y = 1 - 2v/H, z = -1 at ``near`` and +1 at ``far``.
        """
        w, h = self.width, self.height
        return np.array(
            [
                [2 * self.fx / w, 0, 1 - 2 * self.cx / w, 0],
                [0, 2 * self.fy / h, 2 * self.cy / h - 1, 0],
                [0, 0, -(far + near) / (far - near), -2 * far * near / (far - near)],
                [0, 0, -1, 0],
            ]
        )

    def to_nerfstudio(self) -> dict[str, float | int]:
        """The keys of a ``transforms.json``, which also puts pixel centres at +0.5."""
        return {
            "fl_x": self.fx,
            "fl_y": self.fy,
            "cx": self.cx,
            "cy": self.cy,
            "w": self.width,
            "h": self.height,
        }

    @classmethod
    def from_nerfstudio(cls, entry: dict[str, Any]) -> Intrinsics:
        """From the keys of a ``transforms.json`` (the inverse of :meth:`to_nerfstudio`)."""
        return cls(entry["fl_x"], entry["fl_y"], entry["cx"], entry["cy"], int(entry["w"]), int(entry["h"]))

    def to_dict(self) -> dict[str, float | int]:
        """Plain numbers for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, entry: dict[str, Any]) -> Intrinsics:
        """The inverse of :meth:`to_dict`; further keys are ignored."""
        return cls(**{key: entry[key] for key in ("fx", "fy", "cx", "cy", "width", "height")})

    def __str__(self) -> str:
        return f"{self.width}×{self.height} camera, {self.fov_x:.1f}° × {self.fov_y:.1f}°"


# Camera axes of each convention, as columns in OpenCV axes: x stays, y and z turn over for the OpenGL family.
_CAMERA_AXES: dict[str, np.ndarray] = {
    "opencv": np.eye(4),
    "opengl": np.diag([1.0, -1.0, -1.0, 1.0]),
    "blender": np.diag([1.0, -1.0, -1.0, 1.0]),
    "nerfstudio": np.diag([1.0, -1.0, -1.0, 1.0]),
}
# World axes of each convention, as a rotation from the OpenCV world (y down, z forward).
_Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, -1.0, 0, 0], [0, 0, 0, 1.0]])
_WORLD_AXES: dict[str, np.ndarray] = {
    "opencv": np.eye(4),
    "opengl": np.diag([1.0, -1.0, -1.0, 1.0]),
    "blender": _Z_UP,
    "nerfstudio": _Z_UP,
}


def convert_pose(
    cam_to_world: Any, source: Convention, target: Convention, *, turn_world: bool = False
) -> np.ndarray:
    """Camera-to-world matrices (..., 4, 4) from one convention to another.

    The camera's own axes always change: OpenCV looks along +z with y down; OpenGL, Blender and nerfstudio
    look along -z with y up. The world stays where it is unless ``turn_world``: then its axes change too, from
    OpenCV's (y down, z forward) to OpenGL's (y up, z backward) or to Blender's and nerfstudio's (z up, y
    forward).

    Raises:
        InputError: an unknown convention or another shape.
    """
    pose = np.asarray(cam_to_world, dtype=np.float64)
    if pose.shape[-2:] == (3, 4):
        pose = np.concatenate([pose, np.broadcast_to([0.0, 0, 0, 1], (*pose.shape[:-2], 1, 4))], axis=-2)
    if pose.shape[-2:] != (4, 4):
        raise InputError(f"pose of shape {pose.shape}", "give camera-to-world matrices of shape (..., 4, 4)")
    for name in (source, target):
        if name not in _CAMERA_AXES:
            raise InputError(f"camera convention {name!r}", f"use one of {', '.join(_CAMERA_AXES)}")
    pose = pose @ _CAMERA_AXES[source].T @ _CAMERA_AXES[target]
    if turn_world:
        pose = _WORLD_AXES[target] @ _WORLD_AXES[source].T @ pose
    return pose


def invert_pose(pose: Any) -> np.ndarray:
    """Inverse of rigid transforms (..., 4, 4), exact for rotations."""
    pose = np.asarray(pose, dtype=np.float64)
    inverse = np.zeros_like(pose)
    rotation_t = np.swapaxes(pose[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = rotation_t
    inverse[..., :3, 3] = -(rotation_t @ pose[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1
    return inverse


def transform_points(pose: Any, points: Any) -> np.ndarray:
    """Apply one rigid transform (4, 4) to points (..., 3); float64."""
    pose = np.asarray(pose, dtype=np.float64)
    return np.asarray(points, dtype=np.float64) @ pose[:3, :3].T + pose[:3, 3]


def look_at(eye: Any, target: Any, up: Any = (0.0, -1.0, 0.0)) -> np.ndarray:
    """(4, 4) camera-to-world pose in OpenCV axes at ``eye``, looking at ``target``, upright along ``up``.

    Raises:
        InputError: ``eye`` equals ``target`` or the view is along ``up``.
    """
    eye, target, up = (np.asarray(v, dtype=np.float64) for v in (eye, target, up))
    forward = target - eye
    right = np.cross(forward, up)
    if np.linalg.norm(right) < 1e-9 * max(1.0, float(np.linalg.norm(forward))):
        raise InputError(
            "look_at with eye on target or looking along up", "move the eye or choose another up"
        )
    forward /= np.linalg.norm(forward)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, np.cross(forward, right), forward, eye
    return pose
