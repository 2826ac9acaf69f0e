"""The target model of FRTM, and how it learns: two convolutions fitted to the masks of one object.

    samples = make_samples(labels, grid=(30, 54))                    # once; pixels are not read again
    weights = learn_both(features, samples, importance, initial, (5, 10, 10, 10, 10), LearningRule())
    scores = score(project(features, weights.projection), weights.filter)

A 1x1 convolution projects the features, a 3x3 convolution makes one score per cell of them; the scores,
enlarged bilinearly, should equal the mask. Gauss-Newton steps, each solved by conjugate gradient, fit both on
the first frame and the second one later. Nothing here uses autograd or works at full size:

- The error is a quadratic form on the grid (`streamvos.nn.target_model.stencil`), made once per sample.
- No nonlinearity separates the two convolutions, so together they are nine taps (a 9 x C matrix) on the
  features. A direction of both weights is a direction of the taps, and one product with the features, nine
  rows high, gives its effect; the adjoint is one such product too.
- With the projection fixed, the scores are linear in the 3x3 filter. Its normal matrix, 864 x 864 for 96
  channels, is a sum over samples: learning from a memory costs the same whatever the memory holds.

Source: Robinson et al., Learning Fast and Robust Target Models for Video Object Segmentation, CVPR 2020,
section 3.2 and algorithm 1; numbers are those of the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from streamvos.nn.target_model.conjugate_gradient import Beta, Directions, conjugate_gradient
from streamvos.nn.target_model.stencil import apply_stencil, gather_to_cells, normal_stencil

Source = Literal["authors", "paper"]

COLUMN_BLOCKS = 9
"""Number of block columns in which a CPU computes a normal matrix, each down to the diagonal; the rest is
mirrored. The data of one block stays in the cache."""


class TargetWeights(NamedTuple):
    """The two convolutions.

    Attributes:
        projection: (c, C, 1, 1).
        filter: (1, c, 3, 3).
    """

    projection: torch.Tensor
    filter: torch.Tensor


class Samples(NamedTuple):
    """The quadratic form of the error of every sample: all that learning needs besides the features.

    Attributes:
        stencil: (N, 9, h, w), U' V U.
        right: (N, h, w), U' V y.
    """

    stencil: torch.Tensor
    right: torch.Tensor

    def part(self, rows: slice) -> Samples:
        """A slice of the samples."""
        return Samples(self.stencil[rows], self.right[rows])


@dataclass(frozen=True)
class LearningRule:
    """Numbers of the optimization.

    Attributes:
        regularization: lambda of the projection and of the filter.
        regularization_form: "authors" multiplies the weights in the residual by lambda, "paper" by its root.
        beta: see `streamvos.nn.target_model.conjugate_gradient`.
        forgetting: frames passed to `Directions.forget` between runs of conjugate gradient; None = no run
            starts from the directions of another.
    """

    regularization: tuple[float, float] = (1e-4, 1e-2)
    regularization_form: Source = "authors"
    beta: Beta = "polak-ribiere"
    forgetting: int | None = None

    @property
    def penalties(self) -> tuple[float, float]:
        """Factors of the squared weights in the loss: of the projection, of the filter."""
        power = 2 if self.regularization_form == "authors" else 1
        return self.regularization[0] ** power, self.regularization[1] ** power

    def carry(self, before: Directions | None) -> Directions | None:
        """The directions from which the next run starts."""
        return None if before is None or self.forgetting is None else before.forget(self.forgetting)


def draw_weights(inputs: int, channels: int, seed: int = 0) -> TargetWeights:
    """Uniform weights as PyTorch draws them for convolutions, on the CPU in float32.

    The same seed gives the weights of the authors' code for every object but the very first: it reseeds
    before each object is augmented and draws for the next one after that.
    """
    draws = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        return torch.empty(shape, dtype=torch.float32).uniform_(-bound, bound, generator=draws)

    return TargetWeights(uniform(channels, inputs, 1, 1), uniform(1, channels, 3, 3))


def project(features: torch.Tensor, projections: torch.Tensor) -> torch.Tensor:
    """The first convolution.

    Args:
        features: (N, C, h, w), or (1, C, h, w) for all.
        projections: (N, c, C, 1, 1), or (c, C, 1, 1) for all.

    Returns:
        (N, c, h, w).
    """
    # one product per object, so that its values hardly depend on the number of objects
    answer = projections.flatten(-3) @ features.flatten(2)
    return answer.unflatten(-1, features.shape[-2:])


def score(projected: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """The second convolution, of each object with its own filter: (N, c, h, w), (N, c, 3, 3) -> (N, h, w)."""
    return _spread(_taps(filters) @ projected.flatten(2), projected)[:, 0]


def pixel_weights(masks: torch.Tensor, least_share: float = 0.1, min_pixels: int = 10) -> torch.Tensor:
    """Weights of the pixels' errors: small targets count more than their share of the frame.

    Args:
        masks: (N, H, W) bool.
        least_share: targets that cover less of the frame count as if they covered this share.
        min_pixels: masks smaller than this are not trusted and get weight 1 everywhere.

    Returns:
        (N, H, W) float32, v: the root of the paper's weights.
    """
    count = masks.sum((1, 2), keepdim=True, dtype=torch.float32)
    share = count / (masks.shape[1] * masks.shape[2])
    share = torch.where(count < min_pixels, least_share, share)
    wanted = share.clamp_min(least_share)
    # without background pixels, share is 1
    background = (1 - wanted) / (1 - share).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.where(masks, (wanted / share).sqrt(), background.sqrt())


def make_samples(
    labels: torch.Tensor,
    grid: tuple[int, int],
    least_share: float = 0.1,
    min_pixels: int = 10,
    weighting: Source = "authors",
) -> Samples:
    """Labels at full size as quadratic forms on the grid.

    Args:
        labels: (N, H, W) float in 0..1, soft.
        grid: (h, w) of the scores.
        least_share, min_pixels: see `pixel_weights`; masks are where labels exceed one half.
        weighting: "authors" weighs squared errors with v^2; "paper" reads equations 2 and 4 to the letter,
            v^4.
    """
    root = pixel_weights(labels > 0.5, least_share, min_pixels).to(labels.dtype)
    weights = root.square() if weighting == "authors" else root.square().square()
    return Samples(normal_stencil(weights, grid), gather_to_cells(weights * labels, grid))


def learn_both(
    features: torch.Tensor,
    samples: Samples,
    importance: torch.Tensor,
    initial: TargetWeights,
    iterations: Sequence[int],
    rule: LearningRule,
) -> TargetWeights:
    """Fit both convolutions to the samples of one object: a Gauss-Newton step for each of `iterations`.

    Args:
        features: (N, C, h, w).
        samples: N samples.
        importance: (N,), factors of their errors.
        initial: the starting point.
        iterations: steps of conjugate gradient in each Gauss-Newton step.
        rule: the numbers of the optimization.

    Returns:
        Weights in the dtype and on the device of the features.
    """
    columns = features.flatten(2)  # (N, C, h*w)
    stencil = samples.stencil * importance.view(-1, 1, 1, 1)
    right = (samples.right * importance.view(-1, 1, 1))[:, None]  # (N, 1, h, w)
    projection = initial.projection.flatten(1).to(features)  # (c, C)
    taps = _taps(initial.filter.to(features))[0]  # (9, c)
    parts = (projection.numel(), taps.numel())
    penalty, preconditioner = (
        torch.cat([features.new_full((count,), number) for count, number in zip(parts, pair, strict=True)])
        for pair in (rule.penalties, rule.regularization)
    )

    def effect(change: torch.Tensor) -> torch.Tensor:
        """(9, C) taps to (N, 1, h, w) scores."""
        return _spread(change @ columns, features)

    def adjoint(errors: torch.Tensor) -> torch.Tensor:
        """(N, 1, h, w) to (1, n), by way of the gradient of the taps."""
        of_taps = (F.unfold(errors, 3, padding=1) @ columns.transpose(1, 2)).sum(0)  # (9, C)
        return torch.cat([(taps.t() @ of_taps).flatten(), (of_taps @ projection.t()).flatten()])[None]

    def multiply(direction: torch.Tensor) -> torch.Tensor:
        first, second = direction[0].split(parts)
        change = taps @ first.view_as(projection) + second.view_as(taps) @ projection  # (9, C)
        return adjoint(apply_stencil(stencil, effect(change))) + penalty * direction

    before: Directions | None = None
    for count in iterations:
        now = torch.cat([projection.flatten(), taps.flatten()])[None]  # (1, n)
        errors = apply_stencil(stencil, effect(taps @ projection)) - right  # (N, 1, h, w)
        downhill = -(adjoint(errors) + penalty * now)
        step, before = conjugate_gradient(
            multiply, downhill, preconditioner, count, rule.beta, rule.carry(before)
        )
        first, second = step[0].split(parts)
        projection, taps = projection + first.view_as(projection), taps + second.view_as(taps)
    return _as_weights(projection, taps)


def normal_equations(
    projected: torch.Tensor, samples: Samples, blocks: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The error of each sample as a quadratic form of the filter: f' matrix f - 2 f' right + constant.

    Args:
        projected: (N, c, h, w).
        samples: N samples.
        blocks: number of blocks of columns; None = `COLUMN_BLOCKS`, or one on a GPU, where each launch costs.

    Returns:
        (N, 9c, 9c) symmetric and (N, 9c), for filters (1, c, 3, 3) flattened.
    """
    patches = F.unfold(projected, 3, padding=1)  # (N, 9c, h*w)
    grid, size = projected.shape[-2:], patches.shape[1]
    matrix = patches.new_empty(len(patches), size, size)
    if blocks is None:
        blocks = COLUMN_BLOCKS if projected.device.type == "cpu" else 1
    block = -(-size // blocks)
    for start in range(0, size, block):
        stop = min(start + block, size)
        coupled = apply_stencil(samples.stencil, patches[:, start:stop].unflatten(2, grid)).flatten(2)
        upper = patches[:, :stop] @ coupled.transpose(1, 2)  # (N, stop, block)
        matrix[:, :stop, start:stop] = upper
        matrix[:, start:stop, :start] = upper[:, :start].transpose(1, 2)
    return matrix, _products(patches, samples.right.flatten(1))


def learn_filters(
    filters: torch.Tensor,
    matrices: Sequence[torch.Tensor],
    right: torch.Tensor,
    iterations: int,
    rule: LearningRule,
    before: Directions | None = None,
) -> tuple[torch.Tensor, Directions]:
    """One Gauss-Newton step, for the filters of several objects.

    Args:
        filters: (B, c, 3, 3) float.
        matrices: per object (9c, 9c) float64, the sum of `normal_equations` over its memory.
        right: (B, 9c) float64.
        iterations: steps of conjugate gradient.
        rule: the numbers of the optimization.
        before: directions of the last run, used if `rule.forgetting` is set.

    Returns:
        (B, c, 3, 3) in the dtype of the filters, and the directions for the next run in float64.
    """
    penalty, preconditioner = rule.penalties[1], rule.regularization[1]

    together = None if right.device.type == "cpu" else torch.stack(list(matrices))

    def multiply(direction: torch.Tensor) -> torch.Tensor:
        if together is None:
            return _products(matrices, direction) + penalty * direction
        return torch.bmm(together, direction[..., None])[..., 0] + penalty * direction

    flat = filters.flatten(1).to(right.dtype)
    step, directions = conjugate_gradient(
        multiply,
        right - multiply(flat),
        torch.full_like(flat[0], preconditioner),
        iterations,
        rule.beta,
        rule.carry(before),
    )
    return (flat + step).view_as(filters).to(filters.dtype), directions


def _products(matrices: Iterable[torch.Tensor], vectors: torch.Tensor) -> torch.Tensor:
    """(B, m): the product of each matrix (m, n) with its vector, of (B, n).

    One by one: a batched product rounds differently from a single one, and learning amplifies the difference.
    On a GPU, where learning is bound by launches, `learn_filters` uses one batched product.
    """
    return torch.stack([torch.mv(matrix, vector) for matrix, vector in zip(matrices, vectors, strict=True)])


def _taps(filters: torch.Tensor) -> torch.Tensor:
    """(N, c, 3, 3) to (N, 9, c), rotated by 180 degrees for `_spread`."""
    return filters.flip(2, 3).flatten(2).transpose(1, 2)


def _spread(responses: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(N, 9, h*w), the responses of nine taps at every cell, to (N, 1, h, w), their sums at their offsets."""
    h, w = like.shape[-2:]
    return F.fold(responses, (h, w), 3, padding=1)


def _as_weights(projection: torch.Tensor, taps: torch.Tensor) -> TargetWeights:
    filters = taps.t().reshape(1, -1, 3, 3).flip(2, 3)
    return TargetWeights(projection[:, :, None, None], filters)
