"""The bookkeeping of a stream, in whatever order messages come: docs/protocol.md, 5 and 7."""

from __future__ import annotations

import random

import pytest

from streamvos.pipeline.config.streams import StreamConfig
from streamvos.pipeline.supervision.streams import Command, Snapshot, StreamRecord
from streamvos.pipeline.wire.messages import Array, Place


def record(policy: str = "lossless") -> StreamRecord:
    return StreamRecord(StreamConfig(name="cam", source="camera:0", policy=policy, boxes=["1:0,0,9,9"]))


def snapshot(seq: int, slot: int) -> Snapshot:
    return Snapshot(seq, slot, Array("uint8", (1,), Place(f"cam/snapshots.{slot}", 0, 1, 0)))


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("policy", ["lossless", "latest"])
def test_no_frame_is_released_before_a_later_snapshot_is_committed(policy, seed):
    """Whatever the order of snapshots, acknowledgements and deaths, a restart finds its frames."""
    rng, stream = random.Random(seed), record(policy)
    free, computed, written, released = {0, 1, 2}, -1, -1, -1
    for _ in range(400):
        event = rng.choice(["compute", "write", "snapshot", "die"])
        if event == "compute":
            computed += 1
        elif event == "write" and written < computed:
            written = rng.randint(written + 1, computed)
            free |= set(stream.acknowledge(written))
        elif event == "snapshot" and free and computed >= 0:
            slot = free.pop()
            assert slot not in stream.taken
            free |= set(stream.add_snapshot(snapshot(computed, slot)))
        elif event == "die":
            begin = stream.restart_from(memory_lives=False)
            start = -1 if begin is None else begin.seq
            if policy == "lossless":
                assert start <= written or begin is None  # the sinks need no frame that is not computed again
                assert released <= start  # and every frame after it is still available
                stream.drop_uncommitted()
                free = {0, 1, 2} - set(stream.taken)
            computed = start if policy == "lossless" else max(start, computed)
        released = max(released, stream.releasable)
        assert not free & set(stream.taken)
        assert len(stream.taken) <= 3
    if policy == "lossless":
        assert stream.committed is None or stream.committed.seq <= written


def test_a_snapshot_is_committed_when_both_it_and_the_acknowledgement_are_there():
    for order in ("snapshot first", "acknowledgement first"):
        stream = record()
        if order == "snapshot first":
            assert stream.add_snapshot(snapshot(9, 0)) == []
            assert stream.committed is None
            stream.acknowledge(9)
        else:
            stream.acknowledge(9)
            stream.add_snapshot(snapshot(9, 0))
        assert stream.committed is not None
        assert stream.committed.seq == stream.releasable == 9


def test_commands_are_repeated_until_a_snapshot_covers_them():
    stream = record()
    for number in (1, 2, 3):
        stream.commands[number] = Command(number, "forget", object_id=number)
    stream.applied(1, 5)
    stream.applied(2, 15)
    stream.acknowledge(30)
    stream.add_snapshot(snapshot(10, 0))
    assert sorted(stream.commands) == [2, 3]  # the first is in the snapshot
    again = stream.commands_after(stream.restart_from(False), memory_keeps=False)
    assert [(one.number, one.due) for one in again] == [(2, 15), (3, None)]
    assert [one.number for one in stream.commands_after(None, memory_keeps=True)] == [3]


def test_what_came_before_an_applied_command_is_not_given_to_a_later_frame():
    """It was refused there, but the memory died before it could say so."""
    stream = record()
    for number in (1, 2, 3):
        stream.commands[number] = Command(number, "forget", object_id=number)
    stream.applied(2, 5)
    assert [(one.number, one.due) for one in stream.commands_after(None, False)] == [
        (1, 5),
        (2, 5),
        (3, None),
    ]


def test_a_refused_command_is_forgotten_and_answered_once():
    stream, answers = record(), []
    stream.commands[1] = Command(1, "forget", 4, reply=lambda ok, **more: answers.append(ok))
    reply = stream.refused(1)
    assert reply is not None
    reply(False)
    assert stream.refused(1) is None
    assert stream.applied(1, 3) is None
    assert answers == [False]
