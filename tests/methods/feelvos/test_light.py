"""FEELVOS's small form: what its target remembers and tells the head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_methods import VARIANTS, small

from streamvos.methods import build
from streamvos.methods.feelvos.light import (
    LENGTH,
    LEVELS,
    LightTarget,
    nearest_other,
    reduce_to_cells,
)
from streamvos.methods.feelvos.options import EFFICIENTNET, FEELVOSOptions
from streamvos.types import VOID, Features

OPTIONS = FEELVOSOptions(**EFFICIENTNET, recent_every=2)
GRID = (5, 6)
SIZE = (40, 48)


def scene(seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.nn.functional.normalize(torch.randn(1, 8, *GRID, generator=generator), dim=1)
    return Features({"embedding": embedding, **{name: torch.zeros(1, 1, 1, 1) for name in LEVELS}}, SIZE)


def squashed(query: Features, candidates: torch.Tensor) -> torch.Tensor:
    """The definition of the distance to the nearest of (N, C) candidates: (h, w)."""
    squared = (query["embedding"][0].movedim(0, -1)[:, :, None] - candidates).square().sum(-1).amin(-1)
    return torch.tanh(squared / 2)


def cells_of(features: Features, where: torch.Tensor) -> torch.Tensor:
    return features["embedding"][0].movedim(0, -1)[where]


def certain(cells: torch.Tensor) -> torch.Tensor:
    """(2, H, W): probabilities of one object whose cells (h, w) these are."""
    mask = cells.float().repeat_interleave(8, 0).repeat_interleave(8, 1)
    return torch.stack([1 - mask, mask])


def region(top: int, left: int, bottom: int, right: int) -> torch.Tensor:
    cells = torch.zeros(GRID, dtype=torch.bool)
    cells[top:bottom, left:right] = True
    return cells


def test_cues_are_distances_to_the_object_and_to_the_nearest_of_the_rest():
    target = LightTarget(OPTIONS)
    first, second, third, now = map(scene, range(4))
    given, then, later = region(0, 0, 2, 2), region(0, 1, 2, 3), region(1, 1, 3, 3)
    target.annotate(first, certain(given)[1].long() * 4, (4,))
    target.write(second, certain(then))
    target.write(third, certain(later))  # the second frame after the annotation is remembered
    cues = target.read(now)["cues"]
    chessboard = (torch.arange(5)[:, None] + torch.arange(6)) % 2 == 0
    for own, k in ((True, 0), (False, 1)):
        kept = chessboard | own  # of the background every other cell, in global matching
        far, seen = cells_of(first, (given == own) & kept), cells_of(third, (later == own) & kept)
        near = cells_of(third, later == own)
        expected = [squashed(now, far), squashed(now, torch.cat([far, seen])), squashed(now, near)]
        # the window of local matching covers this grid; sums in another order
        assert (cues[0, k:6:2] - torch.stack(expected)).abs().max() < 1e-5
    assert torch.equal(cues[0, 6], later.float())


def test_recent_frames_are_few_certain_and_end_with_an_annotation():
    target = LightTarget(OPTIONS)
    target.annotate(scene(0), certain(region(0, 0, 2, 2))[1].long(), (1,))
    unsure = torch.full((2, *SIZE), 0.5)
    for t in range(1, 9):
        target.write(scene(t), unsure if t == 6 else certain(region(0, 0, 2, 2)))
    memory = target._memory
    assert memory.recent.shape == (2, 30, 8)
    assert torch.equal(memory.recent[1], scene(8)["embedding"][0].flatten(1).t())
    assert (memory.recent_labels[0] == VOID).all()
    assert set(memory.recent_labels[1].tolist()) == {0, 1, VOID}
    target.annotate(scene(9), certain(region(1, 1, 2, 2))[1].long(), (1,))
    assert len(target._memory.recent) == 0


def test_an_object_smaller_than_a_cell_has_one():
    labels = torch.zeros(SIZE, dtype=torch.int64)
    labels[9:12, 30:33] = 7
    labels[20:40] = VOID
    target = LightTarget(OPTIONS)
    target.annotate(scene(0), labels, (7,))
    cells = target._memory.annotated_labels.view(GRID)
    assert (cells == 7).nonzero().tolist() == [[1, 3]]
    assert (cells[3:] == VOID).all()
    assert (cells[0] == 0).all()


def test_the_nearest_other_label_is_not_the_own_one():
    distances = torch.rand(4, 9, generator=torch.Generator().manual_seed(0))
    for k in range(1, 4):
        others = torch.cat([distances[:k], distances[k + 1 :]])
        assert torch.equal(nearest_other(distances)[k - 1], others.amin(0))
    assert torch.equal(nearest_other(distances[:2]), distances[:1])
    assert nearest_other(distances[:1]).shape == (0, 9)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (65, 90)])
def test_embeddings_have_one_length_and_lie_at_stride_8(size):
    method = build("feelvos", VARIANTS["feelvos/efficientnet"]).eval()
    with torch.inference_mode():
        embedding = method.extractor(torch.rand(2, 3, *size))["embedding"]
    assert embedding.shape[-2:] == reduce_to_cells(torch.zeros(1, *size)).shape[-2:]
    assert (embedding.norm(dim=1) - LENGTH).abs().max() < 1e-4


def test_a_still_picture_with_an_untrained_head_runs(rng):
    vos = small("feelvos/efficientnet")
    image = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    mask[8:30, 8:30] = 3
    vos.step(image, mask)
    assert vos.step(image).probabilities.shape == (2, 48, 64)
