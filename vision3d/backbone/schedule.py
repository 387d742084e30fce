"""Diffusion schedule of Stable Diffusion: scaled-linear betas, conversions between predictions, DDIM steps.

``alphas_cumprod`` is kept in float64 and cast late: in float32, ``1 - alphas_cumprod[1]`` is already 2e-5 off.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample"]


@lru_cache(maxsize=8)
def alphas_cumprod(steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> np.ndarray:
    """Cumulative products of ``1 - beta`` for scaled-linear betas, float64 ``(steps,)``."""
    betas = np.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=np.float64) ** 2
    values = np.cumprod(1.0 - betas)
    values.flags.writeable = False
    return values


def alpha_sigma(t: int | Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """``sqrt(abar_t)`` and ``sqrt(1 - abar_t)``, shaped to broadcast over ``like`` (B, ...).

    Args:
        t: one step for the batch, or one step per row (B,).
        like: tensor whose dtype, device and rank are taken.
    """
    steps = torch.as_tensor(t).reshape(-1).cpu()
    abar = torch.from_numpy(alphas_cumprod().copy())[steps]
    shape = (-1,) + (1,) * (like.ndim - 1)
    alpha, sigma = abar.sqrt(), (1.0 - abar).sqrt()
    return alpha.to(like).reshape(shape), sigma.to(like).reshape(shape)


def add_noise(x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
    """Forward process ``sqrt(abar_t) x0 + sqrt(1 - abar_t) noise``; ``t`` may differ per batch row."""
    alpha, sigma = alpha_sigma(t, x0)
    return alpha * x0 + sigma * noise


def to_x0(model_out: Tensor, x_t: Tensor, t: int | Tensor, prediction_type: PredictionType) -> Tensor:
    """The clean sample that a model output of the given parameterisation stands for."""
    alpha, sigma = alpha_sigma(t, x_t)
    if prediction_type == "epsilon":
        return (x_t - sigma * model_out) / alpha
    if prediction_type == "v_prediction":
        return alpha * x_t - sigma * model_out
    if prediction_type == "sample":
        return model_out
    raise ValueError(f"unknown prediction type {prediction_type!r}")


def to_epsilon(model_out: Tensor, x_t: Tensor, t: int | Tensor, prediction_type: PredictionType) -> Tensor:
    """The noise that a model output of the given parameterisation stands for."""
    alpha, sigma = alpha_sigma(t, x_t)
    if prediction_type == "epsilon":
        return model_out
    if prediction_type == "v_prediction":
        return sigma * x_t + alpha * model_out
    if prediction_type == "sample":
        return (x_t - alpha * model_out) / sigma
    raise ValueError(f"unknown prediction type {prediction_type!r}")


def training_target(x0: Tensor, noise: Tensor, t: int | Tensor, prediction_type: PredictionType) -> Tensor:
    """What a network of the given parameterisation is trained to output."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    alpha, sigma = alpha_sigma(t, x0)
    return alpha * noise - sigma * x0


def ddim_timesteps(n_steps: int, offset: int = 1, train_steps: int = 1000) -> np.ndarray:
    """Descending steps with leading spacing: ``i * (train_steps // n_steps) + offset``, int64 ``(n_steps,)``."""
    return (np.arange(n_steps, dtype=np.int64) * (train_steps // n_steps) + offset)[::-1].copy()


def ddim_step(
    model_out: Tensor,
    t: int,
    sample: Tensor,
    n_steps: int,
    prediction_type: PredictionType = "epsilon",
    train_steps: int = 1000,
) -> tuple[Tensor, Tensor]:
    """One deterministic DDIM step (eta = 0, no clipping), returning ``(previous sample, x0)``.

    The step below zero uses ``abar[0]``, not 1, as the released Stable Diffusion scheduler files do
    (``set_alpha_to_one=False``).
    """
    previous = t - train_steps // n_steps
    x0 = to_x0(model_out, sample, t, prediction_type)
    noise = to_epsilon(model_out, sample, t, prediction_type)
    alpha, sigma = alpha_sigma(max(previous, 0), sample)
    return alpha * x0 + sigma * noise, x0
