"""Fixtures of known kinds with other sizes and options: what the fixture says decides, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vision3d.evaluation.parity import recipe
from vision3d.evaluation.parity.case import UnknownVariant
from vision3d.evaluation.parity.runner import run_parity
from vision3d.evaluation.parity.schedules import check_schedule

torch = pytest.importorskip("torch")
F = torch.nn.functional

EXACT = {"atol": 0, "rtol": 0}
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
NEAR = {"atol": 1e-4, "rtol": 0}


def verdicts(folder: Path, arrays: dict[str, Any], outputs: dict[str, Any], **meta: Any) -> dict[str, str]:
    """Verdicts of one fixture's outputs; "-" is the case as a whole."""
    np.savez(folder / "twin.npz", **arrays)
    (folder / "twin.json").write_text(json.dumps({"outputs": outputs, "description": "", **meta}))
    (case,) = run_parity(folder, slow=True).cases
    return {output.output: output.verdict for output in case.outputs}


def stored(golden: Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A fixture of the repository, to be changed."""
    with np.load(golden / f"{name}.npz") as arrays:
        meta = json.loads((golden / f"{name}.json").read_text())
        meta.pop("arrays", None)  # their shapes
        return meta, dict(arrays)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def passed(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "pass")


# ---- SD+DINO


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("order", "weights"),
    [
        ("SPair rule", [1.0, 0.7, 0.4, 0.9, 1.3]),
        ("SPair rule", [1.0, 0.7, 0.4]),
        ("TSS rule", [1.0, 0.7, 0.4, 0.9, 1.3]),
        ("TSS rule", [1.0, 0.7, 0.4]),
    ],
)
def test_weights_act_in_the_order_that_the_fixture_says(tmp_path, order, weights):
    """On another canvas, with layers of different lengths."""
    dims, count, side, stride = [2, 3, 4], 5, 50, 10
    factors = np.repeat(weights[:3], dims)
    arrays = {f"sd{i}": random(count**2, 9, seed=i) for i in (0, 1)}
    arrays |= {f"dino{i}": random(count**2, 6, seed=2 + i) for i in (0, 1)}
    halves = (*weights[3:], 1, 1) if order.startswith("SPair") else (1, 1)
    for i in (0, 1):
        sd = arrays[f"sd{i}"]
        sd = unit(sd * factors) if order.startswith("SPair") else unit(sd) * factors
        arrays[f"fused{i}"] = np.concatenate([halves[0] * sd, halves[1] * unit(arrays[f"dino{i}"])], axis=1)
    kps = np.array([[3.0, 47, 1], [49, 12, 1], [20, 20, 1]])
    columns, rows = np.floor(kps[:, :2] / side * count).astype(int).T
    distances = np.linalg.norm(arrays["fused0"][:, None] - arrays["fused1"] + 1e-6, axis=-1)
    arrays |= {"kps": kps, "kps_cell": rows * count + columns, "nn_1_to_2": distances.argmin(1)}
    arrays["sim_l2"] = -distances
    found = arrays["nn_1_to_2"][arrays["kps_cell"]]
    arrays["pred_xy"] = np.stack([found % count, found // count], 1) * stride + stride // 2 - 0.5
    outputs = dict.fromkeys(("fused0", "fused1", "sim_l2", "pred_xy"), CLOSE)
    outputs |= dict.fromkeys(("kps_cell", "nn_1_to_2"), EXACT)
    meta = {"system": "sd_dino", "kind": "fuse_match", "order": order, "weights": weights, "dims": dims}
    meta["description"] = "keypoints on a 50-px canvas, stride 10"
    assert verdicts(tmp_path, arrays, outputs, **meta) == passed(*outputs)
    for other in ({"order": "by feel"}, {"description": "keypoints on some canvas"}):
        assert verdicts(tmp_path, arrays, outputs, **{**meta, **other}) == {"-": "unknown"}


def test_noise_is_resized_to_the_latent_and_stored_as_the_sizes_or_words_say(tmp_path):
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(42))
    resized = F.interpolate(noise, size=(24, 40), mode="bicubic", align_corners=False)[0].numpy()
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[50]
    latent = random(4, 24, 40)
    noisy = (abar**0.5 * latent + (1 - abar) ** 0.5 * resized).astype(np.float32)
    arrays = {"latent": latent, "noise": noise[0, :, ::13, ::13].numpy(), "noisy_50": noisy[:, ::5, ::5]}
    arrays["noise_24x40"] = resized[:, ::2, ::2]
    outputs = {"noise": EXACT, "noisy_50": CLOSE, "noise_24x40": CLOSE}
    meta = {"system": "sd_dino", "kind": "noise_schedule", "noise_slice": "spatial ::13"}
    assert verdicts(tmp_path, arrays, outputs, **meta) == passed(*outputs)
    arrays["noise"] = noise[0, :, ::30, ::30].numpy()
    for kept in ("spatial ::30", "spatial ::31"):  # both leave 3 x 3 values
        found = verdicts(tmp_path, arrays, outputs, **{**meta, "noise_slice": kept})
        assert found["noise"] == ("pass" if kept.endswith("30") else "fail")
    for kept in ("full", "the corners"):
        assert verdicts(tmp_path, arrays, outputs, **{**meta, "noise_slice": kept}) == {"-": "unknown"}


def test_published_flow_is_divided_by_60_whatever_the_grid(tmp_path):
    source, target = random(3, 8, 8), random(3, 8, 8, seed=1)
    distances = np.linalg.norm(target.reshape(3, 64).T[:, None] - source.reshape(3, 64).T, axis=-1)
    nearest = distances.argmin(1).reshape(8, 8)
    y, x = np.mgrid[:8, :8]
    cells = torch.from_numpy(np.stack([nearest % 8 - x, nearest / 8 - y]).astype(np.float32))
    flow = F.interpolate(cells[None], size=(48, 48), mode="bilinear", align_corners=False)[0] * 48 / 60
    padding = {"pad_im1": np.zeros((2, 2, 3), np.uint8), "pad_im2": np.zeros((2, 2, 3), np.uint8)}
    padding |= {"pad_flow": np.zeros((2, 2, 2)), "pad_mask": np.zeros((2, 2))}
    arrays = {"src_desc": source, "trg_desc": target, "shape0": np.array([30, 48]), **padding}
    arrays |= {"flow0": flow[:, 9:39].numpy(), "color_flow": np.zeros((2, 2, 2))}
    found = verdicts(tmp_path, arrays, {"flow0": CLOSE}, system="sd_dino", kind="tss_flow")
    assert found == passed("flow0")


def test_parts_of_other_tap_modes_are_compared_and_unknown_modes_named(tmp_path, golden):
    meta, arrays = stored(golden, "sd_dino/sd_features_tiled_wide")
    meta["slices"] = {"encoder_s5_slice": "::16"}
    arrays["encoder_s5_slice"] = arrays["encoder_s5"][::16]
    arrays["encoder_s4_slice"] = arrays["encoder_s4"][::4]  # sizes leave no choice
    arrays["skip_s5"] = arrays["encoder_s5"]
    options = meta["outputs"]["s5"]
    meta["outputs"] = dict.fromkeys(("encoder_s5_slice", "encoder_s4_slice", "skip_s5"), options)
    found = verdicts(tmp_path, arrays, **meta)
    assert found == {**passed("encoder_s5_slice", "encoder_s4_slice"), "skip_s5": "unknown"}


def test_samples_are_as_many_as_are_stored(tmp_path, golden):
    meta, arrays = stored(golden, "sd_dino/spair_loader")
    arrays["thresholds_sub"] = arrays["thresholds"][np.random.RandomState(42).choice(6, 3)]
    meta |= {"description": "some of them", "outputs": {"thresholds_sub": CLOSE}}
    assert verdicts(tmp_path, arrays, **meta) == passed("thresholds_sub")


def test_shares_have_a_row_per_pair_and_the_image_threshold_is_the_stated_one(tmp_path):
    arrays = {"thresholds": np.array([100.0, 50.0, 80.0])}
    for i, errors in enumerate(([1.0, 7, 30], [], [2.0, 9])):
        arrays[f"gt{i}"] = np.zeros((len(errors), 2))
        arrays[f"pred{i}"] = np.stack([np.array(errors), np.zeros(len(errors))], axis=1)
    empty = [np.nan, np.nan]
    arrays["per_image_bbox_each"] = np.array([[2 / 3, 1 / 3], empty, [1 / 2, 1 / 2]])
    arrays["per_image_image_each"] = np.array([[1, 2 / 3], empty, [1, 1]])
    arrays["per_image_image"] = np.array([1, 5 / 6])
    outputs = dict.fromkeys(("per_image_bbox_each", "per_image_image_each", "per_image_image"), CLOSE)
    meta = {"system": "sd_dino", "kind": "pck", "alpha": [0.1, 0.05]}
    meta["description"] = "bbox threshold (thresholds) / image threshold (400)"
    assert verdicts(tmp_path, arrays, outputs, **meta) == passed(*outputs)
    assert verdicts(tmp_path, arrays, outputs, **{**meta, "description": ""}) == {"-": "unknown"}


WIDTH, PATCH, GRID = 8, 4, 3


def norm(x: torch.Tensor, w: Any, name: str) -> torch.Tensor:
    return F.layer_norm(x, (WIDTH,), w(f"{name}.weight", WIDTH), w(f"{name}.bias", WIDTH), 1e-6)


def linear(x: torch.Tensor, w: Any, name: str, inner: int, outer: int) -> torch.Tensor:
    return F.linear(x, w(f"{name}.weight", outer, inner), w(f"{name}.bias", outer))


def imagenet(image: np.ndarray) -> torch.Tensor:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.from_numpy(image).float() / 255 - mean) / std).permute(2, 0, 1)[None]


def embedded(pixels: torch.Tensor, w: Any) -> torch.Tensor:
    """Tokens (N, C) that enter the blocks of a DINO on its native grid, the class token first."""
    patch, bias = w("patch_embed.proj.weight", WIDTH, 3, PATCH, PATCH), w("patch_embed.proj.bias", WIDTH)
    x = F.conv2d(pixels, patch, bias, PATCH).flatten(2)[0].T
    return torch.cat([w("cls_token", 1, 1, WIDTH)[0], x]) + w("pos_embed", 1, GRID**2 + 1, WIDTH)[0]


def projected(x: torch.Tensor, w: Any) -> torch.Tensor:
    """Queries, keys and values (3, 2 heads, N, 4) of the first block."""
    qkv = linear(norm(x, w, "blocks.0.norm1"), w, "blocks.0.attn.qkv", WIDTH, 3 * WIDTH)
    return qkv.reshape(-1, 3, 2, 4).permute(1, 2, 0, 3)


def one_block(pixels: torch.Tensor, w: Any, hidden: int, gated: bool) -> torch.Tensor:
    """Tokens (N, C) of the first block of a DINOv2, the final norm not applied."""
    x = embedded(pixels, w)
    q, k, v = projected(x, w)
    mixed = ((q @ k.mT / 2).softmax(-1) @ v).permute(1, 0, 2).reshape(-1, WIDTH)
    x = x + linear(mixed, w, "blocks.0.attn.proj", WIDTH, WIDTH) * w("blocks.0.ls1.gamma", WIDTH)
    y = norm(x, w, "blocks.0.norm2")
    if gated:
        gate, value = linear(y, w, "blocks.0.mlp.w12", WIDTH, 2 * hidden).split(hidden, dim=1)
        y = linear(gate * gate.sigmoid() * value, w, "blocks.0.mlp.w3", hidden, WIDTH)
    else:
        y = F.gelu(linear(y, w, "blocks.0.mlp.fc1", WIDTH, hidden))
        y = linear(y, w, "blocks.0.mlp.fc2", hidden, WIDTH)
    return x + y * w("blocks.0.ls2.gamma", WIDTH)


@pytest.mark.parametrize(
    ("layers", "hidden", "gated"),
    [
        ({}, 32, False),
        ({"mlp_ratio": 3}, 24, False),
        ({"ffn_layer": "swiglufused", "mlp_ratio": 4}, 24, True),
    ],
)
def test_dino_has_the_layers_that_the_fixture_says(tmp_path, layers, hidden, gated):
    image = np.random.default_rng(0).integers(0, 256, (GRID * PATCH, GRID * PATCH, 3), dtype=np.uint8)
    pixels = imagenet(image)

    def weight(name: str, *shape: int) -> torch.Tensor:
        return torch.from_numpy(recipe.tensor(f"dino.{name}", shape, 4))

    tokens = one_block(pixels, weight, hidden, gated)[1:].numpy()
    config = {"embed_dim": WIDTH, "depth": 1, "num_heads": 2, "patch_size": PATCH, "native_grid": GRID}
    config |= {"layer_scale": True, "layer_norm_eps": 1e-6, **layers}
    meta = {"system": "sd_dino", "kind": "dinov2_features", "recipe_seed": 4, "recipe_prefix": "dino."}
    given = {"image": image, "v2_token_0": tokens}, {"v2_token_0": CLOSE}
    assert verdicts(tmp_path, *given, **meta, config=config) == passed("v2_token_0")
    for other in ({"layer_norm_eps": 1e-5}, {"ffn_layer": "identity"}, {"qk_norm": True}):
        assert verdicts(tmp_path, *given, **meta, config={**config, **other}) == {"-": "unknown"}


def test_saliency_is_of_the_stated_heads(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (GRID * PATCH, GRID * PATCH, 3), dtype=np.uint8)
    config = {"embed_dim": WIDTH, "depth": 1, "num_heads": 2, "patch_size": PATCH, "native_grid": GRID}
    config |= {"layer_scale": False}
    pixels = imagenet(image)

    def weight(name: str, *shape: int) -> torch.Tensor:
        return torch.from_numpy(recipe.tensor(name, shape, 4))

    q, k, _ = projected(embedded(pixels, weight), weight)
    seen = (q[1, :1] @ k[1].mT / 2).softmax(-1)[0, 1:]
    saliency = ((seen - seen.min()) / (seen.max() - seen.min())).numpy()
    meta = {"system": "sd_dino", "kind": "dinov1_features", "recipe_seed": 4, "config": config}
    given = {"image": image, "v1_saliency_stride4": saliency}, {"v1_saliency_stride4": NEAR}
    found = verdicts(tmp_path, *given, **meta, description="CLS saliency (heads 1 of block 0)")
    assert found == passed("v1_saliency_stride4")


# ---- DM-Calib


def test_measures_are_the_named_ones_and_the_frame_the_stated_one(tmp_path):
    target = np.abs(random(6, 7)) + 1
    prediction = target * np.random.default_rng(1).uniform(0.7, 1.4, (6, 7))
    ratio = np.maximum(target / prediction, prediction / target)
    values = [(ratio < 1.25**0.5).mean(), (np.abs(prediction - target) / target).mean()]
    arrays = {"gt0": target, "pred0": prediction, "values0": np.array(values)}
    meta = {"system": "dmcalib", "kind": "metrics", "cases": [{"max_depth": 50, "relative": False}]}
    meta |= {"metric_names": ["delta05_acc", "abs_relative_difference"], "outputs": {"values0": CLOSE}}
    meta |= {"description": "the benchmark crop of a 370x1226 frame"}
    kitti = {"rows": [28, 370], "cols": [5, 1221]}
    assert verdicts(tmp_path, arrays, **meta, kitti=kitti) == passed("values0")
    assert verdicts(tmp_path, arrays, **meta, kitti={**kitti, "rows": [33, 375]}) == {"-": "fail"}
    assert verdicts(tmp_path, arrays, **meta, kitti={"kitti_crop_shape": [342, 1216]}) == {"-": "unknown"}
    for other in ({"description": "a crop"}, {"metric_names": ["delta05_acc", "d_median"]}):
        assert verdicts(tmp_path, arrays, **{**meta, **other}, kitti=kitti) == {"-": "unknown"}


def test_sizes_of_the_table_are_the_stated_ones(tmp_path):
    text = "resize_max_res(96)->w1,h1, _shapes to 96x96 ht,wt, pads l,r,t,b, then into canvas 60x64: h2,w2"
    table = np.array([[40, 20, 96, 48, 48, 96, 0, 0, 24, 24, 32, 64, 0, 0, 14, 14]])
    meta = {"system": "dmcalib", "kind": "preprocess", "input_columns": {"table": [0, 1]}, "images": []}
    given = {"table": table}, {"table": EXACT}
    assert verdicts(tmp_path, *given, **meta, description=text) == passed("table")
    assert verdicts(tmp_path, *given, **meta, description="sizes") == {"-": "unknown"}


@pytest.mark.parametrize(
    ("name", "order"), [("primedepth/depth_eval", "metric_order"), ("stablenormal/metrics_masked", "order")]
)
def test_unknown_measures_are_named(tmp_path, golden, name, order):
    meta, arrays = stored(golden, name)
    assert set(verdicts(tmp_path, arrays, **meta).values()) == {"pass"}
    meta[order] = [*meta[order][:-1], "ssim"]
    assert verdicts(tmp_path, arrays, **meta) == {"-": "unknown"}


def test_soft_masks_weigh_descriptors_and_colours(tmp_path):
    """Recomputed cell by cell, at the resolution of everything."""
    features = [random(5, 4, 4, seed=i) for i in (0, 1)]
    masks = [np.random.default_rng(i).choice([0.0, 0.3, 0.8], (4, 4)).astype(np.float32) for i in (2, 3)]
    image = np.random.default_rng(4).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    table = random(4, 4, 2, seed=5)
    rows = []
    for feature, mask in zip(features, masks, strict=True):
        weighted = (feature * mask).reshape(5, -1).T
        weighted[weighted.sum(1) == 0] = 1e5
        rows.append(weighted)
    nearest = np.linalg.norm(rows[0][:, None] - rows[1][None], axis=-1).argmin(1)
    source = image.astype(np.float32) * masks[1][..., None]
    source = (source - source.min()) / (source.max() - source.min())
    arrays = {"feat0": features[0], "feat1": features[1], "mask0": masks[0], "mask1": masks[1]}
    arrays |= {"image1": image, "color_src": table, "swap_src": source}
    arrays["swap_out"] = source.reshape(-1, 3)[nearest].reshape(4, 4, 3)
    arrays["color_out"] = table.reshape(-1, 2)[nearest].reshape(4, 4, 2)
    outputs = dict.fromkeys(("swap_out", "swap_src", "color_out"), CLOSE)
    meta = {"system": "sd_dino", "kind": "swap", "resolution": 4}
    assert verdicts(tmp_path, arrays, outputs, **meta) == passed(*outputs)


def test_distances_of_equal_descriptors_are_right_to_rounding():
    from vision3d.pipelines.sd_dino.fusion import similarity

    rows = 5 * torch.randn(20, 60, generator=torch.Generator().manual_seed(0))
    near = rows + 1e-3 * torch.randn(20, 60, generator=torch.Generator().manual_seed(1))
    want = -((rows.double() + 1e-6)[:, None] - near.double()[None]).norm(dim=-1)
    torch.testing.assert_close(similarity(rows, near, exact=True).double(), want, atol=1e-6, rtol=1e-6)


def test_refinement_may_lack_semantic_residuals():
    from vision3d.evaluation.parity.stablenormal import _stored_residuals

    assert _stored_residuals(SimpleNamespace(meta={"inputs": {"sample": {}}})) is None


# ---- schedules


def test_schedules_are_refused_for_what_would_change_them_and_nothing_else(tmp_path, golden):
    check_schedule({"eta": 0.0, "timestep_spacing": "leading", "thresholding": False, "beta_end": 0.012})
    check_schedule({"steps_offset": 7, "clip_sample_range": 1.0}, "steps_offset")
    for wrong in ({"beta_end": 0.02}, {"thresholding": True}, {"rescale_betas_zero_snr": True}, {"spin": 1}):
        with pytest.raises(UnknownVariant, match=next(iter(wrong))):
            check_schedule(wrong)
    meta, arrays = stored(golden, "backbone/ddim_conversions")
    outputs = {name: meta["outputs"][name] for name in ("timesteps", "v_prediction_3_prev")}
    scheduler = {**meta["scheduler"], "thresholding": False}
    assert verdicts(tmp_path, arrays, **{**meta, "outputs": outputs, "scheduler": scheduler}) == passed(
        *outputs
    )
    for name, field in (
        ("backbone/ddim_conversions", "scheduler"),
        ("dmcalib/calib_e2e", "scheduler_config"),
    ):
        meta, arrays = stored(golden, name)
        meta[field]["rescale_betas_zero_snr"] = True
        assert verdicts(tmp_path, arrays, **meta) == {"-": "unknown"}


@pytest.mark.parametrize(
    ("changed", "removed"),
    [
        ({"set_alpha_to_one": True}, ()),
        ({"timestep_spacing": "trailing"}, ()),
        ({"timestep_spacing": "linspace"}, ()),
        ({"clip_sample": True, "clip_sample_range": 0.7}, ()),
        ({"beta_schedule": "linear"}, ("beta_start", "beta_end")),
        ({}, ("steps_offset", "set_alpha_to_one", "clip_sample", "eta")),
        ({}, ("beta_schedule", "timestep_spacing")),
    ],
)
def test_other_schedules_step_as_the_published_scheduler_does(tmp_path, golden, changed, removed):
    from diffusers import DDIMScheduler

    meta, _ = stored(golden, "backbone/ddim_conversions")
    config = {k: v for k, v in meta["scheduler"].items() if k not in removed} | changed
    sample, model_out = random(2, 4, 6, 7), random(2, 4, 6, 7, seed=1)
    arrays: dict[str, Any] = {"sample": sample, "model_out": model_out}
    outputs: dict[str, Any] = {"timesteps": EXACT}
    for kind in ("epsilon", "v_prediction", "sample"):
        published = DDIMScheduler(**{k: v for k, v in config.items() if k != "eta"}, prediction_type=kind)
        published.set_timesteps(4)
        arrays["timesteps"] = published.timesteps.numpy()
        for index in (0, 2, 3):
            t = int(published.timesteps[index])
            step = published.step(torch.from_numpy(model_out), t, torch.from_numpy(sample))
            for name, value in (("prev", step.prev_sample), ("x0", step.pred_original_sample)):
                arrays[f"{kind}_{index}_{name}"] = value.numpy()
                outputs[f"{kind}_{index}_{name}"] = {**CLOSE, "prediction_type": kind, "step_index": index}
    given = {**meta, "scheduler": config, "n_steps": 4, "outputs": outputs}
    assert verdicts(tmp_path, arrays, **given) == passed(*outputs)


def test_the_final_value_of_the_heuristic_schedule_is_the_configured_one(tmp_path, golden):
    meta, arrays = stored(golden, "stablenormal/scheduler")
    arrays["final_alpha_cumprod"] = np.array([1 - 0.00085])
    meta["outputs"] = {"final_alpha_cumprod": {"atol": 1e-9, "rtol": 0}}
    meta["scheduler_config"]["set_alpha_to_one"] = False
    assert verdicts(tmp_path, arrays, **meta) == passed("final_alpha_cumprod")
    meta["scheduler_config"]["timestep_spacing"] = "trailing"
    assert verdicts(tmp_path, arrays, **meta) == {"-": "unknown"}


# ---- StableNormal


def test_stages_start_from_what_the_fixture_says(tmp_path, golden):
    meta, arrays = stored(golden, "stablenormal/prepost")
    seen = F.interpolate(
        torch.from_numpy(arrays["pre_60"]), (56, 56), mode="bicubic", align_corners=True, antialias=True
    )
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    seen = ((seen.numpy() + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    raw = random(1, 3, 48, 64)
    pad_h, pad_w, height, width = arrays["pre_60_pad_orig"]
    cut = torch.from_numpy(raw[..., : 48 - pad_h, : 64 - pad_w])
    field = F.interpolate(cut, (int(height), int(width)), mode="bilinear", align_corners=False)[0]
    field = (field / field.norm(dim=0)).permute(1, 2, 0).numpy()
    arrays |= {"dino_pre_56_slice": seen[..., 10:30, 7:20], "other_decode": raw, "post_refine": field}
    meta["outputs"] = {"dino_pre_56_slice": CLOSE, "post_refine": CLOSE}
    meta["description"] = meta["description"].replace("100:140, cols 200:240", "10:30, cols 7:20")
    meta["stage_inputs"] |= {"dino_pre_*": "pre_60", "post_*": "other_decode, pre_60_pad_orig"}
    assert verdicts(tmp_path, arrays, **meta) == passed("dino_pre_56_slice", "post_refine")
    for stage in ("dino_pre_*", "post_*"):
        stages = {name: text for name, text in meta["stage_inputs"].items() if name != stage}
        assert verdicts(tmp_path, arrays, **{**meta, "stage_inputs": stages}) == {"-": "unknown"}
    assert verdicts(tmp_path, arrays, **{**meta, "description": "a slice"}) == {"-": "unknown"}


def test_hub_layout_dino_has_recipe_values_under_the_stated_prefix(tmp_path):
    shapes: dict[str, tuple[int, ...]] = {}

    def weight(name: str, *shape: int) -> torch.Tensor:
        shapes[name] = shape
        return torch.from_numpy(recipe.tensor(f"backbone.{name}", shape, 4))

    pixels = random(1, 3, GRID * PATCH, GRID * PATCH)
    tokens = one_block(torch.from_numpy(pixels), weight, 16, gated=False)
    tokens = norm(tokens, weight, "norm")
    weight("mask_token", 1, WIDTH)
    meta = {"system": "stablenormal", "kind": "dinov2", "recipe_seed": 4, "recipe_prefix": "backbone."}
    meta |= {"key_shapes": shapes, "inputs": ["x_12x12"], "outputs": {"patch_12x12": CLOSE}}
    meta["config"] = {"num_heads": 2, "interpolate_offset": 0.1, "interpolate_antialias": False}
    arrays = {"x_12x12": pixels, "patch_12x12": tokens[None, 1:].numpy()}
    assert verdicts(tmp_path, arrays, **meta) == passed("patch_12x12")


# ---- PrimeDepth


@pytest.mark.parametrize(("max_size", "shape"), [(64, (16, 24)), (16, (20, 28))])
def test_only_images_that_were_made_smaller_are_made_larger(tmp_path, monkeypatch, max_size, shape):
    """Networks that hand on the pixels they were given stand in for the published ones."""
    from vision3d.evaluation.parity import primedepth

    def truncated(pixels: torch.Tensor) -> torch.Tensor:
        grey = pixels.mean(1, keepdim=True)
        return grey[..., : grey.shape[-2] // 8 * 8, : grey.shape[-1] // 8 * 8]

    networks = SimpleNamespace(
        encode=lambda pixels, noise: pixels, refine=lambda x, noise, context: x, predict_depth=truncated
    )
    monkeypatch.setattr(primedepth, "_pipeline", lambda case: networks)
    image = np.random.default_rng(0).integers(0, 256, (20, 28, 3), dtype=np.uint8)
    grey = image.mean(-1) / 255
    depth = grey[: shape[0], : shape[1]] if max_size == 64 else np.zeros(shape)
    arrays = {"image": image, "depth": depth.astype(np.float32)}
    arrays |= dict.fromkeys(("noise_posterior", "noise_q", "context"), np.zeros(1, np.float32))
    tolerance = {"atol": 1e-6 if max_size == 64 else 1, "rtol": 0}
    meta = {"system": "primedepth", "kind": "predict", "max_size": max_size}
    assert verdicts(tmp_path, arrays, {"depth": tolerance}, **meta) == passed("depth")


def test_text_towers_have_the_stated_activation_and_prefix(tmp_path):
    width, shapes = 16, {}

    def weight(name: str, *shape: int) -> torch.Tensor:
        name = f"cond_stage_model.model.{name}"
        shapes[name] = shape
        return torch.from_numpy(recipe.tensor(f"ema.{name}", shape, 3))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, (width,), weight(f"{name}.weight", width), weight(f"{name}.bias", width))

    def linear(x: torch.Tensor, name: str, inner: int, outer: int, join: str = ".") -> torch.Tensor:
        return F.linear(x, weight(f"{name}{join}weight", outer, inner), weight(f"{name}{join}bias", outer))

    ids = [49406, 320, 2368, 49407] + [0] * 73  # a cat
    table = weight("token_embedding.weight", 49408, width)
    x, block = table[ids] + weight("positional_embedding", 77, width), "transformer.resblocks.0"
    qkv = linear(norm(x, f"{block}.ln_1"), f"{block}.attn.in_proj", width, 3 * width, "_")
    q, k, v = qkv.reshape(77, 3, 2, 8).permute(1, 2, 0, 3)
    causal = torch.full((77, 77), -torch.inf).triu(1)
    mixed = ((q @ k.mT / 8**0.5 + causal).softmax(-1) @ v).permute(1, 0, 2).reshape(77, width)
    x = x + linear(mixed, f"{block}.attn.out_proj", width, width)
    inner = linear(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc", width, 64)
    x = x + linear(inner * (1.702 * inner).sigmoid(), f"{block}.mlp.c_proj", 64, width)
    states = norm(x, "ln_final")[None].numpy()
    meta = {"system": "primedepth", "kind": "text_encoder", "recipe_seed": 3, "recipe_prefix": "ema."}
    meta |= {"key_shapes": shapes, "prompts": ["a cat"]}
    given = {"embedding": states, "tokens": np.array([ids])}, {"tokens": EXACT, "embedding": CLOSE}
    config = {"heads": 2, "layer": "last", "act": "quick_gelu"}
    assert verdicts(tmp_path, *given, **meta, config=config) == passed("tokens", "embedding")
    assert verdicts(tmp_path, *given, **meta, config={**config, "act": "relu"}) == {"-": "unknown"}


# ---- the backbone


def test_taps_lie_at_the_stated_modules_and_no_time_vector_is_needed(tmp_path):
    from diffusers import UNet2DConditionModel

    config = {"block_out_channels": [32, 64], "layers_per_block": 1, "cross_attention_dim": 8}
    config |= {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "attention_head_dim": 4}
    config |= {"up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "sample_size": 8}
    unet = UNet2DConditionModel(**config).eval()
    recipe.fill(unet, 5)
    taps = {"s4": "up_blocks.0.resnets.1", "s3": "up_blocks.1.attentions.0", "up": "up_blocks.0.upsamplers.0"}
    taps |= {"level": "up_blocks.1", "start": "conv_in", "down": "down_blocks.0.attentions.0"}
    taps |= {"half": "down_blocks.0.downsamplers.0", "low": "down_blocks.1.resnets.0"}
    arrays: dict[str, np.ndarray] = {}
    for name, path in taps.items():
        unet.get_submodule(path).register_forward_hook(
            lambda _, __, out, name=name: arrays.update(
                {name: (out if torch.is_tensor(out) else out[0]).detach().numpy()}
            )
        )
    sample, context, t = random(2, 4, 8, 8), random(2, 5, 8, seed=1), np.array([100, 7])
    with torch.no_grad():
        out = unet(torch.from_numpy(sample), torch.from_numpy(t), torch.from_numpy(context)).sample
    arrays |= {"out": out.numpy(), "sample": sample, "context": context, "timesteps": t}
    outputs = dict.fromkeys((*taps, "out"), NEAR)
    meta = {"system": "backbone", "kind": "unet_sd15_real_width", "recipe_seed": 5, "config": config}
    assert verdicts(tmp_path, arrays, outputs, **meta, taps=taps) == passed(*outputs)
    assert verdicts(tmp_path, arrays, outputs, **meta, taps={"s4": "time_embedding"}) == {"-": "unknown"}
