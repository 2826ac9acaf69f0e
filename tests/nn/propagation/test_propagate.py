"""Propagation in tiles equals the dense formulas, for any option, at any size, on any input."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from propagation_scenes import OPTIONS, dense, scene
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from streamvos.nn.propagation import PropagationOptions, propagate
from streamvos.nn.propagation.tiles import NEGLIGIBLE
from streamvos.types import InputError


@pytest.fixture
def one_thread() -> Iterator[None]:
    """All work on the calling thread, where modes that watch operations can see it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Tiles side by side, whatever the environment says."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


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


def test_masks_hardly_differ_when_each_frame_builds_on_the_last_in_bfloat16():
    grid, generator = (20, 28), torch.Generator().manual_seed(0)
    base = torch.randn(20, 28, 32, generator=generator)

    def frame(t: int) -> torch.Tensor:
        moved = torch.roll(base, t // 3, dims=1) + 0.7 * torch.randn(20, 28, 32, generator=generator)
        return torch.nn.functional.normalize(moved.flatten(0, 1), dim=1)

    frames = [frame(t) for t in range(16)]
    first = torch.zeros(grid)
    first[5:14, 4:12] = 1
    maps = {}
    for precision in ("float32", "bfloat16"):
        labels = [torch.stack([1 - first, first]).flatten(1).t()]
        for t in range(1, 16):
            start = max(t - 6, 0)
            options = PropagationOptions(25.0, precision=precision)
            past = frames[start:t], labels[start:t], [8.0] * (t - start)
            won = propagate(frames[t], *past, grid, options).flatten(1).argmax(0)
            labels.append(torch.nn.functional.one_hot(won, 2).float())
        maps[precision] = torch.stack([label[:, 1] > 0.5 for label in labels])
    full, half = maps["float32"], maps["bfloat16"]
    assert 40 < full[-1].sum() < 120  # the object of 72 cells is still there
    assert (full & half).sum() / (full | half).sum() > 0.99


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


def test_keys_left_out_for_their_distance_hold_less_weight_than_stated():
    grid = (36, 48)
    ones = torch.ones(grid[0] * grid[1], 4)
    # the worst case: every key of the first reference is as like as can be, of the last as unlike
    keys, labels = [ones, -ones], [ones[:, :1], 0 * ones[:, :1]]
    for temperature in (0.1, 1.0, 3.0):
        options = PropagationOptions(temperature, "paper")
        got = propagate(ones, keys, labels, [2.0, 2.0], grid, options)
        expected = dense(ones, keys, labels, [2.0, 2.0], grid, options)
        assert (got - expected).abs().max() <= NEGLIGIBLE + 1e-6  # the bound, and float32


@pytest.mark.usefixtures("one_thread")
def test_what_lies_out_of_reach_is_not_computed():
    grid = (64, 72)
    query, keys, labels, _ = scene(grid, references=2)
    query, keys = query / 10, [key / 10 for key in keys]

    def products(options: PropagationOptions) -> int:
        with FlopCounterMode(display=False) as counter:
            propagate(query, keys, labels, [2.0, 2.0], grid, options)
        return counter.get_total_flops()

    everywhere = products(PropagationOptions(spatial_prior="none"))
    assert products(PropagationOptions(spatial_prior="none", radius=4)) < everywhere / 10
    assert products(PropagationOptions(spatial_prior="none", radius=4, top_k=10)) < everywhere / 10
    assert products(PropagationOptions(spatial_prior="paper")) < everywhere / 2


@pytest.mark.usefixtures("one_thread")
def test_nothing_on_the_way_is_near_the_size_of_the_dense_matrix():
    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            result = operation(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.size = max(self.size, result.numel())
            return result

    grid = (48, 80)
    query, keys, labels, _ = scene(grid, references=9, channels=8)
    for options in (
        PropagationOptions(),
        PropagationOptions(spatial_prior="paper", precision="bfloat16"),
        PropagationOptions(spatial_prior="none", top_k=10, radius=8),
        PropagationOptions(spatial_prior="none", top_k=10),
    ):
        with Largest() as largest:
            propagate(query, keys, labels, [8.0] * 9, grid, options)
        assert 0 < largest.size <= 9 * 3840 * 3840 / 50


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("prior", ["authors", "paper", "none"])
def test_the_best_match_wins_at_any_temperature(prior, precision, top_k):
    grid, cells = (8, 9), torch.eye(72)
    orders = [torch.randperm(72, generator=torch.Generator().manual_seed(k)) for k in range(2)]
    keys = [cells[order] for order in orders]  # each target has one equal in each reference, anywhere
    for temperature in (1e3, 1e30, 1e308):
        options = PropagationOptions(temperature, prior, top_k, precision=precision)
        got = propagate(cells, keys, keys, [8.0, 8.0], grid, options).flatten(1)
        assert torch.isfinite(got).all()
        assert torch.equal(got.argmax(0), torch.arange(72))
        if prior != "authors":
            assert torch.allclose(got, cells, atol=1e-6)


def test_radius_zero_looks_at_its_own_place_only():
    grid = (5, 6)
    query, keys, labels, _ = scene(grid, references=1)
    for top_k in (None, 4):
        got = propagate(query, keys, labels, (), grid, PropagationOptions(2.0, "none", top_k, radius=0))
        assert torch.allclose(got, labels[0].t().unflatten(1, grid), atol=1e-6)


def test_as_many_as_all_keys_or_more_is_all_keys():
    grid = (7, 9)
    query, keys, labels, _ = scene(grid, references=2)
    everything = propagate(query, keys, labels, (), grid, PropagationOptions(spatial_prior="none"))
    for top_k in (125, 126, 127, 10**9):
        got = propagate(query, keys, labels, (), grid, PropagationOptions(spatial_prior="none", top_k=top_k))
        assert torch.allclose(got, everything, atol=1e-5)  # the 126th, the least, hardly weighs


@pytest.mark.parametrize(
    "options", [PropagationOptions(0.5), PropagationOptions(0.5, top_k=4, radius=5)], ids=["all", "best"]
)
def test_layout_and_order_of_what_comes_in_do_not_matter(options):
    grid = (14, 19)
    query, keys, labels, _ = scene(grid)
    expected = propagate(query, keys, labels, [4.0, 5.0, 6.0], grid, options)
    channels_first = [key.t().contiguous().t() for key in keys]
    got = propagate(query.t().contiguous().t(), channels_first, labels, [4.0, 5.0, 6.0], grid, options)
    assert (got - expected).abs().max() < 1e-5
    got = propagate(query, keys[::-1], labels[::-1], [6.0, 5.0, 4.0], grid, options)
    assert (got - expected).abs().max() < 1e-5
    got = propagate(query.double(), [key.double() for key in keys], labels, [4.0, 5.0, 6.0], grid, options)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("prior", ["authors", "paper", "none"])
@pytest.mark.parametrize(("top_k", "radius"), [(None, None), (None, 4), (5, None), (5, 4)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_on_another_device_nothing_is_read_back(prior, top_k, radius, precision):
    # a meta tensor has no values: reading one back, or mixing it with one that lives on the CPU, raises
    cells, label = torch.empty(600, 16, device="meta"), torch.empty(600, 3, device="meta")
    options = PropagationOptions(2, prior, top_k, radius, precision)
    got = propagate(cells, [cells] * 2, [label] * 2, [3.0, 4.0], (20, 30), options, [None, radius])
    assert (got.shape, got.device.type, got.dtype) == ((3, 20, 30), "meta", torch.float32)


@pytest.mark.parametrize("top_k", [None, 5])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.usefixtures("two_threads")
def test_the_mode_of_the_caller_does_not_matter(precision, top_k):
    grid = (12, 15)
    query, keys, labels, sigmas = scene(grid)
    options = PropagationOptions(top_k=top_k, precision=precision)
    expected = propagate(query, keys, labels, sigmas, grid, options)
    with torch.inference_mode():
        inputs = query.clone(), [key.clone() for key in keys], [label.clone() for label in labels]
        assert torch.equal(propagate(*inputs, sigmas, grid, options), expected)
    assert torch.equal(propagate(*inputs, sigmas, grid, options), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(propagate(query, keys, labels, sigmas, grid, options), expected)
    leaf = query.clone().requires_grad_()
    assert not propagate(leaf, keys, labels, sigmas, grid, options).requires_grad


@pytest.mark.usefixtures("two_threads")
def test_streams_on_several_threads_do_not_disturb_each_other():
    grid = (16, 20)
    scenes = [scene(grid, references=2, seed=k) for k in range(3)]
    options = [PropagationOptions(), PropagationOptions(top_k=5), PropagationOptions(spatial_prior="none")]
    expected = [propagate(*inputs, grid, one) for inputs, one in zip(scenes, options, strict=True)]
    same: list[bool] = []

    def stream(k: int) -> None:
        same.extend(torch.equal(propagate(*scenes[k], grid, options[k]), expected[k]) for _ in range(4))

    streams = [threading.Thread(target=stream, args=(k,)) for k in range(3)]
    for thread in streams:
        thread.start()
    for thread in streams:
        thread.join(60)
    assert same == [True] * 12


BAD = [
    ({"grid": (3, 5)}, "grid|cells|h\\*w"),
    ({"keys": []}, "reference"),
    ({"labels": [torch.rand(12, 2)] * 2}, "label|reference"),
    ({"labels": [torch.rand(11, 2)] * 3}, "label"),
    ({"keys": [torch.rand(12, 5)] * 3}, "key|shape"),
    ({"query": torch.rand(12, 8).long()}, "float"),
    ({"sigmas": [1.0]}, "sigma"),
    ({"sigmas": [8.0, 0.0, 8.0]}, "sigma"),
    ({"sigmas": [8.0, math.nan, 8.0]}, "sigma"),
    ({"grid": (0, 12)}, "grid"),
    ({"query": torch.rand(12)}, "query"),
    ({"query": torch.rand(12, 0)}, "query"),
    ({"keys": [torch.rand(12, 8), torch.rand(12, 8), torch.rand(11, 8)]}, r"keys\[2\]"),
    ({"keys": [torch.rand(12, 8), torch.rand(12, 8), torch.rand(12, 8, device="meta")]}, "cpu"),
    ({"labels": [torch.rand(12, 2), torch.rand(12, 2), torch.rand(12, 3)]}, r"labels\[2\]"),
    ({"labels": [torch.rand(12, 0)] * 3}, "labels"),
    ({"labels": [torch.tensor(1.0)] * 3}, "labels"),
    ({"labels": [torch.zeros(12, 2, dtype=torch.int64)] * 3}, "float"),
    ({"radii": [3]}, "radii"),
    ({"radii": [3, None, -1]}, "radius"),
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
