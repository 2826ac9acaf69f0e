"""Induction: a few filters learn online to put out the label encoding of an object.

    learner = FewShotLearner()
    tokens = learner.tokens(layer3)                                     # (B, h*w, 512)
    problem = FewShotProblem(tokens[None], labels, weights, (h, w))     # labels, weights (1, K, N, 16, h, w)
    filters = steepest_descent(filters, problem, learner.regularization, steps=20)
    induced = convolve(tokens[None], filters, (h, w))                   # (1, K, N, 16, h, w)

The residuals are linear in the filters, so the gradient is a correlation and the step a convolution, both
written out here, and the length of every step is that of the exact line search. Filters have 3 x 3 taps on
16 x 512 channels, so both are one product with 144 columns per cell: the taps are laid out after the
product, where there are 16 channels to move rather than 512. Nothing here is in place or without gradient,
so the whole solution can be trained through.

Leading dimensions: S sequences with features of their own, K objects that share the features of a sequence,
N frames.

Source: Mao et al., section 3.3, equation 6; Bhat et al., Learning What to Learn for Video Object
Segmentation, ECCV 2020.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

KERNEL = 3
TINY = 1e-8
"""The least curvature that a step is divided by (the authors' code)."""


@dataclass(frozen=True)
class FewShotProblem:
    """A least-squares problem for filters.

    Attributes:
        tokens: (S, N*h*w, C) features, frame after frame, row by row.
        labels: (S, K, N, D, h, w).
        weights: as `labels`; they multiply the residuals, so their squares the loss.
        size: (h, w).
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    size: tuple[int, int]


class FewShotLearner(nn.Module):
    """The part of the learner that is trained offline: its features and its regularization.

    Args:
        inputs: channels of the backbone's map.
        channels: C.
    """

    def __init__(self, inputs: int = 1024, channels: int = 512):
        super().__init__()
        self.adjust = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.filter_reg = nn.Parameter(torch.full((1,), 0.01))

    @property
    def regularization(self) -> torch.Tensor:
        """(1,): the factor of the filters among the residuals; the lambda of equation 6 is its square."""
        return self.filter_reg

    def tokens(self, features: torch.Tensor) -> torch.Tensor:
        """The backbone's map to features of the learner, each frame's of L2 norm sqrt(h*w / 9).

        Args:
            features: (B, inputs, h, w).

        Returns:
            (B, h*w, C) in the dtype of the weights.
        """
        x = self.adjust(features).to(self.adjust.weight.dtype)
        norm = x.square().sum((1, 2, 3), keepdim=True) + 1e-5
        x = x * (x[0].numel() / (norm * x.shape[1] * KERNEL**2)).sqrt()
        return x.flatten(2).transpose(1, 2)


def convolve(tokens: torch.Tensor, filters: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Filters on features, with zeros around the map.

    Args:
        tokens: (S, N*h*w, C).
        filters: (S, K, D, C, 3, 3).
        size: (h, w).

    Returns:
        (S, K, N, D, h, w).
    """
    h, w = size
    s, k, d, c = filters.shape[:4]
    taps = filters.permute(0, 3, 4, 5, 1, 2).reshape(s, c, KERNEL * KERNEL * k * d)  # (S, C, 9*K*D)
    parts = (tokens @ taps).view(s, -1, h, w, KERNEL, KERNEL, k * d)  # (S, N, h, w, 3, 3, K*D)
    result = parts[:, :, :, :, 1, 1].clone()  # (S, N, h, w, K*D)
    for row in range(KERNEL):
        for column in range(KERNEL):
            if (row, column) != (1, 1):
                (to_rows, from_rows), (to_columns, from_columns) = _shift(row - 1), _shift(column - 1)
                result[:, :, to_rows, to_columns] += parts[:, :, from_rows, from_columns, row, column]
    return result.view(s, -1, h, w, k, d).permute(0, 4, 1, 5, 2, 3)


def correlate(tokens: torch.Tensor, maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The adjoint of `convolve`: maps to filters.

    Args:
        tokens: (S, N*h*w, C).
        maps: (S, K, N, D, h, w).
        size: (h, w).

    Returns:
        (S, K, D, C, 3, 3).
    """
    h, w = size
    s, k, n, d = maps.shape[:4]
    values = maps.permute(0, 2, 4, 5, 1, 3).reshape(s, n, h, w, k * d)  # (S, N, h, w, K*D)
    laid = values.new_zeros(s, n, h, w, KERNEL, KERNEL, k * d)
    for row in range(KERNEL):
        for column in range(KERNEL):
            (to_rows, from_rows), (to_columns, from_columns) = _shift(row - 1), _shift(column - 1)
            laid[:, :, from_rows, from_columns, row, column] = values[:, :, to_rows, to_columns]
    taps = tokens.transpose(1, 2) @ laid.view(s, n * h * w, -1)  # (S, C, 9*K*D)
    return taps.view(s, -1, KERNEL, KERNEL, k, d).permute(0, 4, 5, 1, 2, 3)


def steepest_descent(
    filters: torch.Tensor, problem: FewShotProblem, regularization: torch.Tensor, steps: int
) -> torch.Tensor:
    """Improved filters, after some steps of exact line search.

    Args:
        filters: (S, K, D, C, 3, 3), the initial ones; zeros for a new object.
        problem: what the filters are fitted to.
        regularization: (1,) factor of the filters among the residuals.
        steps: number of steps.

    Returns:
        (S, K, D, C, 3, 3). Each object takes steps of its own length.
    """
    residuals = problem.weights * (convolve(problem.tokens, filters, problem.size) - problem.labels)
    for step in range(steps):
        gradient = correlate(problem.tokens, problem.weights * residuals, problem.size)
        gradient = gradient + regularization.square() * filters
        change = problem.weights * convolve(problem.tokens, gradient, problem.size)
        curvature = _squares(change) + _squares(regularization * gradient)
        length = _squares(gradient) / curvature.clamp_min(TINY)
        filters = filters - length * gradient
        if step + 1 < steps:
            # residuals are linear in the filters: no other convolution is needed
            residuals = residuals - length * change
    return filters


def _squares(values: torch.Tensor) -> torch.Tensor:
    """(S, K, 1, 1, 1, 1): the sum of squares per object."""
    return values.square().flatten(2).sum(2)[:, :, None, None, None, None]


def _shift(by: int) -> tuple[slice, slice]:
    """Places p, and places p + `by`, where both exist."""
    return slice(max(-by, 0), min(-by, 0) or None), slice(max(by, 0), min(by, 0) or None)
