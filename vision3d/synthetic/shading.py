"""Light: what colour each ray brings back.

Lambert and Blinn-Phong surfaces under point lights and sun with soft shadows, one bounce of indirect light
(a few cosine-distributed rays per pixel, which also give contact shadows), mirrored surroundings on glossy
surfaces, sky with clouds, and haze. All arrays are float32 and linear (not sRGB).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from vision3d.synthetic import textures
from vision3d.synthetic.raycast import NOTHING, Hits
from vision3d.synthetic.scene import Geometry, Light, Sky
from vision3d.synthetic.worlds import World

GAMMA = 2.2


@dataclass(frozen=True)
class Surfels:
    """What the rays that hit something hit."""

    index: np.ndarray  # (P,) int64: which rays
    point: np.ndarray  # (P, 3) float32 world
    normal: np.ndarray  # (P, 3) float32 unit, towards the viewer
    face: np.ndarray  # (P, 3) float32 the triangle's own normal, towards the viewer
    view: np.ndarray  # (P, 3) float32 unit, along the ray
    distance: np.ndarray  # (P,) float32 Euclidean
    triangle: np.ndarray  # (P,) uint32
    weights: np.ndarray  # (P, 3) float32 barycentric
    part: np.ndarray  # (P,) int32

    def take(self, rows: np.ndarray) -> Surfels:
        """Some of them."""
        return Surfels(*(getattr(self, f.name)[rows] for f in fields(self)))

    def join(self, other: Surfels) -> Surfels:
        """These and then the others."""
        return Surfels(
            *(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self))
        )


@dataclass(frozen=True)
class Table:
    """Per material: linear colours and how it answers light."""

    base: np.ndarray  # (M, 3)
    second: np.ndarray  # (M, 3) difference from base
    third: np.ndarray  # (M, 3)
    texture: np.ndarray  # (M,) int64
    specular: np.ndarray
    gloss: np.ndarray
    mirror: np.ndarray
    emission: np.ndarray
    wear: np.ndarray  # (M,) how uneven the brightness is over metres
    mean: np.ndarray  # (M, 3) mean albedo


def material_table(world: World) -> Table:
    """The materials of a scene as arrays."""
    materials = world.scene.materials
    colours = np.array([m.colours for m in materials], np.float32) ** GAMMA
    texture = np.array([m.texture for m in materials])
    last = texture * textures.TEXELS + textures.OFFSETS[textures.LEVELS - 1]
    side = textures.SIZE >> (textures.LEVELS - 1)
    masks = np.stack([world.bank[last + k, :3] for k in range(side * side)]).mean(0).astype(np.float32) / 255
    base, second, third = colours[:, 0], colours[:, 1] - colours[:, 0], colours[:, 2]
    mean = base + masks[:, :1] * second
    mean = (mean + masks[:, 1:2] * (third - mean)) * (2 * masks[:, 2:])

    wear = np.array(
        [(0.0 if m.mapping == "fit" else 0.32) * (k * 0.618 % 1) ** 1.5 for k, m in enumerate(materials)]
    )

    def column(name: str) -> np.ndarray:
        return np.array([getattr(m, name) for m in materials], np.float32)

    return Table(
        base,
        second,
        third,
        texture,
        column("specular"),
        column("gloss"),
        column("mirror"),
        column("emission"),
        wear.astype(np.float32),
        mean,
    )


def surfels(geometry: Geometry, hits: Hits, origin: np.ndarray, directions: np.ndarray) -> Surfels:
    """Gathers points, normals and parts of the rays that hit."""
    index = np.flatnonzero(hits.triangle != NOTHING)
    triangle = hits.triangle[index]
    d = directions[index]
    length = np.sqrt(np.einsum("ij,ij->i", d, d))
    view = d / length[:, None]
    distance = hits.distance[index] * length
    b = hits.barycentric[index]
    weights = np.stack([1 - b[:, 0] - b[:, 1], b[:, 0], b[:, 1]], 1)
    corners = geometry.triangles[triangle]
    normal = geometry.normals[corners[:, 0]] * weights[:, :1]
    normal += geometry.normals[corners[:, 1]] * weights[:, 1:2]
    normal += geometry.normals[corners[:, 2]] * weights[:, 2:]
    face = hits.face_normal[index]
    back = np.einsum("ij,ij->i", face, view) > 0
    face = np.where(back[:, None], -face, face)
    normal[back] *= -1
    normal /= np.maximum(np.sqrt(np.einsum("ij,ij->i", normal, normal)), 1e-6)[:, None]
    # A smooth normal may point away at a silhouette where the triangle is still seen: bend it back.
    facing = np.einsum("ij,ij->i", normal, view)
    turn = facing > -0.02
    if turn.any():
        n = normal[turn] - (facing[turn] + 0.02)[:, None] * view[turn]
        normal[turn] = n / np.maximum(np.linalg.norm(n, axis=1), 1e-6)[:, None]
    point = origin.astype(np.float32) + view * distance[:, None]
    return Surfels(
        index, point, normal, face, view, distance, triangle, weights, geometry.triangle_part[triangle]
    )


def albedo(world: World, table: Table, s: Surfels, pixel: float) -> np.ndarray:
    """Colour of the surface (P, 3); ``pixel`` is the angle between rays, for the texture's detail."""
    geometry = world.geometry
    material = geometry.part_material[s.part]
    uv = np.einsum("pc,pck->pk", s.weights, geometry.uv[s.triangle])
    tilt = np.maximum(-np.einsum("ij,ij->i", s.face, s.view), 0.12)
    footprint = s.distance * pixel / np.sqrt(tilt) * geometry.part_density[s.part] * textures.SIZE
    level = np.clip(np.log2(np.maximum(footprint, 1e-3)) + 0.3, 0, textures.LEVELS - 1).astype(np.int32)
    masks = lookup(world.bank, table.texture[material], level, uv)
    colour = table.base[material]
    colour = colour + masks[:, :1] * table.second[material]
    colour += masks[:, 1:2] * (table.third[material] - colour)
    # A second, slow look-up of the brightness: stains and wear, and far ground that does not repeat.
    slow = lookup(world.bank, np.full(len(uv), world.wear), np.maximum(level - 3, 0), uv * np.float32(0.1618))
    amount = table.wear[material][:, None]
    colour *= (masks[:, 2:3] * 2) * (1 + amount * (slow[:, :1] - 0.5))
    return np.minimum(colour, 0.95)


def lookup(bank: np.ndarray, texture: np.ndarray, level: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Bilinear look-up of wrapped textures: (P, 3) float32 in [0, 1]."""
    side = np.right_shift(textures.SIZE, level).astype(np.int32)
    p = (uv - np.floor(uv)) * side[:, None] - 0.5
    low = np.floor(p)
    f = (p - low).astype(np.float32)
    x0, y0 = low[:, 0].astype(np.int32) & (side - 1), low[:, 1].astype(np.int32) & (side - 1)
    x1, y1 = (x0 + 1) & (side - 1), (y0 + 1) & (side - 1)
    start = texture * textures.TEXELS + textures.OFFSETS[level]
    row0, row1 = start + y0 * side, start + y1 * side
    fx, fy = f[:, :1], f[:, 1:]
    top = bank[row0 + x0].astype(np.float32) * (1 - fx) + bank[row0 + x1].astype(np.float32) * fx
    bottom = bank[row1 + x0].astype(np.float32) * (1 - fx) + bank[row1 + x1].astype(np.float32) * fx
    return ((top * (1 - fy) + bottom * fy) * np.float32(1 / 255))[:, :3]


def sky_radiance(world: World, sky: Sky, sun: Light | None, directions: np.ndarray) -> np.ndarray:
    """Radiance of the sky along directions (N, 3) of any length."""
    d = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-9)
    rise = np.clip(d[:, 2:], 0, 1)
    horizon, zenith, ground = (
        np.array(c, np.float32) ** GAMMA for c in (sky.horizon, sky.zenith, sky.ground)
    )
    colour = horizon + (zenith - horizon) * rise**0.6
    if sky.clouds > 0.02:
        plane = d[:, :2] / (rise + 0.15) * 0.22 + np.array(sky.cloud_offset, np.float32)
        n = len(d)
        masks = lookup(
            world.bank, np.full(n, sky.cloud_texture), np.zeros(n, np.int32), plane.astype(np.float32)
        )
        cover = np.clip((masks[:, :1] - (1 - sky.clouds)) * 2.5, 0, 1) * np.clip(rise * 6, 0, 1) * 0.9
        colour += cover * (np.float32(0.9) * (0.75 + 0.25 * masks[:, 2:3] * 2) - colour)
    if sun is not None:
        towards = np.clip(d @ np.array(sun.position, np.float32), 0, 1)[:, None]
        colour += np.array(sun.colour, np.float32) * (0.15 * towards**12 + 0.6 * towards**200)
    colour = np.where(d[:, 2:] < -0.02, ground, colour)
    return (colour * sky.brightness).astype(np.float32)


def _disc(count: int) -> np.ndarray:
    """Evenly spread points of the unit disc (count, 2)."""
    k = np.arange(count) + 0.5
    r, a = np.sqrt(k / count), k * 2.399963
    return np.stack([r * np.cos(a), r * np.sin(a)], 1).astype(np.float32)


def _frames(normal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two unit vectors perpendicular to each normal (Duff et al. 2017, "Building an Orthonormal Basis")."""
    sign = np.where(normal[:, 2] >= 0, 1.0, -1.0).astype(np.float32)
    a = -1 / (sign + normal[:, 2])
    b = normal[:, 0] * normal[:, 1] * a
    t = np.stack([1 + sign * normal[:, 0] ** 2 * a, sign * b, -sign * normal[:, 0]], 1)
    u = np.stack([b, sign + normal[:, 1] ** 2 * a, -normal[:, 1]], 1)
    return t, u


def direct(
    world: World,
    lights: list[Light],
    s: Surfels,
    specular: np.ndarray,
    gloss: np.ndarray,
    quads: np.ndarray,
    sub: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Irradiance over π and mirrored highlights (P, 3) from the lights, with soft shadows.

    Args:
        world: what throws shadows.
        lights: point lights and sun.
        s: the surface points: Q that stand for a whole pixel, then those that stand for a quarter of one.
        specular: (P,) strength of highlights.
        gloss: (P,) exponent.
        quads: (Q, 4, 3) surface points under the pixel's quarters; each sees another point of the light.
        sub: (P - Q,) int: which quarter the others are.
    """
    count, whole = len(s.index), len(quads)
    diffuse, shine = np.zeros((count, 3), np.float32), np.zeros((count, 3), np.float32)
    disc = _disc(4)
    # Far from the camera float32 points sit further off their triangle.
    lift = s.face * (0.002 + 2e-5 * s.distance)[:, None]
    shiny = specular > 0.045
    for light in lights:
        position = np.array(light.position, np.float32)
        if light.distant:
            side = np.cross(position, (0, 0, 1.0) if abs(position[2]) < 0.9 else (1.0, 0, 0))
            side /= np.linalg.norm(side)
            spots = position + light.size * (disc[:, :1] * side + disc[:, 1:] * np.cross(position, side))
            cosine, strength = s.normal @ position, np.float32(1.0)
            above = s.face @ position
            towards = np.broadcast_to(position, (count, 3))
        else:
            spots = position + light.size * np.stack([disc[:, 0], disc[:, 1], disc[:, 0] * disc[:, 1]], 1)
            towards = position - s.point
            square = np.einsum("ij,ij->i", towards, towards)
            towards /= np.sqrt(square)[:, None]
            strength = 1 / (square + 0.05)
            cosine = np.einsum("ij,ij->i", s.normal, towards)
            above = np.einsum("ij,ij->i", s.face, towards)
        spots = spots.astype(np.float32)
        lit = np.flatnonzero((cosine > 0) & (above > 0))
        split = int(np.searchsorted(lit, whole))
        full, part = lit[:split], lit[split:]
        start = np.concatenate([(quads[full] + lift[full, None]).reshape(-1, 3), s.point[part] + lift[part]])
        aims = np.concatenate([np.tile(spots, (len(full), 1)), spots[sub[part - whole]]])
        if not len(start):
            continue
        ray = aims if light.distant else aims - start
        free = ~world.caster.blocked(start, ray, np.inf if light.distant else 0.97)
        seen = np.zeros(count, np.float32)
        seen[full] = free[: 4 * len(full)].reshape(-1, 4).mean(1)
        seen[part] = free[4 * len(full) :]
        received = seen * np.maximum(cosine, 0) * strength
        colour = np.array(light.colour, np.float32)
        diffuse += received[:, None] * colour
        bright = np.flatnonzero(shiny & (received > 0))
        if len(bright):
            half = towards[bright] - s.view[bright]
            half /= np.maximum(np.sqrt(np.einsum("ij,ij->i", half, half)), 1e-6)[:, None]
            g = gloss[bright]
            peak = np.einsum("ij,ij->i", s.normal[bright], half).clip(0) ** g * (
                specular[bright] * (0.3 + 0.02 * g)
            )
            shine[bright] += (peak * received[bright])[:, None] * colour
    return diffuse, shine


def indirect(
    world: World, table: Table, sun: Light | None, s: Surfels, pattern: np.ndarray, rays: int = 2
) -> np.ndarray:
    """Light from surfaces and sky around each point, irradiance over π (P, 3)."""
    geometry, scene = world.geometry, world.scene
    count = len(s.index)
    disc = _disc(16 * rays)
    index = (pattern[:, None] + 16 * np.arange(rays)[None]) % (16 * rays)
    xy = disc[index]
    z = np.sqrt(np.maximum(1 - (xy**2).sum(-1), 0.02))
    t, u = _frames(s.normal)
    directions = xy[..., :1] * t[:, None] + xy[..., 1:] * u[:, None] + z[..., None] * s.normal[:, None]
    start = s.point + s.face * (0.002 + 2e-5 * s.distance)[:, None]
    flat = directions.reshape(-1, 3).astype(np.float32)
    hits = world.caster.first(np.repeat(start, rays, axis=0), flat)
    hit = hits.triangle != NOTHING
    light = np.empty((len(flat), 3), np.float32)
    ambient = np.array(scene.ambient, np.float32)
    material = geometry.part_material[geometry.triangle_part[hits.triangle[hit]]]
    near = hits.distance[hit]
    # The nearer the other surface, the less light it gets itself: contact shadows.
    reach = near / (near + (0.25 if np.isfinite(scene.ceiling) else 0.8))
    bounce = (0.3 + 0.9 * table.mean[material]) * reach[:, None] + 2 * table.emission[material][
        :, None
    ] * table.mean[material]
    light[hit] = bounce * ambient
    light[~hit] = sky_radiance(world, scene.sky, sun, flat[~hit]) if (~hit).any() else 0
    return light.reshape(count, rays, 3).mean(1)


def mirrored(world: World, table: Table, sun: Light | None, s: Surfels, level: np.ndarray) -> np.ndarray:
    """Radiance from the mirrored direction (P, 3); ``level`` (3,) is the usual light on a surface."""
    geometry = world.geometry
    along = s.view - 2 * np.einsum("ij,ij->i", s.view, s.normal)[:, None] * s.normal
    start = s.point + s.face * (0.003 + 2e-5 * s.distance)[:, None]
    hits = world.caster.first(start, along)
    hit = hits.triangle != NOTHING
    radiance = np.empty((len(along), 3), np.float32)
    material = geometry.part_material[geometry.triangle_part[hits.triangle[hit]]]
    radiance[hit] = table.mean[material] * level * (1 + 1.5 * table.emission[material][:, None])
    if not hit.all():
        radiance[~hit] = sky_radiance(world, world.scene.sky, sun, along[~hit])
    return radiance


def smooth_within_parts(light: np.ndarray, part: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Averages light over 4 × 4 neighbours of the same part and orientation.

    Rays come in a 4 × 4 pattern, so that where nothing but this window's pixels is averaged no noise is left.

    Args:
        light: (H, W, 3).
        part: (H, W) int, -1 for none.
        normal: (H, W, 3).
    """
    height, width = part.shape
    for dy, dx in ((0, 1), (1, 0), (0, -2), (-2, 0)):
        a = slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx))
        b = slice(max(0, -dy), height + min(0, -dy)), slice(max(0, -dx), width + min(0, -dx))
        same = (part[a] == part[b]) & (np.einsum("ijk,ijk->ij", normal[a], normal[b]) > 0.8)
        step = (0.5 * same)[..., None].astype(np.float32) * (light[b] - light[a])
        light[a] += step
    return light


def edges(part: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels across which the surface changes, with their neighbours on both sides."""
    out = np.zeros(part.shape, bool)
    for axis in (0, 1):
        a = (slice(1, None), slice(None)) if axis == 0 else (slice(None), slice(1, None))
        b = (slice(None, -1), slice(None)) if axis == 0 else (slice(None), slice(None, -1))
        change = (part[a] != part[b]) | (np.einsum("ijk,ijk->ij", normal[a], normal[b]) < 0.9)
        out[a] |= change
        out[b] |= change
    return out
