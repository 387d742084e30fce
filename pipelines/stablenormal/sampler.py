"""The heuristic DDIM sampler of SG-DRN and the published loop around it, without any network.

Timesteps with leading spacing; the first half of them is replaced by one and the same step, at which the estimate
is refined from re-noised predictions before ordinary DDIM carries it to the end. The step at which the one becomes
the other is computed as if it came from one spacing above (StableNormal, ``HEURI_DDIMScheduler``).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vision3d.backbone.schedule import STEPS as TRAIN_STEPS
from vision3d.backbone.schedule import rounded_alphas_cumprod
from vision3d.errors import InputError


def _levels(t: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of signal and noise at a timestep, as scalars of the dtype and device of ``like``."""
    abar = rounded_alphas_cumprod()[t]
    return (abar**0.5).to(like), ((1 - abar) ** 0.5).to(like)


@dataclass(frozen=True)
class HeuristicSchedule:
    """Steps of one refinement.

    Attributes:
        timesteps: of the network calls, descending with repetitions.
        previous: timestep that each step leads to; the last leads to 0.
        naive: number of leading calls at the same timestep.
        gap: spacing of the ordinary steps.
    """

    timesteps: tuple[int, ...]
    previous: tuple[int, ...]
    naive: int
    gap: int

    @classmethod
    def of(cls, steps: int) -> HeuristicSchedule:
        """The schedule of a number of network calls.

        Raises:
            InputError: fewer than 2 or more than 1000.
        """
        if not 2 <= steps <= TRAIN_STEPS:
            raise InputError(f"{steps} refinement steps", f"give 2 to {TRAIN_STEPS}, or choose turbo for one")
        gap, naive = TRAIN_STEPS // steps, steps // 2
        spaced = [(steps - 1 - i) * gap for i in range(steps)]
        spaced[:naive] = [spaced[naive]] * naive
        timesteps = tuple(t + 1 for t in spaced)
        return cls(timesteps, (*timesteps[1:], 0), naive, gap)

    @property
    def draws(self) -> int:
        """Number of fresh noise tensors that one refinement takes."""
        return self.naive - 1

    def is_renoised(self, index: int) -> bool:
        """Whether the sample after this call is the prediction with fresh noise."""
        return index + 1 < self.naive

    def step(self, index: int, x0: Tensor, sample: Tensor, noise: Tensor | None = None) -> Tensor:
        """The sample of the next call.

        Args:
            index: which call has been made, from 0.
            x0: its output.
            sample: its input.
            noise: fresh standard normal values, used where :meth:`is_renoised`.
        """
        t, previous = self.timesteps[index], self.previous[index]
        if self.is_renoised(index):
            assert noise is not None
            alpha, sigma = _levels(t, x0)
            return alpha * x0 + sigma * noise
        if index + 1 == self.naive and t == previous:
            t = min(t + self.gap, TRAIN_STEPS - 1)
        alpha, sigma = _levels(t, sample)
        epsilon = (sample - alpha * x0) / sigma
        alpha, sigma = _levels(previous, sample)
        return alpha * x0 + sigma * epsilon
