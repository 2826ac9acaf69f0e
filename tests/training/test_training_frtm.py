"""Training FRTM's segmentation network: what is trained, what is not, and that it learns."""

from __future__ import annotations

import pytest
import torch

from streamvos.methods import build
from streamvos.nn.efficientnet import CHANNELS
from streamvos.training.frtm import RECIPE, disturb

SMALL = {"target_channels": 8, "init_iterations": (5, 5), "update_iterations": 3, "widths": (8, 8, 8, 8)}


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two clips in which an object moves to the right; one channel of every stage tells where it is."""
    torch.manual_seed(0)
    labels = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    for t in range(3):
        labels[:, t, 16:48, 8 + 16 * t : 40 + 16 * t] = 1
    labels[:, :, :8] = 255
    clips: dict[str, torch.Tensor] = {"labels": labels}
    for n, stride in zip(range(2, 7), (4, 8, 16, 16, 32), strict=True):
        maps = torch.randn(2, 3, CHANNELS[f"stage{n}"], 64 // stride, 96 // stride)
        maps[:, :, 0] += 20.0 * (labels[..., ::stride, ::stride] == 1)
        clips[f"stage{n}"] = maps.bfloat16()
    return clips


def test_the_segmentation_network_learns_and_nothing_else_has_a_gradient(batch):
    torch.manual_seed(0)
    method = build(RECIPE.method, {**RECIPE.options, **SMALL})
    network, loss = RECIPE.network(method), RECIPE.loss(method)
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    totals = []
    for _ in range(25):
        with torch.autocast("cpu", torch.bfloat16):
            losses = loss(network.train(), batch)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        totals.append(float(losses["total"].detach()))
        assert 0 <= float(losses["overlap"]) <= 1
    assert sum(totals[-5:]) < 0.7 * sum(totals[:5])
    assert all(p.grad is not None for p in network.parameters())
    assert all(p.grad is None for p in method.extractor.parameters())


def test_an_object_that_is_nowhere_is_allowed(batch):
    method = build(RECIPE.method, {**RECIPE.options, **SMALL})
    batch["labels"][:, 1:] = 0
    with torch.autocast("cpu", torch.bfloat16):
        losses = RECIPE.loss(method)(RECIPE.network(method), batch)
    losses["total"].backward()
    assert torch.isfinite(losses["total"])


def test_half_of_the_scores_are_disturbed():
    torch.manual_seed(0)
    scores = torch.rand(200, 5, 7)
    changed = (disturb(scores) != scores).flatten(1).any(1)
    assert 60 < int(changed.sum()) < 140  # of a binomial distribution, more than five deviations wide
    assert (disturb(scores) - scores).abs().mean() < 0.2
