"""The Stable Diffusion autoencoder and decoders of its shape, run lean.

Outside autograd, encoders and decoders compute what diffusers' ``forward`` does, up to rounding, with less
work and memory:

- GroupNorm, SiLU and convolution run over strips of rows: the statistics are taken first, then each strip is
  normalised, activated and convolved, so no normalised copy of a full-resolution tensor exists.
- Nearest-neighbour doubling followed by a 3x3 convolution is four 2x2 convolutions on the small image, one per
  output phase: 16/36 of the arithmetic, and the enlarged tensor never exists.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D
from torch import Tensor, nn

SCALING_FACTOR = 0.18215
"""Latents of the released SD 1.x and 2.x autoencoders are scaled by this to unit variance."""

STRIP_BYTES = 4 << 20
"""A strip's working set: small enough to stay near the cores, large enough to keep kernels busy."""


def set_group_norm_eps(module: nn.Module, eps: float) -> None:
    """Gives every GroupNorm of ``module`` this epsilon (SD's autoencoder has 1e-6, PrimeDepth's 1e-5)."""
    for layer in module.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.eps = eps


def encode_moments(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior mean and log-variance ``(B, 4, h/8, w/8)`` of images in [0, 1] ``(B, 3, h, w)``.

    Sizes that are no multiple of 8 lose the remainder, as the published encoder does.
    """
    x = images.to(vae.encoder.conv_in.weight.dtype) * 2 - 1
    mean, logvar = vae.quant_conv(encode_features(vae.encoder, x)).chunk(2, dim=1)
    return mean, logvar.clamp(-30.0, 20.0)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance of each row, in fp32."""
    if rows.device.type != "cpu":
        variance, mean = torch.var_mean(rows.float(), dim=-1, correction=0)
        return mean, variance
    # torch's own reduction is scalar on CPU; two vectorised passes over one cached row are ten times faster. The mean
    # sums in a cascade; a plain sum of squares would lose a digit where a picture is flat.
    mean = rows.mean(dim=-1, dtype=torch.float32)
    variance = torch.empty_like(mean)
    for i, row in enumerate(rows):
        centred = row.float() - mean[i]
        variance[i] = centred.square_().mean()
    return mean, variance


def scale_shift(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """GroupNorm of ``x`` as one multiplication and addition per channel, each ``(B, C, 1, 1)``."""
    batch, channels = x.shape[:2]
    mean, variance = _moments(x.reshape(batch * norm.num_groups, -1))
    mean, variance = mean.view(batch, -1), variance.view(batch, -1)
    scale = (variance + norm.eps).rsqrt().repeat_interleave(channels // norm.num_groups, 1)
    mean = mean.repeat_interleave(channels // norm.num_groups, 1)
    weight, bias = norm.weight.float(), norm.bias.float()
    scale, shift = scale * weight, bias - mean * scale * weight
    return scale.to(x.dtype)[..., None, None], shift.to(x.dtype)[..., None, None]


def _is_small(channels: int, height: int, width: int) -> bool:
    """Whether the features of one image fit in a strip at the image's size, where they are largest."""
    return 4 * channels * height * width <= STRIP_BYTES


def _strips(height: int, row_bytes: int) -> list[tuple[int, int]]:
    rows = max(8, STRIP_BYTES // max(1, row_bytes))
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def _pad_rows(strip: Tensor, top: int, bottom: int, reach: int, height: int) -> Tensor:
    """Zero rows where a strip's surroundings of ``reach`` rows lie outside the image."""
    edge = (0, 0, max(0, reach - top), max(0, bottom + reach - height))
    return F.pad(strip, edge) if any(edge) else strip


def norm_silu_conv(
    norm: nn.GroupNorm,
    conv: nn.Conv2d,
    x: Tensor,
    residual: Tensor | None = None,
    shortcut: nn.Conv2d | None = None,
) -> Tensor:
    """``conv(silu(norm(x)))``, plus ``shortcut(residual)`` when given, strip by strip.

    Args:
        norm, conv: normalisation and 3x3 convolution.
        x: ``(B, C, H, W)``.
        residual: ``(B, C', H, W)``; without a shortcut it is overwritten with the sum and returned.
        shortcut: 1x1 convolution of the residual.
    """
    batch, channels, height, width = x.shape
    scale, shift = scale_shift(norm, x)
    in_place = residual is not None and shortcut is None
    out = residual if in_place else x.new_empty(batch, conv.out_channels, height, width)
    assert out is not None
    reach = int(conv.padding[0])
    for top, bottom in _strips(height, batch * channels * width * x.element_size()):
        inside = slice(max(0, top - reach), min(height, bottom + reach))
        active = F.silu(torch.addcmul(shift, x[:, :, inside], scale), inplace=True)
        strip = _pad_rows(active, top, bottom, reach, height)
        part = F.conv2d(strip, conv.weight, conv.bias, padding=(0, int(conv.padding[1])))
        if in_place:
            out[:, :, top:bottom] += part
        elif residual is not None and shortcut is not None:
            torch.add(part, shortcut(residual[:, :, top:bottom]), out=out[:, :, top:bottom])
        else:
            out[:, :, top:bottom] = part
    return out


def _resnet(block: ResnetBlock2D, x: Tensor) -> Tensor:
    h = norm_silu_conv(block.norm1, block.conv1, x)
    return norm_silu_conv(block.norm2, block.conv2, h, x, block.conv_shortcut)


def _middle(block: UNetMidBlock2D, h: Tensor) -> Tensor:
    h = _resnet(block.resnets[0], h)
    if block.attentions[0] is not None:
        h = block.attentions[0](h)
    return _resnet(block.resnets[1], h)


def encode_features(encoder: Encoder, x: Tensor) -> Tensor:
    """An encoder's output (moments before ``quant_conv``) for images in [-1, 1] ``(B, 3, H, W)``.

    Under autograd (they keep what the backward pass needs) and for small images the stock modules run; otherwise the
    lean path.
    """
    if torch.is_grad_enabled() or _is_small(encoder.conv_in.out_channels, *x.shape[-2:]):
        return encoder(x)
    h = encoder.conv_in(x)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            h = _resnet(resnet, h)
        if block.downsamplers:
            h = block.downsamplers[0](h)
    return norm_silu_conv(encoder.conv_norm_out, encoder.conv_out, _middle(encoder.mid_block, h))


def doubling_kernels(weight: Tensor) -> list[list[Tensor]]:
    """The four 2x2 kernels that a 3x3 kernel becomes after nearest-neighbour doubling, by output phase [y][x]."""
    top, middle, bottom = weight.unbind(dim=2)
    rows = ((top, middle + bottom), (top + middle, bottom))
    kernels = []
    for pair in rows:
        line = torch.stack(pair, dim=2)
        left, centre, right = line.unbind(dim=3)
        kernels.append(
            [torch.stack((left, centre + right), dim=3), torch.stack((left + centre, right), dim=3)]
        )
    return kernels


def double_and_convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv(nearest-neighbour doubling of x)`` for a 3x3 convolution with padding 1: ``(B, C', 2H, 2W)``."""
    batch, channels, height, width = x.shape
    out = x.new_empty(batch, conv.out_channels, 2 * height, 2 * width)
    kernels = doubling_kernels(conv.weight)
    for top, bottom in _strips(height, batch * channels * width * x.element_size()):
        inside = slice(max(0, top - 1), min(height, bottom + 1))
        strip = F.pad(_pad_rows(x[:, :, inside], top, bottom, 1, height), (1, 1))
        for y in (0, 1):
            for col in (0, 1):
                window = strip[:, :, y : y + bottom - top + 1, col : col + width + 1]
                out[:, :, 2 * top + y : 2 * bottom : 2, col::2] = F.conv2d(window, kernels[y][col], conv.bias)
    return out


def decode_features(decoder: Decoder, z: Tensor) -> Tensor:
    """A decoder's output for its input ``(B, C, h, w)``: ``(B, out_channels, 8h, 8w)``.

    Under autograd and for small images the stock modules run, otherwise the lean path, as for encoders.
    """
    if torch.is_grad_enabled() or _is_small(
        decoder.conv_out.in_channels, *(8 * side for side in z.shape[-2:])
    ):
        return decoder(z)
    h = _middle(decoder.mid_block, decoder.conv_in(z))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            h = _resnet(resnet, h)
        if block.upsamplers:
            h = double_and_convolve(block.upsamplers[0].conv, h)
    return norm_silu_conv(decoder.conv_norm_out, decoder.conv_out, h)


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Images in [-1, 1] ``(B, 3, 8h, 8w)`` for unscaled latents ``(B, 4, h, w)``; not clamped."""
    return decode_features(vae.decoder, vae.post_quant_conv(latents))
