"""The loss of FEELVOS's small form: what it matches is what the method matches, and it can be learned."""

from __future__ import annotations

import torch
from small_methods import VARIANTS

from streamvos.methods import build
from streamvos.nn.efficientnet import CHANNELS
from streamvos.training.feelvos import FEELVOSLoss, Trained, _nearest, _outside, damaged
from streamvos.types import Features

STRIDES = {"stage2": 4, "stage3": 8, "stage4": 16, "stage5": 16, "stage6": 32}


def clips(count: int = 2, length: int = 3, size: tuple[int, int] = (64, 96)) -> dict[str, torch.Tensor]:
    """Noise in which the object's features differ, and the object moves."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(count, length, *size, dtype=torch.uint8)
    for t in range(length):
        labels[:, t, 8:40, 8 + 8 * t : 48 + 8 * t] = 1
    labels[:, :, -8:] = 255
    batch = {"labels": labels}
    for name, stride in STRIDES.items():
        shape = (count, length, CHANNELS[name], size[0] // stride, size[1] // stride)
        own = (labels == 1).float()[..., ::stride, ::stride][:, :, None]
        batch[name] = (torch.randn(shape, generator=generator) + 2 * own).float()
    return batch


def test_what_is_nearest_is_found_within_the_window():
    generator = torch.Generator().manual_seed(0)
    grid = (9, 11)
    query, cells = (
        torch.nn.functional.normalize(torch.randn(99, 8, generator=generator), dim=1) for _ in range(2)
    )
    places = torch.arange(0, 99, 2)
    rows, columns = torch.arange(99) // 11, torch.arange(99) % 11
    away = torch.maximum((rows[:, None] - rows).abs(), (columns[:, None] - columns).abs())
    squared = torch.cdist(query, cells).square()
    for outside, allowed in ((None, away >= 0), (_outside(grid, 3, query.device), away <= 3)):
        expected = squared.masked_fill(~allowed, torch.inf)[:, places].amin(1)
        found = _nearest(query, cells, places, outside)
        # products are compared in bfloat16: 2^-8 of lengths of one
        assert (found - expected).abs().max() < 0.03
        assert (found >= expected - 1e-5).all()
    assert torch.isinf(_nearest(query, cells, places[:0])).all()


def test_the_loss_falls_and_reaches_all_weights():
    torch.manual_seed(0)
    model = Trained(build("feelvos", VARIANTS["feelvos/efficientnet"])).train()
    loss, batch = FEELVOSLoss(window=4), clips()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    totals = []
    for _ in range(12):
        losses = loss(model, batch)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        totals.append(losses["total"].item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad.any() for p in model.embedding.parameters())
    assert min(totals[-3:]) < 0.7 * totals[0]


def test_an_object_that_leaves_costs_nothing_infinite():
    torch.manual_seed(0)
    model = Trained(build("feelvos", VARIANTS["feelvos/efficientnet"])).train()
    batch = clips()
    batch["labels"][:, 1:] = 0
    losses = FEELVOSLoss(window=4, damage=1.0)(model, batch)
    losses["total"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_masks_are_damaged_as_often_as_asked():
    masks = torch.rand(200, 6, 8)
    torch.manual_seed(0)
    changed = (damaged(masks, 0.5) != masks).flatten(1).any(1).float().mean()
    assert 0.3 < changed < 0.6  # a mask that is moved by nothing does not change
    assert torch.equal(damaged(masks, 0.0), masks)
    assert torch.equal(damaged(torch.zeros(50, 6, 8), 1.0), torch.zeros(50, 6, 8))


def test_what_the_head_is_trained_on_is_what_it_sees_later():
    torch.manual_seed(0)
    method = build("feelvos", {**VARIANTS["feelvos/efficientnet"], "recent_every": 1, "certain": 0.8})
    model, batch, seen = Trained(method).eval(), clips(1), []
    model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        FEELVOSLoss(window=4, damage=0, remember=1)(model, batch)
        target = method.target()
        for t in range(3):
            maps = {name: batch[name][:, t] for name in STRIDES}
            features = Features({"embedding": model.embedding(maps), **maps}, (64, 96))
            if t == 0:
                target.annotate(features, batch["labels"][0, 0].long(), (1,))
                continue
            evidence = target.read(features)
            # neighbors are found in bfloat16, and training enlarges and reduces fewer times
            error = (evidence["cues"] - seen[t - 1]).abs()
            assert error.max() < 0.1
            assert error.mean() < 1e-3
            target.write(features, method.decoder(evidence, features.size))
