"""A scene: objects made of named parts, lights and sky, and the triangles they become.

World frame: right-handed, z up, metres. An object's own frame has z up, x to its front, y to its left, and
its origin on the ground below its middle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from vision3d.synthetic import ade20k, primitives
from vision3d.synthetic.materials import Material
from vision3d.synthetic.primitives import Primitive

Vector = tuple[float, float, float]


def rotation_z(angle: float) -> np.ndarray:
    """Right-handed turn about z (3, 3)."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def rotation_y(angle: float) -> np.ndarray:
    """Right-handed turn about y (3, 3); positive tips the x axis downwards."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]])


def rotation_x(angle: float) -> np.ndarray:
    """Right-handed turn about x (3, 3)."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def rotation_to(direction: Vector) -> np.ndarray:
    """A rotation (3, 3) that takes z to the unit direction, with the least turn."""
    x, y, z = direction
    if z < -0.99999:
        return np.diag([1.0, -1.0, -1.0])
    k = 1.0 / (1.0 + z)
    return np.array([[1 - x * x * k, -x * y * k, x], [-x * y * k, 1 - y * y * k, y], [-x, -y, z]])


@dataclass(frozen=True)
class Light:
    """A point light with a size, or the sun when ``distant``."""

    position: Vector  # of the light, or the unit direction towards the sun
    colour: Vector  # radiant intensity over π: a surface at 1 m facing a (1, 1, 1) light gets irradiance 1
    size: float = 0.1  # radius in metres, or the sun's angular radius in radians (exaggerated by haze)
    distant: bool = False


@dataclass(frozen=True)
class Sky:
    """Radiance of what no ray hits."""

    zenith: Vector = (0.25, 0.45, 0.85)
    horizon: Vector = (0.7, 0.8, 0.9)
    ground: Vector = (0.25, 0.23, 0.2)
    clouds: float = 0.0  # cover from 0 to 1
    cloud_texture: int = 0
    cloud_offset: tuple[float, float] = (0.0, 0.0)
    brightness: float = 1.0


@dataclass
class Thing:
    """An object of the scene, as labels and captions know it."""

    category: str
    phrase: str  # how a caption names it: "a red car"
    position: Vector
    rotation: np.ndarray  # (3, 3) object to world
    scale: float
    salience: float = 0.0  # how much a caption wants to name it and a camera to look at it
    part_names: dict[str, int] = field(default_factory=dict)  # name -> id in the scene
    keypoints: list[tuple[str, Vector]] = field(default_factory=list)  # own frame


@dataclass(frozen=True)
class Surface:
    """A level rectangle that things can stand on."""

    centre: Vector  # world
    yaw: float
    size: tuple[float, float]
    kind: str  # "desk", "kitchen", "shelf", "table", "floor", …


@dataclass(frozen=True)
class Geometry:
    """All triangles of a scene and the tables that describe them."""

    vertices: np.ndarray  # (V, 3) float32 world
    triangles: np.ndarray  # (T, 3) uint32
    normals: np.ndarray  # (V, 3) float32 unit, world, outwards
    uv: np.ndarray  # (T, 3, 2) float32 texture coordinates of the corners
    triangle_part: np.ndarray  # (T,) int32
    part_object: np.ndarray  # (P,) int32 index of the object
    part_name: np.ndarray  # (P,) int32 id of the named part, from 1
    part_semantic: np.ndarray  # (P,) uint8
    part_material: np.ndarray  # (P,) int32
    part_density: np.ndarray  # (P,) float32 texture repeats per metre


class Scene:
    """Collects objects, lights and cameras' room to move; built by :mod:`vision3d.synthetic.worlds`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.place = "in a room"  # how the caption ends
        self.things: list[Thing] = []
        self.materials: list[Material] = []
        self.surfaces: list[Surface] = []
        self.lights: list[Light] = []
        self.sky = Sky()
        self.bounds = (-2.0, -2.0, 2.0, 2.0)  # x0, y0, x1, y1 where a person could stand
        self.ceiling = math.inf
        self.centre_of_interest: Vector = (0.0, 0.0, 1.0)
        self.ambient: Vector = (0.3, 0.3, 0.3)  # radiance of a white surface in indirect light only
        self.haze = math.inf  # metres after which air hides 63 % of what is behind it
        self.names: list[tuple[int, str]] = []  # (object, part name) of part id - 1
        self._material_index: dict[int, int] = {}
        self._primitives: list[Primitive] = []
        self._object: list[int] = []
        self._name: list[int] = []
        self._semantic: list[int] = []
        self._material: list[int] = []
        self._centre: list[Vector] = []
        self._size: list[Vector] = []
        self._bevel: list[float] = []
        self._turned: list[int] = []
        self._rotation: list[np.ndarray] = []

    def add(
        self,
        category: str,
        position: Vector = (0.0, 0.0, 0.0),
        yaw: float = 0.0,
        *,
        scale: float = 1.0,
        semantic: str | None = None,
        phrase: str = "",
        salience: float = 0.0,
        rotation: np.ndarray | None = None,
    ) -> Builder:
        """Starts an object at a pose and returns what its parts are added to."""
        turned = rotation_z(yaw) if rotation is None else rotation
        thing = Thing(category, phrase or f"a {category}", position, turned, scale, salience)
        self.things.append(thing)
        return Builder(self, thing, len(self.things) - 1, yaw, ade20k.index(semantic))

    def material_index(self, material: Material) -> int:
        """The row of a material in :attr:`materials`."""
        key = id(material)
        if key not in self._material_index:
            self._material_index[key] = len(self.materials)
            self.materials.append(material)
        return self._material_index[key]

    def geometry(self) -> Geometry:
        """Places all parts in the world, those with the same primitive at once."""
        count = len(self._primitives)
        owner = np.array(self._object)
        thing_rotation = np.stack([t.rotation for t in self.things])[owner]
        thing_scale = np.array([t.scale for t in self.things])[owner]
        thing_position = np.array([t.position for t in self.things])[owner]
        rotation = thing_rotation.copy()
        if self._turned:
            turned = np.array(self._turned)
            rotation[turned] = thing_rotation[turned] @ np.stack(self._rotation)
        centre = (thing_rotation @ (np.array(self._centre) * thing_scale[:, None])[..., None])[..., 0]
        centre += thing_position
        size = np.maximum(np.array(self._size) * thing_scale[:, None], 1e-5)
        bevel = np.array(self._bevel) * thing_scale
        material = np.array(self._material)
        table = self.materials
        fit = np.array([m.mapping == "fit" for m in table])[material]
        wrap = np.array([m.mapping == "wrap" for m in table])[material]
        swap = np.array([m.swap for m in table])[material]
        repeat = np.array([m.scale for m in table])[material]
        extent = size + 2 * bevel[:, None]
        inverse = np.where(fit[:, None], 1 / extent, 1 / repeat[:, None])
        # Tiled textures start somewhere else on every part, so that equal parts do not look the same.
        golden = np.modf(np.arange(count)[:, None] * np.array([0.754877, 0.569840]))[0]
        offset = np.where(fit[:, None], 0.5, golden)
        density = np.where(fit, 1 / extent.mean(1), np.where(wrap, repeat / extent.mean(1), 1 / repeat))

        groups: dict[int, list[int]] = {}
        for i, primitive in enumerate(self._primitives):
            groups.setdefault(id(primitive), []).append(i)
        vertices, normals, triangles, uvs, parts = [], [], [], [], []
        start = 0
        for members in groups.values():
            p = np.array(members)
            shape = self._primitives[members[0]]
            local = shape.anchor[None] * size[p, None]
            if shape.bulge is not None:
                local = local + bevel[p, None, None] * shape.bulge
            turn = np.swapaxes(rotation[p], 1, 2)
            vertices.append((local @ turn + centre[p, None]).reshape(-1, 3).astype(np.float32))
            n = np.broadcast_to(shape.normals, local.shape)
            if shape.scale_normals:
                n = n / size[p, None]
                n = n / np.maximum(np.linalg.norm(n, axis=-1, keepdims=True), 1e-12)
            normals.append((n @ turn).reshape(-1, 3).astype(np.float32))
            faces = shape.faces
            step = np.arange(len(p))[:, None, None] * len(shape.anchor)
            triangles.append((faces[None] + step + start).reshape(-1, 3))
            start += len(p) * len(shape.anchor)
            axes = shape.box_axes
            inv = inverse[p]
            u = local[:, faces, axes[:, :1]] * inv[:, axes[:, 0], None] + offset[p, None, None, 0]
            upright = np.where(axes[:, 1] == 2, -1.0, 1.0)  # image rows run down, z runs up
            v = (
                local[:, faces, axes[:, 1:]] * (inv[:, axes[:, 1]] * upright)[..., None]
                + offset[p, None, None, 1]
            )
            uv = np.stack([u, v], -1)
            around = wrap[p]
            if around.any():
                uv[around] = shape.wrap_uv[None] * repeat[p][around][:, None, None, None] * [1, -1]
            turned_uv = swap[p]
            if turned_uv.any():
                uv[turned_uv] = uv[turned_uv][..., ::-1]
            uvs.append(uv.reshape(-1, 3, 2).astype(np.float32))
            parts.append(np.repeat(p, len(faces)))
        return Geometry(
            np.concatenate(vertices),
            np.concatenate(triangles).astype(np.uint32),
            np.concatenate(normals),
            np.concatenate(uvs),
            np.concatenate(parts).astype(np.int32),
            owner.astype(np.int32),
            np.array(self._name, np.int32),
            np.array(self._semantic, np.uint8),
            material.astype(np.int32),
            density.astype(np.float32),
        )


class Builder:
    """Adds named parts, keypoints and support surfaces to one object, in the object's own frame."""

    def __init__(self, scene: Scene, thing: Thing, index: int, yaw: float, semantic: int) -> None:
        self.scene = scene
        self.thing = thing
        self.index = index
        self.yaw = yaw
        self.semantic = semantic

    def part(
        self,
        name: str,
        primitive: Primitive,
        centre: Vector,
        size: Vector,
        material: Material,
        rotation: np.ndarray | None = None,
        bevel: float = 0.0,
        semantic: str | None = None,
    ) -> None:
        """Adds one primitive; parts of the same name in one object share an id."""
        scene = self.scene
        names = self.thing.part_names
        if name not in names:
            scene.names.append((self.index, name))
            names[name] = len(scene.names)
        if rotation is not None:
            scene._turned.append(len(scene._primitives))
            scene._rotation.append(rotation)
        scene._primitives.append(primitive)
        scene._object.append(self.index)
        scene._name.append(names[name])
        scene._semantic.append(self.semantic if semantic is None else ade20k.index(semantic))
        scene._material.append(scene.material_index(material))
        scene._centre.append(centre)
        scene._size.append(size)
        scene._bevel.append(bevel)

    def box(
        self,
        name: str,
        centre: Vector,
        size: Vector,
        material: Material,
        *,
        bevel: float = 0.0,
        rotation: np.ndarray | None = None,
        semantic: str | None = None,
    ) -> None:
        """A box of outer size (x, y, z), its edges rounded by ``bevel`` metres."""
        if bevel <= 0:
            self.part(name, primitives.box(), centre, size, material, rotation, 0.0, semantic)
            return
        bevel = min(bevel, 0.49 * min(size))
        inner = (size[0] - 2 * bevel, size[1] - 2 * bevel, size[2] - 2 * bevel)
        self.part(name, primitives.bevelled_box(), centre, inner, material, rotation, bevel, semantic)

    def ball(
        self,
        name: str,
        centre: Vector,
        size: Vector,
        material: Material,
        *,
        detail: int = 2,
        rotation: np.ndarray | None = None,
        semantic: str | None = None,
    ) -> None:
        """An ellipsoid with the given diameters."""
        self.part(name, primitives.sphere(detail), centre, size, material, rotation, 0.0, semantic)

    def _between(self, start: Vector, end: Vector) -> tuple[Vector, float, np.ndarray]:
        dx, dy, dz = end[0] - start[0], end[1] - start[1], end[2] - start[2]
        length = math.sqrt(dx * dx + dy * dy + dz * dz) or 1e-6
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2, (start[2] + end[2]) / 2)
        return middle, length, rotation_to((dx / length, dy / length, dz / length))

    def limb(
        self,
        name: str,
        start: Vector,
        end: Vector,
        radius: float,
        material: Material,
        semantic: str | None = None,
    ) -> None:
        """A capsule whose ball centres are start and end."""
        middle, length, turn = self._between(start, end)
        self.part(name, primitives.capsule(), middle, (1e-4, 1e-4, length), material, turn, radius, semantic)

    def rod(
        self,
        name: str,
        start: Vector,
        end: Vector,
        radius: float,
        material: Material,
        *,
        ratio: float = 1.0,
        segments: int = 12,
        semantic: str | None = None,
    ) -> None:
        """A cylinder from start to end; ``ratio`` is the end's radius relative to the start's."""
        middle, length, turn = self._between(start, end)
        shape = primitives.frustum(round(ratio * 8) / 8, segments)
        self.part(name, shape, middle, (2 * radius, 2 * radius, length), material, turn, 0.0, semantic)

    def cylinder(
        self,
        name: str,
        base: Vector,
        radius: float,
        height: float,
        material: Material,
        *,
        ratio: float = 1.0,
        segments: int = 16,
        semantic: str | None = None,
    ) -> None:
        """An upright cylinder or cone standing on ``base``."""
        shape = primitives.frustum(round(ratio * 8) / 8, segments)
        centre = (base[0], base[1], base[2] + height / 2)
        self.part(name, shape, centre, (2 * radius, 2 * radius, height), material, None, 0.0, semantic)

    def keypoint(self, name: str, point: Vector) -> None:
        """A point that all instances of the category have, on or just inside the surface."""
        self.thing.keypoints.append((name, point))

    def to_world(self, point: Vector) -> Vector:
        """Own frame to world."""
        x, y, z = self.thing.rotation @ (np.array(point) * self.thing.scale) + self.thing.position
        return float(x), float(y), float(z)

    def support(self, centre: Vector, size: tuple[float, float], kind: str) -> None:
        """Declares a level rectangle that clutter may be put on."""
        s = self.thing.scale
        self.scene.surfaces.append(Surface(self.to_world(centre), self.yaw, (size[0] * s, size[1] * s), kind))
