"""The Camera Image: intrinsics as a picture, and back (Deng et al., DM-Calib, section 3.1).

Channel 0 holds each pixel ray's azimuth, channel 1 its polar angle from the +y axis, channel 2 the photograph in
grey. With x = (u - cx) / fx and y = (v - cy) / fy::

    theta = atan2(r_x, r_z),  tan(theta) = x
    phi = arccos(r_y),        cot(phi) = y / sqrt(1 + x²)

so tan(theta) is linear in the column and cot(phi) / cos(theta) in the row, and two line fits give the camera back.

:func:`decode_intrinsics` does that in two ways. ``reference`` is the published one: RANSAC in the plane of
(tan, column), whose residual is next to blind to outliers, on whole column numbers. ``robust`` (ours) finds a
camera by RANSAC in pixels and refines it by iteratively reweighted Gauss-Newton steps on the angles themselves,
where the noise of a predicted picture lives; it knows its covariance and puts pixel centres at +0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.geometry.rays import AZIMUTH, GREY, POLAR

CLIPPED = 1e-3
"""Values this close to 0 or 1 may have been cut off, and say nothing."""

Mode = Literal["robust", "reference"]

_TUKEY = 4.685
MAX_ROUNDS = 10
_SIGMA_FLOOR = 1e-5  # radians: below single precision's noise in angles of the order of 1
PIXELS = 1 << 14
"""Pixels that a fit looks at: at 768 x 768 more than one for each latent that the picture was decoded from."""


# Encoding -----------------------------------------------------------------------------------------------


def encode_angles(camera: Intrinsics) -> np.ndarray:
    """(2, H, W) float32: azimuth theta and polar angle phi of every pixel's ray, in radians, not clipped."""
    x = (np.arange(camera.width) + 0.5 - camera.cx) / camera.fx
    y = (np.arange(camera.height) + 0.5 - camera.cy) / camera.fy
    theta = np.broadcast_to(np.arctan(x), (camera.height, camera.width))
    phi = np.arctan2(np.sqrt(1 + x * x)[None], y[:, None])  # arccos(r_y) without its cancellation
    return np.stack([theta, phi]).astype(np.float32)


def angles_to_channels(angles: np.ndarray) -> np.ndarray:
    """Angles (2, H, W) in radians as the first two channels of a Camera Image, clipped to [-1, 1]."""
    low = np.array([AZIMUTH[0], POLAR[0]], np.float64)[:, None, None]
    span = np.array([AZIMUTH[1] - AZIMUTH[0], POLAR[1] - POLAR[0]], np.float64)[:, None, None]
    channels = 2 * ((np.asarray(angles, np.float64) / math.pi - low) / span - 0.5)
    return np.clip(channels, -1, 1).astype(np.float32)


def grey_channel(rgb: np.ndarray) -> np.ndarray:
    """The third channel (H, W) in [-1, 1] of a photograph (H, W, 3) in [0, 1]."""
    return (2 * (np.asarray(rgb, np.float32) @ np.array(GREY, np.float32)) - 1).astype(np.float32)


def encode_camera_image(camera: Intrinsics, rgb: np.ndarray) -> np.ndarray:
    """The Camera Image (3, H, W) float32 in [-1, 1] of a photograph (H, W, 3) in [0, 1] of the camera's size.

    Raises:
        InputError: the sizes differ.
    """
    if rgb.shape[:2] != (camera.height, camera.width):
        raise InputError(
            f"a camera for {camera.width}×{camera.height} with a picture of shape {rgb.shape}",
            "resize the camera with camera.resized(width, height)",
        )
    return np.concatenate([angles_to_channels(encode_angles(camera)), grey_channel(rgb)[None]])


def unproject_angles(angles: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Points (H, W, 3) float32 in OpenCV axes for angles (2, H, W) in radians and z-depth (H, W).

    X = z tan(theta), Y = z cot(phi) / cos(theta), Z = z.
    """
    theta, phi = np.asarray(angles, np.float64)
    z = np.asarray(depth, np.float64)
    return np.stack([z * np.tan(theta), z / (np.tan(phi) * np.cos(theta)), z], axis=-1).astype(np.float32)


def decode_angles(image: np.ndarray) -> np.ndarray:
    """Angles (2, H, W) in radians, in the image's floating type, of a Camera Image (≥2, H, W) in [0, 1]."""
    theta = (image[0] * (AZIMUTH[1] - AZIMUTH[0]) + AZIMUTH[0]) * math.pi
    phi = (image[1] * (POLAR[1] - POLAR[0]) + POLAR[0]) * math.pi
    return np.stack([theta, phi])


# Decoding -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CameraFit:
    """A camera read from a Camera Image.

    Attributes:
        fx, fy: focal lengths in pixels; negative where the picture shows a mirrored camera.
        cx, cy: principal point in pixels; pixel centres at +0.5 in robust mode, at integers in reference mode.
        width, height: size that they refer to.
        covariance: (4, 4) of (fx, fy, cx, cy) in pixels², or None in reference mode. It covers the disagreement
            within the picture (errors are taken as correlated within an eighth of its sides), not a picture that
            is consistently wrong.
        inlier_ratio: share of the usable pixels that agree with the camera.
        noise_degrees: robust standard deviation of (theta, phi) from the fitted camera's, in degrees.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    covariance: np.ndarray | None = None
    inlier_ratio: float = 1.0
    noise_degrees: tuple[float, float] = (0.0, 0.0)

    @property
    def values(self) -> np.ndarray:
        """(4,) float64: fx, fy, cx, cy."""
        return np.array([self.fx, self.fy, self.cx, self.cy])

    @property
    def mirrored(self) -> bool:
        """Whether a focal length is negative: no camera, but its mirror image."""
        return self.fx <= 0 or self.fy <= 0

    @property
    def intrinsics(self) -> Intrinsics:
        """As a camera. Raises InputError for a mirrored one."""
        if self.mirrored:
            raise InputError(
                f"the Camera Image shows a mirrored camera (fx={self.fx:.1f}, fy={self.fy:.1f})",
                "the prediction is wrong; try another seed or a larger ensemble",
            )
        return Intrinsics(self.fx, self.fy, self.cx, self.cy, self.width, self.height)

    def resized(self, width: int, height: int) -> CameraFit:
        """The same camera for the picture resampled to ``width`` × ``height``."""
        sx, sy = width / self.width, height / self.height
        scale = np.array([sx, sy, sx, sy])
        fx, fy, cx, cy = (self.values * scale).tolist()
        covariance = None if self.covariance is None else self.covariance * np.outer(scale, scale)
        return CameraFit(fx, fy, cx, cy, width, height, covariance, self.inlier_ratio, self.noise_degrees)


@dataclass(frozen=True)
class Constraints:
    """What is known of a camera beforehand.

    Attributes:
        square_pixels: fy equals fx (times ``pixel_aspect``).
        centered: the principal point is the middle of the picture.
        focal: known (fx, fy) in pixels of the picture.
        pixel_aspect: fy / fx of a square-pixel camera in this picture: other than 1 where the picture was resized by
            slightly different factors in its two directions.
    """

    square_pixels: bool = False
    centered: bool = False
    focal: tuple[float, float] | None = None
    pixel_aspect: float = 1.0

    def __post_init__(self) -> None:
        if self.focal is not None and not all(math.isfinite(f) and f > 0 for f in self.focal):
            raise InputError(f"known focal length {self.focal}", "give positive numbers of pixels")

    def free_directions(self) -> np.ndarray:
        """(4, k): how (fx, fy, cx, cy) may move."""
        columns = []
        if self.focal is None:
            if self.square_pixels:
                columns.append([1.0, self.pixel_aspect, 0, 0])
            else:
                columns += [[1.0, 0, 0, 0], [0, 1.0, 0, 0]]
        if not self.centered:
            columns += [[0, 0, 1.0, 0], [0, 0, 0, 1.0]]
        return np.array(columns, np.float64).reshape(-1, 4).T


def decode_intrinsics(
    image: np.ndarray,
    *,
    mode: Mode = "robust",
    square_pixels: bool = False,
    centered: bool = False,
    focal: float | tuple[float, float] | None = None,
    pixel_aspect: float = 1.0,
    threshold: float = 3.0,
    pixels: int | None = PIXELS,
    seed: int = 0,
) -> CameraFit:
    """The camera that a Camera Image shows.

    Args:
        image: (≥2, H, W) in [0, 1], padding removed.
        mode: ``robust``, or ``reference`` for the published fit (which has pixel centres at integers, ignores
            constraints, and is far off when some of the pixels are wrong).
        square_pixels: tie fy to fx.
        centered: put the principal point in the middle.
        focal: known focal length in pixels, or (fx, fy).
        pixel_aspect: fy / fx of square pixels in this picture.
        threshold: distance in pixels within which a pixel supports a candidate camera.
        pixels: at most so many, on an even lattice, are looked at in robust mode; None for all.
        seed: of the candidates.

    Raises:
        InputError: another shape, values that are not finite, too few usable pixels, or constraints in
            reference mode.
    """
    picture = np.asarray(image)
    if picture.ndim != 3 or picture.shape[0] < 2 or min(picture.shape[1:]) < 2:
        raise InputError(f"Camera Image of shape {picture.shape}", "give (3, H, W) in [0, 1]")
    if focal is not None and not isinstance(focal, tuple):
        focal = (float(focal), float(focal) * pixel_aspect)
    known = Constraints(square_pixels, centered, focal, pixel_aspect)
    if mode == "reference":
        if square_pixels or centered or focal is not None:
            raise InputError("constraints with mode 'reference'", "use mode 'robust'")
        return _published_fit(picture, seed)
    if mode != "robust":
        raise InputError(f"decoding mode {mode!r}", "use 'robust' or 'reference'")
    height, width = picture.shape[1:]
    step = 1 if pixels is None else max(1, math.ceil(math.sqrt(height * width / max(pixels, 64))))
    return _robust_fit(
        _Field.of(picture, step), (height, width), known, threshold, np.random.default_rng(seed)
    )


def _check_finite(channels: np.ndarray) -> None:
    if not np.isfinite(channels).all():
        raise InputError("the Camera Image holds NaN or infinite values", "the prediction is broken")


# The published fit --------------------------------------------------------------------------------------


def _published_fit(image: np.ndarray, seed: int) -> CameraFit:
    """RANSAC with orthogonal residuals in the (X, Y) plane, then total least squares on the inliers."""
    _check_finite(image[:2])
    theta, phi = decode_angles(image.astype(np.float64))
    height, width = theta.shape
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    rng = np.random.default_rng(seed)
    fx, cx, inliers_x = _ransac_line(np.tan(theta).ravel(), columns.ravel(), rng)
    fy, cy, inliers_y = _ransac_line((1 / (np.tan(phi) * np.cos(theta))).ravel(), rows.ravel(), rng)
    return CameraFit(fx, fy, cx, cy, width, height, None, min(inliers_x, inliers_y))


def _ransac_line(
    x: np.ndarray, y: np.ndarray, rng: np.random.Generator, threshold: float = 1.0, max_trials: int = 1000
) -> tuple[float, float, float]:
    """Slope, offset and share of inliers of a line through (N,) points; residuals are orthogonal distances.

    The number of trials sinks with every improvement, to what finds a clean pair with probability 1 - 2.2e-16.
    """
    epsilon = np.finfo(np.float64).eps
    best: tuple[int, float] = (-1, 0.0)
    inliers = np.ones(len(x), bool)
    trials, trial = max_trials, 0
    while trial < trials:
        trial += 1
        i, j = rng.choice(len(x), 2, replace=False)
        dx, dy = x[j] - x[i], y[j] - y[i]
        length = math.hypot(dx, dy)
        if length == 0:
            continue
        distance = np.abs((x - x[i]) * dy - (y - y[i]) * dx) / length
        close = distance < threshold
        count, cost = int(close.sum()), float(distance @ distance)
        if count > best[0] or (count == best[0] and cost < best[1]):
            best, inliers = (count, cost), close
            share = count / len(x)
            missed = min(max(1 - share * share, epsilon), 1 - epsilon)
            trials = min(trials, math.ceil(math.log(epsilon) / math.log(missed)))
            if cost == 0:
                break
    slope, offset = _total_least_squares(x[inliers], y[inliers])
    return slope, offset, float(inliers.mean())


def _total_least_squares(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the line with the least orthogonal distances."""
    mean_x, mean_y = float(x.mean()), float(y.mean())
    # The first right singular vector of the centred points, from their 2 × 2 moments.
    dx, dy = x - mean_x, y - mean_y
    moments = np.array([[dx @ dx, dx @ dy], [dx @ dy, dy @ dy]])
    direction = np.linalg.eigh(moments)[1][:, -1]
    slope = float(direction[1] / direction[0]) if direction[0] else math.inf
    return slope, mean_y - slope * mean_x


# The robust fit -----------------------------------------------------------------------------------------


@dataclass
class _Field:
    """Angles of a grid of pixels: azimuth and elevation above the optical axis (psi = pi/2 - phi)."""

    theta: np.ndarray  # (h, w) float32
    psi: np.ndarray
    there_theta: np.ndarray  # (h, w) bool: not cut off
    there_psi: np.ndarray
    u: np.ndarray  # (w,) pixel centres
    v: np.ndarray  # (h,)

    @classmethod
    def of(cls, image: np.ndarray, step: int = 1) -> _Field:
        """Every ``step``-th pixel in both directions, the lattice centred."""
        rows, columns = (slice((n % step or step) // 2, None, step) for n in image.shape[1:])
        c0, c1 = np.array(image[:2, rows, columns], np.float32)
        _check_finite(c0 + c1)
        span, polar = AZIMUTH[1] - AZIMUTH[0], POLAR[1] - POLAR[0]
        theta = c0 * np.float32(span * math.pi) + np.float32(AZIMUTH[0] * math.pi)
        psi = np.float32((0.5 - POLAR[0]) * math.pi) - c1 * np.float32(polar * math.pi)
        there_theta, there_psi = (np.abs(c - 0.5) < 0.5 - CLIPPED for c in (c0, c1))
        v, u = (np.arange(n) + 0.5 for n in image.shape[1:])
        return cls(theta, psi, there_theta, there_psi, u[columns], v[rows])


@dataclass
class _Linearised:
    """Residuals of a camera and how they move with it."""

    r_theta: np.ndarray  # (h, w)
    r_psi: np.ndarray
    j_theta: np.ndarray  # (2, w): to fx, cx
    j_psi: np.ndarray  # (4, h, w): to fx, fy, cx, cy
    inside_theta: np.ndarray  # (w,) model within the range that a Camera Image holds
    inside_psi: np.ndarray  # (h, w)


def _linearise(field: _Field, p: np.ndarray, margin: tuple[float, float]) -> _Linearised:
    fx, fy, cx, cy = (float(value) for value in p)
    x, y = (field.u - cx) / fx, (field.v - cy) / fy
    s2 = 1 + x * x
    s = np.sqrt(s2)
    theta = np.arctan(x)
    x32, y32 = x.astype(np.float32), y.astype(np.float32)[:, None]
    psi = np.arctan(y32 * (1 / s).astype(np.float32))
    norm2 = (y32 * y32) + s2.astype(np.float32)
    by_x = (y32 * (-x / s).astype(np.float32)) / norm2
    by_y = s.astype(np.float32) / norm2
    j_psi = np.stack(
        [
            by_x * (x32 / np.float32(-fx)),
            by_y * (y32 / np.float32(-fy)),
            by_x * np.float32(-1 / fx),
            by_y * np.float32(-1 / fy),
        ]
    )
    limits = AZIMUTH[1] * math.pi, (0.5 - POLAR[0]) * math.pi
    return _Linearised(
        field.theta - theta.astype(np.float32),
        field.psi - psi,
        np.stack([-x / (fx * s2), -1 / (fx * s2)]),
        j_psi,
        np.abs(theta) < limits[0] - margin[0],
        np.abs(psi) < limits[1] - margin[1],
    )


def _scale(residuals: np.ndarray) -> float:
    """Standard deviation of the bulk of residuals: median deviation, then again without what lies beyond."""
    # 2,000 residuals settle it to 3 %, which is more than weights need.
    size = np.sort(np.abs(residuals[:: max(1, len(residuals) >> 11)]))
    count, sigma = len(size), 0.0
    for _ in range(6):
        if not count:
            break
        sigma = 1.4826 * float(size[count // 2])
        count = int(np.searchsorted(size, 3 * max(sigma, _SIGMA_FLOOR)))
    return max(sigma, _SIGMA_FLOOR)


def _weights(residuals: np.ndarray, sigma: float, there: np.ndarray) -> np.ndarray:
    """Tukey's biweight: 1 for no residual, 0 beyond 4.685 standard deviations."""
    w = np.square(residuals * np.float32(1 / (_TUKEY * sigma)))
    np.subtract(1, w, out=w)
    np.maximum(w, 0, out=w)
    return np.square(w, out=w) * there


def _robust_fit(
    field: _Field,
    size: tuple[int, int],
    known: Constraints,
    threshold: float,
    rng: np.random.Generator,
) -> CameraFit:
    p = _first_camera(field, size, known, threshold, rng)
    free = known.free_directions()
    sigmas = (0.0, 0.0)
    for _ in range(MAX_ROUNDS):
        moved, sigmas, fit = _gauss_newton(field, p, free, sigmas)
        change = float(np.abs(moved - p).max())
        p = moved
        if change < 1e-5 * float(np.abs(p[:2]).max()):
            break
    covariance, inliers = _quality(field, free, fit)
    noise = math.degrees(sigmas[0]), math.degrees(sigmas[1])
    fx, fy, cx, cy = p.tolist()
    return CameraFit(fx, fy, cx, cy, size[1], size[0], covariance, inliers, noise)


def _first_camera(
    field: _Field,
    size: tuple[int, int],
    known: Constraints,
    threshold: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """(4,) camera with the most support among candidates through pairs of pixels, x before y."""
    height, width = size
    focal = known.focal or (None, None)
    centre = (width / 2, height / 2) if known.centered else (None, None)
    rows, columns = _some_pixels(field.there_theta, rng)
    x = np.tan(field.theta[rows, columns].astype(np.float64))
    fx, cx = _ransac_pixels(x, field.u[columns], focal[0], centre[0], threshold, rng)
    rows, columns = _some_pixels(field.there_psi, rng)
    # 1 / cos(theta) of the camera that was found, not of the noisy picture.
    y = np.tan(field.psi[rows, columns].astype(np.float64)) * np.hypot(1, (field.u[columns] - cx) / fx)
    fy, cy = _ransac_pixels(y, field.v[rows], focal[1], centre[1], threshold, rng)
    if known.focal is None and known.square_pixels:
        fx = math.copysign(math.sqrt(abs(fx * fy / known.pixel_aspect)), fx)
        fy = math.copysign(fx * known.pixel_aspect, fy)
        if fx * fy < 0:
            raise InputError("the Camera Image shows a camera mirrored in one direction", "try another seed")
    return np.array([fx, fy, cx, cy])


def _some_pixels(there: np.ndarray, rng: np.random.Generator, count: int = 2048) -> Any:
    usable = np.flatnonzero(there)
    if len(usable) < 16:
        raise InputError(
            f"only {len(usable)} pixels of the Camera Image lie within its range",
            "the field of view exceeds 111°, or the prediction is broken",
        )
    if len(usable) > count:
        usable = usable[rng.integers(0, len(usable), count)]
    rows, columns = np.unravel_index(usable, there.shape)
    return rows, columns


def _ransac_pixels(
    x: np.ndarray,
    y: np.ndarray,
    focal: float | None,
    centre: float | None,
    threshold: float,
    rng: np.random.Generator,
    candidates: int = 128,
) -> tuple[float, float]:
    """Focal length and centre of y = f x + c with the least truncated squared distance in pixels."""
    if focal is not None and centre is not None:
        return focal, centre
    # Four times as many pairs as needed: pairs of nearly equal rays are dropped.
    i, j = rng.integers(0, len(x), (2, 4 * candidates))
    if focal is not None:
        f, c = np.full(candidates, focal), y[i[:candidates]] - focal * x[i[:candidates]]
    elif centre is not None:
        i = i[np.abs(x[i]) > 1e-3][:candidates]
        f, c = (y[i] - centre) / x[i], np.full(len(i), centre)
    else:
        keep = np.flatnonzero((np.abs(x[i] - x[j]) > 1e-3) & (y[i] != y[j]))[:candidates]
        i, j = i[keep], j[keep]
        f = (y[i] - y[j]) / (x[i] - x[j])
        c = y[i] - f * x[i]
    good = np.flatnonzero((np.abs(f) > 1e-3) & np.isfinite(f) & np.isfinite(c))
    if not len(good):
        raise InputError("the Camera Image is flat and shows no camera", "the prediction is broken")
    f, c = f[good], c[good]
    distance = (y.astype(np.float32) - c.astype(np.float32)[:, None]) - f.astype(np.float32)[
        :, None
    ] * x.astype(np.float32)
    np.square(distance, out=distance)
    np.minimum(distance, np.float32(threshold**2), out=distance)
    best = int(distance.sum(axis=1).argmin())
    return float(f[best]), float(c[best])


@dataclass
class _System:
    """What the last step was computed from, for the covariance."""

    inverse: np.ndarray  # (k, k) of the normal matrix
    columns: np.ndarray  # (4, w)
    score_theta: np.ndarray  # (h, w)
    j_psi: np.ndarray  # (4, h * w)
    score_psi: np.ndarray  # (h, w)
    agreeing: float


def _gauss_newton(
    field: _Field, p: np.ndarray, free: np.ndarray, sigmas: tuple[float, float]
) -> tuple[np.ndarray, tuple[float, float], _System]:
    """One reweighted step of a camera ``p`` (4,) along its ``free`` directions (4, k).

    Returns:
        the moved camera, the noise of theta and psi in radians, and the system that was solved.
    """
    # Where a camera's own angle comes close to the range's end, half of the noise is cut off: leave it out.
    margin = min(3 * sigmas[0], 0.1), min(3 * sigmas[1], 0.1)
    at = _linearise(field, p, margin)
    there_theta = field.there_theta & at.inside_theta
    there_psi = field.there_psi & at.inside_psi
    if there_theta.sum() < 8 or there_psi.sum() < 8:
        there_theta, there_psi = field.there_theta, field.there_psi
    sigma = _scale(at.r_theta[there_theta]), _scale(at.r_psi[there_psi])
    w_theta = _weights(at.r_theta, sigma[0], there_theta) / np.float32(sigma[0] ** 2)
    w_psi = _weights(at.r_psi, sigma[1], there_psi) / np.float32(sigma[1] ** 2)
    # theta depends on the column only, so its sums over rows come first.
    columns = np.zeros((4, len(field.u)))
    columns[[0, 2]] = at.j_theta
    score_theta = w_theta * at.r_theta
    normal = (columns * w_theta.sum(axis=0, dtype=np.float64)) @ columns.T
    gradient = columns @ score_theta.sum(axis=0, dtype=np.float64)
    j = at.j_psi.reshape(4, -1)
    score_psi = w_psi * at.r_psi
    normal += ((j * w_psi.reshape(1, -1)) @ j.T).astype(np.float64)
    gradient += (j @ score_psi.ravel()).astype(np.float64)
    inverse, moved = np.zeros((0, 0)), p
    if free.shape[1]:
        reduced = free.T @ normal @ free
        # Damped where the picture leaves a direction undetermined (everything clipped).
        reduced += 1e-12 * np.trace(reduced) * np.eye(len(reduced))
        inverse = np.linalg.inv(reduced)
        move = free @ (inverse @ (free.T @ gradient))
        # The angles are linear in a camera only nearby: no focal length changes by more than a quarter at once.
        moved = p + move / max(1.0, float(np.abs(move[:2] / p[:2]).max()) / 0.25)
    usable = there_theta & there_psi
    agreeing = ((w_theta > 0) & (w_psi > 0)).sum() / max(1, int(usable.sum()))
    return moved, sigma, _System(inverse, columns, score_theta, j, score_psi, float(agreeing))


def _quality(field: _Field, free: np.ndarray, system: _System) -> tuple[np.ndarray, float]:
    """Covariance (4, 4) of a converged camera, and the share of pixels that agree with it."""
    if not free.shape[1]:
        return np.zeros((4, 4)), system.agreeing
    middle = _blocks(system.columns, system.score_theta, system.j_psi, system.score_psi, free)
    covariance = free @ (system.inverse @ middle @ system.inverse) @ free.T
    independent = free @ system.inverse @ free.T
    if np.trace(covariance) < np.trace(independent):
        covariance = independent
    return (covariance + covariance.T) / 2, system.agreeing


def _blocks(
    columns: np.ndarray,  # (4, w)
    score_theta: np.ndarray,  # (h, w)
    j_psi: np.ndarray,  # (4, h * w)
    score_psi: np.ndarray,  # (h, w)
    free: np.ndarray,  # (4, k)
    grid: int = 8,
) -> np.ndarray:
    """(k, k) sum of outer products of the scores of blocks: the middle of a cluster-robust covariance.

    Errors of a predicted picture are correlated; only blocks (an eighth of each side) are taken as independent.
    """
    height, width = score_theta.shape
    rows = np.unique(np.linspace(0, height, grid + 1).astype(int))[:-1]
    cols = np.unique(np.linspace(0, width, grid + 1).astype(int))[:-1]

    def pooled(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(np.add.reduceat(values, rows, axis=-2, dtype=np.float64), cols, axis=-1)

    theta_rows = np.add.reduceat(score_theta, rows, axis=0, dtype=np.float64)
    theta = np.add.reduceat(theta_rows[None] * columns[:, None, :], cols, axis=-1)
    psi = pooled(j_psi.reshape(4, height, width) * score_psi)
    scores = (theta + psi).reshape(4, -1)
    count = scores.shape[1]
    projected = free.T @ scores
    return projected @ projected.T * (count / max(1, count - free.shape[1]))
