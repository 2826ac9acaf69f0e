"""Xception-65: shapes, dilations, and that a dilated network computes what a strided one does, more often."""

from __future__ import annotations

import pytest
import torch

from streamvos.methods.feelvos.networks import grid_size
from streamvos.methods.feelvos.xception import SeparableConvolution, Xception65
from streamvos.types import InputError


def small(output_stride: int) -> Xception65:
    torch.manual_seed(0)
    return Xception65(output_stride, middle=1).eval()


def test_it_has_65_layers_of_the_published_widths():
    network = Xception65(16)
    blocks = [*network.entry, *network.middle, *network.exit]
    # a separable convolution counts once and shortcuts do not; the 65th layer is the classifier
    assert 2 + 3 * len(blocks) == 65
    assert [block.separable3.pointwise.out_channels for block in blocks] == [
        128,
        256,
        *[728] * 17,
        1024,
        2048,
    ]


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("size", [(16, 16), (33, 50), (40, 47), (65, 61)])
def test_sides_are_rounded_up_at_every_stride(output_stride, size):
    with torch.inference_mode():
        maps = small(output_stride)(torch.zeros(2, 3, *size))
    assert maps["low"].shape == (2, 256, *grid_size(size))
    assert maps["high"].shape == (2, 2048, *grid_size(size, output_stride))


def test_strides_that_are_taken_away_become_dilations():
    def dilations(network: Xception65) -> list[int]:
        return [m.depthwise.dilation[0] for m in network.modules() if isinstance(m, SeparableConvolution)]

    assert dilations(small(16)) == [1] * 15 + [2] * 3
    assert dilations(small(8)) == [1] * 9 + [2] * 6 + [4] * 3


def test_a_dilated_network_agrees_with_the_strided_one_on_common_cells():
    strided, dilated = small(16), small(8)
    dilated.load_state_dict(strided.state_dict())
    # sides of 16 k + 1: the coarse cells end where the fine ones do, and both meet zeros beyond
    frame = torch.rand(1, 3, 97, 65, dtype=torch.float64)
    with torch.inference_mode():
        coarse, fine = (network.double()(frame)["high"] for network in (strided, dilated))
    assert coarse.shape[-2:] == (7, 5)
    assert fine.shape[-2:] == (13, 9)
    assert (coarse - fine[..., ::2, ::2]).abs().max() < 1e-9 * coarse.std()


def test_a_block_is_three_separable_convolutions_and_a_shortcut():
    network = small(16)
    block, x = network.entry[1], torch.randn(1, 128, 9, 11)
    with torch.inference_mode():
        y, second = block(x)
        first = block.separable1(x)
        assert torch.equal(second, block.separable2(first))
        assert (second < 0).any()  # no ReLU on what the decoder takes
        shortcut = block.shortcut_bn(block.shortcut(x))
        assert torch.equal(y, block.separable3(second) + shortcut)
        last, _ = network.exit[1](torch.randn(1, 1024, 5, 5))
    assert (last >= 0).all()


def test_other_strides_are_refused():
    with pytest.raises(InputError, match="output_stride"):
        Xception65(32)
