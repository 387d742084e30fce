"""Which worlds there are, and how often each comes up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vision3d.synthetic import outdoors, rooms, textures
from vision3d.synthetic.draw import Draw
from vision3d.synthetic.raycast import Caster
from vision3d.synthetic.scene import Geometry, Scene

MAKERS = (rooms.room, outdoors.street, outdoors.park, outdoors.meadow, outdoors.studio)
WEIGHTS = (7.0, 1.5, 0.7, 0.8, 1.1)


@dataclass(frozen=True)
class World:
    """A built scene, ready for rays."""

    scene: Scene
    geometry: Geometry
    caster: Caster
    boxes: np.ndarray  # (objects, 2, 3) lowest and highest corner of each object
    wear: int  # texture of uneven brightness
    bank: np.ndarray  # texture bank, see :func:`vision3d.synthetic.textures.prepare`


def finish(scene: Scene) -> World:
    """Triangles, ray structure and textures of a scene."""
    geometry = scene.geometry()
    wear = textures.first("cloudy")
    bank = textures.prepare(np.array([m.texture for m in scene.materials] + [scene.sky.cloud_texture, wear]))
    return World(scene, geometry, Caster(geometry), _boxes(geometry, len(scene.things)), wear, bank)


def _boxes(geometry: Geometry, count: int) -> np.ndarray:
    owner = geometry.part_object[geometry.triangle_part]
    order = np.argsort(owner, kind="stable")
    corners = geometry.vertices[geometry.triangles[order]]
    present, start = np.unique(owner[order], return_index=True)
    boxes = np.zeros((count, 2, 3))
    boxes[present, 0] = np.minimum.reduceat(corners.min(1), start)
    boxes[present, 1] = np.maximum.reduceat(corners.max(1), start)
    return boxes


@lru_cache(maxsize=2)
def world(seed: int, handheld: bool = False) -> World:
    """The scene of a seed, a room where ``handheld``; neighbouring samples share one, so the last is kept."""
    draw = Draw(1, seed)
    scene = Scene("")
    (rooms.furnished if handheld else draw.pick(MAKERS, WEIGHTS))(scene, draw)
    return finish(scene)
