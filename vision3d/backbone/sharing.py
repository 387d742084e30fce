"""One copy of what is equal: networks by their tensors, latents by image, preprocessing and network.

Two pipelines whose checkpoints hold the same autoencoder, in whatever layout, share one module, and an image that
both prepare alike is encoded once.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from vision3d.backbone.featurecache import LatentCache, LatentKey, image_sha256, shared_latents
from vision3d.backbone.vae import encode_moments

Network = TypeVar("Network", bound=nn.Module)

_NETWORKS: weakref.WeakValueDictionary[str, nn.Module] = weakref.WeakValueDictionary()
# Numbers of networks without a file: unlike id(), never given to another one later.
_NUMBERS: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_COUNT = itertools.count()
ENCODER = ("encoder", "quant_conv")
"""The parts of an autoencoder that latents depend on."""


def has_file(network: Any) -> bool:
    """Whether a network is told by its file, in this process and in later ones."""
    source = getattr(network, "_weight_source", None)
    return source is not None and source.path.is_file()


def identity(network: nn.Module, parts: tuple[str, ...] = ()) -> str:
    """What a network computes, as text: class, weights' checksum, norms' epsilon, dtype.

    A network that was not loaded from a file is only equal to itself.

    Args:
        network: any.
        parts: submodules that matter; by default all.
    """
    if not has_file(network):
        if network not in _NUMBERS:
            _NUMBERS[network] = next(_COUNT)
        weights = f"object {_NUMBERS[network]}"
    else:
        weights = network._weight_source.checksum(parts)  # type: ignore[operator, union-attr]
    epsilons = sorted({layer.eps for layer in network.modules() if isinstance(layer, nn.GroupNorm)})
    dtype = next((p.dtype for p in network.parameters()), None)
    return f"{type(network).__name__}|{weights}|{epsilons}|{dtype}"


def share(network: Network) -> Network:
    """The network of this process that is equal to ``network``: one made before, or itself."""
    key = identity(network)
    found = _NETWORKS.get(key)
    if found is None or identity(found) != key:  # someone has cast it since
        _NETWORKS[key] = found = network
    return found  # type: ignore[return-value]


def cast(network: Network, dtype: torch.dtype) -> Network:
    """The network in another floating type.

    One that was loaded from a file may belong to other pipelines, too: it stays as it is, and the result is another,
    shared with whoever wants that type. One without a file is cast itself.
    """
    if not has_file(network):
        return network.to(dtype)
    if all(p.dtype == dtype for p in network.parameters() if p.is_floating_point()):
        return network
    source = network._weight_source
    # a copy without storage, which reads its weights when they are needed
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
        for p in network.parameters()
    }
    memo[id(source)] = replace(source, dtype=dtype)  # type: ignore[type-var]
    return share(copy.deepcopy(network, memo).to(dtype))


def shared_moments(
    vae: AutoencoderKL,
    images: Tensor,  # [B, 3, H, W], RGB in [0, 1]
    *,
    cache: LatentCache | None = None,
    encode: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """Posterior mean and log-variance ``(B, 4, h/8, w/8)``; images that were encoded before cost nothing.

    Args:
        vae: the autoencoder.
        images: what it sees, after all preprocessing; each is looked up by its own values.
        cache: where they are looked up; the process's own by default.
        encode: runs the autoencoder, ``encode_moments`` by default.
    """
    cache = shared_latents() if cache is None else cache
    run = encode or (lambda batch: encode_moments(vae, batch))
    # Methods that bring their own decoder (DM-Calib's depth, small weights) still share the encoder.
    network = identity(vae, ENCODER)
    # The autoencoder sees 2x - 1, in which the roundings of pipelines that hold images in [-1, 1] are equal again.
    keys = [LatentKey(image_sha256(row * 2 - 1), "", network, str(images.dtype), "moments") for row in images]

    def encoded(indices: list[int]) -> list[Tensor]:
        # clones, for slices would keep the whole batch alive
        return [row.clone() for row in torch.cat(run(images[indices]), dim=1).split(1)] if indices else []

    missing = [i for i, key in enumerate(keys) if key not in cache and keys.index(key) == i]
    fresh = dict(zip(missing, encoded(missing), strict=True))
    rows = [
        cache.get_or_compute(key, partial(_first, fresh.get(i), partial(encoded, [i])))
        for i, key in enumerate(keys)
    ]
    mean, logvar = torch.cat([row.to(images.device) for row in rows]).chunk(2, dim=1)
    return mean, logvar


def _first(known: Tensor | None, compute: Callable[[], list[Tensor]]) -> Tensor:
    return compute()[0] if known is None else known
