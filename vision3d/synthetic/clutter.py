"""Small things that lie and stand on surfaces: books, cups, bottles, boxes, screens, keyboards, plants."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from vision3d.synthetic import primitives
from vision3d.synthetic.draw import Draw
from vision3d.synthetic.materials import (
    Material,
    any_colour,
    fabric,
    glowing,
    jitter,
    metal,
    named_colour,
    paint,
    printed,
    shade,
    textured,
    wood,
)
from vision3d.synthetic.scene import Scene, Surface, Vector, rotation_x, rotation_y, rotation_z

Maker = Callable[[Scene, Draw, Vector, float], float]
"""Builds at a position with a yaw and returns the radius of the ground it covers."""


def book(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """One to four books lying on each other."""
    z = at[2]
    for _ in range(draw.pick([1, 1, 1, 2, 3, 4])):
        w, d, h = draw.uniform(0.11, 0.22), draw.uniform(0.17, 0.3), draw.uniform(0.006, 0.045)
        b = scene.add("book", (at[0], at[1], z), yaw + draw.normal(0, 0.15), semantic="book", salience=0.2)
        b.box("cover", (0, 0, h / 2), (w, d, h), printed(draw, draw.pick(["poster", "page", "label"])))
        z += h
    return 0.18


def papers(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """Loose sheets and leaflets."""
    for i in range(draw.integer(1, 4)):
        w, d = draw.pick([(0.21, 0.297), (0.15, 0.21), (0.1, 0.21)])
        spot = (at[0] + draw.normal(0, 0.06), at[1] + draw.normal(0, 0.06), at[2] + 0.0015 * i)
        b = scene.add("paper", spot, yaw + draw.normal(0, 0.5), semantic="book", salience=0.05)
        b.box("sheet", (0, 0, 0.001), (w, d, 0.002), printed(draw, draw.pick(["page", "page", "poster"])))
    return 0.2


def cup(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A mug with a handle, or a glass-like beaker."""
    word, colour = named_colour(draw)
    r, h = draw.uniform(0.03, 0.05), draw.uniform(0.07, 0.13)
    taper = draw.uniform(0.7, 1.0)
    mug = draw.chance(0.7)  # with a handle
    b = scene.add("mug" if mug else "cup", at, yaw, semantic="pot", phrase=f"a {word} cup", salience=0.3)
    wall = 0.12
    shape = primitives.lathe(
        (
            (0, -0.5),
            (0.5 * taper, -0.5),
            (0.5 * taper, -0.5),
            (0.5, 0.5),
            (0.5, 0.5),
            (0.5 - wall / 2, 0.5),
            (0.5 - wall / 2, 0.5),
            (0.4 * taper, -0.35),
            (0, -0.35),
        )
        if draw.chance(0.5)
        else (
            (0, -0.5),
            (0.35, -0.5),
            (0.5, -0.2),
            (0.5, 0.5),
            (0.45, 0.5),
            (0.45, -0.15),
            (0, -0.3),
        )
    )
    material = printed(draw, "label", "wrap") if draw.chance(0.2) else paint(draw, colour, True)
    b.part("body", shape, (0, 0, h / 2), (2 * r, 2 * r, h), material)
    if mug:
        turn = rotation_x(math.pi / 2)
        b.part(
            "handle",
            primitives.torus(0.25, 12, 6),
            (r * 1.1, 0, h * 0.5),
            (h * 0.6, h * 0.6, h * 0.35),
            material,
            turn,
        )
        b.keypoint("handle", (r * 1.1 + h * 0.3, 0, h * 0.5))
    b.keypoint("rim_back", (-r, 0, h))
    b.keypoint("base", (-r * taper, 0, 0.005))
    return r * 2


_BOTTLES: tuple[primitives.Profile, ...] = (
    ((0, -0.5), (0.5, -0.5), (0.5, -0.5), (0.5, 0.1), (0.2, 0.28), (0.18, 0.5), (0, 0.5)),
    (
        (0, -0.5),
        (0.45, -0.5),
        (0.5, -0.42),
        (0.5, 0.0),
        (0.22, 0.3),
        (0.22, 0.48),
        (0.26, 0.48),
        (0.26, 0.5),
        (0, 0.5),
    ),
    ((0, -0.5), (0.5, -0.5), (0.5, -0.5), (0.5, 0.3), (0.35, 0.36), (0.35, 0.36), (0.35, 0.5), (0, 0.5)),
)
_VASES: tuple[primitives.Profile, ...] = (
    (
        (0, -0.5),
        (0.25, -0.5),
        (0.48, -0.2),
        (0.5, 0.0),
        (0.3, 0.3),
        (0.25, 0.4),
        (0.38, 0.5),
        (0.33, 0.5),
        (0.2, 0.35),
        (0, 0.3),
    ),
    ((0, -0.5), (0.35, -0.5), (0.5, 0.5), (0.44, 0.5), (0.4, 0.38), (0, 0.36)),
    ((0, -0.5), (0.3, -0.5), (0.5, -0.1), (0.46, 0.25), (0.3, 0.5), (0.25, 0.5), (0.3, 0.3), (0, 0.2)),
)


def bottle(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A bottle, jar or spray can with a label."""
    word, colour = named_colour(draw)
    h = draw.uniform(0.12, 0.34)
    r = h * draw.uniform(0.12, 0.2)
    b = scene.add("bottle", at, yaw, semantic="bottle", phrase=f"a {word} bottle", salience=0.3)
    b.part(
        "body",
        primitives.lathe(draw.pick(_BOTTLES)),
        (0, 0, h / 2),
        (2 * r, 2 * r, h),
        paint(draw, colour, True),
    )
    if draw.chance(0.7):
        label = primitives.frustum(1.0, 16, False)
        b.part("label", label, (0, 0, h * 0.3), (2.03 * r, 2.03 * r, h * 0.3), printed(draw, "label", "wrap"))
    b.cylinder("cap", (0, 0, h), r * 0.42, h * 0.05, paint(draw))
    b.keypoint("cap", (0, 0, h * 1.05))
    b.keypoint("base", (r, 0, 0.005))
    return r * 2


def can(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A printed tin, standing."""
    word, colour = named_colour(draw)
    r, h = draw.uniform(0.025, 0.06), draw.uniform(0.06, 0.16)
    b = scene.add("can", at, yaw, semantic="pot", phrase=f"a {word} can", salience=0.2)
    label = textured(
        draw, "label", (colour, any_colour(draw), (0.95, 0.95, 0.95)), 1, shiny=0.4, mapping="wrap"
    )
    b.part("body", primitives.frustum(1.0, 20, False), (0, 0, h / 2), (2 * r, 2 * r, h), label)
    b.cylinder("lid", (0, 0, h - 0.004), r * 0.98, 0.004, metal(draw))
    return r * 2


def carton(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A package with print, or a plain box."""
    w, d, h = draw.uniform(0.06, 0.3), draw.uniform(0.04, 0.22), draw.uniform(0.05, 0.32)
    word, colour = named_colour(draw)
    b = scene.add("box", at, yaw, semantic="box", phrase=f"a {word} box", salience=0.2)
    if draw.chance(0.6):
        other = any_colour(draw)
        material = textured(
            draw, draw.pick(["poster", "label"]), (colour, other, any_colour(draw)), 1, mapping="fit"
        )
    else:
        material = paint(draw, colour)
    b.box("box", (0, 0, h / 2), (w, d, h), material)
    return math.hypot(w, d) / 2


def cardboard(scene: Scene, draw: Draw, at: Vector, yaw: float, size: float = 0.4) -> float:
    """A cardboard box with tape, closed or open."""
    w, d, h = (size * draw.uniform(0.6, 1.4) for _ in range(3))
    tone = jitter(draw, (0.62, 0.47, 0.3))
    board = textured(draw, "plaster", (tone, shade(tone, 0.85), tone), 0.8)
    b = scene.add("cardboard box", at, yaw, semantic="box", salience=0.3)
    if draw.chance(0.6):
        b.box("body", (0, 0, h / 2), (w, d, h), board)
        b.box("tape", (0, 0, h / 2), (0.05, d * 1.004, h * 1.004), paint(draw, (0.7, 0.55, 0.35), True))
        b.support((0, 0, h), (w * 0.8, d * 0.8), "floor")
    else:
        t = 0.012
        b.box("bottom", (0, 0, t), (w, d, 2 * t), board)
        for s in (-1.0, 1.0):
            b.box("side", (s * (w / 2 - t / 2), 0, h / 2), (t, d, h), board)
            b.box("side", (0, s * (d / 2 - t / 2), h / 2), (w, t, h), board)
            tilt = draw.uniform(0.3, 1.6) * s
            flap = (s * (w / 2 + 0.2 * w * abs(math.sin(tilt))), 0, h + 0.2 * w * math.cos(tilt))
            b.box("flap", flap, (t, d, 0.4 * w), board, rotation=rotation_y(tilt))
    return math.hypot(w, d) / 2


def bowl(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A bowl or plate, sometimes with fruit."""
    r = draw.uniform(0.07, 0.16)
    h = r * draw.pick([0.15, 0.25, 0.6, 0.9])
    shape = primitives.lathe(
        (
            (0, -0.5),
            (0.25, -0.5),
            (0.42, -0.1),
            (0.5, 0.5),
            (0.47, 0.5),
            (0.38, 0.0),
            (0.2, -0.3),
            (0, -0.35),
        ),
        20,
    )
    b = scene.add("bowl", at, yaw, semantic="plate", salience=0.2)
    b.part("bowl", shape, (0, 0, h / 2), (2 * r, 2 * r, h), paint(draw, glossy=True))
    if h > 0.5 * r and draw.chance(0.5):
        for i in range(draw.integer(2, 5)):
            angle = i * 2.1
            s = r * draw.uniform(0.5, 0.8)
            spot = (0.4 * r * math.cos(angle), 0.4 * r * math.sin(angle), h * 0.75 + 0.1 * s)
            colour = draw.pick([(0.8, 0.1, 0.08), (0.9, 0.55, 0.05), (0.5, 0.7, 0.15), (0.95, 0.85, 0.2)])
            b.ball("fruit", spot, (s, s, s * 0.9), paint(draw, colour, True), detail=1, semantic="food")
    return r


def monitor(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A flat computer screen on a foot; it faces +x."""
    w = draw.uniform(0.38, 0.7)
    h = w * draw.uniform(0.56, 0.8)
    lift = draw.uniform(0.06, 0.18)
    case = paint(draw, draw.pick([(0.05, 0.05, 0.06), (0.75, 0.75, 0.76), (0.3, 0.3, 0.32)]))
    b = scene.add("monitor", at, yaw, semantic="monitor", salience=0.6)
    tilt = rotation_y(draw.uniform(-0.2, 0.05))
    b.box("case", (0, 0, lift + h / 2), (draw.uniform(0.02, 0.06), w, h), case, bevel=0.006, rotation=tilt)
    if draw.chance(0.55):
        face = glowing(
            draw, draw.pick([(0.85, 0.9, 0.95), (0.2, 0.35, 0.6), any_colour(draw)]), 0.8, "screen"
        )
    else:
        face = textured(draw, "plain", ((0.02, 0.02, 0.025),) * 3, 1, shiny=0.9, mapping="fit")
    offset = tilt @ np.array([0.031, 0, 0.0])
    b.box(
        "screen",
        (float(offset[0]), 0, lift + h / 2 + float(offset[2])),
        (0.004, w - 0.03, h - 0.03),
        face,
        rotation=tilt,
        semantic="screen",
    )
    b.box("stem", (-0.03, 0, lift * 0.6), (0.03, 0.05, lift * 1.2), case)
    b.cylinder("foot", (-0.02, 0, 0), draw.uniform(0.09, 0.13), 0.015, case)
    for name, sy, sz in (
        ("top_left", 1, 1),
        ("top_right", -1, 1),
        ("bottom_left", 1, 0),
        ("bottom_right", -1, 0),
    ):
        b.keypoint(name, (0.02, sy * (w / 2 - 0.01), lift + sz * h))
    return w / 2


def laptop(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """An open laptop; its screen faces +x."""
    w, d = draw.uniform(0.3, 0.4), draw.uniform(0.21, 0.27)
    case = paint(draw, draw.pick([(0.7, 0.7, 0.72), (0.1, 0.1, 0.11), (0.45, 0.45, 0.47)]))
    b = scene.add("laptop", at, yaw, semantic="computer", salience=0.5)
    b.box("base", (0, 0, 0.009), (d, w, 0.018), case, bevel=0.004)
    keys = textured(
        draw, "keys", ((0.03, 0.03, 0.03), (0.15, 0.15, 0.16), (0.9, 0.9, 0.9)), 1, mapping="fit", swap=True
    )
    b.box("keyboard", (-d * 0.15, 0, 0.0185), (d * 0.5, w * 0.9, 0.003), keys)
    angle = draw.uniform(-0.5, -0.1)
    turn = rotation_y(angle)
    up = turn @ np.array([0.0, 0.0, d / 2])
    centre = (-d / 2 + float(up[0]), 0.0, 0.018 + float(up[2]))
    b.box("lid", centre, (0.01, w, d), case, rotation=turn)
    face = glowing(draw, any_colour(draw), draw.uniform(0.3, 1), "screen")
    b.box(
        "screen",
        (centre[0] + 0.0052, 0, centre[2]),
        (0.002, w * 0.93, d * 0.9),
        face,
        rotation=turn,
        semantic="screen",
    )
    return w / 2


def keyboard(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A keyboard, and often a mouse beside it."""
    w, d = draw.uniform(0.36, 0.48), draw.uniform(0.13, 0.18)
    tone = draw.pick([(0.06, 0.06, 0.07), (0.85, 0.84, 0.8), (0.4, 0.4, 0.42)])
    legend = (0.9, 0.9, 0.9) if tone[0] < 0.5 else (0.1, 0.1, 0.1)
    b = scene.add("keyboard", at, yaw, semantic=None, salience=0.3)
    keys = textured(draw, "keys", (shade(tone, 0.5), tone, legend), 1, mapping="fit", swap=True)
    b.box("frame", (0, 0, 0.011), (d, w, 0.022), paint(draw, tone), bevel=0.006)
    b.box("keys", (0, 0, 0.0225), (d * 0.85, w * 0.95, 0.006), keys)
    if draw.chance(0.7):
        m = scene.add(
            "mouse", (at[0] - 0.32 * math.sin(yaw), at[1] + 0.32 * math.cos(yaw), at[2]), yaw, semantic=None
        )
        m.ball("mouse", (0, 0, 0.01), (0.11, 0.065, 0.05), paint(draw, tone))
    return w / 2


def phone(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A desk telephone."""
    tone = draw.pick([(0.1, 0.1, 0.11), (0.8, 0.78, 0.72)])
    case = paint(draw, tone)
    b = scene.add("telephone", at, yaw, semantic=None, salience=0.2)
    outline = np.array([(-0.1, 0), (0.1, 0), (0.1, 0.02), (-0.1, 0.07)])
    b.part("body", primitives.extrusion(outline), (0, 0, 0), (1, 0.18, 1), case)
    b.limb("handset", (-0.08, 0.06, 0.075), (0.07, 0.06, 0.05), 0.022, case)
    b.box("keys", (0.03, -0.03, 0.05), (0.1, 0.08, 0.005), printed(draw, "page"), rotation=rotation_y(0.24))
    return 0.14


def tin_of_pens(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A beaker with pens."""
    b = scene.add("pen holder", at, yaw, semantic=None, salience=0.1)
    b.cylinder("beaker", (0, 0, 0), 0.04, 0.1, paint(draw), segments=12)
    for _ in range(draw.integer(2, 5)):
        a, tilt = draw.angle(), draw.uniform(0.005, 0.035)
        tip = (2.5 * tilt * math.cos(a), 2.5 * tilt * math.sin(a), draw.uniform(0.14, 0.19))
        b.rod(
            "pen",
            (tilt * math.cos(a) * 0.5, tilt * math.sin(a) * 0.5, 0.1),
            tip,
            0.004,
            paint(draw),
            segments=6,
        )
    return 0.05


def tape_roll(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A lying ring."""
    r = draw.uniform(0.04, 0.08)
    h = draw.uniform(0.02, 0.06)
    b = scene.add("roll of tape", at, yaw, semantic=None, salience=0.1)
    inner = 0.32
    ring: primitives.Profile = (
        (inner, -0.5),
        (0.5, -0.5),
        (0.5, -0.5),
        (0.5, 0.5),
        (0.5, 0.5),
        (inner, 0.5),
        (inner, 0.5),
        (inner, -0.5),
    )
    b.part("ring", primitives.lathe(ring, 20, False), (0, 0, h / 2), (2 * r, 2 * r, h), paint(draw))
    return r


def ball(scene: Scene, draw: Draw, at: Vector, yaw: float, size: float | None = None) -> float:
    """A toy or sports ball."""
    word, colour = named_colour(draw)
    s = size or draw.uniform(0.04, 0.12)
    kind = draw.pick(["plain", "stripes", "dots", "checker"])
    b = scene.add("ball", at, yaw, semantic="ball", phrase=f"a {word} ball", salience=0.3)
    b.ball(
        "ball",
        (0, 0, s / 2),
        (s, s, s),
        textured(draw, kind, (colour, any_colour(draw), any_colour(draw)), s, shiny=0.3),
    )
    return s / 2


def toy(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A sitting plush animal."""
    s = draw.uniform(0.08, 0.25)
    coat = fabric(draw)
    b = scene.add("plush toy", at, yaw, semantic="plaything", salience=0.4)
    b.ball("body", (0, 0, 0.4 * s), (0.6 * s, 0.65 * s, 0.85 * s), coat)
    b.ball("head", (0.08 * s, 0, 0.98 * s), (0.55 * s, 0.58 * s, 0.5 * s), coat)
    b.ball("snout", (0.33 * s, 0, 0.93 * s), (0.25 * s, 0.24 * s, 0.2 * s), fabric(draw), detail=1)
    dark = paint(draw, (0.03, 0.03, 0.03), True)
    for side, sy in (("left", 1), ("right", -1)):
        b.ball(f"{side}_ear", (0.05 * s, sy * 0.25 * s, 1.2 * s), (0.1 * s, 0.2 * s, 0.2 * s), coat, detail=1)
        b.ball(f"{side}_eye", (0.33 * s, sy * 0.11 * s, 1.04 * s), (0.06 * s,) * 3, dark, detail=1)
        b.limb(
            f"{side}_arm",
            (0.05 * s, sy * 0.3 * s, 0.62 * s),
            (0.28 * s, sy * 0.36 * s, 0.35 * s),
            0.09 * s,
            coat,
        )
        b.limb(
            f"{side}_leg",
            (0.15 * s, sy * 0.2 * s, 0.11 * s),
            (0.5 * s, sy * 0.28 * s, 0.11 * s),
            0.11 * s,
            coat,
        )
        b.keypoint(f"{side}_ear", (0.05 * s, sy * 0.25 * s, 1.3 * s))
        b.keypoint(f"{side}_hand", (0.33 * s, sy * 0.38 * s, 0.35 * s))
        b.keypoint(f"{side}_foot", (0.6 * s, sy * 0.28 * s, 0.11 * s))
    b.keypoint("nose", (0.45 * s, 0, 0.93 * s))
    return 0.5 * s


def vase(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A vase, often with a plant."""
    return potted_plant(scene, draw, at, yaw, draw.uniform(0.15, 0.35))


def small_plant(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A plant for a desk."""
    return potted_plant(scene, draw, at, yaw, draw.uniform(0.15, 0.5))


def potted_plant(scene: Scene, draw: Draw, at: Vector, yaw: float, height: float | None = None) -> float:
    """A pot with leaves that bend outwards."""
    total = height or draw.uniform(0.2, 1.6)
    pot_h = min(total * draw.uniform(0.25, 0.5), 0.4)
    r = pot_h * draw.uniform(0.35, 0.6)
    b = scene.add("potted plant", at, yaw, semantic="plant", salience=0.4)
    pot = paint(draw, draw.pick([(0.65, 0.32, 0.2), (0.9, 0.9, 0.88), any_colour(draw)]))
    b.part(
        "pot",
        primitives.lathe(draw.pick(_VASES)),
        (0, 0, pot_h / 2),
        (2 * r, 2 * r, pot_h),
        pot,
        semantic="vase",
    )
    b.part(
        "leaves",
        leaf_cluster(draw, total - pot_h * 0.8, r),
        (0, 0, pot_h * 0.8),
        (1, 1, 1),
        leaf_material(draw),
    )
    return r * 1.2


def leaf_material(draw: Draw) -> Material:
    """Green of plants, or rarely of autumn."""
    tone = draw.pick(
        [(0.12, 0.32, 0.08), (0.25, 0.45, 0.12), (0.08, 0.22, 0.1), (0.5, 0.4, 0.1)], [4, 3, 2, 0.5]
    )
    c = jitter(draw, tone)
    return textured(
        draw,
        draw.pick(["cloudy", "stripes"]),
        (c, shade(c, 1.5), shade(c, 0.6)),
        0.4,
        shiny=draw.uniform(0, 0.5),
    )


def leaf_cluster(draw: Draw, height: float, spread: float, style: str | None = None) -> primitives.Primitive:
    """Leaves that rise from the origin: blades, fern-like arcs or a bush."""
    g = draw.generator
    style = style or draw.pick(["blades", "arcs", "bush"])
    count = draw.integer(14, 40)
    a = g.random(count) * 2 * math.pi
    outward = np.stack([np.cos(a), np.sin(a), np.zeros(count)], 1)
    sideways = np.stack([-np.sin(a), np.cos(a), np.zeros(count)], 1)
    up = np.array([0, 0, 1.0])
    if style == "blades":
        base = outward * spread * 0.4 * g.random((count, 1))
        tip = (
            base
            + up * height * (0.5 + 0.5 * g.random((count, 1)))
            + outward * height * 0.5 * g.random((count, 1))
        )
        width = sideways * height * draw.uniform(0.03, 0.09)
        return primitives.leaves(base, tip, width)
    if style == "arcs":
        lean = g.random((count, 1)) * 0.9 + 0.1
        reach = height * (0.6 + 0.4 * g.random((count, 1)))
        mid = up * reach * 0.8 + outward * reach * 0.35 * lean
        tip = mid + outward * reach * 0.6 * lean + up * reach * (0.2 - 0.6 * lean)
        width = sideways * height * draw.uniform(0.04, 0.1)
        return primitives.leaves(
            np.concatenate([np.zeros_like(mid), mid * 0.97]),
            np.concatenate([mid, tip]),
            np.concatenate([width, width]),
        )
    count *= 2
    direction = g.standard_normal((count, 3))
    direction[:, 2] = np.abs(direction[:, 2]) * 0.8
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    base = direction * height * 0.5 * (0.4 + 0.6 * g.random((count, 1))) + up * height * 0.35
    length = height * draw.uniform(0.12, 0.3)
    wobble = g.standard_normal((count, 3)) * 0.5
    tip = base + (direction + wobble) * length
    across = np.cross(direction + wobble, g.standard_normal((count, 3)))
    across *= 0.3 * length / np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 1e-9)
    return primitives.leaves(base, tip, across)


def desk_lamp(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A jointed lamp or a lamp with a shade."""
    b = scene.add("desk lamp", at, yaw, semantic="lamp", salience=0.4)
    body = metal(draw) if draw.chance(0.5) else paint(draw)
    b.cylinder("foot", (0, 0, 0), 0.09, 0.02, body)
    if draw.chance(0.5):
        h = draw.uniform(0.2, 0.35)
        b.rod("stem", (0, 0, 0.02), (0, 0, h), 0.012, body, segments=8)
        b.cylinder(
            "shade",
            (0, 0, h),
            draw.uniform(0.1, 0.17),
            h * 0.6,
            glowing(draw, (1, 0.92, 0.75), 0.9),
            ratio=0.6,
        )
        b.keypoint("shade_top", (0, 0, 1.6 * h))
    else:
        elbow = (-draw.uniform(0.05, 0.15), 0.0, draw.uniform(0.25, 0.35))
        head = (draw.uniform(0.05, 0.2), 0.0, elbow[2] + draw.uniform(0.0, 0.15))
        b.rod("stem", (0, 0, 0.02), elbow, 0.01, body, segments=6)
        b.rod("stem", elbow, head, 0.01, body, segments=6)
        b.rod("shade", head, (head[0] + 0.08, 0, head[2] - 0.1), 0.03, body, ratio=2.5)
        b.keypoint("shade_top", head)
    b.keypoint("foot", (0.08, 0, 0.01))
    return 0.12


def crate(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """An open plastic crate or basket with things in it."""
    w, d, h = draw.uniform(0.25, 0.45), draw.uniform(0.2, 0.35), draw.uniform(0.1, 0.28)
    word, colour = named_colour(draw)
    material = (
        paint(draw, colour)
        if draw.chance(0.6)
        else textured(draw, "cloth", (colour, shade(colour, 0.5), colour), 0.1)
    )
    b = scene.add("basket", at, yaw, semantic="basket", phrase=f"a {word} basket", salience=0.3)
    t = 0.012
    b.box("bottom", (0, 0, t), (w, d, 2 * t), material)
    for s in (-1.0, 1.0):
        b.box("wall", (s * (w - t) / 2, 0, h / 2), (t, d, h), material)
        b.box("wall", (0, s * (d - t) / 2, h / 2), (w, t, h), material)
    for _ in range(draw.integer(0, 4)):
        s = draw.uniform(0.06, 0.16)
        spot = (draw.uniform(-0.3, 0.3) * w, draw.uniform(-0.3, 0.3) * d, 2 * t + s / 2)
        b.box(
            "content",
            spot,
            (s * draw.uniform(0.5, 1.2), s, s),
            printed(draw),
            rotation=rotation_z(draw.angle()),
        )
    return math.hypot(w, d) / 2


def bag(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A crumpled bag or cushion-like lump."""
    s = draw.uniform(0.2, 0.5)
    bumps = np.column_stack(
        [
            draw.generator.normal(0, 3.0, (5, 3)),
            draw.generator.random(5) * 6,
            np.full(5, draw.uniform(0.03, 0.08)),
        ]
    )
    b = scene.add("bag", at, yaw, semantic="bag", salience=0.3)
    material = paint(draw) if draw.chance(0.5) else fabric(draw)
    h = s * draw.uniform(0.5, 1.0)
    b.part("bag", primitives.blob(bumps), (0, 0, h * 0.45), (s, s * 0.7, h), material)
    return s * 0.55


def standing_frame(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A picture frame or leaflet that leans back; it faces +x."""
    w, h = draw.uniform(0.1, 0.25), draw.uniform(0.12, 0.32)
    lean = rotation_y(-draw.uniform(0.15, 0.4))
    b = scene.add("picture frame", at, yaw, semantic="poster", salience=0.1)
    up = lean @ np.array([0, 0, h / 2])
    b.box("frame", (float(up[0]), 0, float(up[2])), (0.015, w, h), wood(draw), rotation=lean)
    b.box(
        "picture",
        (float(up[0]) + 0.008, 0, float(up[2])),
        (0.004, w * 0.9, h * 0.92),
        printed(draw, draw.pick(["poster", "landscape", "page"])),
        rotation=lean,
    )
    return w / 2


def pot(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A cooking pot or kettle with handles."""
    r, h = draw.uniform(0.08, 0.14), draw.uniform(0.08, 0.2)
    body = metal(draw) if draw.chance(0.6) else paint(draw, glossy=True)
    b = scene.add("pot", at, yaw, semantic="pot", salience=0.2)
    b.cylinder("body", (0, 0, 0), r, h, body, segments=20)
    b.cylinder("lid", (0, 0, h), r * 1.02, 0.02, body, ratio=0.75)
    b.ball("knob", (0, 0, h + 0.03), (0.03, 0.03, 0.025), paint(draw), detail=1)
    for s in (-1.0, 1.0):
        b.limb(
            "handle",
            (0, s * r, h * 0.8),
            (0, s * (r + 0.05), h * 0.8),
            0.012,
            paint(draw, (0.05, 0.05, 0.05)),
        )
    return r * 1.3


def microwave(scene: Scene, draw: Draw, at: Vector, yaw: float) -> float:
    """A microwave oven or a toaster-like appliance; it faces +x."""
    w, d, h = draw.uniform(0.25, 0.5), draw.uniform(0.2, 0.35), draw.uniform(0.2, 0.3)
    case = draw.pick([paint(draw, (0.9, 0.9, 0.9)), paint(draw, (0.06, 0.06, 0.07), True), metal(draw)])
    b = scene.add("microwave oven", at, yaw, semantic="microwave", salience=0.2)
    b.box("case", (0, 0, h / 2), (d, w, h), case, bevel=0.012)
    dark = textured(draw, "plain", ((0.04, 0.04, 0.05),) * 3, 1, shiny=0.8)
    b.box("window", (d / 2, w * 0.1, h / 2), (0.01, w * 0.62, h * 0.7), dark)
    b.box("panel", (d / 2, -w * 0.36, h / 2), (0.012, w * 0.18, h * 0.8), printed(draw, "page"))
    return math.hypot(w, d) / 2


DESK: tuple[Maker, ...] = (
    monitor,
    monitor,
    keyboard,
    keyboard,
    laptop,
    papers,
    papers,
    papers,
    book,
    book,
    cup,
    cup,
    tin_of_pens,
    phone,
    desk_lamp,
    bottle,
    can,
    tape_roll,
    carton,
    small_plant,
    toy,
    standing_frame,
    bowl,
)
TABLE: tuple[Maker, ...] = (
    papers,
    papers,
    book,
    book,
    cup,
    cup,
    bowl,
    bottle,
    bottle,
    vase,
    crate,
    can,
    carton,
    toy,
    ball,
    laptop,
    tape_roll,
)
KITCHEN: tuple[Maker, ...] = (
    bottle,
    bottle,
    cup,
    bowl,
    bowl,
    pot,
    pot,
    microwave,
    microwave,
    carton,
    carton,
    can,
    standing_frame,
    standing_frame,
    papers,
    vase,
    crate,
    book,
)
SHELF: tuple[Maker, ...] = (
    book,
    carton,
    carton,
    bottle,
    can,
    toy,
    ball,
    vase,
    bowl,
    standing_frame,
    crate,
    tape_roll,
)
FLOOR: tuple[Maker, ...] = (cardboard, cardboard, crate, bag, bag, ball, carton, potted_plant, toy)
BY_KIND: dict[str, tuple[Maker, ...]] = {
    "desk": DESK,
    "table": TABLE,
    "kitchen": KITCHEN,
    "shelf": SHELF,
    "floor": FLOOR,
}


def scatter(
    scene: Scene, draw: Draw, surface: Surface, count: int, kinds: tuple[Maker, ...] | None = None
) -> int:
    """Puts up to ``count`` things on a surface so that they do not stand in each other; returns how many.

    Things with a front look along the surface's own +x, give or take.
    """
    makers = kinds or BY_KIND.get(surface.kind, TABLE)
    c, s = math.cos(surface.yaw), math.sin(surface.yaw)
    taken: list[tuple[float, float, float]] = []
    for _ in range(count):
        for _attempt in range(4):
            u = draw.uniform(-0.5, 0.5) * surface.size[0]
            v = draw.uniform(-0.5, 0.5) * surface.size[1]
            room = 0.1 if surface.kind != "floor" else 0.3
            if all(math.hypot(u - a, v - b) > r + room for a, b, r in taken):
                break
        else:
            continue
        at = (surface.centre[0] + c * u - s * v, surface.centre[1] + s * u + c * v, surface.centre[2])
        turn = draw.normal(0, 0.35) if draw.chance(0.75) else draw.angle()
        radius = draw.pick(makers)(scene, draw, at, surface.yaw + turn)
        taken.append((u, v, radius))
    return len(taken)
