"""Kernels are tried where they can run, and the tiles take over where they cannot."""

from __future__ import annotations

import warnings

import pytest
import torch

from streamvos.nn.kernels.choice import attempt, wants_kernels, why_not
from streamvos.nn.propagation import PropagationOptions, propagate
from streamvos.types import InputError


def test_a_cpu_gets_tiles_unless_kernels_are_asked_for():
    cells = torch.rand(4, 4)
    assert not wants_kernels("auto", cells, possible=True)
    assert not wants_kernels("tiles", cells, possible=True)


def test_kernels_that_cannot_run_are_refused_with_the_reason():
    with pytest.raises(InputError, match="tiles"):
        wants_kernels("triton", torch.rand(4, 4), possible=False)
    if why_not("cpu") is not None:
        options = PropagationOptions(spatial_prior="none", kernel="triton")
        with pytest.raises(InputError, match=r"(?i)triton"):
            propagate(torch.rand(6, 4), [torch.rand(6, 4)], [torch.rand(6, 2)], (), (2, 3), options)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(InputError, match="kernel"):
        PropagationOptions(kernel="cuda")


def test_a_kernel_that_fails_warns_once_and_is_not_tried_again():
    def fails() -> None:
        tried.append(1)
        raise RuntimeError("no such instruction\nmore")

    tried: list[int] = []
    with pytest.warns(RuntimeWarning, match=r"of this test.*RuntimeError: no such instruction\)"):
        assert attempt("this test", "auto", fails) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert attempt("this test", "auto", fails) is None
    assert tried == [1]
    with pytest.raises(RuntimeError, match="instruction"):
        attempt("this test", "triton", fails)


def test_memory_that_runs_out_is_not_taken_for_a_broken_kernel():
    def greedy() -> None:
        raise torch.OutOfMemoryError("too much")

    with pytest.raises(torch.OutOfMemoryError):
        attempt("a greedy test", "auto", greedy)
    assert attempt("a greedy test", "auto", lambda: 3) == 3
