"""Random choices of the procedural world: a thin, fast face of one numpy generator.

A scene takes thousands of scalar draws; ``Generator.random`` is several times cheaper than ``uniform`` or
``choice``, so everything is derived from it. Nothing here touches numpy's global state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Draw:
    """Scalar draws from ``PCG64`` seeded with one or several integers.

    Args:
        seed: what the stream depends on; the same integers give the same stream on every machine.
    """

    def __init__(self, *seed: int) -> None:
        self.generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
        self._random = self.generator.random

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self._random()

    def log_uniform(self, low: float, high: float) -> float:
        """A number in [low, high) whose logarithm is uniform."""
        return low * (high / low) ** self._random()

    def normal(self, mean: float = 0.0, deviation: float = 1.0) -> float:
        """A normal draw cut at three deviations, so that no rare draw builds an impossible object."""
        return mean + deviation * max(-3.0, min(3.0, float(self.generator.standard_normal())))

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high], both ends included."""
        return low + int(self._random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random() < probability

    def sign(self) -> float:
        """-1 or 1."""
        return 1.0 if self._random() < 0.5 else -1.0

    def pick(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        """One of the options, uniformly or in proportion to weights."""
        if weights is None:
            return options[int(self._random() * len(options))]
        at = self._random() * math.fsum(weights)
        for option, weight in zip(options, weights, strict=True):
            at -= weight
            if at < 0:
                return option
        return options[-1]

    def angle(self) -> float:
        """An angle in [0, 2π)."""
        return self._random() * 2 * math.pi
