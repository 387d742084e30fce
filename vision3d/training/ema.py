"""Exponential moving average of the trained parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """Float32 average of a module's trained parameters; buffers are not averaged.

    The decay grows as ``min(decay, (1 + n) / (10 + n))`` with the number of updates ``n``, so that the random
    initialisation is forgotten early in short runs.

    Args:
        model: the module to follow, on its final device.
        decay: of the long run, e.g. 0.999; the average covers about ``1 / (1 - decay)`` steps.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(f"decay {decay} is outside (0, 1)")
        self.decay = decay
        self.updates = 0
        self._live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._average = {
            name: torch.empty_like(p, dtype=torch.float32).copy_(p.detach()) for name, p in self._live.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the current parameters; call once after every optimiser step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        live = [p.detach().float() for p in self._live.values()]
        torch._foreach_lerp_(list(self._average.values()), live, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the module holds the averaged values; afterwards its own, bit by bit."""
        own = {name: p.detach().clone() for name, p in self._live.items()}
        with torch.no_grad():
            for name, parameter in self._live.items():
                parameter.copy_(self._average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._live.items():
                    parameter.copy_(own[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Continue from saved averages. Raises KeyError when a parameter is missing."""
        for name, average in self._average.items():
            average.copy_(state[name])
        self.updates = updates
