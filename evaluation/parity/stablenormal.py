"""Checks of StableNormal: so far its DINO prior."""

from __future__ import annotations

import re

import numpy as np

from vision3d.evaluation.parity import recipe
from vision3d.evaluation.parity.case import Case
from vision3d.evaluation.parity.registry import Results, check


@check("stablenormal", "dinov2")
def dinov2(case: Case) -> Results:
    """Normalised tokens and stretched position tables of a narrow DINOv2 in the hub's layout."""
    import torch

    from vision3d.backbone.dino import load_dino

    rule = case.config["interpolate_offset"], case.config["interpolate_antialias"]
    if rule != (0.1, False):
        raise NotImplementedError(f"interpolation with offset and antialias {rule}")
    tensors = {
        name: torch.from_numpy(recipe.tensor(name, tuple(shape), case.recipe_seed))
        for name, shape in case.meta["key_shapes"].items()
    }
    network = load_dino(tensors, heads=case.config["num_heads"])
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
