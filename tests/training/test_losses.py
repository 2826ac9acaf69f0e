"""The losses: what they say of hand-made affinities, and that they equal their formulas word for word."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from streamvos.training.losses import (
    IGNORE,
    log_affinity,
    mass_on_same_label,
)

B, N, M, C = 2, 5, 4, 3


@pytest.fixture
def cells(rng):
    """Embeddings of references and target, and labels for both of which some are not shared."""
    references = torch.tensor(rng.standard_normal((B, N, C)), dtype=torch.float32)
    target = torch.tensor(rng.standard_normal((B, M, C)), dtype=torch.float32)
    return references, target


def affinity_in_loops(references, target, temperature):
    shares = np.zeros((B, N, M))
    for b in range(B):
        for j in range(M):
            scores = [temperature * float(np.dot(references[b, i], target[b, j])) for i in range(N)]
            total = sum(math.exp(score) for score in scores)
            for i in range(N):
                shares[b, i, j] = math.exp(scores[i]) / total
    return shares


@pytest.mark.parametrize("temperature", [1.0, 14.0])
def test_the_affinity_is_a_softmax_over_the_references(cells, temperature):
    references, target = (one.double().numpy() for one in cells)
    expected = affinity_in_loops(references, target, temperature)
    found = log_affinity(*cells, temperature).exp().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)  # float32 scores up to 60
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)


def test_the_affinity_is_float32_and_finite_for_half_precision_and_large_embeddings():
    references, target = torch.full((1, 3, 8), 60.0).bfloat16(), torch.full((1, 2, 8), 60.0).bfloat16()
    references[0, 1] = -60
    logarithms = log_affinity(references, target, temperature=1.0)
    assert logarithms.dtype == torch.float32
    assert torch.isfinite(logarithms).all()
    assert logarithms.exp()[0, :, 0].tolist() == [0.5, 0, 0.5]


@pytest.mark.parametrize("missing", ["ignore", "floor"])
@pytest.mark.parametrize("floor", [1e-14, 1e-3])
def test_the_label_loss_equals_its_formula(cells, rng, missing, floor):
    shares = log_affinity(*cells, 2.0).exp()
    references, target = rng.integers(0, 4, (B, N)), rng.integers(0, 4, (B, M))
    references[0] %= 2  # so that clip 0 lacks labels 2 and 3
    target[0, :2] = (2, IGNORE)
    costs = []
    for b in range(B):
        for j in range(M):
            if target[b, j] == IGNORE or (missing == "ignore" and target[b, j] not in references[b]):
                continue
            mass = sum(float(shares[b, i, j]) for i in range(N) if references[b, i] == target[b, j])
            costs.append(-math.log(mass + floor))
    found = mass_on_same_label(
        shares, torch.tensor(references), torch.tensor(target), floor=floor, missing=missing
    )
    assert float(found) == pytest.approx(np.mean(costs), rel=1e-5)


def test_the_authors_floor_is_what_a_label_without_reference_costs():
    shares = torch.full((1, 2, 1), 0.5)
    references, target = torch.tensor([[0, 1]]), torch.tensor([[2]])
    cost = mass_on_same_label(shares, references, target, missing="floor")
    assert float(cost) == pytest.approx(-math.log(1e-14), rel=1e-6)
    assert float(mass_on_same_label(shares, references, target)) == 0


def test_ignored_cells_do_not_count_even_where_the_references_are_ignored_too():
    shares = torch.full((1, 2, 2), 0.5)
    references = torch.tensor([[IGNORE, 1]])
    for missing in ("ignore", "floor"):
        loss = mass_on_same_label(shares, references, torch.tensor([[IGNORE, 1]]), missing=missing)
        assert float(loss) == pytest.approx(math.log(2), rel=1e-6)
        assert float(mass_on_same_label(shares, references, torch.full((1, 2), IGNORE), missing=missing)) == 0


@pytest.mark.parametrize("scale", [1.0, 30.0])  # at 30 most of the softmax underflows to 0
@pytest.mark.parametrize("missing", ["ignore", "floor"])
def test_gradients_are_finite(cells, scale, missing):
    references, target = (one.clone().mul_(scale).requires_grad_() for one in cells)
    logarithms = log_affinity(references, target, 1.0)
    labels = torch.tensor([[0, 0, 1, 1, 2]] * B), torch.tensor([[0, 1, 3, IGNORE]] * B)
    mass_on_same_label(logarithms.exp(), *labels, missing=missing).backward()
    for one in (references, target):
        assert torch.isfinite(one.grad).all()
        assert one.grad.abs().sum() > 0
