"""Rooms: walls with doors and windows, floors, ceilings, furniture along the walls and in the middle."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from vision3d.synthetic import clutter, creatures, furniture, primitives, textures, vehicles
from vision3d.synthetic.draw import Draw
from vision3d.synthetic.materials import (
    Material,
    any_colour,
    fabric,
    glowing,
    jitter,
    metal,
    paint,
    printed,
    shade,
    textured,
    wall_colour,
    wood,
    wood_colour,
)
from vision3d.synthetic.nature import lumpy
from vision3d.synthetic.scene import Builder, Light, Scene, Sky, Surface, Vector, rotation_x, rotation_z

TRIANGLES = 19000
"""Clutter stops where a scene has this many."""


@dataclass
class _Opening:
    low: float  # along the wall
    high: float
    bottom: float
    top: float
    kind: str  # "door", "passage", "window", "gap"


@dataclass
class _Wall:
    """A wall seen from inside: x into the room, y along it."""

    length: float
    origin: tuple[float, float]
    yaw: float
    openings: list[_Opening] = field(default_factory=list)

    def at(self, x: float, y: float, z: float = 0.0) -> Vector:
        c, s = math.cos(self.yaw), math.sin(self.yaw)
        return (self.origin[0] + c * x - s * y, self.origin[1] + s * x + c * y, z)


KINDS = ("kitchen", "office", "living", "bedroom", "bathroom", "storage", "corridor", "hall", "shapes")
_WEIGHTS = (3.0, 3.5, 2.5, 1.5, 0.8, 2.0, 1.0, 1.2, 1.5)
_FURNISHED = (4.5, 3.5, 2.0, 0.8, 0.5, 1.2, 0.2, 0.2, 0.3)
_PLACE = {
    "kitchen": "in a kitchen",
    "office": "in an office",
    "living": "in a living room",
    "bedroom": "in a bedroom",
    "bathroom": "in a bathroom",
    "storage": "in a cellar",
    "corridor": "in a corridor",
    "hall": "in a hall",
    "shapes": "in a room",
}
_SIZES = {  # width, depth, height ranges in metres
    "kitchen": ((2.4, 5.0), (2.8, 6.0), (2.3, 3.0)),
    "office": ((3.0, 7.0), (3.5, 8.0), (2.5, 3.8)),
    "living": ((3.5, 7.0), (4.0, 8.0), (2.4, 3.5)),
    "bedroom": ((3.0, 5.0), (3.2, 5.5), (2.3, 3.2)),
    "bathroom": ((1.8, 3.2), (2.2, 4.0), (2.3, 2.8)),
    "storage": ((3.0, 8.0), (4.0, 10.0), (2.1, 4.0)),
    "corridor": ((1.4, 2.6), (7.0, 20.0), (2.4, 3.4)),
    "hall": ((7.0, 14.0), (9.0, 22.0), (3.5, 7.0)),
    "shapes": ((3.0, 9.0), (3.0, 9.0), (2.5, 5.0)),
}


class Room:
    """Builds one room into a scene."""

    def __init__(self, scene: Scene, draw: Draw, kind: str) -> None:
        self.scene, self.draw, self.kind = scene, draw, kind
        width, depth, height = (draw.uniform(*span) for span in _SIZES[kind])
        self.width, self.depth, self.height = width, depth, height
        self.taken: list[tuple[float, float, float, float]] = []
        half_w, half_d = width / 2, depth / 2
        self.walls = [
            _Wall(depth, (half_w, 0.0), math.pi),
            _Wall(width, (0.0, half_d), -math.pi / 2),
            _Wall(depth, (-half_w, 0.0), 0.0),
            _Wall(width, (0.0, -half_d), math.pi / 2),
        ]
        scene.place = _PLACE[kind]
        scene.bounds = (-half_w + 0.25, -half_d + 0.25, half_w - 0.25, half_d - 0.25)
        scene.ceiling = height
        scene.centre_of_interest = (0.0, 0.0, draw.uniform(0.5, 1.2))

    @property
    def room_left(self) -> bool:
        """Whether the triangle budget still allows clutter."""
        return sum(len(p.faces) for p in self.scene._primitives) < TRIANGLES

    def build(self) -> None:
        """Everything, from the openings to the lamps."""
        self._openings()
        self._shell()
        {
            "kitchen": self._kitchen,
            "office": self._office,
            "living": self._living,
            "bedroom": self._bedroom,
            "bathroom": self._bathroom,
            "storage": self._storage,
            "corridor": self._corridor,
            "hall": self._hall,
            "shapes": self._shapes,
        }[self.kind]()
        self._on_the_walls()
        self._clutter()
        self._lamps()

    def _openings(self) -> None:
        draw = self.draw
        doors = draw.integer(1, 2) if self.kind != "corridor" else draw.integer(3, 7)
        windows = (
            draw.pick([0, 1, 1, 2, 3]) if self.kind not in ("storage", "corridor") else draw.pick([0, 0, 1])
        )
        door_height = min(draw.uniform(1.95, 2.15), self.height - 0.1)
        for i in range(doors + windows):
            wall = draw.pick(self.walls)
            if i < doors:
                half = draw.uniform(0.38, 0.5)
                kind = draw.pick(["door", "door", "passage"])
                bottom, top = 0.0, door_height
            else:
                half = draw.uniform(0.35, 1.3)
                kind = draw.pick(["window", "window", "gap"])
                bottom = draw.uniform(0.7, 1.15) if draw.chance(0.8) else 0.1
                top = min(self.height - 0.15, bottom + draw.uniform(0.8, 1.9))
                if top - bottom < 0.4:
                    continue
            if wall.length < 2 * half + 0.5:
                continue
            y = draw.uniform(-wall.length / 2 + half + 0.2, wall.length / 2 - half - 0.2)
            if any(o.low - 0.15 < y + half and y - half < o.high + 0.15 for o in wall.openings):
                continue
            wall.openings.append(_Opening(y - half, y + half, bottom, top, kind))
            if i < doors:
                x, yy, _ = wall.at(0.5, y)
                self.taken.append((x - 0.5, yy - 0.5, x + 0.5, yy + 0.5))

    def _wall_material(self) -> Material:
        draw = self.draw
        c = wall_colour(draw)
        kinds = ["plain", "plaster", "stripes", "damask", "brick", "concrete", "planks", "tiles", "speckle"]
        weights = [6.0, 3, 0.6, 0.8, 0.8, 0.4, 0.5, 0.2, 0.4]
        if self.kind == "storage":
            weights = [1.0, 3, 0, 0, 3, 4, 2, 0.3, 0.3]
        if self.kind == "bathroom":
            weights = [1.0, 1, 0, 0, 0, 0, 0.2, 7, 0.2]
        if self.kind == "shapes":
            weights = [2.0] * 9
        kind = draw.pick(kinds, weights)
        second, third = shade(c, draw.uniform(0.75, 1.1)), shade(c, 0.85)
        if kind == "brick":
            c = jitter(draw, draw.pick([(0.55, 0.28, 0.2), (0.85, 0.83, 0.8), (0.6, 0.5, 0.4)]))
            second, third = shade(c, 0.75), (0.7, 0.68, 0.64)
        if kind == "planks":
            c = wood_colour(draw)
            second, third = shade(c, 0.75), c
        if self.kind == "shapes" and draw.chance(0.5):
            c, second, third = any_colour(draw), any_colour(draw), any_colour(draw)
        if kind == "tiles":
            c, second, third = wall_colour(draw), wall_colour(draw), (0.8, 0.8, 0.78)
        shiny = draw.uniform(0.2, 0.6) if kind == "tiles" else draw.uniform(0, 0.08)
        return textured(
            draw,
            kind,
            (c, second, third),
            draw.uniform(0.5, 1.3) if kind == "brick" else draw.uniform(0.6, 2.2),
            shiny=shiny,
            swap=draw.chance(0.5) and kind == "planks",
        )

    def _floor_material(self) -> Material:
        draw = self.draw
        kinds = [
            "planks",
            "tiles",
            "speckle",
            "carpet_lines",
            "concrete",
            "checker",
            "cloudy",
            "hexagons",
            "plain",
            "stones",
        ]
        weights = [5.0, 2.5, 2.5, 1.2, 1, 0.5, 0.7, 0.3, 1, 0.2]
        if self.kind in ("storage", "hall"):
            weights = [1.5, 1, 1, 0, 6, 0.3, 1, 0, 1, 0.5]
        if self.kind in ("kitchen", "bathroom"):
            weights = [2.0, 5, 1, 1, 0.5, 1, 0.3, 0.7, 0.5, 0.3]
        kind = draw.pick(kinds, weights)
        c = any_colour(draw, draw.uniform(0, 0.4))
        if kind == "planks":
            c = wood_colour(draw)
        if kind == "concrete":
            c = jitter(draw, (0.5, 0.49, 0.47), 0.12)
        soft = kind in ("speckle", "carpet_lines", "plain")
        return textured(
            draw,
            kind,
            (c, shade(c, draw.uniform(0.6, 1.3)), shade(c, draw.pick([0.4, 1.6]))),
            draw.uniform(0.7, 2.2) if kind != "checker" else draw.uniform(0.8, 3.0),
            shiny=0.0 if soft and draw.chance(0.7) else draw.uniform(0, 0.5),
            swap=draw.chance(0.5),
        )

    def _shell(self) -> None:
        draw, scene = self.draw, self.scene
        room = scene.add("room", phrase="a room")
        w, d, h = self.width, self.depth, self.height
        t = 0.2
        room.box("floor", (0, 0, -0.1), (w + 2 * t, d + 2 * t, 0.2), self._floor_material(), semantic="floor")
        c = jitter(draw, (0.9, 0.9, 0.88), 0.06) if draw.chance(0.8) else wall_colour(draw)
        ceiling = textured(
            draw,
            draw.pick(["plain", "plaster", "tiles", "planks"], [6, 3, 1, 0.6]),
            (c, shade(c, 0.95), shade(c, 0.85)),
            draw.uniform(0.6, 2.0),
        )
        if self.kind in ("storage", "hall") and draw.chance(0.5):
            ceiling = textured(
                draw, draw.pick(["concrete", "planks", "corrugated"]), (shade(c, 0.5), shade(c, 0.4), c), 2.0
            )
        room.box("ceiling", (0, 0, h + 0.1), (w + 2 * t, d + 2 * t, 0.2), ceiling, semantic="ceiling")
        if draw.chance(0.2) or self.kind in ("storage", "hall"):
            beam = (
                wood(draw) if draw.chance(0.6) else textured(draw, "concrete", ((0.6, 0.6, 0.58),) * 3, 1.0)
            )
            size = draw.uniform(0.1, 0.25)
            count = max(2, int(d / draw.uniform(0.8, 2.5)))
            for i in range(count):
                room.box(
                    "beam",
                    (0, -d / 2 + (i + 0.5) * d / count, h - size / 2),
                    (w, size * 0.7, size),
                    beam,
                    semantic="ceiling",
                )
        base = self._wall_material()
        skirting = paint(draw, jitter(draw, (0.88, 0.87, 0.84))) if draw.chance(0.6) else wood(draw)
        skirt = draw.uniform(0.05, 0.14) if draw.chance(0.75) else 0.0
        frame = paint(draw, jitter(draw, (0.9, 0.9, 0.88))) if draw.chance(0.6) else wood(draw)
        panelled = draw.chance(0.12)
        panel_h, panel = draw.uniform(0.8, 1.3), self._wall_material()
        for wall in self.walls:
            material = base if draw.chance(0.85) else self._wall_material()
            b = scene.add("wall", wall.at(0, 0), wall.yaw, semantic="wall")
            span = wall.length
            pieces: list[tuple[float, float, float, float]] = []
            last = -span / 2
            for o in sorted(wall.openings, key=lambda o: o.low):
                pieces.append((last, o.low, 0.0, h))
                if o.bottom > 0:
                    pieces.append((o.low, o.high, 0.0, o.bottom))
                pieces.append((o.low, o.high, o.top, h))
                last = o.high
            pieces.append((last, span / 2, 0.0, h))
            for y0, y1, z0, z1 in pieces:
                if y1 - y0 < 1e-3 or z1 - z0 < 1e-3:
                    continue
                b.box("wall", (-t / 2, (y0 + y1) / 2, (z0 + z1) / 2), (t, y1 - y0, z1 - z0), material)
                if skirt and z0 == 0.0:
                    b.box("skirting", (0.008, (y0 + y1) / 2, skirt / 2), (0.016, y1 - y0, skirt), skirting)
                if panelled and z0 == 0.0:
                    top = min(panel_h, z1)
                    b.box("panelling", (0.005, (y0 + y1) / 2, top / 2), (0.01, y1 - y0, top), panel)
            if draw.chance(0.12):
                b.box("moulding", (0.03, 0, h - 0.05), (0.06, span, 0.1), frame)
            for o in wall.openings:
                if o.kind in ("door", "passage"):
                    self._door(b, wall, o, frame, t)
                else:
                    self._window(b, wall, o, frame, t)
        if draw.chance(0.18) and min(w, d) > 3.2:
            wall = draw.pick(self.walls)
            y = draw.sign() * wall.length / 2
            size = draw.uniform(0.3, 0.8)
            b = scene.add(
                "pillar",
                wall.at(size / 2, y * 0.98 - math.copysign(size / 2, y)),
                wall.yaw,
                semantic="column",
            )
            b.box("pillar", (0, 0, h / 2), (size, size, h), base)

    def _door(self, b: Builder, wall: _Wall, o: _Opening, frame: Material, t: float) -> None:
        draw, scene = self.draw, self.scene
        y, half = (o.low + o.high) / 2, (o.high - o.low) / 2
        f = draw.uniform(0.05, 0.1)
        for s in (-1, 1):
            b.box(
                "door_frame",
                (0.005, y + s * (half + f / 2 - 0.02), o.top / 2),
                (0.05, f, o.top),
                frame,
                semantic="door",
            )
        b.box(
            "door_frame",
            (0.005, y, o.top + f / 2 - 0.02),
            (0.05, 2 * half + 2 * f, f),
            frame,
            semantic="door",
        )
        c = jitter(draw, draw.pick([(0.88, 0.87, 0.84), wood_colour(draw), any_colour(draw)]))
        leaf = textured(
            draw,
            draw.pick(["panels", "panels", "wood", "plain"]),
            (c, shade(c, 0.85), c),
            1.0,
            shiny=0.2,
            mapping="fit",
        )
        d = scene.add("door", wall.at(-0.06, o.low), wall.yaw, semantic="door", salience=0.4)
        swing = 0.0 if o.kind == "door" else draw.uniform(1.0, 1.9)
        turn = rotation_z(swing)
        width = 2 * half - 0.02
        middle = turn @ (0.0, width / 2, 0.0)
        d.box(
            "leaf",
            (float(middle[0]), float(middle[1]), o.top / 2),
            (0.045, width, o.top - 0.01),
            leaf,
            rotation=turn,
        )
        knob = turn @ (0.05, width * 0.92, 0.0)
        d.limb(
            "handle",
            (float(knob[0]), float(knob[1]), 1.02),
            (float(knob[0]), float(knob[1]) - 0.08, 1.02),
            0.012,
            metal(draw),
        )
        d.keypoint("handle", (float(knob[0]), float(knob[1]), 1.02))
        if o.kind == "passage":
            self._beyond(wall, y, t)

    def _beyond(self, wall: _Wall, y: float, t: float) -> None:
        """A bit of another room behind an open door."""
        draw = self.draw
        deep, wide, h = draw.uniform(1.5, 4.5), draw.uniform(2.0, 4.0), max(self.height, 2.3)
        b = self.scene.add("next room", wall.at(-t, y), wall.yaw)
        walls, x = self._wall_material(), -deep / 2
        b.box("floor", (x, 0, -0.11), (deep, wide, 0.2), self._floor_material(), semantic="floor")
        b.box("ceiling", (x, 0, h + 0.1), (deep, wide, 0.2), walls, semantic="ceiling")
        b.box("wall", (-deep - 0.05, 0, h / 2), (0.1, wide, h), walls, semantic="wall")
        for s in (-1, 1):
            b.box("wall", (x, s * (wide / 2 + 0.05), h / 2), (deep, 0.1, h), walls, semantic="wall")
        if draw.chance(0.7):
            maker, depth, width = furniture.FURNITURE[
                draw.pick(["cabinet", "shelf", "table", "sofa", "chair"])
            ]
            dd, ww = draw.uniform(*depth), draw.uniform(*width)
            if ww < wide - 0.2 and dd < deep - 0.5:
                maker(self.scene, draw, wall.at(-t - deep + dd / 2 + 0.02, y), wall.yaw, dd, ww)
        if draw.chance(0.7):
            v = draw.uniform(0.3, 1.4)
            self.scene.lights.append(Light(wall.at(-t - deep / 2, y, h - 0.4), (v, v * 0.95, v * 0.85), 0.1))

    def _window(self, b: Builder, wall: _Wall, o: _Opening, frame: Material, t: float) -> None:
        draw = self.draw
        y, z = (o.low + o.high) / 2, (o.bottom + o.top) / 2
        w, h = o.high - o.low, o.top - o.bottom
        back = -t * draw.uniform(0.4, 0.9)
        f = draw.uniform(0.04, 0.09)
        for s in (-1, 1):
            b.box("window_frame", (back, y + s * (w - f) / 2, z), (0.06, f, h), frame, semantic="windowpane")
            b.box("window_frame", (back, y, z + s * (h - f) / 2), (0.06, w, f), frame, semantic="windowpane")
        for i in range(1, draw.pick([1, 2, 2, 3]) if w > 0.7 else 1):
            count = 2 if w < 1.4 else 3
            b.box(
                "window_frame",
                (back, y - w / 2 + w * i / count, z),
                (0.05, f, h),
                frame,
                semantic="windowpane",
            )
        if draw.chance(0.4):
            b.box(
                "window_frame",
                (back, y, z + h * draw.uniform(-0.1, 0.3)),
                (0.05, w, f * 0.8),
                frame,
                semantic="windowpane",
            )
        b.box("sill", (0.04, y, o.bottom - 0.015), (0.16, w + 0.1, 0.03), frame)
        day = draw.chance(0.85)
        if o.kind == "window":
            if day:
                v = draw.uniform(0.9, 2.5)
                tone = draw.pick([(0.85, 0.93, 1.0), (1.0, 0.98, 0.95), (0.7, 0.8, 0.7)])
                pane = glowing(
                    draw, tone, v, draw.pick(["plain", "cloudy", "landscape", "foliage", "facade"])
                )
            else:
                pane = textured(draw, "plain", ((0.03, 0.035, 0.05),) * 3, 1, shiny=0.9)
            b.box("pane", (back - 0.02, y, z), (0.01, w, h), pane, semantic="windowpane")
        else:
            self._outside(wall, y)
        if draw.chance(0.3):
            cloth = fabric(draw)
            wave = draw.uniform(0.03, 0.06)
            for s in (-1, 1):
                wide = w * draw.uniform(0.12, 0.45)
                at = y + s * (w / 2 + 0.05 - wide / 2)
                low = draw.pick([0.02, o.bottom - 0.15])
                folds = max(3, int(wide / 0.09))
                for i in range(folds):
                    yy = at - wide / 2 + (i + 0.5) * wide / folds
                    tall = o.top + 0.12 - low
                    b.part(
                        "curtain",
                        primitives.superellipsoid(0.2, 1.0, 8, 4),
                        (0.09, yy, low + tall / 2),
                        (wave * 1.6, wide / folds * 1.35, tall),
                        cloth,
                        semantic="curtain",
                    )
            b.rod(
                "rail",
                (0.09, o.low - 0.2, o.top + 0.13),
                (0.09, o.high + 0.2, o.top + 0.13),
                0.012,
                metal(draw),
                segments=6,
                semantic="curtain",
            )
        elif draw.chance(0.2):
            drop = h * draw.uniform(0.2, 1.0)
            slats = max(3, int(drop / 0.06))
            blind = paint(draw, jitter(draw, (0.85, 0.84, 0.8)))
            for i in range(slats):
                b.box(
                    "blind",
                    (-0.02, y, o.top - (i + 0.5) * drop / slats),
                    (0.03, w * 0.98, 0.035),
                    blind,
                    semantic="blind",
                )
        if day:
            v = draw.uniform(0.6, 2.4) * min(1.5, w * h)
            tone = draw.pick([(0.9, 0.96, 1.0), (1.0, 0.97, 0.9)])
            self.scene.lights.append(
                Light(wall.at(0.15, y, z + h * 0.2), (v * tone[0], v * tone[1], v * tone[2]), min(w, h) * 0.4)
            )
        if draw.chance(0.5):
            self.scene.surfaces.append(
                Surface(wall.at(0.03, y, o.bottom), wall.yaw, (0.05, w * 0.8), "shelf")
            )

    def _outside(self, wall: _Wall, y: float) -> None:
        draw = self.draw
        b = self.scene.add("garden", wall.at(-0.4, y), wall.yaw)
        c = jitter(draw, (0.35, 0.42, 0.2))
        b.box(
            "ground",
            (-15, 0, -0.6),
            (30, 40, 0.2),
            textured(draw, "grass", (c, shade(c, 0.7), c), 2.0),
            semantic="grass",
        )
        for _ in range(draw.integer(1, 4)):
            x, yy = -draw.uniform(4, 18), draw.uniform(-10, 10)
            s = draw.uniform(2, 5)
            leaf = textured(draw, "foliage", (c, shade(c, 1.5), shade(c, 0.5)), 1.5)
            b.ball("tree", (x, yy, s * 0.6), (s, s, s * 1.3), leaf, semantic="tree")
        if draw.chance(0.6):
            front = textured(draw, "facade", (wall_colour(draw), (0.2, 0.25, 0.3), (0.9, 0.9, 0.88)), 6.0)
            b.box(
                "house",
                (-draw.uniform(16, 25), draw.uniform(-6, 6), 4),
                (6, draw.uniform(8, 16), draw.uniform(6, 12)),
                front,
                semantic="building",
            )

    def _free(self, x0: float, y0: float, x1: float, y1: float) -> bool:
        return not any(x0 < b[2] and b[0] < x1 and y0 < b[3] and b[1] < y1 for b in self.taken)

    def _footprint(
        self, at: Vector, yaw: float, depth: float, width: float
    ) -> tuple[float, float, float, float]:
        c, s = abs(math.cos(yaw)), abs(math.sin(yaw))
        hx, hy = (c * depth + s * width) / 2, (s * depth + c * width) / 2
        return (at[0] - hx, at[1] - hy, at[0] + hx, at[1] + hy)

    def along_wall(self, kind: str, wall: _Wall | None = None, tries: int = 6) -> bool:
        """Puts a piece of furniture with its back to a wall; False where none fits."""
        draw = self.draw
        maker, depth_range, width_range = furniture.FURNITURE[kind]
        for _ in range(tries):
            w = wall or draw.pick(self.walls)
            depth, width = draw.uniform(*depth_range), draw.uniform(*width_range)
            limit = w.length / 2 - width / 2 - 0.02
            if limit < 0:
                continue
            y = draw.uniform(-limit, limit) if draw.chance(0.7) else draw.sign() * limit
            at = w.at(depth / 2 + draw.uniform(0.02, 0.06), y)
            box = self._footprint(at, w.yaw, depth, width)
            if self._free(*box):
                self.taken.append(box)
                maker(self.scene, draw, at, w.yaw + draw.normal(0, 0.015), depth, width)
                return True
        return False

    def in_the_middle(self, kind: str, margin: float = 0.5) -> tuple[Vector, float, float, float] | None:
        """Puts a piece somewhere on the floor; returns where, its yaw and size."""
        draw = self.draw
        maker, depth_range, width_range = furniture.FURNITURE[kind]
        for _ in range(6):
            depth, width = draw.uniform(*depth_range), draw.uniform(*width_range)
            yaw = draw.integer(0, 3) * math.pi / 2 + (
                draw.normal(0, 0.08) if draw.chance(0.7) else draw.angle()
            )
            x = draw.uniform(-1, 1) * max(0.0, self.width / 2 - margin - depth / 2)
            y = draw.uniform(-1, 1) * max(0.0, self.depth / 2 - margin - width / 2)
            box = self._footprint((x, y, 0.0), yaw, depth, width)
            if self._free(*box):
                self.taken.append(box)
                maker(self.scene, draw, (x, y, 0.0), yaw, depth, width)
                return (x, y, 0.0), yaw, depth, width
        return None

    def chairs_around(
        self, at: Vector, yaw: float, depth: float, width: float, count: int, kind: str = "chair"
    ) -> None:
        """Chairs at the sides of a table, facing it."""
        draw = self.draw
        sides = [
            (depth / 2, 0.0, 0.0),
            (-depth / 2, 0.0, math.pi),
            (0.0, width / 2, math.pi / 2),
            (0.0, -width / 2, -math.pi / 2),
        ]
        spots: list[tuple[float, float, float]] = []
        for dx, dy, turn in sides:
            long = width if dx else depth
            for k in range(2 if long > 1.3 else 1):
                shift = (k - 0.5) * long * 0.45 if long > 1.3 else 0.0
                out = draw.uniform(-0.08, 0.45)
                x, y = dx + math.copysign(out, dx) * (dx != 0), dy + math.copysign(out, dy) * (dy != 0)
                spots.append((x + (shift if not dx else 0.0), y + (shift if dx else 0.0), turn + math.pi))
        maker = furniture.FURNITURE[kind][0]
        c, s = math.cos(yaw), math.sin(yaw)
        order = draw.generator.permutation(len(spots))
        for i in order[:count]:
            x, y, turn = spots[int(i)]
            spot = (at[0] + c * x - s * y, at[1] + s * x + c * y, 0.0)
            if abs(spot[0]) > self.width / 2 - 0.3 or abs(spot[1]) > self.depth / 2 - 0.3:
                continue
            maker(
                self.scene,
                draw,
                spot,
                yaw + turn + draw.normal(0, 0.25),
                draw.uniform(0.42, 0.52),
                draw.uniform(0.42, 0.52),
            )
            self.taken.append((spot[0] - 0.25, spot[1] - 0.25, spot[0] + 0.25, spot[1] + 0.25))

    def rug(self) -> None:
        """A carpet on the floor."""
        draw = self.draw
        b = self.scene.add(
            "rug",
            (draw.normal(0, 0.3), draw.normal(0, 0.3), 0.0),
            draw.normal(0, 0.1),
            semantic="rug",
            salience=0.2,
        )
        size = (
            min(self.width * 0.7, draw.uniform(1.2, 2.6)),
            min(self.depth * 0.7, draw.uniform(1.5, 3.4)),
            0.012,
        )
        material = fabric(draw) if draw.chance(0.5) else printed(draw, "poster")
        if draw.chance(0.25):
            b.cylinder("rug", (0, 0, 0), size[0] / 2, 0.012, material, segments=28)
        else:
            b.box("rug", (0, 0, 0.006), size, material)

    def _kitchen(self) -> None:
        draw = self.draw
        style = furniture.kitchen_style(draw)
        start = draw.integer(0, 3)
        for i in range(draw.pick([1, 2, 2, 3])):
            wall = self.walls[(start + i) % 4]
            depth = 0.62
            doors = [o for o in wall.openings if o.bottom < 0.8]
            low, high = -wall.length / 2 + 0.02, wall.length / 2 - 0.02
            for o in doors:
                if o.low - low > high - o.high:
                    high = min(high, o.low - 0.12)
                else:
                    low = max(low, o.high + 0.12)
            if i > 0:  # leave the corner to the previous run
                high -= 0.64
            windows = any(o.high > low and o.low < high for o in wall.openings if o.bottom >= 0.8)
            if high - low < 1.0:
                continue
            at = wall.at(depth / 2 + 0.01, (low + high) / 2)
            self.taken.append(self._footprint(at, wall.yaw, depth, high - low))
            furniture.counter(
                self.scene, draw, at, wall.yaw, depth, high - low, style, wall_units=not windows
            )
        if draw.chance(0.7):
            self.along_wall("fridge")
        if min(self.width, self.depth) > 2.7 and draw.chance(0.8):
            placed = self.in_the_middle("table", 1.0)
            if placed:
                self.chairs_around(*placed, draw.integer(1, 5))
        for _ in range(draw.integer(0, 3)):
            self.along_wall(draw.pick(["shelf", "cabinet", "stool", "chair"]))

    def _office(self) -> None:
        draw = self.draw
        for _ in range(draw.integer(1, 4)):
            maker, depth_range, width_range = furniture.FURNITURE["desk"]
            depth, width = draw.uniform(*depth_range), draw.uniform(*width_range)
            wall = draw.pick(self.walls)
            limit = wall.length / 2 - width / 2 - 0.05
            if limit < 0:
                continue
            out = 0.03 if draw.chance(0.7) else draw.uniform(0.6, 1.5)
            at = wall.at(depth / 2 + out, draw.uniform(-limit, limit))
            box = self._footprint(at, wall.yaw, depth, width)
            if not self._free(*box) or abs(at[0]) > self.width / 2 - 0.2 or abs(at[1]) > self.depth / 2 - 0.2:
                continue
            self.taken.append(box)
            yaw = wall.yaw + draw.normal(0, 0.05)
            maker(self.scene, draw, at, yaw, depth, width)
            if draw.chance(0.85):
                reach = depth / 2 + draw.uniform(0.1, 0.5)
                spot = (at[0] + reach * math.cos(yaw), at[1] + reach * math.sin(yaw), 0.0)
                furniture.chair(self.scene, draw, spot, yaw + math.pi + draw.normal(0, 0.4), 0.5, 0.5)
                self.taken.append((spot[0] - 0.3, spot[1] - 0.3, spot[0] + 0.3, spot[1] + 0.3))
        for _ in range(draw.integer(2, 6)):
            self.along_wall(draw.pick(["shelf", "shelf", "cabinet", "cabinet", "machine"]))
        if draw.chance(0.3):
            placed = self.in_the_middle("table", 0.8)
            if placed:
                self.chairs_around(*placed, draw.integer(2, 6))
        if draw.chance(0.2):
            self.along_wall("sofa")

    def _living(self) -> None:
        draw = self.draw
        self.along_wall("sofa")
        if draw.chance(0.5):
            self.rug()
        if draw.chance(0.7):
            self.in_the_middle("coffee_table", 1.0)
        for _ in range(draw.integer(1, 3)):
            self.in_the_middle("armchair", 0.6)
        if draw.chance(0.4):
            placed = self.in_the_middle("table", 0.8)
            if placed:
                self.chairs_around(*placed, draw.integer(2, 6))
        for _ in range(draw.integer(2, 6)):
            self.along_wall(draw.pick(["shelf", "cabinet", "cabinet", "floor_lamp", "sofa"]))

    def _bedroom(self) -> None:
        draw = self.draw
        self.along_wall("bed", tries=20)
        if draw.chance(0.4):
            self.rug()
        for _ in range(draw.integer(2, 5)):
            self.along_wall(draw.pick(["cabinet", "cabinet", "shelf", "desk", "floor_lamp", "armchair"]))
        if draw.chance(0.5):
            self.in_the_middle("chair")

    def _bathroom(self) -> None:
        for kind in ("bathtub", "sink", "toilet", "cabinet"):
            if self.draw.chance(0.8):
                self.along_wall(kind)

    def _storage(self) -> None:
        draw = self.draw
        for _ in range(draw.integer(2, 6)):
            self.along_wall(draw.pick(["shelf", "shelf", "machine", "machine", "cabinet", "table", "fridge"]))
        for _ in range(draw.integer(0, 2)):
            self.in_the_middle(draw.pick(["table", "machine", "chair", "stool"]))
        if draw.chance(0.35):
            self._vehicle()
        for _ in range(draw.integer(3, 9)):
            x, y = draw.uniform(-0.45, 0.45) * self.width, draw.uniform(-0.45, 0.45) * self.depth
            size = draw.uniform(0.25, 0.6)
            if self._free(x - size / 2, y - size / 2, x + size / 2, y + size / 2):
                self.taken.append((x - size / 2, y - size / 2, x + size / 2, y + size / 2))
                for k in range(draw.pick([1, 1, 2, 3])):
                    clutter.cardboard(self.scene, draw, (x, y, k * size * 0.9), draw.angle(), size * 0.9)

    def _vehicle(self) -> None:
        draw = self.draw
        for _ in range(5):
            x, y = draw.uniform(-0.35, 0.35) * self.width, draw.uniform(-0.35, 0.35) * self.depth
            if self._free(x - 1.1, y - 1.1, x + 1.1, y + 1.1):
                self.taken.append((x - 1.1, y - 1.1, x + 1.1, y + 1.1))
                draw.pick([vehicles.motorcycle, vehicles.motorcycle, vehicles.bicycle])(
                    self.scene, draw, (x, y, 0.0), draw.angle()
                )
                return

    def _corridor(self) -> None:
        draw = self.draw
        if self.width > 1.8:
            for _ in range(draw.integer(0, 4)):
                self.along_wall(draw.pick(["cabinet", "shelf", "chair", "radiator"]))
        for _ in range(draw.integer(0, 2)):
            creatures.person(
                self.scene,
                draw,
                (draw.normal(0, 0.2) * self.width, draw.uniform(-0.4, 0.4) * self.depth, 0.0),
                draw.angle(),
            )

    def _hall(self) -> None:
        draw = self.draw
        for _ in range(draw.integer(1, 3)):
            x, y = draw.uniform(-0.35, 0.35) * self.width, draw.uniform(-0.35, 0.35) * self.depth
            b = self.scene.add("column", (x, y, 0.0), semantic="column")
            r = draw.uniform(0.15, 0.4)
            material = textured(
                draw,
                draw.pick(["concrete", "plaster", "marble"]),
                ((0.7, 0.69, 0.66), (0.6, 0.6, 0.58), (0.5, 0.5, 0.5)),
                1.5,
            )
            if draw.chance(0.5):
                b.cylinder("column", (0, 0, 0), r, self.height, material, segments=20)
            else:
                b.box("column", (0, 0, self.height / 2), (2 * r, 2 * r, self.height), material)
            self.taken.append((x - r, y - r, x + r, y + r))
        for _ in range(draw.integer(3, 8)):
            placed = self.in_the_middle(
                draw.pick(["table", "desk", "sofa", "machine", "coffee_table", "shelf"]), 0.8
            )
            if placed and draw.chance(0.6):
                self.chairs_around(*placed, draw.integer(1, 4))
        for _ in range(draw.integer(3, 8)):
            self.along_wall(draw.pick(["shelf", "cabinet", "machine", "counter"]))
        if draw.chance(0.3):
            self._vehicle()

    def _shapes(self) -> None:
        """Solids of all kinds on the floor and in the air: not a place, but every orientation of surface."""
        draw = self.draw
        kinds = textures.KINDS
        for _ in range(draw.integer(6, 22)):
            s = draw.log_uniform(0.15, 1.6)
            word = draw.pick(["box", "ball", "cylinder", "cone", "ring", "block", "capsule", "lump"])
            at = (draw.uniform(-0.45, 0.45) * self.width, draw.uniform(-0.45, 0.45) * self.depth, 0.0)
            c = any_colour(draw)
            material = textured(
                draw,
                draw.pick(kinds),
                (c, any_colour(draw), any_colour(draw)),
                draw.uniform(0.2, 1.5),
                shiny=draw.uniform(0, 1) ** 2,
            )
            floating = draw.chance(0.3)
            z = draw.uniform(0, self.height) if floating else s * 0.4
            turn = _any_rotation(draw) if floating or draw.chance(0.4) else rotation_z(draw.angle())
            b = self.scene.add(word, at, phrase=f"a {word}", salience=0.7)
            size = (s * draw.uniform(0.4, 1.2), s * draw.uniform(0.4, 1.2), s * draw.uniform(0.4, 1.2))
            spot = (0.0, 0.0, z)
            if word == "box":
                b.box("box", spot, size, material, rotation=turn, bevel=draw.pick([0.0, 0.05 * s]))
            elif word == "ball":
                b.ball(
                    "ball", spot, size if draw.chance(0.5) else (s, s, s), material, detail=3, rotation=turn
                )
            elif word in ("cylinder", "cone"):
                b.part(
                    word,
                    primitives.frustum(draw.pick([1.0, 0.5]) if word == "cylinder" else 0.0, 24),
                    spot,
                    size,
                    material,
                    turn,
                )
            elif word == "ring":
                b.part("ring", primitives.torus(draw.pick([0.1, 0.2, 0.3])), spot, (s, s, s), material, turn)
            elif word == "block":
                b.part(
                    "block",
                    primitives.superellipsoid(
                        draw.pick([0.3, 0.6, 1.0, 1.6]), draw.pick([0.3, 0.6, 1.0, 1.6])
                    ),
                    spot,
                    size,
                    material,
                    turn,
                )
            elif word == "capsule":
                b.part("capsule", primitives.capsule(), spot, (0.0, 0.0, s * 0.7), material, turn, 0.2 * s)
            else:
                b.part("lump", lumpy(draw, 0.15, 3.0, 3), spot, size, material, turn)

    def _on_the_walls(self) -> None:
        draw, scene = self.draw, self.scene
        for wall in self.walls:
            done: list[tuple[float, float]] = [(o.low - 0.1, o.high + 0.1) for o in wall.openings]
            for _ in range(draw.integer(1, 3 + int(wall.length / 1.3))):
                kind = draw.pick(
                    [
                        "picture",
                        "poster",
                        "poster",
                        "notes",
                        "board",
                        "clock",
                        "switch",
                        "shelf",
                        "pipe",
                        "cupboard",
                    ],
                    [3, 3, 2, 1.5, 1, 0.7, 1, 1.2, 0.5 + 2 * (self.kind == "storage"), 0.5],
                )
                w, h = draw.uniform(0.25, 1.0), draw.uniform(0.25, 0.9)
                y = draw.uniform(-0.5, 0.5) * (wall.length - w - 0.1)
                if any(y - w / 2 < b and a < y + w / 2 for a, b in done):
                    continue
                done.append((y - w / 2 - 0.05, y + w / 2 + 0.05))
                z = draw.uniform(1.2, max(1.25, min(self.height - 0.6, 1.9)))
                at = wall.at(0.0, y)
                if kind == "picture":
                    b = scene.add("picture", at, wall.yaw, semantic="painting", salience=0.3)
                    f = draw.uniform(0.02, 0.06)
                    b.box(
                        "frame", (0.015, 0, z), (0.03, w, h), wood(draw) if draw.chance(0.6) else paint(draw)
                    )
                    b.box(
                        "picture",
                        (0.0165, 0, z),
                        (0.032, w - 2 * f, h - 2 * f),
                        printed(draw, draw.pick(["landscape", "poster"])),
                    )
                elif kind == "poster":
                    b = scene.add("poster", at, wall.yaw, semantic="poster", salience=0.2)
                    b.box(
                        "sheet",
                        (0.004, 0, z),
                        (0.008, w, h * 1.3),
                        printed(draw, draw.pick(["poster", "page", "landscape"])),
                    )
                elif kind == "notes":
                    b = scene.add("notes", at, wall.yaw, semantic="poster", salience=0.1)
                    for _k in range(draw.integer(2, 6)):
                        b.box(
                            "sheet",
                            (0.004, draw.uniform(-0.5, 0.5) * w, z + draw.normal(0, 0.2)),
                            (0.008 + 0.001 * _k, 0.2, 0.29),
                            printed(draw, "page"),
                        )
                elif kind == "board":
                    b = scene.add("board", at, wall.yaw, semantic="bulletin_board", salience=0.3)
                    c = draw.pick([(0.93, 0.93, 0.93), (0.1, 0.25, 0.15), (0.6, 0.45, 0.3)])
                    b.box("frame", (0.012, 0, z), (0.024, w * 1.5, h), metal(draw))
                    b.box(
                        "board",
                        (0.014, 0, z),
                        (0.026, w * 1.5 - 0.06, h - 0.06),
                        textured(draw, "cloudy", (c, shade(c, 0.95), c), 1, shiny=0.1),
                    )
                elif kind == "clock":
                    b = scene.add("clock", at, wall.yaw, semantic="clock", salience=0.2)
                    b.rod("clock", (0, 0, z), (0.05, 0, z), 0.15, paint(draw), segments=20)
                    b.rod(
                        "face",
                        (0.045, 0, z),
                        (0.053, 0, z),
                        0.13,
                        paint(draw, (0.95, 0.95, 0.93)),
                        segments=20,
                    )
                elif kind == "switch":
                    b = scene.add("switch", at, wall.yaw)
                    b.box("switch", (0.008, 0, 1.1), (0.016, 0.08, 0.08), paint(draw, (0.92, 0.92, 0.9)))
                    b.box("socket", (0.008, 0.1, 0.3), (0.016, 0.16, 0.08), paint(draw, (0.92, 0.92, 0.9)))
                elif kind == "shelf":
                    b = scene.add("wall shelf", at, wall.yaw, semantic="shelf", salience=0.4)
                    deep = draw.uniform(0.15, 0.3)
                    b.box("board", (deep / 2, 0, z), (deep, w, 0.025), wood(draw))
                    b.support((deep / 2, 0, z + 0.0125), (deep * 0.4, w * 0.85), "shelf")
                elif kind == "pipe":
                    b = scene.add("pipe", at, wall.yaw)
                    r, x = draw.uniform(0.015, 0.06), 0.08
                    if draw.chance(0.6):
                        b.rod("pipe", (x, 0, 0), (x, 0, self.height), r, metal(draw), segments=10)
                    else:
                        zz = draw.uniform(0.2, self.height - 0.2)
                        b.rod(
                            "pipe",
                            (x, -wall.length * 0.4, zz),
                            (x, wall.length * 0.4, zz),
                            r,
                            metal(draw),
                            segments=10,
                        )
                else:
                    b = scene.add("wall cabinet", at, wall.yaw, semantic="cabinet", salience=0.4)
                    b.box(
                        "body",
                        (0.15, 0, z + 0.1),
                        (0.3, w, h),
                        wood(draw) if draw.chance(0.5) else paint(draw),
                        bevel=0.005,
                    )
            for o in wall.openings:
                if o.kind in ("window", "gap") and o.bottom > 0.75 and draw.chance(0.35):
                    y = (o.low + o.high) / 2
                    at = wall.at(0.1, y)
                    width = min(1.6, o.high - o.low)
                    if self._free(*self._footprint(at, wall.yaw, 0.1, width)):
                        furniture.radiator(scene, draw, at, wall.yaw, 0.1, width)

    def _clutter(self) -> None:
        draw, scene = self.draw, self.scene
        for surface in list(scene.surfaces):
            if not self.room_left:
                break
            area = surface.size[0] * surface.size[1]
            density = draw.uniform(0.35, 1.0) if draw.chance(0.9) else 0.0
            count = int(
                density
                * {"desk": 13, "kitchen": 12, "table": 11, "shelf": 8, "floor": 3}.get(surface.kind, 5)
                * max(0.3, math.sqrt(area))
            )
            if surface.kind == "desk" and draw.chance(0.8):
                self._desk_set(surface)
            clutter.scatter(scene, draw, surface, count)
        floor = 0 if self.kind in ("bathroom",) else draw.integer(0, 6)
        for _ in range(floor):
            if not self.room_left:
                break
            x, y = draw.uniform(-0.47, 0.47) * self.width, draw.uniform(-0.47, 0.47) * self.depth
            if self._free(x - 0.3, y - 0.3, x + 0.3, y + 0.3):
                self.taken.append((x - 0.3, y - 0.3, x + 0.3, y + 0.3))
                draw.pick(clutter.FLOOR)(scene, draw, (x, y, 0.0), draw.angle())
        if draw.chance(0.3) and self.kind != "shapes":
            x, y = draw.uniform(-0.4, 0.4) * self.width, draw.uniform(-0.4, 0.4) * self.depth
            if self._free(x - 0.35, y - 0.35, x + 0.35, y + 0.35):
                if draw.chance(0.55):
                    creatures.person(scene, draw, (x, y, 0.0), draw.angle())
                else:
                    creatures.quadruped(scene, draw, (x, y, 0.0), draw.angle(), draw.pick(["cat", "dog"]))

    def _desk_set(self, surface: Surface) -> None:
        """Screen, keyboard and mouse as a person sits at them."""
        draw = self.draw
        c, s = math.cos(surface.yaw), math.sin(surface.yaw)

        def at(u: float, v: float) -> Vector:
            return (surface.centre[0] + c * u - s * v, surface.centre[1] + s * u + c * v, surface.centre[2])

        v = draw.uniform(-0.25, 0.25) * surface.size[1]
        count = draw.pick([1, 1, 2])
        for i in range(count):
            shift = (i - (count - 1) / 2) * 0.62
            clutter.monitor(
                self.scene,
                draw,
                at(-surface.size[0] * 0.3, v + shift),
                surface.yaw - shift * 0.3 + draw.normal(0, 0.08),
            )
        clutter.keyboard(self.scene, draw, at(surface.size[0] * 0.25, v), surface.yaw + draw.normal(0, 0.08))

    def _lamps(self) -> None:
        draw, scene = self.draw, self.scene
        h = self.height
        count = draw.integer(1, 2) if self.kind not in ("corridor", "hall") else draw.integer(2, 4)
        style = draw.pick(["panel", "tube", "bulb", "spot"])
        warm = draw.uniform(0, 1)
        tone = (1.0, 0.97 - 0.2 * warm, 0.93 - 0.42 * warm)
        on = draw.chance(0.75) or not scene.lights
        glow = glowing(draw, tone, 3.0 if on else 0.3)
        power = draw.uniform(1.0, 3.0) * (1 + 0.12 * self.width * self.depth / 4) / count
        for i in range(count):
            t = (i + 0.5) / count - 0.5
            x = draw.normal(0, 0.12) * self.width
            y = t * self.depth * 0.9 + draw.normal(0, 0.08) * self.depth
            x = min(max(x, -self.width / 2 + 0.3), self.width / 2 - 0.3)
            b = scene.add("ceiling lamp", (x, y, 0.0), semantic="light", salience=0.1)
            drop = 0.25
            if style == "panel":
                b.box("panel", (0, 0, h - 0.02), (draw.uniform(0.4, 0.7), draw.uniform(0.5, 1.2), 0.05), glow)
            elif style == "tube":
                b.box("tube", (0, 0, h - 0.05), (0.12, draw.uniform(0.8, 1.5), 0.08), glow, bevel=0.02)
            elif style == "bulb":
                drop = min(draw.uniform(0.4, 1.0), h - 1.9) if h > 2.4 else 0.3
                b.rod("cord", (0, 0, h), (0, 0, h - drop), 0.006, paint(draw, (0.05, 0.05, 0.05)), segments=5)
                s = draw.uniform(0.2, 0.45)
                if draw.chance(0.5):
                    b.cylinder("shade", (0, 0, h - drop - s * 0.3), s / 2, s * 0.6, paint(draw), ratio=0.5)
                    b.ball("bulb", (0, 0, h - drop - s * 0.28), (0.1, 0.1, 0.1), glow, detail=1)
                else:
                    b.ball("shade", (0, 0, h - drop), (s, s, s * draw.uniform(0.6, 1.0)), glow)
                drop += s * 0.6
            else:
                b.cylinder("spot", (0, 0, h - 0.06), 0.14, 0.06, glow, segments=16)
            if on:
                scene.lights.append(
                    Light(
                        (x, y, h - drop - 0.12),
                        (power * tone[0], power * tone[1], power * tone[2]),
                        draw.uniform(0.04, 0.3),
                    )
                )  # type: ignore[arg-type]
        if len(scene.lights) > 3:
            scene.lights.sort(key=lambda light: -sum(light.colour))
            del scene.lights[3:]
        level = (
            draw.uniform(0.15, 0.5)
            * sum(sum(light.colour) for light in scene.lights)
            / (3 + 0.5 * self.width * self.depth / 6)
        )
        base = sum(light.colour[0] for light in scene.lights) or 1.0
        mean = tuple(sum(light.colour[k] for light in scene.lights) / base for k in range(3))
        scene.ambient = (level, level * (0.5 + 0.5 * mean[1]), level * (0.5 + 0.5 * mean[2]))
        v = draw.uniform(0.8, 2.5) * max(level, 0.15) * 3
        scene.sky = Sky(
            brightness=v, clouds=draw.uniform(0, 1), cloud_texture=textures.choose(draw, "cloudy")
        )


def _any_rotation(draw: Draw) -> np.ndarray:
    return rotation_z(draw.angle()) @ rotation_x(draw.angle()) @ rotation_z(draw.angle())


def room(scene: Scene, draw: Draw) -> None:
    """Builds a room of a random kind."""
    _build(scene, draw, _WEIGHTS)


def furnished(scene: Scene, draw: Draw) -> None:
    """Builds a room with tables, worktops and shelves to stand at."""
    _build(scene, draw, _FURNISHED)


def _build(scene: Scene, draw: Draw, weights: tuple[float, ...]) -> None:
    scene.kind = draw.pick(KINDS, weights)
    Room(scene, draw, scene.kind).build()
