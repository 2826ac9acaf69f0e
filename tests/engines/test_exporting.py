"""A part as a graph: for every batch, in another precision, and refused where it cannot be traced."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from streamvos.engines.exporting import PartModule, export
from streamvos.engines.gate import feature_error
from streamvos.methods.parts import Part
from streamvos.types import InputError


class Small(nn.Module):
    """Two outputs, one of them of another dtype and layout."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 8, 3, 2, padding=1), nn.BatchNorm2d(8)
        self.norm.running_mean.uniform_(-1, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.norm(self.convolution(x)).relu()
        return y, y.mean((2, 3)).to(torch.bfloat16)


@pytest.fixture
def part() -> Part:
    module = Small().eval().requires_grad_(False)
    return Part("small", module, (module,))


def test_what_cannot_be_exported_is_refused_with_the_reason():
    part = Part("odd", lambda x: (x if float(x.sum()) > 0 else -x,), ())
    with pytest.raises(InputError, match="cannot be exported"):
        export(PartModule(part), (torch.ones(3),))


def test_another_precision_is_autocast_around_the_part(part):
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        rounded = PartModule(part, "bfloat16")(x)
        error = feature_error(part.plain(x)[:1], rounded[:1])
    # rounded somewhere (float32 would be 1e-6), to eight bits of mantissa
    assert 1e-4 < error < 3e-2
