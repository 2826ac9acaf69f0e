"""Enlarging after the sum over channels is enlarging before it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from streamvos import InputError
from streamvos.nn.upsampling import double, resize_then_convolve


@pytest.mark.parametrize("size", [(40, 56), (37, 55), (41, 60), (12, 9)])
@pytest.mark.parametrize("twice_first", [False, True])
def test_the_order_of_two_linear_maps_does_not_matter(size, twice_first):
    x = torch.randn(2, 8, 20, 28, dtype=torch.float64)
    convolution = nn.Conv2d(8, 1, 3, padding=1).double()
    options = {"mode": "bicubic", "align_corners": False}
    large = F.interpolate(x, (40, 56), **options) if twice_first else F.interpolate(x, size, **options)
    if twice_first:
        large = F.interpolate(large, size, mode="bilinear", align_corners=False)
    with torch.no_grad():
        assert torch.allclose(resize_then_convolve(x, convolution, size, twice_first), convolution(large))


@pytest.mark.parametrize("size", [(20, 28), (1, 5), (3, 2)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-6)])
def test_doubling_is_bicubic(size, dtype, tolerance):
    x = torch.randn(2, 3, *size).to(dtype)
    expected = F.interpolate(x.double(), scale_factor=2, mode="bicubic", align_corners=False)
    # bfloat16 has 8 bits, and rounds between the rows and the columns
    assert (double(x).double() - expected).abs().max() < tolerance * x.abs().max()


def test_a_convolution_of_another_kind_is_refused():
    with pytest.raises(InputError, match="3x3 convolution to one channel"):
        resize_then_convolve(torch.zeros(1, 4, 8, 8), nn.Conv2d(4, 2, 3, padding=1), (16, 16))
