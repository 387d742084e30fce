"""Open ground: streets, parks with a castle, meadows and hills."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from vision3d.synthetic import buildings, clutter, creatures, primitives, textures, vehicles
from vision3d.synthetic.draw import Draw
from vision3d.synthetic.materials import Material, any_colour, jitter, paint, shade, textured, wall_colour
from vision3d.synthetic.nature import Flora, bin_or_box, fence, lumpy, road_sign, rock, street_light
from vision3d.synthetic.scene import Light, Scene, Sky, Vector

Maker = Callable[[Scene, Draw, Vector, float], None]


def daylight(scene: Scene, draw: Draw) -> None:
    """Sun, sky and clouds: clear, hazy, overcast or low sun."""
    weather = draw.pick(["clear", "hazy", "overcast", "low"], [4, 2, 2.5, 1.5])
    azimuth = draw.angle()
    height = draw.uniform(0.35, 1.3) if weather != "low" else draw.uniform(0.08, 0.35)
    direction = (math.cos(height) * math.cos(azimuth), math.cos(height) * math.sin(azimuth), math.sin(height))
    if weather == "overcast":
        v = draw.uniform(0.7, 1.0)
        grey = (v, v * draw.uniform(0.98, 1.02), v * draw.uniform(1.0, 1.08))
        scene.sky = Sky(
            shade3(grey, 0.85),
            grey,
            (0.2, 0.2, 0.2),
            draw.uniform(0.3, 1),
            textures.choose(draw, "cloudy"),
            (draw.uniform(0, 1), draw.uniform(0, 1)),
            draw.uniform(0.8, 1.4),
        )
        sun = draw.uniform(0.0, 0.4)
        colour = (sun, sun, sun)
        scene.ambient = (0.35, 0.36, 0.38)
    else:
        blue = (draw.uniform(0.12, 0.3), draw.uniform(0.3, 0.5), draw.uniform(0.7, 0.95))
        horizon = (draw.uniform(0.6, 0.85), draw.uniform(0.72, 0.9), draw.uniform(0.85, 1.0))
        if weather == "low":
            horizon = (1.0, draw.uniform(0.6, 0.85), draw.uniform(0.35, 0.7))
        if weather == "hazy":
            blue = tuple(0.5 * (a + b) for a, b in zip(blue, horizon, strict=True))  # type: ignore[assignment]
        scene.sky = Sky(
            blue,
            horizon,
            (0.25, 0.23, 0.2),
            draw.uniform(0, 1) ** 1.5,
            textures.choose(draw, "cloudy"),
            (draw.uniform(0, 1), draw.uniform(0, 1)),
            draw.uniform(0.7, 1.2),
        )
        sun = draw.uniform(1.2, 2.6)
        warm = 1.0 if weather != "low" else draw.uniform(0.55, 0.8)
        colour = (sun, sun * (0.5 + 0.48 * warm), sun * (0.1 + 0.82 * warm))
        scene.ambient = (0.22, 0.24, 0.28)
    scene.haze = draw.log_uniform(150, 3000) if weather != "hazy" else draw.log_uniform(60, 300)
    if sum(colour) > 0.05:
        scene.lights.append(Light(direction, colour, draw.uniform(0.005, 0.06), distant=True))


def shade3(colour: Vector, factor: float) -> Vector:
    """A radiance scaled."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def ground_material(draw: Draw, kind: str) -> Material:
    """Grass, earth, sand, gravel, snow, asphalt, paving."""
    if kind == "grass":
        c = jitter(draw, draw.pick([(0.25, 0.38, 0.12), (0.38, 0.42, 0.2), (0.5, 0.48, 0.28)]))
        return textured(
            draw,
            "grass",
            (c, shade(c, 0.7), shade(draw.pick([c, (0.5, 0.42, 0.3)]), 1.2)),
            draw.uniform(1.5, 5),
        )
    if kind == "asphalt":
        v = draw.uniform(0.2, 0.5)
        c = (v, v, v * draw.uniform(0.95, 1.05))
        return textured(
            draw,
            "asphalt",
            (c, shade(c, 0.75), shade(c, 1.5)),
            draw.uniform(2, 6),
            shiny=draw.pick([0.0, 0.0, 0.3]),
        )
    if kind == "paving":
        v = draw.uniform(0.45, 0.75)
        c = (v, v * 0.97, v * 0.92)
        return textured(
            draw,
            draw.pick(["tiles", "brick", "stones", "concrete"]),
            (c, shade(c, 0.8), shade(c, 0.6)),
            draw.uniform(0.8, 2.5),
        )
    if kind == "snow":
        return textured(draw, "cloudy", ((0.93, 0.94, 0.97), (0.85, 0.87, 0.92), (0.95, 0.95, 0.97)), 4)
    c = jitter(draw, {"sand": (0.8, 0.7, 0.5), "gravel": (0.62, 0.58, 0.52)}.get(kind, (0.42, 0.33, 0.24)))
    return textured(
        draw,
        draw.pick(["speckle", "cloudy", "concrete", "stones"], [3, 2, 2, 0.7]),
        (c, shade(c, 0.75), shade(c, 1.2)),
        draw.uniform(1, 4),
    )


def horizon_hills(scene: Scene, draw: Draw, distance: float, semantic: str = "mountain") -> None:
    """A ring of hills or woods far away, so that the ground does not end at nothing."""
    count, rows = 49, 7
    angle = np.linspace(0, 2 * math.pi, count)
    radius = distance * np.array([0.75, 0.9, 1.0, 1.1, 1.2, 1.35, 1.6])
    g = draw.generator
    waves = np.zeros(count) + sum(
        np.sin(k * angle + g.random() * 6.28) * g.random() / k**0.7 for k in (1, 2, 3, 5, 7, 11, 13)
    )
    waves = waves - waves.min() + 0.2
    peak = distance * draw.uniform(0.03, 0.16)
    profile = np.array([-0.05, 0.25, 0.6, 0.85, 1.0, 0.8, 0.2])
    z = peak * profile[:, None] * waves[None] * 0.5 + peak * 0.05 * g.standard_normal((rows, count)) * (
        profile[:, None] > 0.3
    )
    z[:, -1] = z[:, 0]
    x, y = radius[:, None] * np.cos(angle), radius[:, None] * np.sin(angle)
    points = np.stack([x, y, z], -1)
    normals = np.cross(np.gradient(points, axis=0), np.gradient(points, axis=1))
    normals *= np.sign(normals[..., 2:] + 1e-9)
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(count - 1), indexing="ij")
    a = i * count + j
    faces = np.concatenate(
        [
            np.stack([a, a + 1, a + count + 1], -1).reshape(-1, 3),
            np.stack([a, a + count + 1, a + count], -1).reshape(-1, 3),
        ]
    )
    mesh = primitives.mesh(points.reshape(-1, 3), normals.reshape(-1, 3), faces)
    c = jitter(draw, draw.pick([(0.25, 0.33, 0.2), (0.35, 0.4, 0.45), (0.4, 0.36, 0.3), (0.2, 0.28, 0.18)]))
    b = scene.add("hills", phrase="hills", semantic=semantic, salience=0.1)
    b.part(
        "hills",
        mesh,
        (0, 0, 0),
        (1, 1, 1),
        textured(
            draw,
            draw.pick(["foliage", "cloudy", "grass"]),
            (c, shade(c, 0.75), shade(c, 1.3)),
            distance * 0.08,
        ),
    )


def street(scene: Scene, draw: Draw) -> None:
    """A road along x between pavements, houses, trees and parked cars."""
    scene.kind, scene.place = "street", "on a street"
    daylight(scene, draw)
    half = draw.uniform(2.6, 6.0)
    walk = draw.uniform(1.5, 4.0)
    kerb = draw.uniform(0.08, 0.18)
    base = scene.add("ground")
    ground = draw.pick(["grass", "earth", "paving", "grass"])
    base.box(
        "ground",
        (20, 0, -0.35),
        (500, 500, 0.5),
        ground_material(draw, ground),
        semantic={"grass": "grass", "earth": "earth", "paving": "sidewalk"}[ground],
    )
    road = scene.add("road", phrase="a road")
    road.box("road", (40, 0, -0.1), (320, 2 * half, 0.2), ground_material(draw, "asphalt"), semantic="road")
    white = paint(draw, jitter(draw, (0.85, 0.85, 0.83)), False)
    if draw.chance(0.85):
        dash, pitch = draw.uniform(1.5, 4), draw.uniform(4, 9)
        if draw.chance(0.2):
            road.box("line", (40, 0, 0.002), (300, 0.13, 0.006), white, semantic="road")
        else:
            for i in range(18):
                road.box("line", (-30 + i * pitch, 0, 0.002), (dash, 0.14, 0.006), white, semantic="road")
    if draw.chance(0.5):
        for s in (-1, 1):
            road.box("line", (40, s * (half - 0.3), 0.002), (300, 0.12, 0.006), white, semantic="road")
    if draw.chance(0.25):
        x = draw.uniform(4, 16)
        count = int(2 * half / 0.9)
        for i in range(count):
            road.box(
                "crossing",
                (x, -half + (i + 0.5) * 2 * half / count, 0.003),
                (3.0, 0.45, 0.007),
                white,
                semantic="road",
            )
    stone = textured(draw, "concrete", ((0.6, 0.59, 0.56), (0.5, 0.5, 0.48), (0.4, 0.4, 0.4)), 1.5)
    paving = ground_material(draw, draw.pick(["paving", "asphalt", "gravel"]))
    tram = draw.chance(0.12)
    flora = Flora(draw)
    wild = draw.chance(0.3)  # out of town: trees and fences instead of houses
    for s in (-1, 1):
        road.box(
            "sidewalk",
            (40, s * (half + walk / 2 + 0.07), kerb / 2 - 0.05),
            (320, walk, kerb + 0.1),
            paving,
            semantic="sidewalk",
        )
        road.box(
            "kerb",
            (40, s * (half + 0.07), kerb / 2 - 0.04),
            (320, 0.15, kerb + 0.1),
            stone,
            semantic="sidewalk",
        )
        edge = half + walk + 0.2
        if tram and s > 0:
            rails = scene.add("rails", semantic=None)
            gravel = ground_material(draw, "gravel")
            rails.box("bed", (40, edge + 2, 0.0), (320, 3.6, 0.3), gravel, semantic="earth")
            steel, sleeper = (
                paint(draw, (0.35, 0.3, 0.28), True),
                textured(draw, "wood", ((0.3, 0.24, 0.2),) * 3, 1),
            )
            for k in (-0.72, 0.72):
                rails.box("rail", (40, edge + 2 + k, 0.24), (320, 0.08, 0.14), steel)
            for i in range(70):
                rails.box("sleeper", (-10 + i * 0.8, edge + 2, 0.16), (0.25, 2.4, 0.1), sleeper)
            edge += 4.2
        x = draw.uniform(-30, -18)
        index = 0
        setback = draw.pick([0.0, 0.0, draw.uniform(1, 6)])
        while x < 110:
            width = draw.uniform(6, 16)
            if (wild and draw.chance(0.75)) or draw.chance(0.12):
                for _ in range(draw.integer(1, 4)):
                    spot = (x + draw.uniform(0, width), s * (edge + draw.uniform(1, 9)), -0.1)
                    flora.tree(scene, draw, spot, draw.uniform(4, 13))
                if draw.chance(0.5):
                    fence(scene, draw, (x, s * (edge + 0.4), 0.0), (x + width, s * (edge + 0.4), 0.0))
            else:
                deep = draw.uniform(7, 12)
                floors = draw.pick([1, 2, 2, 3, 3, 4, 5, 8])
                near = -12 < x < 32 and index < 7
                y = s * (edge + setback + deep / 2)
                buildings.house(
                    scene,
                    draw,
                    (x + width / 2, y, 0.0),
                    -s * math.pi / 2,
                    deep,
                    width - draw.pick([0.0, 0.4, 2.5]),
                    floors,
                    near,
                )
                if setback > 1.5:
                    if draw.chance(0.5):
                        fence(scene, draw, (x, s * (edge + 0.3), 0.0), (x + width, s * (edge + 0.3), 0.0))
                    flora.bush(
                        scene,
                        draw,
                        (x + draw.uniform(0, width), s * (edge + 1.2), 0.0),
                        draw.uniform(0.6, 1.6),
                    )
            index += 1
            x += width
        parked = draw.uniform(0, 0.75)
        x = draw.uniform(-8, 3)
        cars = 0
        while x < 70 and cars < 5:
            if draw.chance(parked):
                maker = vehicles.car if draw.chance(0.88) else vehicles.truck
                turn = 0.0 if s < 0 else math.pi
                maker(
                    scene, draw, (x, s * (half - draw.uniform(0.95, 1.15)), 0.0), turn + draw.normal(0, 0.03)
                )
                cars += 1
                x += 3.5 if maker is vehicles.truck else 0.0
            x += draw.uniform(5.5, 9)
        along = draw.uniform(2, 8)
        if draw.chance(0.6):
            for i in range(draw.integer(2, 7)):
                flora.tree(
                    scene,
                    draw,
                    (along + i * draw.uniform(6, 10), s * (half + min(walk - 0.4, 1.0)), 0.0),
                    draw.uniform(4, 9),
                )
        for i in range(draw.integer(0, 4)):
            street_light(scene, draw, (along + i * 18 - 5, s * (half + 0.5), kerb), -s * math.pi / 2)
        for _ in range(draw.integer(0, 2)):
            road_sign(
                scene, draw, (draw.uniform(3, 25), s * (half + 0.4), kerb), math.pi + draw.normal(0, 0.3)
            )
        for _ in range(draw.integer(0, 3)):
            bin_or_box(scene, draw, (draw.uniform(0, 20), s * (half + walk - 0.5), kerb), -s * math.pi / 2)
        for _ in range(draw.integer(0, 3)):
            creatures.person(
                scene,
                draw,
                (draw.uniform(2, 22), s * (half + draw.uniform(0.4, walk)), kerb),
                draw.pick([0.0, math.pi]) + draw.normal(0, 0.4),
            )
        if draw.chance(0.3):
            vehicles.bicycle(
                scene,
                draw,
                (draw.uniform(2, 12), s * (half + walk * 0.5), kerb),
                draw.pick([0.0, math.pi]) + draw.normal(0, 0.2),
            )
    for _ in range(draw.integer(0, 3)):
        side = draw.sign()
        maker = draw.pick([vehicles.car, vehicles.car, vehicles.truck, vehicles.motorcycle, vehicles.bicycle])
        maker(scene, draw, (draw.uniform(7, 45), side * half * 0.35, 0.0), 0.0 if side < 0 else math.pi)
    if draw.chance(0.15):
        creatures.quadruped(
            scene,
            draw,
            (draw.uniform(3, 9), draw.normal(0, 0.5) * half, 0.0),
            draw.angle(),
            draw.pick(["dog", "cat", "horse"]),
        )
    horizon_hills(scene, draw, draw.uniform(120, 220), draw.pick(["mountain", "tree"]))
    scene.bounds = (-6.0, -half - walk + 0.3, 14.0, half + walk - 0.3)
    scene.centre_of_interest = (18.0, 0.0, 1.5)


def park(scene: Scene, draw: Draw) -> None:
    """A castle, palace or single house on open ground with trees."""
    scene.kind, scene.place = "park", "in a park"
    daylight(scene, draw)
    flora = Flora(draw)
    kind = draw.pick(["grass", "gravel", "paving", "sand"])
    base = scene.add("ground")
    base.box(
        "ground",
        (0, 0, -0.25),
        (500, 500, 0.5),
        ground_material(draw, kind),
        semantic={"grass": "grass", "gravel": "earth", "paving": "sidewalk", "sand": "sand"}[kind],
    )
    if draw.chance(0.6):
        base.box(
            "path",
            (0, 0, 0.005),
            (60, draw.uniform(2, 8), 0.01),
            ground_material(draw, draw.pick(["gravel", "paving", "asphalt"])),
            semantic="path",
        )
    distance = draw.uniform(14, 32)
    if draw.chance(0.7):
        width = buildings.castle(scene, draw, (distance, 0.0, 0.0), math.pi + draw.normal(0, 0.25))
    else:
        width = draw.uniform(8, 16)
        buildings.house(
            scene,
            draw,
            (distance, 0.0, 0.0),
            math.pi + draw.normal(0, 0.4),
            draw.uniform(7, 11),
            width,
            draw.integer(1, 3),
            True,
        )
        scene.things[-1].salience = 1.5
    for s in (-1, 1):
        for _ in range(draw.integer(2, 8)):
            flora.tree(
                scene,
                draw,
                (draw.uniform(2, distance + 15), s * (width * 0.5 + draw.uniform(1, 14)), -0.1),
                draw.uniform(5, 15),
            )
    for _ in range(draw.integer(0, 7)):
        flora.bush(
            scene, draw, (draw.uniform(2, distance - 8), draw.uniform(-8, 8), 0.0), draw.uniform(0.5, 1.6)
        )
    for _ in range(draw.integer(0, 4)):
        creatures.person(scene, draw, (draw.uniform(2, distance - 8), draw.uniform(-6, 6), 0.0), draw.angle())
    for _ in range(draw.integer(0, 2)):
        bin_or_box(scene, draw, (draw.uniform(2, 10), draw.sign() * draw.uniform(2, 6), 0.0), draw.angle())
    if draw.chance(0.3):
        vehicles.car(scene, draw, (draw.uniform(4, distance - 8), draw.uniform(-7, 7), 0.0), draw.angle())
    if draw.chance(0.3):
        fence(scene, draw, (draw.uniform(5, 9), -15, 0.0), (draw.uniform(5, 9), -3, 0.0))
    horizon_hills(scene, draw, draw.uniform(90, 200), draw.pick(["mountain", "tree"]))
    scene.bounds = (-24.0, -12.0, distance - 11.0, 12.0)
    scene.centre_of_interest = (distance - 5, 0.0, draw.uniform(2, 5))


def meadow(scene: Scene, draw: Draw) -> None:
    """Undulating ground with trees, rocks, animals, fences and things left in the grass."""
    scene.kind = "meadow"
    daylight(scene, draw)
    flora = Flora(draw)
    kind, semantic, place = draw.pick(
        [
            ("grass", "grass", "in a meadow"),
            ("grass", "grass", "on a hillside"),
            ("earth", "earth", "on bare ground"),
            ("sand", "sand", "on sand"),
            ("snow", "land", "in the snow"),
            ("gravel", "earth", "on gravel"),
        ],
        [4, 2, 1.5, 1.2, 0.8, 1],
    )
    scene.place = place
    count = 56
    # Finer towards the middle, where the camera stands.
    line = np.linspace(-1, 1, count)
    line = 70 * np.sign(line) * np.abs(line) ** 1.8
    x, y = line[:, None], line[None]
    g = draw.generator
    height = np.zeros((count, count))
    roughness = draw.uniform(0, 1) ** 1.5
    for scale, amount in ((45, 2.2), (22, 1.0), (9, 0.4), (4, 0.12), (1.6, 0.035)):
        for _ in range(3):
            kx, ky = g.normal(0, 1, 2) * 6.28 / scale
            height += roughness * amount * np.sin(kx * x + ky * y + g.random() * 6.28) * 0.6
    height -= height[count // 2, count // 2]
    ground = scene.add("ground")
    ground.part(
        "ground",
        primitives.heightfield(line, line, height),
        (0, 0, 0),
        (1, 1, 1),
        ground_material(draw, kind),
        semantic=semantic,
    )

    def at(px: float, py: float, sink: float = 0.0) -> Vector:
        i = min(max(int(np.searchsorted(line, px)) - 1, 0), count - 2)
        j = min(max(int(np.searchsorted(line, py)) - 1, 0), count - 2)
        u, v = (px - line[i]) / (line[i + 1] - line[i]), (py - line[j]) / (line[j + 1] - line[j])
        a, b, c, d = height[i, j], height[i + 1, j], height[i, j + 1], height[i + 1, j + 1]
        # The quad is split along its (0, 0)-(1, 1) diagonal.
        z = a + u * (b - a) + v * (d - b) if u > v else a + v * (c - a) + u * (d - c)
        return (px, py, float(z) - sink)

    def spot(near: float, far: float) -> tuple[float, float]:
        a, r = draw.normal(0, 0.6), draw.uniform(near, far)
        return r * math.cos(a), r * math.sin(a)

    for _ in range(draw.integer(4, 16)):
        flora.tree(scene, draw, at(*spot(6, 55), sink=0.15), draw.uniform(3, 12))
    for _ in range(draw.integer(2, 12)):
        flora.bush(scene, draw, at(*spot(2.5, 25), sink=0.05), draw.uniform(0.3, 1.6))
    stone = lumpy(draw, 0.18, 2.5)
    for _ in range(draw.integer(0, 8)):
        size = draw.log_uniform(0.15, 1.8)
        rock(scene, draw, at(*spot(2, 18), sink=0.05), size, stone)
    for _ in range(draw.integer(1, 4)):
        creatures.quadruped(scene, draw, at(*spot(2, 9)), draw.angle())
    for _ in range(draw.integer(0, 2)):
        creatures.bird(scene, draw, at(*spot(1.2, 4)), draw.angle())
    if draw.chance(0.4):
        creatures.person(scene, draw, at(*spot(2.5, 10)), draw.angle())
    if draw.chance(0.25):
        vehicles.car(scene, draw, at(*spot(5, 12), sink=0.05), draw.angle())
    if draw.chance(0.2):
        draw.pick([vehicles.bicycle, vehicles.motorcycle])(
            scene, draw, at(*spot(3, 8), sink=0.02), draw.angle()
        )
    if draw.chance(0.3):
        px, py = spot(8, 16)
        fence(scene, draw, at(px, py - 8, 0.1), at(px + draw.normal(0, 3), py + 8, 0.1))
    if draw.chance(0.25):
        buildings.house(
            scene,
            draw,
            at(*spot(18, 40), sink=0.5),
            draw.angle(),
            8,
            draw.uniform(7, 12),
            draw.integer(1, 2),
            True,
        )
    for _ in range(draw.integer(0, 3)):
        px, py = spot(1.2, 5)
        draw.pick([clutter.ball, clutter.crate, clutter.cardboard, clutter.bag, clutter.bottle])(
            scene, draw, at(px, py), draw.angle()
        )
    horizon_hills(scene, draw, draw.uniform(70, 150), draw.pick(["mountain", "hill", "tree"]))
    scene.bounds = (-3.0, -3.0, 3.0, 3.0)
    scene.centre_of_interest = at(8.0, 0.0, -0.8)


def studio(scene: Scene, draw: Draw) -> None:
    """One or a few objects on a plain floor before a backdrop, or on a lawn: made to look at one thing."""
    scene.kind = "studio"
    outside = draw.chance(0.45)
    floor = scene.add("ground")
    if outside:
        daylight(scene, draw)
        kind = draw.pick(["grass", "asphalt", "paving", "earth", "sand"])
        semantic = {
            "grass": "grass",
            "asphalt": "road",
            "paving": "sidewalk",
            "earth": "earth",
            "sand": "sand",
        }[kind]
        floor.box("ground", (0, 0, -0.25), (160, 160, 0.5), ground_material(draw, kind), semantic=semantic)
        flora = Flora(draw)
        for _ in range(draw.integer(6, 16)):
            a = draw.angle()
            r = draw.uniform(7, 30)
            flora.tree(scene, draw, (r * math.cos(a), r * math.sin(a), -0.1), draw.uniform(3, 10))
        horizon_hills(scene, draw, draw.uniform(40, 90), draw.pick(["tree", "mountain"]))
        scene.place = {
            "grass": "on grass",
            "asphalt": "on a road",
            "paving": "on paving",
            "earth": "on the ground",
            "sand": "on sand",
        }[kind]
    else:
        c, d = wall_colour(draw), any_colour(draw, draw.uniform(0, 0.5))
        size, h = draw.uniform(9, 14), draw.uniform(4, 6)
        material = textured(
            draw,
            draw.pick(["planks", "concrete", "speckle", "plain", "tiles"]),
            (d, shade(d, 0.8), shade(d, 1.2)),
            draw.uniform(1, 3),
            shiny=draw.uniform(0, 0.4),
        )
        floor.box("floor", (0, 0, -0.1), (size, size, 0.2), material, semantic="floor")
        wall = textured(
            draw,
            draw.pick(["plain", "plaster", "cloudy", "brick", "stripes"]),
            (c, shade(c, 0.9), shade(c, 0.8)),
            2.0,
        )
        for x, y, wx, wy in (
            (size / 2, 0, 0.2, size),
            (-size / 2, 0, 0.2, size),
            (0, size / 2, size, 0.2),
            (0, -size / 2, size, 0.2),
        ):
            floor.box("wall", (x, y, h / 2), (wx, wy, h), wall, semantic="wall")
        floor.box("ceiling", (0, 0, h + 0.1), (size, size, 0.2), wall, semantic="ceiling")
        for _ in range(draw.integer(1, 3)):
            a, v = draw.angle(), draw.uniform(3, 9)
            scene.lights.append(
                Light(
                    (size * 0.35 * math.cos(a), size * 0.35 * math.sin(a), h * draw.uniform(0.6, 0.95)),
                    (v, v * 0.96, v * draw.uniform(0.75, 1.0)),
                    draw.uniform(0.1, 0.5),
                )
            )
        scene.ambient = (0.3, 0.3, 0.3)
        scene.sky = Sky(brightness=0.5)
        scene.place = "in a room"
    makers: list[Maker] = [
        creatures.quadruped,
        creatures.bird,
        creatures.person,
        vehicles.car,
        vehicles.truck,
        vehicles.bicycle,
        vehicles.motorcycle,
    ]
    maker = draw.pick(makers, [4, 1.5, 1.5, 3, 0.7, 1.2, 1.5])
    big = maker in (vehicles.car, vehicles.truck)
    for i in range(draw.pick([1, 1, 2, 2, 3])):
        spread = (5.5 if big else 2.0) if outside or not big else 3.0
        at = (
            (0.0, 0.0, 0.0)
            if i == 0
            else (draw.sign() * draw.uniform(0.7, 1) * spread, draw.uniform(-1, 1) * spread * 0.5, 0.0)
        )
        if i > 0 and draw.chance(0.5):
            animate: list[Maker] = [creatures.quadruped, creatures.person, creatures.bird]
            maker = draw.pick(animate)
        maker(scene, draw, at, draw.angle())
        scene.things[-1].salience += 1.5 if i == 0 else 0.0
    for _ in range(draw.integer(0, 4)):
        a, r = draw.angle(), draw.uniform(1.5, 4)
        draw.pick(clutter.FLOOR)(scene, draw, (r * math.cos(a), r * math.sin(a), 0.0), draw.angle())
    scene.bounds = (-4.2, -4.2, 4.2, 4.2) if not outside else (-9, -9, 9, 9)
    scene.ceiling = math.inf if outside else 4.0
    scene.centre_of_interest = (0.0, 0.0, 0.8)
