"""Which of a pipeline's networks are in memory: all of them, or each when its turn comes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from vision3d.backbone import loading
from vision3d.device import parse_bytes

RESERVE = 3 << 29
"""Bytes beside the weights: the interpreter, its libraries and activations."""


class Residency:
    """Mixed into pipelines whose networks are bound to files and read at first use."""

    _device: torch.device = torch.device("cpu")
    _memory_budget: int | None = None
    _sequential: bool = False

    def used_parts(self, network: nn.Module) -> tuple[str, ...]:
        """Parts of a network that are ever run, the only ones to be read from disk; () is all of it."""
        return ()

    def place(self, device: torch.device, memory: str | int, *networks: nn.Module) -> None:
        """Decides where networks run, and whether all of them can stay resident.

        Args:
            device: where they run.
            memory: ``auto`` for no limit, or a budget in bytes or such as ``6.5G``.
            networks: what would stay resident: networks, or the parts of them that are used.

        Raises:
            InputError: a budget that cannot be read.
        """
        self._device = device
        self._memory_budget = None if memory == "auto" else parse_bytes(memory)
        needed = loading.parameter_bytes(*networks) + RESERVE
        self._sequential = self._memory_budget is not None and self._memory_budget < needed

    def load_unless_sequential(self, *networks: nn.Module) -> None:
        """Reads the weights of networks that stay resident."""
        if not self._sequential:
            for network in networks:
                loading.load_weights(network, self._device, self.used_parts(network))

    @contextmanager
    def resident(self, *networks: nn.Module) -> Iterator[None]:
        """Weights of these networks are on the device inside; released after, in sequential mode."""
        for network in networks:
            hook = getattr(network, "_hf_hook", None)
            if hook is not None:
                hook.pre_forward(network)
            else:
                loading.load_weights(network, self._device, self.used_parts(network))
        try:
            yield
        finally:
            if self._sequential:
                for network in networks:
                    loading.release_weights(network)


class DiffusersResidency(Residency):
    """The same for a ``DiffusionPipeline``, whose face moves and saves networks; to be mixed in before it."""

    components: dict[str, Any]
    unet: Any

    @property
    def device(self) -> torch.device:
        """Where networks run, loaded or not."""
        return self._device

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Moves (and casts) every loaded network, as ``DiffusionPipeline.to`` does."""
        for network in self.components.values():
            if isinstance(network, nn.Module):
                loading.load_weights(network)
        super().to(*args, **kwargs)  # type: ignore[misc]
        self._device = self.unet.device
        return self
