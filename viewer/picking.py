"""What a click hits: the nearest point of meshes and point clouds along a ray."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vision3d.viewer.scene import Layer, MeshLayer, PointsLayer

POINT_TOLERANCE = 0.006  # radians between ray and point: about four pixels of a usual window


@dataclass(frozen=True)
class Hit:
    """Where a ray meets the scene.

    Attributes:
        distance: from the ray's origin.
        position: (3,) float64 in world axes.
    """

    distance: float
    position: np.ndarray


def ray_mesh(
    vertices: np.ndarray, faces: np.ndarray, origin: np.ndarray, direction: np.ndarray
) -> float | None:
    """Distance to the first triangle, seen from either side (Möller and Trumbore 1997); None if none is hit.

    Args:
        vertices: (N, 3).
        faces: (M, 3) indices.
        origin, direction: (3,), the direction of length 1.
    """
    corners = vertices.astype(np.float64)
    a = corners[faces[:, 0]]
    edge1, edge2 = corners[faces[:, 1]] - a, corners[faces[:, 2]] - a
    p = np.cross(direction, edge2)
    determinant = np.einsum("nc,nc->n", edge1, p)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = 1 / determinant
        to_origin = origin - a
        u = np.einsum("nc,nc->n", to_origin, p) * inverse
        q = np.cross(to_origin, edge1)
        v = q @ direction * inverse
        t = np.einsum("nc,nc->n", edge2, q) * inverse
        # A little wider than the triangle, so that no ray slips through between two neighbours.
        slack = 1e-9
        inside = (u >= -slack) & (v >= -slack) & (u + v <= 1 + slack) & (t > 0) & np.isfinite(t)
    return float(t[inside].min()) if inside.any() else None


def ray_points(
    points: np.ndarray, radius: float, origin: np.ndarray, direction: np.ndarray
) -> tuple[float, int] | None:
    """Distance and index of the first point near a ray: within its radius or :data:`POINT_TOLERANCE`.

    Args:
        points: (N, 3).
        radius: at which the points are drawn.
        origin, direction: (3,), the direction of length 1.
    """
    offset = points.astype(np.float64) - origin
    along = offset @ direction
    away = np.linalg.norm(offset - along[:, None] * direction, axis=1)
    near = (along > 0) & (away <= np.maximum(radius, POINT_TOLERANCE * along))
    if not near.any():
        return None
    candidates = np.flatnonzero(near)
    # Of the frontmost surface, however slanted, the one closest to the ray: it ends where there is a gap in depth.
    candidates = candidates[np.argsort(along[candidates])]
    depths = along[candidates]
    gaps = np.diff(depths) > np.maximum(2 * radius, 2 * POINT_TOLERANCE * depths[:-1])
    front = candidates[: int(np.argmax(gaps)) + 1] if gaps.any() else candidates
    best = front[np.argmin(away[front])]
    return float(along[best]), int(best)


def pick(
    layers: Iterable[Layer], origin: np.ndarray, direction: np.ndarray, *, point_size: float = 0.0
) -> Hit | None:
    """The nearest hit among ``layers``, or None.

    Args:
        layers: those that are visible; only meshes and points can be hit.
        origin: (3,) of the ray.
        direction: (3,), any length.
        point_size: diameter at which points are drawn.
    """
    origin = np.asarray(origin, np.float64)
    direction = np.asarray(direction, np.float64) / np.linalg.norm(direction)
    hits = []
    for layer in layers:
        if isinstance(layer, MeshLayer):
            for part in layer.parts:
                distance = ray_mesh(part.vertices, part.faces, origin, direction)
                if distance is not None:
                    hits.append(Hit(distance, origin + distance * direction))
        elif isinstance(layer, PointsLayer):
            found = ray_points(layer.cloud.positions, point_size / 2, origin, direction)
            if found is not None:
                hits.append(Hit(found[0], layer.cloud.positions[found[1]].astype(np.float64)))
    return min(hits, key=lambda hit: hit.distance, default=None)


def distance_text(distance: float, unit: str | None) -> str:
    """A measured length for people; without a unit it says that it is none in the real world."""
    return f"{distance:.4g} {unit}" if unit else f"{distance:.4g} (not metric)"
