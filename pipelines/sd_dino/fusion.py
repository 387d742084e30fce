"""Descriptors of both networks in one vector, and how similar two of them are (section 3.6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from vision3d.errors import InputError

Metric = Literal["l2", "cosine", "l1", "l2_norm", "l1_norm", "plus", "plus_norm"]
DISTANCE_EPS, COSINE_EPS = 1e-6, 1e-8
"""Of torch's PairwiseDistance and CosineSimilarity, which the published code uses."""


def layer_factors(lengths: Sequence[int], weights: Sequence[float], like: Tensor) -> Tensor:
    """A factor per channel ``(sum(lengths),)``: consecutive slices of these lengths times these weights."""
    if len(lengths) != len(weights):
        raise InputError(f"{len(weights)} layer weights for {len(lengths)} layers", "give one for each layer")
    values = like.new_tensor(list(weights))
    return values.repeat_interleave(torch.tensor(list(lengths), device=like.device))


def unit(vectors: Tensor) -> Tensor:
    """Vectors (last axis) of length 1; a zero vector stays zero."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)


def fuse(
    sd: Tensor | None,  # [N, C], layers stacked
    dino: Tensor | None,  # [N, D]
    *,
    lengths: Sequence[int] = (),
    layer_weights: Sequence[float] = (),
    half_weights: tuple[float, float] = (1.0, 1.0),
    weigh_after: bool = False,
) -> Tensor:
    """Descriptors ``(N, C + D)``: each half of length 1 times its weight; one half alone stays as it is.

    Args:
        sd, dino: descriptors of the two networks, or None.
        lengths: channels of the layers in ``sd``, in its order.
        layer_weights: their weights; empty for all 1.
        half_weights: of the two halves.
        weigh_after: apply the layers' weights after the norm instead of before (the published evaluation on TSS, which
            has no weights of halves).

    Raises:
        InputError: neither half is given.
    """
    factors = None
    if sd is not None and len(layer_weights) and any(w != 1 for w in layer_weights):
        factors = layer_factors(lengths, layer_weights, sd)
    if sd is None or dino is None:
        alone = sd if sd is not None else dino
        if alone is None:
            raise InputError("no features to match", "ask for sd, dino or both")
        return alone if factors is None else alone * factors
    if factors is not None and not weigh_after:
        sd = sd * factors
    sd, dino = unit(sd), unit(dino)
    if factors is not None and weigh_after:
        sd = sd * factors
    return torch.cat([sd * half_weights[0], dino * half_weights[1]], dim=-1)


def similarity(
    first: Tensor,  # [N, C]
    second: Tensor,  # [M, C]
    metric: Metric = "l2",
    *,
    halves: int | None = None,
    exact: bool = False,
) -> Tensor:
    """Similarity ``(N, M)``, larger is nearer.

    ``l2`` and ``l1`` are negative distances, ``*_norm`` those of unit vectors, ``plus`` and ``plus_norm`` the cosine of
    the sum of the two halves, as they are and of length 1. Products instead of loops over rows: the numbers agree with
    the published loop to rounding.

    Args:
        first, second: descriptors.
        metric: how they are compared.
        halves: channels of the first half, for ``plus``; both must be as wide.
        exact: differences instead of products for ``l2``: slower, and right to rounding even for equal descriptors.

    Raises:
        InputError: an unknown metric, or halves that cannot be added.
    """
    first, second = prepare(first, metric, halves), prepare(second, metric, halves)
    if exact and metric.startswith("l2"):
        mode = "donot_use_mm_for_euclid_dist"
        return -torch.cdist(first + DISTANCE_EPS, second, compute_mode=mode)
    return prepared_similarity(first, second, metric)


def prepare(vectors: Tensor, metric: Metric, halves: int | None = None) -> Tensor:
    """What of a descriptor can be computed before its partner is known."""
    if metric not in get_args(Metric):
        raise InputError(f"metric {metric!r}", f"choose one of {', '.join(get_args(Metric))}")
    vectors = vectors.float()
    if metric.startswith("plus"):
        if halves is None or vectors.shape[-1] != 2 * halves:
            raise InputError(f"metric {metric!r} needs two halves of equal width", "use l2")
        vectors = vectors[..., :halves] + vectors[..., halves:]
    if metric.endswith("_norm"):
        vectors = unit(vectors)
    if metric in ("cosine", "plus", "plus_norm"):
        vectors = vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(COSINE_EPS)
    return vectors


def prepared_similarity(first: Tensor, second: Tensor, metric: Metric) -> Tensor:
    """Similarity ``(N, M)`` of descriptors that went through :func:`prepare`."""
    if metric.startswith("l1"):
        return -torch.cdist(first + DISTANCE_EPS, second, p=1)
    product = first @ second.T
    if not metric.startswith("l2"):
        return product
    # |a - b + eps|^2; the shift moves a only.
    shifted = first + DISTANCE_EPS
    product = product + DISTANCE_EPS * second.sum(1)
    squares = shifted.square().sum(1, keepdim=True) + second.square().sum(1) - 2 * product
    return -squares.clamp_min(0).sqrt()


def similarity_rows(
    first: Tensor, second: Tensor, metric: Metric, *, halves: int | None = None, rows: int = 1024
) -> Iterator[tuple[int, Tensor]]:
    """The similarity matrix ``rows`` rows at a time: (first row, block); never held as a whole."""
    ready = prepare(second, metric, halves)
    for start in range(0, len(first), rows):
        block = prepare(first[start : start + rows], metric, halves)
        yield start, prepared_similarity(block, ready, metric)
