from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from joint_weights import draws, golden, part, relative

from streamvos.methods.joint.few_shot import (
    FewShotLearner,
    FewShotProblem,
    convolve,
    correlate,
    steepest_descent,
)
from streamvos.methods.joint.network import TwoHeadLabelEncoder

# an independent float32 computation came within 8e-7 of the authors'; rounding of sums, nothing else
TOLERANCE = 8e-7


def loss(filters: torch.Tensor, problem: FewShotProblem, regularization: torch.Tensor) -> float:
    """The objective, and per residual, as the authors log it."""
    residuals = problem.weights * (convolve(problem.tokens, filters, problem.size) - problem.labels)
    total = residuals.double().square().sum() + (regularization * filters).double().square().sum()
    return float(total / (residuals.numel() + filters.numel()))


@torch.inference_mode()
@pytest.mark.parametrize("strength", ["0.01", "0.5"])
def test_filters_are_the_authors(strength):
    expected = golden("learner")
    learner, encoder = FewShotLearner(), TwoHeadLabelEncoder()
    learner.load_state_dict(part("learner."))
    learner.filter_reg.fill_(float(strength))
    encoder.load_state_dict(part("label_encoder."))
    tokens = learner.tokens(torch.from_numpy(np.maximum(draws("joint.fs.bb", (3, 1024, 12, 16)), 0)))
    assert relative(tokens.transpose(1, 2).unflatten(2, (12, 16))[:, ::8], expected["feat"]) < TOLERANCE
    labels = encoder(torch.from_numpy(expected["masks"]))
    assert relative(labels.induction[:, None], expected["label"]) < TOLERANCE
    assert relative(labels.importance[:, None], expected["sw"]) < TOLERANCE

    wanted, counts = labels.induction[None, None], labels.importance[None, None]
    first = FewShotProblem(tokens[:1], wanted[:, :, :1], counts[:, :, :1], (12, 16))
    zeros, regularization = torch.zeros(1, 1, 16, 512, 3, 3), learner.regularization
    for steps in (1, 5, 20):
        filters = steepest_descent(zeros, first, regularization, steps)
        assert relative(filters[0], expected[f"reg{strength}/filter_{steps}"]) < TOLERANCE
    gamma = torch.tensor([0.25, 0.35, 0.40])[:, None, None, None]
    every = FewShotProblem(tokens.flatten(0, 1)[None], wanted, counts * gamma, (12, 16))
    losses = [
        loss(steepest_descent(filters, every, regularization, k), every, regularization) for k in range(4)
    ]
    assert np.abs(losses / expected[f"reg{strength}/losses_upd"] - 1).max() < 1e-5  # sums of float32 squares
    filters = steepest_descent(filters, every, regularization, 3)
    assert relative(filters[0], expected[f"reg{strength}/filter_upd3"]) < TOLERANCE
    applied = convolve(tokens[2:], filters, (12, 16))[:, 0]
    assert relative(applied, expected[f"reg{strength}/applied"]) < TOLERANCE
    for steps in (0, 1, 7, 20):
        logged = loss(steepest_descent(zeros, first, regularization, steps), first, regularization)
        assert abs(logged / expected[f"reg{strength}/losses_init"][steps] - 1) < 1e-5


def a_problem(sequences=2, objects=3, frames=2, size=(5, 7), channels=4, depth=2) -> FewShotProblem:
    tokens = torch.randn(sequences, frames * size[0] * size[1], channels, dtype=torch.float64)
    labels = torch.randn(sequences, objects, frames, depth, *size, dtype=torch.float64)
    return FewShotProblem(tokens, labels, torch.randn_like(labels), size)


def as_maps(problem: FewShotProblem) -> torch.Tensor:
    """(S, N, C, h, w)."""
    return problem.tokens.unflatten(1, (-1, *problem.size)).movedim(-1, 2)


def plain_convolve(problem: FewShotProblem, filters: torch.Tensor) -> torch.Tensor:
    rows = [
        torch.stack([F.conv2d(maps, one, padding=1) for one in each])
        for maps, each in zip(as_maps(problem), filters, strict=True)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (1, 4), (3, 1)])
def test_the_convolution_is_a_convolution_and_the_correlation_its_adjoint(size):
    problem = a_problem(size=size)
    filters = torch.randn(2, 3, 2, 4, 3, 3, dtype=torch.float64)
    maps = convolve(problem.tokens, filters, size)
    assert (maps - plain_convolve(problem, filters)).abs().max() < 1e-12
    back = correlate(problem.tokens, problem.labels, size)
    assert back.shape == filters.shape
    one, other = (maps * problem.labels).sum(), (filters * back).sum()
    assert abs(one - other) < 1e-10 * abs(one)


def by_differentiation(filters, problem, regularization, steps):
    """The same by automatic differentiation, one object at a time, as the authors do it."""
    for _ in range(steps):
        filters = filters.detach().requires_grad_()

        def residuals(f):
            return problem.weights * (plain_convolve(problem, f) - problem.labels), regularization * f

        values = residuals(filters)
        half = sum(v.square().sum() for v in values) / 2
        (gradient,) = torch.autograd.grad(half, filters)
        changes = [a - b for a, b in zip(residuals(gradient), residuals(0 * gradient), strict=True)]
        bend = sum(c.square().flatten(2).sum(2) for c in changes).clamp_min(1e-8)
        length = gradient.square().flatten(2).sum(2) / bend
        filters = filters - length[:, :, None, None, None, None] * gradient
    return filters.detach()


def test_steps_are_those_of_automatic_differentiation():
    problem, regularization = a_problem(), torch.tensor([0.3], dtype=torch.float64)
    start = torch.randn(2, 3, 2, 4, 3, 3, dtype=torch.float64)
    expected = by_differentiation(start, problem, regularization, 4)
    # residuals are carried along instead of computed anew: rounding of float64
    assert (steepest_descent(start, problem, regularization, 4) - expected).abs().max() < 1e-11


def test_every_step_goes_down_and_many_reach_the_normal_equations():
    problem, regularization = a_problem(1, 1), torch.tensor([0.5], dtype=torch.float64)
    filters = torch.zeros(1, 1, 2, 4, 3, 3, dtype=torch.float64)
    before = loss(filters, problem, regularization)
    for _ in range(20):
        filters = steepest_descent(filters, problem, regularization, 1)
        assert loss(filters, problem, regularization) < before
        before = loss(filters, problem, regularization)
    filters = steepest_descent(filters, problem, regularization, 3000)
    residuals = problem.weights * (convolve(problem.tokens, filters, problem.size) - problem.labels)
    gradient = correlate(problem.tokens, problem.weights * residuals, problem.size)
    # a curvature below 1e-8 is taken for 1e-8, so steps shorten where the gradient is about 1e-5
    assert (gradient + 0.25 * filters).abs().max() < 1e-5


def test_an_object_learns_the_same_in_company():
    problem, regularization = a_problem(), torch.tensor([0.1], dtype=torch.float64)
    start = torch.zeros(2, 3, 2, 4, 3, 3, dtype=torch.float64)
    together = steepest_descent(start, problem, regularization, 5)
    alone = FewShotProblem(problem.tokens[1:], problem.labels[1:, 2:], problem.weights[1:, 2:], problem.size)
    assert (steepest_descent(start[1:, 2:], alone, regularization, 5) - together[1:, 2:]).abs().max() < 1e-12


def test_a_solution_can_be_differentiated():
    problem = a_problem(1, 1, 1, (3, 3), 2, 1)

    def solve(tokens, labels, weights, regularization):
        start = torch.zeros(1, 1, 1, 2, 3, 3, dtype=torch.float64)
        return steepest_descent(start, FewShotProblem(tokens, labels, weights, (3, 3)), regularization, 2)

    inputs = (problem.tokens, problem.labels, problem.weights, torch.tensor([0.3], dtype=torch.float64))
    assert torch.autograd.gradcheck(solve, tuple(x.clone().requires_grad_() for x in inputs))


def test_nothing_to_learn_leaves_the_filters_finite():
    problem = a_problem(1, 1)
    silent = FewShotProblem(problem.tokens, problem.labels * 0, problem.weights, problem.size)
    zeros = torch.zeros(1, 1, 2, 4, 3, 3, dtype=torch.float64)
    assert (steepest_descent(zeros, silent, torch.tensor([0.01], dtype=torch.float64), 20) == 0).all()
