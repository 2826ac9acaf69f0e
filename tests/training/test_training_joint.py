"""Training JOINT's head: what is trained, what is not, and that it runs as a stream does."""

from __future__ import annotations

import pytest
import torch
from small_methods import VARIANTS

from streamvos.methods import build
from streamvos.methods.joint.light import LEVELS
from streamvos.nn.efficientnet import CHANNELS
from streamvos.training.joint import RECIPE, unroll

STRIDES = {"stage2": 4, "stage3": 8, "stage4": 16, "stage5": 16, "stage6": 32}


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two clips in which an object moves to the right; one channel of every stage tells where it is."""
    torch.manual_seed(0)
    labels = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    for t in range(3):
        labels[:, t, 16:48, 8 + 16 * t : 40 + 16 * t] = 1
    labels[:, :, :8] = 255
    clips: dict[str, torch.Tensor] = {"labels": labels}
    for name, stride in STRIDES.items():
        maps = torch.randn(2, 3, CHANNELS[name], 64 // stride, 96 // stride)
        maps[:, :, 0] += 20.0 * (labels[..., ::stride, ::stride] == 1)
        clips[name] = maps
    return clips


def small(**options):
    torch.manual_seed(0)
    own = {**RECIPE.options, **VARIANTS["joint/efficientnet"], "precision": "float32"}
    method = build(RECIPE.method, {**own, **options}).eval()
    return method, RECIPE.network(method)


def test_the_head_learns_and_nothing_else_has_a_gradient(batch):
    method, network = small()
    loss, optimizer = RECIPE.loss(method), torch.optim.Adam(network.parameters(), 3e-3)
    totals = []
    for _ in range(25):
        losses = loss(network.train(), batch)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        totals.append(float(losses["total"].detach()))
        assert 0 <= float(losses["overlap"]) <= 1
    assert sum(totals[-5:]) < 0.7 * sum(totals[:5])
    assert all(p.grad is not None for p in network.parameters())
    assert all(p.grad is None for p in method.network.backbone.parameters())


def test_an_object_that_is_nowhere_is_allowed(batch):
    method, network = small()
    batch["labels"][:, 1:] = 0
    losses = RECIPE.loss(method)(network, batch)
    losses["total"].backward()
    assert torch.isfinite(losses["total"])


@torch.inference_mode()
def test_a_clip_in_training_is_a_stream():
    """Three frames after the first; the learner, whose later weights differ, learns on the first one only."""
    method, network = small(init_iterations=3, update_iterations=0, update_interval=2)
    frames, mask = torch.rand(4, 3, 64, 96), torch.zeros(64, 96)
    mask[16:48, 16:64] = 1
    maps = {name: value[None] for name, value in method.network.backbone(frames).items()}
    logits, _, _ = unroll(network, maps, mask[None, ::4, ::4], 3, 0)
    target = method.target()
    target.annotate(method.extractor(frames[:1]), mask.long(), (1,))
    for t in range(1, 4):
        features = method.extractor(frames[t : t + 1])
        evidence = target.read(features)
        (own,) = method.decoder.part(evidence["encoding"], *(evidence[name] for name in LEVELS))
        # float32, in other orders
        assert (own[0] - logits[0, t - 1]).abs().max() < 1e-4 * logits.abs().max()
        soft = (2 * own).sigmoid().repeat_interleave(4, 1).repeat_interleave(4, 2)
        target.write(features, torch.cat([1 - soft, soft]))
