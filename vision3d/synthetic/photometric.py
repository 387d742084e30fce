"""Strong photometric augmentation: what training does to images so that real photographs look familiar.

Geometry is untouched, so every label stays true.
"""

from __future__ import annotations

import cv2
import numpy as np


def augment(image: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """A photometrically different copy of an image.

    Args:
        image: (H, W, 3) uint8.
        rng: decides everything; the same state gives the same result.
        strength: 0 leaves the image nearly alone, 1 is meant for training on synthetic images.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    u = rng.random(48, dtype=np.float32)
    n = rng.standard_normal(16, dtype=np.float32)
    x = image.astype(np.float32) * np.float32(1 / 255)
    reach = width / 128

    # Light: gamma, white balance, gain, contrast, bands of shadow and glare.
    if u[0] < 0.8:
        gains = np.exp(np.float32(0.16 * strength) * n[:3])
        gain = np.exp(np.float32(0.22 * strength) * n[3])
        table = np.linspace(0, 1, 256, dtype=np.float32) ** np.exp(np.float32(0.28 * strength) * n[4])
        x = table[image] * (gains / gains.mean() * gain)
    if u[1] < 0.6:
        x = x + np.float32(0.5 * strength) * np.clip(n[5], -1.2, 1.5) * (x - x.mean())
    if u[2] < 0.35 * strength:
        angle, offset, soft = 6.283 * u[3], u[4], 0.02 + 0.4 * u[5] ** 2
        ramp_x = np.arange(width, dtype=np.float32) / width - 0.5
        ramp_y = np.arange(height, dtype=np.float32) / height - 0.5
        side = ramp_x[None] * np.cos(angle) + ramp_y[:, None] * np.sin(angle) - (offset - 0.5)
        mask = np.clip(side / soft + 0.5, 0, 1)
        if u[6] < 0.5:
            mask = mask * np.clip((0.15 + 0.4 * u[7] - side) / soft + 0.5, 0, 1)
        factor = 0.35 + 0.5 * u[8] if u[9] < 0.65 else 1.2 + 0.8 * u[8]
        x = x * (1 + (np.float32(factor) - 1) * mask)[..., None]
    if u[10] < 0.25 * strength:
        centre = (u[11] * width, u[12] * height)
        y_, x_ = np.ogrid[0:height, 0:width]
        r2 = ((x_ - centre[0]) / (width * (0.1 + 0.5 * u[13]))) ** 2 + (
            (y_ - centre[1]) / (height * (0.1 + 0.5 * u[14]))
        ) ** 2
        spot = np.exp(-r2).astype(np.float32)[..., None]
        x = x + spot * (0.6 * u[15] if u[16] < 0.6 else -0.6 * u[15] * x)

    # Colour: saturation, mixing of channels, grey, hue of everything.
    grey = cv2.transform(x, np.array([[0.299, 0.587, 0.114]], np.float32))[..., None]
    if u[17] < 0.1 * strength:
        x = np.repeat(grey, 3, -1)
    elif u[17] < 0.85:
        x = grey + (x - grey) * np.exp(np.float32(0.45 * strength) * n[6])
        if u[18] < 0.35 * strength:
            mix = np.eye(3, dtype=np.float32) + np.float32(0.14) * rng.standard_normal(
                (3, 3), dtype=np.float32
            )
            x = cv2.transform(x, mix / mix.sum(1, keepdims=True))
    if u[19] < 0.06 * strength:
        x = x[..., rng.permutation(3)]

    # Lens: defocus, motion, low resolution.
    x = np.clip(x, 0, 1.3)
    if u[20] < 0.3 * strength:
        x = cv2.GaussianBlur(x, (0, 0), (0.4 + 1.1 * u[21] ** 2) * reach)
    elif u[20] < 0.42 * strength:
        length = max(2, round((2 + 4 * u[21]) * reach))
        kernel = np.zeros((length, length), np.float32)
        middle, turn = (length - 1) / 2, 3.1416 * u[22]
        t = np.linspace(-middle, middle, 4 * length)
        np.add.at(
            kernel,
            (np.rint(middle + t * np.sin(turn)).astype(int), np.rint(middle + t * np.cos(turn)).astype(int)),
            1.0,
        )
        x = cv2.filter2D(x, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE)
    if u[23] < 0.2 * strength:
        scale = 0.35 + 0.55 * u[24]
        small = (max(8, round(width * scale)), max(8, round(height * scale)))
        x = cv2.resize(x, small, interpolation=cv2.INTER_AREA)
        x = cv2.resize(
            x, (width, height), interpolation=cv2.INTER_LINEAR if u[25] < 0.7 else cv2.INTER_NEAREST
        )
    if u[26] < 0.2:
        x = x + np.float32(0.8 * u[27]) * (x - cv2.GaussianBlur(x, (0, 0), 0.8 * reach))

    # Sensor: noise of each pixel, of its brightness, or smeared; few levels; JPEG.
    if u[28] < 0.5 * strength:
        sigma = np.float32(0.06 * u[29] ** 2)
        noise = rng.standard_normal(x.shape if u[30] < 0.7 else (height, width, 1), dtype=np.float32)
        if u[31] < 0.3:
            noise = 1.8 * np.asarray(cv2.GaussianBlur(noise, (0, 0), 0.8)).reshape(noise.shape)
        x = x + sigma * noise * (np.sqrt(np.maximum(x, 0)) if u[32] < 0.5 else 1)
    if u[33] < 0.04 * strength:
        levels = 8 + int(u[34] * 24)
        x = np.rint(x * levels) / levels
    out = (np.clip(x, 0, 1) * 255 + 0.5).astype(np.uint8)
    # A frame, as scans and undistorted images have it.
    if u[37] < 0.05 * strength:
        sides = np.rint(u[38:42] * (u[38:42] < 0.8) * 0.06 * min(height, width)).astype(int)
        shade = np.uint8(255 if u[42] < 0.6 else 0)
        out[: sides[0]], out[height - sides[1] :] = shade, shade
        out[:, : sides[2]], out[:, width - sides[3] :] = shade, shade
    if u[35] < 0.45 * strength:
        quality = int(18 + 75 * u[36] ** 0.7)
        out = cv2.imdecode(
            cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR
        )
    return np.ascontiguousarray(out)
