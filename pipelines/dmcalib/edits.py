"""Was a photograph edited after it left the camera? What its Camera Image says, and how to undo it (ours).

An unedited photograph of an ordinary camera has square pixels, its principal point near the middle, and straight
lines where the world has them. A non-uniform resize makes fx and fy differ, a crop moves the principal point, and
a lens's radial distortion leaves the angles of the Camera Image off the pinhole model by an odd function of the
radius. All six numbers are fitted to the angles at once:

    u = cx + fx x (1 + k1 r² + k2 r⁴),   v = cy + fy y (1 + k1 r² + k2 r⁴),   r² = x² + y²
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vision3d.camera import Intrinsics
from vision3d.errors import InputError
from vision3d.pipelines.dmcalib.camera_image import PIXELS, _Field, decode_intrinsics

if TYPE_CHECKING:
    from vision3d.results import CameraPrediction

ASPECT_TOLERANCE = 0.02
OFFSET_TOLERANCE = 0.03
DISTORTION_TOLERANCE = 0.005
LARGEST_CANVAS = 4.0
"""Undoing a crop makes no picture longer than this many times its side."""


@dataclass(frozen=True)
class Edit:
    """What seems to have been done to a photograph.

    Attributes:
        camera: the fitted camera, for the photograph's size.
        k1, k2: radial distortion, as OpenCV defines it.
        aspect: fx / fy; 1 for square pixels.
        offset: principal point relative to the middle, as a share of width and height.
        bend: displacement of the corner farthest from the principal point by the distortion, as a share of its
            distance.
        spread: standard deviations of (aspect, offset x, offset y, bend), as far as the picture knows.
    """

    camera: Intrinsics
    k1: float
    k2: float
    aspect: float
    offset: tuple[float, float]
    bend: float
    spread: tuple[float, float, float, float]

    def _is_significant(self, value: float, tolerance: float, sigma: float) -> bool:
        return abs(value) > max(tolerance, 3 * sigma)

    @property
    def resized(self) -> bool:
        """Whether width and height were scaled by different factors: beyond 2 % and 3 standard deviations."""
        return self._is_significant(self.aspect - 1, ASPECT_TOLERANCE, self.spread[0])

    @property
    def cropped(self) -> bool:
        """Whether it was cut out off the middle: beyond 3 % of a side and 3 standard deviations."""
        pairs = zip(self.offset, self.spread[1:3], strict=True)
        return any(self._is_significant(o, OFFSET_TOLERANCE, s) for o, s in pairs)

    @property
    def distorted(self) -> bool:
        """Whether the lens bends straight lines: beyond 0.5 % in the corner and 3 standard deviations."""
        return self._is_significant(self.bend, DISTORTION_TOLERANCE, self.spread[3])

    def __str__(self) -> str:
        found = []
        if self.resized:
            found.append(f"width and height scaled differently (fx / fy = {self.aspect:.3f})")
        if self.cropped:
            x, y = self.offset
            found.append(f"cropped (principal point {x:+.0%} of the width, {y:+.0%} of the height off)")
        if self.distorted:
            found.append(f"radial distortion (k1 = {self.k1:+.3f}, {self.bend:+.1%} in the corner)")
        return "; ".join(found) or "no edit detected"


def detect_edit(picture: np.ndarray | CameraPrediction, width: int = 0, height: int = 0) -> Edit:
    """Fits camera and distortion to a Camera Image and says how they differ from an unedited photograph's.

    Args:
        picture: (≥2, h, w) in [0, 1] without padding, or a prediction that holds one.
        width, height: of the photograph; by default the prediction's, else the picture's.

    Raises:
        InputError: the picture shows no camera.
    """
    if not isinstance(picture, np.ndarray):
        prediction = picture
        if prediction.camera_image is None:
            raise InputError("a prediction without its Camera Image", "use one that a pipeline made")
        picture = prediction.camera_image
        height, width = prediction.size
    from scipy.optimize import least_squares

    h, w = picture.shape[1:]
    width, height = width or w, height or h
    fit = decode_intrinsics(picture)
    start = fit.intrinsics
    field = _Field.of(picture, max(1, round((h * w / (PIXELS / 4)) ** 0.5)))
    u, v = (grid.ravel() for grid in np.meshgrid(field.u, field.v))
    seen = (field.there_theta & field.there_psi).ravel()
    u, v, theta, psi = u[seen], v[seen], field.theta.ravel()[seen], field.psi.ravel()[seen]
    size = np.array([start.fx, start.fy, start.fx, start.fy, 1.0, 1.0])

    def residuals(scaled: np.ndarray) -> np.ndarray:
        fx, fy, cx, cy, k1, k2 = scaled * size
        x, y = undistorted((u - cx) / fx, (v - cy) / fy, k1, k2)
        return np.concatenate([theta - np.arctan(x), psi - np.arctan(y / np.hypot(1, x))])

    first = np.array([start.fx, start.fy, start.cx, start.cy, 0.0, 0.0]) / size
    noise = max(1e-4, float(np.median(np.abs(residuals(first)))))
    solution = least_squares(residuals, first, loss="cauchy", f_scale=2 * noise)
    fx, fy, cx, cy, k1, k2 = (float(value) for value in solution.x * size)
    if min(fx, fy) <= 0:
        raise InputError("the Camera Image shows a mirrored camera", "try another seed")
    camera = Intrinsics(fx, fy, cx, cy, w, h).resized(width, height)

    def numbers(values: np.ndarray) -> np.ndarray:
        a, b, c, d, e, g = values * size
        # Square pixels in the photograph, not in the picture that may have been resized unevenly by a pixel.
        aspect = (a * width / w) / (b * height / h)
        corner = max(((x - c) / a) ** 2 + ((y - d) / b) ** 2 for x in (0, w) for y in (0, h))
        return np.array([aspect, c / w - 0.5, d / h - 0.5, e * corner + g * corner**2])

    values = numbers(solution.x)
    # Residuals of neighbours go together: an eighth of the sides is one observation, as in the camera's fit.
    independent = min(1.0, 64 * 2 / len(solution.fun))
    information = solution.jac.T @ solution.jac * independent / max(noise * 1.4826, 1e-5) ** 2
    covariance = np.linalg.pinv(information)
    steps = 1e-6 * np.eye(6)
    jacobian = np.stack([(numbers(solution.x + s) - numbers(solution.x - s)) / 2e-6 for s in steps], axis=1)
    spread = np.sqrt(np.clip(np.diag(jacobian @ covariance @ jacobian.T), 0, None))
    aspect, ox, oy, bend = (float(value) for value in values)
    return Edit(camera, k1, k2, aspect, (ox, oy), bend, tuple(float(s) for s in spread))  # type: ignore[arg-type]


def undistorted(
    x: np.ndarray, y: np.ndarray, k1: float, k2: float, rounds: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Normalised coordinates of the ray behind distorted normalised coordinates, by fixed-point iteration."""
    a, b = x, y
    for _ in range(rounds):
        r2 = np.minimum(a * a + b * b, 9.0)
        # Beyond the fold of a barrel, no ray belongs to a point; the factor stays away from zero there.
        factor = np.maximum(1 + k1 * r2 + k2 * r2 * r2, 0.2)
        a, b = x / factor, y / factor
    return a, b


@dataclass(frozen=True, eq=False)
class Restored:
    """A photograph with its edits undone.

    Attributes:
        image: (H, W, 3) uint8.
        camera: its camera: square pixels, principal point in the middle, no distortion.
        valid: (H, W) bool: what the edited photograph shows.
    """

    image: np.ndarray
    camera: Intrinsics
    valid: np.ndarray


def restore(
    image: np.ndarray,
    edit: Edit,
    *,
    undistort: bool = True,
    unresize: bool = True,
    uncrop: bool = True,
) -> Restored:
    """Undoes distortion, uneven scaling and crop, in one resampling.

    Args:
        image: (H, W, 3) uint8, the photograph that ``edit`` was found for.
        edit: what was done to it.
        undistort, unresize, uncrop: what to undo. What a crop cut off stays black.

    Raises:
        InputError: another size.
    """
    import cv2

    camera = edit.camera
    if image.shape[:2] != (camera.height, camera.width):
        raise InputError(
            f"a picture of {image.shape[1]}×{image.shape[0]} with an edit of {camera}", "detect it anew"
        )
    fx, fy = camera.fx, camera.fy
    if unresize:
        fx = fy = max(fx, fy)  # nothing is scaled down
    width, height = camera.width * fx / camera.fx, camera.height * fy / camera.fy
    cx, cy = camera.cx * fx / camera.fx, camera.cy * fy / camera.fy
    if uncrop:
        half_x = min(max(cx, width - cx), LARGEST_CANVAS / 2 * width)
        half_y = min(max(cy, height - cy), LARGEST_CANVAS / 2 * height)
        width, height, cx, cy = 2 * half_x, 2 * half_y, half_x, half_y
    target = Intrinsics(fx, fy, cx, cy, max(1, round(width)), max(1, round(height)))
    # From every pixel of the restored picture to where it lies in the edited one.
    rays = target.rays()
    x, y = rays[..., 0].astype(np.float64), rays[..., 1].astype(np.float64)
    factor: float | np.ndarray = 1.0
    if undistort:
        r2 = x * x + y * y
        factor = 1 + edit.k1 * r2 + edit.k2 * r2 * r2
        x, y = x * factor, y * factor
    u = camera.fx * x + camera.cx
    v = camera.fy * y + camera.cy
    valid = (u >= 0) & (u <= camera.width) & (v >= 0) & (v <= camera.height)
    # OpenCV counts from pixel centres.
    restored = cv2.remap(
        image,
        (u - 0.5).astype(np.float32),
        (v - 0.5).astype(np.float32),
        cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    restored[~valid] = 0
    return Restored(restored, target, valid)
