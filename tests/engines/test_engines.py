"""Which of them runs: decided once for a signature, counted, told."""

from __future__ import annotations

import torch

from streamvos.engines.engines import Engine, Switch
from streamvos.engines.signature import Signature, is_aligned


def double(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (2 * x,)


def triple(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (3 * x,)


def make(asked: list[Signature], shape: tuple[int, ...]) -> Switch:
    """An engine for one shape that can be told from eager; `asked` gets every new signature."""

    def find(signature: Signature, tensors: object) -> tuple[Engine | None, str]:
        asked.append(signature)
        fits = signature.tensors[0].shape == shape
        return (Engine(triple, signature), "compiled") if fits else (None, "eager, no engine")

    return Switch(double, find)


def test_an_engine_runs_where_it_fits_and_eager_elsewhere():
    asked: list[Signature] = []
    switch = make(asked, (4,))
    assert switch(torch.ones(4))[0].tolist() == [3] * 4
    assert switch(torch.ones(5))[0].tolist() == [2] * 5
    assert switch(torch.ones(4))[0].tolist() == [3] * 4
    assert len(asked) == 2
    assert switch.describe() == ["4: compiled (2 calls)", "5: eager, no engine (1 calls)"]


def test_another_dtype_is_another_signature():
    asked: list[Signature] = []
    switch = make(asked, (4,))
    switch(torch.ones(4))
    switch(torch.ones(4, dtype=torch.float64))
    assert [one.tensors[0].dtype for one in asked] == ["float32", "float64"]


def test_what_lies_between_two_vectors_goes_to_eager():
    numbers = torch.ones(9)
    shifted = next(numbers[k : k + 4] for k in (1, 2) if not is_aligned(numbers[k : k + 4]))
    switch = make([], (4,))
    assert switch(shifted)[0].tolist() == [2] * 4
    assert "not aligned" in switch.describe()[0]
