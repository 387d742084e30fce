"""Building-like objects: houses, blocks, shops and castles with windows, doors and roofs."""

from __future__ import annotations

import numpy as np

from vision3d.synthetic import primitives
from vision3d.synthetic.draw import Draw
from vision3d.synthetic.materials import (
    Material,
    any_colour,
    glass,
    jitter,
    paint,
    printed,
    shade,
    textured,
    wall_colour,
    wood,
)
from vision3d.synthetic.scene import Builder, Scene, Vector, rotation_z


def wall_material(draw: Draw) -> Material:
    """Plaster, brick, stone, concrete or boards for outside walls."""
    kind = draw.pick(["plaster", "brick", "stones", "concrete", "planks", "tiles"], [5, 4, 1.5, 2, 0.7, 0.5])
    c = jitter(draw, draw.pick([wall_colour(draw), (0.6, 0.3, 0.2), (0.75, 0.68, 0.55), (0.55, 0.53, 0.5)]))
    if kind == "plaster":
        c = wall_colour(draw)
    return textured(
        draw,
        kind,
        (c, shade(c, draw.uniform(0.65, 1.1)), shade((0.75, 0.73, 0.68), 0.9)),
        draw.uniform(1.0, 3.0),
    )


def roof_material(draw: Draw) -> Material:
    """Tiles, slate or sheet metal."""
    c = jitter(draw, draw.pick([(0.5, 0.22, 0.14), (0.2, 0.2, 0.23), (0.35, 0.3, 0.28), (0.25, 0.3, 0.28)]))
    return textured(
        draw, draw.pick(["roof", "roof", "corrugated", "plain"]), (c, shade(c, 0.7), c), draw.uniform(1.5, 3)
    )


def gable_roof(
    b: Builder,
    draw: Draw,
    z: float,
    depth: float,
    width: float,
    rise: float,
    material: Material,
    end: Material,
) -> None:
    """A ridge along y (the street) or x."""
    over = draw.uniform(0.1, 0.5)
    turned = draw.chance(0.4)
    span, along = (width, depth) if turned else (depth, width)
    inner = np.array([(-span / 2, 0.0), (span / 2, 0.0), (0.0, rise * span / (span + 2 * over))])
    turn = rotation_z(np.pi / 2) if turned else None
    b.part("gable", primitives.extrusion(inner), (0, 0, z), (1, along, 1), end, turn)
    for s in (-1.0, 1.0):
        slab = np.array(
            [
                (s * (span / 2 + over), -0.06),
                (s * (span / 2 + over), 0.08),
                (0.0, rise + 0.12),
                (0.0, rise - 0.02),
            ]
        )
        if s < 0:
            slab = slab[::-1]
        b.part("roof", primitives.extrusion(slab), (0, 0, z), (1, along + 2 * over, 1), material, turn)


def window_row(
    b: Builder,
    draw: Draw,
    x: float,
    y0: float,
    y1: float,
    z0: float,
    height: float,
    count: int,
    kit: WindowKit,
) -> None:
    """Windows side by side on the face at +x."""
    pitch = (y1 - y0) / count
    w, h = pitch * kit.width, height * kit.height
    for i in range(count):
        y, z = y0 + (i + 0.5) * pitch, z0 + height * (0.5 + kit.raise_)
        b.box("window", (x, y, z), (0.04, w, h), kit.pane, semantic="windowpane")
        f = kit.frame_width
        for s in (-1, 1):
            b.box("frame", (x + 0.03, y + s * (w / 2 + f / 2), z), (0.12, f, h + 2 * f), kit.frame)
        b.box("frame", (x + 0.03, y, z + h / 2 + f / 2), (0.12 + kit.ledge, w, f), kit.frame)
        b.box("sill", (x + 0.04, y, z - h / 2 - f / 2), (0.18 + kit.ledge, w + 2 * f + 0.1, f), kit.frame)
        if kit.cross:
            b.box("bar", (x + 0.03, y, z), (0.05, 0.06, h), kit.bar)
            b.box("bar", (x + 0.03, y, z + h * 0.15), (0.05, w, 0.06), kit.bar)
        if kit.shutters:
            for s in (-1, 1):
                b.box("shutter", (x + 0.03, y + s * (w * 0.75 + f), z), (0.05, w * 0.45, h), kit.shutter)


class WindowKit:
    """What all windows of one building share."""

    def __init__(self, draw: Draw) -> None:
        self.width = draw.uniform(0.3, 0.6)
        self.height = draw.uniform(0.45, 0.7)
        self.raise_ = draw.uniform(-0.03, 0.06)
        self.pane = glass(draw)
        self.frame = paint(
            draw,
            jitter(draw, draw.pick([(0.9, 0.9, 0.88), (0.75, 0.7, 0.6), (0.3, 0.25, 0.2), (0.5, 0.2, 0.15)])),
        )
        self.bar = paint(draw, draw.pick([(0.92, 0.92, 0.9), (0.2, 0.15, 0.1)]))
        self.frame_width = draw.uniform(0.06, 0.2)
        self.ledge = draw.uniform(0.0, 0.15)
        self.cross = draw.chance(0.6)
        self.shutters = draw.chance(0.2) and self.width < 0.42
        self.shutter = paint(draw)


def house(
    scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float, floors: int, detail: bool
) -> None:
    """A house or block whose front faces +x; ``detail`` gives the front real windows, not painted ones."""
    storey = draw.uniform(2.7, 3.5)
    height = floors * storey + draw.uniform(0.2, 0.8)
    walls = wall_material(draw)
    big = floors > 6
    b = scene.add(
        "building",
        at,
        yaw,
        semantic="skyscraper"
        if big
        else draw.pick(["building", "building", "house"])
        if floors < 4
        else "building",
        salience=0.7,
    )
    kit = WindowKit(draw)
    if detail:
        side = walls
    else:
        side = Material(
            textured(draw, "facade", ((0, 0, 0),) * 3, 1).texture,
            (walls.colours[0], shade(kit.pane.colours[0], 1.5), kit.frame.colours[0]),
            draw.uniform(2.2, 3.4) * draw.pick([2, 3]),
            specular=0.2,
            gloss=60,
        )
    b.box("wall", (0, 0, height / 2), (depth, width, height), side)
    front = depth / 2
    if detail:
        count = max(1, round(width / draw.uniform(2.0, 3.4)))
        shop = draw.chance(0.35)
        door = draw.integer(0, count - 1)
        pitch = width / count
        for f in range(floors):
            z = f * storey + 0.2
            if f == 0:
                if shop:
                    b.box(
                        "shop_window",
                        (front, 0, 1.5),
                        (0.08, width * 0.86, 2.0),
                        kit.pane,
                        semantic="windowpane",
                    )
                    c = any_colour(draw)
                    b.box(
                        "sign",
                        (front + 0.06, 0, 2.85),
                        (0.12, width * 0.88, 0.5),
                        textured(draw, "label", (c, (0.95, 0.95, 0.9), shade(c, 0.5)), 1, mapping="fit"),
                        semantic="signboard",
                    )
                    if draw.chance(0.5):
                        b.box(
                            "awning",
                            (front + 0.6, 0, 2.5),
                            (1.2, width * 0.8, 0.06),
                            textured(
                                draw, "stripes", (any_colour(draw), (0.92, 0.92, 0.9), any_colour(draw)), 1.5
                            ),
                            semantic="awning",
                            rotation=_slope(0.3),
                        )
                elif count > 1:
                    if door > 0:
                        window_row(
                            b, draw, front, -width / 2, -width / 2 + door * pitch, z, storey, door, kit
                        )
                    if door < count - 1:
                        window_row(
                            b,
                            draw,
                            front,
                            -width / 2 + (door + 1) * pitch,
                            width / 2,
                            z,
                            storey,
                            count - 1 - door,
                            kit,
                        )
                y = -width / 2 + (door + 0.5) * pitch
                b.box(
                    "door",
                    (front + 0.02, y, 1.1),
                    (0.1, 1.0, 2.2),
                    wood(draw) if draw.chance(0.5) else paint(draw),
                    semantic="door",
                )
                b.box(
                    "step",
                    (front + 0.25, y, 0.08),
                    (0.5, 1.5, 0.16),
                    textured(draw, "concrete", ((0.5, 0.5, 0.48),) * 3, 1),
                )
            else:
                window_row(b, draw, front, -width / 2, width / 2, z, storey, count, kit)
                if draw.chance(0.12):
                    rail = paint(draw)
                    b.box("balcony", (front + 0.5, 0, z), (1.0, width * 0.5, 0.15), walls)
                    b.box(
                        "railing",
                        (front + 0.97, 0, z + 0.55),
                        (0.05, width * 0.5, 0.9),
                        rail,
                        semantic="railing",
                    )
            if draw.chance(0.25):
                b.box("cornice", (front + 0.05, 0, z - 0.1), (0.2, width, 0.16), kit.frame)
    style = "flat" if big else draw.pick(["gable", "hip", "flat"], [3, 2, 2])
    roof = roof_material(draw)
    if style == "gable":
        gable_roof(b, draw, height, depth, width, min(depth, width) * draw.uniform(0.25, 0.5), roof, walls)
    elif style == "hip":
        hip = primitives.hipped(
            depth + 0.5, width + 0.5, draw.uniform(1.2, 3.0), draw.pick([0.25, 0.5, 0.02])
        )
        b.part("roof", hip, (0, 0, height), (1, 1, 1), roof)
    else:
        b.box("parapet", (0, 0, height + 0.15), (depth + 0.2, width + 0.2, 0.5), kit.frame)
    if style != "flat" and draw.chance(0.6):
        b.box("chimney", (0, draw.uniform(-0.3, 0.3) * width, height + 1.6), (0.6, 0.6, 2.4), walls)


def _slope(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def castle(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A palace or castle facing +x with wings, pavilions or round towers; returns its width."""
    storey = draw.uniform(3.6, 5.0)
    floors = draw.integer(2, 3)
    height = storey * floors
    c = jitter(draw, draw.pick([(0.82, 0.74, 0.6), (0.75, 0.72, 0.68), (0.7, 0.45, 0.33), (0.6, 0.58, 0.55)]))
    walls = textured(
        draw,
        draw.pick(["brick", "stones", "plaster", "concrete"]),
        (c, shade(c, 0.8), shade(c, 1.1)),
        draw.uniform(2, 4),
    )
    trim = textured(draw, "plaster", (shade(c, 1.15), shade(c, 0.95), c), 2)
    roof = roof_material(draw)
    kit = WindowKit(draw)
    kit.width, kit.height, kit.cross, kit.shutters = (
        draw.uniform(0.35, 0.5),
        draw.uniform(0.6, 0.75),
        True,
        False,
    )
    kit.frame = trim
    b = scene.add("castle", at, yaw, semantic="building", phrase="a castle", salience=2.0)
    main, depth = draw.uniform(16, 30), draw.uniform(9, 13)
    steep = draw.uniform(0.7, 1.3)

    def block(y: float, w: float, d: float, x: float, h: float, rise: float) -> None:
        b.box("wall", (x, y, h / 2), (d, w, h), walls)
        front = x + d / 2
        count = max(1, round(w / draw.uniform(2.4, 3.6)))
        for f in range(round(h / storey)):
            window_row(b, draw, front, y - w / 2, y + w / 2, f * storey + 0.3, storey, count, kit)
            b.box("cornice", (front, y, (f + 1) * storey), (0.5, w + 0.3, 0.35), trim)
        for s in (-1, 1):
            b.box("quoin", (front, y + s * (w / 2 - 0.3), h / 2), (0.25, 0.7, h), trim)
        b.part("roof", primitives.hipped(d + 0.6, w + 0.6, rise, 0.25), (x, y, h), (1, 1, 1), roof)
        for i in range(min(count, 5)):
            if rise > 2 and draw.chance(0.7):
                yd = y - w / 2 + (i + 0.5) * w / min(count, 5)
                b.box("dormer", (front - 0.7, yd, h + rise * 0.25), (1.6, 1.3, rise * 0.5), trim)
                b.box(
                    "window",
                    (front + 0.11, yd, h + rise * 0.25),
                    (0.04, 0.8, rise * 0.32),
                    kit.pane,
                    semantic="windowpane",
                )

    block(0, main, depth, 0, height, depth * 0.5 * steep)
    wing = draw.uniform(5, 8)
    if draw.chance(0.85):
        for s in (-1, 1):
            if draw.chance(0.65):
                out = draw.uniform(1.0, 5.0)
                tall = height + storey * draw.pick([0, 1])
                block(s * (main / 2 + wing / 2), wing, depth + out, out / 2, tall, wing * 0.55 * steep)
            else:
                r = wing * 0.42
                tall = height + draw.uniform(1, 5)
                spot = (depth / 2 - r * 0.3, s * (main / 2 + r * 0.5), 0.0)
                b.cylinder("tower", spot, r, tall, walls, segments=24)
                b.cylinder(
                    "tower_roof",
                    (spot[0], spot[1], tall),
                    r * 1.15,
                    r * 2.2 * steep,
                    roof,
                    ratio=0.0,
                    segments=24,
                )
                b.cylinder("cornice", (spot[0], spot[1], tall - 0.3), r * 1.12, 0.4, trim, segments=24)
                for f in range(round(tall / storey)):
                    b.box(
                        "window",
                        (spot[0] + r * 0.99, spot[1], f * storey + storey * 0.55),
                        (0.1, 0.9, storey * 0.45),
                        kit.pane,
                        semantic="windowpane",
                    )
    if draw.chance(0.6):
        block(0, draw.uniform(4, 7), depth + 1.5, 0.75, height + storey * draw.pick([0, 1]), 4 * steep)
    b.box("door", (depth / 2 + 1.52, 0, 1.6), (0.1, 1.8, 3.2), wood(draw), semantic="door")
    for i in range(3):
        b.box(
            "step",
            (depth / 2 + 1.6 + 0.4 * (3 - i), 0, 0.09 + 0.18 * i),
            (0.9 * (3 - i), 5, 0.18),
            trim,
            semantic="stairs",
        )
    for _ in range(draw.integer(1, 4)):
        b.box(
            "chimney",
            (draw.uniform(-0.2, 0.2) * depth, draw.uniform(-0.45, 0.45) * main, height + depth * 0.5 * steep),
            (1.0, 1.4, 4.5),
            walls,
        )
    return main + 2 * wing


def billboard(scene: Scene, draw: Draw, at: Vector, yaw: float) -> None:
    """A large poster on posts; it faces +x."""
    b = scene.add("billboard", at, yaw, semantic="signboard", salience=0.4)
    w, h = draw.uniform(2.5, 5), draw.uniform(1.8, 3)
    for s in (-1, 1):
        b.rod(
            "post",
            (0, s * w * 0.35, 0),
            (0, s * w * 0.35, 1.2 + h),
            0.07,
            paint(draw, (0.4, 0.4, 0.4)),
            segments=8,
        )
    b.box("face", (0.08, 0, 1.2 + h / 2), (0.06, w, h), printed(draw, "poster"))
