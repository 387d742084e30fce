"""Unit meshes that every object of the procedural world is put together from.

A primitive is placed as ``vertex = R @ (anchor * size + bevel * bulge) + t``: boxes with rounded edges and
capsules are Minkowski sums of a scaled part and a ball, so their roundness does not stretch with their size.
Vertices at hard edges are doubled, so that interpolated vertex normals are the normals of the surface that
the mesh stands for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Profile = tuple[tuple[float, float], ...]


@dataclass(frozen=True, eq=False)
class Primitive:
    """A mesh in its own frame, z up."""

    anchor: np.ndarray  # (V, 3) float32, times the size
    bulge: np.ndarray | None  # (V, 3) float32 unit vectors, times the bevel
    normals: np.ndarray  # (V, 3) float32, outwards
    faces: np.ndarray  # (F, 3) int32, counter-clockwise seen from outside
    box_axes: np.ndarray  # (F, 2) int32: the two coordinates that texture a face by projection
    wrap_uv: np.ndarray  # (F, 3, 2) float32: texture coordinates around the object, in turns and heights
    scale_normals: bool  # normals go with the inverse size (ellipsoids) or stay (Minkowski sums)


def _finish(
    anchor: np.ndarray,
    normals: np.ndarray,
    faces: np.ndarray,
    bulge: np.ndarray | None = None,
    scale_normals: bool = True,
) -> Primitive:
    anchor = np.asarray(anchor, np.float32)
    faces = np.asarray(faces, np.int32)
    shape = anchor if bulge is None else anchor + 0.2 * np.asarray(bulge, np.float32)
    corners = shape[faces]
    face_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    outwards = np.asarray(normals, np.float32)[faces].sum(1)
    flipped = (face_normals * outwards).sum(1) < 0
    faces = np.where(flipped[:, None], faces[:, ::-1], faces).astype(np.int32)
    axis = np.abs(outwards).argmax(1)
    box_axes = np.array([[1, 2], [0, 2], [0, 1]], np.int32)[axis]
    corners = shape[faces]
    turn = np.arctan2(corners[..., 1], corners[..., 0]) / (2 * math.pi)
    # A face across the ±180° seam would run through the whole texture backwards.
    turn = np.where((np.ptp(turn, axis=1) > 0.5)[:, None] & (turn < 0), turn + 1, turn)
    wrap = np.stack([turn + 0.5, corners[..., 2] + 0.5], -1).astype(np.float32)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    unit = (np.asarray(normals) / np.maximum(length, 1e-9)).astype(np.float32)
    return Primitive(
        anchor,
        None if bulge is None else np.asarray(bulge, np.float32),
        unit,
        faces,
        box_axes,
        wrap,
        scale_normals,
    )


@lru_cache(maxsize=1)
def box() -> Primitive:
    """The cube [-½, ½]³ with hard edges: 12 triangles."""
    vertices: list = []
    normals: list = []
    faces: list = []
    for axis in range(3):
        for sign in (-1.0, 1.0):
            n = np.zeros(3)
            n[axis] = sign
            a, b = np.eye(3)[(axis + 1) % 3], np.eye(3)[(axis + 2) % 3]
            base = len(vertices)
            vertices += [(n + s * a + t * b) / 2 for s, t in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            normals += [n] * 4
            faces += [(base, base + 1, base + 2), (base, base + 2, base + 3)]
    return _finish(np.array(vertices), np.array(normals), np.array(faces))


@lru_cache(maxsize=1)
def bevelled_box() -> Primitive:
    """A cube whose edges and corners are rounded by the bevel: 44 triangles, smooth over the edges."""
    index: dict[tuple[int, tuple[int, int, int]], int] = {}
    anchor: list[np.ndarray] = []
    bulge: list[np.ndarray] = []
    signs = [(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]
    for axis in range(3):
        for corner in signs:
            index[axis, corner] = len(anchor)
            anchor.append(np.array(corner) / 2)
            normal = np.zeros(3)
            normal[axis] = corner[axis]
            bulge.append(normal)
    faces = []
    for axis in range(3):
        a, b = (axis + 1) % 3, (axis + 2) % 3
        for sign in (-1, 1):
            quad = []
            for s, t in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
                at = [0, 0, 0]
                at[axis], at[a], at[b] = sign, s, t
                quad.append(index[axis, (at[0], at[1], at[2])])
            faces += [(quad[0], quad[1], quad[2]), (quad[0], quad[2], quad[3])]
        for s in (-1, 1):  # the edge along `axis` between the faces of axes a and b
            for t in (-1, 1):
                ends = []
                for e in (-1, 1):
                    at = [0, 0, 0]
                    at[axis], at[a], at[b] = e, s, t
                    key = (at[0], at[1], at[2])
                    ends.append((index[a, key], index[b, key]))
                (p, q), (r, u) = ends
                faces += [(p, q, u), (p, u, r)]
    faces += [(index[0, c], index[1, c], index[2, c]) for c in signs]
    unit = np.array(bulge)
    return _finish(np.array(anchor), unit, np.array(faces), unit, scale_normals=False)


@lru_cache(maxsize=4)
def sphere(subdivisions: int = 2) -> Primitive:
    """The ball of diameter 1 as a subdivided icosahedron (80, 320 or 1280 triangles)."""
    golden = (1 + 5**0.5) / 2
    points: list[tuple[float, float, float]] = [
        (-1, golden, 0),
        (1, golden, 0),
        (-1, -golden, 0),
        (1, -golden, 0),
    ]
    points = points + [(z, x, y) for x, y, z in points] + [(y, z, x) for x, y, z in points]
    vertices = [np.array(p) / np.linalg.norm(p) for p in points]
    distance = np.linalg.norm(np.array(vertices)[:, None] - np.array(vertices)[None], axis=-1)
    near = (distance > 0.1) & (distance < 1.1)
    faces = [
        (i, j, k)
        for i in range(12)
        for j in range(i + 1, 12)
        for k in range(j + 1, 12)
        if near[i, j] and near[j, k] and near[i, k]
    ]
    for _ in range(subdivisions):
        middle: dict[tuple[int, int], int] = {}

        def halve(i: int, j: int, middle: dict[tuple[int, int], int] = middle) -> int:
            key = (min(i, j), max(i, j))
            if key not in middle:
                point = vertices[i] + vertices[j]
                middle[key] = len(vertices)
                vertices.append(point / np.linalg.norm(point))
            return middle[key]

        split = []
        for i, j, k in faces:
            a, b, c = halve(i, j), halve(j, k), halve(k, i)
            split += [(i, a, c), (j, b, a), (k, c, b), (a, b, c)]
        faces = split
    unit = np.array(vertices)
    return _finish(unit / 2, unit, np.array(faces))


@lru_cache(maxsize=64)
def lathe(profile: Profile, segments: int = 16, smooth: bool = True) -> Primitive:
    """A profile turned about z.

    Args:
        profile: (radius, z) from bottom to top; a repeated point makes a hard edge there.
        segments: sides around the axis.
        smooth: normals interpolate along the profile between its points, else each piece is a cone.
    """
    points = np.array(profile, float)
    pieces = np.diff(points, axis=0)
    length = np.linalg.norm(pieces, axis=1)
    slope = np.stack([pieces[:, 1], -pieces[:, 0]], 1) / np.maximum(length, 1e-12)[:, None]
    rings: list[tuple[np.ndarray, np.ndarray]] = []
    strips: list[tuple[int, int]] = []
    for i in range(len(pieces)):
        if length[i] < 1e-9:
            continue
        ends = []
        for at, neighbour in ((i, i - 1), (i + 1, i + 1)):
            normal = slope[i]
            if smooth and 0 <= neighbour < len(pieces) and length[neighbour] > 1e-9:
                blended = slope[i] * 1.0 + slope[neighbour]
                # Beyond about 75° between the pieces a person sees an edge, not a curve.
                if slope[i] @ slope[neighbour] > 0.26:
                    normal = blended / np.linalg.norm(blended)
            ends.append(len(rings))
            rings.append((points[at], normal))
        strips.append((ends[0], ends[1]))
    angle = np.arange(segments) * 2 * math.pi / segments
    around = np.stack([np.cos(angle), np.sin(angle), np.zeros(segments)], 1)
    vertices = np.concatenate([p[0] * around + [0, 0, p[1]] for p, _ in rings])
    normals = np.concatenate([n[0] * around + [0, 0, n[1]] for _, n in rings])
    this = np.arange(segments)
    after = (this + 1) % segments
    faces = []
    for low, high in strips:
        a, b = low * segments + this, low * segments + after
        c, d = high * segments + after, high * segments + this
        if rings[low][0][0] > 1e-9:
            faces.append(np.stack([a, b, c], 1))
        if rings[high][0][0] > 1e-9:
            faces.append(np.stack([a, c, d], 1))
        elif rings[low][0][0] > 1e-9:
            faces[-1] = np.stack([a, b, d], 1)
    return _finish(vertices, normals, np.concatenate(faces))


@lru_cache(maxsize=64)
def frustum(ratio: float = 1.0, segments: int = 16, capped: bool = True) -> Primitive:
    """A cylinder of height 1 and diameter 1 at the bottom, ``ratio`` at the top (0 is a cone)."""
    profile: list[tuple[float, float]] = [(0.5, -0.5), (0.5 * ratio, 0.5)]
    if capped:
        profile = [(0.0, -0.5), (0.5, -0.5), (0.5, -0.5), (0.5 * ratio, 0.5), (0.5 * ratio, 0.5), (0.0, 0.5)]
    return lathe(tuple(profile), segments, smooth=False)


@lru_cache(maxsize=8)
def capsule(segments: int = 10, rings: int = 3) -> Primitive:
    """A segment of length 1 along z (times size z) with a ball of the bevel's radius around it."""
    latitude = np.concatenate([np.linspace(-0.5, 0, rings + 1), np.linspace(0, 0.5, rings + 1)]) * math.pi
    end = np.array([-0.5] * (rings + 1) + [0.5] * (rings + 1))
    angle = np.arange(segments) * 2 * math.pi / segments
    bulge = np.concatenate(
        [
            np.stack(
                [math.cos(t) * np.cos(angle), math.cos(t) * np.sin(angle), np.full(segments, math.sin(t))], 1
            )
            for t in latitude
        ]
    )
    anchor = np.concatenate([np.tile([0, 0, e], (segments, 1)) for e in end])
    i = np.arange(segments)
    j = (i + 1) % segments
    faces = []
    for ring in range(len(latitude) - 1):
        a, b = ring * segments + i, ring * segments + j
        c, d = b + segments, a + segments
        if ring > 0:
            faces.append(np.stack([a, b, c], 1))
        if ring < len(latitude) - 2:
            faces.append(np.stack([a, c, d], 1))
        else:
            faces[-1] = np.stack([a, b, d], 1)
    return _finish(anchor, bulge, np.concatenate(faces), bulge, scale_normals=False)


@lru_cache(maxsize=32)
def torus(thickness: float, segments: int = 20, sides: int = 8) -> Primitive:
    """A ring about z of outer diameter 1 whose tube has the given diameter."""
    radius, tube = 0.5 - thickness / 2, thickness / 2
    s, t = np.meshgrid(
        np.arange(segments) * 2 * math.pi / segments, np.arange(sides) * 2 * math.pi / sides, indexing="ij"
    )
    normals = np.stack([np.cos(s) * np.cos(t), np.sin(s) * np.cos(t), np.sin(t)], -1)
    vertices = normals * tube + radius * np.stack([np.cos(s), np.sin(s), np.zeros_like(s)], -1)
    i, j = np.meshgrid(np.arange(segments), np.arange(sides), indexing="ij")
    k, m = (i + 1) % segments, (j + 1) % sides
    a, b, c, d = i * sides + j, k * sides + j, k * sides + m, i * sides + m
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    return _finish(vertices.reshape(-1, 3), normals.reshape(-1, 3), faces)


@lru_cache(maxsize=32)
def superellipsoid(vertical: float, horizontal: float, segments: int = 16, rings: int = 8) -> Primitive:
    """The superquadric of diameter 1 with the given exponents (1, 1 is a ball; towards 0 a box)."""

    def power(x: np.ndarray, e: float) -> np.ndarray:
        return np.sign(x) * np.abs(x) ** e

    latitude = np.linspace(-0.5, 0.5, rings + 1) * math.pi
    longitude = (np.arange(segments) + 0.5) * 2 * math.pi / segments
    t, s = np.meshgrid(latitude, longitude, indexing="ij")
    ct, st = np.cos(t).clip(1e-6), np.sin(t)

    def surface(ev: float, eh: float) -> np.ndarray:
        return np.stack(
            [power(ct, ev) * power(np.cos(s), eh), power(ct, ev) * power(np.sin(s), eh), power(st, ev)], -1
        )

    vertices = surface(vertical, horizontal) / 2
    normals = surface(2 - vertical, 2 - horizontal)
    i, j = np.meshgrid(np.arange(rings), np.arange(segments), indexing="ij")
    k = (j + 1) % segments
    a, b, c, d = i * segments + j, i * segments + k, (i + 1) * segments + k, (i + 1) * segments + j
    faces = np.concatenate(
        [np.stack([a, b, c], -1)[1:].reshape(-1, 3), np.stack([a, c, d], -1)[:-1].reshape(-1, 3)]
    )
    return _finish(vertices.reshape(-1, 3), normals.reshape(-1, 3), faces)


def extrusion(outline: np.ndarray, top_scale: float = 1.0, smooth: bool = False) -> Primitive:
    """A polygon in the x-z plane pushed along y from -½ to ½.

    Args:
        outline: (N, 2) counter-clockwise (x right, z up), star-shaped about its mean.
        top_scale: width in y at the outline's highest point, 1 at its lowest (the tumblehome of a car).
        smooth: normals of neighbouring sides are blended below 45°.
    """
    points = np.asarray(outline, float)
    count = len(points)
    low, high = points[:, 1].min(), points[:, 1].max()
    half = 0.5 * (1 + (top_scale - 1) * (points[:, 1] - low) / max(high - low, 1e-9))
    after = np.roll(points, -1, axis=0)
    side = after - points
    normal = np.stack([side[:, 1], -side[:, 0]], 1)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    start, end = normal.copy(), normal.copy()
    if smooth:
        before = np.roll(normal, 1, axis=0)
        blend = (normal * before).sum(1) > 0.7
        joint = normal + before
        joint /= np.maximum(np.linalg.norm(joint, axis=1, keepdims=True), 1e-12)
        start[blend] = joint[blend]
        end = np.where(np.roll(blend, -1)[:, None], np.roll(joint, -1, axis=0), normal)
    half_after = np.roll(half, -1)
    vertices: list = []
    normals: list = []
    faces: list = []
    for i in range(count):
        base = len(vertices)
        for p, h, n in ((points[i], half[i], start[i]), (after[i], half_after[i], end[i])):
            vertices += [(p[0], -h, p[1]), (p[0], h, p[1])]
            normals += [(n[0], 0, n[1])] * 2
        faces += [(base, base + 1, base + 3), (base, base + 3, base + 2)]
    centre = points.mean(0)
    half_centre = 0.5 * (1 + (top_scale - 1) * (centre[1] - low) / max(high - low, 1e-9))
    for sign in (-1.0, 1.0):
        base = len(vertices)
        tilt = 0.5 * (1 - top_scale) / max(high - low, 1e-9)
        vertices += [(p[0], sign * h, p[1]) for p, h in zip(points, half, strict=True)]
        vertices.append((centre[0], sign * half_centre, centre[1]))
        normals += [(0, sign, tilt)] * (count + 1)
        faces += [(base + i, base + (i + 1) % count, base + count) for i in range(count)]
    return _finish(np.array(vertices), np.array(normals), np.array(faces))


def mesh(vertices: np.ndarray, normals: np.ndarray, faces: np.ndarray) -> Primitive:
    """Any triangles with vertex normals, in metres (use it with size 1); faces turn to their normals."""
    return _finish(vertices, normals, faces)


def tube(path: np.ndarray, radius: float, sides: int = 6) -> Primitive:
    """A pipe of constant radius along a polyline (N, 3), in metres (use it with size 1)."""
    points = np.asarray(path, float)
    tangent = np.gradient(points, axis=0)
    tangent /= np.maximum(np.linalg.norm(tangent, axis=1, keepdims=True), 1e-9)
    up = np.array([0.0, 0.0, 1.0]) if abs(tangent[:, 2]).mean() < 0.8 else np.array([1.0, 0.0, 0.0])
    across = np.cross(tangent, up)
    across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    other = np.cross(across, tangent)
    angle = np.arange(sides) * 2 * math.pi / sides
    normals = np.cos(angle)[None, :, None] * across[:, None] + np.sin(angle)[None, :, None] * other[:, None]
    vertices = points[:, None] + radius * normals
    i, j = np.meshgrid(np.arange(len(points) - 1), np.arange(sides), indexing="ij")
    k = (j + 1) % sides
    a, b, c, d = i * sides + j, i * sides + k, (i + 1) * sides + k, (i + 1) * sides + j
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    return _finish(vertices.reshape(-1, 3), normals.reshape(-1, 3), faces)


def heightfield(x: np.ndarray, y: np.ndarray, height: np.ndarray) -> Primitive:
    """The surface z = height[i, j] over the grid x[i], y[j], in metres (use it with size 1)."""
    slope_x, slope_y = np.gradient(height, x, y)
    grid_x, grid_y = np.meshgrid(x, y, indexing="ij")
    vertices = np.stack([grid_x, grid_y, height], -1).reshape(-1, 3)
    normals = np.stack([-slope_x, -slope_y, np.ones_like(height)], -1).reshape(-1, 3)
    rows, columns = height.shape
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(columns - 1), indexing="ij")
    a = i * columns + j
    b, c, d = a + columns, a + columns + 1, a + 1
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    return _finish(vertices, normals, faces)


def blob(bumps: np.ndarray, subdivisions: int = 2) -> Primitive:
    """A ball of diameter about 1 with waves on its surface: rocks, bushes, crowns of trees, crumpled bags.

    Args:
        bumps: (N, 5) rows of wave vector (3), phase and amplitude (relative to the radius).
    """
    unit = sphere(subdivisions).anchor * 2
    wave = np.sin(unit @ bumps[:, :3].T.astype(np.float32) + bumps[:, 3].astype(np.float32))
    radius = 1 + wave @ bumps[:, 4].astype(np.float32)
    vertices = unit * radius[:, None] / 2
    faces = sphere(subdivisions).faces
    corner = vertices[faces]
    flat = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, faces[:, k], flat)
    return _finish(vertices, normals, faces)


def leaves(base: np.ndarray, tip: np.ndarray, across: np.ndarray) -> Primitive:
    """Flat leaves, two triangles each, in metres: (N, 3) base and tip points and half-width vectors."""
    middle = base * 0.45 + tip * 0.55
    quads = np.stack([base, middle + across, tip, middle - across], 1)
    normal = np.cross(quads[:, 2] - quads[:, 0], across)
    count = len(quads)
    start = np.arange(count)[:, None] * 4
    faces = np.concatenate([start + np.array([0, 1, 2]), start + np.array([0, 2, 3])])
    return _finish(quads.reshape(-1, 3), np.repeat(normal, 4, axis=0), faces)


def hipped(depth: float, width: float, rise: float, top: float) -> Primitive:
    """A truncated pyramid over a rectangle, in metres: the roof of a house or palace.

    Args:
        depth: extent in x at the bottom (z = 0).
        width: extent in y at the bottom.
        rise: height.
        top: width of the flat top relative to the shorter side.
    """
    corners = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    inset = min(depth, width) * (1 - top) / 2
    low = corners * (depth, width)
    high = np.sign(corners) * (depth / 2 - inset, width / 2 - inset)
    points = np.concatenate([np.column_stack([low, np.zeros(4)]), np.column_stack([high, np.full(4, rise)])])
    vertices: list = []
    normals: list = []
    faces: list = []
    for face in ((0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7), (4, 5, 6, 7)):
        p = points[list(face)]
        base = len(vertices)
        vertices += list(p)
        normals += [np.cross(p[1] - p[0], p[3] - p[0])] * 4
        faces += [(base, base + 1, base + 2), (base, base + 2, base + 3)]
    return _finish(np.array(vertices), np.array(normals), np.array(faces))
