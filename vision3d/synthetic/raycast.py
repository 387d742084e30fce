"""Rays against the triangles of a scene (Open3D's binding of Embree, one thread)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vision3d.errors import ResourceError
from vision3d.synthetic.scene import Geometry

NOTHING = np.uint32(0xFFFFFFFF)


@dataclass(frozen=True)
class Hits:
    """First intersections of N rays."""

    distance: np.ndarray  # (N,) float32 in lengths of the ray's direction, inf for none
    triangle: np.ndarray  # (N,) uint32, NOTHING for none
    barycentric: np.ndarray  # (N, 2) float32 weights of the second and third corner
    face_normal: np.ndarray  # (N, 3) float32 unit, as the triangle is wound


class Caster:
    """Finds what rays hit in a geometry."""

    def __init__(self, geometry: Geometry) -> None:
        try:
            import open3d as o3d
        except ImportError as error:
            raise ResourceError(
                "the procedural world needs Open3D", "install it with: pip install 'vision3d[geometry]'"
            ) from error
        self._tensor = o3d.core.Tensor.from_numpy
        self._scene = o3d.t.geometry.RaycastingScene(nthreads=1)
        self._scene.add_triangles(self._tensor(geometry.vertices), self._tensor(geometry.triangles))

    def _rays(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        rays = np.empty((len(directions), 6), np.float32)
        rays[:, :3] = origins
        rays[:, 3:] = directions
        return rays

    def first(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """First hits; origins (3,) or (N, 3), directions (N, 3) of any length."""
        answer = self._scene.cast_rays(self._tensor(self._rays(origins, directions)), nthreads=1)
        return Hits(
            answer["t_hit"].numpy(),
            answer["primitive_ids"].numpy(),
            answer["primitive_uvs"].numpy(),
            answer["primitive_normals"].numpy(),
        )

    def blocked(self, origins: np.ndarray, directions: np.ndarray, far: float) -> np.ndarray:
        """Whether anything lies before ``far`` lengths of each direction: (N,) bool."""
        rays = self._tensor(self._rays(origins, directions))
        return self._scene.test_occlusions(rays, tnear=0.0, tfar=far, nthreads=1).numpy()
