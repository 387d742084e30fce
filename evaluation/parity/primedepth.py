"""Checks of PrimeDepth: rules, attention maps, refiner and heads, the whole pass, the evaluation protocol."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vision3d.evaluation.parity.case import Case, UnknownVariant
from vision3d.evaluation.parity.portable import time_embeddings
from vision3d.evaluation.parity.registry import Results, check


@check("primedepth", "depth_eval")
def depth_eval(case: Case) -> Results:
    """Alignment in depth and in inverse depth, and the published measures."""
    from vision3d.evaluation.metrics import align_depth, align_inverse_depth, depth_metrics

    ground_truth, valid = case.arrays["gt"], case.arrays["valid"].astype(bool)
    near, far = case.meta["range"]
    order = [name.partition("(")[0] for name in case.meta["metric_order"]]
    results: Results = {}

    def measures(depth: np.ndarray) -> np.ndarray:
        values = depth_metrics(depth, ground_truth, valid).as_dict()
        if unknown := [name for name in order if name not in values]:
            raise UnknownVariant(f"metric {unknown[0]!r}")
        return np.array([values[name] for name in order])

    depth, fit = align_depth(case.arrays["pred_depth"], ground_truth, valid, near, far)
    results["depth_scale_shift"] = np.array([fit.scale, fit.shift])
    results["depth_metrics"] = measures(depth)

    if resolution := case.meta.get("max_resolution"):
        _, fit = align_depth(
            case.arrays["pred_depth"], ground_truth, valid, near, far,
            max_resolution=resolution, width_only_resize=True,
        )  # fmt: skip
        results[f"depth_scale_shift_maxres{resolution}"] = np.array([fit.scale, fit.shift])

    for name, positive_only in (("inv_posmask", True), ("inv_nomask", False)):
        depth, fit = align_inverse_depth(
            case.arrays["pred_inverse"], ground_truth, valid, near, far, positive_only=positive_only
        )
        results[f"{name}_scale_shift"] = np.array([fit.scale, fit.shift])
        results[f"{name}_metrics"] = measures(depth)
    return results


@lru_cache(maxsize=1)
def _networks(config: str, seed: int, prefix: str) -> dict[str, Any]:
    """Networks of a configuration (as JSON) filled with recipe values under the checkpoint's own names."""
    from vision3d.backbone.loading import load_weights
    from vision3d.evaluation.parity.recipe import RecipeWeights
    from vision3d.pipelines.primedepth.checkpoint import PrimeDepthConfig, checkpoint_shapes, load_networks

    options: dict[str, Any] = {**json.loads(config)}
    fixed = {"transformer_depth": 1, "infusion": "cat", "n_sa_maps": 64}
    for name, value in fixed.items():
        if options.pop(name, value) != value:
            raise UnknownVariant(f"{name} other than {value}")
    sizes = PrimeDepthConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})  # type: ignore[arg-type]
    weights = RecipeWeights(checkpoint_shapes(sizes), seed, prefix)
    networks = load_networks(Path("recipe"), sizes, tensors=weights)
    for network in networks.values():
        load_weights(network)
    return networks


def _pipeline(case: Case) -> Any:
    from vision3d.pipelines.primedepth import PrimeDepth

    return PrimeDepth(
        **_networks(json.dumps(case.config), case.recipe_seed, case.meta.get("recipe_prefix", ""))
    )


@check("primedepth", "rules", options=("input_columns", "max_size"))
def rules(case: Case) -> Results:
    """Working size, resizing, schedule, time embedding."""
    from vision3d.backbone import schedule
    from vision3d.backbone.unet import time_embedding
    from vision3d.pipelines.primedepth.pipeline import resize_image, working_size

    table = case.arrays["resize_rule"]
    columns = case.outputs["resize_rule"].get("input_columns", [0, 1, 2])
    sizes = np.array(
        [working_size(int(row[columns[0]]), int(row[columns[1]]), int(row[columns[2]])) for row in table]
    )
    results: Results = {"resize_rule": sizes}
    for name, options in case.outputs.items():
        if "max_size" in options:
            image = case.arrays["image"]
            results[name] = resize_image(
                image, working_size(image.shape[0], image.shape[1], options["max_size"])
            )
    abar = schedule.alphas_cumprod()
    results["alphas_cumprod"] = abar
    for name, values in (("sqrt_acp", abar), ("sqrt_1m_acp", 1 - abar)):
        if name in case.outputs:
            results[name] = np.sqrt(values[: len(case.arrays[name])])
    for name in case.outputs:
        if part := re.fullmatch(r"t_emb_(\d+)", name):
            results[name] = time_embeddings([(1, int(part[1]))])[0][None]
    results["time_embed"] = time_embedding(_pipeline(case).unet, 1, 1)
    return results


@check("primedepth", "attn_maps", options=("q", "k", "size"))
def attention_maps(case: Case) -> Results:
    """Pooled self maps and cross maps from queries and keys."""
    import torch

    from vision3d.backbone import attention

    results: Results = {}
    for name, options in case.outputs.items():
        q, k, size = case.tensor(options["q"]), case.tensor(options["k"]), options["size"]
        if name.startswith("self"):
            _, pooled = attention.pooled_attention(q, k, torch.zeros_like(k), attention.key_pooling(*size))
            found = attention.normalise_pooled(pooled, *size)
        else:
            _, probabilities = attention.cross_attention(q, k, torch.zeros_like(k))
            found = attention.cross_maps(probabilities, *size)
        results[options.get("of", name)] = found
    return results


@check("primedepth", "text_encoder")
def text_encoder(case: Case) -> Results:
    """Token ids and the states of an OpenCLIP tower after all its layers."""
    from vision3d.backbone import text
    from vision3d.evaluation.parity.recipe import RecipeWeights

    activation = case.config["act"].removesuffix(" (exact)")
    if activation not in ("gelu", "quick_gelu"):
        raise UnknownVariant(f"activation {activation!r}")
    weights = RecipeWeights(case.meta["key_shapes"], case.recipe_seed, case.meta.get("recipe_prefix", ""))
    tower = text.load_text_tower(dict(weights), heads=case.config["heads"], activation=activation)
    ids, _ = text.tokenise(case.meta["prompts"], pad=0)
    return {"tokens": np.asarray(ids), "embedding": text.encode(tower, ids, layer=case.config["layer"])}


@check("primedepth", "labeller")
def labeller(case: Case) -> Results:
    """Every intermediate of UNet, refiner and heads for given noisy latents."""
    import torch

    pipeline = _pipeline(case)
    results: Results = {}
    with torch.no_grad():
        refined = pipeline.refiner(
            pipeline.unet, case.tensor("x"), case.tensor("context"), probe=results.__setitem__
        )
        results["depth3"] = pipeline.depth_head(refined)
        if pipeline.segmentation_head is not None:
            results["seg"] = pipeline.segmentation_head(refined)
    return results


@check("primedepth", "e2e", "real_width")
def end_to_end(case: Case) -> Results:
    """From an image to depth and classes, with given noise; no resizing back."""
    import torch

    from vision3d.backbone.vae import encode_moments

    pipeline = _pipeline(case)
    image = case.tensor("image").permute(2, 0, 1)[None].float() / 255
    results: Results = {}
    with torch.no_grad():
        results["vae_mean"], results["vae_logvar"] = encode_moments(pipeline.vae, image)
        latents = pipeline.encode(image, case.tensor("noise_posterior"))
        refined = pipeline.refine(
            latents, case.tensor("noise_q"), case.tensor("context"), probe=results.__setitem__
        )
        results["depth3"] = pipeline.depth_head(refined)
        results["depth"] = pipeline.predict_depth(refined)[0, 0]
        if pipeline.segmentation_head is not None:
            results["seg"] = pipeline.predict_segmentation(refined)
    return results


@check("primedepth", "predict")
def predict(case: Case) -> Results:
    """The whole prediction of a photograph: scaled down, inferred, scaled back, coloured as published."""
    import torch

    from vision3d.colour import colour_values
    from vision3d.pipelines.primedepth.pipeline import resize_image, working_size

    pipeline = _pipeline(case)
    image = case.arrays["image"]
    small = resize_image(image, working_size(image.shape[0], image.shape[1], case.meta["max_size"]))
    pixels = torch.from_numpy(small.copy()).permute(2, 0, 1)[None].float() / 255
    latents = pipeline.encode(pixels, case.tensor("noise_posterior"))
    depth = pipeline.predict_depth(pipeline.refine(latents, case.tensor("noise_q"), case.tensor("context")))
    if small.shape != image.shape:  # otherwise the size that the decoder gives, as published
        size = image.shape[:2]
        depth = torch.nn.functional.interpolate(depth, size=size, mode="bilinear", align_corners=False)
    values = depth[0, 0]
    limits = float(values.min()), float(values.max())
    return {"depth": values, "color": colour_values(values.numpy(), limits=limits)}
