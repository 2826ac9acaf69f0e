from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from streamvos.methods.rgmp.winograd import Convolution3x3, convolve, transform_kernels, transforms


@pytest.mark.parametrize("tile", [2, 4])
def test_the_identity_of_one_dimension_holds(tile, rng):
    output, kernel, signal = transforms(tile)
    for _ in range(20):
        g, d = rng.standard_normal(3), rng.standard_normal(tile + 2)
        direct = np.correlate(d, g, mode="valid")
        assert np.abs(output @ ((kernel @ g) * (signal @ d)) - direct).max() < 1e-12


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize(
    "shape", [(1, 3, 8, 8), (2, 5, 13, 9), (1, 4, 1, 1), (3, 2, 3, 50), (1, 2, 90, 30), (1, 1, 5, 2000)]
)
def test_it_is_the_convolution(tile, shape):
    x = torch.randn(shape, dtype=torch.float64)
    weight = torch.randn(7, shape[1], 3, 3, dtype=torch.float64)
    expected = F.conv2d(x, weight, padding=1)
    for layout in (torch.contiguous_format, torch.channels_last):
        got = convolve(x.contiguous(memory_format=layout), transform_kernels(weight, tile), tile)
        assert got.shape == expected.shape
        assert (got - expected).abs().max() < 1e-12 * expected.abs().max().clamp_min(1)


# measured: 3e-7 (tile 2) and 1.3e-6 (tile 4) of the deviation, 0.5 % and 1.7 %; twice that is allowed
@pytest.mark.parametrize(
    ("tile", "dtype", "tolerance"),
    [
        (2, torch.float32, 6e-7),
        (4, torch.float32, 3e-6),
        (2, torch.bfloat16, 0.01),
        (4, torch.bfloat16, 0.035),
    ],
)
def test_rounding_is_what_the_docstring_says(tile, dtype, tolerance):
    x = torch.randn(1, 128, 32, 40).relu()
    layer = Convolution3x3(128, 128, tile)
    expected = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        got = layer(x)
    assert got.dtype == dtype
    error = (got.double() - expected).std() / expected.std()
    assert 0 < error < tolerance


def test_new_weights_take_effect_however_they_come():
    layer, x = Convolution3x3(4, 4, tile=4).double(), torch.randn(1, 4, 20, 20).double()

    def agrees(tolerance: float = 1e-10) -> bool:
        with torch.no_grad():
            expected = F.conv2d(x, layer.weight, layer.bias, padding=1)
            return torch.allclose(layer(x), expected, rtol=0, atol=tolerance)

    assert agrees()
    layer.load_state_dict({name: torch.randn_like(value) for name, value in layer.state_dict().items()})
    assert agrees()
    with torch.no_grad():
        layer.weight.mul_(2)
    assert agrees()
    layer.weight = torch.nn.Parameter(torch.randn(4, 4, 3, 3).double())
    assert agrees()
    layer.float()
    x = x.float()
    assert agrees(1e-4)  # outputs reach 20


def test_gradients_flow_as_through_the_plain_convolution():
    layer, x = Convolution3x3(3, 3, tile=4), torch.randn(1, 3, 20, 20, requires_grad=True)
    layer(x).square().sum().backward()
    got = x.grad.clone()
    x.grad = None
    F.conv2d(x, layer.weight, layer.bias, padding=1).square().sum().backward()
    assert torch.allclose(got, x.grad)


def test_its_state_dict_is_that_of_a_convolution():
    plain, layer = torch.nn.Conv2d(2, 3, 3, padding=1), Convolution3x3(2, 3, tile=2)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(1, 2, 30, 30)
    with torch.inference_mode():
        assert torch.allclose(layer(x), plain(x), atol=1e-6)
