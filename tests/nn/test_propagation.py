"""Propagation in tiles equals the dense formulas, for any option, at any size, on any input."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from streamvos.nn.propagation import PropagationOptions, propagate
from streamvos.types import InputError


def dense(query, keys, labels, sigmas, grid, options, radii=None) -> torch.Tensor:
    """The definition, in float64, with the whole matrix."""
    height, width = grid
    place = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1).view(
        -1, 2
    )
    apart = (place[:, None] - place[None]).abs()
    squared = apart.double().square().sum(-1)
    logits, priors = [], []
    for k, key in enumerate(keys):
        similarity = options.temperature * key.double() @ query.double().t()
        prior = torch.exp(-squared / sigmas[k] ** 2) if sigmas else torch.ones_like(squared)
        if options.spatial_prior == "paper":
            similarity = similarity - squared / sigmas[k] ** 2
        radius = options.radius if radii is None else radii[k]
        if radius is not None:
            similarity = similarity.masked_fill(apart.amax(-1) > radius, -math.inf)
        logits.append(similarity)
        priors.append(prior)
    stacked = torch.cat(logits)
    if options.top_k is not None and options.top_k < len(stacked):
        least = stacked.topk(options.top_k, dim=0).values[-1]
        stacked = stacked.masked_fill(stacked < least, -math.inf)
    weights = stacked.softmax(0)
    if options.spatial_prior == "authors":
        weights = weights * torch.cat(priors)
    return (torch.cat(list(labels)).double().t() @ weights).view(-1, height, width)


def scene(grid, references=3, channels=16, labels=2, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cells = grid[0] * grid[1]
    keys = [scale * torch.randn(cells, channels, generator=generator) for _ in range(references)]
    query = keys[-1] + 0.3 * scale * torch.randn(cells, channels, generator=generator)
    soft = [torch.rand(cells, labels, generator=generator).softmax(1) for _ in range(references)]
    return query, keys, soft, [21.0] * (references - 1) + [3.0]


OPTIONS = [
    PropagationOptions(spatial_prior=prior, top_k=top_k, radius=radius, temperature=0.7)
    for prior in ("authors", "paper", "none")
    for top_k in (None, 1, 7)
    for radius in (None, 0, 4)
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.spatial_prior}-{o.top_k}-{o.radius}")
@pytest.mark.parametrize("grid", [(13, 17), (30, 41)])
def test_tiles_equal_the_dense_formula(options, grid):
    query, keys, labels, sigmas = scene(grid)
    expected = dense(query, keys, labels, sigmas, grid, options)
    got = propagate(query, keys, labels, sigmas, grid, options)
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    # float32 products of 16 channels, and at most 1e-6 of the weight left out
    assert (got - expected).abs().max() < 2e-5


@pytest.mark.parametrize("grid", [(1, 1), (1, 50), (50, 1), (2, 3), (70, 9)])
@pytest.mark.parametrize("labels", [1, 5, 255])
def test_any_grid_and_any_number_of_labels(grid, labels):
    query, keys, soft, sigmas = scene(grid, references=2, labels=labels)
    for options in (PropagationOptions(), PropagationOptions(spatial_prior="none", top_k=10, radius=5)):
        got = propagate(query, keys, soft, sigmas, grid, options)
        assert (got - dense(query, keys, soft, sigmas, grid, options)).abs().max() < 2e-5


def test_radii_of_their_own_per_reference():
    grid = (20, 24)
    query, keys, labels, sigmas = scene(grid)
    options, radii = PropagationOptions(spatial_prior="none", top_k=5, radius=3), [None, 6, 2]
    got = propagate(query, keys, labels, sigmas, grid, options, radii)
    assert (got - dense(query, keys, labels, sigmas, grid, options, radii)).abs().max() < 2e-5


@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0, 3000.0])
@pytest.mark.parametrize("prior", ["authors", "paper", "none"])
@pytest.mark.parametrize("top_k", [None, 4])
def test_nothing_overflows_however_large_the_similarities(scale, prior, top_k):
    grid = (12, 15)
    query, keys, labels, sigmas = scene(grid, scale=scale)
    options = PropagationOptions(spatial_prior=prior, top_k=top_k)
    got = propagate(query, keys, labels, sigmas, grid, options)
    assert torch.isfinite(got).all()
    if prior != "authors":
        assert torch.allclose(got.sum(0), torch.ones(grid), atol=1e-4)
    else:
        assert (got.sum(0) <= 1 + 1e-4).all()


def test_features_that_are_all_zero_give_the_mean_of_what_is_seen():
    grid = (9, 9)
    labels = [torch.rand(81, 3).softmax(1) for _ in range(2)]
    zero = torch.zeros(81, 8)
    got = propagate(zero, [zero, zero], labels, (), grid, PropagationOptions(spatial_prior="none"))
    assert torch.allclose(got.flatten(1), torch.cat(labels).mean(0)[:, None].expand(3, 81), atol=1e-6)


@pytest.mark.parametrize("prior", ["authors", "paper", "none"])
@pytest.mark.parametrize("top_k", [None, 6])
def test_bfloat16_is_close_where_it_counts(prior, top_k):
    grid = (24, 30)
    query, keys, labels, sigmas = scene(grid, channels=64)
    query, keys = (
        torch.nn.functional.normalize(query, dim=1),
        [torch.nn.functional.normalize(k, dim=1) for k in keys],
    )
    full = PropagationOptions(14.0, prior, top_k=top_k)
    half = PropagationOptions(14.0, prior, top_k=top_k, precision="bfloat16")
    expected = propagate(query, keys, labels, sigmas, grid, full)
    got = propagate(query.bfloat16(), [key.bfloat16() for key in keys], labels, sigmas, grid, half)
    # similarities up to 14 rounded to 8 bits: up to 3 % of a weight, which averages out over many
    assert (got - expected).abs().mean() < 5e-3
    assert (got - expected).abs().max() < 0.15


def test_views_into_a_larger_buffer_are_taken_as_they_are():
    grid = (11, 14)
    query, keys, labels, sigmas = scene(grid, channels=8)
    buffer = torch.stack(keys)
    wide = torch.randn(154, 16)
    wide[:, ::2] = query
    options = PropagationOptions()
    got = propagate(wide[:, ::2], list(buffer), labels, sigmas, grid, options)
    assert torch.equal(got, propagate(query.clone(), keys, labels, sigmas, grid, options))
    assert torch.equal(buffer, torch.stack(keys))


def test_the_number_of_threads_changes_nothing():
    grid = (31, 37)
    query, keys, labels, sigmas = scene(grid, channels=32)
    before = torch.get_num_threads()
    try:
        for options in (PropagationOptions(), PropagationOptions(spatial_prior="none", top_k=5, radius=7)):
            answers = []
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                answers.append(propagate(query, keys, labels, sigmas, grid, options))
            assert all((a - b).abs().max() < 1e-6 for a, b in pairwise(answers))
    finally:
        torch.set_num_threads(before)


def test_paper_weights_left_out_stay_within_their_bound():
    grid = (40, 90)
    query, keys, labels, _ = scene(grid, channels=16)
    query, keys = (
        torch.nn.functional.normalize(query, dim=1),
        [torch.nn.functional.normalize(k, dim=1) for k in keys],
    )
    options = PropagationOptions(5.0, "paper")
    sigmas = [2.0, 3.0, 2.0]  # a window of a few cells holds everything that counts
    got = propagate(query, keys, labels, sigmas, grid, options)
    # NEGLIGIBLE = 1e-6 of the weight, and float32
    assert (got - dense(query, keys, labels, sigmas, grid, options)).abs().max() < 2e-5


BAD = [
    ({"grid": (3, 5)}, "grid|cells|h\\*w"),
    ({"keys": []}, "reference"),
    ({"labels": [torch.rand(12, 2)] * 2}, "label|reference"),
    ({"labels": [torch.rand(11, 2)] * 3}, "label"),
    ({"keys": [torch.rand(12, 5)] * 3}, "key|shape"),
    ({"query": torch.rand(12, 8).long()}, "float"),
    ({"sigmas": [1.0]}, "sigma"),
]


@pytest.mark.parametrize(("changed", "message"), BAD)
def test_input_that_does_not_fit_together_is_refused(changed, message):
    good = {
        "query": torch.rand(12, 8),
        "keys": [torch.rand(12, 8)] * 3,
        "labels": [torch.rand(12, 2)] * 3,
        "sigmas": [8.0] * 3,
        "grid": (3, 4),
    }
    propagate(**good, options=PropagationOptions())
    with pytest.raises(InputError, match=message):
        propagate(**{**good, **changed}, options=PropagationOptions())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"top_k": 0},
        {"radius": -1},
        {"precision": "int8"},
        {"spatial_prior": "somewhere"},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        PropagationOptions(**options)
