"""Places on objects that mean the same on all of a category: "normalised object coordinates" from named keypoints.

Each category gets a shape: the mean of its objects' keypoints, upright, centred, of unit size, left and right along x.
An object is laid over it by a turn about the vertical, a scale and a little affine change, after which every visible
point of it has coordinates in the shape's frame. Points of different objects with the same coordinates correspond
(Wang et al.: "Normalized Object Coordinate Space", CVPR 2019; the affine change is ours, as the objects' proportions
differ).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vision3d.camera import Intrinsics, transform_points

_ROUNDS = 6
_STIFFNESS = 0.03
"""How hard an object's proportions are to change, relative to its keypoints' spread."""


def mirrored_name(name: str) -> str:
    """The name of a keypoint in a mirrored picture: left is right."""
    parts = name.split("_")
    return "_".join({"left": "right", "right": "left"}.get(part, part) for part in parts)


def keypoints_in_space(sample: Any, object_id: int) -> dict[str, np.ndarray]:
    """World positions (3,) in metres of an object's keypoints by name, whether visible or not."""
    rows = sample.keypoints[sample.keypoints["object_id"] == object_id]
    pixels = np.stack([rows["x"], rows["y"]], 1).astype(np.float64)
    points = to_world(sample, pixels, rows["z_cam"].astype(np.float64))
    return {str(name): point for name, point in zip(rows["name"], points, strict=True)}


def to_world(sample: Any, pixels: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """World positions (N, 3) of pixels (N, 2), centres at +0.5, with depth (N,) along the optical axis."""
    height, width = np.asarray(sample.object_id).shape
    camera = Intrinsics.from_K(sample.K, width, height)
    return transform_points(sample.cam_to_world, camera.unproject(pixels, depth))


@dataclass(frozen=True, eq=False)
class Placement:
    """An affine map from the world to a category's shape.

    Attributes:
        matrix: (3, 3).
        offset: (3,).
    """

    matrix: np.ndarray
    offset: np.ndarray

    @classmethod
    def upright(cls, points: np.ndarray, shape: np.ndarray) -> Placement:
        """The least-squares turn about the vertical, scale and shift from points (N, 3) to as many of a shape."""
        middle, target = points.mean(0), shape.mean(0)
        p, c = points - middle, shape - target
        turn = np.sum((p[:, 0] - 1j * p[:, 1]) * (c[:, 0] + 1j * c[:, 1]))
        scale = (abs(turn) + p[:, 2] @ c[:, 2]) / max(np.sum(p * p), 1e-12)
        unit = turn / abs(turn) if abs(turn) > 1e-12 else 1.0
        matrix = scale * np.array([[unit.real, -unit.imag, 0], [unit.imag, unit.real, 0], [0, 0, 1.0]])
        return cls(matrix, target - matrix @ middle)

    @classmethod
    def fitted(cls, points: np.ndarray, shape: np.ndarray) -> Placement:
        """:meth:`upright`, then the affine change that a ridge allows."""
        first = cls.upright(points, shape)
        placed = first(points)
        middle = placed.mean(0)
        x, rest = placed - middle, shape - placed
        ridge = _STIFFNESS * len(points) * np.eye(3)
        change = np.linalg.solve(x.T @ x + ridge, x.T @ (rest - rest.mean(0))).T + np.eye(3)
        return cls(change @ first.matrix, change @ (first.offset - middle) + middle + rest.mean(0))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Places (N, 3) in the shape's frame."""
        return np.asarray(points @ self.matrix.T + self.offset)


def mean_shape(objects: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The shape of a category: mean places (3,) of its objects' keypoints by name.

    Centred; the keypoints' root mean square distance from the middle is 1; z up; left is at positive x where there is
    a left, else the shape is widest along y; symmetric in x.

    Args:
        objects: keypoints in space by name, of each object.
    """
    known = [dict(each) for each in objects if len(each) >= 2]
    if not known:
        return {}
    shape = _unit(max(known, key=len))
    for _ in range(_ROUNDS):
        sums: dict[str, list[np.ndarray]] = {}
        for each in known:
            common = [name for name in each if name in shape]
            if len(common) < 2:
                continue
            placed = Placement.upright(
                np.stack([each[name] for name in common]), np.stack([shape[name] for name in common])
            )
            for name, point in each.items():
                sums.setdefault(name, []).append(placed(point[None])[0])
        shape = _unit({name: np.mean(points, 0) for name, points in sums.items()})
    return _symmetric(_facing(shape))


def _unit(points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    values = np.stack(list(points.values()))
    values = values - values.mean(0)
    values = values / max(float(np.sqrt(np.mean(np.sum(values * values, axis=1)))), 1e-9)
    return dict(zip(points, values, strict=True))


def _facing(shape: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Turned about the vertical so that left is at positive x, or the widest direction along y."""
    sides = [
        (point - shape[mirrored_name(name)])[:2]
        for name, point in shape.items()
        if "left" in name.split("_") and mirrored_name(name) in shape
    ]
    if sides:
        x, y = np.sum(sides, axis=0)
    else:
        flat = np.stack(list(shape.values()))[:, :2]
        y, x = np.linalg.eigh(flat.T @ flat)[1][:, -1] * [-1, 1]
    unit = np.array([x, y]) / max(float(np.hypot(x, y)), 1e-9)
    turn = np.array([[unit[0], unit[1], 0], [-unit[1], unit[0], 0], [0, 0, 1]])
    return {name: turn @ point for name, point in shape.items()}


def _symmetric(shape: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    flip = np.array([-1.0, 1.0, 1.0])
    return {
        name: (point + flip * shape.get(mirrored_name(name), flip * point)) / 2
        for name, point in shape.items()
    }


def places_on(
    sample: Any,
    object_id: int,
    shape: Mapping[str, np.ndarray],
    pixels: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Where pixels of an object are on its category's shape.

    Args:
        sample: with ``depth``, ``object_id``, ``keypoints``, ``K`` and ``cam_to_world``.
        object_id: in the sample.
        shape: of its category, see :func:`mean_shape`.
        pixels: (N, 2) x, y in pixels, centres at +0.5.

    Returns:
        Places (N, 3) and whether the pixel shows the object (N,); places of others are 0.
    """
    places = np.zeros((len(pixels), 3))
    own = keypoints_in_space(sample, object_id)
    common = [name for name in own if name in shape]
    owner = np.asarray(sample.object_id)
    height, width = owner.shape
    columns, rows = np.floor(pixels).astype(int).T
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    columns, rows = columns.clip(0, width - 1), rows.clip(0, height - 1)
    depth = np.asarray(sample.depth)[rows, columns].astype(np.float64)
    shown = inside & (owner[rows, columns] == object_id) & np.isfinite(depth)
    if len(common) < 2 or not shown.any():
        return places, np.zeros(len(pixels), bool)
    placed = Placement.fitted(
        np.stack([own[name] for name in common]), np.stack([shape[name] for name in common])
    )
    places[shown] = placed(to_world(sample, pixels[shown], depth[shown]))
    return places, shown
