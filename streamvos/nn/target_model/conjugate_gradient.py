"""Conjugate gradient with a small fixed number of steps, which fits target models.

    step, _ = conjugate_gradient(lambda p: p @ matrix, right_side, preconditioner, iterations=10)

Several independent systems are solved in parallel: every vector has the shape (B, n). Convergence is not
tested, so the host never waits for the device.

Source: Robinson et al., CVPR 2020, algorithm 1, and the authors' code (after ATOM's), where a run can start
from the directions of the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

Beta = Literal["polak-ribiere", "fletcher-reeves"]

FORGETTING_RATE = 0.1
"""The authors' learning rate in `forget`."""


class Directions(NamedTuple):
    """The state that one run can hand to the next.

    Attributes:
        direction: (B, n) the last search direction.
        rho: (B, 1) the last r.z.
        residual: (B, n) the residual before the last step.
    """

    direction: torch.Tensor
    rho: torch.Tensor
    residual: torch.Tensor

    @classmethod
    def none(cls, like: torch.Tensor) -> Directions:
        """With which a run starts afresh; `like` is (B, n)."""
        return cls(torch.zeros_like(like), torch.ones_like(like[:, :1]), torch.zeros_like(like))

    def forget(self, frames: int) -> Directions:
        """Lower the influence on the next run as if `frames` frames had passed: rho / (1 - 0.1)^frames.

        With the authors' 750 frames rho is infinite in float32, which makes the next run a fresh start.
        """
        return self._replace(rho=self.rho / (1 - FORGETTING_RATE) ** frames)


def inner_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(B, n), (B, n) -> (B, 1)."""
    return (a * b).sum(-1, keepdim=True)


def conjugate_gradient(
    multiply: Callable[[torch.Tensor], torch.Tensor],
    right_side: torch.Tensor,
    preconditioner: torch.Tensor,
    iterations: int,
    beta: Beta = "polak-ribiere",
    before: Directions | None = None,
) -> tuple[torch.Tensor, Directions]:
    """`iterations` steps towards the solution of A x = right_side, from x = 0.

    A system that is already solved does not change.

    Args:
        multiply: (B, n) -> (B, n), the product with A, which is symmetric and positive definite.
        right_side: (B, n) float.
        preconditioner: (n,), residuals are divided by it.
        iterations: at least 1.
        beta: how directions are made conjugate; negative values count as zero.
        before: directions of an earlier run on a similar system.

    Returns:
        (B, n), and the directions for a next run.
    """
    solution, residual = torch.zeros_like(right_side), right_side
    for k in range(iterations):
        scaled = residual / preconditioner
        rho = inner_product(residual, scaled)
        if before is None:
            direction = scaled
        else:
            new = rho - inner_product(before.residual, scaled) if beta == "polak-ribiere" else rho
            direction = scaled + _ratio(new, before.rho).clamp_min(0) * before.direction
        product = multiply(direction)
        step = _ratio(rho, inner_product(direction, product))
        before = Directions(direction, rho, residual)
        solution = solution + step * direction
        if k < iterations - 1:
            residual = residual - step * product
    assert before is not None
    return solution, before


def _ratio(above: torch.Tensor, below: torch.Tensor) -> torch.Tensor:
    """above / below, and 0 where below is 0 (the system is solved)."""
    return torch.where(below == 0, torch.zeros_like(above), above / torch.where(below == 0, 1, below))
