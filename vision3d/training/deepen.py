"""Networks with more layers that compute what they computed before: the start of training a deeper one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from vision3d.errors import InputError


def silence(*projections: nn.Module) -> None:
    """Set the last projections of a residual layer to 0, so that it adds nothing until it is trained."""
    for projection in projections:
        nn.init.zeros_(projection.weight)  # type: ignore[arg-type]
        nn.init.zeros_(projection.bias)  # type: ignore[arg-type]


def transformer_layers(unet: UNet2DConditionModel) -> tuple[int, ...]:
    """Layers of the spatial transformers of every level, from the finest to the coarsest."""
    layers: Any = unet.config["transformer_layers_per_block"]
    return (layers,) * len(unet.config["block_out_channels"]) if isinstance(layers, int) else tuple(layers)


def with_transformer_layers(unet: UNet2DConditionModel, layers: Sequence[int]) -> UNet2DConditionModel:
    """The same function with more transformer layers.

    New layers stand before those of the UNet, whose attention maps are read, and are identities: what they add is 0
    until they are trained.

    Args:
        unet: stays as it is.
        layers: of each level from the finest to the coarsest; the middle block has as many as the coarsest.

    Returns:
        ``unet`` itself where it has these layers already, else a new network.

    Raises:
        InputError: ``layers`` is of another length, or asks for fewer than ``unet`` has.
    """
    present, wanted = transformer_layers(unet), tuple(layers)
    if wanted == present:
        return unet
    if len(wanted) != len(present) or any(w < p for w, p in zip(wanted, present, strict=False)):
        raise InputError(
            f"transformer layers {wanted} where the UNet has {present}",
            "give at least as many for each level",
        )
    deeper: Any = UNet2DConditionModel.from_config(dict(unet.config), transformer_layers_per_block=wanted)
    added = {}
    for name, transformer in deeper.named_modules():
        if isinstance(transformer, Transformer2DModel):
            before: Any = unet.get_submodule(name)
            added[name] = len(transformer.transformer_blocks) - len(before.transformer_blocks)
            for layer in transformer.transformer_blocks[: added[name]]:  # type: ignore[attr-defined]
                silence(layer.attn1.to_out[0], layer.attn2.to_out[0], layer.ff.net[-1])

    def moved(match: re.Match[str]) -> str:
        return f"{match[1]}.transformer_blocks.{int(match[2]) + added[match[1]]}."

    own = {
        re.sub(r"^(.+)\.transformer_blocks\.(\d+)\.", moved, name): value
        for name, value in unet.state_dict().items()
    }
    deeper.load_state_dict({**deeper.state_dict(), **own})
    return deeper.train(unet.training)
