"""Attention whose probability maps are read without ever being built.

A pooled self-attention map is ``softmax(Q K^T / sqrt d) @ P`` for a fixed matrix ``P`` (keys x cells) that
resizes and average-pools the key image. Appending ``P`` to the values lets one pass yield both the attention
output and the pooled map, so memory is O(queries), not O(queries x keys).
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS = 8
"""Side of the pooled key grid."""


@lru_cache(maxsize=64)
def pooling_axis(size: int) -> Tensor:
    """One axis of the key pooling as a float32 matrix ``(size, 8)``.

    The axis is resized bilinearly to the next larger multiple of 8 (a multiple of 8 grows by 8, a quirk of the
    published code that its weights were trained with), average-pooled with window ``max(1, size // 8)``, and
    resized to 8 cells (PrimeDepth, "2.4 attention maps" of its specification).
    """
    eye = torch.eye(size)[:, None, :]
    grown = F.interpolate(eye, size=size + CELLS - size % CELLS, mode="linear", align_corners=False)
    pooled = F.avg_pool1d(grown, max(1, size // CELLS))
    return F.interpolate(pooled, size=CELLS, mode="linear", align_corners=False)[:, 0]


def key_pooling(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Pooling of an ``height x width`` key grid to 8 x 8 cells, float32 ``(height * width, 64)``."""
    rows, columns = pooling_axis(height).to(device), pooling_axis(width).to(device)
    return torch.einsum("ya,xb->yxab", rows, columns).reshape(height * width, CELLS * CELLS)


def pooled_attention(
    q: Tensor,  # [B, heads, N, d]
    k: Tensor,  # [B, heads, M, d]
    v: Tensor,  # [B, heads, M, d]
    pooling: Tensor,  # [M, P]
) -> tuple[Tensor, Tensor]:
    """Attention output ``(B, heads, N, d)`` and probabilities pooled over keys ``(B, heads, N, P)``.

    Fused kernels want one width for queries, keys and values, so queries and keys are padded with zeros,
    which changes no score.
    """
    dim, cells = v.shape[-1], pooling.shape[-1]
    columns = pooling.to(v.dtype).expand(*v.shape[:2], -1, -1)
    padding = dim + cells - q.shape[-1]
    out = F.scaled_dot_product_attention(
        F.pad(q, (0, padding)),
        F.pad(k, (0, padding)),
        torch.cat([v, columns], dim=-1),
        scale=q.shape[-1] ** -0.5,
    )
    return out[..., :dim], out[..., dim:]


def normalise_pooled(pooled: Tensor, height: int, width: int) -> Tensor:
    """Pooled self maps ``(B, heads, h*w, 64)`` as channels ``(B, heads*64, h, w)``, each head's maximum 1."""
    pooled = pooled / pooled.amax(dim=(-2, -1), keepdim=True)
    batch, heads, _, cells = pooled.shape
    return pooled.transpose(-1, -2).reshape(batch, heads * cells, height, width)


def cross_attention(
    q: Tensor,  # [B, heads, N, d]
    k: Tensor,  # [B, heads, T, d]
    v: Tensor,  # [B, heads, T, d]
) -> tuple[Tensor, Tensor]:
    """Attention output ``(B, heads, N, d)`` and its probabilities ``(B, heads, N, T)``, T being few tokens."""
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    probabilities = scores.float().softmax(dim=-1)
    return torch.matmul(probabilities.to(v.dtype), v), probabilities


def cross_maps(probabilities: Tensor, height: int, width: int) -> Tensor:
    """Cross maps ``(B, heads, h*w, T)`` as channels ``(B, heads*T, h, w)``."""
    batch, heads, _, tokens = probabilities.shape
    return probabilities.transpose(-1, -2).reshape(batch, heads * tokens, height, width)
