"""Muon beside AdamW: orthogonal steps for weight matrices and kernels, AdamW for all else.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the size of a step follows Liu et al.,
"Muon is Scalable for LLM Training" (2025), so that learning rates of AdamW stay what they are. torch's own
``torch.optim.Muon`` takes matrices alone, and another optimiser has to be run beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

MOMENTUM = 0.95
SMALLEST = 8
"""Rows and columns that a matrix must have at least; smaller ones are left to AdamW."""


def orthogonalised(
    matrices: Tensor,  # (B, m, n), m <= n
    steps: int = 5,
) -> Tensor:  # (B, m, n)
    """Matrices of about the same singular vectors whose singular values lie near 1 (0.7 to 1.2).

    Newton–Schulz iteration with the coefficients of Jordan et al. Each iteration multiplies by a polynomial of the
    Gram matrix (m, m), and these commute: multiplied with each other first, they meet the long matrices once.
    """
    x = matrices / (torch.linalg.matrix_norm(matrices)[:, None, None] + 1e-7)
    gram = x @ x.mT
    product = factor = _factor(gram)
    for _ in range(steps - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = factor @ product
    return product @ x


def _factor(gram: Tensor) -> Tensor:
    """What one iteration multiplies matrices of this Gram matrix with."""
    factor = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
    factor.diagonal(dim1=1, dim2=2).add_(3.4445)
    return factor


class MuonAdamW(torch.optim.AdamW):
    """One optimiser for whole networks; arguments as for ``torch.optim.AdamW``.

    A kernel (out, in, h, w) counts as the matrix (out, in · h · w). Its step has the root mean square 0.2, about that
    of AdamW's steps.
    """

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step; AdamW then sees only what has no matrix's gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[torch.Size, bool, torch.device], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None or not _is_matrix(parameter):
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    # AdamW takes no state back without a step
                    state |= {"step": torch.zeros(()), "momentum": torch.zeros_like(parameter)}
                state["step"] += 1
                momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                update = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)
                tall = update.shape[0] > update.shape[1]
                update = update.mT if tall else update
                alike.setdefault((update.shape, tall, update.device), []).append((parameter, update))
                parameter.grad = None
            lr, decay = group["lr"], group["weight_decay"]
            for (shape, tall, _), members in alike.items():
                steps = orthogonalised(torch.stack([update for _, update in members]).float())
                for (parameter, _), step in zip(members, steps, strict=True):
                    step = (step.mT if tall else step).reshape(parameter.shape).to(parameter.dtype)
                    parameter.mul_(1 - lr * decay).sub_(step, alpha=lr * 0.2 * max(shape) ** 0.5)
        super().step()
        return loss


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= SMALLEST
