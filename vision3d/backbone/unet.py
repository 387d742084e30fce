"""The Stable Diffusion UNet, read as it runs.

``walk`` is a forward pass over the stock diffusers modules that yields every intermediate by name. Whoever
has what they need stops iterating, and nothing after that point is computed: early exit is a ``break``.

Tap names: ``time`` (time embedding), ``d0``..``d11`` (outputs of the encoder blocks, which are the skips),
``mid``, ``in0``..``in11`` (inputs of the decoder blocks, skip concatenated), ``u{b}r{j}`` and ``u{b}a{j}``
(after the ResNet and the transformer of decoder block ``j`` at level ``b``), ``u{b}up`` (after its upsampler),
``out``. Aliases: ``s5 s4 s3 s2`` as in SD+DINO (outputs of LDM output blocks 1, 4, 7, 10) and ``dift{b}``
(output of ``up_blocks.b``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D, Upsample2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vision3d.backbone.attention import (
    cross_attention,
    cross_maps,
    key_pooling,
    normalise_pooled,
    pooled_attention,
)
from vision3d.errors import InputError

MANY_WEIGHTS = 10 << 20
"""Weights of a convolution from which on oneDNN is slow where pixels are few (measured)."""
FEW_PIXELS = 256
"""Pixels of a batch up to which a matrix product is faster then (measured with one and with two threads)."""

ALIASES = {"s5": "u0r1", "s4": "u1a1", "s3": "u2a1", "s2": "u3a1"}


@dataclass
class Tap:
    """One intermediate of the pass: its name, tensor ``(B, C, h, w)`` and, if asked for, attention maps.

    ``maps`` is ``(B, heads * (64 + tokens), h, w)``: pooled self-attention, then cross-attention.
    """

    name: str
    tensor: Tensor
    maps: Tensor | None = None


def tap_name(unet: UNet2DConditionModel, name: str) -> str:
    """Resolves the aliases ``s5``..``s2`` and ``dift{b}`` for this network.

    Raises:
        InputError: it has no such decoder level.
    """
    if name.startswith("dift"):
        levels = len(unet.up_blocks)
        level = int(name[4:]) if name[4:].isdecimal() else levels
        if level >= levels:
            raise InputError(f"no tap {name}", f"this UNet has dift0 to dift{levels - 1}")
        block = unet.up_blocks[level]
        if block.upsamplers:
            return f"u{level}up"
        last = len(block.resnets) - 1
        return f"u{level}{'a' if hasattr(block, 'attentions') else 'r'}{last}"
    return ALIASES.get(name, name)


def time_embedding(
    unet: UNet2DConditionModel, timesteps: int | Tensor, batch: int, time_add: Tensor | None = None
) -> Tensor:
    """Output of the time MLP ``(B, 4 * model channels)``; ``time_add`` (one row per image) is added to it."""
    weight = unet.time_embedding.linear_1.weight
    steps = torch.as_tensor(timesteps, device=weight.device).reshape(-1).expand(batch)
    temb = unet.time_embedding(unet.time_proj(steps).to(weight.dtype))
    return temb if time_add is None else temb + time_add.to(temb)


def transformer_with_maps(block: Transformer2DModel, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """A spatial transformer's output and its last layer's attention maps ``(B, heads * (64 + tokens), h, w)``.

    Computes what ``block(x, context)`` does; the self-attention map is pooled over an 8 x 8 grid of keys inside
    the attention pass and never built.
    """
    height, width = x.shape[-2:]
    h = block.norm(x)
    if not block.use_linear_projection:
        h = block.proj_in(h)
    h = rearrange(h, "b c y x -> b (y x) c")
    if block.use_linear_projection:
        h = block.proj_in(h)
    *before, layer = block.transformer_blocks
    for earlier in before:  # only the last layer's maps are read
        h = earlier(h, encoder_hidden_states=context)
    normed = layer.norm1(h)
    heads = layer.attn1.heads
    q, k, v = (
        rearrange(project(normed), "b n (h d) -> b h n d", h=heads)
        for project in (layer.attn1.to_q, layer.attn1.to_k, layer.attn1.to_v)
    )
    out, pooled = pooled_attention(q, k, v, key_pooling(height, width, x.device))
    h = h + layer.attn1.to_out[0](rearrange(out, "b h n d -> b n (h d)"))

    q = rearrange(layer.attn2.to_q(layer.norm2(h)), "b n (h d) -> b h n d", h=heads)
    k, v = (
        rearrange(project(context), "b n (h d) -> b h n d", h=heads)
        for project in (layer.attn2.to_k, layer.attn2.to_v)
    )
    out, probabilities = cross_attention(q, k, v)
    h = h + layer.attn2.to_out[0](rearrange(out, "b h n d -> b n (h d)"))
    h = h + layer.ff(layer.norm3(h))
    maps = [
        normalise_pooled(pooled.float(), height, width),
        cross_maps(probabilities, height, width),
    ]
    if block.use_linear_projection:
        h = block.proj_out(h)
    h = rearrange(h, "b (y x) c -> b c y x", y=height)
    if not block.use_linear_projection:
        h = block.proj_out(h)
    # The sum takes the memory layout of its first operand: x keeps the one that the convolutions after it expect.
    return x + h, torch.cat(maps, dim=1).to(x.dtype)


def _has_few_pixels(x: Tensor) -> bool:
    """Whether large convolutions of ``x`` are better done as matrix products (fp32 on CPUs, outside autograd)."""
    inference = not torch.is_grad_enabled() and x.device.type == "cpu" and x.dtype == torch.float32
    return inference and x.shape[0] * x.shape[-2] * x.shape[-1] <= FEW_PIXELS


def _is_watched(module: nn.Module) -> bool:
    """Whether calling it does more than its class says: hooks, or weights that are brought for the call."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """``conv(x)``, ``(B, C', h, w)``, up to rounding.

    Where many weights meet few pixels on a CPU, this is one matrix product. oneDNN would bring the weights into a
    layout of its own at every call, which takes longer than the arithmetic: up to four times at 4 x 4 pixels.
    """
    if not (
        type(conv) is nn.Conv2d
        and conv.kernel_size == (3, 3)
        and conv.stride == conv.padding == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and conv.bias is not None
        and conv.weight.numel() >= MANY_WEIGHTS
        and conv.weight.is_contiguous()
        and not _is_watched(conv)
        and _has_few_pixels(x)
    ):
        return conv(x)
    columns = F.unfold(x, 3, padding=1).transpose(0, 1).flatten(1)  # [C * 9, B * h * w]
    out = torch.addmm(conv.bias[:, None], conv.weight.flatten(1), columns)
    return out.unflatten(1, (x.shape[0], *x.shape[-2:])).transpose(0, 1).contiguous()


def residual_block(block: ResnetBlock2D, x: Tensor, temb: Tensor) -> Tensor:
    """``block(x, temb)`` with the convolutions of :func:`convolve`, ``(B, C', h, w)``."""
    stock = block.time_embedding_norm != "default" or block.skip_time_act or block.up or block.down
    if stock or block.time_emb_proj is None or not _has_few_pixels(x) or _is_watched(block):
        return block(x, temb)
    h = convolve(block.conv1, block.nonlinearity(block.norm1(x)))
    h = h + block.time_emb_proj(block.nonlinearity(temb))[:, :, None, None]
    h = convolve(block.conv2, block.dropout(block.nonlinearity(block.norm2(h))))
    shortcut = x if block.conv_shortcut is None else block.conv_shortcut(x)
    return (shortcut + h) / block.output_scale_factor


def upsample(upsampler: Upsample2D, x: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest-neighbour enlargement to exactly ``size`` (the next skip's), then the upsampler's convolution."""
    return convolve(upsampler.conv, F.interpolate(x, size=list(size), mode="nearest"))


def _attended(block: Transformer2DModel, x: Tensor, context: Tensor) -> Tensor:
    return block(x, encoder_hidden_states=context, return_dict=False)[0]


def walk(
    unet: UNet2DConditionModel,
    sample: Tensor,  # [B, 4, h, w]
    timesteps: int | Tensor,  # one, or one per row
    context: Tensor,  # [B or 1, tokens, width]
    *,
    time_add: Tensor | None = None,  # [B, 4 * model channels]
    attention_maps: bool = False,
    residuals: tuple[Sequence[Tensor], Tensor] | None = None,
    injected: Sequence[Tensor] | None = None,
) -> Iterator[Tap]:
    """Runs the UNet and yields each intermediate as it appears; stop iterating to stop computing.

    Args:
        unet: stock diffusers UNet of the SD 1.x or 2.x family.
        sample: noisy latents.
        timesteps: diffusion steps, may differ between rows.
        context: text embeddings; one row is shared by the batch.
        time_add: added to the output of the time MLP.
        attention_maps: yield pooled attention maps with every block that has a transformer.
        residuals: what a ControlNet adds: one tensor per skip, added when the encoder is through, and one that is
            added after the middle block (the tap ``mid`` is read before that).
        injected: one tensor per skip, added to the encoder's running activation where that skip is stored, so
            that it reaches all later blocks.

    The encoder and the middle block may also be a ControlNet's own: whoever stops at ``mid`` needs no decoder.
    """
    additions = iter(injected) if injected is not None else None
    context = context.to(sample.dtype).expand(sample.shape[0], -1, -1)
    temb = time_embedding(unet, timesteps, sample.shape[0], time_add)
    yield Tap("time", temb)

    def run(level: nn.Module, module: Callable[..., Tensor], x: Tensor, *others: Tensor) -> Tensor:
        """A module's output; under ``enable_gradient_checkpointing`` it is computed again for the gradient."""
        if torch.is_grad_enabled() and getattr(level, "gradient_checkpointing", False):
            return checkpoint(module, x, *others, use_reentrant=False)  # type: ignore[return-value]
        return module(x, *others)

    def attend(level: nn.Module, block: Transformer2DModel, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if attention_maps:
            return transformer_with_maps(block, x, context)
        return run(level, partial(_attended, block), x, context), None

    def inject(x: Tensor) -> Tensor:
        return x if additions is None else x + next(additions).to(x)

    h = inject(unet.conv_in(sample))
    skips = [h]
    yield Tap("d0", h)
    for level in unet.down_blocks:
        attentions: Iterable[Transformer2DModel | None] = getattr(
            level, "attentions", [None] * len(level.resnets)
        )
        for resnet, attention in zip(level.resnets, attentions, strict=True):
            h, maps = run(level, partial(residual_block, resnet), h, temb), None
            if attention is not None:
                h, maps = attend(level, attention, h)
            h = inject(h)
            skips.append(h)
            yield Tap(f"d{len(skips) - 1}", h, maps)
        if level.downsamplers:
            h = inject(level.downsamplers[0](h))
            skips.append(h)
            yield Tap(f"d{len(skips) - 1}", h)

    h = residual_block(unet.mid_block.resnets[0], h, temb)
    h, maps = attend(unet.mid_block, unet.mid_block.attentions[0], h)
    h = residual_block(unet.mid_block.resnets[1], h, temb)
    yield Tap("mid", h, maps)
    if residuals is not None:
        skips = [skip + added.to(skip) for skip, added in zip(skips, residuals[0], strict=True)]
        h = h + residuals[1].to(h)

    position = 0
    for b, level in enumerate(unet.up_blocks):
        attentions = getattr(level, "attentions", [None] * len(level.resnets))
        for j, (resnet, attention) in enumerate(zip(level.resnets, attentions, strict=True)):
            h = torch.cat([h, skips.pop()], dim=1)
            yield Tap(f"in{position}", h)
            h, maps = run(level, partial(residual_block, resnet), h, temb), None
            yield Tap(f"u{b}r{j}", h)
            if attention is not None:
                h, maps = attend(level, attention, h)
                yield Tap(f"u{b}a{j}", h, maps)
            position += 1
        if level.upsamplers:
            h = upsample(level.upsamplers[0], h, skips[-1].shape[-2:])
            yield Tap(f"u{b}up", h)

    yield Tap("out", unet.conv_out(unet.conv_act(unet.conv_norm_out(h))))


def read_taps(
    unet: UNet2DConditionModel,
    sample: Tensor,
    timesteps: int | Tensor,
    context: Tensor,
    taps: Iterable[str],
    *,
    time_add: Tensor | None = None,
    residuals: tuple[Sequence[Tensor], Tensor] | None = None,
    injected: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """The named intermediates; nothing after the last of them is computed. Arguments as in :func:`walk`.

    Raises:
        InputError: a name is none of this network's taps.
    """
    wanted: dict[str, list[str]] = {}
    for name in taps:
        wanted.setdefault(tap_name(unet, name), []).append(name)
    found: dict[str, Tensor] = {}
    steps = walk(unet, sample, timesteps, context, time_add=time_add, residuals=residuals, injected=injected)
    for tap in steps:
        if tap.name in wanted:
            found |= dict.fromkeys(wanted.pop(tap.name), tap.tensor)
            if not wanted:
                return found
    unknown = sorted(name for names in wanted.values() for name in names)
    raise InputError(
        f"no taps {', '.join(unknown)} in this UNet" if unknown else "no taps",
        "name some, such as s5 or u1a1",
    )


def denoise(
    unet: UNet2DConditionModel,
    sample: Tensor,
    timesteps: int | Tensor,
    context: Tensor,
    *,
    time_add: Tensor | None = None,
    residuals: tuple[Sequence[Tensor], Tensor] | None = None,
    injected: Sequence[Tensor] | None = None,
) -> Tensor:
    """The full pass: model output ``(B, out_channels, h, w)`` in the network's own parameterisation.

    Arguments as in :func:`walk`.
    """
    out = read_taps(
        unet,
        sample,
        timesteps,
        context,
        ["out"],
        time_add=time_add,
        residuals=residuals,
        injected=injected,
    )
    return out["out"]
