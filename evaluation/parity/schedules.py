"""The noise schedule that a fixture asks for, under diffusers' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vision3d.backbone.schedule import PredictionType, ddim_step, ddim_timesteps, rounded_alphas_cumprod
from vision3d.evaluation.parity.case import UnknownVariant

DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": True,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "prediction_type": "epsilon",
    "clip_sample_range": 1.0,
    "timestep_spacing": "leading",
}
"""What DDIMScheduler takes where its configuration is silent."""
FIXED: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "trained_betas": None,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "eta": 0.0,
}
"""All that is known of these."""
STABLE_DIFFUSION: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "clip_sample": False,
}
"""Its own."""
WITHOUT_EFFECT = frozenset(
    {"sample_max_value", "dynamic_thresholding_ratio", "skip_prk_steps", "_diffusers_version"}
)
"""On a schedule that does not threshold."""
CHOICES = {
    "beta_schedule": ("linear", "scaled_linear"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
}


@dataclass(frozen=True)
class Schedule:
    """Deterministic DDIM over so many steps.

    Attributes:
        n_steps: how many.
        train_steps: of the training schedule.
        timesteps: descending, int64.
        prediction_type: of the network.
        table: cumulative products of ``1 - beta``, rounded as the published scheduler has them.
        to_one: whether the last step ends without noise.
        clip: bound of clean samples, or None.
    """

    n_steps: int
    train_steps: int
    timesteps: np.ndarray
    prediction_type: PredictionType
    table: np.ndarray
    to_one: bool
    clip: float | None

    @classmethod
    def of(cls, config: Mapping[str, Any], n_steps: int) -> Schedule:
        """The schedule of a configuration.

        Raises:
            UnknownVariant: a field that is not known, or of a value that is not.
        """
        asked = DEFAULTS | dict(config)
        unknown = {
            name: value
            for name, value in asked.items()
            if name not in WITHOUT_EFFECT
            and (name not in DEFAULTS or value not in CHOICES.get(name, (value,)))
            and (name not in FIXED or FIXED[name] != value)
        }
        if unknown:
            raise UnknownVariant(f"a schedule with {unknown}")
        steps = asked["num_train_timesteps"]
        power = 2.0 if asked["beta_schedule"] == "scaled_linear" else 1.0
        table = rounded_alphas_cumprod(steps, asked["beta_start"], asked["beta_end"], power)
        return cls(
            n_steps,
            steps,
            ddim_timesteps(n_steps, asked["steps_offset"], steps, asked["timestep_spacing"]),
            asked["prediction_type"],
            table.double().numpy(),
            asked["set_alpha_to_one"],
            asked["clip_sample_range"] if asked["clip_sample"] else None,
        )

    def step(
        self, model_out: Tensor, t: int, sample: Tensor, prediction_type: PredictionType | None = None
    ) -> tuple[Tensor, Tensor]:
        """The previous sample and the clean one; ``prediction_type`` takes the place of the schedule's."""
        return ddim_step(
            model_out,
            t,
            sample,
            self.n_steps,
            prediction_type or self.prediction_type,
            self.train_steps,
            to_one=self.to_one,
            clip=self.clip,
            table=self.table,
        )


def check_schedule(config: Mapping[str, Any], *read: str, **expected: Any) -> None:
    """Refuse a configuration that asks for another schedule than Stable Diffusion's.

    Args:
        config: under diffusers' names; nothing is asked by what it leaves out.
        read: fields that the check itself obeys.
        expected: what else it has to be.

    Raises:
        UnknownVariant: a field that is not known, or of another value.
    """
    known = FIXED | STABLE_DIFFUSION | expected
    other = {
        name: value
        for name, value in config.items()
        if name not in WITHOUT_EFFECT.union(read, ("clip_sample_range",))
        and (name not in known or known[name] != value)
    }
    if other:
        raise UnknownVariant(f"a schedule with {other}")
