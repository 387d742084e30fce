"""Where a photograph is taken from, and through which lens.

Proposals of many kinds (a person standing, leaning over a table, under the ceiling, in a car, near the
ground, close to one object) are tried with a few hundred rays each until one shows something: not the inside
of an object, not the sky alone, not one bare wall.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vision3d.synthetic.draw import Draw
from vision3d.synthetic.raycast import NOTHING
from vision3d.synthetic.scene import Vector
from vision3d.synthetic.worlds import World

HANDHELD_FIELD = (46.0, 76.0)
"""Usual field of view along the longer side of telephones and depth cameras, degrees."""
PROBE = 26
_TRIES = 14


@dataclass(frozen=True)
class View:
    """A pinhole camera relative to an image of width 1: multiply by the width in pixels."""

    focal: tuple[float, float]
    centre: tuple[float, float]
    cam_to_world: np.ndarray  # (4, 4)

    def intrinsics(self, width: int) -> np.ndarray:
        """K (3, 3) in pixels, centres at +0.5."""
        fx, fy = (f * width for f in self.focal)
        cx, cy = (c * width for c in self.centre)
        return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def pixel_directions(
    K: np.ndarray, rotation: np.ndarray, height: int, width: int, factor: int = 1
) -> np.ndarray:
    """World directions with z = 1 in the camera frame, so that ray lengths are z-depths.

    Args:
        K: (3, 3) of the image of height × width.
        rotation: (3, 3) camera to world.
        height: rows of the image.
        width: columns of the image.
        factor: rays per pixel and side, evenly spread.

    Returns:
        (height · factor · width · factor, 3) float32, row by row.
    """
    u = (np.arange(width * factor) + 0.5) / factor
    v = (np.arange(height * factor) + 0.5) / factor
    x = ((u - K[0, 2]) / K[0, 0])[None, :, None] * rotation[:, 0]
    y = ((v - K[1, 2]) / K[1, 1])[:, None, None] * rotation[:, 1]
    return (x + y + rotation[:, 2]).reshape(-1, 3).astype(np.float32)


def look(eye: Vector, yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Camera-to-world (4, 4) of a camera at ``eye`` that looks along yaw, ``pitch`` up, rolled."""
    cy, sy, cp, sp = math.cos(yaw), math.sin(yaw), math.cos(pitch), math.sin(pitch)
    forward = np.array([cy * cp, sy * cp, sp])
    right = np.array([sy, -cy, 0.0])
    down = np.cross(forward, right)
    c, s = math.cos(roll), math.sin(roll)
    pose = np.eye(4)
    pose[:3, 0] = c * right + s * down
    pose[:3, 1] = c * down - s * right
    pose[:3, 2] = forward
    pose[:3, 3] = eye
    return pose


@dataclass(frozen=True)
class _Aim:
    eye: Vector
    yaw: float
    pitch: float
    field: tuple[float, float] = (45.0, 85.0)  # degrees, horizontal
    near: float = 0.3  # nothing may be closer, metres


def _towards(
    eye: Vector, target: Vector, field: tuple[float, float], near: float, draw: Draw, wander: float
) -> _Aim:
    dx, dy, dz = (t - e for t, e in zip(target, eye, strict=True))
    yaw = math.atan2(dy, dx) + draw.normal(0, wander)
    pitch = math.atan2(dz, math.hypot(dx, dy)) + draw.normal(0, wander * 0.7)
    return _Aim(eye, yaw, pitch, field, near)


def _inside(world: World, draw: Draw, margin: float = 0.0) -> tuple[float, float]:
    x0, y0, x1, y1 = world.scene.bounds
    m = min(margin, (x1 - x0) * 0.3, (y1 - y0) * 0.3)
    return draw.uniform(x0 + m, x1 - m), draw.uniform(y0 + m, y1 - m)


def _clamp(world: World, eye: Vector) -> Vector:
    x0, y0, x1, y1 = world.scene.bounds
    top = world.scene.ceiling - 0.15
    return (min(max(eye[0], x0), x1), min(max(eye[1], y0), y1), min(max(eye[2], 0.15), top))


def _standing(world: World, draw: Draw) -> _Aim:
    """At eye height towards the far side of the place."""
    x, y = _inside(world, draw)
    x0, y0, x1, y1 = world.scene.bounds
    target = (draw.uniform(x0, x1) * 0.7 - 0.4 * x, draw.uniform(y0, y1) * 0.7 - 0.4 * y)
    height = min(draw.pick([draw.uniform(1.3, 1.8), draw.uniform(0.5, 2.3)]), world.scene.ceiling - 0.2)
    yaw = math.atan2(target[1] - y, target[0] - x)
    return _Aim((x, y, height), yaw, math.radians(draw.normal(-11, 13)), (45, 95))


def _corner(world: World, draw: Draw) -> _Aim:
    """From an edge of the room over all of it."""
    x0, y0, x1, y1 = world.scene.bounds
    x = draw.pick([x0, x1]) if draw.chance(0.6) else draw.uniform(x0, x1)
    y = draw.pick([y0, y1])
    height = min(draw.uniform(0.9, 2.6), world.scene.ceiling - 0.15)
    target = (draw.normal(0, 0.25) * (x1 - x0), draw.normal(0, 0.25) * (y1 - y0), draw.uniform(0.2, 1.2))
    return _towards(_clamp(world, (x, y, height)), target, (50, 100), 0.25, draw, 0.1)


def _over_surface(world: World, draw: Draw) -> _Aim:
    """Leaning over a desk, table or worktop, down to straight from above."""
    surfaces = [
        s for s in world.scene.surfaces if s.kind in ("desk", "table", "kitchen") or s.centre[2] < 1.1
    ]
    if not surfaces:
        return _at_thing(world, draw)
    s = draw.pick(surfaces)
    u, v = draw.uniform(-0.45, 0.45) * s.size[0], draw.uniform(-0.45, 0.45) * s.size[1]
    c, sn = math.cos(s.yaw), math.sin(s.yaw)
    target = (
        s.centre[0] + c * u - sn * v,
        s.centre[1] + sn * u + c * v,
        s.centre[2] + draw.uniform(-0.1, 0.15),
    )
    distance = draw.log_uniform(0.45, 2.2)
    pitch = math.radians(draw.uniform(15, 80))
    around = s.yaw + draw.normal(0, 0.7)
    reach = distance * math.cos(pitch)
    eye = (
        target[0] + reach * math.cos(around),
        target[1] + reach * math.sin(around),
        target[2] + distance * math.sin(pitch),
    )
    return _towards(_clamp(world, eye), target, (40, 85), 0.12, draw, 0.12)


def _at_thing(world: World, draw: Draw) -> _Aim:
    """At one object from around it, filling much of the image."""
    things = world.scene.things
    weights = [t.salience**1.5 for t in things]
    if not any(weights):
        return _standing(world, draw)
    index = draw.pick(range(len(things)), weights)
    low, high = world.boxes[index]
    size = float(np.linalg.norm(high - low))
    target = tuple((low + (high - low) * [draw.uniform(0.3, 0.7) for _ in range(3)]).tolist())
    distance = size * draw.log_uniform(0.7, 2.6) + 0.15
    pitch = math.radians(
        draw.pick([draw.uniform(-5, 25), draw.uniform(5, 60), draw.uniform(20, 78)], [4, 4, 1])
    )
    around = draw.angle()
    reach = distance * math.cos(pitch)
    ground = float(low[2])
    z = max(target[2] + distance * math.sin(pitch), ground + draw.uniform(0.15, 0.6))
    z = min(z, ground + 8.0)
    eye = _clamp(world, (target[0] + reach * math.cos(around), target[1] + reach * math.sin(around), z))
    return _towards(eye, target, (30, 75), 0.12, draw, 0.08)


def _from_above(world: World, draw: Draw) -> _Aim:
    """From a balcony, ladder or drone."""
    x, y = _inside(world, draw)
    height = min(draw.uniform(2.0, 8.0), world.scene.ceiling - 0.12)
    cx, cy, _ = world.scene.centre_of_interest
    yaw = math.atan2(cy - y, cx - x) + draw.normal(0, 0.5)
    return _Aim((x, y, height), yaw, math.radians(draw.uniform(-75, -20)), (50, 100))


def _low(world: World, draw: Draw) -> _Aim:
    """Near the ground, looking up a little."""
    x, y = _inside(world, draw)
    return _Aim((x, y, draw.uniform(0.3, 0.8)), draw.angle(), math.radians(draw.normal(4, 10)), (45, 90))


def _driving(world: World, draw: Draw) -> _Aim:
    """As a camera in a car sees the road."""
    side = draw.uniform(-0.5, 0.1) * world.scene.bounds[3] * 0.6
    yaw = draw.pick([0.0, 0.0, 0.0, draw.normal(0, 0.3)]) + draw.normal(0, 0.05)
    eye = (draw.uniform(-6, 8), side, draw.uniform(1.2, 1.9))
    return _Aim(eye, yaw, math.radians(draw.normal(-2, 3.5)), (55, 100), 0.8)


def _towards_interest(world: World, draw: Draw) -> _Aim:
    """From where people stand towards what the place is about."""
    x, y = _inside(world, draw)
    target = world.scene.centre_of_interest
    return _towards((x, y, draw.uniform(1.1, 2.2)), target, (35, 80), 0.5, draw, 0.15)


def _across_surface(world: World, draw: Draw) -> _Aim:
    """Held at a table or worktop, over it towards what stands behind."""
    surfaces = [s for s in world.scene.surfaces if 0.3 < s.centre[2] < 1.2 and min(s.size) > 0.3]
    if not surfaces:
        return _glancing_down(world, draw)
    s = draw.pick(surfaces)
    free = s.kind == "table"  # the others have a wall behind them
    side = draw.integer(0, 3) if free else 0
    half = s.size[side % 2] / 2
    out = half + draw.uniform(-0.25, 0.7)
    along = draw.uniform(-0.5, 0.5) * s.size[1 - side % 2]
    angle = s.yaw + side * math.pi / 2
    c, sn = math.cos(angle), math.sin(angle)
    eye = (
        s.centre[0] + c * out - sn * along,
        s.centre[1] + sn * out + c * along,
        s.centre[2] + draw.uniform(0.2, 0.9),
    )
    yaw = angle + math.pi + draw.normal(0, 0.5)
    return _Aim(_clamp(world, eye), yaw, math.radians(draw.uniform(-48, -4)), HANDHELD_FIELD, 0.2)


def _glancing_down(world: World, draw: Draw) -> _Aim:
    """From a standing person's hands down at furniture and floor nearby."""
    x, y = _inside(world, draw)
    height = min(draw.uniform(1.1, 1.8), world.scene.ceiling - 0.2)
    x0, y0, x1, y1 = world.scene.bounds
    # The far side of the room is met more often than the wall at one's back.
    yaw = math.atan2(draw.uniform(y0, y1) - y, draw.uniform(x0, x1) - x)
    return _Aim((x, y, height), yaw, math.radians(draw.normal(-27, 12)), HANDHELD_FIELD, 0.25)


Proposal = Callable[[World, Draw], _Aim]
_INDOORS: tuple[tuple[Proposal, ...], tuple[float, ...]] = (
    (_standing, _corner, _over_surface, _at_thing, _from_above, _low),
    (3.0, 2.4, 2.8, 2.0, 0.5, 0.4),
)
_HANDHELD: tuple[tuple[Proposal, ...], tuple[float, ...]] = (
    (_across_surface, _glancing_down, _over_surface, _at_thing, _standing),
    (4.0, 3.0, 1.0, 0.7, 0.8),
)
_BY_KIND: dict[str, tuple[tuple[Proposal, ...], tuple[float, ...]]] = {
    "street": ((_driving, _standing, _at_thing, _from_above, _low), (4.5, 1.5, 2.0, 0.5, 0.4)),
    "park": ((_towards_interest, _standing, _at_thing, _from_above), (4.0, 0.8, 1.6, 0.4)),
    "meadow": ((_towards_interest, _standing, _at_thing, _from_above, _low), (2.5, 1.0, 3.0, 0.6, 0.4)),
    "studio": ((_at_thing, _standing, _towards_interest), (5.0, 0.5, 1.0)),
    "shapes": ((_standing, _corner, _at_thing, _from_above, _low), (2.0, 3.0, 1.5, 1.0, 0.4)),
}


def _field_of_view(draw: Draw, span: tuple[float, float]) -> float:
    """Horizontal field of view in degrees: usual lenses mostly, long and wide ones sometimes."""
    kind = draw.pick(["usual", "tele", "wide"], [8, 1, 1.2])
    if kind == "tele":
        return draw.uniform(20, 40)
    if kind == "wide":
        return draw.uniform(85, 110)
    return draw.uniform(*span)


def _judge(world: World, view: View, aspect: float, near: float) -> float:
    """How well a view would do as a photograph; 0 or above is good enough."""
    width = PROBE
    height = max(8, round(width * aspect))
    K = view.intrinsics(width)
    directions = pixel_directions(K, view.cam_to_world[:3, :3], height, width)
    hits = world.caster.first(view.cam_to_world[:3, 3], directions)
    seen = hits.triangle != NOTHING
    share = float(seen.mean())
    if share < 0.4:
        return share - 3.0
    depth = hits.distance[seen]
    score = 0.0
    close = float((depth < near).mean())
    if close > 0.02:
        score -= 1.0 + 2 * close
    inside = (hits.face_normal[seen] * directions[seen]).sum(1) > 0
    thing = world.geometry.part_object[world.geometry.triangle_part[hits.triangle[seen]]]
    # Leaves and blankets are open and may show their backs; a closed object must not.
    if inside.mean() > 0.12 and depth.min() < 1.0:
        score -= 2.0 * float(inside.mean())
    kinds = np.unique(thing)
    if len(kinds) < 4:
        score -= 0.35 * (4 - len(kinds))
    named = world.geometry.part_name[world.geometry.triangle_part[hits.triangle[seen]]]
    _, counts = np.unique(named, return_counts=True)
    largest = counts.max() / seen.size
    if largest > 0.55:
        score -= 2 * (largest - 0.55)
    if len(counts) < 9:
        score -= 0.08 * (9 - len(counts))
    # Half an image of something close by hides the rest.
    obstructed = float((depth < 0.3 * np.median(depth)).mean())
    if obstructed > 0.2:
        score -= obstructed
    spread = np.log(np.percentile(depth, 95) / max(float(np.percentile(depth, 5)), 1e-3))
    if spread < 0.25:
        score -= 1.0 - 3 * spread
    if share < 0.5:
        score -= 2 * (0.5 - share)
    return float(score)


def choose(world: World, draw: Draw, aspect: float, handheld: bool = False) -> View:
    """A view of a world.

    Args:
        world: what to look at.
        draw: random stream of this view.
        aspect: height over width of the image.
        handheld: of a room, from a hand that holds the camera near things: tilted down and askew.
    """
    makers, weights = _HANDHELD if handheld else _BY_KIND.get(world.scene.kind, _INDOORS)
    roll_limit, roll_spreads = (30.0, (4.0, 11.0)) if handheld else (15.0, (1.5, 6.0))
    best: View | None = None
    best_score = -math.inf
    # Real photographs show a bare wall now and then.
    tolerance = -0.9 if draw.chance(0.08) else -0.05
    for _ in range(_TRIES):
        aim = draw.pick(makers, weights)(world, draw)
        roll = math.radians(max(-roll_limit, min(roll_limit, draw.normal(0, draw.pick(roll_spreads)))))
        pitch = max(math.radians(-78), min(math.radians(32), aim.pitch))
        pose = look(aim.eye, aim.yaw, pitch, roll)
        # The stated field is that of the longer side.
        field = math.radians(_field_of_view(draw, aim.field))
        focal = 0.5 * max(1.0, aspect) / math.tan(field / 2)
        focal_y = focal * (draw.uniform(0.9, 1.1) if draw.chance(0.04) else 1.0)
        shift = (draw.normal(0, 0.05), draw.normal(0, 0.05)) if draw.chance(0.25) else (0.0, 0.0)
        centre = (0.5 + shift[0], (0.5 + shift[1]) * aspect)
        view = View((focal, focal_y), centre, pose)
        score = _judge(world, view, aspect, aim.near)
        if score > best_score:
            best, best_score = view, score
        if score >= tolerance:
            break
    assert best is not None
    return best
