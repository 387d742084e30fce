"""Vehicle-like objects of named parts, driving towards +x."""

from __future__ import annotations

import math

import numpy as np

from vision3d.synthetic import primitives
from vision3d.synthetic.draw import Draw
from vision3d.synthetic.materials import (
    Material,
    glass,
    jitter,
    leather,
    metal,
    named_colour,
    paint,
    printed,
    textured,
)
from vision3d.synthetic.scene import Builder, Scene, Vector, rotation_x

_LIE = rotation_x(math.pi / 2)  # takes the axis of a lathe, z, to y: a wheel's axle
_BLACK = (0.03, 0.03, 0.035)


def _wheel(
    b: Builder, draw: Draw, name: str, centre: Vector, radius: float, width: float, rim: Material
) -> None:
    tyre = paint(draw, _BLACK, False)
    d = 2 * radius
    b.part(
        name,
        primitives.lathe(((0.3, -0.5), (0.46, -0.5), (0.5, -0.3), (0.5, 0.3), (0.46, 0.5), (0.3, 0.5)), 20),
        centre,
        (d, d, width),
        tyre,
        _LIE,
    )
    b.part(
        name,
        primitives.lathe(((0, -0.44), (0.1, -0.42), (0.31, -0.46), (0.31, 0.46), (0.1, 0.42), (0, 0.44)), 12),
        centre,
        (d, d, width),
        rim,
        _LIE,
    )


def car(scene: Scene, draw: Draw, at: Vector, yaw: float) -> None:
    """A saloon, hatchback, estate, van or pick-up."""
    word, colour = named_colour(draw)
    body = Material(
        paint(draw).texture,
        (jitter(draw, colour, 0.03),) * 3,
        specular=0.7,
        gloss=180,
        mirror=draw.uniform(0.08, 0.25),
    )
    style = draw.pick(["saloon", "hatch", "estate", "van"], [3, 3, 2, 1.5])
    length = draw.uniform(3.5, 4.9) + (0.4 if style == "van" else 0)
    width = draw.uniform(1.62, 1.9)
    roof = draw.uniform(1.36, 1.6) if style != "van" else draw.uniform(1.8, 2.3)
    floor_z, r = draw.uniform(0.18, 0.28), draw.uniform(0.29, 0.37)
    belt = draw.uniform(0.82, 0.98) if style != "van" else draw.uniform(1.0, 1.2)
    hood = belt - draw.uniform(0.0, 0.14)
    half = length / 2
    cowl = half - length * (draw.uniform(0.22, 0.3) if style != "van" else draw.uniform(0.1, 0.16))
    tail = {
        "saloon": -half + length * 0.16,
        "hatch": -half + 0.1,
        "estate": -half + 0.06,
        "van": -half + 0.03,
    }[style]
    roof_front = cowl - (roof - belt) * draw.uniform(0.7, 1.3)
    roof_back = tail + (roof - belt) * {"saloon": 0.9, "hatch": 0.6, "estate": 0.2, "van": 0.06}[style]
    b = scene.add(
        "van" if style == "van" else "car",
        at,
        yaw,
        semantic="van" if style == "van" else "car",
        phrase=f"a {word} {'van' if style == 'van' else 'car'}",
        salience=1.6,
    )
    nose = hood - draw.uniform(0.02, 0.18)
    lower = np.array(
        [
            (-half + 0.06, floor_z),
            (half - 0.08, floor_z),
            (half, floor_z + 0.15),
            (half - 0.02, nose - 0.08),
            (half - 0.14, nose),
            (cowl, hood + 0.02),
            (tail + 0.02, belt),
            (-half + 0.05, belt - 0.03),
            (-half, belt - 0.15),
            (-half, floor_z + 0.12),
        ]
    )
    b.part("body", primitives.extrusion(lower, 0.94, smooth=True), (0, 0, 0), (1, width, 1), body)
    cabin = np.array(
        [
            (tail, belt - 0.02),
            (cowl, hood),
            (roof_front, roof - 0.02),
            (roof_front - 0.25, roof),
            (roof_back + 0.2, roof),
            (roof_back, roof - 0.04),
        ]
    )
    b.part("roof", primitives.extrusion(cabin, 0.76, smooth=True), (0, 0, 0), (1, width * 0.94, 1), body)
    panes = glass(draw)

    def pane(name: str, corners: np.ndarray, push: float) -> None:
        outline = cabin.mean(0) + (corners - cabin.mean(0)) * 0.93
        b.part(
            name, primitives.extrusion(outline, 0.78, smooth=False), (0, 0, push), (1, width * 0.96, 1), panes
        )

    if style != "van":
        pane("side_window", cabin[[0, 1, 2, 3, 4, 5]], 0.004)
    else:
        front = np.array(
            [(cowl - 0.9, belt), (cowl, hood), (roof_front, roof - 0.02), (cowl - 0.9, roof - 0.02)]
        )
        pane("side_window", front * 0.98 + np.array([0.0, 0.02]), 0.004)
    for name, p, q in (("windscreen", cabin[1], cabin[2]), ("rear_window", cabin[0], cabin[5])):
        middle, along = (p + q) / 2, q - p
        size = float(np.hypot(*along))
        normal = np.array([along[1], -along[0]]) / size
        if name == "rear_window":
            normal = -normal
        turn = np.array([[normal[0], 0, along[0] / size], [0, 1, 0], [normal[1], 0, along[1] / size]])
        if np.linalg.det(turn) < 0:
            turn[:, 1] *= -1
        centre = (float(middle[0] + normal[0] * 0.003), 0.0, float(middle[1] + normal[1] * 0.003))
        b.box(name, centre, (0.02, width * 0.72, size * 0.8), panes, rotation=turn)
    rim = metal(draw)
    base_f, base_b = half - length * 0.19, -half + length * 0.19
    for name, x, s in (
        ("front_left", base_f, 1),
        ("front_right", base_f, -1),
        ("rear_left", base_b, 1),
        ("rear_right", base_b, -1),
    ):
        y = s * (width / 2 - 0.09)
        b.part(
            f"{name}_arch",
            primitives.frustum(1.0, 18),
            (x, s * (width / 2 - 0.105), r),
            (2.3 * r, 2.3 * r, 0.215),
            paint(draw, (0.02, 0.02, 0.02), False),
            _LIE,
        )
        _wheel(b, draw, f"{name}_wheel", (x, y, r), r, 0.2, rim)
        b.keypoint(f"{name}_wheel", (x, y + s * 0.09, r))
    lamp, red = paint(draw, (0.95, 0.95, 0.9), True), paint(draw, (0.7, 0.05, 0.04), True)
    for name, s in (("left", 1), ("right", -1)):
        y = s * width * 0.35
        b.ball(f"{name}_headlight", (half - 0.1, y, nose - 0.1), (0.22, 0.3, 0.16), lamp, detail=1)
        b.box(
            f"{name}_taillight",
            (-half + 0.02, s * width * 0.39, belt - 0.2),
            (0.06, 0.2, 0.16),
            red,
            bevel=0.02,
        )
        b.ball(
            f"{name}_mirror",
            (cowl - 0.2, s * (width / 2 + 0.07), belt + 0.05),
            (0.1, 0.2, 0.14),
            body,
            detail=1,
        )
        b.keypoint(f"{name}_headlight", (half, y, nose - 0.1))
        b.keypoint(f"{name}_taillight", (-half, s * width * 0.39, belt - 0.2))
        b.keypoint(f"{name}_mirror", (cowl - 0.2, s * (width / 2 + 0.14), belt + 0.05))
        b.keypoint(f"roof_front_{name}", (roof_front - 0.05, s * width * 0.33, roof - 0.02))
        b.keypoint(f"roof_rear_{name}", (roof_back + 0.05, s * width * 0.33, roof - 0.04))
    dark = paint(draw, _BLACK, False)
    b.box("grille", (half - 0.01, 0, floor_z + 0.25), (0.05, width * 0.5, 0.14), dark)
    for x, sign in ((half, "plate_front"), (-half, "plate_rear")):
        b.box(sign, (x, 0, floor_z + 0.22), (0.04, 0.5, 0.11), printed(draw, "label"))
    for x in (cowl - 0.15, (cowl + tail) / 2 - 0.1):
        for s in (-1, 1):
            b.box(
                "door_line",
                (x, s * width * 0.4705, (belt + floor_z) / 2 + 0.06),
                (0.012, 0.06, (belt - floor_z) * 0.8),
                dark,
            )
    b.box(
        "bumper",
        (half - 0.08, 0, floor_z + 0.08),
        (0.24, width * 0.98, 0.16),
        body if draw.chance(0.6) else dark,
        bevel=0.05,
    )
    b.box(
        "bumper",
        (-half + 0.08, 0, floor_z + 0.08),
        (0.24, width * 0.98, 0.16),
        body if draw.chance(0.6) else dark,
        bevel=0.05,
    )


def truck(scene: Scene, draw: Draw, at: Vector, yaw: float) -> None:
    """A lorry or bus: a box body, with or without a separate cab."""
    word, colour = named_colour(draw)
    bus = draw.chance(0.4)
    body = paint(draw, jitter(draw, colour), True)
    length, width, height = draw.uniform(6, 11), draw.uniform(2.2, 2.55), draw.uniform(2.7, 3.6)
    kind = "bus" if bus else "truck"
    b = scene.add(kind, at, yaw, semantic=kind, phrase=f"a {word} {kind}", salience=1.6)
    panes, dark, rim = glass(draw), paint(draw, _BLACK), metal(draw)
    half, r = length / 2, draw.uniform(0.42, 0.52)
    cab_height = height
    if bus:
        b.box("body", (0, 0, 0.35 + (height - 0.35) / 2), (length, width, height - 0.35), body, bevel=0.12)
        b.box("side_window", (-0.1, 0, height * 0.66), (length * 0.93, width + 0.02, height * 0.26), panes)
        b.box("windscreen", (half - 0.02, 0, height * 0.62), (0.06, width * 0.88, height * 0.4), panes)
        for i in range(int(length / 1.3)):
            b.box(
                "pillar", (-half + 0.9 + i * 1.3, 0, height * 0.66), (0.08, width + 0.03, height * 0.28), body
            )
    else:
        cab = draw.uniform(1.6, 2.2)
        cab_height = height * draw.uniform(0.75, 0.95)
        b.box(
            "cab",
            (half - cab / 2, 0, 0.4 + (cab_height - 0.4) / 2),
            (cab, width * 0.96, cab_height - 0.4),
            body,
            bevel=0.1,
        )
        b.box(
            "windscreen", (half - 0.01, 0, cab_height * 0.72), (0.06, width * 0.82, cab_height * 0.3), panes
        )
        b.box(
            "side_window",
            (half - cab * 0.45, 0, cab_height * 0.74),
            (cab * 0.5, width * 0.97, cab_height * 0.25),
            panes,
        )
        other = draw.pick(
            [
                paint(draw),
                textured(draw, "corrugated", (jitter(draw, colour),) * 3, 1.5),
                printed(draw, "label"),
            ]
        )
        b.box(
            "load",
            (-cab / 2 - 0.05, 0, 0.95 + (height - 0.95) / 2),
            (length - cab - 0.15, width, height - 0.95),
            other,
        )
        b.box("chassis", (-0.2, 0, 0.75), (length - 0.6, width * 0.5, 0.3), dark)
    axles = [half - 1.2, -half + 1.5] + ([-half + 2.6] if not bus else [])
    for i, x in enumerate(axles):
        for name, s in (("left", 1), ("right", -1)):
            place = "front" if i == 0 else "rear"
            _wheel(b, draw, f"{place}_{name}_wheel", (x, s * (width / 2 - 0.14), r), r, 0.3, rim)
            if i < 2:
                b.keypoint(f"{place}_{name}_wheel", (x, s * width / 2, r))
    for name, s in (("left", 1), ("right", -1)):
        b.box(
            f"{name}_headlight",
            (half, s * width * 0.38, 0.75),
            (0.05, 0.3, 0.2),
            paint(draw, (0.95, 0.95, 0.9), True),
        )
        b.keypoint(f"{name}_headlight", (half + 0.02, s * width * 0.38, 0.75))
        b.keypoint(f"roof_front_{name}", (half - 0.1, s * width * 0.42, cab_height - 0.08))
        b.keypoint(f"roof_rear_{name}", (-half + 0.1, s * width * 0.45, height - 0.05))
        b.box(f"{name}_mirror", (half - 0.1, s * (width / 2 + 0.12), height * 0.62), (0.08, 0.16, 0.35), dark)
    b.box("bumper", (half - 0.05, 0, 0.5), (0.2, width * 0.95, 0.25), dark)


def bicycle(scene: Scene, draw: Draw, at: Vector, yaw: float, motor: bool = False) -> None:
    """A bicycle, or with ``motor`` a motorcycle."""
    word, colour = named_colour(draw)
    frame = paint(draw, colour, True)
    steel, dark = metal(draw), paint(draw, _BLACK)
    r = draw.uniform(0.3, 0.36)
    reach = draw.uniform(0.5, 0.55) if not motor else draw.uniform(0.66, 0.8)
    kind = "motorcycle" if motor else "bicycle"
    b = scene.add(
        kind, at, yaw, semantic="minibike" if motor else "bicycle", phrase=f"a {word} {kind}", salience=1.4
    )
    thick = 0.38 if motor else 0.1
    for name, x in (("front", reach), ("rear", -reach)):
        b.part(
            f"{name}_wheel",
            primitives.torus(thick * 0.5, 24, 8),
            (x, 0, r),
            (2 * r, 2 * r, 2 * r),
            dark,
            _LIE,
        )
        if motor:
            b.part(
                f"{name}_wheel", primitives.frustum(1.0, 16), (x, 0, r), (1.3 * r, 1.3 * r, 0.03), steel, _LIE
            )
        b.part(f"{name}_hub", primitives.frustum(1.0, 8), (x, 0, r), (0.07, 0.07, 0.12), steel, _LIE)
        for i in range(6):
            a = i * math.pi / 3
            tip = (x + 0.9 * r * math.cos(a), 0.0, r + 0.9 * r * math.sin(a))
            b.rod(f"{name}_spokes", (x, 0, r), tip, 0.012 if motor else 0.003, steel, segments=4)
        b.keypoint(f"{name}_hub", (x, 0.06, r))
        b.keypoint(f"{name}_tyre_top", (x, 0, 2 * r))
    head, bar = (reach - 0.12, 0.0, 2 * r + 0.12), (reach - 0.22, 0.0, 2 * r + draw.uniform(0.28, 0.42))
    seat = (-reach * 0.42, 0.0, 2 * r + (0.28 if not motor else 0.1))
    crank = (-0.08, 0.0, r * 0.9)
    tube = 0.035 if motor else 0.018
    for s in (-1, 1):
        b.rod("fork", (head[0], s * 0.05, head[2]), (reach, s * 0.06, r), tube * 0.7, steel, segments=8)
        b.rod("frame", (crank[0], s * 0.04, crank[2]), (-reach, s * 0.06, r), tube * 0.6, frame, segments=6)
        if not motor:
            b.rod(
                "frame",
                (seat[0], s * 0.02, seat[2] - 0.1),
                (-reach, s * 0.06, r),
                tube * 0.5,
                frame,
                segments=6,
            )
    b.rod("frame", crank, (head[0], 0, head[2] - 0.1), tube, frame, segments=8)
    b.rod("frame", (seat[0] * 0.9, 0, seat[2] - 0.12), head, tube, frame, segments=8)
    b.rod("frame", crank, (seat[0], 0, seat[2]), tube, frame, segments=8)
    b.rod("handlebar", head, bar, tube * 0.8, steel, segments=6)
    w = draw.uniform(0.24, 0.36)
    for name, s in (("left", 1), ("right", -1)):
        tip = (bar[0] - draw.uniform(0.05, 0.15), s * w, bar[2] + draw.uniform(-0.03, 0.05))
        b.limb("handlebar", bar, tip, 0.013, steel)
        b.limb(f"{name}_grip", (tip[0], tip[1] * 0.75, tip[2]), tip, 0.018, dark)
        b.keypoint(f"{name}_grip", tip)
        if not motor:
            b.box(f"{name}_pedal", (crank[0] + s * 0.15, s * 0.12, crank[2]), (0.09, 0.08, 0.02), dark)
            b.rod(
                f"{name}_pedal",
                (crank[0], s * 0.07, crank[2]),
                (crank[0] + s * 0.15, s * 0.08, crank[2]),
                0.01,
                steel,
                segments=4,
            )
    if motor:
        b.part("tank", primitives.superellipsoid(0.7, 0.8), (0.12, 0, 2 * r + 0.12), (0.6, 0.28, 0.26), frame)
        b.box("saddle", (-0.38, 0, 2 * r + 0.08), (0.75, 0.27, 0.12), leather(draw), bevel=0.05)
        b.box("engine", (0.02, 0, r + 0.08), (0.42, 0.3, 0.36), steel, bevel=0.03)
        for i in range(4):
            b.box("fins", (0.06, 0, r + 0.12 + 0.05 * i), (0.36, 0.36, 0.018), metal(draw))
        for s in (-1, 1):
            b.rod(
                "exhaust",
                (0.05, s * 0.18, r * 0.75),
                (-reach - 0.15, s * 0.2, r * 0.85),
                0.045,
                metal(draw, (0.8, 0.8, 0.82)),
                ratio=1.25,
            )
            b.rod("shock", (-reach, s * 0.12, r), (-0.5, s * 0.12, 2 * r + 0.05), 0.03, steel, segments=8)
        b.ball("headlight", (reach - 0.05, 0, 2 * r + 0.2), (0.16, 0.18, 0.18), metal(draw))
        for name, x in (("front", reach), ("rear", -reach)):
            turn = np.linspace(0.2, 2.4, 9) + (0.2 if name == "rear" else -0.1)
            arc = np.stack([x + 1.12 * r * np.cos(turn), 0 * turn, r + 1.12 * r * np.sin(turn)], 1)
            b.part(f"{name}_mudguard", primitives.tube(arc, 0.06), (0, 0, 0), (1, 1, 1), frame)
    else:
        b.part("saddle", primitives.superellipsoid(0.8, 0.8), seat, (0.26, 0.15, 0.07), leather(draw))
        if draw.chance(0.4):
            b.box(
                "basket",
                (reach + 0.05, 0, 2 * r + 0.2),
                (0.25, 0.32, 0.22),
                textured(draw, "cloth", ((0.4, 0.3, 0.2),) * 3, 0.1),
            )
    b.keypoint("saddle", (seat[0], 0, seat[2] + 0.03))
    b.keypoint("crank", (crank[0], 0.05, crank[2]))


def motorcycle(scene: Scene, draw: Draw, at: Vector, yaw: float) -> None:
    """A motorcycle."""
    bicycle(scene, draw, at, yaw, motor=True)
