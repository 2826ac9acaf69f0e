"""The dynamic head against the head it stands for: all 259 channels through every layer, for every object."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from streamvos.methods.feelvos import dynamic_head
from streamvos.methods.feelvos.dynamic_head import CUES, DynamicHead, SharedStem


def plain(stem: SharedStem, head: DynamicHead, features, cues, relu_between: bool) -> torch.Tensor:
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
def test_sharing_changes_nothing(relu_between, layers):
    stem = SharedStem(10, 8, 7, relu_between).double()
    head = DynamicHead(8, layers, 7, relu_between).double()
    nn.init.normal_(stem.depthwise.bias)
    nn.init.normal_(head.cues.pointwise.bias)
    features = torch.randn(1, 10, 9, 12, dtype=torch.float64)
    cues = torch.rand(3, CUES, 9, 12, dtype=torch.float64)
    expected = plain(stem, head, features, cues, relu_between)
    # float64, and outputs of order 1
    assert (head(stem(features), cues) - expected).abs().max() < 1e-12


def test_many_objects_are_worked_on_in_portions(monkeypatch):
    stem, head = SharedStem(6, 5), DynamicHead(5, 2)
    features, cues = torch.randn(1, 6, 8, 8), torch.rand(60, CUES, 8, 8)
    with torch.inference_mode():
        together = head(stem(features), cues)
        monkeypatch.setattr(dynamic_head, "AT_ONCE", 7 * 5 * 64)
        assert (head(stem(features), cues) - together).abs().max() < 1e-6


def test_objects_do_not_see_each_other():
    head = DynamicHead(5, 3)
    shared, cues = torch.randn(1, 5, 8, 8), torch.rand(4, CUES, 8, 8)
    order = [2, 0, 3, 1]
    with torch.inference_mode():
        assert torch.allclose(head(shared, cues)[order], head(shared, cues[order]), atol=1e-6)


def test_weights_begin_with_the_authors_deviations():
    stem, head = SharedStem(256, 256), DynamicHead(256)
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


def test_gradients_reach_every_weight():
    stem, head = SharedStem(4, 4, 3).double(), DynamicHead(4, 2, 3).double()
    features = torch.rand(1, 4, 5, 5, dtype=torch.float64)
    head(stem(features), torch.rand(2, CUES, 5, 5, dtype=torch.float64)).sum().backward()
    for name, weight in (*stem.named_parameters(), *head.named_parameters()):
        assert weight.grad is not None, name
