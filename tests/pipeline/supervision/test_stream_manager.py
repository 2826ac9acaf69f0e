"""Incarnations, snapshots, commands and ends of streams; the test plays the workers."""

from __future__ import annotations

import numpy as np
import pytest
from fake_pipeline import RESET_STAGES, FakePipeline, stream

from streamvos.pipeline.supervision.commands import MOST_COMMANDS, Commands
from streamvos.types import InputError


def running(policy="lossless", **config):
    live = policy == "latest"
    pipeline = FakePipeline(stream("cam", policy=policy, realtime=live), placement="split", **config)
    pipeline.begin()
    pipeline.forget_sent()
    return pipeline


class Reply:
    """Notes the answers to a user."""

    def __init__(self):
        self.answers = []

    def __call__(self, ok, **fields):
        self.answers.append((ok, fields))


def kill_and_revive(pipeline, worker):
    pipeline.process(worker).die(-9)
    pipeline.watch()
    pipeline.revive(worker)


# ---- incarnations


def test_a_reset_goes_to_the_memory_after_the_sinks_have_answered_and_to_the_source_last():
    pipeline = FakePipeline(stream("cam"), placement="split")
    pipeline.pool.start_all()
    for worker in ("source.cam", "extractor", "memory.cam", "decoder.cam", "sinks.cam"):
        assert not pipeline.order()
        pipeline.revive(worker)
    resets = [("sinks.cam", "reset"), ("decoder.cam", "reset"), ("extractor", "reset")]
    assert pipeline.order() == resets
    pipeline.reset_done("cam", "decoder", "extractor")
    assert pipeline.order() == resets
    pipeline.reset_done("cam", "sinks")
    assert pipeline.order() == [*resets, ("memory.cam", "reset")]
    pipeline.reset_done("cam", "memory")
    assert pipeline.order() == [*resets, ("memory.cam", "reset"), ("source.cam", "start")]
    assert all(pipeline.sent(w)[-1].incarnation == 1 for w in ("sinks.cam", "memory.cam", "source.cam"))


@pytest.mark.parametrize("worker", ["source.cam", "extractor", "memory.cam", "decoder.cam", "sinks.cam"])
def test_any_death_begins_an_incarnation_when_all_are_ready(worker):
    pipeline = running()
    pipeline.process(worker).die(-9)
    pipeline.watch()
    assert pipeline.phase("cam") == "recovering"
    pipeline.hello(worker)
    pipeline.watch()
    assert not pipeline.order()
    pipeline.ready(worker)
    assert {kind for _, kind in pipeline.order()} == {"reset"}
    pipeline.reset_done("cam")
    (start,) = pipeline.sent("source.cam", "start")
    assert start.incarnation == 2
    assert pipeline.dispatcher.status()["streams"]["cam"]["state"] == "running"


def test_a_second_death_meanwhile_begins_another_and_answers_of_the_first_do_not_count():
    pipeline = running()
    kill_and_revive(pipeline, "memory.cam")
    pipeline.reset_done("cam", "sinks", "decoder")
    kill_and_revive(pipeline, "decoder.cam")
    assert pipeline.manager.streams["cam"].incarnation == 3
    pipeline.reset_done("cam", *RESET_STAGES, incarnation=2)
    assert not pipeline.sent("source.cam", "start")
    assert 3 not in [
        m.incarnation for m in pipeline.sent("memory.cam", "reset")
    ]  # the sinks have not answered
    pipeline.reset_done("cam")
    assert [m.incarnation for m in pipeline.sent("source.cam", "start")] == [3]


def test_one_stream_does_not_notice_the_death_of_anothers_stage():
    pipeline = FakePipeline(stream("a"), stream("b"), placement="split")
    pipeline.begin()
    kill_and_revive(pipeline, "memory.a")
    assert (pipeline.phase("a"), pipeline.phase("b")) == ("resetting", "running")
    kill_and_revive(pipeline, "extractor")  # this one has both
    assert pipeline.manager.streams["b"].incarnation == 2


def test_lossless_goes_on_behind_the_snapshot_whose_frames_are_written():
    pipeline = running("lossless")
    pipeline.snapshot("cam", 9, slot=0)
    pipeline.snapshot("cam", 19, slot=1)
    pipeline.ack("cam", 12)
    assert [m.seq for m in pipeline.sent("source.cam", "release")] == [9]  # which the committed one covers
    kill_and_revive(pipeline, "memory.cam")
    pipeline.reset_done("cam", "sinks", next=13)
    (reset,) = pipeline.sent("memory.cam", "reset")
    assert (reset.seq, reset["keep"], reset["written"], reset["taken"]) == (9, False, 13, [0])
    assert "snapshot" in reset.arrays
    pipeline.reset_done("cam", "extractor", "decoder")
    pipeline.reset_done("cam", "memory", next=10)
    (start,) = pipeline.sent("source.cam", "start")
    assert (start["next"], start["written"]) == (10, 13)


def test_lossless_without_a_snapshot_begins_at_the_beginning():
    pipeline = running("lossless")
    pipeline.ack("cam", 5)
    kill_and_revive(pipeline, "sinks.cam")
    pipeline.reset_done("cam", "sinks", next=6)
    (reset,) = pipeline.sent("memory.cam", "reset")
    assert (reset.seq, reset["keep"]) == (0, False)
    assert not reset.arrays
    assert not pipeline.sent("source.cam", "release")  # all frames are still needed


def test_live_goes_on_with_the_newest_snapshot_and_no_earlier_frame():
    pipeline = running("latest")
    pipeline.snapshot("cam", 19, slot=1)
    pipeline.ack("cam", 30)
    kill_and_revive(pipeline, "memory.cam")
    pipeline.reset_done("cam", next=34)  # the sinks have written more than was acknowledged
    (reset,) = pipeline.sent("memory.cam", "reset")
    assert (reset.seq, reset["keep"], reset["written"]) == (19, False, 0)
    assert pipeline.sent("source.cam", "start")[-1]["next"] == 34


def test_live_memory_that_lives_keeps_its_state():
    pipeline = running("latest")
    pipeline.snapshot("cam", 19, slot=1)
    kill_and_revive(pipeline, "decoder.cam")
    pipeline.reset_done("cam")
    (reset,) = pipeline.sent("memory.cam", "reset")
    assert reset["keep"] is True
    assert not reset.arrays


def test_live_memory_that_has_nothing_yet_is_given_the_snapshot_again():
    """It dies, and before the sinks have answered they die too: its next life has not been reset once."""
    pipeline = running("latest")
    pipeline.snapshot("cam", 19, slot=1)
    kill_and_revive(pipeline, "memory.cam")
    kill_and_revive(pipeline, "sinks.cam")
    pipeline.reset_done("cam")
    (reset,) = pipeline.sent("memory.cam", "reset")
    assert (reset.incarnation, reset["keep"], reset.seq) == (3, False, 19)


def test_slots_of_older_snapshots_are_given_back():
    pipeline = running("latest")
    for number, seq in enumerate((9, 19, 29)):
        pipeline.snapshot("cam", seq, slot=number)
    assert [m["slot"] for m in pipeline.sent("memory.cam", "release")] == [0, 1]


def test_a_snapshot_of_an_earlier_incarnation_is_passed_over():
    pipeline = running("latest")
    kill_and_revive(pipeline, "sinks.cam")
    pipeline.says("memory.cam", "snapshot", "cam", seq=9, slot=0, incarnation=1)
    assert pipeline.manager.streams["cam"].taken == []


def test_a_paused_stream_stays_paused_after_a_recovery():
    pipeline = running()
    Commands(pipeline.dispatcher).pause("cam")
    kill_and_revive(pipeline, "memory.cam")
    pipeline.reset_done("cam")
    assert [m.kind for m in pipeline.sent("source.cam")][-2:] == ["start", "pause"]
    assert pipeline.dispatcher.status()["streams"]["cam"]["state"] == "paused"


def test_a_message_lost_on_a_network_is_noticed_when_no_stage_works():
    pipeline = running(supervision={"hang_timeout": 5.0})
    pipeline.ack("cam", 3)
    pipeline.beat("source.cam", source_cam={"sent": 8})
    pipeline.beat("memory.cam", memory_cam={"busy_since": round(pipeline.now * 1e9)})
    pipeline.wait(4.0)
    pipeline.wait(0.5)
    assert pipeline.phase("cam") == "running"  # the memory works
    pipeline.beat("memory.cam", memory_cam={"busy_since": 0})
    pipeline.wait(4.9)
    assert pipeline.phase("cam") == "running"
    pipeline.wait(0.2)
    assert pipeline.phase("cam") == "resetting"
    assert [one["stream"] for one in pipeline.events("stuck")] == ["cam"]
    pipeline.reset_done("cam")
    pipeline.ack("cam", 8)
    pipeline.wait(60)
    assert pipeline.phase("cam") == "running"  # all that was sent is written


def test_a_stream_that_gets_frames_through_or_is_paused_is_not_stuck():
    pipeline = running(supervision={"hang_timeout": 5.0})
    pipeline.beat("source.cam", source_cam={"sent": 99})
    for seq in range(10):
        pipeline.wait(3.0)
        pipeline.ack("cam", seq)
    assert not pipeline.events("stuck")
    Commands(pipeline.dispatcher).pause("cam")
    pipeline.wait(60)
    assert not pipeline.events("stuck")


# ---- commands


def mask(size=(48, 64)):
    picture = np.zeros(size, np.uint8)
    picture[:20, :20] = 7
    return picture


def numbers(pipeline):
    return [(m["number"], m["due"]) for m in pipeline.sent("memory.cam", "command")]


def test_commands_are_sent_again_after_a_recovery_until_a_snapshot_holds_them():
    pipeline, replies = running(), [Reply() for _ in range(3)]
    commands = Commands(pipeline.dispatcher)
    commands.annotate("cam", mask(), replies[0])
    commands.forget("cam", 7, replies[1])
    pipeline.says("memory.cam", "applied", "cam", seq=5, number=1)
    pipeline.says("memory.cam", "applied", "cam", seq=15, number=2)
    assert [reply.answers for reply in replies[:2]] == [[(True, {"seq": 5})], [(True, {"seq": 15})]]
    commands.annotate("cam", mask(), replies[2])
    assert numbers(pipeline) == [(1, None), (2, None), (3, None)]
    pipeline.snapshot("cam", 10, slot=0)
    pipeline.ack("cam", 12)
    pipeline.forget_sent()
    kill_and_revive(pipeline, "memory.cam")
    assert numbers(pipeline) == []  # not before the reset
    pipeline.reset_done("cam", "sinks", next=13)
    assert pipeline.sent("memory.cam", "reset")[-1]["commands"] == 2
    assert numbers(pipeline) == [(2, 15), (3, None)]
    assert [m.kind for m in pipeline.sent("memory.cam")][-3:] == ["reset", "command", "command"]
    assert replies[1].answers == [(True, {"seq": 15})]  # each user is answered once
    assert replies[2].answers == []


def test_a_command_during_a_recovery_goes_with_the_next_incarnation():
    pipeline = running("latest")
    pipeline.process("memory.cam").die(-9)
    pipeline.watch()
    Commands(pipeline.dispatcher).forget("cam", 7, Reply())
    pipeline.revive("memory.cam")
    assert numbers(pipeline) == []
    pipeline.reset_done("cam", "sinks")
    assert numbers(pipeline) == [(1, None)]


def test_lossless_does_not_believe_that_a_memory_of_the_past_has_applied_a_command():
    """The frame is computed again, by a memory that has to be given the command first."""
    pipeline, reply = running("lossless"), Reply()
    Commands(pipeline.dispatcher).annotate("cam", mask(), reply)
    kill_and_revive(pipeline, "sinks.cam")
    pipeline.says("memory.cam", "applied", "cam", seq=5, number=1, incarnation=1)
    assert reply.answers == []
    pipeline.reset_done("cam", "sinks", next=3)
    assert numbers(pipeline) == [(1, None), (1, None)]
    pipeline.says("memory.cam", "applied", "cam", seq=4, number=1)
    assert reply.answers == [(True, {"seq": 4})]


def test_what_the_sinks_know_to_be_obeyed_is_not_asked_for_again():
    """The memory died before it could say so, but the frame is written."""
    pipeline, reply = running(), Reply()
    Commands(pipeline.dispatcher).annotate("cam", mask(), reply)
    kill_and_revive(pipeline, "memory.cam")
    pipeline.reset_done("cam", "sinks", next=8, obeyed=[[1, 6]])
    assert reply.answers == [(True, {"seq": 6})]
    assert numbers(pipeline)[-1] == (1, 6)  # at the same frame as before


def test_a_refused_command_is_answered_with_the_reason():
    pipeline, reply = running(), Reply()
    Commands(pipeline.dispatcher).forget("cam", 99, reply)
    pipeline.says("memory.cam", "refused", "cam", number=1, error="there is no object 99")
    assert reply.answers == [(False, {"error": "there is no object 99"})]


def test_masks_that_come_before_the_source_is_open_are_fitted_or_refused_when_it_is():
    pipeline = FakePipeline(stream("cam", policy="latest", realtime=True), placement="split")
    commands, replies = Commands(pipeline.dispatcher), [Reply() for _ in range(3)]
    for reply, size in zip(replies, ((48, 64), (480, 640), (49, 64)), strict=True):
        commands.annotate("cam", mask(size), reply)
    pipeline.facts = {"size": [48, 64], "native_size": [480, 640], "label": "cam.mp4"}
    pipeline.begin()
    assert [one.answers for one in replies[:2]] == [[], []]
    ((ok, said),) = replies[2].answers
    assert not ok
    assert "64 x 49, the frames are 64 x 48" in said["error"]
    sent = pipeline.sent("memory.cam", "command")
    assert [(one["number"], one.arrays["mask"].shape) for one in sent] == [(1, (48, 64)), (2, (48, 64))]


@pytest.mark.parametrize("opened", [False, True])
def test_masks_that_wait_take_little_memory(opened):
    """64 MiB for each stream; a saved state that holds a mask makes room for the next."""
    size = (4096, 4096)
    pipeline = FakePipeline(stream("cam", policy="latest", realtime=True), placement="split")
    if opened:
        pipeline.facts = {"size": list(size), "label": "cam.mp4"}
        pipeline.begin()
    commands = Commands(pipeline.dispatcher)
    for _ in range(4):
        commands.annotate("cam", mask(size), Reply())
    with pytest.raises(InputError, match="masks of 64 MiB wait already for cam"):
        commands.annotate("cam", mask((2, 2) if not opened else size), Reply())
    commands.forget("cam", 1, Reply())
    if opened:
        pipeline.says("memory.cam", "applied", "cam", seq=3, number=1)
        pipeline.snapshot("cam", 3, slot=0)
        commands.annotate("cam", mask(size), Reply())


def test_too_many_commands_are_refused_and_streams_that_are_not_there():
    pipeline = running()
    commands = Commands(pipeline.dispatcher)
    for _ in range(MOST_COMMANDS):
        commands.forget("cam", 1, Reply())
    with pytest.raises(InputError, match="commands wait"):
        commands.forget("cam", 1, Reply())
    with pytest.raises(InputError, match="there is no stream 'door'"):
        commands.pause("door")


# ---- ends


def test_a_source_that_ends_ends_its_stream_in_order():
    pipeline, reply = running(), Reply()
    Commands(pipeline.dispatcher).forget("cam", 7, reply)
    pipeline.says("sinks.cam", "ended", "cam")
    assert pipeline.manager.ends.all_over
    assert (pipeline.manager.ends.code, pipeline.manager.streams["cam"].reason) == (0, "")
    assert reply.answers == [(False, {"error": "stream cam has ended"})]
    assert all(pipeline.sent(worker, "exit") for worker in pipeline.pool.workers)
    for worker in pipeline.pool.workers:
        pipeline.process(worker).die(0)
    assert pipeline.resources.calls == []
    pipeline.watch()
    pipeline.watch()
    assert pipeline.resources.calls == [("free", "cam")]  # its shared memory, once
    assert not pipeline.events("died")


def test_a_worker_stays_as_long_as_one_stream_needs_it():
    pipeline = FakePipeline(stream("a"), stream("b"), placement="split")
    pipeline.begin()
    pipeline.says("sinks.a", "ended", "a")
    assert pipeline.sent("memory.a", "exit")
    assert not pipeline.sent("extractor", "exit")
    pipeline.says("sinks.b", "ended", "b")
    assert pipeline.sent("extractor", "exit")


def test_stop_asks_the_source_and_answers_when_all_is_written():
    pipeline, reply = running(), Reply()
    Commands(pipeline.dispatcher).stop("cam", reply)
    assert pipeline.order() == [("source.cam", "stop")]
    assert reply.answers == []
    pipeline.says("sinks.cam", "ended", "cam")
    assert reply.answers == [(True, {})]
    with pytest.raises(InputError, match="stream cam has ended"):
        Commands(pipeline.dispatcher).stop("cam", Reply())


def test_stop_during_a_recovery_closes_the_files_with_what_they_have():
    pipeline = running()
    pipeline.process("memory.cam").die(-9)
    pipeline.watch()
    Commands(pipeline.dispatcher).stop("", Reply())
    assert pipeline.sent("sinks.cam", "stop")[-1]["drain"] is False
    pipeline.says("sinks.cam", "ended", "cam")
    assert (pipeline.manager.ends.code, pipeline.manager.ends.all_over) == (0, True)


FILES = [{"kind": "json", "path": "/nowhere/cam.jsonl"}]


def with_files():
    pipeline = FakePipeline(stream("cam", sinks=FILES), placement="split")
    pipeline.begin()
    pipeline.forget_sent()
    return pipeline


def test_stop_waits_for_sinks_that_are_being_restarted_to_finish_their_files():
    pipeline, reply = with_files(), Reply()
    pipeline.process("sinks.cam").die(-9)
    pipeline.watch()
    Commands(pipeline.dispatcher).stop("cam", reply)
    assert reply.answers == []
    pipeline.watch()
    pipeline.revive("sinks.cam")
    assert pipeline.order() == [("sinks.cam", "stop")]  # and no reset: nothing runs any more
    pipeline.process("sinks.cam").die(-9)  # once more
    pipeline.watch()
    pipeline.wait(1)
    pipeline.revive("sinks.cam")
    assert reply.answers == []
    pipeline.says("sinks.cam", "ended", "cam")
    assert reply.answers == [(True, {})]
    assert pipeline.manager.ends.code == 0


@pytest.mark.parametrize("leaving", [False, True])
def test_files_that_nobody_finishes_are_told_of(leaving):
    pipeline, reply = with_files(), Reply()
    pipeline.process("sinks.cam").die(-9)
    pipeline.watch()
    if leaving:  # a signal: no worker is restarted
        pipeline.process("sinks.cam").die(-9)
        pipeline.pool.leaving = True
        pipeline.watch()
    Commands(pipeline.dispatcher).stop("cam", reply)
    for _ in range(20):
        if (current := pipeline.pool.workers["sinks.cam"].current) is not None:
            current.process.die(-9)
        pipeline.watch()
        pipeline.wait(30)
    ((ok, said),) = reply.answers
    assert not ok
    assert "cam has failed" in said["error"]
    assert "sinks" in said["error"]
    assert (pipeline.manager.ends.code, pipeline.phase("cam")) == (1, "over")


def test_a_stream_without_files_leaves_none_unfinished():
    pipeline = running()
    pipeline.process("sinks.cam").die(-9)
    pipeline.pool.leaving = True
    pipeline.watch()
    pipeline.manager.ends.close()
    pipeline.manager.ends.cut_short()
    assert (pipeline.manager.ends.code, pipeline.phase("cam")) == (0, "over")


def test_a_stop_is_not_forgotten_when_a_worker_dies_before_the_end():
    pipeline, reply = with_files(), Reply()
    Commands(pipeline.dispatcher).stop("cam", reply)
    kill_and_revive(pipeline, "source.cam")
    pipeline.forget_sent()
    pipeline.reset_done("cam")
    assert [kind for stage, kind in pipeline.order() if stage == "source.cam"] == ["start", "stop"]
    pipeline.says("sinks.cam", "ended", "cam")
    assert reply.answers == [(True, {})]


def test_a_live_stream_that_lost_a_sink_has_not_ended_in_order():
    pipeline, reply = running("latest"), Reply()
    pipeline.says("sinks.cam", "sink_failed", "cam", sink="json", error="cam.jsonl: File too large")
    Commands(pipeline.dispatcher).stop("cam", reply)
    pipeline.says("sinks.cam", "ended", "cam")
    ((ok, said),) = reply.answers
    assert not ok
    assert "the json sink failed: cam.jsonl: File too large" in said["error"]
    assert pipeline.manager.ends.code == 1


def test_a_death_while_the_stream_ends_does_not_keep_it_alive():
    pipeline = running()
    pipeline.pool.leaving = True
    pipeline.manager.ends.close()
    pipeline.process("memory.cam").die(-9)
    pipeline.watch()
    pipeline.wait(30)
    assert pipeline.pool.workers["memory.cam"].current is None


def test_a_drain_that_takes_too_long_is_cut_short():
    pipeline = running()
    pipeline.manager.ends.close()
    assert pipeline.sent("source.cam", "stop")
    pipeline.manager.ends.cut_short()
    assert pipeline.sent("sinks.cam", "stop")[-1]["drain"] is False
    pipeline.wait(0.4)
    assert not pipeline.manager.ends.all_over
    pipeline.wait(0.2)  # the sinks do not answer
    assert pipeline.manager.ends.all_over


def test_an_end_that_does_not_come_is_a_failure_but_for_a_full_disk():
    pipeline = running(supervision={"hang_timeout": 5.0})
    since = round(pipeline.now * 1e9)
    Commands(pipeline.dispatcher).stop("cam", Reply())
    pipeline.beat("sinks.cam", sinks_cam={"waiting_for": "no space left", "waiting_since": since})
    pipeline.wait(60)
    status = pipeline.dispatcher.status()["streams"]["cam"]
    assert (status["state"], status["waiting_for"]) == ("waiting", "no space left")
    assert status["waiting_seconds"] == pytest.approx(60)
    pipeline.beat("sinks.cam", sinks_cam={"waiting_for": ""})
    pipeline.wait(4.9)
    assert not pipeline.sent("sinks.cam", "stop")
    pipeline.wait(0.2)
    assert pipeline.sent("sinks.cam", "stop")
    pipeline.wait(0.6)
    assert pipeline.manager.streams["cam"].reason == "it did not end when it was asked to"
    assert pipeline.manager.ends.code == 1


def test_the_worst_end_is_the_exit_code():
    pipeline = FakePipeline(stream("a"), stream("b"), stream("c"), placement="split")
    pipeline.begin()
    for name, fault in (("a", False), ("b", True), ("c", False)):
        pipeline.manager.ends.end_badly(pipeline.manager.streams[name], "it broke", input_fault=fault)
        pipeline.says(f"sinks.{name}", "ended", name)
    assert pipeline.manager.ends.code == 2
    states = {name: one["state"] for name, one in pipeline.dispatcher.status()["streams"].items()}
    assert set(states.values()) == {"failed"}


def test_no_reason_holds_a_password():
    pipeline = running()
    pipeline.manager.ends.end_badly(
        pipeline.manager.streams["cam"], "cannot open rtsp://admin:hunter2@10.0.0.5/live: refused"
    )
    pipeline.says("sinks.cam", "ended", "cam")
    assert "hunter2" not in str(pipeline.dispatcher.status())
    assert "10.0.0.5" in pipeline.manager.streams["cam"].reason
