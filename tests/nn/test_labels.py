"""Label maps to cells and back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from streamvos.nn.labels import one_hot_labels, resize_probabilities, winners


def test_cells_hold_fractions_that_sum_to_one_away_from_void():
    label_map = torch.randint(0, 3, (64, 80))
    label_map[:8, :8] = 255
    labels = one_hot_labels(label_map, (1, 2), (8, 10))
    assert labels.shape == (3, 8, 10)
    assert torch.allclose(labels.sum(0).flatten()[1:], torch.ones(79))
    assert labels[:, 0, 0].sum() == 0  # the void block belongs to no channel


def test_ids_may_have_gaps():
    label_map = torch.tensor([[0, 200], [7, 200]])
    labels = one_hot_labels(label_map, (7, 200), (2, 2))
    assert labels.argmax(0).tolist() == [[0, 2], [1, 2]]


def test_probabilities_sum_to_one_and_an_unreached_pixel_is_background():
    labels = torch.rand(3, 5, 6)
    labels[:, :2] = 0
    probabilities = resize_probabilities(labels, (50, 60))
    assert torch.allclose(probabilities.sum(0), torch.ones(50, 60), atol=1e-6)
    assert (probabilities[0, :12] == 1).all()


def test_the_winner_is_that_of_the_enlarged_labels():
    labels = torch.rand(4, 6, 7) ** 4
    enlarged = F.interpolate(labels[None], (48, 56), mode="bilinear", align_corners=False)[0]
    assert torch.equal(resize_probabilities(labels, (48, 56)).argmax(0), enlarged.argmax(0))


@pytest.mark.parametrize("count", [1, 2, 7, 255])
def test_the_winner_is_the_first_of_the_largest(count):
    channels = torch.randint(0, 4, (count, 9, 11)).float()  # many ties
    expected = channels.argmax(0)
    assert torch.equal(winners(channels).long(), expected)
    assert torch.equal((channels == channels.amax(0)).int().argmax(0), expected)  # argmax gives the first
    assert winners(channels).dtype == torch.uint8


def test_what_is_not_a_number_has_a_winner_all_the_same():
    channels = torch.rand(3, 4, 4)
    channels[1, 0, 0] = torch.nan
    assert int(winners(channels).max()) <= 2
