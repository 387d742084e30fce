"""From radiance to the file of a camera: lens, exposure, white balance, noise, tone curve, JPEG."""

from __future__ import annotations

import cv2
import numpy as np

from vision3d.synthetic.draw import Draw


def develop(radiance: np.ndarray, draw: Draw) -> np.ndarray:
    """A photograph of the radiance.

    Args:
        radiance: (H, W, 3) float32, linear, any scale.
        draw: decides every setting and the noise.

    Returns:
        (H, W, 3) uint8 sRGB.
    """
    height, width = radiance.shape[:2]
    luminance = radiance @ np.array([0.25, 0.62, 0.13], np.float32)
    logs = np.log(luminance + 1e-5)
    key = draw.log_uniform(0.12, 0.3)
    exposure = key / float(np.exp(logs.mean()))
    bright = float(np.percentile(luminance, 92))
    exposure = min(exposure, draw.uniform(1.0, 2.2) / max(bright, 1e-6))
    image = radiance * np.float32(exposure)

    if draw.chance(0.7):
        strength = draw.uniform(0.05, 0.45)
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        r2 = ((x / width - 0.5) ** 2 + (y / width - 0.5 * height / width) ** 2) / 0.5
        image = image * (1 - strength * r2)[..., None]
    blur = draw.uniform(0.0, 0.9) ** 1.5 * width / 128 * 0.8
    if blur > 0.25:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), blur), np.float32)
    if draw.chance(0.4):
        glow = cv2.GaussianBlur(np.minimum(image, 4.0), (0, 0), width / 40)
        image = image + np.float32(draw.uniform(0.01, 0.08)) * (glow - image)
    balance = np.array([draw.normal(1, 0.09), 1.0, draw.normal(1, 0.11)], np.float32)
    image = image * balance

    shot, read = draw.log_uniform(1e-5, 1.5e-3), draw.log_uniform(1e-4, 8e-3)
    noise = draw.generator.standard_normal(image.shape, dtype=np.float32)
    if draw.chance(0.4):  # noise of cheap cameras is smeared by their own filtering
        noise = cv2.GaussianBlur(noise, (0, 0), 0.7) * 1.6
    image = image + noise * np.sqrt(np.maximum(image, 0) * np.float32(shot) + np.float32(read**2))

    image = np.maximum(image, 0)
    shoulder = draw.uniform(0.6, 0.9)
    over = image > shoulder
    image = np.where(
        over, shoulder + (1 - shoulder) * (1 - np.exp(-(image - shoulder) / (1 - shoulder))), image
    )
    image = np.minimum(image, 1.0) ** np.float32(1 / 2.2)
    contrast = draw.uniform(0.0, 0.6)
    image = image + np.float32(contrast) * (image * image * (3 - 2 * image) - image)
    saturation = draw.normal(1.05, 0.18)
    grey = image.mean(-1, keepdims=True)
    image = grey + (image - grey) * np.float32(max(0.2, saturation))
    if draw.chance(0.03):
        image = np.repeat(image.mean(-1, keepdims=True), 3, -1)
    if draw.chance(0.5):
        image = image + np.float32(draw.uniform(0.1, 0.7)) * (image - cv2.GaussianBlur(image, (0, 0), 0.9))
    photo = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    if draw.chance(0.75):
        quality = draw.integer(45, 98)
        encoded = cv2.imencode(".jpg", photo[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        photo = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))[..., ::-1]
    return np.ascontiguousarray(photo)
