"""Checks of SD+DINO: so far its DINO branch."""

from __future__ import annotations

import re
from typing import Any

from vision3d.evaluation.parity import recipe
from vision3d.evaluation.parity.case import Case
from vision3d.evaluation.parity.registry import Results, check


def _image(case: Case) -> Any:
    """The case's uint8 image as ``(1, 3, H, W)`` in [0, 1]."""
    return case.tensor("image").permute(2, 0, 1)[None].float() / 255


def _network(case: Case, seed: int, registers: int = 0) -> Any:
    from vision3d.backbone.dino import Dino, DinoConfig

    config = case.config
    has_scale = config["layer_scale"]
    network = Dino(
        DinoConfig(
            width=config["embed_dim"],
            depth=config["depth"],
            heads=config["num_heads"],
            patch=config["patch_size"],
            grid=config["native_grid"],
            hidden=4 * config["embed_dim"],
            registers=registers,
            layer_scale=has_scale,
            mask_token=has_scale,
        )
    )
    recipe.fill(network, seed, case.meta.get("recipe_prefix", ""))
    return network.eval().requires_grad_(False)


@check("sd_dino", "dinov2_features")
def dinov2_features(case: Case) -> Results:
    """Facets and layers of DINOv2, a denser stride, the position table, and the variant with registers."""
    from vision3d.backbone.dino import Request, normalise

    network, image = _network(case, case.recipe_seed), _image(case)
    results: Results = {"input": normalise(image)[0]}
    results["v2_pos_embed"] = network.position_table(network.grid_of(*image.shape[-2:]))[0]
    results["v2_norm_tokens"] = network.features(image, norm=True).patches[0]
    for name in case.outputs:
        if match := re.fullmatch(r"v2_(token|key|query|value)_(\d+)", name):
            results[name] = network.features(image, facet=match[1], layer=int(match[2])).patches[0]
        elif match := re.fullmatch(r"v2_stride(\d+)_(token|key|query|value)_(\d+)", name):
            # The denser pass may be of a part only, which nothing but the description tells.
            crop = re.search(r"input\[:, :(\d+), :(\d+)\]", case.meta["description"])
            part = image[..., : int(crop[1]), : int(crop[2])] if crop else image
            dense = network.features(part, facet=match[2], layer=int(match[3]), stride=int(match[1]))
            results[name], results[f"v2_stride{match[1]}_grid"] = dense.patches[0], dense.grid
    if "recipe_seed_reg" in case.meta:
        network = _network(case, case.meta["recipe_seed_reg"], case.config["num_register_tokens_reg"])
        normed, plain = network(normalise(image), [Request(norm=True), Request()])
        results["v2reg_norm_tokens"], results["v2reg_prenorm"] = normed.patches[0], plain.all[0]
    return results


@check("sd_dino", "dinov1_features")
def dinov1_features(case: Case) -> Results:
    """Facets and layers of DINOv1 at several strides, log-binned descriptors, saliency of the class token."""
    from vision3d.backbone.dino import log_bins, normalise

    network, image = _network(case, case.recipe_seed), _image(case)
    results: Results = {"input": normalise(image)[0]}
    step = re.search(r"channels ::(\d+)", case.meta["description"])
    kept = int(step[1]) if step else 16
    for name in case.outputs:
        if match := re.fullmatch(r"v1_(token|key|query|value)_(\d+)(_bin)?_stride(\d+)(_slice)?", name):
            facet, layer, binned, stride, sliced = match.groups()
            tokens = network.features(image, facet=facet, layer=int(layer), stride=int(stride))
            values = log_bins(tokens.map).flatten(2).transpose(1, 2) if binned else tokens.patches
            results[name] = values[0, :, ::kept] if sliced else values[0]
            results[f"grid_stride{stride}"] = tokens.grid
        elif match := re.fullmatch(r"v1_saliency_stride(\d+)", name):
            results[name] = network.saliency(image, stride=int(match[1]))[0].flatten()
    return results
