"""What surfaces are made of: a texture of the bank, three colours, and how the surface answers light."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

from vision3d.synthetic import textures
from vision3d.synthetic.draw import Draw

Colour = tuple[float, float, float]
"""sRGB in [0, 1]."""

NAMED: dict[str, Colour] = {
    "red": (0.75, 0.08, 0.08),
    "blue": (0.1, 0.22, 0.65),
    "green": (0.12, 0.45, 0.15),
    "yellow": (0.9, 0.75, 0.1),
    "orange": (0.9, 0.45, 0.08),
    "white": (0.92, 0.92, 0.9),
    "black": (0.06, 0.06, 0.07),
    "grey": (0.5, 0.5, 0.52),
    "silver": (0.72, 0.73, 0.76),
    "brown": (0.38, 0.22, 0.12),
    "beige": (0.82, 0.74, 0.58),
    "pink": (0.9, 0.5, 0.6),
    "purple": (0.4, 0.15, 0.5),
    "turquoise": (0.15, 0.6, 0.6),
    "cream": (0.95, 0.9, 0.75),
}


@dataclass(frozen=True)
class Material:
    """One surface."""

    texture: int  # number in the texture bank
    colours: tuple[Colour, Colour, Colour]
    scale: float = (
        1.0  # metres that one repeat of the texture covers (mapping "box"), repeats around ("wrap")
    )
    mapping: str = "box"  # "box": projected along the face; "fit": stretched over the face; "wrap": around z
    swap: bool = False  # texture turned by 90°
    specular: float = 0.04  # strength of highlights
    gloss: float = 20.0  # their sharpness (exponent)
    mirror: float = 0.0  # share of mirrored surroundings
    emission: float = 0.0  # radiance given off, relative to a white surface in the scene's mean light


def jitter(draw: Draw, colour: Colour, amount: float = 0.06) -> Colour:
    """A colour near the given one."""
    common = draw.uniform(-amount, amount)
    r, g, b = (min(1.0, max(0.01, c + common + draw.uniform(-amount, amount) * 0.4)) for c in colour)
    return r, g, b


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker or lighter."""
    r, g, b = (min(1.0, max(0.005, c * factor)) for c in colour)
    return r, g, b


def any_colour(draw: Draw, saturation: float | None = None) -> Colour:
    """Any hue; mostly moderate saturation."""
    s = draw.uniform(0, 1) ** 1.5 if saturation is None else saturation
    return colorsys.hsv_to_rgb(draw.uniform(0, 1), s, draw.uniform(0.12, 0.98))


def named_colour(draw: Draw) -> tuple[str, Colour]:
    """A colour people have a word for, and that word."""
    name = draw.pick(tuple(NAMED))
    return name, jitter(draw, NAMED[name])


def wall_colour(draw: Draw) -> Colour:
    """Mostly pale, as walls are; one in five is strong."""
    if draw.chance(0.13):
        return any_colour(draw)
    v = draw.uniform(0.6, 0.97)
    return colorsys.hsv_to_rgb(draw.pick([0.08, 0.11, 0.14, 0.3, 0.55, 0.6, 0.95]), draw.uniform(0, 0.22), v)


def wood_colour(draw: Draw) -> Colour:
    """From pale birch to dark walnut."""
    v = draw.uniform(0.18, 0.9)
    return colorsys.hsv_to_rgb(draw.uniform(0.045, 0.11), draw.uniform(0.3, 0.7), v)


def wood(draw: Draw, scale: float | None = None) -> Material:
    """Solid or veneered wood, matt to varnished."""
    c = wood_colour(draw)
    shiny = draw.chance(0.4)
    return Material(
        textures.choose(draw, draw.pick(["wood", "wood", "wood", "plain"])),
        (c, shade(c, draw.uniform(0.6, 0.95)), shade(c, draw.uniform(0.35, 0.7))),
        scale or draw.uniform(0.4, 1.4),
        swap=draw.chance(0.5),
        specular=0.25 if shiny else 0.05,
        gloss=60.0 if shiny else 12.0,
        mirror=0.06 if shiny else 0.0,
    )


def paint(draw: Draw, colour: Colour | None = None, glossy: bool | None = None) -> Material:
    """Lacquer or plastic in one colour."""
    c = colour or any_colour(draw)
    shiny = draw.chance(0.4) if glossy is None else glossy
    return Material(
        textures.choose(draw, "plain"),
        (c, c, c),
        1.0,
        specular=draw.uniform(0.2, 0.6) if shiny else 0.04,
        gloss=draw.uniform(30, 150) if shiny else 10.0,
        mirror=draw.uniform(0.02, 0.12) if shiny else 0.0,
    )


def metal(draw: Draw, colour: Colour | None = None) -> Material:
    """Brushed, chromed or painted metal."""
    c = colour or draw.pick([(0.75, 0.76, 0.78), (0.55, 0.55, 0.57), (0.25, 0.25, 0.27), (0.7, 0.6, 0.4)])
    return Material(
        textures.choose(draw, draw.pick(["brushed", "plain"])),
        (c, shade(c, 0.8), shade(c, 0.6)),
        draw.uniform(0.1, 0.5),
        specular=draw.uniform(0.4, 1.0),
        gloss=draw.uniform(25, 200),
        mirror=draw.uniform(0.1, 0.45),
    )


def fabric(draw: Draw, colour: Colour | None = None) -> Material:
    """Upholstery, bedding, curtains, clothes."""
    c = colour or any_colour(draw)
    kind = draw.pick(
        ["cloth", "plain", "stripes", "plaid", "dots", "damask", "speckle", "cloudy"],
        [5, 3, 1, 1, 0.5, 1, 1, 1],
    )
    subtle = kind in ("cloth", "plain", "speckle", "cloudy")
    second = shade(c, draw.uniform(0.6, 1.3)) if subtle else any_colour(draw)
    return Material(
        textures.choose(draw, kind),
        (c, second, any_colour(draw)),
        draw.uniform(0.15, 0.8),
        specular=0.01,
        gloss=5.0,
    )


def leather(draw: Draw) -> Material:
    """Smooth, soft highlights, usually dark."""
    c = draw.pick(
        [(0.08, 0.07, 0.07), (0.25, 0.13, 0.07), (0.45, 0.1, 0.08), (0.8, 0.77, 0.7), (0.4, 0.3, 0.2)]
    )
    return Material(
        textures.choose(draw, "cloudy"),
        (jitter(draw, c), shade(c, 0.8), shade(c, 0.7)),
        0.5,
        specular=0.3,
        gloss=25,
        mirror=0.02,
    )


def printed(draw: Draw, kind: str | None = None, mapping: str = "fit") -> Material:
    """Paper, posters, pictures, labels: a texture stretched over each face."""
    kind = kind or draw.pick(["page", "poster", "label", "landscape"])
    paper = draw.pick([(0.95, 0.95, 0.93), (0.9, 0.86, 0.75), any_colour(draw)], [4, 1, 3])
    ink = draw.pick([(0.08, 0.08, 0.1), any_colour(draw)], [2, 3])
    if kind == "page":
        paper, ink = jitter(draw, (0.93, 0.93, 0.91), 0.05), (0.12, 0.12, 0.14)
    if kind == "landscape":
        paper, ink = draw.pick([(0.6, 0.75, 0.92), (0.95, 0.8, 0.6), any_colour(draw)]), any_colour(draw)
    shiny = draw.chance(0.35)
    return Material(
        textures.choose(draw, kind),
        (paper, ink, any_colour(draw)),
        1.0,
        mapping=mapping,
        specular=0.2 if shiny else 0.03,
        gloss=60 if shiny else 10,
        mirror=0.04 if shiny else 0.0,
    )


def textured(
    draw: Draw,
    kind: str,
    colours: tuple[Colour, Colour, Colour],
    scale: float,
    *,
    shiny: float = 0.0,
    swap: bool = False,
    mapping: str = "box",
) -> Material:
    """A chosen texture with chosen colours; ``shiny`` in [0, 1] adds highlights and reflections."""
    return Material(
        textures.choose(draw, kind),
        colours,
        scale,
        mapping=mapping,
        swap=swap,
        specular=0.03 + 0.5 * shiny,
        gloss=10 + 120 * shiny,
        mirror=0.2 * shiny,
    )


def glass(draw: Draw) -> Material:
    """Window glass seen from outside: dark, mirroring the surroundings."""
    v = draw.uniform(0.03, 0.2)
    c = (v, v * draw.uniform(1, 1.15), v * draw.uniform(1, 1.3))
    return Material(
        textures.choose(draw, "cloudy"), (c, shade(c, 1.6), c), 3.0, specular=0.8, gloss=250, mirror=0.35
    )


def glowing(draw: Draw, colour: Colour, strength: float, texture: str = "plain") -> Material:
    """Lamps, screens, bright window panes."""
    return Material(
        textures.choose(draw, texture),
        (colour, shade(colour, 0.8), any_colour(draw)),
        1.0,
        mapping="fit",
        emission=strength,
    )


def skin(draw: Draw) -> Material:
    """Human skin from pale to dark."""
    t = draw.uniform(0, 1)
    c = (0.93 - 0.62 * t, 0.74 - 0.54 * t, 0.62 - 0.5 * t)
    return Material(textures.choose(draw, "plain"), (c, c, c), 1.0, specular=0.1, gloss=15)


def fur(draw: Draw) -> Material:
    """Coats of animals: plain, patched or tabby."""
    base = draw.pick(
        [
            (0.9, 0.87, 0.8),
            (0.12, 0.1, 0.09),
            (0.6, 0.4, 0.2),
            (0.45, 0.42, 0.4),
            (0.75, 0.55, 0.3),
            (0.35, 0.22, 0.13),
        ]
    )
    other = draw.pick([(0.92, 0.9, 0.85), (0.1, 0.09, 0.08), (0.5, 0.3, 0.15)])
    return Material(
        textures.choose(draw, "fur"),
        (jitter(draw, base), other, shade(base, 0.45)),
        draw.uniform(0.3, 1.0),
        specular=0.02,
        gloss=8,
    )
