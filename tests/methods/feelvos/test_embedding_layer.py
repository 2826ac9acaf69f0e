"""The embedding layer begins as the identity, and has the authors' ReLUs where they are asked for."""

from __future__ import annotations

import torch

from streamvos.methods.feelvos.embedding_layer import DEVIATION, EmbeddingLayer


def test_it_begins_as_the_identity_plus_noise():
    layer = EmbeddingLayer(12, 5)
    identity = torch.zeros(12, 3, 3)
    identity[:, 1, 1] = 1
    assert (layer.depthwise.weight[:, 0] - identity).abs().max() <= 2 * DEVIATION + 1e-6
    assert (layer.pointwise.weight[:, :, 0, 0] - torch.eye(5, 12)).abs().max() <= 2 * DEVIATION + 1e-6
    assert (layer.depthwise.bias == 0).all()


def test_both_halves_have_a_relu_as_in_the_authors_code_or_none_as_in_the_paper():
    x = torch.randn(2, 12, 6, 7)
    for relu in (True, False):
        layer = EmbeddingLayer(12, 5, relu)
        with torch.inference_mode():
            half = layer.depthwise(x)
            whole = layer.pointwise(half.relu() if relu else half)
            assert torch.equal(layer(x), whole.relu() if relu else whole)
            assert (layer(x) < 0).any() != relu
