"""Checks of the shared backbone: schedule, tokeniser, UNet and autoencoder."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from vision3d.evaluation.parity.case import Case, UnknownVariant
from vision3d.evaluation.parity.registry import Results, check
from vision3d.evaluation.parity.schedules import Schedule


@check("backbone", "ddim_conversions", options=("prediction_type", "step_index"))
def ddim_conversions(case: Case) -> Results:
    """Single deterministic DDIM steps from one sample, for the three parameterisations."""
    schedule = Schedule.of(case.meta["scheduler"], case.meta["n_steps"])
    sample, model_out = case.tensor("sample"), case.tensor("model_out")
    results: Results = {"timesteps": schedule.timesteps}
    steps: dict[tuple[Any, Any], tuple[Any, Any]] = {}
    for name, options in case.outputs.items():
        if "prediction_type" not in options:
            continue
        key = options["prediction_type"], options["step_index"]
        if key not in steps:
            steps[key] = schedule.step(model_out, int(schedule.timesteps[key[1]]), sample, key[0])
        previous, x0 = steps[key]
        results[name] = previous if name.endswith("_prev") else x0
    return results


@check("backbone", "token_ids")
def token_ids(case: Case) -> Results:
    """CLIP's byte-pair ids, padded with 0."""
    from vision3d.backbone import text

    ids, lengths = text.tokenise(case.meta["texts"], pad=0)
    return {"ids_pad0": np.asarray(ids), "length": np.asarray(lengths)}


def _tap_of(name: str, options: dict[str, Any]) -> str:
    """Taps are computed without and with the vector that is added to the time embedding."""
    return f"{options.get('of', name)}{'_time_add' if options.get('time_add') else ''}"


def _place_of(path: str, unet: Any) -> str:
    """Our name of the tap at the output of a module of diffusers' UNet."""
    from vision3d.backbone.unet import tap_name

    if path in ("mid_block", "conv_in"):
        return {"mid_block": "mid", "conv_in": "d0"}[path]
    if match := re.fullmatch(r"up_blocks\.(\d+)", path):
        return tap_name(unet, f"dift{match[1]}")
    if match := re.fullmatch(r"up_blocks\.(\d+)\.(?:(resnets|attentions)\.(\d+)|upsamplers\.0)", path):
        return f"u{match[1]}{match[2][0]}{match[3]}" if match[2] else f"u{match[1]}up"
    # the encoder's skips: of every ResNet (with its transformer, where it has one) and of every downsampler
    skips = ["conv_in"]
    for level, block in enumerate(unet.down_blocks):
        last = "attentions" if hasattr(block, "attentions") else "resnets"
        skips += [f"down_blocks.{level}.{last}.{i}" for i in range(len(block.resnets))]
        skips += [f"down_blocks.{level}.downsamplers.0"] * bool(block.downsamplers)
    if path not in skips:
        raise UnknownVariant(f"a tap at {path!r}")
    return f"d{skips.index(path)}"


@check("backbone", "unet_sd15_real_width", "unet_sd21_real_width", options=("time_add",), tensor_of=_tap_of)
def unet_real_width(case: Case) -> Results:
    """Taps and output of the UNet at published width, with and without an added time vector."""
    import torch
    from diffusers import UNet2DConditionModel

    from vision3d.backbone.loading import empty_weights
    from vision3d.backbone.unet import read_taps
    from vision3d.evaluation.parity.recipe import tensor

    prefix, seed = case.meta.get("recipe_prefix", ""), case.recipe_seed
    with empty_weights():
        unet = UNet2DConditionModel(**case.config)
    shapes = {name: tuple(value.shape) for name, value in unet.state_dict().items()}
    unet.load_state_dict(
        {name: torch.from_numpy(tensor(prefix + name, shape, seed)) for name, shape in shapes.items()},
        assign=True,
    )
    unet.eval().requires_grad_(False)
    places = {name: _place_of(path, unet) for name, path in case.meta["taps"].items()} | {"out": "out"}
    sample, t, context = case.tensor("sample"), case.tensor("timesteps"), case.tensor("context")
    results: Results = {}
    for added in {bool(options.get("time_add")) for options in case.outputs.values()}:
        time_add = case.tensor("time_add") if added else None
        found = read_taps(unet, sample, t, context, {*places.values()}, time_add=time_add)
        results |= {_tap_of(name, {"time_add": added}): found[place] for name, place in places.items()}
    return results


@check("backbone", "vae_real_width")
def vae_real_width(case: Case) -> Results:
    """Posterior, latent and decoded image of the autoencoder at published width."""
    import torch
    from diffusers import AutoencoderKL

    from vision3d.backbone.vae import decode, encode_moments
    from vision3d.evaluation.parity.recipe import fill

    vae = AutoencoderKL(**case.config).eval().requires_grad_(False)
    fill(vae, case.recipe_seed, case.meta.get("recipe_prefix", ""))
    with torch.no_grad():
        mean, logvar = encode_moments(vae, (case.tensor("image") + 1) / 2)
        decoded = decode(vae, case.tensor("z"))
    return {
        "mean": mean,
        "logvar": logvar,
        "latent": mean * vae.config.scaling_factor,
        "decoded": decoded,
    }
