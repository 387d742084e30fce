"""Checks of SD+DINO: both branches, their fusion, matching, flow, swap and measures."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vision3d.evaluation.parity import recipe
from vision3d.evaluation.parity.case import Case, UnknownVariant
from vision3d.evaluation.parity.portable import time_embeddings
from vision3d.evaluation.parity.registry import Results, check


def _image(case: Case) -> Any:
    """The case's uint8 image as ``(1, 3, H, W)`` in [0, 1]."""
    return case.tensor("image").permute(2, 0, 1)[None].float() / 255


def _step(whole: Sequence[int], stored: Sequence[int], stated: str | None = None) -> int:
    """The step at which elements are stored: as the sizes say, and where they leave a choice, the description."""
    fitting = [n for n in range(1, max(whole) + 1) if [-(-size // n) for size in whole] == list(stored)]
    if stated is not None and int(stated) in fitting:
        return int(stated)
    if len(fitting) != 1:
        raise UnknownVariant(f"{list(stored)} of {list(whole)} values, at no stated step")
    return fitting[0]


def _network(case: Case, seed: int, registers: int = 0) -> Any:
    from vision3d.backbone.dino import NORM_EPS, Dino, DinoConfig

    config: dict[str, Any] = {"mlp_ratio": 4, "ffn_layer": "mlp", "layer_norm_eps": NORM_EPS, **case.config}
    known = {"embed_dim", "depth", "num_heads", "patch_size", "native_grid", "img_size", "layer_scale"}
    known |= {"mlp_ratio", "ffn_layer", "layer_norm_eps", "num_register_tokens_reg"}
    if unknown := set(config) - known:
        raise UnknownVariant(f"a network with {sorted(unknown)}")
    if config["layer_norm_eps"] != NORM_EPS or config["ffn_layer"] not in ("mlp", "swiglu", "swiglufused"):
        raise UnknownVariant(f"layers of {config['ffn_layer']!r}, norms with {config['layer_norm_eps']}")
    gated = config["ffn_layer"] != "mlp"
    hidden = int(config["mlp_ratio"] * config["embed_dim"])
    has_scale = config["layer_scale"]
    network = Dino(
        DinoConfig(
            width=config["embed_dim"],
            depth=config["depth"],
            heads=config["num_heads"],
            patch=config["patch_size"],
            grid=config["native_grid"],
            hidden=(hidden * 2 // 3 + 7) // 8 * 8 if gated else hidden,
            registers=registers,
            layer_scale=has_scale,
            mask_token=has_scale,
            gated=gated,
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
    for name in case.outputs:
        if match := re.fullmatch(r"v1_(token|key|query|value)_(\d+)(_bin)?_stride(\d+)(_slice)?", name):
            facet, layer, binned, stride, sliced = match.groups()
            tokens = network.features(image, facet=facet, layer=int(layer), stride=int(stride))
            values = log_bins(tokens.map).flatten(2).transpose(1, 2) if binned else tokens.patches
            if sliced:
                stored = case.arrays[name].shape[-1:]
                values = values[..., :: _step(values.shape[-1:], stored, step[1] if step else None)]
            results[name] = values[0]
            results[f"grid_stride{stride}"] = tokens.grid
        elif match := re.fullmatch(r"v1_saliency_stride(\d+)", name):
            heads = re.search(r"heads (\d+(?:, ?\d+)*)", case.meta["description"])
            chosen = {"heads": [int(head) for head in heads[1].split(",")]} if heads else {}
            results[name] = network.saliency(image, stride=int(match[1]), **chosen)[0].flatten()
    return results


# Canvases, keypoints, tiles ---------------------------------------------------------------------------------


@check("sd_dino", "canvas_resize")
def canvas_resize(case: Case) -> Results:
    """Square canvases of several sizes, black or with repeated borders."""
    from vision3d.pipelines.sd_dino.canvas import square

    results: Results = {}
    for name in case.outputs:
        if match := re.fullmatch(r"(?:out(\d+)|gray_out)_(\d+)_(zero|edge)", name):
            image = case.arrays[f"image{match[1]}" if match[1] is not None else "gray"]
            results[name] = square(image, int(match[2]), edge=match[3] == "edge")
    return results


@check("sd_dino", "keypoints_to_canvas")
def keypoints_to_canvas(case: Case) -> Results:
    """Keypoints on canvases, and the offsets and scale that put them there."""
    from vision3d.pipelines.sd_dino.canvas import published_keypoints

    results: Results = {}
    for name in case.outputs:
        if match := re.fullmatch(r"(out|off)(\d+)_(\d+)", name):
            what, index, side = match.groups()
            width, height = map(int, case.arrays[f"wh{index}"])
            points, offset = published_keypoints(case.arrays[f"kps{index}"], width, height, int(side))
            results[name] = points if what == "out" else np.array(offset)
    return results


@check("sd_dino", "tile_geometry")
def tile_geometry(case: Case) -> Results:
    """Where tiles lie and how many cells the taps have, by image size."""
    from vision3d.pipelines.sd_dino.features import feature_size, tile_boxes

    found = {}
    for size, content in case.meta["cases"].items():
        height, width = map(int, size.split("x"))
        found[size] = {
            "tiles": [list(box) for box in tile_boxes(height, width)],
            "shapes": {name: list(feature_size(height, width, name)) for name in content["shapes"]},
        }
    return {"cases": found}


@check("sd_dino", "spair_loader")
def spair_loader(case: Case) -> Results:
    """Annotations of pairs: keypoints and thresholds of all, and of the published sample."""
    from vision3d.evaluation.datasets.correspondence import published_tables, sample_indices, spair_pair

    contents = sorted(case.meta["pairs"].items())
    pairs = [spair_pair(content, name.removesuffix(".json")) for name, content in contents]
    groups = {"": pairs}
    if "thresholds_sub" in case.arrays:
        chosen = sample_indices(len(pairs), len(case.arrays["thresholds_sub"]))
        groups["_sub"] = [pairs[i] for i in chosen]
    results: Results = {}
    for suffix, group in groups.items():
        points, thresholds = published_tables(group, case.meta["num_kps"], case.meta["size"])
        results[f"kps{suffix}"], results[f"thresholds{suffix}"] = points, thresholds
        results[f"files{suffix}"] = [f"/{f.as_posix()}" for pair in group for f in (pair.source, pair.target)]
    return results


# Stable Diffusion -------------------------------------------------------------------------------------------


@check("sd_dino", "noise_schedule")
def noise_schedule(case: Case) -> Results:
    """The fixed noise at several sizes, the schedule, noisy latents, time embeddings."""
    from vision3d.backbone.backbone import fixed_noise
    from vision3d.backbone.schedule import add_noise, alphas_cumprod

    abar = alphas_cumprod()
    betas = 1 - abar / np.concatenate([[1.0], abar[:-1]])
    results: Results = {"alphas_cumprod": abar, "betas": betas}
    latent = case.tensor("latent")[None]
    spatial = dict(
        re.findall(r"(noisy latents|resized noise)[^()]*\(spatial ::(\d+)\)", case.meta["description"])
    )
    if (kept := case.meta.get("noise_slice", "full")) != "full":
        step = re.fullmatch(r"(?:spatial )?::(\d+)", str(kept))
        if step is None:
            raise UnknownVariant(f"noise slice {kept!r}")
        spatial["noise"] = step[1]

    def part(name: str, whole: Any, what: str) -> Any:
        step = _step(whole.shape[-2:], case.arrays[name].shape[-2:], spatial.get(what))
        return whole[0, :, ::step, ::step]

    asked = {
        name: (int(match[2]), int(match[1]))
        for name in case.outputs
        if (match := re.fullmatch(r"temb(\d+)_(\d+)", name))
    }
    results |= zip(asked, time_embeddings(list(asked.values())), strict=True)
    for name in case.outputs:
        if name == "noise":
            results[name] = part(name, fixed_noise((64, 64)), name)
        elif match := re.fullmatch(r"noisy_(\d+)", name):
            noise = fixed_noise((latent.shape[-2], latent.shape[-1]))
            results[name] = part(name, add_noise(latent, noise, int(match[1])), "noisy latents")
        elif match := re.fullmatch(r"noise_(\d+)x(\d+)", name):
            results[name] = part(name, fixed_noise((int(match[1]), int(match[2]))), "resized noise")
    return results


@check("sd_dino", "clip_image")
def clip_image(case: Case) -> Results:
    """CLIP's preprocessing without antialiasing, and the embedding of a small image tower."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    from vision3d.pipelines.sd_dino.captioner import clip_pixels, embed_images

    tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**case.config))
    prefix, given = case.meta.get("recipe_prefix", ""), case.meta["keys"]
    # releases of transformers put other words before the published names
    with torch.no_grad():
        for name, value in tower.state_dict(keep_vars=True).items():
            known = next(
                k for k in (name, f"vision_model.{name}", name.removeprefix("vision_model.")) if k in given
            )
            value.copy_(
                torch.from_numpy(recipe.tensor(prefix + known, tuple(given[known]), case.recipe_seed))
            )
    image = case.tensor("image")
    return {
        "preprocessed": clip_pixels(image, case.config["image_size"]),
        "embed": embed_images(tower.eval(), image),
    }


def _stable_diffusion(case: Case) -> tuple[Any, Any]:
    """UNet and autoencoder of a case, filled separately under diffusers' names."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    prefix = case.meta.get("recipe_prefix", "")
    networks = (UNet2DConditionModel(**case.meta["unet_config"]), AutoencoderKL(**case.meta["vae_config"]))
    for network in networks:
        recipe.fill(network, case.recipe_seed, prefix)
        network.eval().requires_grad_(False)
    return networks


_TAP_MODES = {
    "": "decoder",
    "caption": "decoder",
    "concat": "concat",
    "encoder": "encoder",
    "resblock": "resblock",
}
"""How the maps are read whose names begin so."""


@check("sd_dino", "sd_features", "sd_features_tiled")
def sd_features(case: Case) -> Results:
    """The whole Stable Diffusion branch on one image, conditioned by the captioner or by a caption, all tap modes."""
    import torch

    from vision3d.backbone.backbone import fixed_noise
    from vision3d.backbone.vae import encode_moments
    from vision3d.pipelines.sd_dino.captioner import ImplicitCaptioner
    from vision3d.pipelines.sd_dino.features import (
        STRIDES,
        average_tiles,
        cut_tiles,
        feature_size,
        noised,
        read_features,
        tile_boxes,
    )

    unet, vae = _stable_diffusion(case)
    if "image" in case.arrays:
        pixels = case.arrays["image"].astype(np.int64)
    else:
        factor = case.arrays["image_noise"].shape[0] // case.arrays["image_base"].shape[0]
        base = case.arrays["image_base"].astype(np.int64).repeat(factor, 0).repeat(factor, 1)
        pixels = np.clip(base + case.arrays["image_noise"], 0, 255)
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    height, width = image.shape[-2:]
    boxes = tile_boxes(height, width, case.meta["tile"])
    tiles = cut_tiles(image, boxes)
    prefix = "captioner."
    learned = {n.removeprefix(prefix): case.tensor(n) for n in case.arrays if n.startswith(prefix)}
    context = case.tensor("uncond")[None].expand(len(boxes), -1, -1)
    time_add, t = None, case.meta["timestep"]
    results: Results = {}
    if learned:
        captioner = ImplicitCaptioner.from_tensors(learned)
        embeddings = case.tensor("clip_embeds")[: len(boxes)]
        context = captioner.context(embeddings, case.tensor("uncond")[None])
        time_add = captioner.time_vector(embeddings)
        results |= {"tile0_context": context[0], "tile0_temb_add": time_add[0]}
    asked: dict[str, set[str]] = {}
    for name, options in case.outputs.items():
        match = re.match(r"(?:([a-z]+)_)?(s[2-5])(?![a-z0-9])", str(options.get("of", name)))
        if match and (match[1] or "") in _TAP_MODES:
            asked.setdefault(match[1] or "", set()).add(match[2])
    parts: dict[str, dict[str, list[Any]]] = {}
    with torch.no_grad():
        for i in range(len(boxes)):
            latent = encode_moments(vae, tiles[i : i + 1])[0] * vae.config.scaling_factor
            noise = fixed_noise((latent.shape[-2], latent.shape[-1]))
            noisy, step = noised(latent, noise, t)
            if i == 0:
                results |= {"tile0_latent": latent[0], "tile0_noise": noise[0], "tile0_noisy": noisy[0]}
            for kind, names in asked.items():
                found = read_features(
                    unet,
                    noisy,
                    step,
                    case.tensor("caption_embed")[None] if kind == "caption" else context[i : i + 1],
                    sorted(names),
                    time_add=None if time_add is None else time_add[i : i + 1],
                    mode=_TAP_MODES[kind],  # type: ignore[arg-type]
                )
                for name, value in found.items():
                    parts.setdefault(kind, {}).setdefault(name, []).append(value)
    for kind, layers in parts.items():
        for name, values in layers.items():
            size = feature_size(height, width, name)
            whole = average_tiles(torch.cat(values), boxes, size, STRIDES[name])
            full = f"{kind}_{name}" if kind else name
            results[full], cut = whole, f"{full}_slice"
            if cut in case.outputs and "of" not in case.outputs[cut]:
                results[cut] = whole[_channels(case, cut, len(whole))]
    return results


def _channels(case: Case, name: str, count: int) -> Any:
    """Which channels of a map are stored: a step as text, a list, or a step that the sizes tell."""
    slices = case.meta.get("slices")
    kept = slices.get(name) if isinstance(slices, dict) else None
    if kept is None:
        return slice(None, None, _step([count], case.arrays[name].shape[:1]))
    if isinstance(kept, str):
        return slice(*(int(part) if part else None for part in kept.split(":")))
    return kept


# Projection, fusion, matching -------------------------------------------------------------------------------


@check("sd_dino", "co_pca")
def co_pca(case: Case) -> Results:
    """The common projection of two images, randomised with the stated seed and exact, and distances under both."""
    import torch

    from vision3d.pipelines.sd_dino.pca import co_pca, stack_layers

    order = case.meta["dims_order"]
    images = [{name: case.tensor(f"image{i}_{name}") for name in order} for i in (0, 1)]
    results: Results = {}
    for suffix, values in case.meta["cases"].items():
        dims = dict(zip(order, values, strict=True))
        for method in ("lowrank", "exact"):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(case.meta["seed"])
                first, second = map(stack_layers, co_pca(images[0], images[1], dims, method))  # type: ignore[arg-type]
            distances = torch.cdist(first.flatten(1).T.double(), second.flatten(1).T.double())
            if method == "exact":
                results[f"cdist_exact_{suffix}"] = distances
            else:
                results |= {f"out0_{suffix}": first, f"out1_{suffix}": second, f"cdist_{suffix}": distances}
    return results


def _fusion_options(case: Case) -> dict[str, Any]:
    """Options of ``fuse`` for the weights of a case; the evaluation on TSS has none of halves."""
    weights, order = case.meta["weights"], case.meta.get("order", "SPair rule")
    if not order.startswith(("SPair", "PF-Pascal", "TSS")):
        raise UnknownVariant(f"order {order!r}")
    tss = order.startswith("TSS")
    return {
        "lengths": case.meta["dims"],
        "layer_weights": weights[:3],
        "half_weights": (1.0, 1.0) if tss else (*weights[3:], 1.0, 1.0)[:2],
        "weigh_after": tss,
    }


@check("sd_dino", "fuse_match")
def fuse_match(case: Case) -> Results:
    """Weights, norms, every metric, nearest cells both ways, keypoints to predicted points."""
    from vision3d.pipelines.sd_dino.canvas import cell_points, cells_of
    from vision3d.pipelines.sd_dino.fusion import fuse, similarity
    from vision3d.pipelines.sd_dino.matching import nearest_cells

    options = _fusion_options(case)
    first, second = (fuse(case.tensor(f"sd{i}"), case.tensor(f"dino{i}"), **options) for i in (0, 1))
    results: Results = {"fused0": first, "fused1": second}
    metrics = {"l2": "l2", "l1": "l1", "cos": "cosine", "l2_norm": "l2_norm", "l1_norm": "l1_norm"}
    metrics |= {"plus": "plus", "plus_norm": "plus_norm"}
    for name in case.outputs:
        if metric := metrics.get(name.removeprefix("sim_")):
            results[name] = similarity(
                first,
                second,
                metric,  # type: ignore[arg-type]
                halves=sum(case.meta["dims"]),
                exact=True,
            )
    count = math.isqrt(len(second))
    size = re.search(r"(\d+)-px canvas, stride (\d+)", case.meta["description"])
    if size is None or count**2 != len(second) or len(first) != len(second):
        raise UnknownVariant(
            f"{len(first)} and {len(second)} cells on a canvas that is not stated or not square"
        )
    side, stride = map(int, size.groups())
    found = nearest_cells(first, second, (count, count))
    results |= {"nn_1_to_2": found.forward, "nn_2_to_1": found.backward, "mutual": found.mutual}
    if "kps" in case.arrays:
        cells = cells_of(case.arrays["kps"][:, :2], side, count, clamp=False)
        results["kps_cell"] = cells
        results["pred_xy"] = cell_points(found.forward.numpy()[cells], count, stride, stride)
    return results


@check("sd_dino", "pair_end_to_end")
def pair_end_to_end(case: Case) -> Results:
    """Two images through everything, with the randomised and with the exact projection."""
    import torch

    from vision3d.backbone.backbone import fixed_noise
    from vision3d.backbone.dino import MODELS, Dino
    from vision3d.backbone.vae import encode_moments
    from vision3d.pipelines.sd_dino.canvas import cell_points, square
    from vision3d.pipelines.sd_dino.features import (
        STRIDES,
        average_tiles,
        cut_tiles,
        feature_size,
        noised,
        read_features,
        tile_boxes,
    )
    from vision3d.pipelines.sd_dino.fusion import fuse, similarity
    from vision3d.pipelines.sd_dino.pca import co_pca, stack_layers

    meta = case.meta
    unet, vae = _stable_diffusion(case)
    size = re.search(r"DINOv2-([SBLg])/14", meta["description"])
    if size is None:
        raise UnknownVariant("no DINOv2 in its description")
    dino = Dino(MODELS[f"dinov2_vit{size[1].lower()}14"])
    recipe.fill(dino, meta["dino_recipe_seed"], meta.get("recipe_prefix", ""))
    dino.eval().requires_grad_(False)
    order = meta["dims_order"]
    results: Results = {}
    taps, tokens = [], []
    boxes = tile_boxes(meta["sd_canvas"], meta["sd_canvas"], meta["tile"])
    for i in (0, 1):
        canvases = {name: square(case.arrays[f"image{i}"], meta[f"{name}_canvas"]) for name in ("sd", "dino")}
        results |= {f"canvas_{name}{i}": canvas for name, canvas in canvases.items()}
        if _other_pillow(case):  # another release of Pillow resizes a little differently
            canvases = {name: case.arrays[f"canvas_{name}{i}"] for name in canvases}
        pixels = {
            n: torch.from_numpy(np.array(c)).permute(2, 0, 1).float() / 255 for n, c in canvases.items()
        }
        with torch.no_grad():
            latents = encode_moments(vae, cut_tiles(pixels["sd"], boxes))[0] * vae.config.scaling_factor
            noisy, step = noised(
                latents, fixed_noise((latents.shape[-2], latents.shape[-1])), meta["timestep"]
            )
            found = read_features(unet, noisy, step, case.tensor("uncond")[None], order)
            side = meta["sd_canvas"]
            taps.append(
                {
                    name: average_tiles(found[name], boxes, feature_size(side, side, name), STRIDES[name])
                    for name in order
                }
            )
            tokens.append(dino.features(pixels["dino"][None], layer=meta["dino_layer"]).patches[0])
        results |= {f"{name}_{i}": taps[i][name] for name in order} | {f"dino{i}": tokens[i]}
    dims = dict(zip(order, meta["dims"], strict=True))
    for method in ("lowrank", "exact"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.recipe_seed)
            pair = co_pca(taps[0], taps[1], dims, method)  # type: ignore[arg-type]
        fused = [
            fuse(stack_layers(layers).flatten(1).T, tokens[i], **_fusion_options(case))
            for i, layers in enumerate(pair)
        ]
        matrix = similarity(fused[0], fused[1])
        best = matrix.topk(2, dim=1).values
        margin, nearest = best[:, 0] - best[:, 1], matrix.argmax(1)
        if method == "lowrank":
            results |= {"sim": matrix, "nn": nearest, "margin": margin}
        else:
            results |= {"sim_exact_pca": matrix, "nn_exact_pca": nearest}
            stride = meta["dino_canvas"] // meta["grid"]
            results["pred_xy_exact_pca"] = cell_points(nearest.numpy(), meta["grid"], stride, stride)
            for name, options in case.outputs.items():
                limit = re.search(
                    r"margin of the exact similarities > ([\d.e-]+)", options.get("only_where", "")
                )
                if limit:
                    results[f"{name}:where"] = margin > float(limit[1])
    return results


def _other_pillow(case: Case) -> bool:
    import PIL

    stated = re.search(r"Pillow than ([\d.]+\d)", case.meta.get("description", ""))
    return stated is not None and stated[1] != PIL.__version__


# Measures, flow, swap ---------------------------------------------------------------------------------------


@check("sd_dino", "pck")
def pck(case: Case) -> Results:
    """Shares of correct points in the four published conventions."""
    from vision3d.evaluation.correspondence import CONVENTIONS, PCK, PairErrors

    image = re.search(r"image threshold \((\d+)\)", case.meta["description"])
    if image is None and any(re.search("_image(_each)?$", name) for name in case.outputs):
        raise UnknownVariant("no image threshold in its description")
    side = float(image[1]) if image else math.nan
    pairs = []
    for i, box in enumerate(case.arrays["thresholds"]):
        errors = np.linalg.norm(case.arrays[f"gt{i}"] - case.arrays[f"pred{i}"], axis=1)
        pairs.append(PairErrors("", errors, float(box), side))
    scores = PCK(pairs, tuple(case.meta["alpha"]))
    results: Results = {name: scores.of(name) for name in CONVENTIONS}
    for threshold in ("bbox", "image"):
        # a pair without points has no share, but its row
        each = np.full((len(pairs), len(scores.alphas)), np.nan)
        each[[len(pair.errors) > 0 for pair in pairs]] = scores.per_image_each(threshold)
        results[f"per_image_{threshold}_each"] = each
    return results


@check("sd_dino", "tss_flow")
def tss_flow(case: Case) -> Results:
    """Flow from nearest cells with the published slip, its errors, padding of pairs, colours, absolute places."""
    from vision3d.colour import colour_flow
    from vision3d.evaluation.correspondence import flow_errors
    from vision3d.evaluation.datasets.tss import pad_pair
    from vision3d.pipelines.sd_dino.flow import PUBLISHED_CELLS, mapping, published_flow
    from vision3d.pipelines.sd_dino.swap import nearest_rows

    grid = case.arrays["src_desc"].shape[-2:]
    source, target = (case.tensor(n).flatten(1).T for n in ("src_desc", "trg_desc"))
    nearest = nearest_rows(target, source)
    results: Results = {}
    for name in case.outputs:
        if match := re.fullmatch(r"flow(\d+)", name):
            shape = tuple(map(int, case.arrays[f"shape{match[1]}"]))
            results[name] = published_flow(nearest, grid, shape, parity=True, cells=PUBLISHED_CELLS)  # type: ignore[arg-type]
        elif match := re.fullmatch(r"metrics(\d+)", name):
            i = match[1]
            estimate, truth = (case.arrays[n].transpose(1, 2, 0) for n in (f"flow{i}", f"gt{i}"))
            length = max(*estimate.shape[:2], 3)
            errors = flow_errors(estimate, truth, case.arrays[f"mask{i}"], length)
            results[name] = np.array([errors.aepe, *errors.pck, errors.smoothness, errors.true_smoothness])
        elif match := re.fullmatch(r"color_image_max(\d+)", name):
            results[name] = colour_flow(case.arrays["color_flow"], float(match[1]))
    padded = pad_pair(*(case.arrays[f"pad_{n}"] for n in ("im1", "im2", "flow", "mask")))
    results |= {f"pad_out_{n}": a for n, a in zip(("im1", "im2", "flow", "mask"), padded, strict=True)}
    return results | {"mapping": mapping(case.arrays["color_flow"])}


@check("sd_dino", "swap")
def swap(case: Case) -> Results:
    """One image's colours, and any other table, in the other's shape."""
    from vision3d.pipelines.sd_dino.swap import swap_colours

    features = case.tensor("feat0"), case.tensor("feat1")
    masks = case.tensor("mask0"), case.tensor("mask1")
    image, resolution = case.arrays["image1"], case.meta["resolution"]
    out, source = swap_colours(*features, image, masks, resolution, parity=True)
    table = case.arrays["color_src"]
    colours, _ = swap_colours(*features, image, masks, resolution, table=table, parity=True)
    return {"swap_out": out, "swap_src": source, "color_out": colours}
