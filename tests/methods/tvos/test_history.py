"""The ring buffer holds what it should and never grows; the schedules look where they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamvos.methods.tvos.history import History, authors_schedule, keep_first, paper_schedule
from streamvos.types import InputError

SCHEDULES = [authors_schedule, paper_schedule]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_gives_ascending_past_frames_and_the_last_one(schedule):
    for t in range(1, 300):
        frames = schedule(t)
        assert frames == sorted(set(frames))
        assert frames[0] >= 0
        assert frames[-1] == t - 1
        assert len(frames) == min(t, 9)


@pytest.mark.parametrize(("schedule", "reach"), [(authors_schedule, 44), (paper_schedule, 40)])
def test_no_schedule_reaches_further_back_than_it_says(schedule, reach):
    assert max(t - schedule(t)[0] for t in range(1, 300)) == reach


def test_authors_schedule_equals_the_examples_in_the_notes():
    # from the authors' code
    assert authors_schedule(9) == list(range(9))
    assert authors_schedule(10) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert authors_schedule(16) == [0, 2, 4, 7, 9, 12, 13, 14, 15]
    assert authors_schedule(45) == [1, 9, 17, 25, 33, 41, 42, 43, 44]
    assert authors_schedule(60) == [16, 24, 32, 40, 48, 56, 57, 58, 59]


def test_authors_schedule_equals_the_golden_table(shared):
    table = np.load(shared / "goldens" / "tvos.npz")["sample_table"]
    checked = 0
    for t, row in enumerate(table):
        expected = [int(frame) for frame in row if frame >= 0]
        if t and expected:
            assert authors_schedule(t) == expected
            checked += 1
    assert checked >= 60


def test_paper_schedule_is_four_dense_and_five_sparse_of_forty():
    frames = paper_schedule(100)
    assert frames[-4:] == [96, 97, 98, 99]
    assert frames[:5] == [60, 67, 74, 81, 88]


def test_keep_first_adds_frame_zero_once():
    schedule = keep_first(paper_schedule)
    for t in range(1, 100):
        frames = schedule(t)
        assert frames[0] == 0
        assert frames == sorted(set(frames))
        assert set(frames) == {0, *paper_schedule(t)}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_without_past_is_refused(schedule):
    with pytest.raises(InputError, match="t >= 1"):
        schedule(0)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("capacity", [1, 3, 8])
def test_history_gives_back_what_was_put_in_for_as_long_as_it_promises(capacity, first):
    history = History(capacity, keep_first=first)
    for t in range(30):
        assert history.append(values=torch.full((2, 3), float(t))) == t
        for k in range(t + 1):
            held = t - k < capacity or (first and k == 0)
            assert (k in history) is held
            if held:
                assert (history[k]["values"] == k).all()
    with pytest.raises(InputError, match="not in the history"):
        history[30]


def test_history_does_not_grow_over_five_thousand_frames():
    history = History(44, keep_first=True)
    history.append(keys=torch.zeros(64, 16), labels=torch.zeros(64, 2))
    storages = [history[0][name].untyped_storage() for name in ("keys", "labels")]
    before = [(storage.data_ptr(), storage.nbytes()) for storage in storages]
    assert [size for _, size in before] == [45 * 64 * 16 * 4, 45 * 64 * 2 * 4]
    for t in range(1, 5001):
        history.append(keys=torch.full((64, 16), float(t)), labels=torch.zeros(64, 2))
    storages = [history[5000][name].untyped_storage() for name in ("keys", "labels")]
    assert [(storage.data_ptr(), storage.nbytes()) for storage in storages] == before
    assert (history[4980]["keys"] == 4980).all()


def test_history_continues_from_its_state():
    history, copy = History(4, keep_first=True), History(4, keep_first=True)
    for t in range(7):
        history.append(values=torch.full((2,), float(t)))
    state = history.state_dict()
    history.append(values=torch.full((2,), 7.0))
    copy.load_state_dict(state)
    assert len(copy) == 7
    assert [int(copy[t]["values"][0]) for t in (0, 3, 4, 5, 6)] == [0, 3, 4, 5, 6]
    copy.append(values=torch.full((2,), 7.0))
    assert torch.equal(copy[7]["values"], history[7]["values"])


def test_history_refuses_other_shapes_and_other_states_and_stays_as_it_was():
    history = History(4)
    history.append(values=torch.ones(2))
    with pytest.raises(InputError, match="holds"):
        history.append(values=torch.ones(3))
    with pytest.raises(InputError, match="no state"):
        history.load_state_dict({"length": torch.tensor(3), "buffer.values": torch.ones(9, 2)})
    assert len(history) == 1
    assert (history[0]["values"] == 1).all()
    with pytest.raises(InputError, match="at least one"):
        History(0)
