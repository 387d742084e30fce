"""A bank of tileable textures: three masks each, coloured later by a material.

Red says how much of a material's second colour covers the first, green how much of the third covers both,
blue is a brightness factor (128 is 1). A few hundred textures with free palettes and scales give any number
of surfaces, and shading a pixel is one look-up. Textures are drawn when first used and depend on
their number only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

from vision3d.synthetic.draw import Draw

SIZE = 256
LEVELS = 7
OFFSETS = np.cumsum([0] + [(SIZE >> level) ** 2 for level in range(LEVELS)])
TEXELS = int(OFFSETS[-1])

_Y, _X = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
Masks = tuple[np.ndarray, np.ndarray, np.ndarray]
_ZERO = np.zeros((SIZE, SIZE), np.float32)


def noise(draw: Draw, exponent: float = 1.5, aspect: float = 1.0, lowest: float = 1.0) -> np.ndarray:
    """Tileable noise in [0, 1], even histogram; spectrum f^-exponent, aspect > 1 stretches it along x."""
    white = draw.generator.standard_normal((SIZE, SIZE), dtype=np.float32)
    frequency_y = np.fft.fftfreq(SIZE)[:, None] * SIZE
    frequency_x = np.fft.rfftfreq(SIZE)[None, :] * SIZE
    f = np.sqrt((frequency_x * aspect) ** 2 + frequency_y**2)
    spectrum = np.fft.rfft2(white) * np.maximum(f, lowest) ** -exponent
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(SIZE, SIZE)).astype(np.float32)
    ranks = np.empty(field.size, np.float32)
    ranks[np.argsort(field, axis=None, kind="stable")] = np.linspace(0, 1, field.size, dtype=np.float32)
    return ranks.reshape(SIZE, SIZE)


def _soft(x: np.ndarray, low: float, high: float) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _wave(x: np.ndarray, edge: float = 0.05, duty: float = 0.5) -> np.ndarray:
    """A soft square wave of period 1."""
    phase = x % 1.0
    return _soft(phase, 0, edge) * (1 - _soft(phase, duty, duty + edge))


def _grain(draw: Draw, strength: float, exponent: float = 0.6) -> np.ndarray:
    return 1 + strength * (noise(draw, exponent) - 0.5)


def _cells(draw: Draw, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tileable Voronoi cells: distance to the nearest seed, gap to the second, the cell's own number."""
    points = draw.generator.random((count, 2), dtype=np.float32)
    shifts = np.array([(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)], np.float32)
    tiled = (points[None] + shifts[:, None]).reshape(-1, 2)
    keep = ((tiled > -0.35) & (tiled < 1.35)).all(1)
    owner = np.tile(np.arange(count), 9)[keep]
    tiled = tiled[keep]
    small = SIZE // 2
    y, x = np.mgrid[0:small, 0:small].astype(np.float32) / small
    d = (x[..., None] - tiled[:, 0]) ** 2 + (y[..., None] - tiled[:, 1]) ** 2
    two = np.argpartition(d, 1, axis=-1)[..., :2]
    near = np.sqrt(np.take_along_axis(d, two, -1))
    order = near[..., 0] <= near[..., 1]
    first = np.where(order, two[..., 0], two[..., 1])
    value = draw.generator.random(count, dtype=np.float32)[owner[first]]
    low, high = near.min(-1), near.max(-1)
    return (
        cv2.resize(low, (SIZE, SIZE)),
        cv2.resize(high - low, (SIZE, SIZE)),
        cv2.resize(value, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST),
    )


def _plain(draw: Draw) -> Masks:
    return _ZERO, _ZERO, _grain(draw, draw.uniform(0.0, 0.06), 1.0)


def _plaster(draw: Draw) -> Masks:
    stains = _soft(noise(draw, 2.0), 0.5, 1.0) * draw.pick([0.0, 0.1, 0.2, 0.5])
    return stains, _ZERO, _grain(draw, draw.uniform(0.05, 0.2), draw.uniform(0.3, 1.2))


def _cloudy(draw: Draw) -> Masks:
    base = noise(draw, draw.uniform(1.2, 2.2))
    return base, _soft(noise(draw, 1.8), 0.6, 0.9) * draw.uniform(0, 0.7), _grain(draw, 0.15)


def _speckle(draw: Draw) -> Masks:
    fine = noise(draw, draw.uniform(0.1, 0.7))
    return (
        _soft(fine, draw.uniform(0.4, 0.7), 0.95),
        _soft(noise(draw, 0.4), 0.8, 0.95) * draw.uniform(0, 1),
        _grain(draw, 0.25, 0.2),
    )


def _grain_rings(draw: Draw) -> np.ndarray:
    bend = noise(draw, 2.0, draw.uniform(3, 7)) * draw.uniform(2, 6)
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * (_Y * draw.integer(2, 8) + bend))
    return 0.6 * rings + 0.4 * noise(draw, 0.7, draw.uniform(8, 24))


def _wood(draw: Draw) -> Masks:
    return _grain_rings(draw), _soft(noise(draw, 1.0, 30), 0.85, 1.0) * 0.5, _grain(draw, 0.1)


def _planks(draw: Draw) -> Masks:
    rows = draw.integer(3, 9)
    row = np.floor(_Y * rows).astype(int)
    offsets = draw.generator.random(rows).astype(np.float32)
    columns = draw.integer(1, 3)
    along = _X * columns + offsets[row]
    board = (np.floor(along).astype(int) % columns) + row * columns
    tone = draw.generator.random(rows * columns).astype(np.float32)[board]
    grain = _grain_rings(draw)
    shift = (tone * 255).astype(int)
    grain = grain[(np.arange(SIZE)[:, None] + shift * 3) % SIZE, (np.arange(SIZE)[None] + shift * 7) % SIZE]
    gap = np.minimum(_soft((_Y * rows) % 1, 0.0, 0.05), _soft(along % 1, 0.0, 0.008 * columns))
    contrast = draw.uniform(0.3, 1)
    return (
        np.clip(grain * 0.5 + tone * 0.5 * contrast, 0, 1),
        _ZERO,
        (0.45 + 0.55 * gap) * (1 + 0.2 * (tone - 0.5)),
    )


def _brick(draw: Draw) -> Masks:
    rows = draw.integer(3, 7) * 2
    columns = max(2, int(rows / draw.uniform(2.2, 3.5)))
    stagger = draw.pick([0.5, 0.5, 0.33])
    row = np.floor(_Y * rows)
    along = _X * columns + (row % 2) * stagger
    brick = (np.floor(along).astype(int) % columns) + row.astype(int) * columns
    tone = draw.generator.random(rows * columns).astype(np.float32)[brick]
    mortar = draw.uniform(0.06, 0.14)
    inside = np.minimum(_soft((_Y * rows) % 1, 0, mortar), _soft(along % 1, 0, mortar * columns / rows * 1.3))
    return tone, (1 - inside) * draw.uniform(0.6, 1), (0.75 + 0.3 * inside) * _grain(draw, 0.3, 0.5)


def _tiles(draw: Draw) -> Masks:
    n = draw.pick([2, 4, 4, 6, 8])
    m = n if draw.chance(0.7) else n * 2
    gap = draw.uniform(0.015, 0.06)
    u, v = (_X * n) % 1, (_Y * m) % 1
    line = np.minimum(np.minimum(u, 1 - u) / n, np.minimum(v, 1 - v) / m) * n
    cell = (np.floor(_X * n).astype(int) % n) + (np.floor(_Y * m).astype(int) % m) * n
    tone = draw.generator.random(n * m).astype(np.float32)[cell]
    if draw.chance(0.3):
        tone = ((np.floor(_X * n) + np.floor(_Y * m)) % 2).astype(np.float32)
    elif draw.chance(0.4):
        tone = tone * 0.2
    grout = 1 - _soft(line, gap * 0.5, gap)
    return tone, grout, _grain(draw, draw.uniform(0, 0.15), 1.2) * (0.9 + 0.1 * _soft(line, 0, 0.2))


def _checker(draw: Draw) -> Masks:
    n = draw.pick([2, 4, 4, 8, 8])
    return (
        ((np.floor(_X * n) + np.floor(_Y * n)) % 2).astype(np.float32),
        _ZERO,
        _grain(draw, draw.uniform(0, 0.15)),
    )


def _stripes(draw: Draw) -> Masks:
    n = draw.integer(2, 16)
    first = _wave(_X * n, 0.04, draw.uniform(0.2, 0.6))
    second = _wave(_X * n + draw.uniform(0.3, 0.8), 0.04, draw.uniform(0.05, 0.2)) * draw.chance(0.5)
    return first, second, _grain(draw, 0.15, 0.3)


def _carpet_lines(draw: Draw) -> Masks:
    streaks = noise(draw, 0.3, draw.uniform(12, 40))
    return _soft(streaks, 0.3, 0.7), _soft(noise(draw, 0.4, 20), 0.7, 0.8), _grain(draw, 0.3, 0.1)


def _plaid(draw: Draw) -> Masks:
    n = draw.integer(1, 5)
    duty = draw.uniform(0.2, 0.5)
    across, down = _wave(_X * n, 0.03, duty), _wave(_Y * n, 0.03, duty)
    thin = np.maximum(_wave(_X * n + 0.3, 0.02, 0.05), _wave(_Y * n + 0.3, 0.02, 0.05))
    return (across + down) / 2, thin, _grain(draw, 0.2, 0.2)


def _cloth(draw: Draw) -> Masks:
    n = draw.pick([16, 24, 32, 48])
    weave = 0.5 + 0.25 * np.sin(2 * np.pi * n * _X) * (1 + np.sin(2 * np.pi * n * _Y))
    folds = noise(draw, 2.2)
    return weave * draw.uniform(0.2, 0.8), _ZERO, (0.8 + 0.25 * weave) * (0.85 + 0.3 * folds)


def _dots(draw: Draw) -> Masks:
    n = draw.integer(2, 9)
    u, v = _X * n, _Y * n * 1.0
    u = u + 0.5 * (np.floor(v) % 2) * (n % 2 == 0)
    radius = np.hypot(u % 1 - 0.5, v % 1 - 0.5)
    size = draw.uniform(0.15, 0.4)
    return 1 - _soft(radius, size, size + 0.06), _ZERO, _grain(draw, 0.1)


def _damask(draw: Draw) -> Masks:
    n = draw.integer(2, 5)
    k = draw.integer(1, 3)
    u, v = 2 * np.pi * n * _X, 2 * np.pi * n * _Y
    field = np.cos(u) * np.cos(v) + 0.6 * np.cos(k * u + np.sin(v)) * np.sin(k * v) + 0.4 * np.cos(2 * v)
    return _soft(field, 0.1, 0.3), _soft(-field, 0.6, 0.8) * draw.uniform(0, 1), _grain(draw, 0.08)


def _marble(draw: Draw) -> Masks:
    veins = np.abs(noise(draw, 1.9) - 0.5) * 2
    return 1 - _soft(veins, 0.0, draw.uniform(0.1, 0.4)), noise(draw, 2) * 0.3, _grain(draw, 0.05)


def _stones(draw: Draw) -> Masks:
    near, gap, tone = _cells(draw, draw.pick([20, 40, 80]))
    joint = 1 - _soft(gap, 0.004, draw.uniform(0.015, 0.03))
    return tone, joint * draw.uniform(0.5, 1), (1.15 - 2.2 * near) * _grain(draw, 0.3, 0.5)


def _concrete(draw: Draw) -> Masks:
    stains = noise(draw, 1.7)
    seams = draw.pick([0, 0, 1, 2])
    line = _ZERO if seams == 0 else 1 - _soft(np.abs((_X * seams) % 1 - 0.5), 0.0, 0.012)
    return stains * 0.8, line * 0.7, _grain(draw, 0.25, 0.5)


def _grass(draw: Draw) -> Masks:
    blades = noise(draw, 0.5, 0.4)
    return (
        blades,
        _soft(noise(draw, 1.6), 0.55, 0.95) * draw.uniform(0.2, 0.9),
        0.6 + 0.7 * noise(draw, 0.4, 0.5),
    )


def _foliage(draw: Draw) -> Masks:
    _, gap, tone = _cells(draw, draw.pick([60, 100, 140]))
    depth = noise(draw, 1.2)
    return (
        tone,
        _soft(noise(draw, 0.8), 0.8, 1.0) * 0.8,
        (0.35 + 0.9 * depth) * (0.5 + 0.5 * _soft(gap, 0, 0.03)),
    )


def _asphalt(draw: Draw) -> Masks:
    cracks = 1 - _soft(np.abs(noise(draw, 1.8) - 0.5), 0.0, 0.006)
    return (
        noise(draw, 1.6) * 0.6,
        _soft(noise(draw, 0.2), 0.9, 1.0) * 0.4,
        _grain(draw, 0.35, 0.3) * (1 - 0.35 * cracks * draw.chance(0.6)),
    )


def _roof(draw: Draw) -> Masks:
    rows = draw.integer(5, 10)
    row = np.floor(_Y * rows)
    u = (_X * rows + 0.5 * (row % 2)) % 1
    v = (_Y * rows) % 1
    tone = draw.generator.random((rows, rows)).astype(np.float32)[
        row.astype(int), np.floor(_X * rows + 0.5 * (row % 2)).astype(int) % rows
    ]
    return tone, _ZERO, (0.5 + 0.5 * _soft(v, 0, 0.3)) * (0.7 + 0.4 * np.sin(np.pi * u))


def _fur(draw: Draw) -> Masks:
    patches = _soft(noise(draw, draw.uniform(1.6, 2.4)), 0.45, 0.55) * draw.pick([0, 0.3, 1, 1])
    tabby = _wave(_X * draw.integer(4, 9) + 0.6 * noise(draw, 2.0), 0.3, 0.4) * draw.pick([0, 0, 1])
    return np.maximum(patches, 0), tabby * 0.8, _grain(draw, 0.35, 0.4)


def _brushed(draw: Draw) -> Masks:
    return noise(draw, 0.3, 40) * 0.6, _ZERO, _grain(draw, 0.08)


def _rust(draw: Draw) -> Masks:
    return _soft(noise(draw, 1.5), 0.55, 0.7), _soft(noise(draw, 1.2), 0.7, 0.9), _grain(draw, 0.3, 0.6)


def _corrugated(draw: Draw) -> Masks:
    n = draw.integer(6, 20)
    return noise(draw, 1.8) * 0.5, _ZERO, 0.75 + 0.35 * np.sin(2 * np.pi * n * _X)


def _canvas() -> np.ndarray:
    return np.zeros((SIZE, SIZE), np.float32)


def _write_lines(
    image: np.ndarray, draw: Draw, box: tuple[int, int, int, int], height: int, value: float
) -> None:
    """Rows of dashes that read as lines of print from afar."""
    x0, y0, x1, y1 = box
    y = y0
    while y + height < y1:
        x = x0
        end = x1 if draw.chance(0.85) else x0 + int((x1 - x0) * draw.uniform(0.2, 0.8))
        while x < end:
            width = min(int(draw.uniform(1, 6) * height * 0.6) + 1, end - x)
            for _ in range(2):
                top = y + int(draw.uniform(0, height * 0.4))
                cv2.rectangle(image, (x, top), (x + width - 1, y + int(height * 0.8)), value, -1)
            x += width + max(1, height // 3)
        y += int(height * 1.5) + (height * 2 if draw.chance(0.08) else 0)


def _page(draw: Draw) -> Masks:
    ink, picture = _canvas(), _canvas()
    left = draw.integer(12, 30)
    top = draw.integer(14, 40)
    if draw.chance(0.7):
        _write_lines(ink, draw, (left, top, SIZE - left, top + 26), draw.integer(12, 20), 0.95)
        top += 34
    columns = draw.pick([1, 1, 2])
    width = (SIZE - 2 * left) // columns
    for c in range(columns):
        x0 = left + c * width
        _write_lines(
            ink, draw, (x0, top, x0 + width - 8, SIZE - 16), draw.integer(4, 9), draw.uniform(0.6, 0.95)
        )
        if draw.chance(0.5):
            y = draw.integer(top, SIZE - 70)
            size = (x0 + width - 10, y + draw.integer(30, 60))
            cv2.rectangle(ink, (x0, y), size, 0, -1)
            cv2.rectangle(picture, (x0, y), size, draw.uniform(0.4, 1), -1)
    return ink, picture * (0.4 + 0.6 * noise(draw, 1.6)), np.ones_like(ink)


def _poster(draw: Draw) -> Masks:
    first, second = _canvas(), _canvas()
    shade = np.ones((SIZE, SIZE), np.float32)
    if draw.chance(0.5):
        first += noise(draw, draw.uniform(1.5, 2.3)) * draw.uniform(0.3, 1)
    for _ in range(draw.integer(2, 8)):
        target = draw.pick([first, second])
        value = draw.pick([0.0, 0.5, 1.0, 1.0])
        x, y = draw.integer(0, SIZE), draw.integer(0, SIZE)
        w, h = draw.integer(15, 150), draw.integer(15, 110)
        kind = draw.pick(["box", "ellipse", "triangle", "band"])
        if kind == "box":
            cv2.rectangle(target, (x - w // 2, y - h // 2), (x + w // 2, y + h // 2), value, -1)
        elif kind == "ellipse":
            cv2.ellipse(
                target, (x, y), (w // 2, h // 2), draw.uniform(0, 180), 0, 360, value, -1, cv2.LINE_AA
            )
        elif kind == "triangle":
            points = np.array([[draw.integer(0, SIZE), draw.integer(0, SIZE)] for _ in range(3)], np.int32)
            cv2.fillPoly(target, [points], value, cv2.LINE_AA)
        else:
            cv2.rectangle(target, (0, y), (SIZE, y + h // 2), value, -1)
    for _ in range(draw.integer(0, 3)):
        y = draw.integer(10, SIZE - 50)
        x = draw.integer(8, 80)
        _write_lines(
            draw.pick([first, second]),
            draw,
            (x, y, SIZE - 12, y + draw.integer(20, 80)),
            draw.integer(6, 26),
            1.0,
        )
    return first, second, shade


def _label(draw: Draw) -> Masks:
    first, second = _canvas(), _canvas()
    y = draw.integer(30, 110)
    h = draw.integer(60, 130)
    second[y : y + h] = 1.0
    _write_lines(first, draw, (20, y + 10, SIZE - 20, y + h - 6), draw.integer(14, 40), 1.0)
    if draw.chance(0.5):
        x = draw.integer(40, SIZE - 40)
        cv2.circle(first, (x, y + h // 2), draw.integer(14, 44), 1.0, -1, cv2.LINE_AA)
    second *= 1 - 0.9 * first
    return first, second, np.ones_like(first)


def _landscape(draw: Draw) -> Masks:
    """A picture to hang: sky, ridges, ground and blobs."""
    first, second = _canvas(), _canvas()
    horizon = draw.uniform(0.3, 0.7)
    ridge = horizon + 0.15 * (noise(draw, 2.2)[0] - 0.5)
    first += (ridge[None] < _Y).astype(np.float32) * (0.5 + 0.5 * noise(draw, 1.5))
    second += (ridge[None] + draw.uniform(0.05, 0.3) < _Y) * noise(draw, 1.2) * draw.uniform(0.2, 1)
    for _ in range(draw.integer(0, 4)):
        centre = (draw.integer(0, SIZE), int((horizon + draw.uniform(-0.2, 0.3)) * SIZE))
        cv2.ellipse(
            second, centre, (draw.integer(8, 40), draw.integer(10, 60)), 0, 0, 360, draw.uniform(0.3, 1), -1
        )
    return first, second, 0.8 + 0.4 * noise(draw, 1.4)


def _screen(draw: Draw) -> Masks:
    first, second = _canvas(), _canvas()
    for _ in range(draw.integer(1, 4)):
        x, y = draw.integer(0, 150), draw.integer(0, 150)
        w, h = draw.integer(60, 180), draw.integer(50, 150)
        tone = draw.pick([0.0, 1.0, 1.0])
        cv2.rectangle(first, (x, y), (x + w, y + h), tone, -1)
        cv2.rectangle(second, (x, y), (x + w, y + 9), 1.0, -1)
        target = second if tone else first
        _write_lines(target, draw, (x + 6, y + 16, min(x + w - 6, SIZE), min(y + h, SIZE)), 5, 0.7)
    return first, second, 1 - 0.2 * np.hypot(_X - 0.5, _Y - 0.5)


def _keys(draw: Draw) -> Masks:
    rows, columns = draw.integer(4, 6), draw.integer(12, 18)
    offsets = draw.generator.random(rows).astype(np.float32)
    row = np.clip((_Y * rows).astype(int), 0, rows - 1)
    u, v = (_X * columns + offsets[row]) % 1, (_Y * rows) % 1
    key = _soft(np.minimum(np.minimum(u, 1 - u), np.minimum(v, 1 - v)), 0.06, 0.14)
    legend = (np.hypot(u - 0.45, v - 0.45) < 0.14) * 0.8
    return key, legend.astype(np.float32), 0.5 + 0.5 * key


def _spines(draw: Draw) -> Masks:
    """A row of book or binder spines."""
    first, second, shade = _canvas(), _canvas(), np.ones((SIZE, SIZE), np.float32)
    x = 0
    while x < SIZE:
        width = min(draw.integer(8, 30), SIZE - x)
        first[:, x : x + width] = draw.pick([0.0, 0.3, 0.7, 1.0])
        second[:, x : x + width] = draw.pick([0.0, 0.0, 0.5, 1.0])
        top = draw.integer(0, 50)
        shade[:top, x : x + width] = 0.15
        shade[:, x : x + 2] *= 0.4
        y = draw.integer(60, 200)
        second[y : y + draw.integer(4, 30), x + 3 : x + width - 1] = draw.pick([0.0, 1.0])
        x += width
    return first, second, shade


def _facade(draw: Draw) -> Masks:
    """Windows in a wall, one floor per row."""
    columns, rows = draw.integer(2, 5), draw.integer(2, 5)
    u, v = (_X * columns) % 1, (_Y * rows) % 1
    half_w, half_h = draw.uniform(0.14, 0.38), draw.uniform(0.2, 0.36)
    du, dv = np.abs(u - 0.5), np.abs(v - 0.5)
    glass = ((du < half_w) & (dv < half_h)).astype(np.float32)
    frame = ((du < half_w + 0.05) & (dv < half_h + 0.05)) & (glass == 0)
    bars = draw.integer(0, 2)
    if bars:
        frame = frame | ((glass > 0) & ((np.abs((u * bars * 2) % 1 - 0.5) < 0.05) | (np.abs(v - 0.5) < 0.02)))
    cell = (np.floor(_X * columns) + columns * np.floor(_Y * rows)).astype(int)
    tone = draw.generator.random(columns * rows).astype(np.float32)[cell % (columns * rows)]
    shade = np.where(glass > 0, 0.5 + tone, 1.0) * _grain(draw, 0.12, 1.0)
    ledge = ((v > 0.5 + half_h + 0.05) & (v < 0.5 + half_h + 0.09) & (du < half_w + 0.1)).astype(np.float32)
    return glass * (1 - frame), np.maximum(frame, ledge).astype(np.float32), shade.astype(np.float32)


def _panels(draw: Draw) -> Masks:
    """Raised panels of doors and cupboard fronts."""
    nx, ny = draw.pick([1, 1, 2]), draw.pick([1, 2, 3, 3])
    u, v = (_X * nx) % 1, (_Y * ny) % 1
    edge = np.minimum(np.minimum(u, 1 - u) / nx, np.minimum(v, 1 - v) / ny)
    inset = draw.uniform(0.05, 0.1)
    light = np.where((u < 0.5) ^ (v > 0.5), 1.12, 0.86)
    ring = (edge > inset) & (edge < inset + 0.025)
    grain = noise(draw, 0.7, 14) * draw.pick([0, 0.4, 0.8])
    return grain, _ZERO, np.where(ring, light, 1.0).astype(np.float32) * _grain(draw, 0.06)


def _hexagons(draw: Draw) -> Masks:
    n = draw.pick([3, 4, 6])
    best = np.full((SIZE, SIZE), 9.0, np.float32)
    second = best.copy()
    for sx, sy in ((0.0, 0.0), (0.5, 0.5)):
        d = np.hypot(((_X * n + sx) % 1 - 0.5), ((_Y * n + sy) % 1 - 0.5) * 1.0)
        second = np.minimum(np.maximum(best, d), second)
        best = np.minimum(best, d)
    return (
        _soft(best, 0.2, 0.25) * draw.uniform(0, 0.6),
        1 - _soft(second - best, 0.02, 0.06),
        _grain(draw, 0.1),
    )


_MAKERS: dict[str, tuple[Callable[[Draw], Masks], int]] = {
    "plain": (_plain, 4),
    "plaster": (_plaster, 8),
    "cloudy": (_cloudy, 8),
    "speckle": (_speckle, 10),
    "wood": (_wood, 12),
    "planks": (_planks, 10),
    "brick": (_brick, 10),
    "tiles": (_tiles, 12),
    "checker": (_checker, 5),
    "stripes": (_stripes, 8),
    "carpet_lines": (_carpet_lines, 5),
    "plaid": (_plaid, 6),
    "cloth": (_cloth, 8),
    "dots": (_dots, 4),
    "damask": (_damask, 6),
    "marble": (_marble, 5),
    "stones": (_stones, 8),
    "concrete": (_concrete, 8),
    "grass": (_grass, 6),
    "foliage": (_foliage, 8),
    "asphalt": (_asphalt, 6),
    "roof": (_roof, 6),
    "fur": (_fur, 12),
    "brushed": (_brushed, 3),
    "rust": (_rust, 4),
    "corrugated": (_corrugated, 4),
    "page": (_page, 12),
    "poster": (_poster, 30),
    "label": (_label, 16),
    "landscape": (_landscape, 10),
    "screen": (_screen, 8),
    "keys": (_keys, 4),
    "spines": (_spines, 8),
    "facade": (_facade, 14),
    "panels": (_panels, 8),
    "hexagons": (_hexagons, 3),
}

KINDS: tuple[str, ...] = tuple(_MAKERS)
_FIRST: dict[str, int] = {}
_OWNER: list[str] = []
for _kind, (_, _count) in _MAKERS.items():
    _FIRST[_kind] = len(_OWNER)
    _OWNER.extend([_kind] * _count)
COUNT = len(_OWNER)


def choose(draw: Draw, kind: str) -> int:
    """The number of one texture of a kind."""
    return _FIRST[kind] + draw.integer(0, _MAKERS[kind][1] - 1)


def first(kind: str) -> int:
    """The number of a kind's first texture."""
    return _FIRST[kind]


@lru_cache(maxsize=1)
def _bank() -> tuple[np.ndarray, np.ndarray]:
    # Zero pages are only given out when written to, so textures that are never used cost nothing.
    return np.zeros((COUNT * TEXELS, 4), np.uint8), np.zeros(COUNT, bool)


def prepare(numbers: np.ndarray) -> np.ndarray:
    """Draws the textures that are missing and returns the bank.

    Returns:
        (COUNT * TEXELS, 4) uint8; texture ``n``, level ``l``, row ``i``, column ``j`` is row
        ``n * TEXELS + OFFSETS[l] + i * (SIZE >> l) + j``. The fourth channel is unused.
    """
    bank, ready = _bank()
    for number in np.unique(numbers):
        if ready[number]:
            continue
        masks = _MAKERS[_OWNER[number]][0](Draw(7919, int(number)))
        level = np.stack([np.clip(masks[0], 0, 1), np.clip(masks[1], 0, 1), np.clip(masks[2], 0, 2) / 2], -1)
        level = level.astype(np.float32)
        for k in range(LEVELS):
            start = number * TEXELS + OFFSETS[k]
            side = SIZE >> k
            bank[start : start + side * side, :3] = np.rint(level.reshape(-1, 3) * 255).astype(np.uint8)
            level = level.reshape(side // 2, 2, side // 2, 2, 3).mean((1, 3))
        ready[number] = True
    return bank


def sheet() -> np.ndarray:
    """All textures side by side as one (H, W, 3) uint8 image, for looking at."""
    bank = prepare(np.arange(COUNT))
    images = [bank[n * TEXELS : n * TEXELS + SIZE * SIZE, :3].reshape(SIZE, SIZE, 3) for n in range(COUNT)]
    small = [cv2.resize(image, (96, 96), interpolation=cv2.INTER_AREA) for image in images]
    while len(small) % 20:
        small.append(np.zeros_like(small[0]))
    return np.vstack([np.hstack(small[i : i + 20]) for i in range(0, len(small), 20)])
