"""PrimeDepth's trained part: the refiner that reads a UNet's preimage, and the prediction heads.

The preimage of an image is what a frozen Stable Diffusion UNet holds at one almost noise-free step (t = 1): for
each decoder position the features that enter it, and the attention maps of the block before it and of the
mirrored encoder block (PrimeDepth, section 3). The refiner, a half-width copy of the UNet's decoder, takes it in
block by block, in lock-step with the UNet, so that no more than one position is alive at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D, Upsample2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from vision3d.backbone.attention import CELLS
from vision3d.backbone.unet import residual_block, upsample, walk
from vision3d.backbone.vae import decode_features, set_group_norm_eps

TIMESTEP = 1
"""The only diffusion step that is ever used."""

Probe = Callable[[str, Tensor], None]
"""Is told intermediates by name: ``feat_i``, ``attn_i``, ``merged_i``, ``refiner_i``, ``refiner_out``, ``eps``."""


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of ``number`` that is no more than ``at_most`` (group counts and head sizes)."""
    return next(d for d in range(min(number, at_most), 0, -1) if number % d == 0)


@dataclass(frozen=True)
class DecoderPosition:
    """What one decoder position of a UNet offers to the refiner."""

    level: int
    feature_channels: int
    decoder_heads: int  # of the preceding decoder (or middle) block; 0: it has no transformer
    encoder_heads: int  # of the mirrored encoder block; 0: it has no transformer
    attends: bool
    upsamples: bool


def decoder_positions(config: dict[str, Any]) -> list[DecoderPosition]:
    """Reads a diffusers UNet configuration as its decoder positions, first (lowest resolution) to last."""
    widths, blocks = list(config["block_out_channels"]), config["layers_per_block"]
    heads = config["attention_head_dim"]  # diffusers' name for the number of heads
    heads = [heads] * len(widths) if isinstance(heads, int) else list(heads)
    attends = ["CrossAttn" in kind for kind in config["down_block_types"]]

    skips: list[tuple[int, int]] = [(widths[0], 0)]  # channels and transformer heads of each encoder block
    for level, width in enumerate(widths):
        skips += [(width, heads[level] if attends[level] else 0)] * blocks
        if level < len(widths) - 1:
            skips.append((width, 0))

    positions, channels, previous_heads = [], widths[-1], heads[-1]
    for level in reversed(range(len(widths))):
        for block in range(blocks + 1):
            skip_channels, encoder_heads = skips.pop()
            positions.append(
                DecoderPosition(
                    level=level,
                    feature_channels=channels + skip_channels,
                    decoder_heads=previous_heads,
                    encoder_heads=encoder_heads,
                    attends=attends[level],
                    upsamples=block == blocks and level > 0,
                )
            )
            channels, previous_heads = widths[level], heads[level] if attends[level] else 0
    return positions


class PixelGroupNorm(nn.GroupNorm):
    """GroupNorm that also takes a single pixel with a channel per group, where torch's module refuses."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalised ``x``, ``(B, C, h, w)`` with any h * w >= 1."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def allow_single_pixels(module: nn.Module) -> None:
    """Lets every GroupNorm inside take 1 x 1 inputs, which occur at the lowest level of small images."""
    for layer in module.modules():
        if type(layer) is nn.GroupNorm:
            layer.__class__ = PixelGroupNorm


class RefinerBlock(nn.Module):
    """One decoder block of the refiner: ResNet, transformer and upsampler, the last two where the UNet has them."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_channels: int,
        context_channels: int,
        head_channels: int | None,
        upsamples: bool,
        linear_projection: bool,
        max_groups: int = 32,
    ) -> None:
        super().__init__()
        groups = largest_divisor(out_channels, max_groups)
        self.resnet = ResnetBlock2D(
            in_channels=in_channels,
            out_channels=out_channels,
            temb_channels=time_channels,
            groups=largest_divisor(in_channels, max_groups),
            groups_out=groups,
            eps=1e-5,
        )
        self.attention = None
        if head_channels is not None:
            size = largest_divisor(out_channels, head_channels)
            self.attention = Transformer2DModel(
                num_attention_heads=out_channels // size,
                attention_head_dim=size,
                in_channels=out_channels,
                num_layers=1,
                cross_attention_dim=context_channels,
                norm_num_groups=groups,
                use_linear_projection=linear_projection,
            )
        self.upsampler = Upsample2D(out_channels, use_conv=True) if upsamples else None
        allow_single_pixels(self)

    def forward(self, x: Tensor, temb: Tensor, context: Tensor) -> Tensor:
        """Block output before its upsampler, ``(B, out_channels, h, w)``."""
        h = residual_block(self.resnet, x, temb)
        if self.attention is not None:
            h = self.attention(h, encoder_hidden_states=context, return_dict=False)[0]
        return h


class PreimageRefiner(ModelMixin, ConfigMixin):
    """Half-width decoder that is fed with the preimage of every decoder position.

    Args:
        block_out_channels, layers_per_block, attention_head_dim, down_block_types, cross_attention_dim,
            use_linear_projection: configuration of the UNet whose preimage is read.
        ratio: width of the refiner and of the projections relative to the UNet.
        num_head_channels: size of the refiner's attention heads (or the largest divisor of the width below it).
        tokens: text tokens, each of which has a cross-attention map.
        out_channels: channels handed to the heads.
        max_groups: groups of every GroupNorm: the largest divisor of its channels that is no more than this.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        attention_head_dim: int | Sequence[int] = (5, 10, 20, 20),
        down_block_types: Sequence[str] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        cross_attention_dim: int = 1024,
        use_linear_projection: bool = True,
        ratio: float = 0.5,
        num_head_channels: int = 64,
        tokens: int = 77,
        out_channels: int = 512,
        max_groups: int = 32,
    ) -> None:
        super().__init__()
        positions = decoder_positions(dict(self.config))
        maps_per_head = CELLS * CELLS + tokens
        self.feature_projections = nn.ModuleList()
        self.attention_projections = nn.ModuleDict()
        self.merges = nn.ModuleList()
        self.blocks = nn.ModuleList()
        state = 0
        for i, position in enumerate(positions):
            features = int(position.feature_channels * ratio)
            self.feature_projections.append(nn.Conv2d(position.feature_channels, features, 1))
            merged = features
            sources = [heads for heads in (position.decoder_heads, position.encoder_heads) if heads]
            if sources:
                attention = int(max(sources) * maps_per_head * ratio)
                self.attention_projections[str(i)] = nn.Conv2d(sum(sources) * maps_per_head, attention, 1)
                merged += attention
            self.merges.append(nn.Conv2d(merged, merged, 1))
            width = int(block_out_channels[position.level] * ratio)
            self.blocks.append(
                RefinerBlock(
                    state + merged,
                    width,
                    time_channels=4 * block_out_channels[0],
                    context_channels=cross_attention_dim,
                    head_channels=num_head_channels if position.attends else None,
                    upsamples=position.upsamples,
                    linear_projection=use_linear_projection,
                    max_groups=max_groups,
                )
            )
            state = width
        self.norm_out = PixelGroupNorm(largest_divisor(state, max_groups), state, eps=1e-5)
        self.conv_out = nn.Conv2d(state, out_channels, 3, padding=1)
        self.gradient_checkpointing = False

    @classmethod
    def for_unet(cls, unet_config: dict[str, Any], **options: Any) -> PreimageRefiner:
        """A refiner (with random weights) that fits a UNet's configuration."""
        names = (
            "block_out_channels",
            "layers_per_block",
            "attention_head_dim",
            "down_block_types",
            "cross_attention_dim",
            "use_linear_projection",
        )
        return cls(**{name: unet_config[name] for name in names}, **options)

    def merge(
        self,
        i: int,
        features: Tensor,
        decoder_maps: Tensor | None,
        encoder_maps: Tensor | None,
        probe: Probe | None,
    ) -> Tensor:
        """Three 1x1 convolutions that bring one position's features and attention maps together."""
        merged = self.feature_projections[i](features)
        if str(i) in self.attention_projections:
            if decoder_maps is not None and encoder_maps is not None:
                size = encoder_maps.shape[-2:]
                if decoder_maps.shape[-2:] != size:
                    decoder_maps = F.interpolate(
                        decoder_maps, size=size, mode="bilinear", align_corners=False
                    )
            maps = torch.cat([m for m in (decoder_maps, encoder_maps) if m is not None], dim=1)
            if probe is not None:
                probe(f"attn_{i}", maps)
            merged = torch.cat([merged, self.attention_projections[str(i)](maps)], dim=1)
        return self.merges[i](merged)

    def forward(
        self,
        unet: UNet2DConditionModel,
        noisy_latents: Tensor,
        context: Tensor,
        *,
        frozen: bool = True,
        probe: Probe | None = None,
    ) -> Tensor:
        """Runs the UNet once at t = 1 and the refiner beside it.

        Args:
            unet: the UNet whose preimage is read; it stops before its last decoder block.
            noisy_latents: ``(B, 4, h, w)`` at t = 1.
            context: text embeddings ``(B or 1, tokens, width)``.
            frozen: keep the UNet out of the gradient, as published.
            probe: is told every intermediate; asking for ``eps`` makes the UNet run to its end.

        Returns:
            Input of the heads, ``(B, out_channels, h, w)``.
        """
        context = context.to(noisy_latents.dtype).expand(noisy_latents.shape[0], -1, -1)
        last = len(self.blocks) - 1
        encoder_maps: list[Tensor | None] = []
        decoder_maps = state = None
        temb = torch.empty(0)
        taps = walk(unet, noisy_latents, TIMESTEP, context, attention_maps=True)
        while True:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                tap = next(taps)
            if tap.name == "time":
                temb = tap.tensor
            elif tap.name.startswith("d"):
                encoder_maps.append(tap.maps)
            elif tap.name == "mid" or (tap.name.startswith("u") and not tap.name.endswith("up")):
                decoder_maps = tap.maps
            elif tap.name.startswith("in"):
                i = int(tap.name[2:])
                if probe is not None:
                    probe(f"feat_{i}", tap.tensor)
                maps = decoder_maps if self._reads_decoder(i) else None
                x = self.merge(i, tap.tensor, maps, encoder_maps.pop(), probe)
                if probe is not None:
                    probe(f"merged_{i}", x)
                if state is not None:
                    upsampler: Any = self.blocks[i - 1].upsampler
                    if upsampler is not None:
                        state = upsample(upsampler, state, x.shape[-2:])
                        if probe is not None:
                            probe(f"refiner_{i - 1}", state)
                    x = torch.cat([state, x], dim=1)
                state = self._run_block(i, x, temb, context)
                if probe is not None and self.blocks[i].upsampler is None:
                    probe(f"refiner_{i}", state)
                if i == last and probe is None:
                    break
            elif tap.name == "out":
                if probe is not None:
                    probe("eps", tap.tensor)
                break
        out = self.conv_out(F.silu(self.norm_out(state)))
        if probe is not None:
            probe("refiner_out", out)
        return out

    def _reads_decoder(self, i: int) -> bool:
        return decoder_positions(dict(self.config))[i].decoder_heads > 0

    def _run_block(self, i: int, x: Tensor, temb: Tensor, context: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(self.blocks[i], x, temb, context)
        return self.blocks[i](x, temb, context)


class PredictionHead(ModelMixin, ConfigMixin):
    """A head shaped like the SD autoencoder's decoder, from refiner output to a full-resolution prediction.

    Args:
        in_channels: the refiner's ``out_channels``.
        out_channels: 3 for depth (their mean is the prediction), 150 for ADE20K segmentation logits.
        block_out_channels: widths, finest level first.
        layers_per_block: ResNets per level, less one.
        norm_num_groups: groups of every GroupNorm; their epsilon is 1e-5, not the autoencoder's 1e-6.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 512,
        out_channels: int = 3,
        block_out_channels: Sequence[int] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__()
        self.decoder = Decoder(
            in_channels=in_channels,
            out_channels=out_channels,
            up_block_types=("UpDecoderBlock2D",) * len(block_out_channels),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
        )
        set_group_norm_eps(self.decoder, 1e-5)

    def forward(self, features: Tensor) -> Tensor:
        """Prediction ``(B, out_channels, 8h, 8w)`` for refiner output ``(B, in_channels, h, w)``; not clamped."""
        return decode_features(self.decoder, features)
