"""tensorrt where there is none: it says so, and nobody gets an engine of it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from streamvos.engines import Engines, tensorrt
from streamvos.methods import build
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


def test_options_that_it_would_swallow_are_refused():
    program = torch.export.export(torch.nn.ReLU(), (torch.ones(2),))
    with pytest.raises(InputError, match="enabled_precisions"):
        tensorrt.build(program, Path("engine.pt2"), {"enabled_precisions": "fp16"})
