"""On a GPU the kernels give what the tiles give, at the size of a video's frames."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from matching_scenes import scene as embeddings
from propagation_scenes import scene

from streamvos.nn.matching.distances import global_distances, local_distances, sort_reference
from streamvos.nn.propagation import PropagationOptions, propagate

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="NO NVIDIA GPU: kernels are only interpreted"),
]

OPTIONS = {
    "authors": PropagationOptions(0.1),
    "paper": PropagationOptions(0.1, "paper"),
    "near": PropagationOptions(0.1, "none", radius=12),
    "best": PropagationOptions(0.1, "none", top_k=10),
    "bundled": PropagationOptions(0.1, "none", top_k=10, radius=24),
}


@pytest.mark.parametrize("channels", [96, 128, 256, 512])
@pytest.mark.parametrize("name", OPTIONS)
def test_kernels_equal_tiles(name, channels):
    grid = (60, 107)
    query, keys, labels, sigmas = scene(grid, references=5, channels=channels, labels=4)
    there = [[tensor.cuda() for tensor in tensors] for tensors in ([query], keys, labels)]
    answers = [
        propagate(there[0][0], there[1], there[2], sigmas, grid, replace(OPTIONS[name], kernel=kernel))
        for kernel in ("triton", "tiles")
    ]
    # three products of TensorFloat-32 come as close as float32, whose rounding of similarities of up to
    # fifty bits is 1e-5 of a weight
    assert (answers[0] - answers[1]).abs().max() < 1e-4


@pytest.mark.parametrize("name", OPTIONS)
def test_bfloat16_kernels_are_closer_than_tiles(name):
    grid = (60, 107)
    query, keys, labels, sigmas = scene(grid, references=5, channels=128, labels=4)
    there = [[tensor.cuda().bfloat16() for tensor in tensors] for tensors in ([query], keys)]
    labels = [label.cuda() for label in labels]
    exact = propagate(
        there[0][0].float(),
        [key.float() for key in there[1]],
        labels,
        sigmas,
        grid,
        replace(OPTIONS[name], kernel="tiles"),
    )
    options = replace(OPTIONS[name], precision="bfloat16", kernel="triton")
    got = propagate(there[0][0], there[1], labels, sigmas, grid, options)
    # products of bfloat16 are exact, sums are of float32
    assert (got - exact).abs().max() < 1e-4


@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_waits_for_the_host(name):
    grid = (30, 54)
    query, keys, labels, sigmas = scene(grid, references=3, channels=64)
    there = [[tensor.cuda() for tensor in tensors] for tensors in ([query], keys, labels)]
    options = replace(OPTIONS[name], kernel="triton")
    propagate(there[0][0], there[1], there[2], sigmas, grid, options)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        propagate(there[0][0], there[1], there[2], sigmas, grid, options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("objects", [1, 4, 40])
def test_matching_in_kernels_equals_tiles_and_waits_for_nothing(objects):
    grid = (60, 107)
    query, previous = (embeddings(6420, 100, seed, torch.float32).cuda() for seed in (0, 1))
    generator = torch.Generator().manual_seed(0)
    channels = torch.randint(1 + objects, (6420,), generator=generator).cuda()
    reference = sort_reference(previous, channels, tuple(range(objects)))

    def both(kernel):
        near = local_distances(query, previous, channels, objects, grid, 15, False, kernel)
        return near, global_distances(query, reference, kernel)

    expected = both("tiles")
    both("triton")  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = both("triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(got, expected, strict=True):
        # squared distances of some tens, whose float32 is 4e-6, at a slope of at most one half
        assert (ours - theirs).abs().max() < 1e-5
