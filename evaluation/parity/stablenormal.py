"""Checks of StableNormal: rules, sampler, both stages of both lines, its DINO prior, and the published metrics."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

import numpy as np

from vision3d.evaluation.parity import recipe
from vision3d.evaluation.parity.case import Case, UnknownVariant
from vision3d.evaluation.parity.registry import Results, check
from vision3d.evaluation.parity.schedules import check_schedule


@check("stablenormal", "dinov2")
def dinov2(case: Case) -> Results:
    """Normalised tokens and stretched position tables of a narrow DINOv2 in the hub's layout."""
    import torch

    from vision3d.backbone.dino import load_dino

    rule = case.config["interpolate_offset"], case.config["interpolate_antialias"]
    # the published rule of networks without and with register tokens
    if rule != ((0.0, True) if "register_tokens" in case.meta["key_shapes"] else (0.1, False)):
        raise UnknownVariant(f"interpolation with offset and antialias {rule}")
    prefix = case.meta.get("recipe_prefix", "")
    tensors = recipe.RecipeWeights(case.meta["key_shapes"], case.recipe_seed, prefix)
    network = load_dino(dict(tensors), heads=case.config["num_heads"])
    results: Results = {}
    for given in case.meta["inputs"]:
        match = re.fullmatch(r"x_(\d+)x(\d+)(_seed)?", given)
        if match is None:
            continue
        height, width = int(match[1]), int(match[2])
        if match[3]:
            draws = np.random.RandomState(int(case.arrays[given])).randn(1, 3, height, width)
            pixels = torch.from_numpy(draws.astype(np.float32))
        else:
            pixels = case.tensor(given)
        with torch.no_grad():
            (tokens,) = network(pixels)
            table = network.position_table(tokens.grid)
        size = f"{height}x{width}"
        results[f"patch_{size}"], results[f"cls_{size}"] = tokens.patches, tokens.cls
        results[f"pos_{size}"] = table
        for name in case.outputs:
            if part := re.fullmatch(rf"(patch|pos)_{size}_stride(\d+)", name):
                rows = tokens.patches if part[1] == "patch" else table[:, 1:]
                results[name] = rows[:, :: int(part[2])]
    return results


# The pipelines ------------------------------------------------------------------------------------------


def _config(case: Case, name: str) -> str:
    entry = case.meta["networks"][name]
    prefix = entry.get("prefix", case.meta.get("recipe_prefix", ""))
    return json.dumps([entry["config"], entry["recipe_seed"], prefix])


@lru_cache(maxsize=16)
def _network(kind: str, config: str) -> Any:
    """A network of a configuration, filled with recipe values under its own published names."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from vision3d.pipelines.stablenormal.network import ControlNetVAEModel

    sizes, seed, prefix = json.loads(config)
    cls = {"unet": UNet2DConditionModel, "controlnet": ControlNetVAEModel, "vae": AutoencoderKL}[kind]
    network = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()})
    recipe.fill(network, seed, prefix)
    return network.eval().requires_grad_(False)


def _pipeline(case: Case) -> Any:
    """The stages that a case describes, without text towers and DINO."""
    from vision3d.pipelines.stablenormal import StableNormal

    networks = {}
    for name in case.meta["networks"]:
        stage, part = name.split(" ")
        prefix = {"yoso": "", "refinement": "refine_"}[stage]
        networks[prefix + part] = _network(part, _config(case, name))
    if networks.get("refine_vae") is networks.get("vae"):
        networks.pop("refine_vae", None)
    for part in ("unet", "controlnet", "vae"):
        networks.setdefault(part, networks.get(f"refine_{part}"))
    line = case.meta.get("variant") or ("v1" if case.kind.endswith("v1") else "v0")
    return StableNormal(**networks, line=line)


def _context(case: Case, pipeline: Any, name: str) -> Any:
    """The stored text states, or the prompt-free line's zeros."""
    from vision3d.pipelines.stablenormal.network import zero_context

    if name in case.arrays:
        return case.tensor(name)
    unet = pipeline.unet
    return zero_context(unet.config.cross_attention_dim, unet.device, unet.dtype)


def _preprocessed(case: Case) -> tuple[Any, Any]:
    from vision3d.pipelines.stablenormal.imaging import preprocess

    image = case.tensor("image").permute(2, 0, 1)[None].float() / 255
    return preprocess(image, case.meta["processing_resolution"])


def _stated(text: str, pattern: str) -> tuple[str, ...]:
    """What a pattern finds in a fixture's words."""
    match = re.search(pattern, text)
    if match is None:
        raise UnknownVariant(f"nothing like {pattern} in {text!r}")
    return match.groups()


@check("stablenormal", "prepost", options=("max_mismatch",))
def prepost(case: Case) -> Results:
    """Size rule, resizing, transparency, preprocessing, DINO's input, and the way back to a picture."""
    import torch

    from vision3d.backbone.dino import normalise
    from vision3d.io.photo import Photo
    from vision3d.pipelines.stablenormal import imaging
    from vision3d.pipelines.stablenormal.network import dino_input, match_latent

    arrays = case.arrays
    columns = case.meta.get("input_columns", {}).get("resize_rule", [0, 1, 2])
    rows = arrays["resize_rule"]
    sizes = [imaging.working_size(*(int(row[c]) for c in columns)) for row in rows]
    results: Results = {"resize_rule": np.concatenate([rows[:, columns], np.array(sizes)], axis=1)}
    image = arrays["image"]
    if "rgba" in arrays:
        cut_out = Photo(arrays["rgba"][..., :3], alpha=arrays["rgba"][..., 3] / np.float32(255))
        results |= {"rgba_composite": cut_out.on_white, "rgba_mask": np.asarray(cut_out.opaque)}
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    for name in case.outputs:
        if part := re.fullmatch(r"resize_lanczos_(\d+)", name):
            size = imaging.working_size(image.shape[0], image.shape[1], int(part[1]))
            results[name] = imaging.resize_image(image, size)
        elif part := re.fullmatch(r"pre_(\d+)", name):
            x, canvas = imaging.preprocess(pixels, int(part[1]))
            results[name], results[f"{name}_pad_orig"] = x, np.array([*canvas.pad, *canvas.size])
    stages, words = case.meta.get("stage_inputs", {}), case.meta["description"]
    for name in case.outputs:
        if part := re.fullmatch(r"dino_pre_(\d+)(_slice|_mean_std)?", name):
            (source,) = _stated(stages.get("dino_pre_*", ""), r"^(pre_\d+)$")
            seen = normalise(dino_input(case.tensor(source), int(part[1])))
            if part[2] == "_slice":
                top, bottom, left, right = map(int, _stated(words, r"rows (\d+):(\d+), cols (\d+):(\d+)"))
                seen = seen[..., top:bottom, left:right]
            results[name] = seen if part[2] != "_mean_std" else _moments(seen)
        elif part := re.fullmatch(r"match_out_(\d+)x(\d+)", name):
            results[name] = match_latent(case.tensor("match_in"), (int(part[1]), int(part[2])))
    decoded, laid = _stated(stages.get("post_*", ""), r"^(\w+), (\w+_pad_orig)$")
    pad_h, pad_w, height, width = (int(v) for v in arrays[laid])
    canvas = imaging.Canvas((height, width), (pad_h, pad_w))
    (mask,) = _stated(stages.get("post_*_masked", "rgba_mask"), r"^(\w+)$")
    given = arrays[mask].astype(bool) if mask in arrays else None
    for stage in ("refine", "yoso"):
        normals = imaging.postprocess(case.tensor(decoded), canvas, one_step=stage == "yoso")
        field = normals[0].permute(1, 2, 0).numpy()
        results[f"post_{stage}"] = field
        results[f"post_{stage}_u8"] = imaging.encode_8bit(field)
        if given is not None:
            results[f"post_{stage}_u8_masked"] = imaging.encode_8bit(field, given)
    for name in case.outputs:
        if part := re.fullmatch(r"(.+)_lanczos_(\d+)x(\d+)", name):
            results[name] = imaging.resize_image(arrays[part[1]], (int(part[3]), int(part[2])))
    return results


def _moments(values: Any) -> np.ndarray:
    return np.array([float(values.double().mean()), float(values.double().std(correction=0))])


@check("stablenormal", "scheduler")
def scheduler(case: Case) -> Results:
    """Timesteps for every number of calls, and the whole recurrence with given predictions and noise."""
    from vision3d.backbone.schedule import alphas_cumprod
    from vision3d.pipelines.stablenormal.sampler import HeuristicSchedule

    config = case.meta.get("scheduler_config", {})
    check_schedule(config, "set_alpha_to_one", prediction_type="sample", steps_offset=0)
    # The scheduler's final value is stored and never used: the last step ends at timestep 0.
    abar = alphas_cumprod()
    final = np.ones(1) if config.get("set_alpha_to_one", True) else abar[:1]
    results: Results = {"alphas_cumprod": abar, "final_alpha_cumprod": final}
    for name in case.outputs:
        if part := re.fullmatch(r"ts_(\d+)", name):
            schedule = HeuristicSchedule.of(int(part[1]))
            results[name] = np.array(schedule.timesteps)
            results[f"prev_{part[1]}"] = np.array(schedule.previous)
            results[f"naive_gap_{part[1]}"] = np.array([schedule.naive, schedule.gap])
        elif part := re.fullmatch(r"steps(\d+)_prev_sample", name):
            schedule = HeuristicSchedule.of(int(part[1]))
            stem = f"steps{part[1]}_"
            sample, samples, used = case.tensor(f"{stem}sample0"), [], []
            x0, noise = case.tensor(f"{stem}x0"), case.tensor(f"{stem}noise")
            for i in range(len(schedule.timesteps)):
                used.append(int(schedule.is_renoised(i)))
                sample = schedule.step(i, x0[i], sample, noise[i] if used[-1] else None)
                samples.append(sample.numpy())
            results[name], results[f"{stem}noise_used"] = np.stack(samples), np.array(used)
    return results


@check("stablenormal", "yoso_v0", "yoso_v1")
def one_step(case: Case) -> Results:
    """The one-step pipelines of both lines, image branch included, at two timesteps."""
    from vision3d.pipelines.stablenormal.imaging import postprocess

    pipeline = _pipeline(case)
    x, canvas = _preprocessed(case)
    latent = pipeline.encode(x)
    context = _context(case, pipeline, "text_embeds_yoso")
    noise = case.tensor("latents") if "latents" in case.arrays else latent
    results: Results = {"pre": x, "image_latent": latent}
    scale = float(case.meta.get("conditioning_scale", 1.0))
    skips, middle = pipeline.control(latent, case.meta["t_start"], context, scale)
    results |= {f"yoso_ctrl_down{i}": skip for i, skip in enumerate(skips)} | {"yoso_ctrl_mid": middle}
    steps = {"yoso": case.meta["t_start"]}
    steps |= {m[1]: int(m[2]) for n in case.outputs if (m := re.fullmatch(r"(turbo_t(\d+))_latent", n))}
    for name, t in steps.items():
        x0 = pipeline.one_step(latent, noise, t, context, scale)
        normals = postprocess(pipeline.decode(x0), canvas, one_step=True)
        results[f"{name}_latent"], results[f"{name}_prediction"] = x0, normals.permute(0, 2, 3, 1)
    return results


def _stored_residuals(case: Case) -> list[Any] | None:
    count = sum(1 for name in case.meta["inputs"] if re.fullmatch(r"dino_res_\d+", name))
    return [case.tensor(f"dino_res_{i}") for i in range(count)] or None


@check("stablenormal", "refine_unet")
def refine_unet(case: Case) -> Results:
    """One refinement call with given semantic residuals, read after the middle and each decoder level."""
    import torch

    from vision3d.backbone.unet import tap_name, walk

    pipeline = _pipeline(case)
    t, context = case.meta["timestep"], case.tensor("text_embeds")
    scale = float(case.meta.get("conditioning_scale", 1.0))
    skips, middle = pipeline.control(case.tensor("image_latent"), t, context, scale, refine=True)
    results: Results = {"ctrl_mid": middle, **{f"ctrl_down{i}": skip for i, skip in enumerate(skips)}}
    unet = pipeline.refine_unet
    ends = {tap_name(unet, f"dift{level}"): f"up{level}_out" for level in range(len(unet.up_blocks))}
    with torch.no_grad():
        steps = walk(
            unet,
            case.tensor("sample"),
            t,
            context,
            residuals=(skips, middle),
            injected=_stored_residuals(case),
        )
        for tap in steps:
            if tap.name.startswith("d"):
                results["mid_in"] = tap.tensor
            elif tap.name in ends:
                results[ends[tap.name]] = tap.tensor
            elif tap.name in ("mid", "out"):
                results["mid_out" if tap.name == "mid" else "out"] = tap.tensor
    return results


@check("stablenormal", "e2e_v0", "e2e_v1")
def two_stage(case: Case) -> Results:
    """The two-stage pipelines of both lines with given noise and semantic residuals."""
    import torch

    from vision3d.pipelines.stablenormal.imaging import postprocess
    from vision3d.pipelines.stablenormal.network import match_latent
    from vision3d.pipelines.stablenormal.pipeline import Draws

    pipeline = _pipeline(case)
    x, canvas = _preprocessed(case)
    latent = pipeline.encode(x)
    fresh = tuple(case.tensor("renoise")) if "renoise" in case.arrays else ()
    draws = Draws(case.tensor("latents"), fresh)
    context = _context(case, pipeline, "text_embeds_yoso")
    scale = float(case.meta.get("conditioning_scale", 1.0))
    start = pipeline.one_step(latent, draws.start, case.meta["t_start"], context, scale)
    calls: list[tuple[Any, int, Any]] = []
    final = pipeline.refine(
        pipeline.encode(x, refine=True),
        start,
        draws,
        case.tensor("text_embeds_refine"),
        case.meta["num_inference_steps"],
        _stored_residuals(case),
        scale,
        probe=lambda _, sample, t, x0: calls.append((sample, t, x0)),
    )
    normals = postprocess(pipeline.decode(final, refine=True), canvas, one_step=False)
    return {
        "unet_inputs": torch.stack([c[0] for c in calls]),
        "unet_timesteps": np.array([c[1] for c in calls]),
        "unet_x0": torch.stack([c[2] for c in calls]),
        "final_latent": final,
        "prediction": normals.permute(0, 2, 3, 1),
        "dino_input": match_latent(case.tensor("prior_features"), tuple(latent.shape[-2:])),
    }


# Evaluation ---------------------------------------------------------------------------------------------


@check("stablenormal", "metrics")
def metrics(case: Case) -> Results:
    """The published script: pooled pixels of 8-bit pictures, and the variance over predictions."""
    from vision3d.evaluation.normal_metrics import picture_errors, pooled_metrics, seed_variance

    images = sorted({int(m[1]) for n in case.meta["inputs"] if (m := re.fullmatch(r"gt_(\d+)", n))})
    predictions = sorted(
        {int(m[1]) for n in case.meta["inputs"] if (m := re.fullmatch(r"pred_\d+_(\d+)", n))}
    )
    errors = {
        (n, k): picture_errors(case.arrays[f"pred_{n}_{k}"], case.arrays[f"gt_{n}"])
        for n in images
        for k in predictions
    }
    results: Results = {}
    for n in images:
        results[f"rmse_{n}"] = np.array([errors[n, k].distance for k in predictions])
    for k in predictions:
        pooled = pooled_metrics(errors[n, k] for n in images)
        shares = [pooled.below_11_25, pooled.below_22_5, pooled.below_30]
        results[f"pooled_{k}"] = np.array([pooled.mean, pooled.median, *shares])
        results[f"valid_{k}"] = sum(errors[n, k].angles.size for n in images)
    means = [[float(errors[n, k].angles.mean()) for k in predictions] for n in images]
    results["per_image_mean"], results["variance"] = np.array(means), seed_variance(means)
    return results


@check("stablenormal", "metrics_masked")
def metrics_masked(case: Case) -> Results:
    """The per-image protocol of the peers."""
    from vision3d.evaluation.normal_metrics import angular_errors, normal_metrics

    target, prediction = (case.arrays[name].transpose(1, 2, 0) for name in ("gt", "pred"))
    values = normal_metrics(prediction, target).as_dict()
    values |= {"<" + name.removeprefix("below_").replace("_", "."): v for name, v in values.items()}
    if unknown := [name for name in case.meta["order"] if name not in values]:
        raise UnknownVariant(f"metric {unknown[0]!r}")
    order = [values[name] for name in case.meta["order"]]
    return {"valid_count": angular_errors(prediction, target).size, "result": np.array(order)}
