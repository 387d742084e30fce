"""Checks of DM-Calib: codec, preprocessing, both networks' whole passes, augmentation, metrics, key tables."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vision3d.evaluation.parity import recipe
from vision3d.evaluation.parity.case import Case, UnknownVariant
from vision3d.evaluation.parity.registry import Results, check
from vision3d.evaluation.parity.schedules import Schedule

REFERENCE_RUNS = 20


def _camera(K: np.ndarray, height: int, width: int) -> Any:
    from vision3d.camera import Intrinsics

    return Intrinsics.from_K(K, width, height)


@check("dmcalib", "encode")
def encode(case: Case) -> Results:
    """Intrinsics to angles and to the first two channels of the Camera Image."""
    from vision3d.pipelines.dmcalib.camera_image import angles_to_channels, encode_angles

    results: Results = {}
    for i, size in enumerate(case.meta["cases"]):
        angles = encode_angles(_camera(case.arrays[f"K{i}"], size["h"], size["w"]))
        results[f"angles{i}"], results[f"camera{i}"] = angles, angles_to_channels(angles)
    return results


@check("dmcalib", "decode", options=("mode",))
def decode(case: Case) -> Results:
    """Camera Images back to intrinsics: the published fit, and ours against the camera that was encoded."""
    from vision3d.pipelines.dmcalib.camera_image import decode_intrinsics

    results: Results = {}
    for name, output in case.outputs.items():
        index = int(name.lstrip("abcdefghijklmnopqrstuvwxyz_"))
        image = case.arrays[f"image{index}"]
        left, right, top, bottom = case.meta["cases"][index]["pad_left_right_top_bottom"]
        image = image[:, top : image.shape[1] - bottom, left : image.shape[2] - right]
        if output["mode"] == "robust":
            results[name] = decode_intrinsics(image, mode="robust").values
        elif output["mode"] == "reference":
            # A fit in which every pixel counts does not depend on what was drawn.
            runs = [decode_intrinsics(image, mode="reference")]
            if runs[0].inlier_ratio < 1:
                runs += [decode_intrinsics(image, mode="reference", seed=s) for s in range(1, REFERENCE_RUNS)]
            results[name] = np.stack([run.values for run in runs])
        else:
            raise UnknownVariant(f"decoding mode {output['mode']!r}")
    return results


@check("dmcalib", "preprocess")
def preprocess(case: Case) -> Results:
    """Sizes and paddings, PIL's resize, and the padded picture."""
    from vision3d.pipelines.dmcalib.preprocess import Canvas, resize_image, to_tensor, working_size

    rows = []
    columns = case.meta["input_columns"]["table"]
    sizes = re.search(
        r"resize_max_res\((\d+)\).*? to (\d+)x(\d+).*?canvas (\d+)x(\d+)", case.meta["description"]
    )
    if sizes is None:
        raise UnknownVariant("no resolution and canvases of the table in its description")
    side, *canvases = map(int, sizes.groups())
    for width, height in case.arrays["table"][:, columns].tolist():
        w, h = working_size(width, height, side)
        square, wide = Canvas.fit(h, w, *canvases[:2]), Canvas.fit(height, width, *canvases[2:])
        row = [width, height, w, h]
        for canvas in (square, wide):
            row += [canvas.height, canvas.width, canvas.left, canvas.right, canvas.top, canvas.bottom]
        rows.append(row)
    results: Results = {"table": np.array(rows)}
    for i, options in enumerate(case.meta["images"]):
        image, side = case.arrays[f"rgb{i}"], options["R"]
        size = working_size(image.shape[1], image.shape[0], side)
        small = resize_image(image, size)
        canvas = Canvas.fit(size[1], size[0], side, side)
        results[f"resized{i}"], results[f"padded{i}"] = small, canvas.pad(to_tensor(small))[0]
    return results


@check("dmcalib", "unproject")
def unproject(case: Case) -> Results:
    """Angles and depth to points."""
    from vision3d.pipelines.dmcalib.camera_image import unproject_angles

    return {"points": unproject_angles(case.arrays["angles"], case.arrays["depth"])}


@check("dmcalib", "augment_crop")
def augment_crop(case: Case) -> Results:
    """The training's crop-zoom, with the published draws."""
    from vision3d.pipelines.dmcalib.augmentation import crop_zoom

    results: Results = {}
    for i, options in enumerate(case.meta["cases"]):
        image, K = case.arrays[f"rgb{i}"], case.arrays[f"K{i}"]
        height, width = image.shape[1:]
        draws = np.random.RandomState(options["seed"])
        draws.uniform(0, 1)  # whether to leave the picture as it is
        factors = [draws.uniform(1, 2)]
        factors.append(factors[0] if options["tied"] else draws.uniform(1, 2))
        enlarged = math.ceil(width * factors[0]), math.ceil(height * factors[1])
        x = int(draws.randint(0, enlarged[0] - width + 1))
        y = int(draws.randint(0, enlarged[1] - height + 1))
        results[f"out{i}"], results[f"Kout{i}"], results[f"T{i}"] = crop_zoom(image, K, enlarged, (x, y))
    return results


def _networks(case: Case) -> dict[str, Any]:
    """UNet, autoencoder and replaced decoder of a case, filled with recipe values."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from vision3d.pipelines.dmcalib.checkpoint import build_decoder

    seeds: Mapping[str, int] = case.meta["recipe_seeds"]
    unknown = set(seeds) - {"unet", "vae", "vae.decoder"}
    if unknown or case.meta.get("recipe_prefix", ""):
        raise UnknownVariant(f"recipe seeds of {sorted(unknown)} or a prefix")
    networks: dict[str, Any] = {
        "unet": UNet2DConditionModel(**case.meta["unet_config"]),
        "vae": AutoencoderKL(**case.meta["vae_config"]),
    }
    if "vae.decoder" in seeds:
        networks["vae.decoder"] = build_decoder(networks["vae"].config)
    for name, network in networks.items():
        recipe.fill(network.eval(), seeds[name])
    return networks


@check("dmcalib", "calib_e2e")
def calibration(case: Case) -> Results:
    """From a photograph and noise to the mean Camera Image."""
    import torch

    from vision3d.pipelines.dmcalib.checkpoint import Contexts
    from vision3d.pipelines.dmcalib.pipeline import DMCalib
    from vision3d.pipelines.dmcalib.preprocess import Canvas, resize_image, to_tensor, working_size

    schedule = Schedule.of(case.meta["scheduler_config"], case.meta["num_inference_steps"])
    networks = _networks(case)
    pipeline = DMCalib(
        networks["vae"], networks["unet"], contexts=Contexts({"": case.tensor("text_embedding")[0]})
    )
    image, side = case.arrays["rgb"], case.meta["R"]
    size = working_size(image.shape[1], image.shape[0], side)
    padded = Canvas.fit(size[1], size[0], side, side).pad(to_tensor(resize_image(image, size)))
    start = case.tensor("latents_init")
    results: Results = {"padded": padded[0], "timesteps": schedule.timesteps}
    results["image_latent_unscaled"] = unscaled = pipeline.encode(padded)
    scaled = (unscaled * pipeline.latent_scale).expand(len(start), -1, -1, -1)
    latents = pipeline.denoise(
        scaled, start, pipeline.contexts[""], schedule.timesteps,
        step=lambda out, t, latents: schedule.step(out, t, latents)[0], probe=results.__setitem__,
    )  # fmt: skip
    saved = [results[f"latents_step{step}"] for step in case.meta["saved_steps"]]
    results["latents_step"] = torch.stack(saved)
    results["image"] = picture = pipeline.decode(latents)
    eight_bits = (picture * 255).round()
    results["image_u8"] = eight_bits.permute(0, 2, 3, 1).to(torch.uint8)
    results["camera_mean"] = (eight_bits / 255).mean(dim=0)
    return results


@check("dmcalib", "depth_e2e")
def metric_depth(case: Case) -> Results:
    """From a photograph and its camera to depth, in both scales."""
    import torch

    from vision3d.pipelines.dmcalib.camera_image import angles_to_channels, encode_angles
    from vision3d.pipelines.dmcalib.checkpoint import Contexts
    from vision3d.pipelines.dmcalib.options import CalibrationOptions
    from vision3d.pipelines.dmcalib.pipeline import (
        DEPTH_TIMESTEP,
        DMCalib,
        depth_from_output,
        display_depth,
        resize_depth,
    )

    if case.meta["timestep"] != DEPTH_TIMESTEP:
        raise UnknownVariant(f"timestep {case.meta['timestep']}")
    networks = _networks(case)
    pipeline = DMCalib(
        networks["vae"],
        networks["unet"],
        networks["unet"],
        networks["vae.decoder"],
        Contexts({"": case.tensor("text_embedding")[0]}),
    )
    image = case.arrays["rgb"]
    camera = _camera(case.arrays["K"], *image.shape[:2])
    results: Results = {"camera": angles_to_channels(encode_angles(camera))}
    options = CalibrationOptions(exact_size=False, scale_10=True)
    pipeline.depth_share(image, camera, "", options, probe=results.__setitem__)
    size = tuple(case.meta["match_input_res_wh"])
    for name, ten in (("scale1", False), ("scale10", True)):
        share = depth_from_output(results["decoder_raw"], ten)[0]
        results[f"process_{name}"] = share
        results[f"depth_{name}"] = np.clip(resize_depth(share.numpy(), size), 0, 1)
        results[f"re_depth_{name}"] = resize_depth(display_depth(share).numpy(), size)
    assert isinstance(results["decoder_raw"], torch.Tensor)
    return results


@check("dmcalib", "metrics")
def metrics(case: Case) -> Results:
    """The eleven published depth measures, with alignment where the case asks for it; KITTI's crop window."""
    from vision3d.evaluation.metrics import delta_accuracy, depth_metrics, fit_affine
    from vision3d.evaluation.protocols import DMCALIB_KITTI_CROP, kitti_crop_origin

    kitti = case.meta.get("kitti")
    if kitti is not None:
        # Not an output with a tolerance, but the rule must hold all the same.
        frame = re.search(r"(\d+)x(\d+) frame", case.meta["description"])
        if frame is None or not {"rows", "cols"} <= set(kitti):
            raise UnknownVariant("no frame, rows or columns of KITTI's crop")
        left, top = kitti_crop_origin(int(frame[1]), int(frame[2]), DMCALIB_KITTI_CROP)
        window = [top, top + DMCALIB_KITTI_CROP[0]], [left, left + DMCALIB_KITTI_CROP[1]]
        if window != (kitti["rows"], kitti["cols"]):
            raise AssertionError(f"KITTI window {window} instead of {kitti['rows'], kitti['cols']}")
    names = {
        "abs_relative_difference": "abs_rel",
        "squared_relative_difference": "sq_rel",
        "rmse_linear": "rmse",
        "rmse_log": "rmse_log",
        "log10": "log10",
        "delta05_acc": "delta05",
        "delta1_acc": "delta1",
        "delta2_acc": "delta2",
        "delta3_acc": "delta3",
        "i_rmse": "i_rmse",
        "silog_rmse": "silog",
    }
    if unknown := [name for name in case.meta["metric_names"] if name not in names]:
        raise UnknownVariant(f"metric {unknown[0]!r}")
    results: Results = {}
    for i, options in enumerate(case.meta["cases"]):
        targets, predictions = (case.arrays[f"{n}{i}"].astype(np.float64) for n in ("gt", "pred"))
        size = targets.shape[-2:]
        rows = []
        for target, prediction in zip(
            targets.reshape(-1, *size), predictions.reshape(-1, *size), strict=True
        ):
            valid = (target > 1e-3) & (target < options["max_depth"])
            if options["relative"]:
                fit = fit_affine(prediction, target, valid)
                prediction = fit.scale * prediction + fit.shift
            prediction = np.clip(prediction, 1e-3, options["max_depth"])
            values = depth_metrics(prediction, target, valid).as_dict()
            values["delta05"] = delta_accuracy(prediction, target, valid, 1.25**0.5)
            rows.append([values[names[name]] for name in case.meta["metric_names"]])
        results[f"values{i}"] = np.mean(rows, axis=0)
    return results
