"""Seconds of the four dense tasks of a scene: each on its own, all in one call, and with the fast profile.

One process, the same weights and photograph; rounds alternate and the best of each counts. On its own, a task finds no
latents of the others; in one call it does. With --samples, the accuracy of the published settings and of the fast
profile is measured on procedural scenes, too, so that what the fast profile costs stands beside what it saves.

    python benchmarks/scene.py --size 256 --untrained 1 --rounds 1 --json benchmarks/scene.json
    python benchmarks/scene.py --samples 50 --sample-size 128

The first takes recipe values in networks of the published widths (deterministic, untrained: speed does not depend on
them) and the published settings at a smaller size, 13 GB; no camera can be read from what these draw, so that the
time of reading one is in there and its result is not. The second takes trained weights.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from peers import timed
from stablenormal import CONTEXT, SEED
from stablenormal import build as build_normals

from vision3d.backbone.featurecache import shared_latents
from vision3d.camera import Intrinsics
from vision3d.errors import Vision3DError
from vision3d.evaluation.normal_metrics import normal_metrics
from vision3d.evaluation.parity import recipe
from vision3d.io.photo import Photo, load_photo
from vision3d.pipelines.dmcalib import DMCalib
from vision3d.pipelines.dmcalib.checkpoint import Contexts, build_decoder, prompt_of
from vision3d.pipelines.dmcalib.options import DMCalibConfig
from vision3d.pipelines.dmcalib.training import widened
from vision3d.pipelines.primedepth import PrimeDepth
from vision3d.pipelines.primedepth.checkpoint import PrimeDepthConfig, build_networks
from vision3d.pipelines.scene import Scene, SceneOptions, ScenePipeline
from vision3d.pipelines.scene.pipeline import Tasks, build_scene
from vision3d.prediction import Provenance
from vision3d.training.data import HELD_OUT_SEED


class Untrained(ScenePipeline):
    """Whose networks draw no picture that a camera can be read from: after the attempt one is assumed."""

    def tasks(self, options: SceneOptions, photo: Photo) -> Tasks:  # noqa: D102 -- as the base class
        tasks = super().tasks(options, photo)

        def calibrate(photo: Photo) -> Any:
            try:
                return tasks.calibrate(photo)
            except Vision3DError:
                camera = Intrinsics.assumed(photo.size[1], photo.size[0])
                provenance = Provenance("assumed", "none", None, {}, 0)
                return SimpleNamespace(
                    camera=camera, covariance=None, camera_source=None, provenance=provenance
                )

        return replace(tasks, calibrate=calibrate)


def untrained(width: float, size: int) -> Untrained:
    """The four tasks at ``width`` times the published channels, every tensor a recipe value.

    Networks of one shape are one network in memory; they are run as often as if there were several.
    """
    normals = build_normals(width)
    config = PrimeDepthConfig(model_channels=int(320 * width), vae_ch=int(128 * width))
    networks: dict[str, Any] = build_networks(config)
    networks["unet"], networks["vae"] = normals.unet, normals.vae
    for seed, name in enumerate(("refiner", "depth_head", "segmentation_head")):
        recipe.fill(networks[name], SEED + 10 + seed)
    generator = torch.Generator().manual_seed(SEED)
    prompts = [prompt_of(domain) for domain in ("any", "indoor", "outdoor", "object")]
    contexts = Contexts({p: torch.randn(2 if not p else 4, CONTEXT, generator=generator) for p in prompts})
    wide = widened(copy.deepcopy(normals.unet))
    decoder = build_decoder(normals.vae.config)
    recipe.fill(decoder, SEED + 20)
    calibration = DMCalib(
        normals.vae,
        wide,
        wide,
        decoder,
        contexts,
        replace(DMCalibConfig(), max_size=size, depth_max_size=size),
    )
    depth, context = PrimeDepth(**networks), torch.randn(1, 77, CONTEXT, generator=generator)
    for pipeline in (depth, normals):  # in the place of a text tower
        pipeline.prompt_embeddings = lambda *_, **__: context  # type: ignore[method-assign]
    return Untrained(depth, normals, calibration)


@contextmanager
def counting_encodes(pipeline: ScenePipeline) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the latents that autoencoders encode inside (the lean encoder calls its layers, not itself)."""
    runs: list[tuple[int, ...]] = []
    vaes = {
        id(vae): vae
        for method in (pipeline.depth, pipeline.normals, pipeline.calibration)
        for name in ("vae", "refine_vae")
        if (vae := getattr(method, name, None)) is not None
    }
    hooks = [
        vae.quant_conv.register_forward_pre_hook(lambda _, inputs: runs.append(tuple(inputs[0].shape)))
        for vae in vaes.values()
    ]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def separately(pipeline: ScenePipeline, photo: Photo, options: SceneOptions) -> dict[str, float]:
    """Seconds of each task when it finds no latents of the others; each sees the photograph as in one call."""
    options = options.completed(pipeline.calibration.config)
    tasks, seconds = pipeline.tasks(options, photo), {}

    def alone(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def task(*given: Any) -> Any:
            shared_latents().clear()
            seconds[name], result = timed(lambda: run(*given), pipeline.calibration.device)
            return result

        return task

    relative = tasks.relative_depth
    tasks = replace(
        tasks,
        calibrate=alone("camera", tasks.calibrate),
        metric_depth=alone("metric depth", tasks.metric_depth),
        relative_depth=None if relative is None else alone("relative depth", relative),
        normals=alone("normals", tasks.normals),
    )
    build_scene(photo, tasks, options, canvas=pipeline.canvas(options))
    return seconds


def in_one_call(pipeline: ScenePipeline, photo: Photo, options: SceneOptions) -> tuple[float, float, int]:
    """Seconds of the whole scene and of its fusion, and the number of encodes."""
    shared_latents().clear()
    with counting_encodes(pipeline) as runs:
        seconds, _ = timed(lambda: pipeline.predict([photo], options), pipeline.calibration.device)
    return seconds, pipeline.seconds["fusion"], len(runs)


def accuracy(pipeline: ScenePipeline, options: SceneOptions, count: int, side: int) -> dict[str, float]:
    """Errors on held-out procedural scenes: field of view, metric and fused depth, normals."""
    from vision3d.synthetic import render_sample

    rows = []
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + 3 * count, 3):
        sample = render_sample(seed, (side, side))
        there = np.isfinite(sample.depth)
        if there.mean() < 0.1:
            continue
        scene: Scene = pipeline.predict([Photo(sample.image, f"sample {seed}")], options)[0]
        seen = there & scene.usable()
        truth = sample.depth
        rows.append(
            {
                "fov_error_degrees": abs(
                    scene.intrinsics.fov_x - Intrinsics.from_K(sample.K, side, side).fov_x
                ),
                "metric_absrel": float(np.abs(scene.metric[seen] / truth[seen] - 1).mean()),
                "fused_absrel": float(np.abs(scene.fused[seen] / truth[seen] - 1).mean()),
                "normal_error_degrees": normal_metrics(scene.normals, sample.normals, seen).mean,
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photo", type=Path, help="by default a rendered scene")
    parser.add_argument("--size", type=int, default=768, help="longest side in pixels")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=0, help="procedural scenes to measure accuracy on")
    parser.add_argument("--sample-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--untrained", type=float, help="times the published channels; 1 for the claim")
    for method in ("primedepth", "stablenormal", "dmcalib"):
        parser.add_argument(f"--{method}", help="weights; by default the pulled or embedded ones")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(given.threads)
    weights = {
        m: getattr(given, m)
        for m in ("primedepth", "stablenormal", "dmcalib")
        if getattr(given, m) is not None
    }
    if given.photo is not None:
        photo = load_photo(given.photo)
    else:
        from vision3d.synthetic import render_sample

        photo = Photo(render_sample(HELD_OUT_SEED + 6, (given.size * 3 // 4, given.size)).image, "rendered")
    profiles = {"published": SceneOptions(), "fast": SceneOptions(fast=True)}
    report: dict[str, Any] = {"threads": given.threads, "device": given.device, "size": list(photo.size)}
    pipeline: ScenePipeline | None = None
    for name, options in profiles.items():
        if given.untrained:
            pipeline = pipeline or untrained(given.untrained, given.size)
        else:
            pipeline = ScenePipeline.from_pretrained(weights, turbo=options.fast, device=given.device)
        parts: dict[str, list[float]] = {}
        calls: list[tuple[float, float, int]] = []
        for _ in range(given.rounds):
            for part, seconds in separately(pipeline, photo, options).items():
                parts.setdefault(part, []).append(seconds)
            calls.append(in_one_call(pipeline, photo, options))
        best = min(calls)
        row: dict[str, Any] = {
            "seconds": {part: round(min(values), 3) for part, values in parts.items()},
            "sum_of_parts": round(sum(min(values) for values in parts.values()), 3),
            "one_call": round(best[0], 3),
            "fusion_in_it": round(best[1], 3),
            "encodes_in_one_call": best[2],
        }
        if given.samples:
            row["accuracy"] = accuracy(pipeline, options, given.samples, given.sample_size)
        report[name] = row
        print(f"{name}: {json.dumps(row)}", flush=True)
    report["fast_share_of_time"] = round(report["fast"]["one_call"] / report["published"]["one_call"], 3)
    print(f"the fast profile takes {report['fast_share_of_time']:.2f} of the published settings' time")
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
