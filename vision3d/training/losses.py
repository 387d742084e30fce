"""Losses for dense prediction and for the autoencoder, as plain batched functions.

Maps are (B, H, W); masks are boolean of the same shape, True where the target can be trusted. Every loss is
a scalar, the mean over the images that have enough valid pixels, and exactly 0 (with a gradient of 0) when
none has.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vision3d.geometry.affine import fit_scale_shift

MIN_VALID = 16
"""Images with fewer valid pixels say nothing about scale and shift and are left out."""


def align_median_mad(
    values: Tensor,  # (B, H, W)
    valid: Tensor,  # (B, H, W) bool
    eps: float = 1e-6,
) -> Tensor:  # (B, H, W)
    """Remove each image's scale and shift: ``(v - median) / mean |v - median|`` over its valid pixels.

    The normalisation of MiDaS (Ranftl et al. 2020, eq. 5): two maps that differ by a positive scale and a
    shift become equal. Invalid pixels are 0 in the result. The gradient runs through median and deviation.
    """
    values = torch.where(valid, values, values.new_zeros(()))
    flat = torch.where(valid, values, values.new_full((), torch.nan)).flatten(1)
    count = valid.flatten(1).sum(1).clamp(min=1)
    median = torch.nan_to_num(flat.nanmedian(dim=1).values)  # (B,)
    centred = torch.where(valid, values - median[:, None, None], values.new_zeros(()))
    deviation = centred.abs().flatten(1).sum(1) / count
    return centred / deviation.clamp(min=eps)[:, None, None]


def trimmed_mean(
    errors: Tensor,  # (B, H, W), >= 0
    valid: Tensor,  # (B, H, W) bool
    trim: float = 0.2,
) -> Tensor:  # (B,)
    """Mean of each image's smallest ``1 - trim`` share of valid errors (0 for an image without valid pixels).

    Leaving out the largest fifth keeps wrong labels and depth edges from ruling the loss (MiDaS, L_ssitrim).
    """
    count = valid.flatten(1).sum(1)
    keep = torch.ceil(count * (1.0 - trim)).to(count.dtype)
    ordered = torch.where(valid, errors, errors.new_full((), torch.inf)).flatten(1).sort(dim=1).values
    kept = torch.arange(ordered.shape[1], device=errors.device)[None] < keep[:, None]
    return torch.where(kept, ordered, ordered.new_zeros(())).sum(1) / keep.clamp(min=1)


def scale_shift_invariant_loss(
    prediction: Tensor,  # (B, H, W)
    target: Tensor,  # (B, H, W)
    valid: Tensor,  # (B, H, W) bool
    trim: float = 0.2,
) -> Tensor:
    """Trimmed L1 distance of two maps after each one's scale and shift are removed.

    For affine-invariant (inverse) depth. 0 when the prediction is any positive affine function of the target.
    """
    valid = valid & torch.isfinite(target)
    error = (align_median_mad(prediction, valid) - align_median_mad(target, valid)).abs()
    return _mean_over_images(trimmed_mean(error, valid, trim), valid)


def gradient_matching_loss(
    prediction: Tensor,  # (B, H, W)
    target: Tensor,  # (B, H, W)
    valid: Tensor,  # (B, H, W) bool
    scales: int = 4,
) -> Tensor:
    """Multi-scale gradient matching of two maps that are already in the same scale and shift.

    MiDaS eq. 11: with R = prediction − target, the mean of |∂x R| + |∂y R| over the pixels, summed over
    ``scales`` levels, each taking every second pixel of the one before. Differences between two pixels count
    only where both are valid. Makes depth edges sharp and surfaces smooth.
    """
    valid = valid & torch.isfinite(target)
    residual = torch.where(valid, prediction - target, prediction.new_zeros(()))
    total = prediction.new_zeros(prediction.shape[0])
    for scale in range(scales):
        step = 2**scale
        r, m = residual[:, ::step, ::step], valid[:, ::step, ::step]
        horizontal = (r[:, :, 1:] - r[:, :, :-1]).abs() * (m[:, :, 1:] & m[:, :, :-1])
        vertical = (r[:, 1:] - r[:, :-1]).abs() * (m[:, 1:] & m[:, :-1])
        total = total + (horizontal.sum((1, 2)) + vertical.sum((1, 2))) / m.sum((1, 2)).clamp(min=1)
    return _mean_over_images(total, valid)


def affine_invariant_loss(
    prediction: Tensor,  # (B, H, W)
    target: Tensor,  # (B, H, W)
    valid: Tensor,  # (B, H, W) bool
    gradient_weight: float = 0.5,
    trim: float = 0.2,
    scales: int = 4,
) -> tuple[Tensor, dict[str, Tensor]]:
    """``ssi + gradient_weight · gradient matching`` on aligned maps, and the two terms detached."""
    valid = valid & torch.isfinite(target)
    ssi = scale_shift_invariant_loss(prediction, target, valid, trim)
    gradient = gradient_matching_loss(
        align_median_mad(prediction, valid), align_median_mad(target, valid), valid, scales
    )
    return ssi + gradient_weight * gradient, {"ssi": ssi.detach(), "gradient": gradient.detach()}


def known_depth(depth: Tensor) -> Tensor:
    """Where depth in metres is known, of its shape: neither sky (infinite) nor missing (0)."""
    return torch.isfinite(depth) & (depth > 1e-3)


def inverse_depth(depth: Tensor, sky: str = "mask") -> tuple[Tensor, Tensor]:
    """Inverse depth (B, H, W) in 1/m and its validity; sky (infinite depth) is 0 and valid only for ``far``."""
    known = known_depth(depth)
    inverse = torch.where(known, 1 / depth.clamp_min(1e-3), torch.zeros_like(depth))
    return inverse, known | torch.isinf(depth) if sky == "far" else known


def aligned_absrel(
    prediction: Tensor,  # (B, H, W), inverse depth up to scale and shift
    target: Tensor,  # (B, H, W), inverse depth in 1/m
    valid: Tensor,  # (B, H, W) bool
    farthest: float = 80.0,
    floor: float = 0.3,
) -> Tensor:
    """AbsRel as affine-invariant inverse depth is evaluated: of depth, after a least-squares fit of inverse depth.

    Pixels beyond ``farthest`` metres (and sky, whose inverse depth is 0) do not count, as there. The error of a pixel
    is ``|d' - d| / d = |1/d - f| / f`` with the fitted inverse depth f, which has a pole where f vanishes: from
    ``f = floor / d`` downwards it goes on as a straight line, so that nothing is infinite and every pixel has a
    gradient.
    """
    valid = valid & (target > 1 / farthest)
    scale, shift = fit_scale_shift(prediction, torch.where(valid, target, torch.zeros_like(target)), valid)
    fitted = scale * prediction + shift
    least = torch.maximum(floor * target, target.new_tensor(1 / farthest))
    error = (fitted - target).abs() / torch.maximum(fitted, least)
    per_image = (error * valid).sum((1, 2)) / valid.sum((1, 2)).clamp_min(1)
    return _mean_over_images(per_image, valid)


def normal_loss(
    prediction: Tensor,  # (B, 3, H, W), any length
    target: Tensor,  # (B, 3, H, W), unit, or 0 where there is none
) -> Tensor:
    """Mean of ``1 - cos`` of the angle between two normal maps over the pixels that have a normal."""
    valid = target.square().sum(1) > 0.25
    cosine = F.cosine_similarity(prediction, target, dim=1, eps=1e-6)
    return ((1 - cosine) * valid).sum() / valid.sum().clamp(min=1)


def normal_picture(normals: Tensor) -> Tensor:
    """Normals (B, 3, H, W) in the OpenCV camera frame as pictures in [0, 1]: x left, y up, z to the viewer."""
    return (1 - normals) / 2


def segmentation_loss(
    logits: Tensor,  # (B, C, H, W)
    labels: Tensor,  # (B, H, W) integer class, `ignore` where there is none
    ignore: int = 255,
) -> Tensor:
    """Mean cross entropy over labelled pixels; 0, not NaN, when no pixel is labelled."""
    labels = labels.long()
    total = F.cross_entropy(logits, labels, ignore_index=ignore, reduction="sum")
    return total / (labels != ignore).sum().clamp(min=1)


def reconstruction_loss(
    prediction: Tensor,  # (B, C, H, W)
    target: Tensor,  # (B, C, H, W)
    gradient_weight: float = 1.0,
    scales: int = 3,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L1 plus the L1 distance of image gradients on a pyramid of 2× box-filtered copies.

    The pyramid stands in for a learned perceptual distance: it asks for edges at the right place at every
    size, which plain L1 trades for blur.
    """
    l1 = (prediction - target).abs().mean()
    residual, gradient = prediction - target, prediction.new_zeros(())
    for scale in range(scales):
        if scale:
            residual = F.avg_pool2d(residual, 2)
        gradient = gradient + (residual[..., 1:] - residual[..., :-1]).abs().mean()
        gradient = gradient + (residual[..., 1:, :] - residual[..., :-1, :]).abs().mean()
    gradient = gradient / (2 * scales)
    return l1 + gradient_weight * gradient, {"l1": l1.detach(), "edges": gradient.detach()}


def kl_to_standard_normal(
    mean: Tensor,  # (B, C, h, w)
    logvar: Tensor,  # (B, C, h, w)
) -> Tensor:
    """Kullback–Leibler divergence of N(mean, exp(logvar)) from N(0, 1), mean over all latent values."""
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


def _mean_over_images(losses: Tensor, valid: Tensor) -> Tensor:
    """Mean of the (B,) losses of images with at least MIN_VALID valid pixels."""
    enough = valid.flatten(1).sum(1) >= MIN_VALID
    return torch.where(enough, losses, losses.new_zeros(())).sum() / enough.sum().clamp(min=1)
