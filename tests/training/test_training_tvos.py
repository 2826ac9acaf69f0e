"""Training TVOS's embedding and refiner on features: what the losses see, and that they fall."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_methods import VARIANTS

from streamvos.methods import Method, build
from streamvos.nn.efficientnet import CHANNELS
from streamvos.training.features import STAGES
from streamvos.training.tvos import RECIPE, TVOSLoss, cell_labels, trained_parts, within

SIZE = (64, 96)


def batch(frames: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Two clips in which objects 1 and 2 move by a cell a frame; every stage sees their looks, and noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(2, frames, *SIZE, dtype=torch.uint8)
    for t in range(frames):
        labels[:, t, 16:48, 8 * t + 8 : 8 * t + 32] = 1
        labels[:, t, 8:40, 8 * t + 48 : 8 * t + 64] = 2
    labels[:, :, :2] = 255
    maps = {}
    for stage, stride in STAGES.items():
        looks = torch.randn(3, CHANNELS[stage], generator=generator)
        image = looks[labels.where(labels < 255, 0).long()].movedim(-1, 2)  # (B, T, C, H, W)
        coarse = F.avg_pool2d(image.flatten(0, 1), stride).unflatten(0, (2, frames))
        maps[stage] = (coarse + 0.3 * torch.randn(coarse.shape, generator=generator)).bfloat16()
    return {**maps, "labels": labels}


def small(seed: int = 0) -> Method:
    torch.manual_seed(seed)
    return build("tvos", VARIANTS["tvos/efficientnet"])


@pytest.mark.parametrize("half", [False, True])
def test_both_parts_learn_and_the_losses_fall(half):
    method = small()
    network = trained_parts(method).train()
    loss, clips = TVOSLoss(method, queries=32), batch()
    if not half:
        clips = {name: value if name == "labels" else value.float() for name, value in clips.items()}
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    rows = []
    for _ in range(15):
        torch.manual_seed(0)  # the same queries, temperature and disturbances
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = loss(network, clips)
        optimizer.zero_grad()
        losses["total"].backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
        optimizer.step()
        rows.append({name: float(value.detach()) for name, value in losses.items()})
    assert set(rows[0]) == {"total", "arrival", "mask", "overlap"}
    for name in ("arrival", "mask"):
        assert rows[-1][name] < 0.8 * rows[0][name]


def test_nothing_of_the_backbone_is_trained():
    method = small()
    trained = {id(p) for p in trained_parts(method).parameters()}
    rest = [name for name, p in method.named_parameters() if id(p) not in trained]
    assert rest
    assert all("backbone" in name for name in rest)


def test_the_refiner_does_not_move_the_embedding():
    method = small()
    network = trained_parts(method).train()
    loss, clips = TVOSLoss(method, queries=32), batch()
    with torch.autocast("cpu", torch.bfloat16):
        total = loss(network, clips)["total"]
    arrival, *_ = network.embedding.parameters()
    refined = [p for name, p in network.refiner.named_parameters() if "gain" in name]
    total.backward()
    assert arrival.grad.abs().sum() > 0
    assert refined[0].grad.abs() > 0
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        masks, _ = loss._masks(network.refiner, torch.rand(2, 3, 16, 8, 12), clips, clips["labels"])
    masks.backward()
    assert arrival.grad is None or not arrival.grad.any()


def test_cells_hold_shares_of_labels_and_void_has_none():
    labels = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    labels[..., :8, :4], labels[..., 8:, 8:] = 3, 255
    shares = cell_labels(labels, 8)
    assert shares.shape == (1, 1, 4, 2, 2)
    assert shares[0, 0, :, 0, 0].tolist() == [0.5, 0, 0, 0.5]
    assert shares[0, 0, :, 1, 1].tolist() == [0, 0, 0, 0]


def test_the_window_of_a_cell():
    seen = within(torch.tensor([[0, 7]]), (3, 4), 1)
    assert seen[0, 0].view(3, 4).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert seen[0, 1].view(3, 4).int().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert within(torch.tensor([[5]]), (3, 4), None).all()


def test_the_recipe_is_of_the_bundled_form():
    assert RECIPE.method == "tvos"
    assert RECIPE.options["backbone"] == "efficientnet-lite0"
