"""Going over a swapped picture with Stable Diffusion: noised part of the way, denoised back (section on swapping)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vision3d.backbone.backbone import Backbone
from vision3d.backbone.schedule import add_noise, ddim_step, ddim_timesteps
from vision3d.errors import InputError, ResourceError
from vision3d.progress import progress


@torch.no_grad()
def refine_picture(
    backbone: Backbone,
    picture: np.ndarray,  # [H, W, 3] uint8
    mask: np.ndarray,  # [H, W] bool
    *,
    strength: float,
    prompt: str = "",
    steps: int = 20,
    guidance: float = 5.0,
    seed: int = 0,
    max_side: int = 768,
    text_layer: str = "last",
) -> np.ndarray:
    """The picture with its masked part made consistent, ``(H, W, 3)`` uint8; the rest stays to the bit.

    Outside the mask every step starts again from the picture's own noised latents, so that the inside grows together
    with what surrounds it.

    Args:
        backbone: with UNet, autoencoder and text tower.
        picture, mask: what to mend, and where.
        strength: share of the schedule, over 0 up to 1.
        prompt: caption; with one, guidance away from the empty prompt is used.
        steps: of the whole schedule.
        guidance: scale of classifier-free guidance.
        seed: of the noise.
        max_side: the picture is worked on at this longest side at most.
        text_layer: of the text tower.

    Raises:
        InputError: strength or steps out of range.
        ResourceError: Stable Diffusion is not loaded.
    """
    if not 0 < strength <= 1:
        raise InputError(f"refinement of {strength}", "give a share from 0 to 1, such as 0.4")
    if not 1 <= steps <= 1000:
        raise InputError(f"{steps} denoising steps", "give 1 to 1000")
    if backbone.sd is None or backbone.sd.unet is None or backbone.sd.vae is None:
        raise ResourceError("refinement needs Stable Diffusion", "load it, or leave refinement out")
    height, width = picture.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    size = tuple(max(64, round(side * scale / 64) * 64) for side in (height, width))
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    small = F.interpolate(image, size=size, mode="bicubic", antialias=True).clamp(0, 1).to(backbone.device)
    inside = torch.from_numpy(mask)[None, None].float()
    inside = F.interpolate(inside, size=(size[0] // 8, size[1] // 8), mode="area").to(backbone.device)
    inside = (inside > 0.25).float()

    clean = backbone.encode(small)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed)).to(clean)
    layer = {"layer": text_layer}
    empty = backbone.text("", **layer)  # type: ignore[arg-type]
    caption = backbone.text(prompt, **layer) if prompt else None  # type: ignore[arg-type]
    times = ddim_timesteps(steps)
    times = times[len(times) - max(1, round(strength * steps)) :]
    kind = backbone.sd.prediction_type

    def predict(latents: Tensor, t: int) -> Tensor:
        plain = backbone.denoise(latents, t, empty)
        if caption is None:
            return plain
        return plain + guidance * (backbone.denoise(latents, t, caption) - plain)

    latents = add_noise(clean, noise, int(times[0]))
    for t in progress([int(t) for t in times], description="refinement"):
        latents = add_noise(clean, noise, t) * (1 - inside) + latents * inside
        latents, _ = ddim_step(predict(latents, t), t, latents, steps, kind)
    decoded = backbone.decode(clean * (1 - inside) + latents * inside)
    full = F.interpolate(decoded.float().cpu(), size=(height, width), mode="bicubic").clamp(0, 1)[0]
    mended = (full.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    from vision3d.pipelines.sd_dino.swap import blend

    return blend(picture, mended, mask, 1.5)
