"""FEELVOS after its backbone: grids with aligned corners, pyramid, decoder, embedding layer, dynamic head.

The head is compared with the head it stands for: all 259 channels through every layer, for every object.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from streamvos.methods.feelvos import networks
from streamvos.methods.feelvos.networks import (
    CUES,
    DEVIATION,
    DynamicHead,
    EmbeddingLayer,
    FeatureDecoder,
    HeadLayer,
    Pyramid,
    grid_size,
    nearest_pixels,
    resize_bilinear,
    sample_nearest,
)

SIZES = [(480, 854), (465, 465), (100, 133), (37, 53), (5, 9)]


@pytest.mark.parametrize("size", SIZES)
def test_label_maps_at_stride_4_are_the_authors(shared, size):
    golden = np.load(shared / "goldens" / "feelvos_matching.npz")
    cases = {name.split("/")[1] for name in golden if name.startswith("labels/")}
    assert cases == {f"{height}x{width}" for height, width in SIZES}
    name = f"labels/{size[0]}x{size[1]}"
    full = torch.from_numpy(golden[f"{name}/full"])
    ours = sample_nearest(full, grid_size(size))
    assert np.array_equal(ours.numpy(), golden[f"{name}/stride4"])


@pytest.mark.parametrize("pixels", [1, 2, 3, 16, 17, 100, 854])
@pytest.mark.parametrize("cells", [1, 2, 3, 5, 214])
def test_each_cell_has_the_pixel_nearest_to_it(pixels, cells):
    ours = nearest_pixels(pixels, cells)
    assert ours[0] == 0
    assert cells == 1 or ours[-1] == pixels - 1
    places = np.arange(cells) * (pixels - 1) / max(cells - 1, 1)
    assert np.abs(ours.numpy() - places).max() <= 0.5


def test_of_two_equally_near_pixels_the_later_is_taken():
    assert nearest_pixels(4, 3).tolist() == [0, 2, 3]
    assert nearest_pixels(2, 3).tolist() == [0, 1, 1]


def test_values_of_any_shape_are_sampled():
    values = torch.arange(2 * 9 * 13).view(2, 9, 13)
    assert torch.equal(sample_nearest(values, (3, 4)), values[:, ::4, ::4])
    assert torch.equal(sample_nearest(values[0], (3, 4)), values[0, ::4, ::4])


def test_bilinear_maps_keep_their_corners_and_their_ramps():
    ramp = torch.linspace(0, 1, 5, dtype=torch.float64).view(1, 1, 1, 5).expand(1, 1, 3, 5)
    ours = resize_bilinear(ramp, (7, 18))
    assert (ours - torch.linspace(0, 1, 18, dtype=torch.float64)).abs().max() < 1e-12
    assert resize_bilinear(ramp, (3, 5)) is ramp


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
    decoder = FeatureDecoder(8, low=10, low_channels=4).eval()
    with torch.inference_mode():
        y = decoder(torch.rand(2, 8, 5, 6), torch.rand(2, 10, 18, 21), (17, 22))
    assert y.shape == (2, 8, 17, 22)
    assert (y >= 0).all()


def test_features_come_before_low_level_ones():
    decoder = FeatureDecoder(3, low=5, low_channels=2).eval()
    pyramid, low = torch.rand(1, 3, 6, 7), torch.rand(1, 5, 6, 7)
    with torch.inference_mode():
        expected = decoder.conv2(decoder.conv1(torch.cat([pyramid, decoder.low(low)], 1)))
        assert torch.equal(decoder(pyramid, low, (6, 7)), expected)


def test_the_embedding_layer_begins_as_the_identity_plus_noise():
    layer = EmbeddingLayer(12, 5)
    identity = torch.zeros(12, 3, 3)
    identity[:, 1, 1] = 1
    assert (layer.depthwise.weight[:, 0] - identity).abs().max() <= 2 * DEVIATION + 1e-6
    assert (layer.pointwise.weight[:, :, 0, 0] - torch.eye(5, 12)).abs().max() <= 2 * DEVIATION + 1e-6
    assert (layer.depthwise.bias == 0).all()


def test_both_halves_of_the_embedding_layer_have_a_relu_as_in_the_authors_code_or_none_as_in_the_paper():
    x = torch.randn(2, 12, 6, 7)
    for relu in (True, False):
        layer = EmbeddingLayer(12, 5, relu)
        with torch.inference_mode():
            half = layer.depthwise(x)
            whole = layer.pointwise(half.relu() if relu else half)
            assert torch.equal(layer(x), whole.relu() if relu else whole)
            assert (layer(x) < 0).any() != relu


def plain(stem: HeadLayer, head: DynamicHead, features, cues, relu_between: bool) -> torch.Tensor:
    """The features repeated for every object, with the cues behind them."""
    between = torch.relu if relu_between else nn.Identity()
    x = torch.cat([features.expand(len(cues), -1, -1, -1), cues], 1)
    depthwise = torch.cat([stem.depthwise.weight, head.cues.depthwise.weight])
    bias = torch.cat([stem.depthwise.bias, head.cues.depthwise.bias])
    pointwise = torch.cat([stem.pointwise.weight, head.cues.pointwise.weight], 1)
    padding = depthwise.shape[-1] // 2
    x = between(nn.functional.conv2d(x, depthwise, bias, padding=padding, groups=len(depthwise)))
    x = nn.functional.conv2d(x, pointwise, head.cues.pointwise.bias).relu()
    for layer in head.layers:
        x = layer.pointwise(between(layer.depthwise(x))).relu()
    return head.logit(x)[:, 0]


@pytest.mark.parametrize("relu_between", [True, False])
@pytest.mark.parametrize("layers", [1, 4])
def test_sharing_the_stem_changes_nothing(relu_between, layers):
    stem = HeadLayer(10, 8, 7, relu_between, bias=False).double()
    head = DynamicHead(8, layers, 7, relu_between).double()
    nn.init.normal_(stem.depthwise.bias)
    nn.init.normal_(head.cues.pointwise.bias)
    features = torch.randn(1, 10, 9, 12, dtype=torch.float64)
    cues = torch.rand(3, CUES, 9, 12, dtype=torch.float64)
    expected = plain(stem, head, features, cues, relu_between)
    # float64, and outputs of order 1
    assert (head(stem(features), cues) - expected).abs().max() < 1e-12


def test_many_objects_are_computed_in_portions(monkeypatch):
    stem, head = HeadLayer(6, 5, bias=False), DynamicHead(5, 2)
    features, cues = torch.randn(1, 6, 8, 8), torch.rand(60, CUES, 8, 8)
    with torch.inference_mode():
        together = head(stem(features), cues)
        monkeypatch.setattr(networks, "AT_ONCE", 7 * 5 * 64)
        assert (head(stem(features), cues) - together).abs().max() < 1e-6


def test_objects_do_not_see_each_other():
    head = DynamicHead(5, 3)
    shared, cues = torch.randn(1, 5, 8, 8), torch.rand(4, CUES, 8, 8)
    order = [2, 0, 3, 1]
    with torch.inference_mode():
        assert torch.allclose(head(shared, cues)[order], head(shared, cues[order]), atol=1e-6)


def test_weights_of_the_head_begin_with_the_authors_deviations():
    stem, head = HeadLayer(256, 256, bias=False), DynamicHead(256)
    # cut at two deviations, a normal distribution keeps 0.88 of its deviation
    for module, deviation in (
        (stem.depthwise, 0.33),
        (stem.pointwise, 0.06),
        (head.layers[1].depthwise, 0.33),
        (head.layers[1].pointwise, 0.06),
    ):
        assert module.weight.abs().max() <= 2 * deviation
        assert module.weight.std().item() == pytest.approx(0.88 * deviation, rel=0.02)
    assert head.logit.weight.abs().max() <= 0.02


def test_gradients_reach_every_weight_of_the_head():
    stem, head = HeadLayer(4, 4, 3, bias=False).double(), DynamicHead(4, 2, 3).double()
    features = torch.rand(1, 4, 5, 5, dtype=torch.float64)
    head(stem(features), torch.rand(2, CUES, 5, 5, dtype=torch.float64)).sum().backward()
    for name, weight in (*stem.named_parameters(), *head.named_parameters()):
        assert weight.grad is not None, name
