"""What the speed claims are measured against, and how time is taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from vision3d.backbone.loading import empty_weights

T = TypeVar("T")


def marigold(
    task: Literal["depth", "normals"],
    unet: Any,  # UNet2DConditionModel of the width to compare with
    vae: Any,  # AutoencoderKL
    steps: int,
    tokens: int,
) -> Callable[[Tensor], Tensor]:
    """diffusers' Marigold on the same autoencoder and a UNet of the same width.

    Args:
        task: what it predicts.
        unet: whose weights it takes, its first convolution doubled for the second picture's latents.
        vae: the autoencoder.
        steps: denoising steps.
        tokens: of the empty text.
    """
    from diffusers import DDIMScheduler, MarigoldDepthPipeline, MarigoldNormalsPipeline, UNet2DConditionModel

    with empty_weights():
        wide = UNet2DConditionModel.from_config({**dict(unet.config), "in_channels": 8})
    values = dict(unet.state_dict())
    values["conv_in.weight"] = torch.cat([values["conv_in.weight"]] * 2, dim=1) / 2
    wide.load_state_dict(values, assign=True)
    kinds: dict[str, tuple[type, dict[str, bool]]] = {
        "depth": (MarigoldDepthPipeline, {"scale_invariant": True, "shift_invariant": True}),
        "normals": (MarigoldNormalsPipeline, {"use_full_z_range": True}),
    }
    kind, options = kinds[task]
    pipeline: Any = kind(
        unet=wide.eval().requires_grad_(False),
        vae=vae,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            prediction_type="v_prediction",
            timestep_spacing="trailing",
            clip_sample=False,
            set_alpha_to_one=False,
        ),
        text_encoder=None,
        tokenizer=None,
        prediction_type=task,
        **options,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.empty_text_embedding = torch.zeros(1, tokens, unet.config.cross_attention_dim)

    def run(image: Tensor) -> Tensor:
        return pipeline(
            image, num_inference_steps=steps, ensemble_size=1, processing_resolution=0, output_type="pt"
        ).prediction

    return run


def timed(run: Callable[[], T], device: torch.device | str = "cpu") -> tuple[float, T]:
    """CPU seconds of a call, or on a GPU its wall-clock seconds, and what it returned."""
    on_gpu = torch.device(device).type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    out = run()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start, out
