"""Creature-like objects of named parts with varied build and pose; they look towards +x."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vision3d.synthetic import primitives
from vision3d.synthetic.draw import Draw
from vision3d.synthetic.materials import (
    Material,
    any_colour,
    fabric,
    fur,
    jitter,
    named_colour,
    paint,
    shade,
    skin,
    textured,
)
from vision3d.synthetic.scene import Scene, Vector, rotation_y, rotation_z


@dataclass(frozen=True)
class _Build:
    """Proportions of a quadruped relative to its shoulder height."""

    height: tuple[float, float]  # metres at the shoulder
    body: tuple[float, float]  # length
    girth: tuple[float, float]
    neck: tuple[float, float]
    head: tuple[float, float]
    snout: tuple[float, float]
    ear: tuple[float, float]
    tail: tuple[float, float]
    leg: tuple[float, float]  # thickness


_QUADRUPEDS = {
    "cat": _Build(
        (0.22, 0.3),
        (1.3, 1.6),
        (0.45, 0.6),
        (0.15, 0.25),
        (0.36, 0.44),
        (0.08, 0.14),
        (0.14, 0.2),
        (0.9, 1.3),
        (0.07, 0.1),
    ),
    "dog": _Build(
        (0.3, 0.7),
        (1.0, 1.4),
        (0.36, 0.52),
        (0.22, 0.38),
        (0.28, 0.38),
        (0.18, 0.32),
        (0.12, 0.26),
        (0.4, 0.9),
        (0.07, 0.11),
    ),
    "horse": _Build(
        (1.3, 1.65),
        (1.0, 1.2),
        (0.36, 0.44),
        (0.5, 0.6),
        (0.24, 0.28),
        (0.26, 0.34),
        (0.08, 0.11),
        (0.5, 0.7),
        (0.05, 0.07),
    ),
    "cow": _Build(
        (1.2, 1.5),
        (1.15, 1.35),
        (0.48, 0.58),
        (0.2, 0.3),
        (0.26, 0.3),
        (0.2, 0.26),
        (0.12, 0.16),
        (0.5, 0.7),
        (0.06, 0.085),
    ),
    "sheep": _Build(
        (0.6, 0.8),
        (1.05, 1.25),
        (0.6, 0.75),
        (0.16, 0.24),
        (0.28, 0.33),
        (0.16, 0.22),
        (0.12, 0.16),
        (0.12, 0.2),
        (0.05, 0.07),
    ),
}


def quadruped(scene: Scene, draw: Draw, at: Vector, yaw: float, category: str | None = None) -> None:
    """A cat, dog, horse, cow or sheep, standing, walking, sitting or grazing."""
    category = category or draw.pick(tuple(_QUADRUPEDS), [3, 3, 1.5, 1.5, 1.5])
    build = _QUADRUPEDS[category]

    def of(span: tuple[float, float]) -> float:
        return draw.uniform(*span)

    h = of(build.height)
    body, girth, neck, head = of(build.body) * h, of(build.girth) * h, of(build.neck) * h, of(build.head) * h
    snout, ear, tail, leg = of(build.snout) * h, of(build.ear) * h, of(build.tail) * h, of(build.leg) * h
    coat = fur(draw)
    word, colour = draw.pick(
        [
            ("white", (0.9, 0.88, 0.84)),
            ("black", (0.08, 0.075, 0.07)),
            ("brown", (0.42, 0.26, 0.14)),
            ("grey", (0.45, 0.44, 0.43)),
            ("orange", (0.75, 0.45, 0.18)),
        ]
    )
    c = jitter(draw, colour)
    coat = Material(
        coat.texture, (c, coat.colours[1], shade(c, 0.45)), coat.scale * h * 2, specular=0.02, gloss=8
    )
    b = scene.add(category, at, yaw, semantic="animal", phrase=f"a {word} {category}", salience=2.0)
    dark, pink = paint(draw, (0.03, 0.03, 0.03), True), paint(draw, (0.35, 0.2, 0.18))
    sitting = category in ("cat", "dog") and draw.chance(0.3)
    z = h - girth * 0.5
    tip_angle = draw.uniform(0.5, 0.8) if sitting else draw.uniform(-0.06, 0.06)
    ca, sa = math.cos(tip_angle), math.sin(tip_angle)
    half = body / 2 - girth * 0.4
    shoulder = (half * ca, 0.0, z + half * sa * (0.6 if sitting else 1))
    hip = (-half * ca, 0.0, z - half * sa * (0.9 if sitting else 1))
    if sitting:
        drop = hip[2] - girth * 0.5
        shoulder, hip = (shoulder[0] * 0.7, 0.0, shoulder[2] - drop * 0.2), (hip[0] * 0.7, 0.0, girth * 0.5)
    middle = ((shoulder[0] + hip[0]) / 2, 0.0, (shoulder[2] + hip[2]) / 2)
    length = math.hypot(shoulder[0] - hip[0], shoulder[2] - hip[2])
    pitch = -math.atan2(shoulder[2] - hip[2], shoulder[0] - hip[0])
    turn = rotation_y(pitch)
    b.ball(
        "body",
        middle,
        (length + girth * 0.8, girth * 0.92, girth * draw.uniform(0.85, 1.0)),
        coat,
        rotation=turn,
    )
    b.ball("chest", shoulder, (girth * 0.95, girth * 0.85, girth * 1.02), coat, rotation=turn)
    b.ball("rump", hip, (girth * 0.95, girth * 0.88, girth * 0.95), coat, rotation=turn)
    down = draw.chance(0.3) and category in ("horse", "cow", "sheep")
    lift = draw.uniform(-0.9, -0.5) if down else draw.uniform(0.35, 1.1)
    sway = draw.normal(0, 0.35)
    start = (shoulder[0] + girth * 0.25, 0.0, shoulder[2] + girth * (0.22 if not down else 0.1))
    top = (
        start[0] + neck * math.cos(lift) * math.cos(sway),
        neck * math.cos(lift) * math.sin(sway),
        start[2] + neck * math.sin(lift),
    )
    thick = head * (0.3 if category != "horse" else 0.36)
    b.limb("neck", start, top, thick, coat)
    b.limb("neck", (shoulder[0], 0, shoulder[2] + girth * 0.1), start, thick * 1.25, coat)
    look, nod = sway + draw.normal(0, 0.35), draw.uniform(-0.1, 0.5) if not down else draw.uniform(0.6, 1.0)
    face = rotation_z(look) @ rotation_y(nod)

    def on_head(x: float, y: float, z: float) -> Vector:
        p = face @ np.array([x, y, z])
        return (top[0] + float(p[0]), top[1] + float(p[1]), top[2] + float(p[2]))

    wide = 0.86 if category in ("cat", "dog") else 0.66
    b.ball("head", on_head(0.1 * head, 0, 0.05 * head), (head, head * wide, head * 0.85), coat, rotation=face)
    muzzle = coat if draw.chance(0.5) else fur(draw)
    b.ball(
        "snout",
        on_head(0.42 * head + snout * 0.4, 0, -0.12 * head),
        (snout * 1.5 + 0.1 * head, head * 0.46, head * 0.4),
        muzzle,
        rotation=face,
    )
    nose = on_head(0.46 * head + snout * 1.1, 0, -0.08 * head)
    b.ball("nose", nose, (head * 0.14,) * 3, pink if draw.chance(0.3) else dark, detail=1)
    b.keypoint("nose", nose)
    floppy = category in ("dog", "cow", "sheep") and draw.chance(0.6)
    for name, s in (("left", 1), ("right", -1)):
        eye = on_head(0.42 * head, s * head * wide * 0.34, 0.16 * head)
        b.ball(f"{name}_eye", eye, (head * 0.13,) * 3, dark, detail=1)
        b.keypoint(f"{name}_eye", eye)
        root = on_head(-0.02 * head, s * head * wide * 0.36, 0.34 * head)
        if floppy:
            tip = on_head(-0.05 * head, s * (head * wide * 0.5 + 0.3 * ear), 0.3 * head - ear)
            b.ball(
                f"{name}_ear",
                ((root[0] + tip[0]) / 2, (root[1] + tip[1]) / 2, (root[2] + tip[2]) / 2),
                (head * 0.28, head * 0.1, ear * 1.25),
                coat,
                rotation=face,
            )  # type: ignore[arg-type]
        else:
            tip = on_head(-0.1 * head, s * head * wide * 0.48, 0.34 * head + ear)
            b.rod(f"{name}_ear", root, tip, head * 0.17, coat, ratio=0.125, segments=8)
        b.keypoint(f"{name}_ear_tip", tip)
        if category == "cow" and not floppy:
            horn = on_head(0.0, s * head * 0.62, 0.55 * head)
            b.rod(
                f"{name}_horn",
                on_head(0, s * head * 0.28, 0.4 * head),
                horn,
                head * 0.07,
                paint(draw, (0.85, 0.8, 0.7)),
                ratio=0.25,
                segments=8,
            )
    walk = draw.uniform(0, 0.45) if not sitting else 0.0
    hoof = paint(draw, (0.12, 0.1, 0.09)) if category in ("horse", "cow", "sheep") else coat
    for name, s, front in (
        ("front_left", 1, True),
        ("front_right", -1, True),
        ("hind_left", 1, False),
        ("hind_right", -1, False),
    ):
        joint = shoulder if front else hip
        y = s * girth * 0.3
        swing = walk * (1 if (s > 0) == front else -1) + draw.normal(0, 0.05)
        root = (joint[0], y, joint[2] - girth * 0.15)
        if sitting and not front:
            knee: Vector = (joint[0] + girth * 0.75, y * 1.35, girth * 0.55)
            foot: Vector = (joint[0] + girth * 0.55, y * 1.4, leg * 0.45)
            toe: Vector = (foot[0] + leg * 2.2, foot[1], leg * 0.45)
        else:
            reach = root[2]
            bend = 0.12 if front else -0.16
            knee = (root[0] + reach * (0.5 * math.sin(swing) + bend * 0.5), y, reach * 0.5)
            foot = (root[0] + reach * math.sin(swing) * 0.9 + (0 if front else -0.04 * reach), y, leg * 0.5)
            toe = (foot[0] + leg * (0.9 if category in ("cat", "dog") else 0.2), y, leg * 0.45)
        b.limb(f"{name}_thigh", root, knee, leg * (0.95 if front else 1.3), coat)
        b.limb(f"{name}_shin", knee, foot, leg * 0.62, coat)
        b.ball(f"{name}_paw", toe, (leg * 1.8, leg * 1.35, leg * 0.95), hoof, detail=1)
        b.keypoint(f"{name}_knee", knee)
        b.keypoint(f"{name}_paw", toe)
    base = (hip[0] - girth * 0.42, 0.0, hip[2] + girth * 0.22)
    curl = draw.uniform(-0.9, 0.9) if category in ("cat", "dog") else draw.uniform(-1.3, -0.9)
    sweep = draw.normal(0, 0.5)
    count = 9
    points = [base]
    angle = math.pi - curl * 0.5
    for i in range(count - 1):
        t = i / (count - 1)
        rise = curl * (0.5 + t) if category in ("cat", "dog") else curl
        last = points[-1]
        step = tail / (count - 1)
        points.append(
            (
                last[0] - step * math.cos(rise),
                last[1] + step * math.sin(sweep * t),
                max(leg * 0.4, last[2] + step * math.sin(rise)),
            )
        )
    del angle
    width = head * (0.09 if category in ("cat", "cow") else 0.14)
    b.part("tail", primitives.tube(np.array(points), width, 8), (0, 0, 0), (1, 1, 1), coat)
    b.ball(
        "tail_tip", points[-1], (width * 2.1,) * 3 if category != "cow" else (head * 0.3,) * 3, coat, detail=1
    )
    b.keypoint("tail_base", base)
    b.keypoint("tail_tip", points[-1])
    b.keypoint("withers", (shoulder[0], 0, shoulder[2] + girth * 0.47))
    b.keypoint("rump", (hip[0] - girth * 0.1, 0, hip[2] + girth * 0.44))


def bird(scene: Scene, draw: Draw, at: Vector, yaw: float) -> None:
    """A perching, walking or flying bird."""
    word, colour = named_colour(draw)
    s = draw.uniform(0.12, 0.5)
    coat = textured(draw, "fur", (colour, any_colour(draw), shade(colour, 0.5)), s)
    b = scene.add("bird", at, yaw, semantic="animal", phrase=f"a {word} bird", salience=1.6)
    beak, dark = (
        paint(draw, draw.pick([(0.9, 0.6, 0.1), (0.1, 0.1, 0.1)])),
        paint(draw, (0.02, 0.02, 0.02), True),
    )
    leg = s * draw.uniform(0.25, 0.9)
    lean = draw.uniform(0.1, 0.7)
    turn = rotation_y(-lean)
    ca, sa = math.cos(lean), math.sin(lean)
    z = leg + 0.24 * s
    b.ball("body", (0, 0, z), (s, 0.5 * s, 0.5 * s), coat, rotation=turn)
    neck = draw.uniform(0.1, 0.5) * s
    root = (0.36 * s * ca, 0.0, z + 0.36 * s * sa)
    head: Vector = (root[0] + 0.12 * s, 0.0, root[2] + neck)
    b.limb("neck", root, head, 0.11 * s, coat)
    b.ball("head", head, (0.32 * s, 0.28 * s, 0.28 * s), coat if draw.chance(0.6) else fabric(draw))
    tip = (head[0] + s * draw.uniform(0.25, 0.4), 0.0, head[2] - 0.03 * s)
    b.rod("beak", (head[0] + 0.1 * s, 0, head[2]), tip, 0.06 * s, beak, ratio=0.125, segments=8)
    b.keypoint("beak_tip", tip)
    b.keypoint("crown", (head[0], 0, head[2] + 0.14 * s))
    back = (-0.5 * s * ca, 0.0, z - 0.5 * s * sa)
    end = (back[0] - draw.uniform(0.3, 0.6) * s, 0.0, back[2] - draw.uniform(-0.05, 0.2) * s)
    b.part(
        "tail",
        primitives.leaves(
            np.array([(-0.4 * s * ca, 0, z - 0.36 * s * sa)]), np.array([end]), np.array([(0, 0.14 * s, 0)])
        ),
        (0, 0, 0),
        (1, 1, 1),
        coat,
    )
    b.keypoint("tail_tip", end)
    b.keypoint("breast", (0.3 * s * ca, 0, z + 0.3 * s * sa - 0.2 * s))
    b.keypoint("back", (-0.05 * s, 0, z + 0.24 * s))
    spread = draw.chance(0.35)
    for name, side in (("left", 1), ("right", -1)):
        eye = (head[0] + 0.09 * s, side * 0.115 * s, head[2] + 0.05 * s)
        b.ball(f"{name}_eye", eye, (0.05 * s,) * 3, dark, detail=1)
        b.keypoint(f"{name}_eye", eye)
        if spread:
            wing: Vector = (-0.1 * s, side * draw.uniform(0.7, 1.0) * s, z + draw.uniform(0.2, 0.6) * s)
            base = np.array([(0.12 * s, side * 0.2 * s, z + 0.1 * s)])
            b.part(
                f"{name}_wing",
                primitives.leaves(base, np.array([wing]), np.array([(0.22 * s, 0, 0.02 * s)])),
                (0, 0, 0),
                (1, 1, 1),
                coat,
            )
        else:
            wing = (-0.42 * s * ca, side * 0.2 * s, z - 0.3 * s * sa)
            b.ball(
                f"{name}_wing",
                (-0.06 * s, side * 0.22 * s, z),
                (0.8 * s, 0.12 * s, 0.34 * s),
                fabric(draw, shade(colour, 0.7)),
                rotation=turn,
            )
        b.keypoint(f"{name}_wing_tip", wing)
        foot = (draw.uniform(-0.05, 0.1) * s, side * 0.1 * s, 0.01 * s)
        b.rod(f"{name}_leg", (0, side * 0.1 * s, z - 0.15 * s), foot, 0.02 * s, beak, segments=6)
        b.box(f"{name}_foot", (foot[0] + 0.06 * s, foot[1], 0.012 * s), (0.16 * s, 0.1 * s, 0.024 * s), beak)
        b.keypoint(f"{name}_foot", foot)


def person(scene: Scene, draw: Draw, at: Vector, yaw: float, sitting: bool = False) -> None:
    """A clothed figure, standing, walking or sitting (on a seat 0.45 m high)."""
    h = draw.uniform(1.45, 1.95) if draw.chance(0.88) else draw.uniform(0.95, 1.3)
    word, colour = named_colour(draw)
    top, legs, flesh = fabric(draw, colour), fabric(draw), skin(draw)
    shoes = paint(draw, draw.pick([(0.05, 0.05, 0.05), (0.9, 0.9, 0.9), (0.3, 0.2, 0.1)]))
    hair = textured(
        draw,
        "brushed",
        (draw.pick([(0.06, 0.05, 0.04), (0.3, 0.18, 0.08), (0.75, 0.6, 0.35), (0.6, 0.6, 0.6)]),) * 3,
        0.1,
    )
    b = scene.add("person", at, yaw, semantic="person", phrase=f"a person in {word}", salience=1.5)
    wide = draw.uniform(0.85, 1.25)
    hip_z = 0.5 * h if not sitting else 0.47 + 0.06 * h
    shoulder_z = hip_z + 0.3 * h
    lean = draw.normal(0.03, 0.08)
    sh_x = lean * 0.3 * h
    b.part(
        "torso",
        primitives.superellipsoid(0.6, 0.8),
        (sh_x * 0.5, 0, (hip_z + shoulder_z) / 2 + 0.01 * h),
        (0.13 * h * wide, 0.21 * h * wide, 0.36 * h),
        top,
    )
    b.ball("hips", (0, 0, hip_z), (0.13 * h * wide, 0.2 * h * wide, 0.14 * h), legs)
    b.limb("neck", (sh_x, 0, shoulder_z), (sh_x + 0.01 * h, 0, shoulder_z + 0.06 * h), 0.028 * h, flesh)
    head: Vector = (sh_x + 0.015 * h, 0.0, shoulder_z + 0.125 * h)
    look = rotation_z(draw.normal(0, 0.4))
    b.ball("head", head, (0.115 * h, 0.095 * h, 0.14 * h), flesh, rotation=look)

    def on_head(x: float, y: float, z: float) -> Vector:
        p = look @ np.array([x * h, y * h, z * h])
        return (head[0] + float(p[0]), head[1] + float(p[1]), head[2] + float(p[2]))

    if draw.chance(0.9):
        b.ball("hair", on_head(-0.012, 0, 0.018), (0.12 * h, 0.108 * h, 0.13 * h), hair, rotation=look)
    nose = on_head(0.06, 0, 0.0)
    b.ball("nose", nose, (0.022 * h,) * 3, flesh, detail=1)
    b.keypoint("nose", nose)
    b.keypoint("crown", on_head(-0.01, 0, 0.08))
    walk = draw.uniform(0, 0.5) if draw.chance(0.6) else 0.05
    for name, s in (("left", 1), ("right", -1)):
        b.ball(
            f"{name}_eye",
            on_head(0.05, s * 0.018, 0.015),
            (0.014 * h,) * 3,
            paint(draw, (0.03, 0.03, 0.03), True),
            detail=1,
        )
        shoulder = (sh_x, s * 0.105 * h * wide, shoulder_z - 0.01 * h)
        swing = -s * walk * draw.uniform(0.3, 1) + draw.normal(0, 0.1)
        out = draw.uniform(0.03, 0.3)
        if draw.chance(0.15):
            swing, out = draw.uniform(0.5, 2.5), draw.uniform(0.1, 0.6)
        elbow = (
            shoulder[0] + 0.16 * h * math.sin(swing),
            shoulder[1] + s * 0.16 * h * math.sin(out),
            shoulder[2] - 0.16 * h * math.cos(swing) * math.cos(out),
        )
        bend = swing + draw.uniform(0.1, 1.3)
        wrist = (elbow[0] + 0.15 * h * math.sin(bend), elbow[1], elbow[2] - 0.15 * h * math.cos(bend))
        b.limb(f"{name}_upper_arm", shoulder, elbow, 0.028 * h * wide, top)
        b.limb(f"{name}_forearm", elbow, wrist, 0.021 * h, top if draw.chance(0.6) else flesh)
        b.ball(f"{name}_hand", wrist, (0.05 * h, 0.03 * h, 0.055 * h), flesh, detail=1)
        hip = (0.0, s * 0.05 * h * wide, hip_z)
        if sitting:
            knee: Vector = (0.25 * h, s * draw.uniform(0.05, 0.1) * h, hip_z + 0.01 * h)
            ankle: Vector = (knee[0] + draw.normal(0, 0.05) * h, knee[1], 0.04 * h)
        else:
            stride = s * walk
            knee = (0.25 * h * math.sin(stride) + 0.02 * h, hip[1], hip_z - 0.24 * h * math.cos(stride))
            ankle = (0.45 * h * math.sin(stride) * 0.95 - 0.01 * h, hip[1], 0.035 * h)
        b.limb(f"{name}_thigh", hip, knee, 0.043 * h * wide, legs)
        b.limb(f"{name}_shin", knee, ankle, 0.03 * h * wide, legs if draw.chance(0.75) else flesh)
        b.box(
            f"{name}_shoe",
            (ankle[0] + 0.025 * h, ankle[1], 0.02 * h),
            (0.15 * h, 0.055 * h, 0.04 * h),
            shoes,
            bevel=0.012 * h,
        )
        for joint, point in (
            ("shoulder", shoulder),
            ("elbow", elbow),
            ("wrist", wrist),
            ("hip", hip),
            ("knee", knee),
            ("ankle", ankle),
        ):
            b.keypoint(f"{name}_{joint}", point)
