"""The kernels of matching equal the definition and the tiles, run by Triton's interpreter on the CPU.

`test_interpreted.py` starts this file in a process in which the interpreter is on.
"""

from __future__ import annotations

import os
import random

import pytest
import torch
from matching_scenes import near, plain, scene

from streamvos.nn.matching.distances import global_distances, local_distances, sort_reference
from streamvos.types import InputError

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("run by test_interpreted.py, with TRITON_INTERPRET=1", allow_module_level=True)

from streamvos.nn.kernels.launching import Shape
from streamvos.nn.matching.kernels.matching import smallest_around, smallest_everywhere

# of float32, as for the tiles (tests/nn/matching/test_matching.py)
CLOSE = 1e-6


def labels_of(cells: int, ids: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(ids)[torch.randint(len(ids), (cells,), generator=generator)]


@pytest.mark.parametrize("objects", [1, 3, 18])
def test_global_kernels_equal_the_definition_and_the_tiles(objects):
    ids = tuple(range(0, 3 * objects, 3))
    query, embedding = (scene(n, 10, seed, torch.float32) for seed, n in enumerate((70, 150)))
    labels = labels_of(150, (*ids, 254), seed=objects)
    reference = sort_reference(embedding, labels, ids)
    got = global_distances(query, reference, kernel="triton")
    assert (got - plain(query, embedding, labels, ids)).abs().max() <= CLOSE
    assert (got - global_distances(query, reference, kernel="tiles")).abs().max() <= CLOSE


@pytest.mark.parametrize("objects", [1, 3, 18])  # a program holds the minima of 16
@pytest.mark.parametrize(("grid", "window"), [((9, 11), 3), ((1, 13), 15), ((7, 1), 0), ((1, 1), 2)])
def test_local_kernels_equal_the_definition_and_the_tiles(grid, window, objects):
    cells = grid[0] * grid[1]
    query, previous = (scene(cells, 10, seed, torch.float32) for seed in (0, 1))
    channels = labels_of(cells, tuple(range(objects + 1)), seed=objects)
    given = query, previous, channels, objects, grid, window
    got = local_distances(*given, kernel="triton")
    expected = plain(query, previous, channels, tuple(range(objects)), near(grid, window))
    assert (got - expected).abs().max() <= CLOSE
    assert (got - local_distances(*given, kernel="tiles")).abs().max() <= CLOSE


def test_objects_without_candidates_are_at_distance_one():
    query = scene(20, 8, 0, torch.float32)
    empty = sort_reference(query, torch.full((20,), 9), (0, 4))
    assert (global_distances(query, empty, kernel="triton") == 1).all()
    nobody = torch.full((20,), 2)
    assert (local_distances(query, query, nobody, 2, (4, 5), 3, kernel="triton") == 1).all()


def test_any_cut_of_the_work_gives_the_same():
    draw = random.Random(0)
    for seed in range(10):
        grid, channels = (draw.randint(1, 9), draw.randint(1, 9)), draw.choice([1, 17, 40])
        cells, objects = grid[0] * grid[1], draw.randint(1, 5)
        query, candidates = (scene(cells, channels, seed + k, torch.float32) for k in (0, 100))
        shape = Shape(
            side=draw.choice([4, 8]),
            block=draw.choice([16, 64]),
            channels=draw.choice([16, 64]),
            shares=draw.choice([1, 3]),
        )
        products = query.double() @ candidates.double().t()
        window = draw.choice([0, 2, 20])
        whose = labels_of(cells, tuple(range(objects + 1)), seed)
        got = smallest_around(query, candidates, whose, objects, grid, window, shape)
        allowed = near(grid, window)
        for k in range(objects):
            expected = products.masked_fill(~(allowed & (whose == k)), torch.inf).amin(1)
            assert torch.allclose(got[k].double(), expected, atol=1e-5), (seed, k)
        bounds = (0, *sorted(draw.randint(0, cells) for _ in range(objects - 1)), cells)
        got = smallest_everywhere(query, candidates, bounds, shape)
        for k in range(objects):
            some = products[:, bounds[k] : bounds[k + 1]]
            expected = some.amin(1) if some.shape[1] else torch.full((cells,), torch.inf).double()
            assert torch.allclose(got[k].double(), expected, atol=1e-5), (seed, k)


def test_what_kernels_do_not_do_is_refused():
    query = scene(12, 4)  # float64
    reference = sort_reference(query, torch.zeros(12, dtype=torch.int64), (0,))
    with pytest.raises(InputError, match="beyond"):
        global_distances(query, reference, kernel="triton")
    with pytest.raises(InputError, match="beyond"):
        local_distances(query, query, torch.zeros(12, dtype=torch.int64), 1, (3, 4), 1, kernel="triton")
