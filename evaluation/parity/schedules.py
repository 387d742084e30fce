"""What a fixture may ask of the noise schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision3d.evaluation.parity.case import UnknownVariant

SCHEDULE = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "timestep_spacing": "leading",
    "clip_sample": False,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "eta": 0.0,
}
"""Stable Diffusion's, under diffusers' names."""
WITHOUT_EFFECT = frozenset(
    {
        "clip_sample_range",
        "sample_max_value",
        "dynamic_thresholding_ratio",
        "skip_prk_steps",
        "_diffusers_version",
    }
)
"""On a schedule that neither clips nor thresholds."""


def check_schedule(config: Mapping[str, Any], *read: str, **expected: Any) -> None:
    """Refuse a scheduler's configuration that asks for another schedule.

    Args:
        config: under diffusers' names; nothing is asked by what it leaves out.
        read: fields that the check itself obeys.
        expected: what else it has to be.

    Raises:
        UnknownVariant: a field that is not known, or of another value.
    """
    known = SCHEDULE | expected
    other = {
        name: value
        for name, value in config.items()
        if name not in WITHOUT_EFFECT.union(read) and (name not in known or known[name] != value)
    }
    if other:
        raise UnknownVariant(f"a schedule with {other}")
