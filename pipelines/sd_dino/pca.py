"""Co-PCA: both images' features of a layer in one basis, then all layers on the finest grid (section 3.5).

The published projection is randomised and drawn from torch's global generator, so its numbers belong to one run.
``exact`` (our default) takes the eigenvectors of the smaller of covariance and Gram matrix: deterministic, and
faster. ``lowrank`` is the published one, with a generator if asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vision3d.errors import InputError
from vision3d.pipelines.sd_dino.features import STRIDES, resize_map

Method = Literal["exact", "lowrank"]


def principal_axes(rows: Tensor, count: int, method: Method = "exact") -> Tensor:
    """Principal directions ``(C, k)`` of centred rows ``(N, C)``, largest variance first, ``k <= count``.

    Args:
        rows: already centred.
        count: directions wanted; there are at most min(N, C).
        method: ``exact``, each direction's largest entry positive; ``lowrank``, randomised, two iterations, drawn
            from torch's global CPU generator, signs as they come.
    """
    n, channels = rows.shape
    count = min(count, n, channels)
    if method == "lowrank":
        # the published call centres again by itself
        return torch.pca_lowrank(rows, q=count)[2]
    if method != "exact":
        raise InputError(f"PCA method {method!r}", "choose exact or lowrank")
    rows = rows.float()
    if n < channels:
        # eigenvectors u of X X^T give those of X^T X as X^T u, of length sqrt(eigenvalue)
        _, vectors = torch.linalg.eigh(rows @ rows.T)
        axes = F.normalize(rows.T @ vectors[:, -count:].flip(1), dim=0)
        # where the rows do not vary (n centred rows span n - 1 directions at most) that is rounding, along the others
        axes = torch.linalg.qr(axes)[0]
    else:
        _, vectors = torch.linalg.eigh(rows.T @ rows)
        axes = vectors[:, -count:].flip(1)
    return fixed_signs(axes)


def fixed_signs(axes: Tensor) -> Tensor:
    """Directions ``(C, k)`` whose entry of largest magnitude is positive."""
    peaks = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return axes * torch.where(peaks < 0, -1.0, 1.0)


def seeded_lowrank(rows: Tensor, count: int, seed: int) -> Tensor:
    """The published directions as drawn after ``torch.manual_seed(seed)``, leaving the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return principal_axes(rows, count, "lowrank")


def _rows(features: Tensor) -> Tensor:
    return features.flatten(1).T


def co_pca(
    first: Mapping[str, Tensor],  # name -> [C, h, w]
    second: Mapping[str, Tensor],
    dims: Mapping[str, int],
    method: Method = "exact",
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Each layer of two images projected on the directions of both, ``(k, h, w)``.

    Args:
        first, second: taps of the two images.
        dims: directions per layer; layers are taken in this order, which matters to ``lowrank`` only.
        method: see :func:`principal_axes`.
    """
    results: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for name, count in dims.items():
        parts = [_rows(image[name]).float() for image in (first, second)]
        rows = torch.cat(parts)
        rows = rows - rows.mean(0, keepdim=True)
        projected = rows @ principal_axes(rows, count, method)
        for result, image, part in zip(
            results, (first, second), projected.split([len(p) for p in parts]), strict=True
        ):
            result[name] = part.T.unflatten(1, image[name].shape[-2:])
    return results


@dataclass
class DatasetPCA:
    """One basis for many images, from sums that are updated image by image (a method of ours, not the published).

    Descriptors then belong to an image instead of a pair, and matching all pairs is one product each.

    Attributes:
        dims: directions per layer.
    """

    dims: Mapping[str, int]
    _count: dict[str, int] = field(default_factory=dict)
    _sum: dict[str, Tensor] = field(default_factory=dict)
    _outer: dict[str, Tensor] = field(default_factory=dict)

    def update(self, features: Mapping[str, Tensor]) -> None:
        """Takes in an image's taps."""
        for name in self.dims:
            rows = _rows(features[name]).double()
            self._count[name] = self._count.get(name, 0) + len(rows)
            self._sum[name] = self._sum.get(name, 0) + rows.sum(0)
            self._outer[name] = self._outer.get(name, 0) + rows.T @ rows

    def fit(self) -> dict[str, tuple[Tensor, Tensor]]:
        """For each layer its mean ``(C,)`` and directions ``(C, k)``.

        Raises:
            InputError: no image was taken in.
        """
        if not self._count:
            raise InputError("no images for a common PCA", "give at least one")
        bases = {}
        for name, count in self.dims.items():
            mean = self._sum[name] / self._count[name]
            covariance = self._outer[name] - self._count[name] * torch.outer(mean, mean)
            _, vectors = torch.linalg.eigh(covariance)
            axes = fixed_signs(vectors[:, -min(count, len(mean)) :].flip(1))
            bases[name] = mean.float(), axes.float()
        return bases


def project(features: Mapping[str, Tensor], bases: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Taps of one image in given bases, ``(k, h, w)`` each."""
    return {
        name: ((_rows(features[name]).float() - mean) @ axes).T.unflatten(1, features[name].shape[-2:])
        for name, (mean, axes) in bases.items()
    }


def stack_layers(features: Mapping[str, Tensor]) -> Tensor:
    """Layers on the finest one's grid, channels finest first: ``[s3 | s4 | s5]``.

    The coarsest is enlarged to the next finer grid, joined to it, and so on: ``s5`` is enlarged twice, as published.
    """
    names = by_grid(features)
    stacked: Tensor | None = None
    for name in names:
        here = features[name]
        size = (here.shape[-2], here.shape[-1])
        stacked = here if stacked is None else torch.cat([here, resize_map(stacked, size)])
    if stacked is None:
        raise InputError("no layers to stack", "ask for at least one of s5, s4, s3, s2")
    return stacked


def by_grid(names: Mapping[str, object] | Sequence[str]) -> list[str]:
    """Tap names from the coarsest to the finest."""
    return sorted(names, key=lambda name: -STRIDES[name])
