"""DINOv3 through transformers, with the same face and results as :mod:`vision3d.backbone.dino`.

Its weights are under Meta's own DINOv3 licence, not Apache-2.0: they are never a default and are used only
from a folder that the user has got. It has rotary positions, so there is no table to stretch, and only tokens
can be read, one for each patch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vision3d.backbone.dino import Dino, DinoConfig, Facet, GridTokens, load_dino, normalise
from vision3d.backbone.loading import (
    WeightSource,
    attach,
    component_file,
    empty_weights,
    open_checkpoint,
    read_config,
)
from vision3d.errors import InputError, WeightsError
from vision3d.weights import locate

MODEL_TYPE = "dinov3_vit"
"""Of its folders' ``config.json``."""


@dataclass(frozen=True)
class Dinov3Config(DinoConfig):
    """Sizes of one network."""

    @property
    def name(self) -> str:
        """What to call it."""
        return f"dinov3_vit ({self.width} wide, {self.depth} deep)"


class Dinov3(nn.Module):
    """A DINOv3 vision transformer.

    Args:
        folder: transformers folder with ``config.json`` and weights.
        dtype: floating dtype to load as; None keeps the file's.
        load: read the weights now; otherwise ``loading.load_weights`` does.

    Attributes:
        config: its sizes.
        interpolation: rule for positions off the training grid, for cache keys.

    Raises:
        WeightsError: no such folder, of another network, or damaged.
    """

    interpolation = "rotary"

    def __init__(self, folder: str | Path, dtype: torch.dtype | None = None, *, load: bool = True) -> None:
        super().__init__()
        folder = Path(folder).expanduser()
        declared = read_config(folder)
        kind = declared.get("model_type")
        if kind != MODEL_TYPE:
            raise WeightsError(
                f"{folder}: this folder holds {kind or 'no named network'}", "give a DINOv3 ViT"
            )
        from transformers import DINOv3ViTConfig, DINOv3ViTModel

        theirs: Any = DINOv3ViTConfig.from_dict(declared)
        with empty_weights():
            self.model: Any = DINOv3ViTModel(theirs)
        self.config = Dinov3Config(
            width=theirs.hidden_size,
            depth=theirs.num_hidden_layers,
            heads=theirs.num_attention_heads,
            patch=theirs.patch_size,
            grid=theirs.image_size // theirs.patch_size,
            hidden=theirs.intermediate_size,
            registers=theirs.num_register_tokens,
            gated=theirs.use_gated_mlp,
        )
        file = component_file(folder)
        # files call the blocks "layer", the network in memory "model.layer"
        names = {
            "model." + re.sub(r"^(model\.)?layer\.", "model.layer.", name): name
            for name in open_checkpoint(file)
        }
        attach(self, WeightSource(file, names, dtype=dtype, label="DINOv3"), load=load)

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of its weights."""
        return self.model.norm.weight.dtype

    def grid_of(self, height: int, width: int, stride: int | None = None) -> tuple[int, int]:
        """Tokens along each side of an image.

        Raises:
            InputError: the image is smaller than a patch, or the stride is not the patch.
        """
        patch = self.config.patch
        if stride not in (None, patch):
            raise InputError(
                f"stride {stride} of DINOv3", f"leave it out: its tokens are {patch} pixels apart"
            )
        if min(height, width) < patch:
            raise InputError(f"an image of {width}x{height} has no patch of {patch} pixels")
        return height // patch, width // patch

    @torch.no_grad()
    def features(
        self,
        images: Tensor,  # [B, 3, H, W], RGB in [0, 1]
        *,
        layer: int = -1,
        facet: Facet = "token",
        norm: bool = False,
        stride: int | None = None,
        batch_size: int | None = None,
    ) -> GridTokens:
        """Tokens of images; arguments and result as in :meth:`vision3d.backbone.dino.Dino.features`.

        Raises:
            InputError: no such layer, an image smaller than a patch, another facet or stride than there is.
        """
        depth, patch = self.config.depth, self.config.patch
        grid = self.grid_of(images.shape[-2], images.shape[-1], stride)
        if facet != "token":
            raise InputError(f"facet {facet!r} of DINOv3", "choose token")
        if not -depth <= layer < depth:
            raise InputError(f"no block {layer} in a network of {depth}", f"choose 0 to {depth - 1}")
        special = 1 + self.config.registers
        parts = []
        for part in images[..., : grid[0] * patch, : grid[1] * patch].split(batch_size or len(images)):
            pixels = normalise(part.to(self.model.device))
            states = self.model(pixels, output_hidden_states=True).hidden_states[layer % depth + 1]
            states = self.model.norm(states) if norm else states
            parts.append(GridTokens(states[:, special:], states[:, :special], grid, patch, patch))
        return replace(
            parts[0],
            patches=torch.cat([p.patches for p in parts]),
            prefix=torch.cat([p.prefix for p in parts]),
        )


def load_any_dino(
    source: str | Path, *, dtype: torch.dtype | None = None, load: bool = True
) -> Dino | Dinov3:
    """The DINO network of a file or folder, of any version; arguments and errors as of :func:`load_dino`."""
    folder = locate(source)[0]
    if (folder / "config.json").is_file() and read_config(folder).get("model_type") == MODEL_TYPE:
        return Dinov3(folder, dtype, load=load)
    return load_dino(folder, dtype=dtype, load=load)
