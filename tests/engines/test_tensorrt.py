"""tensorrt where there is none: it says so, and nobody gets an engine of it."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from streamvos.engines import tensorrt
from streamvos.engines.engines import Engines
from streamvos.engines.exporting import export
from streamvos.engines.signature import Signature
from streamvos.methods import build
from streamvos.methods.parts import Part
from streamvos.types import InputError

CPU = torch.device("cpu")


def test_a_processor_has_no_tensorrt(capsys):
    assert "NVIDIA" in str(tensorrt.missing(CPU))
    with pytest.raises(InputError, match="'tensorrt' cannot be used here"):
        Engines(build("tvos"), CPU, "tensorrt")


@pytest.mark.skipif(find_spec("torch_tensorrt") is not None, reason="TORCH-TENSORRT IS HERE")
def test_what_is_missing_is_said_with_how_to_get_it(capsys):
    with pytest.raises(InputError, match=r"streamvos\[tensorrt\]"):
        tensorrt.torch_tensorrt()
    assert capsys.readouterr().out == ""


def test_a_free_batch_is_an_optimization_profile_and_other_inputs_are_as_they_are(monkeypatch, tmp_path):
    """What is asked of torch-tensorrt, by its documentation; a stand-in notes it."""
    asked: dict[str, Any] = {}
    package = SimpleNamespace(
        Input=lambda **given: given,
        dynamo=SimpleNamespace(compile=lambda program, **given: asked.update(program=program, **given)),
        save=lambda compiled, path, **given: asked.update(saved=given),
    )
    monkeypatch.setattr(tensorrt, "torch_tensorrt", lambda: package)
    part = Part("sum", lambda x, y: (x + y,), (), batched=(0,))
    inputs = (torch.rand(2, 3, 4, 6).contiguous(memory_format=torch.channels_last), torch.rand(3, 4, 6))
    signature = Signature.of(*inputs).of_any_batch(part, 8)
    tensorrt.build(export(part, inputs, signature), tmp_path / "e.pt2", signature, freezing=True)
    profile, shared = asked["arg_inputs"]
    shapes = [profile[name] for name in ("min_shape", "opt_shape", "max_shape")]
    assert shapes == [(1, 3, 4, 6), (2, 3, 4, 6), (8, 3, 4, 6)]
    assert profile["format"] == torch.channels_last
    assert shared.shape == (3, 4, 6)
    (bounds,) = asked["program"].range_constraints.values()
    assert (bounds.lower, bounds.upper) == (1, 8)
    # saved with tensors, from which the symbolic batch of the graph is not fixed
    assert [value.shape for value in asked["saved"]["arg_inputs"]] == [(2, 3, 4, 6), (3, 4, 6)]
