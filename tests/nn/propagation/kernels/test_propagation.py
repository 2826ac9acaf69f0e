"""The kernels of propagation equal the definition and the tiles, run by Triton's interpreter on the CPU.

`test_interpreted.py` starts this file in a process in which the interpreter is on.
"""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
import torch
from propagation_scenes import OPTIONS, dense, scene

from streamvos.nn.propagation import PropagationOptions, propagate

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by test_interpreted.py, with TRITON_INTERPRET=1", allow_module_level=True)

from streamvos.nn.kernels.launching import Shape
from streamvos.nn.propagation.kernels.propagation import propagate_in_kernels
from streamvos.nn.propagation.options import Propagation

# float32 sums of up to a few hundred products and weights; the tiles come within 2e-5 of the definition
CLOSE = 3e-6


def in_kernels(query, keys, labels, sigmas, grid, options, radii=None) -> torch.Tensor:
    return propagate(query, keys, labels, sigmas, grid, replace(options, kernel="triton"), radii)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o.spatial_prior}-{o.top_k}-{o.radius}")
def test_kernels_equal_the_definition_and_the_tiles(options):
    grid = (9, 10)  # two tiles down and two across
    query, keys, labels, sigmas = scene(grid)
    got = in_kernels(query, keys, labels, sigmas, grid, options)
    assert got.shape == (2, *grid)
    assert got.dtype == torch.float32
    assert (got - dense(query, keys, labels, sigmas, grid, options)).abs().max() < CLOSE
    # the tiles with "paper" leave out up to 1e-6 of the weight
    assert (got - propagate(query, keys, labels, sigmas, grid, options)).abs().max() < 2e-5


@pytest.mark.parametrize("grid", [(1, 1), (1, 18), (18, 1)])
@pytest.mark.parametrize("labels", [1, 5, 70, 255])  # a block of labels has 64
def test_any_grid_and_any_number_of_labels(grid, labels):
    query, keys, soft, sigmas = scene(grid, references=2, labels=labels)
    for options in (PropagationOptions(), PropagationOptions(spatial_prior="none", top_k=10, radius=5)):
        got = in_kernels(query, keys, soft, sigmas, grid, options)
        assert (got - dense(query, keys, soft, sigmas, grid, options)).abs().max() < CLOSE


def test_any_cut_of_the_work_gives_the_same():
    draw = random.Random(0)
    for seed in range(10):
        grid = (draw.randint(1, 11), draw.randint(1, 11))
        query, keys, labels, sigmas = scene(
            grid,
            references=draw.randint(1, 4),
            channels=draw.choice([1, 3, 16, 40, 65]),
            labels=draw.randint(1, 6),
            scale=draw.choice([0.1, 1.0]),
            seed=seed,
        )
        options = PropagationOptions(
            draw.choice([0.3, 4.0]),
            draw.choice(["authors", "paper", "none"]),
            draw.choice([None, 1, 5, 64]),
            draw.choice([None, 0, 1, 3, 20]),
        )
        radii = draw.choice([None, [draw.choice([None, 0, 2, 7]) for _ in keys]])
        shape = Shape(
            side=draw.choice([4, 8]),
            block=draw.choice([16, 64]),
            channels=draw.choice([16, 32, 64]),
            shares=draw.choice([1, 2, 5]),
        )
        got = propagate_in_kernels(Propagation(query, keys, labels, sigmas, grid, options, radii), shape)
        expected = dense(query, keys, labels, sigmas, grid, options, radii)
        assert (got - expected).abs().max() < 1e-5, (seed, grid, options, radii, shape)


@pytest.mark.parametrize("top_k", [None, 6])
@pytest.mark.parametrize("prior", ["authors", "paper", "none"])
def test_bfloat16_rounds_features_and_nothing_else(prior, top_k):
    grid = (8, 9)
    query, keys, labels, sigmas = scene(grid, channels=24)
    options = PropagationOptions(0.7, prior, top_k=top_k, precision="bfloat16")
    got = in_kernels(query, keys, labels, sigmas, grid, options)
    rounded = [key.bfloat16().float() for key in keys]
    expected = dense(query.bfloat16().float(), rounded, labels, sigmas, grid, options)
    assert (got - expected).abs().max() < 1e-5


@pytest.mark.parametrize("scale", [1e-4, 30.0, 3000.0])
@pytest.mark.parametrize("top_k", [None, 4])
def test_nothing_overflows_however_large_the_similarities(scale, top_k):
    grid = (7, 9)
    query, keys, labels, sigmas = scene(grid, scale=scale)
    for prior in ("authors", "paper"):
        got = in_kernels(query, keys, labels, sigmas, grid, PropagationOptions(9.0, prior, top_k=top_k))
        assert torch.isfinite(got).all()
        assert (got.sum(0) <= 1 + 1e-5).all()


def test_of_equal_keys_as_many_are_taken_as_asked():
    grid, zero = (6, 7), torch.zeros(42, 8)
    marks = [torch.eye(42), torch.eye(42)]  # a label per cell tells which keys were taken
    got = in_kernels(zero, [zero, zero], marks, (), grid, PropagationOptions(2.0, "none", top_k=5))
    assert torch.allclose(got.sum(0), torch.ones(grid), atol=1e-6)
    shares = got.flatten(1) * 5
    assert torch.allclose(shares, shares.round(), atol=1e-5)


def test_fewer_keys_in_reach_than_asked_for_are_all_taken():
    grid = (5, 6)
    query, keys, labels, _ = scene(grid, references=2)
    for radius in (0, 1):
        options = PropagationOptions(0.5, "none", top_k=40, radius=radius)
        got = in_kernels(query, keys, labels, (), grid, options)
        assert (got - dense(query, keys, labels, (), grid, options)).abs().max() < CLOSE


@pytest.mark.parametrize("top_k", [None, 4])
def test_keys_are_read_where_they_lie_or_copied_where_they_must_be(top_k):
    grid = (6, 7)
    query, keys, labels, sigmas = scene(grid, channels=20)
    options = PropagationOptions(0.5, top_k=top_k)
    expected = in_kernels(query, keys, labels, sigmas, grid, options)
    ring = torch.zeros(5, 42, 20)
    ring[[3, 0, 2]] = torch.stack(keys)
    assert torch.equal(
        in_kernels(query, [ring[3], ring[0], ring[2]], labels, sigmas, grid, options), expected
    )
    turned = [key.t().contiguous().t() for key in keys]
    doubled = [label.double() for label in labels]
    assert torch.equal(
        in_kernels(query.t().contiguous().t(), turned, doubled, sigmas, grid, options), expected
    )


def test_where_similarities_would_leave_float32_the_tiles_are_for():
    from streamvos.types import InputError

    query, keys, labels, sigmas = scene((3, 4))
    with pytest.raises(InputError, match="beyond"):
        in_kernels(query, keys, labels, sigmas, (3, 4), PropagationOptions(1e30))
