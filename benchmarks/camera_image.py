"""Time and accuracy of decoding Camera Images: ours against the published RANSAC, in one run.

    python benchmarks/camera_image.py

The published decoding is scikit-image's ``ransac(LineModelND)`` with the published settings, fed as the published
code feeds it. Both get the same 768 x 768 pictures; the median of several runs is taken, in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import tyro
from skimage.measure import LineModelND, ransac

from vision3d.camera import Intrinsics
from vision3d.pipelines.dmcalib.camera_image import (
    angles_to_channels,
    decode_angles,
    decode_intrinsics,
    encode_angles,
)


def published(image: np.ndarray) -> np.ndarray:
    """(4,) fx, fy, cx, cy by the published decoding, pixel centres moved to +0.5."""
    theta, phi = decode_angles(image)
    height, width = theta.shape
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    values = []
    for x, y in ((np.tan(theta), u), (1 / np.tan(phi) / np.cos(theta), v)):
        data = np.stack([x.ravel(), y.ravel()], axis=1)
        model, _ = ransac(
            data,
            LineModelND,
            min_samples=2,
            residual_threshold=1,
            max_trials=1000,
            stop_probability=1,
        )
        offset, ahead = model.predict_y([0.0, 1.0])
        values.append((ahead - offset, offset + 0.5))
    (fx, cx), (fy, cy) = values
    return np.array([fx, fy, cx, cy])


def ours(image: np.ndarray) -> np.ndarray:
    """(4,) by the robust decoding."""
    return decode_intrinsics(image).values


def picture(camera: Intrinsics, noise: float, outliers: float, rng: np.random.Generator) -> np.ndarray:
    """A noisy Camera Image with a share of random pixels."""
    image = (angles_to_channels(encode_angles(camera)) + 1) / 2
    image = np.clip(image + rng.normal(0, noise, image.shape), 0, 1)
    wrong = rng.random(image.shape[1:]) < outliers
    image[:, wrong] = rng.random((2, int(wrong.sum())))
    return image.astype(np.float32)


def main(runs: int = 7, size: int = 768, seed: int = 0) -> None:
    """Print time and focal error of both.

    Args:
        runs: per picture and method.
        size: side of the pictures in pixels.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    camera = Intrinsics(0.9 * size, 0.92 * size, 0.51 * size, 0.48 * size, size, size)
    truth = np.array([camera.fx, camera.fy, camera.cx, camera.cy])
    methods: dict[str, Callable[[np.ndarray], np.ndarray]] = {"ours": ours, "published": published}
    print(f"{size} x {size}, median of {runs} runs")
    print(f"{'picture':24s} {'ours':>10s} {'published':>10s} {'speed-up':>9s}   focal error: ours, published")
    for name, noise, outliers in (
        ("exact", 0.0, 0.0),
        ("noise 0.5 %", 0.005, 0.0),
        ("noise, 10 % outliers", 0.005, 0.1),
        ("noise, 40 % outliers", 0.005, 0.4),
    ):
        image = picture(camera, noise, outliers, rng)
        seconds: dict[str, list[float]] = {method: [] for method in methods}
        errors = {}
        for _ in range(runs):
            for method, decode in methods.items():
                start = time.perf_counter()
                found = decode(image)
                seconds[method].append(time.perf_counter() - start)
                errors[method] = float(np.abs(found[:2] / truth[:2] - 1).max())
        a, b = (statistics.median(seconds[m]) for m in ("ours", "published"))
        print(
            f"{name:24s} {1e3 * a:7.1f} ms {1e3 * b:7.1f} ms {b / a:8.1f}x   "
            f"{errors['ours']:.4%}, {errors['published']:.4%}"
        )


if __name__ == "__main__":
    tyro.cli(main)
