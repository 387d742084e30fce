"""The networks of StableNormal: two branches beside the stock Stable Diffusion UNet.

Both have the encoder of a ControlNet and neither uses a ControlNet's forward pass:

- the *image branch* reads the autoencoder's latent of the photograph and hands its raw skips and middle on, to be
  added to the UNet's own (``residuals`` of :func:`vision3d.backbone.unet.walk`);
- the *semantic branch* reads DINOv2 features and hands on one tensor per skip, which is added inside the UNet's
  encoder (``injected`` of the same).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers.models.controlnets.controlnet import ControlNetModel
from torch import Tensor, nn

from vision3d.backbone.unet import walk

Residuals = tuple[Sequence[Tensor], Tensor]
"""One tensor per skip of the UNet, and one for its middle block."""

IMAGE_BRANCH_UNUSED = ("controlnet_cond_embedding.", "controlnet_down_blocks.", "controlnet_mid_block.")
"""Tensors that released image branches hold and never apply: 42 of 340."""
SEMANTIC_BRANCH_UNUSED = ("controlnet_cond_embedding.", "conv_in.", "mid_block.", "controlnet_mid_block.")
"""Tensors that a semantic branch may hold without using them."""


class ControlNetVAEModel(ControlNetModel):
    """The image branch: a ControlNet's encoder and middle block over the image latent.

    The arguments are those of diffusers' ``ControlNetModel``. Its zero convolutions and its embedding of a picture
    are not made: the published forward pass never applies them (StableNormal, ``ControlNetVAEModel``).
    """

    @functools.wraps(ControlNetModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for prefix in IMAGE_BRANCH_UNUSED:
            delattr(self, prefix.rstrip("."))

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,  # [B, 4, h, w], the image latent
        timestep: int | Tensor,
        context: Tensor,  # [B or 1, tokens, width]
        conditioning_scale: float = 1.0,
    ) -> Residuals:
        """Skips and middle of the encoder, each times ``conditioning_scale``."""
        skips: list[Tensor] = []
        for tap in walk(self, sample, timestep, context):  # type: ignore[arg-type]
            if tap.name == "mid":
                return [skip * conditioning_scale for skip in skips], tap.tensor * conditioning_scale
            if tap.name != "time":
                skips.append(tap.tensor)
        raise AssertionError("a walk passes through the middle block")


class FeatureEmbedding(nn.Module):
    """DINO features to the width of the UNet's first level, at twice their resolution.

    Args:
        inputs: channels of the features.
        widths: channels between the convolutions.
        outputs: channels of the result.
    """

    def __init__(self, inputs: int, widths: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.conv_out = nn.Conv2d(widths[-1], outputs, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Features ``(B, C, h, w)`` to ``(B, C', 2h, 2w)``."""
        h = F.silu(self.conv_in(features))
        for block in self.blocks:
            h = F.silu(block(h))
        return self.conv_out(F.interpolate(h, scale_factor=2.0, mode="nearest"))


class SemanticBranch(Protocol):
    """What the refinement needs of a semantic branch, whoever wrote it."""

    def embed(self, features: Tensor) -> Tensor:
        """DINO features ``(B, 1024, 48, 48)`` to ``(B, 320, 96, 96)`` at published sizes."""

    def guide(self, embedded: Tensor, context: Tensor, conditioning_scale: float = 1.0) -> list[Tensor]:
        """Embedded features at the latent's size and text to one tensor per skip of the UNet."""


class SemanticControlNet(ControlNetModel):
    """The semantic branch in our reading; its published source is not part of the released code.

    A ControlNet whose first convolution is replaced by an embedding of DINO features, without a middle block, run
    at timestep 0. Known of the published one: the attribute ``dino_controlnet_cond_embedding``, the shapes of its
    input and output, a further pass that takes 320 channels, twelve outputs and none for the middle block.

    Args are those of diffusers' ``ControlNetModel``; ``conditioning_channels`` is the width of the DINO network and
    ``conditioning_embedding_out_channels`` the widths inside the embedding.
    """

    @functools.wraps(ControlNetModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = self.config
        for prefix in SEMANTIC_BRANCH_UNUSED:
            delattr(self, prefix.rstrip("."))
        self.conv_in = nn.Identity()  # the embedding takes its place
        self.dino_controlnet_cond_embedding = FeatureEmbedding(
            config.conditioning_channels,
            config.conditioning_embedding_out_channels,
            config.block_out_channels[0],
        )

    def embed(self, features: Tensor) -> Tensor:
        """See :class:`SemanticBranch`."""
        return self.dino_controlnet_cond_embedding(features.to(self.dtype))

    def guide(self, embedded: Tensor, context: Tensor, conditioning_scale: float = 1.0) -> list[Tensor]:
        """See :class:`SemanticBranch`."""
        tensors: list[Tensor] = []
        for tap in walk(self, embedded.to(self.dtype), 0, context):  # type: ignore[arg-type]
            if tap.name == "time":
                continue
            tensors.append(self.controlnet_down_blocks[len(tensors)](tap.tensor) * conditioning_scale)
            if len(tensors) == len(self.controlnet_down_blocks):
                break
        return tensors

    def forward(self, features: Tensor, context: Tensor, size: tuple[int, int]) -> list[Tensor]:  # type: ignore[override]
        """DINO features ``(B, C, h, w)`` to one tensor per skip, for a latent of ``size``."""
        return self.guide(match_latent(self.embed(features), size), context)


def match_latent(embedded: Tensor, size: tuple[int, int]) -> Tensor:
    """Embedded features at the latent's ``size`` (height, width); bilinear, half-pixel corners."""
    if tuple(embedded.shape[-2:]) == tuple(size):
        return embedded
    return F.interpolate(embedded, size=tuple(size), mode="bilinear", align_corners=False)


def dino_input(
    images: Tensor,  # [B, 3, h, w] in [-1, 1], resized and padded as the autoencoder sees them
    side: int = 672,
) -> Tensor:
    """What DINO sees: a square of ``side`` pixels in [0, 1], whatever the aspect ratio was."""
    squashed = F.interpolate(
        images.float(), size=(side, side), mode="bicubic", align_corners=True, antialias=True
    )
    return (squashed + 1) / 2


def zero_context(unet_width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The text input of the prompt-free line: zeros ``(1, 257, width)``."""
    return torch.zeros(1, 257, unet_width, device=device, dtype=dtype)
