"""DeepLabv3+'s pyramid and decoder."""

from __future__ import annotations

import torch

from streamvos.methods.feelvos.deeplab import Decoder, Pyramid


def test_the_pyramid_is_its_branches_in_their_order():
    pyramid = Pyramid(12, 8, rates=(2, 3)).eval()
    x = torch.randn(2, 12, 7, 9)
    with torch.inference_mode():
        mean = pyramid.pooling(x.mean((2, 3), keepdim=True)).expand(2, 8, 7, 9)
        branches = [mean, pyramid.point(x), pyramid.dilated[0](x), pyramid.dilated[1](x)]
        assert torch.equal(pyramid(x), pyramid.projection(torch.cat(branches, 1)))
    assert [branch.depthwise.dilation for branch in pyramid.dilated] == [(2, 2), (3, 3)]


def test_the_whole_map_reaches_every_cell_of_the_pyramid():
    pyramid = Pyramid(6, 4, rates=(1,)).eval()
    x = torch.rand(1, 6, 9, 9)
    changed = x.clone()
    changed[..., 8, 8] += 10
    with torch.inference_mode():
        assert not torch.equal(pyramid(x)[..., 0, 0], pyramid(changed)[..., 0, 0])


def test_dropout_is_for_training_only():
    torch.manual_seed(0)
    pyramid = Pyramid(6, 64, rates=(1,))
    x = torch.rand(2, 6, 9, 9)
    assert torch.equal(pyramid.eval()(x), pyramid(x))
    pyramid.train()
    assert not torch.equal(pyramid(x), pyramid(x))


def test_the_decoder_brings_both_maps_to_the_grid():
    decoder = Decoder(8, low=10, low_channels=4).eval()
    with torch.inference_mode():
        y = decoder(torch.rand(2, 8, 5, 6), torch.rand(2, 10, 18, 21), (17, 22))
    assert y.shape == (2, 8, 17, 22)
    assert (y >= 0).all()


def test_features_come_before_low_level_ones():
    decoder = Decoder(3, low=5, low_channels=2).eval()
    pyramid, low = torch.rand(1, 3, 6, 7), torch.rand(1, 5, 6, 7)
    with torch.inference_mode():
        expected = decoder.conv2(decoder.conv1(torch.cat([pyramid, decoder.low(low)], 1)))
        assert torch.equal(decoder(pyramid, low, (6, 7)), expected)
