"""Propagation in blocks: as cell by cell where no block is left out, and nearly so where most are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from streamvos.nn.propagation import PropagationOptions, propagate
from streamvos.nn.propagation.blocks import Reference, blocks_of, cells_of, means_of, propagate_in_blocks

CHANNELS = 16


def frames(count: int, grid: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    """Unit vectors (C, h, w); neighboring cells are alike, as those of an embedding are."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, CHANNELS, *grid, generator=generator)
    return [*F.normalize(F.avg_pool2d(noise, 3, 1, 1), dim=1)]


def soft_labels(count: int, grid: tuple[int, int], seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [*torch.randn(count, 3, *grid, generator=generator).mul(3).softmax(1)]


def reference(keys: torch.Tensor, labels: torch.Tensor, radius: int | None = None) -> Reference:
    return Reference(blocks_of(keys), means_of(blocks_of(keys)), blocks_of(labels), radius)


def rows(cells: torch.Tensor) -> torch.Tensor:
    return cells.flatten(1).t().contiguous()


@pytest.mark.parametrize("grid", [(4, 6), (5, 7), (1, 1), (6, 3)])
def test_blocks_hold_the_cells(grid):
    cells = frames(1, grid)[0]
    blocks = blocks_of(cells)
    coarse = (-(-grid[0] // 2), -(-grid[1] // 2))
    assert blocks.shape == (coarse[0] * coarse[1], 4, CHANNELS)
    assert torch.equal(cells_of(blocks.unflatten(0, coarse), grid), cells)


@pytest.mark.parametrize("top_k", [None, 5])
def test_with_all_blocks_it_is_propagation(top_k):
    grid = (6, 8)
    options = PropagationOptions(temperature=10.0, spatial_prior="none", top_k=top_k)
    query, *past = frames(3, grid)
    labels = soft_labels(2, grid)
    expected = propagate(rows(query), [rows(p) for p in past], [rows(x) for x in labels], (), grid, options)
    references = [reference(*pair) for pair in zip(past, labels, strict=True)]
    got = propagate_in_blocks(blocks_of(query), references, grid, options, count=24)
    assert (got - expected).abs().max() < 1e-5  # float32 sums in another order


@pytest.mark.parametrize("grid", [(30, 41), (13, 17)])
def test_a_shifted_frame_brings_its_labels(grid):
    options = PropagationOptions(temperature=40.0, spatial_prior="none", top_k=4)
    (past,), (labels,) = frames(1, grid), soft_labels(1, grid)
    labels = (labels == labels.amax(0)).float()
    query = past.roll((3, -4), dims=(1, 2))
    got = propagate_in_blocks(blocks_of(query), [reference(past, labels, 8)], grid, options, count=6)
    assert torch.allclose(got.sum(0), torch.ones(grid), atol=1e-5)
    same = got.argmax(0) == labels.roll((3, -4), dims=(1, 2)).argmax(0)
    # shifts by an odd number fall between blocks, so a block's mean has no twin
    assert same[4:-4, 5:-5].float().mean() > 0.9


def test_nothing_comes_from_beyond_the_radius():
    grid = (8, 40)
    options = PropagationOptions(temperature=10.0, spatial_prior="none")
    (past,) = frames(1, grid)
    labels = torch.zeros(2, *grid)
    labels[1, :, 20:], labels[0, :, :20] = 1, 1
    got = propagate_in_blocks(blocks_of(past), [reference(past, labels, 4)], grid, options, count=8)
    assert (got[1, :, :15] == 0).all()  # a radius of 4 cells is 2 blocks
    assert torch.allclose(got[1, :, 25:], torch.ones(8, 15), atol=1e-6)
