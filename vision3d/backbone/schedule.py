"""Diffusion schedule of Stable Diffusion: scaled-linear betas, conversions between predictions, DDIM steps.

``alphas_cumprod`` is kept in float64 and cast late: in float32, ``1 - alphas_cumprod[1]`` is already 2e-5 off.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

STEPS = 1000
"""Of the training schedule of every Stable Diffusion."""
PredictionType = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["leading", "trailing", "linspace"]


@lru_cache(maxsize=8)
def alphas_cumprod(steps: int = STEPS, beta_start: float = 0.00085, beta_end: float = 0.012) -> np.ndarray:
    """Cumulative products of ``1 - beta`` for scaled-linear betas, float64 ``(steps,)``."""
    betas = np.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=np.float64) ** 2
    values = np.cumprod(1.0 - betas)
    values.flags.writeable = False
    return values


@lru_cache(maxsize=8)
def rounded_alphas_cumprod(
    steps: int = STEPS, beta_start: float = 0.00085, beta_end: float = 0.012, power: float = 2.0
) -> Tensor:
    """The same as diffusers' schedulers have them: in float32 from the first step on.

    At small timesteps ``1 - abar`` differs by 2e-5 from the exact one, which exact comparisons resolve.

    Args:
        steps: of the schedule.
        beta_start, beta_end: its first and last beta.
        power: of what runs evenly between their roots: 2 for ``scaled_linear`` betas, 1 for ``linear`` ones.
    """
    root = 1 / power
    betas = torch.linspace(beta_start**root, beta_end**root, steps, dtype=torch.float32) ** power
    return torch.cumprod(1.0 - betas, dim=0)


def alpha_sigma(t: int | Tensor, like: Tensor, table: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
    """``sqrt(abar_t)`` and ``sqrt(1 - abar_t)``, shaped to broadcast over ``like`` (B, ...).

    Args:
        t: one step for the batch, or one step per row (B,).
        like: tensor whose dtype, device and rank are taken.
        table: ``abar`` of every step; Stable Diffusion's by default.
    """
    steps = torch.as_tensor(t).reshape(-1).cpu()
    abar = torch.from_numpy((alphas_cumprod() if table is None else table).copy())[steps]
    shape = (-1,) + (1,) * (like.ndim - 1)
    alpha, sigma = abar.sqrt(), (1.0 - abar).sqrt()
    return alpha.to(like).reshape(shape), sigma.to(like).reshape(shape)


def add_noise(x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
    """Forward process ``sqrt(abar_t) x0 + sqrt(1 - abar_t) noise``; ``t`` may differ per batch row."""
    alpha, sigma = alpha_sigma(t, x0)
    return alpha * x0 + sigma * noise


def to_x0(model_out: Tensor, x_t: Tensor, t: int | Tensor, prediction_type: PredictionType) -> Tensor:
    """The clean sample that a model output of the given parameterisation stands for."""
    return _parts(model_out, x_t, alpha_sigma(t, x_t), prediction_type)[0]


def to_epsilon(model_out: Tensor, x_t: Tensor, t: int | Tensor, prediction_type: PredictionType) -> Tensor:
    """The noise that a model output of the given parameterisation stands for."""
    return _parts(model_out, x_t, alpha_sigma(t, x_t), prediction_type)[1]


def _parts(
    model_out: Tensor, x_t: Tensor, levels: tuple[Tensor, Tensor], prediction_type: PredictionType
) -> tuple[Tensor, Tensor]:
    """Clean sample and noise that a model output stands for, at these shares of signal and noise."""
    alpha, sigma = levels
    if prediction_type == "epsilon":
        return (x_t - sigma * model_out) / alpha, model_out
    if prediction_type == "v_prediction":
        return alpha * x_t - sigma * model_out, sigma * x_t + alpha * model_out
    if prediction_type == "sample":
        return model_out, (x_t - alpha * model_out) / sigma
    raise ValueError(f"unknown prediction type {prediction_type!r}")


def training_target(x0: Tensor, noise: Tensor, t: int | Tensor, prediction_type: PredictionType) -> Tensor:
    """What a network of the given parameterisation is trained to output."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x0
    alpha, sigma = alpha_sigma(t, x0)
    return alpha * noise - sigma * x0


def ddim_timesteps(
    n_steps: int, offset: int = 1, train_steps: int = STEPS, spacing: Spacing = "leading"
) -> np.ndarray:
    """Descending steps, int64 ``(n_steps,)``.

    Args:
        n_steps: how many.
        offset: of leading steps, which are ``i * (train_steps // n_steps) + offset``.
        train_steps: of the schedule.
        spacing: ``leading``; ``trailing`` from the schedule's end, for few steps; ``linspace`` from end to end.
    """
    if spacing == "trailing":
        return np.round(np.arange(train_steps, 0, -train_steps / n_steps)).astype(np.int64)[:n_steps] - 1
    if spacing == "linspace":
        return np.linspace(0, train_steps - 1, n_steps).round()[::-1].astype(np.int64)
    return (np.arange(n_steps, dtype=np.int64) * (train_steps // n_steps) + offset)[::-1].copy()


def ddim_step(
    model_out: Tensor,
    t: int,
    sample: Tensor,
    n_steps: int,
    prediction_type: PredictionType = "epsilon",
    train_steps: int = STEPS,
    *,
    to_one: bool = False,
    clip: float | None = None,
    table: np.ndarray | None = None,
) -> tuple[Tensor, Tensor]:
    """One deterministic DDIM step (eta = 0), returning ``(previous sample, x0)``.

    Args:
        model_out: of the network at ``t``.
        t: the step.
        sample: that the network saw.
        n_steps: in all.
        prediction_type: of ``model_out``.
        train_steps: of the schedule.
        to_one: the step below zero ends at ``abar = 1``, not at ``abar[0]`` as in the released Stable Diffusion
            scheduler files (``set_alpha_to_one=False``).
        clip: bound of the absolute values of ``x0``.
        table: ``abar`` of every step; Stable Diffusion's by default.
    """
    previous = t - train_steps // n_steps
    x0, noise = _parts(model_out, sample, alpha_sigma(t, sample, table), prediction_type)
    if clip is not None:
        x0 = x0.clamp(-clip, clip)
    if previous < 0 and to_one:
        return x0, x0
    alpha, sigma = alpha_sigma(max(previous, 0), sample, table)
    return alpha * x0 + sigma * noise, x0
