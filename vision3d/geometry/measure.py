"""Single-view metrology: lengths, heights and planes in the metric depth of one photograph, with uncertainty.

A pixel's point is z K⁻¹ (u, v, 1)ᵀ. What is uncertain of it: the camera (its covariance), where a person clicked,
the depth there (how it scatters about its surroundings' plane), and the scale of the depth map as a whole, which no
picture of it shows and which is therefore stated, not found.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.geometry.unproject import check_depth, unproject_depth

Pixel = tuple[float, float]
CLICK_SIGMA = 1.0
"""Pixels by which a click is off."""
SCALE_SIGMA = 0.1
"""Share by which metric depth of a single photograph is off as a whole, where nothing better is known."""
_WINDOW = 3


def scale_sigma(given: float | None, stated: float, least: float = SCALE_SIGMA) -> float:
    """Relative error of a metric depth's scale: as given, else what its weights state, but no less than ``least``."""
    return max(least, stated) if given is None else given


@dataclass(frozen=True)
class Measurement:
    """A length.

    Attributes:
        value: in metres.
        sigma: its standard deviation in metres.
        parts: standard deviation from each source: "scale", "depth", "click", "camera".
        points: (N, 3) metres, OpenCV camera axes: what was measured.
    """

    value: float
    sigma: float
    parts: dict[str, float]
    points: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "metres": self.value,
            "sigma": self.sigma,
            "sigma_parts": self.parts,
            "points": np.asarray(self.points).tolist(),
        }

    def __str__(self) -> str:
        return f"{self.value:.2f} m ± {self.sigma:.2f}"


@dataclass(frozen=True)
class Plane:
    """Points x with ``normal · x + offset = 0``, in camera axes.

    Attributes:
        normal: (3,) unit, towards the camera.
        offset: in metres; the camera's distance from the plane.
        spread: standard deviation of the supporting points from it, in metres.
        inlier_ratio: share of the points that support it.
    """

    normal: np.ndarray
    offset: float
    spread: float
    inlier_ratio: float

    def distance(self, points: Any) -> np.ndarray:
        """Signed distance (...) of points (..., 3), positive on the camera's side."""
        return np.asarray(points, np.float64) @ self.normal + self.offset

    @property
    def tilt(self) -> float:
        """Angle in degrees between the plane's normal and the camera's up (-y): 0 for a level floor."""
        return math.degrees(math.acos(float(np.clip(-self.normal[1], -1, 1))))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return {
            "normal": self.normal.tolist(),
            "offset": self.offset,
            "spread": self.spread,
            "inlier_ratio": self.inlier_ratio,
            "tilt_degrees": self.tilt,
        }

    def __str__(self) -> str:
        n = self.normal
        return (
            f"plane {self.offset:.2f} m from the camera, normal ({n[0]:+.2f}, {n[1]:+.2f}, {n[2]:+.2f}), "
            f"{self.inlier_ratio:.0%} of the points within {self.spread:.3f} m"
        )


def fit_plane(
    points: np.ndarray,
    *,
    threshold: float | None = None,
    trials: int = 200,
    seed: int = 0,
) -> Plane:
    """The plane that most of the points (N, 3) lie on: RANSAC, then total least squares on its supporters.

    Args:
        points: in camera axes; those that are not finite are left out.
        threshold: distance within which a point supports a plane; None takes 1 % of the points' median distance.
        trials: candidates.
        seed: of the candidates.

    Raises:
        InputError: fewer than 3 points, or all on one line.
    """
    points = np.asarray(points, np.float64).reshape(-1, 3)
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) < 3:
        raise InputError(f"a plane through {len(points)} points", "give a region with depth")
    rng = np.random.default_rng(seed)
    if threshold is None:
        threshold = 0.01 * float(np.median(np.linalg.norm(points, axis=1)))
    some = points if len(points) <= 4096 else points[rng.choice(len(points), 4096, replace=False)]
    corners = some[rng.integers(0, len(some), (trials, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    usable = lengths > 1e-12 * max(1.0, float(np.abs(some).max()) ** 2)
    if not usable.any():
        raise InputError("a plane through points that lie on one line", "give a wider region")
    normals, corners = normals[usable] / lengths[usable, None], corners[usable, 0]
    distance = np.abs(some @ normals.T - np.sum(normals * corners, axis=1))
    cost = np.minimum(distance, threshold).sum(axis=0)
    best = int(cost.argmin())
    normal, offset = normals[best], -float(normals[best] @ corners[best])
    inliers = np.ones(len(points), bool)
    for _ in range(3):
        inliers = np.abs(points @ normal + offset) < threshold
        if inliers.sum() < 3:
            raise InputError("no plane is supported by three points", "give a larger threshold")
        centre = points[inliers].mean(axis=0)
        normal = np.linalg.svd(points[inliers] - centre, full_matrices=False)[2][-1]
        offset = -float(normal @ centre)
    if offset < 0:  # the camera, at the origin, is on the positive side
        normal, offset = -normal, -offset
    spread = float(np.std(points[inliers] @ normal + offset))
    return Plane(normal, offset, spread, float(inliers.mean()))


class Metrology:
    """Measures in a metric depth map.

    Args:
        depth: (H, W) z-depth in metres; what is not positive and finite cannot be measured.
        camera: its intrinsics.
        covariance: (4, 4) of fx, fy, cx, cy in pixels²; None for a camera that is known exactly.
        scale_sigma: relative standard deviation of the depth map's scale.
        click_sigma: standard deviation of clicked pixels.

    Raises:
        InputError: shapes that do not fit.
    """

    def __init__(
        self,
        depth: np.ndarray,
        camera: Intrinsics,
        covariance: np.ndarray | None = None,
        *,
        scale_sigma: float = SCALE_SIGMA,
        click_sigma: float = CLICK_SIGMA,
    ) -> None:
        check_depth(np.asarray(depth), camera)
        self.depth = np.where(np.isfinite(depth) & (np.asarray(depth) > 0), depth, np.nan).astype(np.float64)
        self.camera, self.scale_sigma, self.click_sigma = camera, scale_sigma, click_sigma
        self.covariance = np.zeros((4, 4)) if covariance is None else np.asarray(covariance, np.float64)

    def depth_at(self, pixel: Pixel) -> tuple[float, float, np.ndarray]:
        """Depth of a pixel: value, standard deviation, and gradient (2,) in metres per pixel.

        A plane is fitted to the inverse depth of the surroundings, which is exactly a plane for flat surfaces, by
        least absolute deviations; it bridges single holes, and its residuals say how noisy the depth is.

        Raises:
            InputError: outside the image, or no depth around it.
        """
        u, v = float(pixel[0]), float(pixel[1])
        if not (0 <= u <= self.camera.width and 0 <= v <= self.camera.height):
            raise InputError(
                f"pixel ({u:g}, {v:g}) lies outside the {self.camera.width}×{self.camera.height} image",
                "x goes right and y down from the top left corner",
            )
        column, row = min(int(u), self.camera.width - 1), min(int(v), self.camera.height - 1)
        rows = slice(max(0, row - _WINDOW), row + _WINDOW + 1)
        columns = slice(max(0, column - _WINDOW), column + _WINDOW + 1)
        part = self.depth[rows, columns]
        there = np.isfinite(part)
        near = there[max(0, row - 1) - rows.start :, max(0, column - 1) - columns.start :][:3, :3]
        if there.sum() < 6 or not near.any():
            raise InputError(f"no depth at pixel ({u:g}, {v:g})", "click on a surface, not the sky")
        y, x = np.nonzero(there)
        a = np.stack([np.ones(len(x)), x + columns.start + 0.5 - u, y + rows.start + 0.5 - v], axis=1)
        inverse = 1 / part[there]
        # The pixel under the click decides which side of a depth edge is meant.
        here = self.depth[row, column]
        middle = 1 / here if np.isfinite(here) else float(np.median(inverse))
        weight = np.exp(-np.abs(inverse - middle) / (0.05 * middle))
        fit = np.zeros(3)
        for _ in range(10):
            root = np.sqrt(weight)
            fit = np.linalg.lstsq(a * root[:, None], inverse * root, rcond=None)[0]
            residual = np.abs(inverse - a @ fit)
            weight = np.where(residual < 0.1 * middle, 1 / np.maximum(residual, 1e-3 * middle), 0)
            if not weight.any():
                break
        if not (fit[0] > 0 and abs(fit[0] / middle - 1) < 0.2):
            fit = np.array([middle, 0.0, 0.0])
        close = residual < 0.1 * middle
        noise = 1.4826 * float(np.median(residual[close])) if close.any() else 0.1 * middle
        z = 1 / float(fit[0])
        return z, z * z * noise, -z * z * fit[1:]

    def point(self, pixel: Pixel) -> np.ndarray:
        """(3,) metres in camera axes: the point behind a pixel. Raises as :meth:`depth_at`."""
        return self.camera.unproject(np.array(pixel, np.float64), self.depth_at(pixel)[0])

    def distance(self, p: Pixel, q: Pixel) -> Measurement:
        """Length of the straight line between the points behind two pixels. Raises as :meth:`depth_at`."""
        return self._measure([p, q], lambda points: float(np.linalg.norm(points[0] - points[1])))

    def height(self, pixel: Pixel, ground: Plane) -> Measurement:
        """Height of the point behind a pixel above a plane, which scales and errs with the depth map."""
        n, offset = ground.normal, ground.offset
        # A longer focal length or another scale moves point and plane alike; only the scale is carried over.
        found = self._measure([pixel], lambda points: float(points[0] @ n) + offset)
        parts = {**found.parts, "plane": ground.spread}
        parts["scale"] = abs(found.value) * self.scale_sigma
        return Measurement(found.value, _root_sum(parts), parts, found.points)

    def region(self, x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
        """(N, 3) points of a rectangle of pixels. Raises InputError where there is none with depth."""
        left, right = sorted((int(max(0, x0)), math.ceil(max(0, x1))))
        top, bottom = sorted((int(max(0, y0)), math.ceil(max(0, y1))))
        points = unproject_depth(self.depth, self.camera)[top:bottom, left:right].reshape(-1, 3)
        points = points[np.isfinite(points).all(axis=1)]
        if len(points) < 3:
            raise InputError(
                f"no depth in the rectangle {x0:g},{y0:g} … {x1:g},{y1:g}", "give corners within the image"
            )
        return points

    def ground(self, max_tilt: float = 35.0, seed: int = 0) -> Plane:
        """The floor: the plane that most of the lower part of the picture lies on and that is roughly level.

        Raises:
            InputError: there is none.
        """
        height, width = self.depth.shape
        for share in (0.75, 0.5, 0.85):
            try:
                plane = fit_plane(self.region(0, share * height, width, height), seed=seed)
            except InputError:
                continue
            if plane.tilt <= max_tilt:
                return plane
        raise InputError(
            "no level floor in the lower part of the picture", "mark it with --ground x0,y0,x1,y1"
        )

    def _measure(self, pixels: list[Pixel], length: Callable[[np.ndarray], float]) -> Measurement:
        """A function of points behind pixels, with the propagated uncertainty of everything that it depends on."""
        known = [self.depth_at(pixel) for pixel in pixels]
        camera = np.array([self.camera.fx, self.camera.fy, self.camera.cx, self.camera.cy])
        uv = np.array(pixels, np.float64)
        z = np.array([k[0] for k in known])
        gradient = np.array([k[2] for k in known])

        def points(scale: Any = 1.0, dz: Any = 0.0, move: Any = 0.0, dcamera: Any = 0.0) -> np.ndarray:
            fx, fy, cx, cy = camera + dcamera
            where = uv + move
            depth = scale * (z + dz + np.sum(gradient * np.broadcast_to(move, uv.shape), axis=1))
            return np.stack([(where[:, 0] - cx) / fx * depth, (where[:, 1] - cy) / fy * depth, depth], axis=1)

        def slope(step: float, **change: Any) -> float:
            plus: dict[str, Any] = {
                name: (1 + value if name == "scale" else value) for name, value in change.items()
            }
            minus: dict[str, Any] = {
                name: (1 - value if name == "scale" else -np.asarray(value)) for name, value in change.items()
            }
            return (length(points(**plus)) - length(points(**minus))) / (2 * step)

        count = len(pixels)
        parts = {"scale": abs(slope(1e-5, scale=1e-5)) * self.scale_sigma}
        depth_variance = click_variance = 0.0
        for i in range(count):
            one = np.zeros(count)
            one[i] = 1e-5
            depth_variance += (slope(1e-5, dz=one) * known[i][1]) ** 2
            for axis in (0, 1):
                shift = np.zeros((count, 2))
                shift[i, axis] = 1e-4
                click_variance += (slope(1e-4, move=shift) * self.click_sigma) ** 2
        jacobian = np.array([slope(1e-4, dcamera=1e-4 * axis) for axis in np.eye(4)])
        parts["depth"] = math.sqrt(depth_variance)
        parts["click"] = math.sqrt(click_variance)
        parts["camera"] = math.sqrt(max(0.0, float(jacobian @ self.covariance @ jacobian)))
        found = points()
        return Measurement(length(found), _root_sum(parts), parts, found)


def _root_sum(parts: dict[str, float]) -> float:
    return math.sqrt(sum(value**2 for value in parts.values()))
