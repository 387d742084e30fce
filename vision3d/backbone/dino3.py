"""DINOv3 through transformers, with the same results as :mod:`vision3d.backbone.dino`.

Its weights are under Meta's own DINOv3 licence, not Apache-2.0: they are never a default and are used only
from a folder that the user has got. It has rotary positions, so there is no table to stretch, and only tokens
can be read.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vision3d.backbone.dino import GridTokens, normalise
from vision3d.backbone.loading import component_file, fingerprint, read_config
from vision3d.errors import InputError, WeightsError


class Dinov3(nn.Module):
    """A DINOv3 vision transformer.

    Args:
        folder: transformers folder with ``config.json`` and safetensors weights.
        dtype: floating dtype to load as; None keeps the file's.

    Attributes:
        interpolation: rule for positions off the training grid, for cache keys.

    Raises:
        WeightsError: no such folder, of another network, or damaged.
    """

    interpolation = "rotary"

    def __init__(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        folder = Path(folder).expanduser()
        kind = read_config(folder).get("model_type")
        if kind != "dinov3_vit":
            raise WeightsError(
                f"{folder}: this folder holds {kind or 'no named network'}", "give a DINOv3 ViT"
            )
        if ".safetensors" not in component_file(folder).name:
            raise WeightsError(f"{folder}: these weights are no safetensors", "convert them")
        from transformers import DINOv3ViTModel

        options: Any = {"dtype": dtype if dtype is not None else "auto", "local_files_only": True}
        try:
            self.model: Any = DINOv3ViTModel.from_pretrained(folder, use_safetensors=True, **options)
        except (OSError, ValueError, RuntimeError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsError(f"{folder}: cannot load DINOv3 ({first})", "get it again") from error
        self.eval().requires_grad_(False)
        self._folder = folder

    @property
    def checksum(self) -> str:
        """SHA-256 of the weight and configuration files."""
        return fingerprint(self._folder)

    @torch.no_grad()
    def features(
        self,
        images: Tensor,  # [B, 3, H, W], RGB in [0, 1]
        *,
        layer: int = -1,
        norm: bool = False,
        batch_size: int | None = None,
    ) -> GridTokens:
        """Tokens of images; arguments and result as in :meth:`vision3d.backbone.dino.Dino.features`.

        Raises:
            InputError: no such layer, or an image smaller than a patch.
        """
        config = self.model.config
        depth, patch = config.num_hidden_layers, config.patch_size
        grid = images.shape[-2] // patch, images.shape[-1] // patch
        if not -depth <= layer < depth:
            raise InputError(f"no block {layer} in a network of {depth}", f"choose 0 to {depth - 1}")
        if min(grid) < 1:
            raise InputError(
                f"an image of {images.shape[-1]}x{images.shape[-2]} has no patch of {patch} pixels"
            )
        special = 1 + config.num_register_tokens
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
