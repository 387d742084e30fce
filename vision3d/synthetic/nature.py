"""Trees, bushes, rocks, fences and street furniture."""

from __future__ import annotations

import math

import numpy as np

from vision3d.synthetic import primitives
from vision3d.synthetic.clutter import leaf_cluster, leaf_material
from vision3d.synthetic.draw import Draw
from vision3d.synthetic.materials import (
    Material,
    any_colour,
    jitter,
    metal,
    paint,
    printed,
    shade,
    textured,
    wood,
)
from vision3d.synthetic.scene import Scene, Vector, rotation_x, rotation_z


def lumpy(
    draw: Draw, amplitude: float, frequency: float = 3.0, subdivisions: int = 2
) -> primitives.Primitive:
    """A ball with random waves on it."""
    count = 7
    bumps = np.column_stack(
        [
            draw.generator.normal(0, frequency, (count, 3)),
            draw.generator.random(count) * 6.3,
            amplitude * draw.generator.random(count),
        ]
    )
    return primitives.blob(bumps, subdivisions)


class Flora:
    """The plants of one scene: a few crown shapes and leaf colours that its trees share."""

    def __init__(self, draw: Draw) -> None:
        self.crowns = [lumpy(draw, draw.uniform(0.09, 0.2), draw.uniform(3, 7), level) for level in (1, 1, 2)]
        self.spray = leaf_cluster(draw, 1.0, 0.2, "bush")
        self.tufts = [leaf_cluster(draw, 1.0, 0.2) for _ in range(3)]
        self.leaves = [self._foliage(draw) for _ in range(2)]
        self.tuft_leaves = [leaf_material(draw) for _ in range(2)]
        bark = jitter(draw, draw.pick([(0.28, 0.2, 0.14), (0.35, 0.3, 0.25), (0.6, 0.56, 0.5)]))
        self.bark = textured(draw, "cloudy", (bark, shade(bark, 0.6), shade(bark, 1.3)), 0.5)

    def _foliage(self, draw: Draw) -> Material:
        tone = draw.pick(
            [(0.16, 0.3, 0.08), (0.3, 0.42, 0.13), (0.1, 0.22, 0.1), (0.55, 0.4, 0.1), (0.5, 0.2, 0.08)],
            [4, 3, 3, 0.6, 0.4],
        )
        c = jitter(draw, tone)
        return textured(
            draw, "foliage", (c, shade(c, draw.uniform(1.2, 1.8)), shade(c, 0.5)), draw.uniform(0.7, 1.6)
        )

    def tree(self, scene: Scene, draw: Draw, at: Vector, height: float, semantic: str = "tree") -> None:
        """A broad-leaved tree, conifer, poplar or bare tree."""
        style = draw.pick(["round", "conifer", "column", "bare"], [6, 2, 1, 0.7])
        b = scene.add("tree", at, draw.angle(), semantic=semantic, salience=0.5)
        r = height * draw.uniform(0.015, 0.035)
        leaves = draw.pick(self.leaves)
        if style == "conifer":
            b.rod("trunk", (0, 0, -0.2), (0, 0, height * 0.9), r, self.bark, ratio=0.25, segments=8)
            tiers = draw.integer(2, 5)
            width = height * draw.uniform(0.16, 0.28)
            for i in range(tiers):
                t = i / tiers
                z = height * (0.15 + 0.85 * t)
                w = width * (1 - 0.8 * t)
                b.cylinder("crown", (0, 0, z), w, height * 1.15 / tiers, leaves, ratio=0.0, segments=12)
            return
        trunk = height * draw.uniform(0.25, 0.5)
        tip = (draw.normal(0, 0.04) * height, draw.normal(0, 0.04) * height, trunk * 1.2)
        b.rod("trunk", (0, 0, -0.2), tip, r, self.bark, ratio=0.75, segments=8)
        if style == "bare":
            for _ in range(draw.integer(6, 14)):
                a, t = draw.angle(), draw.uniform(0.55, 1.0)
                root = (tip[0] * t, tip[1] * t, tip[2] * t)
                reach, rise = height * draw.uniform(0.15, 0.35), height * draw.uniform(0.15, 0.5)
                end = (root[0] + reach * math.cos(a), root[1] + reach * math.sin(a), root[2] + rise)
                b.rod("branch", root, end, r * 0.5, self.bark, ratio=0.25, segments=5)
            return
        count = draw.integer(1, 2) if style == "column" else draw.integer(4, 9)
        thin = height * draw.uniform(0.1, 0.16)
        size = height * draw.uniform(0.22, 0.4)
        for i in range(count):
            a, t = i * 2.4 + draw.uniform(0, 1), (i + 0.5) / count
            spread = thin * 0.2 if style == "column" else height * draw.uniform(0.1, 0.24) * (1.15 - t)
            z = trunk + (height - trunk) * (0.5 if style == "column" else 0.1 + 0.75 * t)
            spot = (tip[0] + spread * math.cos(a), tip[1] + spread * math.sin(a), z)
            wide, tall = size * draw.uniform(0.7, 1.1), size * draw.uniform(0.6, 0.9)
            if style == "column":
                wide, tall = thin * 2, height - trunk
            b.part(
                "crown", draw.pick(self.crowns), spot, (wide, wide, tall), leaves, rotation_z(draw.angle())
            )
            if draw.chance(0.5):  # leaves that break the outline
                reach = max(wide, tall) * draw.uniform(0.75, 1.0)
                root = (spot[0], spot[1], z - 0.35 * reach)
                turn = rotation_z(draw.angle())
                b.part(
                    "crown",
                    self.spray,
                    root,
                    (reach, reach, reach),
                    draw.pick([leaves, leaves, self.leaves[0]]),
                    turn,
                )

    def bush(self, scene: Scene, draw: Draw, at: Vector, size: float) -> None:
        """A bush, hedge ball or tuft of leaves."""
        b = scene.add("bush", at, draw.angle(), semantic="plant", salience=0.3)
        if draw.chance(0.6):
            for _ in range(draw.integer(1, 3)):
                s = size * draw.uniform(0.6, 1.0)
                spot = (draw.normal(0, 0.25) * size, draw.normal(0, 0.25) * size, s * 0.35)
                leaves = draw.pick(self.leaves)
                b.part(
                    "leaves", draw.pick(self.crowns), spot, (s, s, s * 0.9), leaves, rotation_z(draw.angle())
                )
        else:
            leaves = draw.pick(self.tuft_leaves)
            b.part("leaves", draw.pick(self.tufts), (0, 0, 0), (size, size, size), leaves)


def rock(scene: Scene, draw: Draw, at: Vector, size: float, shape: primitives.Primitive) -> None:
    """A boulder or stone half in the ground."""
    b = scene.add("rock", at, draw.angle(), semantic="rock", salience=0.3)
    v = draw.uniform(0.3, 0.65)
    c = jitter(draw, (v, v * 0.96, v * 0.9))
    material = textured(
        draw, draw.pick(["concrete", "cloudy", "speckle"]), (c, shade(c, 0.6), shade(c, 1.2)), 1.0
    )
    flat = draw.uniform(0.5, 0.9)
    b.part(
        "rock", shape, (0, 0, size * flat * 0.3), (size, size * draw.uniform(0.6, 1), size * flat), material
    )


def fence(scene: Scene, draw: Draw, start: Vector, end: Vector) -> None:
    """A wooden or metal fence, or a low wall, between two points."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dx, dy)
    b = scene.add("fence", start, math.atan2(dy, dx), semantic="fence", salience=0.3)
    h = draw.uniform(0.6, 1.6)
    material = wood(draw) if draw.chance(0.6) else metal(draw)
    style = draw.pick(["pickets", "rails", "wall", "hedge"])
    if style == "wall":
        c = any_colour(draw, 0.3)
        stone = textured(
            draw, draw.pick(["brick", "stones", "concrete"]), (c, shade(c, 0.7), (0.7, 0.7, 0.66)), 1.2
        )
        b.box("wall", (length / 2, 0, h / 2), (length, 0.25, h), stone)
        return
    if style == "hedge":
        c = jitter(draw, (0.15, 0.3, 0.1))
        leaves = textured(draw, "foliage", (c, shade(c, 1.6), shade(c, 0.5)), 0.9)
        b.box("hedge", (length / 2, 0, h / 2), (length, 0.7, h), leaves, bevel=0.15, semantic="plant")
        return
    posts = min(14, max(2, int(length / 2)))
    for i in range(posts + 1):
        b.box("post", (length * i / posts, 0, h / 2), (0.1, 0.1, h), material)
    for z in (0.3, 0.8) if style == "pickets" else (0.35, 0.6, 0.9):
        b.box("rail", (length / 2, 0, h * z), (length, 0.05, 0.09), material)
    if style == "pickets":
        count = min(70, int(length / 0.22))
        for i in range(count):
            b.box("picket", (length * (i + 0.5) / count, 0.04, h * 0.5), (0.1, 0.025, h * 0.95), material)


def street_light(scene: Scene, draw: Draw, at: Vector, yaw: float) -> None:
    """A lamp post whose arm reaches towards +x."""
    b = scene.add("street light", at, yaw, semantic="streetlight", salience=0.2)
    h = draw.uniform(3.5, 8)
    post = metal(draw) if draw.chance(0.5) else paint(draw, draw.pick([(0.1, 0.2, 0.12), (0.06, 0.06, 0.06)]))
    b.rod("post", (0, 0, 0), (0, 0, h), 0.09, post, ratio=0.625, segments=8)
    if draw.chance(0.6):
        arm = draw.uniform(0.6, 1.8)
        b.rod("arm", (0, 0, h), (arm, 0, h + 0.15), 0.045, post, segments=6)
        b.box("lamp", (arm + 0.2, 0, h + 0.13), (0.6, 0.22, 0.12), post, bevel=0.04)
    else:
        b.ball("lamp", (0, 0, h + 0.15), (0.4, 0.4, 0.45), paint(draw, (0.95, 0.95, 0.9)))


def road_sign(scene: Scene, draw: Draw, at: Vector, yaw: float) -> None:
    """A sign on a pole; it faces +x."""
    b = scene.add("sign", at, yaw, semantic="signboard", salience=0.3)
    h = draw.uniform(1.8, 2.8)
    b.rod("pole", (0, 0, 0), (0, 0, h), 0.035, metal(draw), segments=8, semantic="pole")
    colour = draw.pick([(0.75, 0.05, 0.05), (0.05, 0.2, 0.6), (0.95, 0.8, 0.1), (0.9, 0.9, 0.9)])
    face = textured(
        draw,
        draw.pick(["label", "poster"]),
        (colour, (0.95, 0.95, 0.95), (0.08, 0.08, 0.1)),
        1,
        mapping="fit",
    )
    if draw.chance(0.5):
        s = draw.uniform(0.5, 0.8)
        turn = rotation_z(math.pi / 2) @ rotation_x(math.pi / 2)
        b.part(
            "face",
            primitives.frustum(1.0, draw.pick([24, 8, 24])),
            (0.05, 0, h - s / 2),
            (s, s, 0.03),
            face,
            turn,
        )
    else:
        w, t = draw.uniform(0.5, 1.6), draw.uniform(0.4, 0.9)
        b.box("face", (0.05, 0, h - t / 2), (0.03, w, t), face)


def bin_or_box(scene: Scene, draw: Draw, at: Vector, yaw: float) -> None:
    """A rubbish bin, post box, bollard, bench or planter."""
    kind = draw.pick(["bin", "box", "bollard", "bench"])
    if kind == "bin":
        b = scene.add("bin", at, yaw, semantic="ashcan", salience=0.3)
        h = draw.uniform(0.7, 1.2)
        b.cylinder("body", (0, 0, 0), draw.uniform(0.22, 0.35), h, paint(draw), ratio=draw.pick([1.0, 1.25]))
        b.ball("lid", (0, 0, h), (0.6, 0.6, 0.2), paint(draw), detail=1)
    elif kind == "box":
        b = scene.add("box", at, yaw, semantic="box", salience=0.3)
        h = draw.uniform(0.6, 1.5)
        b.box(
            "body",
            (0, 0, h / 2),
            (draw.uniform(0.4, 0.8), draw.uniform(0.5, 1.2), h),
            paint(draw),
            bevel=0.03,
        )
        b.box("front", (0, 0, h * 0.6), (0.82, 0.3, 0.3), printed(draw))
    elif kind == "bollard":
        b = scene.add("bollard", at, yaw, semantic="pole", salience=0.1)
        b.limb("post", (0, 0, 0), (0, 0, draw.uniform(0.6, 1.0)), draw.uniform(0.06, 0.12), paint(draw))
    else:
        b = scene.add("bench", at, yaw, semantic="bench", salience=0.5)
        material, frame = wood(draw), metal(draw)
        w = draw.uniform(1.3, 2.0)
        for i in range(3):
            b.box("seat", (-0.15 + 0.16 * i, 0, 0.45), (0.13, w, 0.04), material)
        for i in range(2):
            b.box("back", (-0.26 - 0.03 * i, 0, 0.62 + 0.16 * i), (0.035, w, 0.12), material)
        for s in (-1, 1):
            b.box("leg", (0, s * w * 0.42, 0.22), (0.4, 0.05, 0.44), frame)
            b.rod("leg", (-0.22, s * w * 0.42, 0.4), (-0.31, s * w * 0.42, 0.85), 0.025, frame, segments=6)
