"""Checks of the shared backbone: schedule, tokeniser, UNet and autoencoder."""

from __future__ import annotations

from typing import Any

import numpy as np

from vision3d.evaluation.parity.case import Case
from vision3d.evaluation.parity.registry import Results, check


@check("backbone", "ddim_conversions", options=("prediction_type", "step_index"))
def ddim_conversions(case: Case) -> Results:
    """Single deterministic DDIM steps from one sample, for the three parameterisations."""
    from vision3d.backbone import schedule

    config = case.meta["scheduler"]
    expected = {
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "timestep_spacing": "leading",
        "set_alpha_to_one": False,
        "clip_sample": False,
        "eta": 0.0,
        "beta_start": 0.00085,
        "beta_end": 0.012,
    }
    other = {key: config[key] for key in config if key in expected and config[key] != expected[key]}
    if other:
        raise NotImplementedError(f"a schedule with {other}")
    n_steps = case.meta["n_steps"]
    timesteps = schedule.ddim_timesteps(n_steps, offset=config["steps_offset"])
    sample, model_out = case.tensor("sample"), case.tensor("model_out")
    results: Results = {"timesteps": timesteps}
    steps: dict[tuple[Any, Any], tuple[Any, Any]] = {}
    for name, options in case.outputs.items():
        if "prediction_type" not in options:
            continue
        key = options["prediction_type"], options["step_index"]
        if key not in steps:
            steps[key] = schedule.ddim_step(model_out, int(timesteps[key[1]]), sample, n_steps, key[0])
        previous, x0 = steps[key]
        results[name] = previous if name.endswith("_prev") else x0
    return results


@check("backbone", "token_ids")
def token_ids(case: Case) -> Results:
    """CLIP's byte-pair ids, padded with 0."""
    from vision3d.backbone import text

    ids, lengths = text.tokenise(case.meta["texts"], pad=0)
    return {"ids_pad0": np.asarray(ids), "length": np.asarray(lengths)}
