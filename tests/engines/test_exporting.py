"""A part as a graph: refused where it cannot be traced; test_gate.py exports every part of every method."""

from __future__ import annotations

import pytest
import torch

from streamvos.engines.exporting import export
from streamvos.methods.parts import Part
from streamvos.types import InputError


def test_what_cannot_be_exported_is_refused_with_the_reason():
    part = Part("odd", lambda x: (x if float(x.sum()) > 0 else -x,), ())
    with pytest.raises(InputError, match="cannot be exported"):
        export(part, (torch.ones(3),))
