"""Training RGMP's light form: what gets a gradient, which masks guide, and that it learns."""

from __future__ import annotations

import pytest
import torch
from small_methods import VARIANTS

from streamvos.methods import build
from streamvos.training.disturbance import disturb, move, unseen_parts
from streamvos.training.rgmp import RGMPLoss, first_guides

SIZE = (64, 96)


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build("rgmp", VARIANTS["rgmp/light"]).runs.network


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two clips of three frames whose maps show where the object is."""
    labels = torch.zeros((2, 3, *SIZE), dtype=torch.uint8)
    for t in range(3):
        labels[:, t, 16:48, 16 + 8 * t : 48 + 8 * t] = 1
        labels[:, t, :8] = 255
    made = {"labels": labels}
    generator = torch.Generator().manual_seed(0)
    for name, channels, stride in (
        ("stage2", 24, 4),
        ("stage3", 40, 8),
        ("stage5", 112, 16),
        ("stage6", 192, 32),
    ):
        shape = (2, 3, channels, SIZE[0] // stride, SIZE[1] // stride)
        shown = (labels[:, :, None, ::stride, ::stride] == 1).float()
        made[name] = (5 * torch.randn(shape, generator=generator) + 10 * shown).bfloat16()
    return made


def test_every_weight_gets_a_gradient_and_the_loss_falls(batch):
    net, loss = network(), RGMPLoss()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    totals = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            losses = loss(net, batch)
        losses["total"].backward()
        assert all(p.grad is not None for p in net.parameters())
        optimizer.step()
        optimizer.zero_grad()
        totals.append(float(losses["total"].detach()))
        assert 0 <= float(losses["overlap"]) <= 1
    assert sum(totals[-3:]) < 0.8 * sum(totals[:3])


def test_the_gradient_flows_back_through_soft_masks(batch, monkeypatch):
    """With a loss on the last frame alone, the prediction of the frame before gets a gradient."""
    net, seen = network(), []
    plain = net.forward

    def watched(*args):
        logits = plain(*args)
        logits.retain_grad()
        seen.append(logits)
        return logits

    monkeypatch.setattr(net, "forward", watched)
    monkeypatch.setattr("streamvos.training.rgmp.AGAIN", 0.0)
    batch["labels"][:, 1] = 255  # counts for nothing
    with torch.autocast("cpu", torch.bfloat16):
        losses = RGMPLoss()(net, batch)
    losses["total"].backward()
    assert float(seen[0].grad.abs().sum()) > 0


def test_guides_are_masks_that_are_wrong_in_many_ways():
    masks = torch.zeros(64, 40, 60)
    masks[:, 10:25, 20:40] = 1
    torch.manual_seed(0)
    others = torch.zeros_like(masks)
    for made in (move(masks, 0.1), disturb(masks), first_guides(torch.stack([masks, masks], 1), others)):
        assert made.shape == masks.shape
        assert float(made.min()) >= 0
        assert float(made.max()) <= 1
        assert len(made.flatten(1).unique(dim=0)) > 20
    assert (first_guides(torch.stack([masks, masks], 1), others).sum((1, 2)) == 0).any()


def test_a_moved_mask_stays_around_its_place():
    masks = torch.zeros(256, 40, 60)
    masks[:, 10:20, 20:40] = 1
    torch.manual_seed(0)
    still = move(masks, 0.0)
    # turned only, by about 0.15 radians, around its own center
    assert torch.allclose(still.sum((1, 2)), masks.sum((1, 2)), rtol=0.15)
    rows, columns = torch.arange(40.0), torch.arange(60.0)
    for amount, far in ((0.0, 0.3), (0.02, 8.0)):
        moved = move(masks, amount)
        total = moved.sum((1, 2))
        assert float(((moved.sum(2) * rows).sum(1) / total - 14.5).abs().max()) < far
        assert float(((moved.sum(1) * columns).sum(1) / total - 29.5).abs().max()) < far


def test_unseen_parts_are_sides_of_some_objects():
    torch.manual_seed(0)
    masks = torch.zeros(200, 24, 32)
    masks[:, 6:18, 8:24] = 1
    seen = unseen_parts(masks, 0.5)
    left = (masks * seen).sum((1, 2)) / masks.sum((1, 2))  # what is left of each object
    assert ((seen >= 0) & (seen <= 1)).all()
    assert 0.35 < (left < 1).float().mean() < 0.65
    assert left.min() > 0.25
    assert left[left < 1].mean() == pytest.approx(0.6, abs=0.1)
    assert (unseen_parts(masks, 0.0) == 1).all()
    assert (unseen_parts(torch.zeros(4, 24, 32), 1.0) == 1).all()  # no object, no part
