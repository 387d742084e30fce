"""Conditioning of the UNet by the image itself: the implicit captioner of ODISE (section 3.3).

CLIP's embedding of a tile is turned into 77 text states and one vector beside the time embedding. The weights are
under CC BY-NC-SA 4.0; nothing here loads them unless a person names the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from vision3d.backbone.loading import (
    WeightSource,
    attach,
    check_keys,
    component_file,
    empty_weights,
    open_checkpoint,
    read_config,
)
from vision3d.errors import WeightsError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PREFIX = "backbone.feature_extractor."
"""What the released checkpoint puts before the captioner's names."""


class _Projection(nn.Module):
    """A linear layer and a table that is added to its output."""

    def __init__(self, width_in: int, width_out: int, tokens: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width_out)
        self.positional_embedding = nn.Parameter(torch.zeros(1, tokens, width_out))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, width_in)`` to ``(B, tokens, width_out)``."""
        return self.linear(x)[:, None] + self.positional_embedding


class ImplicitCaptioner(nn.Module):
    """Text states and a time vector from CLIP's image embedding; parameter names are the checkpoint's.

    Args:
        clip_width: of the image embedding (768).
        width: of the text states (768).
        time_width: of the time embedding (1280).
        tokens: text states (77).
    """

    def __init__(
        self, clip_width: int = 768, width: int = 768, time_width: int = 1280, tokens: int = 77
    ) -> None:
        super().__init__()
        self.clip_project = _Projection(clip_width, width, tokens)
        self.alpha_cond = nn.Parameter(torch.zeros(1, tokens, width))
        self.time_embed_project = _Projection(clip_width, time_width, 1)
        self.alpha_cond_time_embed = nn.Parameter(torch.zeros(time_width))

    def context(self, embedding: Tensor, empty: Tensor) -> Tensor:
        """Text states ``(B, tokens, width)``: those of the empty prompt ``(1, tokens, width)`` plus a gated term."""
        return empty + torch.tanh(self.alpha_cond) * self.clip_project(embedding)

    def time_vector(self, embedding: Tensor) -> Tensor:
        """``(B, time_width)``, added to the output of the UNet's time embedding."""
        return torch.tanh(self.alpha_cond_time_embed) * self.time_embed_project(embedding)[:, 0]

    def check_widths(self, clip: CLIPVisionModelWithProjection, unet: UNet2DConditionModel) -> None:
        """Refuses networks that it was not trained with.

        Raises:
            WeightsError: CLIP's embedding, the text states or the time embedding are of another width.
        """
        widths = {
            "CLIP's image embedding": (self.clip_project.linear.in_features, clip.config.projection_dim),
            "Stable Diffusion's text": (self.alpha_cond.shape[-1], unet.config.cross_attention_dim),
            "its time embedding": (
                len(self.alpha_cond_time_embed),
                unet.time_embedding.linear_2.out_features,
            ),
        }
        for what, (own, given) in widths.items():
            if own != given:
                raise WeightsError(
                    f"the captioner expects {what} to be {own} wide, it is {given}",
                    "give CLIP ViT-L/14 at 336 and Stable Diffusion 1.x, or leave --captioner and --clip out",
                )

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], label: str = "captioner") -> ImplicitCaptioner:
        """The captioner of a checkpoint's tensors, with or without the released prefix.

        Raises:
            WeightsError: a tensor is missing or of another shape.
        """
        prefix = PREFIX if any(name.startswith(PREFIX) for name in tensors) else ""
        probe = prefix + "clip_project.linear.weight"
        if probe not in tensors or tensors[probe].ndim != 2:
            raise WeightsError(
                f"{label}: no implicit captioner in this file (no {probe})",
                "give ODISE's odise_label_coco_50e-b67d2efc.pth, or its eight captioner tensors",
            )
        width, clip_width = tensors[probe].shape
        time_width = tensors.get(prefix + "alpha_cond_time_embed", torch.zeros(1280)).shape[0]
        tokens = tensors.get(prefix + "alpha_cond", torch.zeros(1, 77, 1)).shape[1]
        module = cls(clip_width, width, time_width, tokens)
        expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
        given = {name: tensors[prefix + name] for name in expected if prefix + name in tensors}
        check_keys(expected, {n: tuple(v.shape) for n, v in given.items()}, label)
        module.load_state_dict({name: value.float() for name, value in given.items()})
        return module.eval().requires_grad_(False)

    @classmethod
    def from_file(cls, path: str | Path) -> ImplicitCaptioner:
        """The captioner of a file; everything else in the released checkpoint is left unread.

        Raises:
            WeightsError: as :meth:`from_tensors`, or a damaged file.
        """
        path = Path(path).expanduser()
        return cls.from_tensors(open_checkpoint(path), path.name)


def clip_pixels(images: Tensor, side: int = 336) -> Tensor:
    """CLIP's preprocessing of images in [0, 1] ``(B, 3, H, W)``: bicubic, short side to ``side``, centre, normalise.

    Without antialiasing, as the published stack resizes tensors; with it, every conditioned feature changes.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    size = (side, int(side * width / short)) if height <= width else (int(side * height / short), side)
    if size != (height, width):
        images = F.interpolate(images, size=size, mode="bicubic", align_corners=False, antialias=False)
    top, left = round((size[0] - side) / 2), round((size[1] - side) / 2)
    images = images[..., top : top + side, left : left + side]
    mean, std = (images.new_tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std


@torch.no_grad()
def embed_images(tower: CLIPVisionModelWithProjection, images: Tensor) -> Tensor:
    """CLIP's projected image embeddings ``(B, C)``, not normalised, of images in [0, 1] ``(B, 3, H, W)``."""
    pixels = clip_pixels(images, tower.config.image_size).to(next(tower.parameters()).dtype)
    return tower(pixel_values=pixels).image_embeds


def load_clip_vision(source: str | Path, dtype: torch.dtype | None = None) -> CLIPVisionModelWithProjection:
    """The image tower of a CLIP folder (``config.json`` and weights; the text tower is left unread).

    Raises:
        WeightsError: no such folder, or not a CLIP model.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise WeightsError(f"{source}: no such folder", "give a folder of CLIP ViT-L/14 at 336")
    config: dict[str, Any] = read_config(folder)
    vision = dict(config.get("vision_config", config))
    vision.setdefault("projection_dim", config.get("projection_dim", 768))
    with empty_weights():
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision))
    file = component_file(folder)
    given = {
        name: name
        for name in open_checkpoint(file)
        if name.startswith(("vision_model.", "visual_projection.")) and not name.endswith("position_ids")
    }
    attach(tower, WeightSource(file, given, dtype=dtype, label="CLIP image tower"))
    return tower
