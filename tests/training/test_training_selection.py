"""The selector's training: simulated users, stored crops, and a run that learns."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from small_training_data import write_training_data

from streamvos.selection.selector import Selector
from streamvos.training.loop import TrainingOptions
from streamvos.training.selection import (
    TRAINING,
    SelectionCrops,
    SimulatedUser,
    is_held_out,
    largest_error,
    make_crops,
    noisy_box,
    train_selector,
)
from streamvos.types import VOID, InputError
from streamvos.weights import bundled_path


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    data, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("crops")
    write_training_data(data)
    make_crops(data, folder, lambda _: None)
    return folder


def disk(size, x, y, radius):
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def test_a_click_falls_into_the_middle_of_the_largest_error():
    labels = disk((100, 140), 60, 50, 30).astype(np.uint8)
    assert largest_error(labels, labels == 1) is None
    x, y, sign = largest_error(labels, np.zeros(labels.shape, bool))
    assert (abs(x - 60.5) < 2, abs(y - 50.5) < 2, sign) == (True, True, 1)
    too_much = (labels == 1) | disk(labels.shape, 115, 50, 15)
    x, y, sign = largest_error(labels, too_much)
    assert (abs(x - 115.5) < 2, abs(y - 50.5) < 2, sign) == (True, True, -1)
    labels[disk(labels.shape, 115, 50, 20)] = VOID
    assert largest_error(labels, too_much) is None


def test_a_noisy_box_lies_about_the_object(rng):
    mask = disk((100, 140), 60, 50, 30)
    boxes = np.array([noisy_box(rng, mask) for _ in range(500)])
    assert np.abs(boxes.mean(0) - [30, 20, 91, 81]).max() < 1
    assert 2 < boxes.std(0).min() < boxes.std(0).max() < 7


@pytest.mark.parametrize("begin", ["click", "box", "mask"])
def test_a_user_points_at_the_object_and_then_at_errors(rng, begin):
    torch.manual_seed(0)
    labels = disk((96, 128), 60, 50, 30).astype(np.uint8)
    user = SimulatedUser(rng, labels, begin)
    assert (len(user.points) > 0, user.box is not None, user.mask is not None) == {
        "click": (True, False, False),
        "box": (False, True, False),
        "mask": (True, False, True),
    }[begin]
    user.correct(np.zeros((24, 32), np.float32))
    x, y, sign = user.points[-1]
    assert sign == 1
    assert labels[int(y), int(x)] == 1


def test_held_out_photographs_are_not_trained_on(crops):
    count = sum(not is_held_out(str(k)) for k in range(4))
    assert count > 0
    stored = np.load(crops / "duts-000" / "labels.npy")
    assert len(stored) == 2 * count
    assert {path.name for path in crops.iterdir()} == {"duts-000", "video-square"}


def test_batches_depend_on_the_step_alone(crops):
    first, again = SelectionCrops(crops).batch(3, 4), SelectionCrops(crops).batch(3, 4)
    other = SelectionCrops(crops).batch(4, 4)
    assert first["stage5"].shape == (4, 112, 20, 20)
    assert torch.equal(first["stage2"], again["stage2"])
    assert not torch.equal(first["stage2"], other["stage2"])


def test_a_short_training_learns_and_its_weights_are_read(crops, tmp_path):
    training = TrainingOptions(
        **{**TRAINING, "steps": 12, "batch": 4, "warmup": 2, "average": 0.0, "workers": 0}
    )
    path = train_selector(crops, training, tmp_path / "run", say=lambda _: None)
    losses = [json.loads(line) for line in (tmp_path / "run" / "losses.jsonl").read_text().splitlines()]
    assert np.mean([one["mask"] for one in losses[-3:]]) < 0.8 * np.mean([one["mask"] for one in losses[:3]])
    mask, _ = Selector(path, "cpu").select(np.zeros((64, 96, 3), np.uint8), [(40, 30, 1)])
    assert mask.shape == (64, 96)


def test_other_weights_are_refused():
    with pytest.raises(InputError, match="selector"):
        Selector(bundled_path("tvos"), "cpu")


def test_a_folder_without_crops_is_refused(tmp_path):
    with pytest.raises(InputError, match="no crops"):
        SelectionCrops(tmp_path)
