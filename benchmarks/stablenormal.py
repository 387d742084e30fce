"""Time of StableNormal at published widths: both stages against the published order of work, turbo against Marigold.

One process, one thread, the same weights and images; rounds of the contenders alternate, and CPU time is taken. Only
the ratios mean something on another machine. Weights are recipe values (deterministic, untrained): speed does not
depend on them. Both stages share one UNet and one image branch, which saves memory and changes no time.

    python benchmarks/stablenormal.py --sizes 256 --rounds 1 --json benchmarks/stablenormal.json

Published order: the image encoded for each stage, the first stage's result decoded though nobody reads it, an image
branch pass with every UNet call, stock autoencoder modules. At width 1 it takes about 10 GB.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from peers import marigold, timed
from torch import Tensor

from vision3d.backbone.dino import MODELS, Dino
from vision3d.backbone.featurecache import shared_latents
from vision3d.backbone.unet import denoise
from vision3d.evaluation.parity import recipe
from vision3d.pipelines.stablenormal import StableNormal
from vision3d.pipelines.stablenormal.network import dino_input, match_latent
from vision3d.pipelines.stablenormal.pipeline import Draws, Plan
from vision3d.pipelines.stablenormal.sampler import HeuristicSchedule
from vision3d.pipelines.stablenormal.training import image_branch_of, semantic_branch_of

SEED = 7
CONTEXT = 1024


def build(width: float) -> StableNormal:
    """The pipeline at ``width`` times the published channels, every tensor a recipe value."""
    channels = tuple(int(c * width) for c in (320, 640, 1280, 1280))
    unet = UNet2DConditionModel(
        sample_size=96,
        in_channels=4,
        block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=CONTEXT,
        attention_head_dim=tuple(max(1, c // 64) for c in channels),
        use_linear_projection=True,
        norm_num_groups=32 if width == 1 else 16,
    )
    vae = AutoencoderKL(
        block_out_channels=tuple(int(c * width) for c in (128, 256, 512, 512)),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        scaling_factor=0.18215,
        norm_num_groups=32 if width == 1 else 16,
    )
    dino = Dino(MODELS["dinov2_vitl14" if width == 1 else "dinov2_vits14"])
    branch = image_branch_of(unet)
    semantic = semantic_branch_of(unet, dino.config.width, (512,))
    for seed, network in enumerate((unet, branch, semantic, vae, dino)):
        recipe.fill(network, SEED + seed)
        network.eval().requires_grad_(False)
    return StableNormal(
        vae=vae,
        unet=unet,
        controlnet=branch,
        refine_unet=unet,
        refine_controlnet=branch,
        dino_controlnet=semantic,
        dino=dino,
    )


def ours(pipeline: StableNormal, x: Tensor, draws: Draws, plan: Plan) -> Tensor:
    shared_latents().clear()  # a photograph that was never seen
    return pipeline.decode(pipeline.solve(x, draws, plan), refine=plan.refine)


def published(pipeline: StableNormal, x: Tensor, draws: Draws, plan: Plan) -> Tensor:
    """Both stages in the published order, on the same networks."""
    vae, unet, branch = pipeline.vae, pipeline.unet, pipeline.controlnet
    scaling = vae.config.scaling_factor
    latent = vae.encode(x).latent_dist.mode() * scaling
    residuals = branch(latent, plan.t_start, plan.context)
    x0 = denoise(unet, draws.start, plan.t_start, plan.context, residuals=residuals)
    vae.decode(x0 / scaling)  # of the first stage, which nobody reads
    latent = vae.encode(x).latent_dist.mode() * scaling
    context = plan.refine_context
    assert context is not None
    features = pipeline.dino.features(dino_input(x), norm=True).map
    embedded = match_latent(pipeline.dino_controlnet.embed(features), (x0.shape[-2], x0.shape[-1]))
    injected = pipeline.dino_controlnet.guide(embedded, context)
    schedule, sample, fresh = HeuristicSchedule.of(plan.steps), x0, iter(draws.fresh)
    for i, t in enumerate(schedule.timesteps):
        residuals = branch(latent, t, context)
        x0 = denoise(unet, sample, t, context, residuals=residuals, injected=injected)
        if i + 1 < len(schedule.timesteps):
            sample = schedule.step(i, x0, sample, next(fresh) if schedule.is_renoised(i) else None)
    return vae.decode(x0 / scaling).sample


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[256])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--width", type=float, default=1.0, help="of the published channels; 1 for the claim")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(options.threads)
    pipeline = build(options.width)
    one, four = (marigold("normals", pipeline.unet, pipeline.vae, steps, 2) for steps in (1, 4))
    generator = torch.Generator().manual_seed(SEED)
    contexts = torch.randn(2, 77, CONTEXT, generator=generator).split(1)
    both = Plan(True, 401, options.steps, contexts[0], contexts[1], True, 1.0)
    turbo = Plan(False, 0, 1, contexts[0], None, False, 1.0)
    report: dict[str, Any] = {
        "threads": options.threads,
        "width": options.width,
        "steps": options.steps,
        "sizes": {},
    }
    for size in options.sizes:
        coarse = torch.rand(1, 3, 16, 16, generator=generator)
        image = F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)
        x = image * 2 - 1
        draws = pipeline.draw((size // 8, size // 8), both, generator)
        contenders: dict[str, Callable[[], Tensor]] = {
            "two-stage": lambda x=x, d=draws: ours(pipeline, x, d, both),
            "published order": lambda x=x, d=draws: published(pipeline, x, d, both),
            "turbo": lambda x=x, d=draws: ours(pipeline, x, d, turbo),
            "marigold 1": lambda i=image: one(i),
            "marigold 4": lambda i=image: four(i),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        outputs: dict[str, Tensor] = {}
        for _ in range(options.rounds):
            for name, run in contenders.items():
                elapsed, outputs[name] = timed(run)
                seconds[name].append(elapsed)
        best = {name: min(values) for name, values in seconds.items()}
        difference = (outputs["two-stage"] - outputs["published order"]).abs() / outputs[
            "published order"
        ].std()
        row = {
            "seconds": {name: round(value, 3) for name, value in best.items()},
            "speedup_over_published": round(best["published order"] / best["two-stage"], 3),
            "turbo_time_relative_to_marigold_1_step": round(best["turbo"] / best["marigold 1"], 3),
            "turbo_speedup_over_marigold_4_steps": round(best["marigold 4"] / best["turbo"], 3),
            "difference_max_of_std": float(difference.max()),
            "difference_mean_of_std": float(difference.mean()),
        }
        report["sizes"][size] = row
        print(f"{size} px: {json.dumps(row)}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
