"""What a method must say about itself to be trained.

The loop never sees images, schedulers or heads: it asks a task for batch ``k``, calls its loss and steps the
optimiser. Two rules make a run resumable to the bit: a batch is a pure function of its index, and all noise
of a loss comes from the generator that the loop seeds with that same index.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from vision3d.errors import InputError

Batch: TypeAlias = Mapping[str, Any]
"""Tensors (first axis: image) and lists (captions); the loop moves the tensors to its device."""


class Batches(Protocol):
    """Batch ``k`` for every ``k >= 0``: the same one whenever and in whichever process it is asked for."""

    def __getitem__(self, index: int) -> Batch: ...


@dataclass(frozen=True)
class TaskOptions:
    """What a person may set for every task; ``None`` leaves the preset's value.

    Args:
        preset: name of the size and recipe, e.g. "mini" or "full".
        data: folder of rendered samples (``ShardCache``) or of photographs; None renders while training.
        init: folder of weights to start from (a prior, an earlier export of the same task).
        batch_size: images per optimiser step and process, before accumulation.
        seed: of initialisation, order, crops, augmentation and noise.
        checkpointing: trade time for memory by recomputing activations.

    Raises:
        InputError: no images per step, or a negative seed.
    """

    preset: str = "mini"
    data: Path | None = None
    init: Path | None = None
    batch_size: int | None = None
    seed: int = 0
    checkpointing: bool | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"batch size {self.batch_size}", "give at least 1")
        if self.seed < 0:
            raise InputError(f"seed {self.seed}", "give 0 or more")

    @property
    def recomputes(self) -> bool:
        """Whether activations are recomputed: as asked for, else at the published sizes ("full...")."""
        return self.preset.startswith("full") if self.checkpointing is None else self.checkpointing


class Task(ABC):
    """One training problem.

    Life of a task: :meth:`from_options` → :meth:`build` (the returned container holds everything that is
    trained) → the loop moves the container and :meth:`frozen` modules to the device → :meth:`loss` for every
    micro-batch, :meth:`evaluate` now and then → :meth:`export` under the averaged weights.
    """

    name: ClassVar[str]
    device: torch.device = torch.device("cpu")
    """Where the modules are; set by the loop before the first loss."""

    batch_size: int
    """Images in one micro-batch, on average; only for logs and the record."""

    turns: tuple[int, ...] = ()
    """Images in each of the micro-batches that take turns, where they differ; see :meth:`take_turns`."""

    def take_turns(self, counts: Iterable[int]) -> None:
        """Say how many images the micro-batches have that take turns."""
        self.turns = tuple(counts)
        self.batch_size = round(sum(self.turns) / len(self.turns))

    def images_at(self, index: int) -> int:
        """Images in the micro-batch of this index, for the count of a run."""
        return self.turns[index % len(self.turns)] if self.turns else self.batch_size

    @classmethod
    @abstractmethod
    def from_options(cls, options: TaskOptions) -> Task:
        """Make the task of a preset. Raises InputError for an unknown preset or missing folders."""

    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """This preset's :class:`~vision3d.training.trainer.TrainerSettings`, e.g. ``{"lr": 1e-4}``."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Make the container of all trained modules (float32, CPU); keep a reference for :meth:`loss`.

        Called once, under the run's seed. Frozen modules stay outside the container, as attributes.
        """

    def frozen(self) -> Iterable[nn.Module]:
        """Modules that are used and not trained; the loop moves them, sets ``eval`` and stops gradients."""
        return ()

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """Parameters for AdamW; ``lr_scale`` in a group multiplies the run's learning rate.

        By default vectors (biases, norm scales) are not decayed, as usual for transformers and diffusion.
        """
        matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
        vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
        return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]

    @abstractmethod
    def batches(self) -> Batches:
        """The batches, indexable in any order; must survive ``fork`` into worker processes."""

    @abstractmethod
    def loss(self, batch: Batch, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch.

        Args:
            batch: as :meth:`batches` made it, on the device.
            step: optimiser steps done so far.
            generator: on the CPU (so that every device draws the same), seeded from the run's seed and the
                index of the batch; see :func:`noise`.

        Returns:
            The scalar to minimise and detached scalars to log.
        """

    def evaluate(self, step: int) -> dict[str, float]:
        """Measure on held-out data under the averaged weights, without gradient; larger is not implied."""
        return {}

    def images(self, step: int) -> dict[str, Tensor]:
        """Pictures to look at: name → (N, 3, H, W) in [0, 1]; under the averaged weights."""
        return {}

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the trained components below ``folder``, one sub-folder each (see ``export_component``)."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Everything that defines the task, as JSON: a run resumes only when this is unchanged.

        No absolute paths: data are named by their content (seed ranges, sizes), weights by their checksum.
        """


def noise(shape: Iterable[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal values drawn on the CPU, so that a run does not depend on the kind of device."""
    return torch.randn(tuple(shape), generator=generator, device="cpu").to(device, non_blocking=True)
