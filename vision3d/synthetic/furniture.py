"""Furniture-like objects of named parts. They face +x with their back at -x, as against a wall.

Every maker takes the depth (x) and width (y) of the ground it may cover, in metres, so that a room can be
planned before anything is built.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vision3d.synthetic import primitives
from vision3d.synthetic.clutter import scatter
from vision3d.synthetic.draw import Draw
from vision3d.synthetic.materials import (
    Material,
    any_colour,
    fabric,
    glowing,
    leather,
    metal,
    named_colour,
    paint,
    printed,
    shade,
    textured,
    wood,
)
from vision3d.synthetic.scene import Builder, Scene, Surface, Vector, rotation_x, rotation_y

Maker = Callable[[Scene, Draw, Vector, float, float, float], None]


def _legs(
    b: Builder,
    draw: Draw,
    material: Material,
    depth: float,
    width: float,
    height: float,
    keypoints: bool = True,
) -> None:
    thick = draw.uniform(0.025, 0.09)
    round_legs = draw.chance(0.4)
    splay = draw.uniform(0, 0.05) if draw.chance(0.3) else 0.0
    inset = thick / 2 + draw.uniform(0, 0.05)
    for name, sx, sy in (
        ("front_left", 1, 1),
        ("front_right", 1, -1),
        ("back_left", -1, 1),
        ("back_right", -1, -1),
    ):
        x, y = sx * (depth / 2 - inset), sy * (width / 2 - inset)
        top = (x - sx * splay, y - sy * splay, height)
        if round_legs:
            b.rod(
                f"{name}_leg", top, (x, y, 0), thick / 2, material, ratio=draw.pick([1.0, 0.75]), segments=8
            )
        elif splay:
            b.rod(f"{name}_leg", top, (x, y, 0), thick * 0.7, material, segments=4)
        else:
            b.box(f"{name}_leg", (x, y, height / 2), (thick, thick, height), material)
        if keypoints:
            b.keypoint(f"{name}_leg", (x, y, 0.01))


def table(
    scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float, kind: str = "table"
) -> None:
    """A table with four legs, a pillar or side panels, and things on it."""
    h = draw.uniform(0.68, 0.78) if kind != "coffee" else draw.uniform(0.32, 0.48)
    top = wood(draw) if draw.chance(0.65) else paint(draw, draw.pick([(0.9, 0.9, 0.88), any_colour(draw)]))
    base = top if draw.chance(0.5) else (metal(draw) if draw.chance(0.6) else wood(draw))
    semantic = {"desk": "desk", "coffee": "coffee_table"}.get(kind, "table")
    b = scene.add("table" if kind != "desk" else "desk", at, yaw, semantic=semantic, salience=1.0)
    t = draw.uniform(0.02, 0.07)
    round_top = kind != "desk" and draw.chance(0.25)
    if round_top:
        b.part("top", primitives.frustum(1.0, 28), (0, 0, h - t / 2), (depth, width, t), top)
    else:
        b.box("top", (0, 0, h - t / 2), (depth, width, t), top, bevel=draw.pick([0.0, 0.01]))
    style = draw.pick(["legs", "pillar", "panels"], [5, 2 if round_top else 0.3, 0 if round_top else 1.5])
    inner = 0.7 if round_top else 1.0
    if style == "legs":
        _legs(b, draw, base, depth * inner, width * inner, h - t, keypoints=False)
        if draw.chance(0.5) and not round_top:
            for s in (-1.0, 1.0):
                b.box("apron", (s * (depth / 2 - 0.06), 0, h - t - 0.04), (0.02, width - 0.14, 0.08), base)
                b.box("apron", (0, s * (width / 2 - 0.06), h - t - 0.04), (depth - 0.14, 0.02, 0.08), base)
    elif style == "pillar":
        b.cylinder("pillar", (0, 0, 0), 0.05, h - t, base)
        b.cylinder("foot", (0, 0, 0), min(depth, width) * 0.3, 0.03, base, ratio=0.875)
    else:
        for s in (-1.0, 1.0):
            b.box("panel", (0, s * (width / 2 - 0.05), (h - t) / 2), (depth * 0.9, 0.03, h - t), base)
        if draw.chance(0.6):
            b.box("back_panel", (-depth * 0.3, 0, (h - t) * 0.65), (0.02, width - 0.1, (h - t) * 0.5), base)
    if kind == "desk" and draw.chance(0.5):
        drawers(b, draw, base, (0.0, draw.sign() * (width / 2 - 0.25), 0.0), depth * 0.9, 0.4, h - t)
    for name, sx, sy in (
        ("front_left", 1, 1),
        ("front_right", 1, -1),
        ("back_left", -1, 1),
        ("back_right", -1, -1),
    ):
        b.keypoint(
            f"{name}_corner",
            (
                sx * depth * 0.49 * (inner if round_top else 1),
                sy * width * 0.49 * (inner if round_top else 1),
                h,
            ),
        )
    if draw.chance(0.12) and kind != "desk":
        cloth = fabric(draw)
        b.box("tablecloth", (0, 0, h + 0.003), (depth * inner * 0.98, width * inner * 0.8, 0.006), cloth)
    b.support(
        (0, 0, h + 0.006), (depth * 0.8 * inner, width * 0.85 * inner), "desk" if kind == "desk" else "table"
    )


def desk(scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float) -> None:
    """An office desk; its user sits at +x."""
    table(scene, draw, at, yaw, depth, width, "desk")


def coffee_table(scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float) -> None:
    """A low table."""
    table(scene, draw, at, yaw, depth, width, "coffee")


def drawers(
    b: Builder,
    draw: Draw,
    material: Material,
    at: Vector,
    depth: float,
    width: float,
    height: float,
    rows: int = 0,
) -> None:
    """A block with drawer fronts and handles on +x, part of another object."""
    x, y, z = at
    b.box("body", (x, y, z + height / 2), (depth, width, height), material)
    rows = rows or draw.integer(2, 5)
    front = material if draw.chance(0.6) else wood(draw)
    handle = metal(draw)
    knob = draw.chance(0.4)
    for i in range(rows):
        zc = z + height * (i + 0.5) / rows
        b.box("drawer", (x + depth / 2 + 0.008, y, zc), (0.018, width - 0.03, height / rows - 0.02), front)
        if knob:
            b.ball("handle", (x + depth / 2 + 0.03, y, zc), (0.03, 0.03, 0.03), handle, detail=1)
        else:
            b.rod(
                "handle",
                (x + depth / 2 + 0.035, y - width * 0.15, zc),
                (x + depth / 2 + 0.035, y + width * 0.15, zc),
                0.008,
                handle,
                segments=6,
            )


def chair(scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float) -> None:
    """A chair with legs, seat and back, sometimes arms; or a swivel chair on castors."""
    word, colour = named_colour(draw)
    swivel = draw.chance(0.3)
    seat_h = draw.uniform(0.42, 0.5)
    back_h = draw.uniform(0.35, 0.65)
    d, w = min(depth, 0.52), min(width, 0.55)
    frame = wood(draw) if draw.chance(0.55) and not swivel else metal(draw)
    cushion = draw.pick([fabric(draw, colour), leather(draw), paint(draw, colour)])
    if draw.chance(0.35) and not swivel:
        cushion, word = frame, "wooden" if frame.mirror < 0.1 else "metal"
    b = scene.add(
        "swivel chair" if swivel else "chair",
        at,
        yaw,
        semantic="swivel_chair" if swivel else "chair",
        phrase=f"a {word} chair",
        salience=0.9,
    )
    t = draw.uniform(0.025, 0.1)
    b.box("seat", (0, 0, seat_h), (d, w, t), cushion, bevel=min(0.02, t * 0.4))
    lean = rotation_y(-draw.uniform(0.03, 0.25))
    up = lean @ np.array([0.0, 0.0, 1.0])

    def on_back(y: float, h: float) -> Vector:
        return (-d / 2 + 0.02 + float(up[0]) * h, y, seat_h + float(up[2]) * h)

    style = draw.pick(["solid", "slats", "bars", "gap"])
    if style == "solid":
        b.box(
            "back",
            on_back(0, back_h / 2 + 0.02),
            (0.03 + t * 0.4, w * 0.95, back_h),
            cushion,
            bevel=0.015,
            rotation=lean,
        )
    else:
        for s in (-1.0, 1.0):
            b.rod(
                "back_post",
                on_back(s * (w / 2 - 0.02), 0),
                on_back(s * (w / 2 - 0.02), back_h),
                0.018,
                frame,
                segments=8,
            )
        if style == "slats":
            count = draw.integer(2, 4)
            for i in range(count):
                h = back_h * (i + 0.9) / count
                b.box("back", on_back(0, h), (0.02, w - 0.05, back_h / count * 0.45), frame, rotation=lean)
        elif style == "bars":
            b.box("back", on_back(0, back_h), (0.03, w, 0.06), frame, rotation=lean)
            for i in range(draw.integer(3, 6)):
                y = (i - 2) * w * 0.17
                b.rod("back", on_back(y, 0), on_back(y, back_h), 0.009, frame, segments=6)
        else:
            b.box(
                "back",
                on_back(0, back_h * 0.75),
                (0.03, w * 0.95, back_h * 0.45),
                cushion,
                bevel=0.01,
                rotation=lean,
            )
    if swivel:
        b.cylinder("column", (0, 0, 0.08), 0.03, seat_h - 0.08, metal(draw))
        for i in range(5):
            a = i * 2 * math.pi / 5
            tip = (0.28 * math.cos(a), 0.28 * math.sin(a), 0.06)
            b.rod("foot", (0, 0, 0.1), tip, 0.02, metal(draw), segments=6)
            b.ball(
                "castor",
                (tip[0], tip[1], 0.03),
                (0.06, 0.06, 0.06),
                paint(draw, (0.05, 0.05, 0.05)),
                detail=1,
            )
    else:
        thick = draw.uniform(0.02, 0.045)
        for name, sx, sy in (
            ("front_left", 1, 1),
            ("front_right", 1, -1),
            ("back_left", -1, 1),
            ("back_right", -1, -1),
        ):
            x, y = sx * (d / 2 - thick), sy * (w / 2 - thick)
            b.rod(
                f"{name}_leg", (x, y, seat_h), (x + sx * 0.02, y + sy * 0.01, 0), thick / 2, frame, segments=6
            )
            b.keypoint(f"{name}_leg", (x + sx * 0.02, y + sy * 0.01, 0.01))
        if draw.chance(0.4):
            for s in (-1.0, 1.0):
                b.rod(
                    "rung",
                    (d / 2 - thick, s * (w / 2 - thick), 0.2),
                    (-d / 2 + thick, s * (w / 2 - thick), 0.2),
                    0.01,
                    frame,
                    segments=6,
                )
    if draw.chance(0.35):
        for name, s in (("left_arm", 1), ("right_arm", -1)):
            y, z = s * (w / 2 + 0.02), seat_h + draw.uniform(0.18, 0.25)
            b.rod(name, (d * 0.3, y, seat_h), (d * 0.3, y, z), 0.015, frame, segments=6)
            b.box(name, (0, y, z), (d * 0.8, 0.05, 0.03), frame, bevel=0.008)
    for name, sx, sy in (("front_left", 1, 1), ("front_right", 1, -1)):
        b.keypoint(f"{name}_seat", (sx * d * 0.48, sy * w * 0.48, seat_h + t / 2))
    b.keypoint("back_top_left", on_back(w * 0.45, back_h))
    b.keypoint("back_top_right", on_back(-w * 0.45, back_h))


def stool(scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float) -> None:
    """A stool with three or four legs."""
    h = draw.uniform(0.42, 0.75)
    r = min(depth, width) * 0.42
    material = wood(draw) if draw.chance(0.6) else metal(draw)
    b = scene.add("stool", at, yaw, semantic="stool", salience=0.5)
    b.cylinder(
        "seat", (0, 0, h - 0.04), r, 0.04, material if draw.chance(0.5) else leather(draw), segments=20
    )
    count = draw.pick([3, 4])
    for i in range(count):
        a = i * 2 * math.pi / count + 0.4
        b.rod(
            "leg",
            (0.7 * r * math.cos(a), 0.7 * r * math.sin(a), h - 0.04),
            (r * math.cos(a), r * math.sin(a), 0),
            0.016,
            material,
            segments=6,
        )


def sofa(scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float) -> None:
    """A sofa or armchair with cushions."""
    word, colour = named_colour(draw)
    cover = fabric(draw, colour) if draw.chance(0.7) else leather(draw)
    seats = max(1, round((width - 0.3) / 0.7))
    b = scene.add(
        "sofa" if seats > 1 else "armchair", at, yaw, semantic="sofa" if seats > 1 else "armchair",
        phrase=f"a {word} {'sofa' if seats > 1 else 'armchair'}", salience=1.2,
    )  # fmt: skip
    leg = draw.uniform(0.04, 0.16)
    seat_h = draw.uniform(0.36, 0.46)
    back_h = draw.uniform(0.65, 0.95)
    arm = draw.uniform(0.1, 0.22)
    arm_h = draw.uniform(seat_h + 0.05, min(back_h, seat_h + 0.28))
    soft = draw.uniform(0.02, 0.07)
    back_t = draw.uniform(0.12, 0.24)
    b.box(
        "base",
        (0, 0, leg + (seat_h - 0.12 - leg) / 2),
        (depth - 0.04, width - 0.04, seat_h - 0.12 - leg),
        cover,
        bevel=0.02,
    )
    b.box(
        "back",
        (-depth / 2 + back_t / 2, 0, leg + (back_h - leg) / 2),
        (back_t, width - 0.02, back_h - leg),
        cover,
        bevel=soft,
    )
    for name, s in (("left_arm", 1), ("right_arm", -1)):
        y = s * (width / 2 - arm / 2)
        b.box(name, (0, y, leg + (arm_h - leg) / 2), (depth, arm, arm_h - leg), cover, bevel=soft)
        b.keypoint(name, (depth / 2 - soft, y, arm_h - 0.02))
        b.keypoint(f"{name}_foot", (depth / 2 - 0.02, y, leg + 0.02))
    inner = width - 2 * arm
    cushion_cover = cover if draw.chance(0.8) else fabric(draw)
    for i in range(seats):
        y = -inner / 2 + (i + 0.5) * inner / seats
        b.box(
            "seat",
            (back_t / 2, y, seat_h - 0.07),
            (depth - back_t, inner / seats - 0.01, 0.15),
            cushion_cover,
            bevel=0.035,
        )
        if draw.chance(0.6):
            b.box(
                "back_cushion",
                (-depth / 2 + back_t + 0.07, y, seat_h + 0.2),
                (0.14, inner / seats - 0.03, 0.38),
                cushion_cover,
                bevel=0.05,
                rotation=rotation_y(-0.18),
            )
    for _ in range(draw.pick([0, 0, 1, 2, 3])):
        y = draw.uniform(-0.45, 0.45) * inner
        side = draw.uniform(0.3, 0.45)
        b.box(
            "cushion",
            (-depth / 2 + back_t + 0.22, y, seat_h + 0.2),
            (0.14, side, side),
            fabric(draw),
            bevel=0.06,
            rotation=rotation_y(-0.4) @ rotation_x(draw.normal(0, 0.3)),
            semantic="cushion",
        )
    feet = wood(draw)
    for sx in (-1, 1):
        for sy in (-1, 1):
            b.cylinder(
                "foot",
                (sx * (depth / 2 - 0.08), sy * (width / 2 - 0.08), 0),
                0.025,
                leg + 0.02,
                feet,
                segments=8,
            )
    b.keypoint("back_top_left", (-depth / 2 + back_t / 2, width * 0.46, back_h - 0.01))
    b.keypoint("back_top_right", (-depth / 2 + back_t / 2, -width * 0.46, back_h - 0.01))


def bed(scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float) -> None:
    """A bed with headboard at -x, mattress, blanket and pillows."""
    word, colour = named_colour(draw)
    frame = wood(draw) if draw.chance(0.7) else paint(draw)
    b = scene.add("bed", at, yaw, semantic="bed", phrase=f"a bed with a {word} blanket", salience=1.3)
    h = draw.uniform(0.3, 0.5)
    head = draw.uniform(0.7, 1.3)
    b.box("frame", (0, 0, h * 0.55), (depth, width, h * 0.5), frame, bevel=0.015)
    _legs(b, draw, frame, depth, width, h * 0.4)
    b.box(
        "headboard",
        (-depth / 2 + 0.03, 0, head / 2),
        (0.06, width, head),
        frame if draw.chance(0.6) else fabric(draw),
        bevel=0.02,
    )
    if draw.chance(0.4):
        b.box("footboard", (depth / 2 - 0.02, 0, h * 0.7), (0.05, width, h * 1.3), frame, bevel=0.015)
    sheet = fabric(draw, draw.pick([(0.93, 0.93, 0.92), any_colour(draw)]))
    b.box("mattress", (0.02, 0, h * 0.8 + 0.1), (depth - 0.12, width - 0.06, 0.22), sheet, bevel=0.05)
    g = draw.generator
    nx, ny = 22, 16
    x = np.linspace(-depth * draw.uniform(0.1, 0.22), depth / 2 - 0.05, nx)
    y = np.linspace(-width / 2 - 0.03, width / 2 + 0.03, ny)
    waves = sum(
        draw.uniform(0.004, 0.02)
        * np.sin(g.normal(0, 6) * x[:, None] + g.normal(0, 6) * y[None] + g.random() * 6)
        for _ in range(4)
    )
    edge = np.minimum(1, (width / 2 + 0.03 - np.abs(y)) / 0.1)[None]
    height = h * 0.8 + 0.21 + 0.045 * np.sqrt(edge) + waves * edge - 0.2 * (1 - edge)
    b.part(
        "blanket",
        primitives.heightfield(x, y, height),
        (0, 0, 0),
        (1, 1, 1),
        fabric(draw, colour),
        semantic="blanket",
    )
    count = 1 if width < 1.2 else 2
    for i in range(count):
        yc = (i - (count - 1) / 2) * width * 0.46
        b.box(
            "pillow",
            (-depth / 2 + 0.32, yc, h * 0.8 + 0.28),
            (0.4, min(0.65, width * 0.42), 0.16),
            fabric(draw, (0.92, 0.92, 0.9)),
            bevel=0.07,
            rotation=rotation_y(-draw.uniform(0.1, 0.5)),
            semantic="pillow",
        )
    for name, sx, sy in (("foot_left", 1, 1), ("foot_right", 1, -1)):
        b.keypoint(name, (sx * depth * 0.49, sy * width * 0.49, h * 0.75))
    b.keypoint("head_left", (-depth / 2 + 0.05, width * 0.48, head - 0.01))
    b.keypoint("head_right", (-depth / 2 + 0.05, -width * 0.48, head - 0.01))


def shelf(scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float) -> None:
    """An open shelf or bookcase filled with books and things."""
    h = draw.uniform(0.9, 2.3)
    material = draw.pick([wood(draw), paint(draw, (0.9, 0.9, 0.88)), metal(draw)])
    b = scene.add("shelf", at, yaw, semantic="bookcase" if draw.chance(0.5) else "shelf", salience=0.8)
    t = draw.uniform(0.015, 0.035)
    boards = max(2, round(h / draw.uniform(0.28, 0.48)))
    posts = draw.chance(0.35)
    for s in (-1.0, 1.0):
        if posts:
            for sx in (-1, 1):
                b.box(
                    "post",
                    (sx * (depth / 2 - 0.02), s * (width / 2 - 0.02), h / 2),
                    (0.04, 0.04, h),
                    material,
                )
        else:
            b.box("side", (0, s * (width / 2 - t / 2), h / 2), (depth, t, h), material)
    if not posts and draw.chance(0.8):
        b.box("back", (-depth / 2 + 0.005, 0, h / 2), (0.01, width, h), material)
    spines = textured(
        draw, "spines", (any_colour(draw), any_colour(draw), (0.9, 0.9, 0.88)), 1, mapping="fit"
    )
    for i in range(boards + 1):
        z = 0.05 + (h - 0.05 - t) * i / boards
        b.box("board", (0, 0, z + t / 2), (depth - 0.005, width - 0.01, t), material)
        if i == boards:
            b.support((0, 0, z + t), (depth * 0.6, width * 0.8), "shelf")
            continue
        gap = (h - 0.05 - t) / boards - t
        fill = draw.uniform(0, 1)
        if fill < 0.35:
            y = -width / 2 + t + 0.01
            while y < width / 2 - 0.12:
                run = min(draw.uniform(0.12, 0.6), width / 2 - t - y)
                hb = min(gap * draw.uniform(0.55, 0.92), 0.34)
                b.box(
                    "books",
                    (-depth * 0.06, y + run / 2, z + t + hb / 2),
                    (depth * 0.75, run - 0.005, hb),
                    spines,
                    semantic="book",
                )
                y += run + (draw.uniform(0.05, 0.4) if draw.chance(0.35) else 0.0)
        elif fill < 0.75:
            spot = b.to_world((0.0, 0.0, z + t))
            count = 2 if gap > 0.25 else 1
            scatter(
                scene, draw, Surface(spot, b.yaw, (depth * 0.4, width * 0.75), "shelf"), count + int(width)
            )
        elif fill < 0.9:
            for _ in range(draw.integer(1, 3)):
                s = min(gap * 0.9, draw.uniform(0.12, 0.35))
                b.box(
                    "box",
                    (0, draw.uniform(-0.35, 0.35) * width, z + t + s / 2),
                    (depth * 0.8, s * draw.uniform(0.8, 1.4), s),
                    printed(draw) if draw.chance(0.4) else paint(draw),
                    semantic="box",
                )
    b.keypoint("top_front_left", (depth / 2 - 0.01, width * 0.49, h - t))
    b.keypoint("top_front_right", (depth / 2 - 0.01, -width * 0.49, h - t))
    b.keypoint("bottom_front_left", (depth / 2 - 0.01, width * 0.49, 0.06))
    b.keypoint("bottom_front_right", (depth / 2 - 0.01, -width * 0.49, 0.06))


def cabinet(scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float) -> None:
    """A cabinet, chest of drawers or wardrobe with doors."""
    h = draw.pick([draw.uniform(0.5, 0.95), draw.uniform(1.0, 1.4), draw.uniform(1.7, 2.2)])
    body = wood(draw) if draw.chance(0.6) else paint(draw)
    semantic = "chest_of_drawers" if h < 1.0 else ("wardrobe" if h > 1.6 else "cabinet")
    b = scene.add("cabinet", at, yaw, semantic=semantic, salience=0.8)
    foot = draw.uniform(0.02, 0.12)
    b.box("body", (0, 0, foot + (h - foot) / 2), (depth, width, h - foot), body)
    b.box("plinth", (-0.03, 0, foot / 2), (depth - 0.06, width - 0.04, foot), shade_material(draw))
    b.box("top", (0.005, 0, h + 0.01), (depth + 0.03, width + 0.03, 0.025), body)
    columns = max(1, round(width / draw.uniform(0.4, 0.6)))
    rows = 1 if h > 1.4 else draw.integer(1, 4)
    front = (
        body if draw.chance(0.6) else textured(draw, "panels", (any_colour(draw, 0.3),) * 3, 1, mapping="fit")
    )
    handle = metal(draw)
    cw, ch = width / columns, (h - foot) / rows
    for i in range(columns):
        for j in range(rows):
            y, z = -width / 2 + (i + 0.5) * cw, foot + (j + 0.5) * ch
            b.box("door", (depth / 2 + 0.008, y, z), (0.018, cw - 0.012, ch - 0.012), front)
            if draw.chance(0.9):
                if ch > cw:
                    b.rod(
                        "handle",
                        (depth / 2 + 0.035, y + cw * 0.36, z - 0.08),
                        (depth / 2 + 0.035, y + cw * 0.36, z + 0.08),
                        0.007,
                        handle,
                        segments=6,
                    )
                else:
                    b.rod(
                        "handle",
                        (depth / 2 + 0.035, y - 0.06, z),
                        (depth / 2 + 0.035, y + 0.06, z),
                        0.007,
                        handle,
                        segments=6,
                    )
    b.support((0, 0, h + 0.023), (depth * 0.6, width * 0.8), "shelf" if h < 1.6 else "floor")
    for name, s, z in (
        ("top_left", 1, h),
        ("top_right", -1, h),
        ("bottom_left", 1, foot),
        ("bottom_right", -1, foot),
    ):
        b.keypoint(f"{name}_corner", (depth / 2 + 0.01, s * width * 0.49, z))


def shade_material(draw: Draw) -> Material:
    """Dark, dull: plinths, gaps, undersides."""
    v = draw.uniform(0.03, 0.2)
    return paint(draw, (v, v, v), False)


@dataclass(frozen=True)
class KitchenStyle:
    """What one kitchen's units have in common."""

    front: Material
    top: Material
    handle: Material
    height: float
    knobs: bool


def kitchen_style(draw: Draw) -> KitchenStyle:
    """Fronts, worktop and handles for one kitchen."""
    _word, colour = named_colour(draw)
    front = draw.pick(
        [
            wood(draw),
            paint(draw, colour, True),
            paint(draw, (0.9, 0.9, 0.88)),
            textured(draw, "panels", (any_colour(draw, 0.3),) * 3, 1, mapping="fit"),
        ]
    )
    c = draw.pick([(0.08, 0.08, 0.09), (0.75, 0.73, 0.7), (0.5, 0.48, 0.46)])
    top = (
        wood(draw)
        if draw.chance(0.4)
        else textured(
            draw,
            draw.pick(["speckle", "marble", "plain"]),
            (c, shade(c, 1.6), shade(c, 0.5)),
            0.6,
            shiny=draw.uniform(0.1, 0.6),
        )
    )
    return KitchenStyle(front, top, metal(draw), draw.uniform(0.86, 0.94), draw.chance(0.2))


def counter(
    scene: Scene,
    draw: Draw,
    at: Vector,
    yaw: float,
    depth: float,
    width: float,
    style: KitchenStyle | None = None,
    wall_units: bool = True,
) -> None:
    """A run of kitchen units with worktop, sink, stove and wall units above."""
    style = style or kitchen_style(draw)
    h = style.height
    b = scene.add("kitchen counter", at, yaw, semantic="cabinet", salience=1.2)
    b.box("plinth", (-0.04, 0, 0.05), (depth - 0.08, width, 0.1), shade_material(draw))
    b.box("body", (-0.01, 0, (h + 0.06) / 2), (depth - 0.02, width, h - 0.14), style.front)
    b.box("worktop", (0.01, 0, h - 0.02), (depth + 0.02, width, 0.04), style.top, semantic="countertop")
    count = max(1, round(width / 0.6))
    unit = width / count
    oven = draw.integer(0, count - 1) if draw.chance(0.6) else -1
    for i in range(count):
        y = -width / 2 + (i + 0.5) * unit
        if i == oven:
            dark = textured(draw, "plain", ((0.03, 0.03, 0.035),) * 3, 1, shiny=0.9)
            b.box(
                "oven",
                (depth / 2, y, h * 0.45),
                (0.03, unit - 0.01, h * 0.66),
                dark if draw.chance(0.5) else metal(draw),
                semantic="oven",
            )
            b.box("stove", (0, y, h + 0.003), (depth * 0.8, unit * 0.92, 0.008), dark, semantic="stove")
            for sx in (-1, 1):
                for sy in (-1, 1):
                    b.cylinder(
                        "burner",
                        (sx * depth * 0.18, y + sy * unit * 0.2, h + 0.006),
                        0.07,
                        0.006,
                        metal(draw),
                        segments=14,
                        semantic="stove",
                    )
        else:
            split = draw.pick([1, 1, 2, 3])
            z0, z1 = 0.11, h - 0.05
            for j in range(split):
                zc = z0 + (z1 - z0) * (j + 0.5) / split
                b.box(
                    "door", (depth / 2, y, zc), (0.02, unit - 0.008, (z1 - z0) / split - 0.008), style.front
                )
                zh = z0 + (z1 - z0) * (j + 1) / split - 0.07
                if style.knobs:
                    b.ball("handle", (depth / 2 + 0.025, y, zh), (0.03,) * 3, style.handle, detail=1)
                else:
                    b.rod(
                        "handle",
                        (depth / 2 + 0.03, y - unit * 0.25, zh),
                        (depth / 2 + 0.03, y + unit * 0.25, zh),
                        0.007,
                        style.handle,
                        segments=6,
                    )
    if draw.chance(0.6):
        i = draw.integer(0, count - 1)
        if i != oven:
            y = -width / 2 + (i + 0.5) * unit
            steel = metal(draw, (0.75, 0.76, 0.78))
            rim = 0.02
            b.box("sink", (0, y, h + 0.004), (depth * 0.72, unit * 0.9, 0.008), steel, semantic="sink")
            b.box(
                "basin",
                (0.02, y, h + 0.0085),
                (depth * 0.72 - 4 * rim, unit * 0.8, 0.002),
                shade_material(draw),
                semantic="sink",
            )
            b.rod(
                "tap",
                (-depth * 0.3, y, h),
                (-depth * 0.3, y, h + 0.28),
                0.014,
                steel,
                segments=8,
                semantic="sink",
            )
            b.limb(
                "tap",
                (-depth * 0.3, y, h + 0.28),
                (-depth * 0.05, y, h + 0.24),
                0.012,
                steel,
                semantic="sink",
            )
    if wall_units and draw.chance(0.75):
        low, tall, deep = draw.uniform(1.35, 1.5), draw.uniform(0.55, 0.9), draw.uniform(0.28, 0.38)
        for i in range(count):
            if draw.chance(0.15):
                continue
            y = -width / 2 + (i + 0.5) * unit
            x = -depth / 2 + deep / 2
            b.box("wall_unit", (x, y, low + tall / 2), (deep, unit, tall), style.front)
            b.box(
                "wall_door",
                (x + deep / 2, y, low + tall / 2),
                (0.02, unit - 0.008, tall - 0.008),
                style.front,
            )
            if not style.knobs:
                b.rod(
                    "handle",
                    (x + deep / 2 + 0.03, y + unit * 0.35, low + 0.05),
                    (x + deep / 2 + 0.03, y + unit * 0.35, low + 0.2),
                    0.006,
                    style.handle,
                    segments=6,
                )
    elif draw.chance(0.5):
        z = draw.uniform(1.35, 1.6)
        b.box("board", (-depth / 2 + 0.1, 0, z), (0.2, width * 0.9, 0.03), style.top, semantic="shelf")
        b.support((-depth / 2 + 0.1, 0, z + 0.015), (0.1, width * 0.8), "kitchen")
    if draw.chance(0.6):
        z = h + draw.uniform(0.25, 0.45)
        tiles = textured(
            draw,
            "tiles",
            (any_colour(draw, 0.25), any_colour(draw, 0.25), (0.85, 0.85, 0.82)),
            draw.uniform(0.3, 0.9),
            shiny=0.4,
        )
        b.box(
            "backsplash", (-depth / 2 + 0.004, 0, (h + z) / 2), (0.012, width, z - h), tiles, semantic="wall"
        )
    b.support((0.02, 0, h + 0.004), (depth * 0.55, width * 0.92), "kitchen")
    b.keypoint("front_left_corner", (depth / 2 + 0.01, width * 0.495, h))
    b.keypoint("front_right_corner", (depth / 2 + 0.01, -width * 0.495, h))


def fridge(scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float) -> None:
    """A refrigerator or another tall appliance."""
    h = draw.uniform(1.3, 2.0)
    case = draw.pick(
        [paint(draw, (0.92, 0.92, 0.9), True), metal(draw, (0.7, 0.71, 0.73)), paint(draw, glossy=True)]
    )
    b = scene.add("refrigerator", at, yaw, semantic="refrigerator", salience=0.8)
    b.box("body", (-0.03, 0, h / 2), (depth - 0.06, width, h), case, bevel=0.015)
    split = draw.uniform(0.3, 0.7) * h
    for low, high in ((0.06, split), (split + 0.01, h - 0.01)):
        b.box(
            "door",
            (depth / 2 - 0.03, 0, (low + high) / 2),
            (0.06, width - 0.005, high - low),
            case,
            bevel=0.012,
        )
        b.rod(
            "handle",
            (depth / 2 + 0.03, width * 0.4, low + 0.1),
            (depth / 2 + 0.03, width * 0.4, min(low + 0.5, high - 0.05)),
            0.012,
            metal(draw),
            segments=8,
        )
    for _ in range(draw.integer(0, 5)):
        s = draw.uniform(0.05, 0.16)
        b.box(
            "note",
            (depth / 2 + 0.001, draw.uniform(-0.3, 0.3) * width, draw.uniform(0.5, 0.9) * h),
            (0.004, s, s * 1.3),
            printed(draw),
            semantic="poster",
        )


def floor_lamp(scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float) -> None:
    """A standing lamp."""
    h = draw.uniform(1.3, 1.8)
    b = scene.add("floor lamp", at, yaw, semantic="lamp", salience=0.5)
    body = metal(draw)
    b.cylinder("foot", (0, 0, 0), 0.14, 0.025, body, segments=20)
    b.rod("stem", (0, 0, 0), (0, 0, h), 0.012, body, segments=8)
    b.cylinder(
        "shade",
        (0, 0, h - 0.05),
        draw.uniform(0.14, 0.24),
        draw.uniform(0.18, 0.35),
        glowing(draw, (1, 0.93, 0.78), 0.9),
        ratio=draw.pick([0.5, 0.75, 1.0]),
        segments=20,
    )
    b.keypoint("foot", (0.14, 0, 0.01))


def sink(scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float) -> None:
    """A wash-basin on a pillar with a mirror above."""
    white = paint(draw, (0.93, 0.93, 0.92), True)
    h = draw.uniform(0.78, 0.9)
    b = scene.add("sink", at, yaw, semantic="sink", salience=0.8)
    shape = primitives.lathe(
        (
            (0, -0.5),
            (0.2, -0.45),
            (0.45, 0.2),
            (0.5, 0.5),
            (0.5, 0.5),
            (0.42, 0.5),
            (0.42, 0.5),
            (0.3, -0.1),
            (0, -0.25),
        ),
        20,
    )
    b.part("basin", shape, (0, 0, h - 0.09), (depth, width, 0.18), white)
    b.cylinder("pillar", (-depth * 0.15, 0, 0), 0.08, h - 0.15, white, ratio=0.75)
    b.limb("tap", (-depth * 0.42, 0, h), (-depth * 0.42, 0, h + 0.14), 0.016, metal(draw))
    b.limb("tap", (-depth * 0.42, 0, h + 0.14), (-depth * 0.15, 0, h + 0.11), 0.012, metal(draw))
    mirror = Material(0, ((0.6, 0.62, 0.64),) * 3, specular=0.3, gloss=100, mirror=0.75)
    b.box("mirror", (-depth / 2 + 0.012, 0, h + 0.65), (0.02, width * 0.9, 0.7), mirror, semantic="mirror")


def toilet(scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float) -> None:
    """A toilet with a cistern."""
    white = paint(draw, (0.93, 0.93, 0.92), True)
    b = scene.add("toilet", at, yaw, semantic="toilet", salience=0.7)
    b.cylinder("pedestal", (0.02, 0, 0), 0.12, 0.36, white, ratio=1.25)
    b.part("bowl", primitives.superellipsoid(0.5, 0.9), (0.06, 0, 0.33), (0.48, 0.37, 0.2), white)
    b.part(
        "lid",
        primitives.superellipsoid(0.3, 0.9),
        (0.06, 0, 0.43),
        (0.46, 0.36, 0.04),
        white if draw.chance(0.7) else wood(draw),
    )
    b.box("cistern", (-depth / 2 + 0.1, 0, 0.6), (0.18, 0.38, 0.36), white, bevel=0.03)


def bathtub(scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float) -> None:
    """A built-in bath along the wall."""
    white = paint(draw, (0.93, 0.93, 0.92), True)
    h, t = draw.uniform(0.5, 0.62), 0.07
    b = scene.add("bathtub", at, yaw, semantic="bathtub", salience=1.0)
    side = (
        white
        if draw.chance(0.5)
        else textured(
            draw, "tiles", (any_colour(draw, 0.3), (0.9, 0.9, 0.9), (0.8, 0.8, 0.8)), 0.5, shiny=0.4
        )
    )
    b.box("bottom", (0, 0, 0.08), (depth - 2 * t, width - 2 * t, 0.16), white)
    for s in (-1.0, 1.0):
        b.box("side", (s * (depth - t) / 2, 0, h / 2), (t, width, h), side, bevel=0.015)
        b.box("side", (0, s * (width - t) / 2, h / 2), (depth - 2 * t, t, h), side, bevel=0.015)
    b.limb("tap", (0, -width / 2 + 0.1, h), (0, -width / 2 + 0.22, h + 0.08), 0.018, metal(draw))


def radiator(scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float) -> None:
    """A ribbed radiator."""
    b = scene.add("radiator", at, yaw, semantic="radiator", salience=0.2)
    white = paint(draw, (0.9, 0.89, 0.86))
    h = draw.uniform(0.4, 0.7)
    count = max(4, int(width / 0.07))
    for i in range(count):
        y = -width / 2 + (i + 0.5) * width / count
        b.box("rib", (0, y, 0.12 + h / 2), (depth, width / count * 0.7, h), white, bevel=0.012)
    b.rod("pipe", (0, -width / 2 - 0.05, 0.16), (0, width / 2 + 0.05, 0.16), 0.014, white, segments=6)


def piano_like(scene: Scene, draw: Draw, at: Vector, yaw: float, depth: float, width: float) -> None:
    """A block of boxes: a piano, an oven, a machine, whatever stands in cellars."""
    b = scene.add("machine", at, yaw, semantic=None, salience=0.5)
    h = draw.uniform(0.6, 1.6)
    body = draw.pick([paint(draw), metal(draw), wood(draw)])
    b.box("body", (0, 0, h / 2), (depth, width, h), body, bevel=draw.uniform(0.0, 0.05))
    for _ in range(draw.integer(2, 7)):
        s = (draw.uniform(0.02, 0.2), draw.uniform(0.1, 0.7) * width, draw.uniform(0.05, 0.5) * h)
        spot = (depth / 2 - 0.02, draw.uniform(-0.3, 0.3) * width, draw.uniform(0.25, 0.8) * h)
        b.box(
            "fitting",
            spot,
            s,
            draw.pick([paint(draw), metal(draw), printed(draw)]),
            bevel=draw.pick([0.0, 0.01]),
        )
    for _ in range(draw.integer(0, 3)):
        y, z = draw.uniform(-0.4, 0.4) * width, draw.uniform(0.2, 0.9) * h
        b.rod("knob", (depth / 2, y, z), (depth / 2 + 0.06, y, z), draw.uniform(0.015, 0.05), metal(draw))
    b.support((0, 0, h), (depth * 0.7, width * 0.8), "floor")


FURNITURE: dict[str, tuple[Maker, tuple[float, float], tuple[float, float]]] = {
    "table": (table, (0.7, 1.1), (0.8, 2.0)),
    "desk": (desk, (0.6, 0.9), (1.1, 2.0)),
    "coffee_table": (coffee_table, (0.5, 0.8), (0.7, 1.3)),
    "chair": (chair, (0.42, 0.55), (0.42, 0.55)),
    "stool": (stool, (0.32, 0.42), (0.32, 0.42)),
    "sofa": (sofa, (0.8, 1.05), (1.5, 2.5)),
    "armchair": (sofa, (0.75, 0.95), (0.75, 1.0)),
    "bed": (bed, (1.9, 2.2), (0.9, 1.9)),
    "shelf": (shelf, (0.25, 0.45), (0.5, 1.8)),
    "cabinet": (cabinet, (0.35, 0.62), (0.45, 1.8)),
    "counter": (counter, (0.58, 0.68), (1.2, 3.2)),
    "fridge": (fridge, (0.6, 0.7), (0.55, 0.8)),
    "floor_lamp": (floor_lamp, (0.3, 0.4), (0.3, 0.4)),
    "sink": (sink, (0.42, 0.52), (0.5, 0.65)),
    "toilet": (toilet, (0.65, 0.7), (0.4, 0.45)),
    "bathtub": (bathtub, (0.7, 0.8), (1.5, 1.8)),
    "radiator": (radiator, (0.06, 0.14), (0.6, 1.6)),
    "machine": (piano_like, (0.4, 0.9), (0.5, 1.6)),
}
"""Maker, range of depth and range of width in metres."""
