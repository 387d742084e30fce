"""Normals to depth: bilateral normal integration, and its fusion with a noisy metric depth.

Follows Cao, Santo, Shi, Okura, Matsushita: "Bilateral Normal Integration", ECCV 2022. A surface that may break at any
pixel is still continuous to one side of it. At every pixel both one-sided differences along a row are compared with
what the normal says (eq. 9: ``n_z ∂z + n_x = 0``; under perspective ``n·r ∂ log z + n_x / f = 0``, eq. 13), and a
sigmoid of their difference decides which side counts (eq. 16). The weights are recomputed from the surface until both
agree: iteratively reweighted least squares. Each step is a screened Poisson equation on the pixel grid, which
:mod:`vision3d.geometry.grid_solver` solves.

Ours beyond the paper: the depth prior has a noise level as the normals have, so that the energy is that of a maximum a
posteriori estimate and knows without tuning below which size of structure the normals decide; and the first weights
come from the prior, made clean by a median of what the neighbours' tangent planes predict.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.geometry.grid_solver import GridMatrix, solve_grid
from vision3d.geometry.unproject import check_depth

GRAZING = 0.02
"""Least cosine between normal and view that is believed (88.9°): beyond it a normal says nothing of the depth."""


@dataclass(frozen=True, eq=False)
class Surface:
    """A depth map integrated from normals.

    Attributes:
        depth: (H, W) float32 z-depth, NaN outside the mask. Under perspective without a prior, each connected piece
            has median 1; orthographic depth is in pixels (or in the unit of the prior) with mean 0 without one.
        joined_right: (H, W - 1) float32 in [0, 1]: how much pixel (i, j) and (i, j + 1) are one surface.
        joined_down: (H - 1, W) float32, likewise for (i, j) and (i + 1, j).
        iterations: of reweighting.
        converged: whether the energy had settled when it stopped.
        energy: after each iteration.
    """

    depth: np.ndarray
    joined_right: np.ndarray
    joined_down: np.ndarray
    iterations: int
    converged: bool
    energy: tuple[float, ...]

    def edges(self) -> np.ndarray:
        """(H, W) bool: pixels at a break of the surface towards a neighbour inside the mask."""
        edge = np.zeros(self.depth.shape, bool)
        there = np.isfinite(self.depth)
        broken = (self.joined_right < 0.1) & there[:, 1:] & there[:, :-1]
        edge[:, 1:] |= broken
        edge[:, :-1] |= broken
        broken = (self.joined_down < 0.1) & there[1:] & there[:-1]
        edge[1:] |= broken
        edge[:-1] |= broken
        return edge


@dataclass(frozen=True)
class _Equations:
    """What the normals say: ``slope ∂x + offset = 0`` along rows (u) and columns (v), where ``there``."""

    slope_u: np.ndarray
    slope_v: np.ndarray
    offset_u: np.ndarray
    offset_v: np.ndarray
    weight: np.ndarray
    there: np.ndarray


def integrate_normals(
    normals: np.ndarray,
    camera: Intrinsics | None = None,
    mask: np.ndarray | None = None,
    *,
    depth: np.ndarray | None = None,
    confidence: np.ndarray | None = None,
    depth_confidence: np.ndarray | None = None,
    normal_noise: float = 10.0,
    depth_noise: float = 0.05,
    sharpness: float = 2.0,
    robust_depth: float | None = None,
    start: np.ndarray | None = None,
    trust: tuple[np.ndarray, np.ndarray] | None = None,
    iterations: int = 100,
    tolerance: float = 1e-4,
) -> Surface:
    """The surface that has these normals, broken where it has to be.

    Args:
        normals: (H, W, 3) unit vectors in OpenCV camera axes, towards the camera (n · ray < 0).
        camera: perspective intrinsics of this size; None is an orthographic view along +z with square pixels.
        mask: (H, W) bool, or None; pixels without a normal (zero or non-finite) are left out in any case.
        depth: (H, W) prior, z-depth: in metres or any other unit under perspective, in pixels if orthographic. Where
            it is not finite (or not positive under perspective) there is no prior.
        confidence: (H, W) ≥ 0, relative weight of each pixel's normal; 1 by default.
        depth_confidence: (H, W) ≥ 0, relative weight of each pixel's prior; 1 by default.
        normal_noise: standard deviation of the normals' direction in degrees, at confidence 1.
        depth_noise: standard deviation of the prior at confidence 1: relative under perspective, in pixels if
            orthographic.
        sharpness: k of the sigmoid (eq. 16), the paper's 2 by default; 0 gives plain least squares, which never
            breaks.
        robust_depth: number of standard deviations beyond which the prior loses weight (Geman–McClure), or None
            to trust all of it alike.
        start: (H, W) surface that the first weights come from; without it the first step is plain least squares.
        trust: ((H, W - 1), (H - 1, W)) in [0, 1]: further weights of the links to the right and downwards, small
            where the surface is known to break.
        iterations: at most so many reweightings.
        tolerance: relative change of the energy at which to stop.

    Raises:
        InputError: shapes that do not fit, values out of range, or no pixel with a normal.
    """
    normals = np.asarray(normals, dtype=np.float64)
    if normals.ndim != 3 or normals.shape[-1] != 3:
        raise InputError(f"normals of shape {normals.shape}", "give an array of shape (H, W, 3)")
    shape = normals.shape[:2]
    if camera is not None:
        check_depth(normals[..., 0], camera)
    for name, other in (
        ("mask", mask),
        ("depth", depth),
        ("confidence", confidence),
        ("depth_confidence", depth_confidence),
        ("start", start),
    ):
        if other is not None and np.shape(other) != shape:
            raise InputError(
                f"{name} of shape {np.shape(other)} with normals of shape {normals.shape}", "resize one"
            )
    if not 0 < normal_noise < 90 or not depth_noise > 0 or sharpness < 0:
        raise InputError(
            f"normal_noise {normal_noise}, depth_noise {depth_noise}, sharpness {sharpness}",
            "noise is positive (normals below 90 degrees) and sharpness is not negative",
        )
    eq = _equations(normals, camera, mask, confidence, math.radians(normal_noise))
    if not eq.there.any():
        raise InputError("no pixel has a normal", "check the mask and that normals are unit vectors")
    to_unknown = np.log if camera is not None else np.asarray
    prior, prior_weight = _prior(depth, depth_confidence, depth_noise, eq.there, camera is not None)

    x = np.zeros(shape)
    known = prior_weight > 0
    if start is not None:
        with np.errstate(invalid="ignore", divide="ignore"):
            first = to_unknown(np.asarray(start, dtype=np.float64))
        x = np.where(np.isfinite(first), first, 0.0)
    elif known.any():
        x = np.where(known, prior, np.median(prior[known]))
    w_u, w_v = _weights(eq, x, sharpness if (start is not None) else 0.0)
    belief = prior_weight
    if trust is None:
        trust = (np.ones((shape[0], shape[1] - 1)), np.ones((shape[0] - 1, shape[1])))
    energies: list[float] = []
    converged = False
    for _ in range(max(1, iterations)):
        system = _assemble(eq, w_u, w_v, belief, prior, trust)
        x = solve_grid(system.matrix, system.rhs, x, tolerance=1e-7 if sharpness == 0 else 1e-5).values
        energies.append(system.energy(x, belief, prior))
        if sharpness == 0 and robust_depth is None:
            converged = True
            break
        if len(energies) > 1 and abs(energies[-1] - energies[-2]) <= tolerance * energies[-2]:
            converged = True
            break
        w_u, w_v = _weights(eq, x, sharpness)
        if robust_depth is not None:
            outlying = (x - prior) ** 2 * prior_weight / robust_depth**2
            belief = prior_weight / (1 + outlying) ** 2
    if not known.all():
        x = _centre_pieces(x, eq.there, known, system, perspective=camera is not None)
    full_u = np.abs(eq.slope_u) ** 2 * eq.weight
    full_v = np.abs(eq.slope_v) ** 2 * eq.weight
    return Surface(
        np.where(eq.there, np.exp(x) if camera is not None else x, np.nan).astype(np.float32),
        _share(system.matrix.right, full_u[:, :-1], full_u[:, 1:]),
        _share(system.matrix.down, full_v[:-1], full_v[1:]),
        len(energies),
        converged,
        tuple(energies),
    )


def _equations(
    normals: np.ndarray,
    camera: Intrinsics | None,
    mask: np.ndarray | None,
    confidence: np.ndarray | None,
    noise: float,
) -> _Equations:
    there = np.isfinite(normals).all(axis=-1)
    n = np.where(there[..., None], normals, 0.0)
    length = np.linalg.norm(n, axis=-1)
    there &= length > 0.5
    n = n / np.where(length > 0, length, 1)[..., None]
    if mask is not None:
        there &= np.asarray(mask, dtype=bool)
    if camera is None:
        towards, fx, fy = n[..., 2], 1.0, 1.0
    else:
        rays = camera.rays().astype(np.float64)
        towards, fx, fy = np.einsum("hwc,hwc->hw", n, rays), camera.fx, camera.fy
        reach = np.linalg.norm(rays, axis=-1)
    limit = -GRAZING * (1.0 if camera is None else reach)
    # A normal seen from behind is noise at a silhouette; the pixel stays, tied to its neighbours by their normals.
    usable = there & (towards < limit)
    weight = np.where(usable, 1 / noise**2, 0.0)
    if confidence is not None:
        c = np.asarray(confidence, dtype=np.float64)
        weight *= np.where(np.isfinite(c), np.maximum(c, 0), 0)
    towards = np.where(usable, towards, -1.0)
    return _Equations(fx * towards, fy * towards, n[..., 0], n[..., 1], weight, there)


def _prior(
    depth: np.ndarray | None,
    confidence: np.ndarray | None,
    noise: float,
    there: np.ndarray,
    perspective: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """The prior in the unknown's space, and its weight (0 where there is none)."""
    if depth is None:
        return np.zeros(there.shape), np.zeros(there.shape)
    z = np.asarray(depth, dtype=np.float64)
    known = there & np.isfinite(z)
    if perspective:
        known &= z > 0
        prior = np.log(np.where(known, z, 1.0))
    else:
        prior = np.where(known, z, 0.0)
    weight = np.where(known, 1 / noise**2, 0.0)
    if confidence is not None:
        c = np.asarray(confidence, dtype=np.float64)
        weight *= np.where(np.isfinite(c), np.maximum(c, 0), 0)
    return prior, weight


def _weights(eq: _Equations, x: np.ndarray, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Share of the forward difference along rows and columns (eq. 16); 0 or 1 … where a neighbour is missing."""
    return (
        _forward_share(eq.slope_u, x, eq.there, sharpness),
        _forward_share(eq.slope_v.T, x.T, eq.there.T, sharpness).T,
    )


def _forward_share(slope: np.ndarray, x: np.ndarray, there: np.ndarray, sharpness: float) -> np.ndarray:
    from scipy.special import expit

    pair = there[:, 1:] & there[:, :-1]
    step = np.where(pair, np.diff(x, axis=1), 0.0)
    square_f, square_b = np.zeros_like(x), np.zeros_like(x)
    square_f[:, :-1] = (slope[:, :-1] * step) ** 2
    square_b[:, 1:] = (slope[:, 1:] * step) ** 2
    share = expit(sharpness * (square_b - square_f))
    has_f, has_b = np.zeros_like(there), np.zeros_like(there)
    has_f[:, :-1], has_b[:, 1:] = pair, pair
    return np.where(has_f & has_b, share, 0.5)


@dataclass(frozen=True)
class _System:
    matrix: GridMatrix
    rhs: np.ndarray
    target_right: np.ndarray
    target_down: np.ndarray
    rest: float

    def energy(self, x: np.ndarray, prior_weight: np.ndarray, prior: np.ndarray) -> float:
        m = self.matrix
        along = np.sum(m.right * (np.diff(x, axis=1) - self.target_right) ** 2)
        along += np.sum(m.down * (np.diff(x, axis=0) - self.target_down) ** 2)
        return float(along + np.sum(prior_weight * (x - prior) ** 2) + self.rest)


def _assemble(
    eq: _Equations,
    w_u: np.ndarray,
    w_v: np.ndarray,
    prior_weight: np.ndarray,
    prior: np.ndarray,
    trust: tuple[np.ndarray, np.ndarray],
) -> _System:
    """Both one-sided equations of both ends of an edge are one spring with a weight and a target step."""
    right, target_right, rest_u = _springs(eq.slope_u, eq.offset_u, eq.weight, eq.there, w_u)
    down, target_down, rest_v = (
        part.T if isinstance(part, np.ndarray) else part
        for part in _springs(eq.slope_v.T, eq.offset_v.T, eq.weight.T, eq.there.T, w_v.T)
    )
    right, down = right * trust[0], down * trust[1]
    rhs = prior_weight * prior
    rhs[:, :-1] -= right * target_right
    rhs[:, 1:] += right * target_right
    rhs[:-1] -= down * target_down
    rhs[1:] += down * target_down
    matrix = GridMatrix(np.ascontiguousarray(right), np.ascontiguousarray(down), prior_weight)
    return _System(matrix, rhs, target_right, target_down, float(rest_u) + float(rest_v))  # type: ignore[arg-type]


def _springs(
    slope: np.ndarray, offset: np.ndarray, weight: np.ndarray, there: np.ndarray, forward: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    pair = there[:, 1:] & there[:, :-1]
    ahead = np.where(pair, (weight * forward)[:, :-1], 0.0)
    back = np.where(pair, (weight * (1 - forward))[:, 1:], 0.0)
    a, b = slope[:, :-1], slope[:, 1:]
    stiffness = ahead * a**2 + back * b**2
    pull = -(ahead * a * offset[:, :-1] + back * b * offset[:, 1:])
    target = pull / np.where(stiffness > 0, stiffness, 1.0)
    constant = ahead * offset[:, :-1] ** 2 + back * offset[:, 1:] ** 2 - stiffness * target**2
    return stiffness, target, float(constant.sum())


def _share(stiffness: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of the stiffness that an edge inside a surface has (half of either end's)."""
    full = (one + other) / 2
    return np.clip(stiffness / np.where(full > 0, full, 1.0), 0, 1).astype(np.float32)


def _centre_pieces(
    x: np.ndarray, there: np.ndarray, known: np.ndarray, system: _System, *, perspective: bool
) -> np.ndarray:
    """Connected pieces without any prior have a free constant: median 0 of log depth, or mean 0."""
    from scipy.ndimage import label

    pieces, count = label(there)
    if not count:
        return x
    anchored = np.unique(pieces[known]) if known.any() else np.array([], int)
    out = x.copy()
    for piece in range(1, count + 1):
        if piece in anchored:
            continue
        inside = pieces == piece
        out[inside] -= np.median(x[inside]) if perspective else x[inside].mean()
    return out


def fuse_depth_normals(
    depth: np.ndarray,
    normals: np.ndarray,
    camera: Intrinsics,
    mask: np.ndarray | None = None,
    *,
    confidence: np.ndarray | None = None,
    depth_confidence: np.ndarray | None = None,
    normal_noise: float = 10.0,
    depth_noise: float = 0.05,
    sharpness: float = 2.0,
    radius: int = 2,
    iterations: int = 3,
) -> Surface:
    """One consistent surface from a noisy metric depth and noisy normals, with the depth's breaks kept.

    Bilateral integration alone decides where a surface breaks from the surface it has, and noise in the prior of many
    times a pixel's footprint looks like breaks everywhere. So depth and normals are first cleaned over each pixel's own
    surface (:func:`smooth_on_surfaces`), which also tells how much noise is left; where the cleaned depth departs from
    its tangent planes by several times that, the surface is cut, thin structures included. The integration then sees
    the depth as it was given, so that nothing is averaged twice.

    Args:
        depth: (H, W) z-depth; pixels that are not finite and positive count as missing.
        normals: (H, W, 3) unit, OpenCV camera axes, towards the camera; zero where there is none.
        camera: intrinsics of this size.
        mask: (H, W) bool: where there is a surface (False: sky), or None.
        confidence, depth_confidence: (H, W) ≥ 0, as in :func:`integrate_normals`.
        normal_noise: of the normals in degrees. With ``depth_noise`` it sets the size of structure,
            ``f · depth_noise / normal_noise`` pixels, below which the normals decide.
        depth_noise: of the depth, relative.
        sharpness: k of the bilateral weights.
        radius: of the windows, in pixels.
        iterations: reweightings; three are enough from so good a start.

    Returns:
        The surface, in the unit of ``depth``; NaN outside the mask and where there is neither depth nor a normal. Depth
        without normals stays as it is after cleaning. A piece of normals that no depth touches has median 1.

    Raises:
        InputError: as :func:`integrate_normals`; or no pixel has a depth.
    """
    depth = np.asarray(depth)
    check_depth(depth, camera)
    if np.shape(normals) != (*depth.shape, 3):
        raise InputError(
            f"normals of shape {np.shape(normals)} with depth of shape {depth.shape}", "resize one"
        )
    if mask is not None and np.shape(mask) != depth.shape:
        raise InputError(f"mask of shape {np.shape(mask)} with depth of shape {depth.shape}", "resize one")
    clean = smooth_on_surfaces(depth, normals, camera, mask, radius=radius)
    if not np.isfinite(clean.log_depth).any():
        raise InputError("no pixel has a depth", "give finite positive depth inside the mask")
    inside = np.isfinite(clean.log_depth) if mask is None else np.asarray(mask, bool)
    eq = _equations(clean.normals.astype(np.float64), camera, inside, None, 1.0)
    cuts = (
        _uncut(eq.slope_u, eq.offset_u, clean.log_depth, clean.noise, camera.fx * math.radians(normal_noise)),
        _uncut(
            eq.slope_v.T,
            eq.offset_v.T,
            clean.log_depth.T,
            clean.noise,
            camera.fy * math.radians(normal_noise),
        ).T,
    )
    cleaned = np.exp(clean.log_depth)
    surface = integrate_normals(
        clean.normals,
        camera,
        inside,
        depth=depth,
        confidence=confidence,
        depth_confidence=depth_confidence,
        normal_noise=normal_noise,
        depth_noise=depth_noise,
        sharpness=sharpness,
        start=cleaned,
        trust=cuts,
        iterations=iterations,
    )
    bare = inside & np.isnan(surface.depth)
    return replace(surface, depth=np.where(bare, cleaned, surface.depth)) if bare.any() else surface


@dataclass(frozen=True, eq=False)
class SmoothSurface:
    """Depth and normals averaged within surfaces.

    Attributes:
        log_depth: (H, W) float32, NaN where there is no depth.
        normals: (H, W, 3) float32, unit or zero.
        noise: robust standard deviation of what is left of the depth's noise from pixel to pixel, relative.
    """

    log_depth: np.ndarray
    normals: np.ndarray
    noise: float


def smooth_on_surfaces(
    depth: np.ndarray,
    normals: np.ndarray,
    camera: Intrinsics,
    mask: np.ndarray | None = None,
    *,
    radius: int = 2,
    rounds: int = 2,
    spread: float = 2.5,
) -> SmoothSurface:
    """A bilateral filter whose neighbours speak for the pixel through their tangent planes.

    A neighbour q predicts the depth at p as where the plane through q's point meets p's ray:
    ``z_q (n · r_q) / (n · r_p)``, with n the mean of both normals. Predictions are averaged by how well they agree
    with the pixel's own depth, measured in standard deviations of its noise, and the noise is measured from the
    nearest predictions (median absolute deviation). Slanted surfaces are therefore not blunted, nor edges blurred.

    Args:
        depth: (H, W) z-depth.
        normals: (H, W, 3).
        camera: of this size.
        mask: (H, W) bool, or None.
        radius: of the window in pixels.
        rounds: passes, each with the noise that the last one left.
        spread: of the agreement, in standard deviations.
    """
    rays = camera.rays()
    n = np.nan_to_num(np.asarray(normals, dtype=np.float32))
    z = np.asarray(depth, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        there = np.isfinite(z) & (z > 0)
    if mask is not None:
        there &= np.asarray(mask, bool)
    oriented = np.linalg.norm(n, axis=-1) > 0.5
    x = np.where(there, np.log(np.where(there, z, 1)), np.nan).astype(np.float32)
    offsets = [(dy, dx) for dy in range(-radius, radius + 1) for dx in range(-radius, radius + 1) if dy or dx]
    for _ in range(rounds):
        noise, turn = _pixel_noise(x, n, rays), _normal_noise(n, oriented)
        total, weight = np.where(there, x, 0), there.astype(np.float32)
        bundle = n.copy()
        for dy, dx in offsets:
            here, that = _window((x.shape[0], x.shape[1]), dy, dx)
            prediction = x[that] + _tangent_step(n, rays, here, that)
            agreement = np.exp(-0.5 * np.square((prediction - x[here]) / np.float32(spread * noise)))
            agreement[~np.isfinite(agreement)] = 0
            total[here] += agreement * np.where(agreement > 0, prediction, 0)
            weight[here] += agreement
            # 1 - cosine is half the squared angle.
            bend = np.einsum("hwc,hwc->hw", n[here], n[that]) - 1
            agreement *= np.exp(bend / np.float32((spread * turn) ** 2)) * (oriented[here] & oriented[that])
            bundle[here] += agreement[..., None] * n[that]
        x = np.where(there, total / np.where(weight > 0, weight, 1), np.nan).astype(np.float32)
        length = np.linalg.norm(bundle, axis=-1, keepdims=True)
        n = np.where(oriented[..., None] & (length > 0), bundle / np.where(length > 0, length, 1), 0)
    return SmoothSurface(x, n, _pixel_noise(x, n, rays))


_Window = tuple[slice, slice]


def _window(shape: tuple[int, int], dy: int, dx: int) -> tuple[_Window, _Window]:
    """Where a pixel and its neighbour (dy, dx) away are both inside: the pixels, and their neighbours."""
    h, w = shape
    here = slice(max(0, -dy), h - max(0, dy)), slice(max(0, -dx), w - max(0, dx))
    that = slice(max(0, dy), h - max(0, -dy)), slice(max(0, dx), w - max(0, -dx))
    return here, that


def _tangent_step(n: np.ndarray, rays: np.ndarray, here: _Window, that: _Window) -> np.ndarray:
    """Log depth at a pixel less that at its neighbour, on the plane between them; NaN near grazing."""
    mean = n[here] + n[that]
    there, own = np.einsum("hwc,hwc->hw", mean, rays[that]), np.einsum("hwc,hwc->hw", mean, rays[here])
    good = (there < -0.1) & (own < -0.1)
    return np.where(good, np.log(np.where(good, there, -1) / np.where(good, own, -1)), np.nan).astype(
        np.float32
    )


def _pixel_noise(x: np.ndarray, n: np.ndarray, rays: np.ndarray) -> float:
    """Robust standard deviation of one pixel's log depth, from what its right and lower neighbours predict."""
    parts = []
    for dy, dx in ((0, 1), (1, 0)):
        here, that = _window((x.shape[0], x.shape[1]), dy, dx)
        residual = x[that] + _tangent_step(n, rays, here, that) - x[here]
        parts.append(residual[np.isfinite(residual)])
    residuals = np.concatenate(parts)
    deviation = 1.4826 * float(np.median(np.abs(residuals))) / math.sqrt(2) if residuals.size else 0.0
    return max(deviation, 1e-3)


def _normal_noise(n: np.ndarray, oriented: np.ndarray) -> float:
    """Robust standard deviation of a normal's direction per axis in radians, from neighbours along rows."""
    pair = oriented[:, 1:] & oriented[:, :-1]
    if not pair.any():
        return 0.01
    cosine = np.einsum("hwc,hwc->hw", n[:, 1:], n[:, :-1])[pair]
    # The angle between two noisy directions is Rayleigh distributed, of median 1.177 standard deviations.
    return max(float(np.median(np.sqrt(np.maximum(2 - 2 * cosine, 0)))) / 1.177 / math.sqrt(2), 0.01)


def _uncut(
    slope: np.ndarray, offset: np.ndarray, x: np.ndarray, noise: float, turn: float, limit: float = 4.0
) -> np.ndarray:
    """(H, W - 1) in (0, 1]: near 0 where two neighbours are farther apart than noise and tangent planes explain.

    ``turn`` is the focal length times the normals' noise: at a cosine c to the view, the step that a normal predicts is
    wrong by its noise over ``f c²``, which for floors seen at a low angle is all that there is to say.
    """
    along = (slope[:, 1:] + slope[:, :-1]) / 2
    residual = np.nan_to_num(np.diff(x, axis=1) + (offset[:, 1:] + offset[:, :-1]) / 2 / along)
    tolerance = np.square(limit * noise) + np.square(turn / along**2)
    return 1 / (1 + np.square(residual) / tolerance) ** 2


def resize_surface(depth: np.ndarray, size: tuple[int, int], *, max_jump: float = 0.05) -> np.ndarray:
    """A depth map (H, W) at another ``size`` (height, width), bilinear in log depth but never across a jump.

    Of the four samples around a position only those within ``max_jump`` (relative) of the nearest one count, so that
    no depth comes out that lies between a foreground and its background. NaN stays where the nearest sample is NaN.
    """
    z = np.asarray(depth, dtype=np.float32)
    if z.shape == tuple(size):
        return z
    with np.errstate(invalid="ignore", divide="ignore"):
        x = np.where(z > 0, np.log(z), np.nan).astype(np.float32)
    rows, columns = ((np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(size, z.shape, strict=True))
    nearest = x[
        np.ix_(_inside(np.floor(rows + 0.5), z.shape[0]), _inside(np.floor(columns + 0.5), z.shape[1]))
    ]
    total, weight = np.zeros(size, np.float32), np.zeros(size, np.float32)
    for down in (0, 1):
        for right in (0, 1):
            i, j = np.floor(rows) + down, np.floor(columns) + right
            share = np.outer(1 - np.abs(rows - i), 1 - np.abs(columns - j)).astype(np.float32)
            sample = x[np.ix_(_inside(i, z.shape[0]), _inside(j, z.shape[1]))]
            with np.errstate(invalid="ignore"):
                near = np.abs(sample - nearest) <= max_jump
            total += np.where(near, sample, 0) * share * near
            weight += share * near
    return np.where(weight > 1e-6, np.exp(total / np.where(weight > 1e-6, weight, 1)), np.exp(nearest))


def _inside(positions: np.ndarray, size: int) -> np.ndarray:
    return np.clip(positions, 0, size - 1).astype(np.int64)
