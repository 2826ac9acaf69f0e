"""Deaths, deadlines and restarts of workers, with a clock that the test moves."""

from __future__ import annotations

import itertools
import random
import signal

import pytest
from fake_pipeline import FakePipeline, stream

from streamvos.pipeline.supervision.processes import LONGEST_DELAY, Restarts


def test_the_first_restart_is_immediate_and_the_next_come_later_and_later():
    restarts = Restarts(None, window=1e9)
    delays = []
    for at in range(20):
        assert restarts.died(float(at))
        delays.append(restarts.delay)
    assert delays[0] == 0
    assert delays == sorted(delays)
    assert all(later == min(2 * earlier, LONGEST_DELAY) for earlier, later in itertools.pairwise(delays[1:]))


def test_too_many_deaths_within_the_window_end_the_restarts():
    restarts = Restarts(3, window=60.0)
    assert [restarts.died(at) for at in (0.0, 10.0, 20.0, 30.0)] == [True, True, True, False]
    assert restarts.count == 3


def test_deaths_before_the_window_do_not_count():
    restarts = Restarts(2, window=10.0)
    for at in (0.0, 11.0, 22.0, 33.0, 44.0):
        assert restarts.died(at)
        assert restarts.delay == 0


def test_no_more_than_the_maximum_within_any_window_whatever_happens():
    rng = random.Random(0)
    for _ in range(50):
        restarts, at, lived = Restarts(4, window=30.0), 0.0, []
        for _ in range(200):
            at += rng.expovariate(1 / 6)
            if restarts.died(at):
                lived.append(at)
        assert all(later - earlier > 30.0 for earlier, later in zip(lived, lived[4:], strict=False))


def split(*streams, **supervision):
    pipeline = FakePipeline(*(streams or [stream("cam")]), placement="split", supervision=supervision)
    pipeline.begin()
    return pipeline


def reasons(pipeline):
    return [(one["worker"], one["reason"]) for one in pipeline.events("died")]


def starts(pipeline, worker):
    return [spare for name, spare in pipeline.started if name == worker].count(False)


@pytest.mark.parametrize(
    ("returncode", "reason"),
    [(-9, "signal 9 (SIGKILL)"), (-64, "signal 64 (SIGRTMAX)"), (-70, "signal 70"), (1, "exit code 1")],
)
def test_a_death_is_explained_and_followed_by_an_immediate_restart(returncode, reason):
    pipeline = split()
    pipeline.process("memory.cam").die(returncode)
    pipeline.watch()
    assert reasons(pipeline) == [("memory.cam", reason)]
    assert starts(pipeline, "memory.cam") == 2
    assert pipeline.instance("memory.cam").life == 1
    status = pipeline.dispatcher.status()
    assert status["streams"]["cam"]["last_failure"] == f"memory.cam: {reason}"
    assert status["restarts"] == {"memory.cam": {reason: 1}}
    assert status["workers"]["memory.cam"]["restarts"] == 1


def test_a_death_is_handled_after_the_messages_before_it():
    pipeline = split()
    pipeline.pool.look()
    pipeline.process("memory.cam").die(1)  # after the supervisor has looked
    pipeline.dispatcher.watch()
    assert not reasons(pipeline)  # its last messages are read first
    pipeline.watch()
    assert len(reasons(pipeline)) == 1


def test_restarts_come_later_and_later():
    pipeline = split(max_restarts=20, restart_window=1000.0)
    delays = []
    for _ in range(9):
        pipeline.process("sinks.cam").die(1)
        pipeline.watch()
        died, lives = pipeline.now, starts(pipeline, "sinks.cam")
        if pipeline.pool.workers["sinks.cam"].current is None:
            while starts(pipeline, "sinks.cam") == lives:
                pipeline.wait(0.25)
        delays.append(pipeline.now - died)
        pipeline.revive("sinks.cam")
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_too_many_deaths_end_only_the_streams_of_that_worker():
    pipeline = split(stream("bad"), stream("good"), max_restarts=2)
    for _ in range(3):
        pipeline.process("memory.bad").die(1)
        pipeline.watch()
        while pipeline.pool.workers["memory.bad"].start_at is not None:
            pipeline.wait(0.5)
    assert starts(pipeline, "memory.bad") == 3
    reason = pipeline.manager.streams["bad"].reason
    assert "memory.bad died too often within 60 s (max_restarts), last: exit code 1" in reason
    assert (
        pipeline.sent("sinks.bad", "stop")[-1]["drain"] is False
    )  # its files are closed with what they have
    pipeline.says("sinks.bad", "ended", "bad")
    assert (pipeline.phase("bad"), pipeline.phase("good")) == ("over", "running")
    assert pipeline.manager.ends.code == 1
    pipeline.wait(60)
    assert starts(pipeline, "memory.bad") == 3  # no stream needs it any more


def test_a_camera_is_retried_forever_at_most_30_s_apart():
    pipeline = FakePipeline(
        stream("cam", source="camera:0"), placement="split", supervision={"max_restarts": 1}
    )
    pipeline.pool.start_all()
    for _ in range(40):
        before, began = starts(pipeline, "source.cam"), pipeline.now
        pipeline.process("source.cam").die(3)
        pipeline.watch()
        while starts(pipeline, "source.cam") == before:
            pipeline.wait(1.0)
            assert pipeline.now <= began + 31
        assert pipeline.phase("cam") == "opening"


def test_a_process_that_is_silent_is_killed():
    pipeline = split(heartbeat_timeout=1.0)
    for instance in (pipeline.instance(name) for name in pipeline.pool.workers):
        instance.last_beat = pipeline.now + (0.4 if instance.worker == "sinks.cam" else 2.0)
    pipeline.now += 1.5
    pipeline.watch()
    assert pipeline.process("sinks.cam").signals == [signal.SIGKILL]
    pipeline.watch()
    assert reasons(pipeline) == [("sinks.cam", "no heartbeat for 1 s")]


def test_a_stage_that_is_busy_for_too_long_is_killed():
    pipeline = split(hang_timeout=5.0)
    since = round(pipeline.now * 1e9)
    pipeline.beat("memory.cam", memory_cam={"busy_since": since})
    pipeline.wait(4.9)
    assert not pipeline.process("memory.cam").signals
    pipeline.beat("memory.cam", memory_cam={"busy_since": since + 10**9})  # it has begun another frame
    pipeline.wait(1.0)
    assert not pipeline.process("memory.cam").signals
    pipeline.wait(0.2)
    pipeline.watch()
    assert reasons(pipeline) == [("memory.cam", "hung for 5 s in memory.cam")]


@pytest.mark.parametrize("moment", ["starting", "initializing"])
def test_a_worker_that_does_not_get_ready_is_killed(moment):
    pipeline = FakePipeline(stream("cam"), placement="split", supervision={"start_timeout": 6.0})
    pipeline.pool.start_all()
    if moment == "initializing":
        pipeline.hello("source.cam")
    pipeline.wait(5.9)
    assert not pipeline.events("died")
    pipeline.wait(0.2)
    pipeline.watch()
    assert ("source.cam", "no READY within 6 s") in reasons(pipeline)


def test_time_to_get_ready_begins_with_init():
    """Waiting for the source's facts does not count against the networks."""
    pipeline = FakePipeline(stream("cam"), placement="split", supervision={"start_timeout": 6.0})
    pipeline.pool.start_all()
    pipeline.hello("source.cam")
    pipeline.hello("memory.cam")
    for _ in range(5):
        pipeline.wait(2.0)
        pipeline.instance("source.cam").deadline = pipeline.now + 9
    assert "memory.cam" not in [worker for worker, _ in reasons(pipeline)]
    pipeline.ready("source.cam")
    pipeline.watch()
    assert pipeline.sent("memory.cam", "init")
    pipeline.wait(6.1)
    pipeline.watch()
    assert ("memory.cam", "no READY within 6 s") in reasons(pipeline)


def test_no_worker_is_killed_because_the_supervisor_was_stopped():
    pipeline = split()
    pipeline.now += 100
    pipeline.pool.excuse(100)
    pipeline.watch()
    pipeline.watch()
    assert not reasons(pipeline)


def fused(**supervision):
    pipeline = FakePipeline(stream("cam"), supervision={"max_restarts": 20, **supervision})
    pipeline.begin()
    pipeline.wait(1.1)  # the standby process is started after a delay
    return pipeline


def test_the_standby_process_takes_over_at_once_every_time():
    pipeline = fused(restart_window=1000.0)
    for life in range(4):
        assert pipeline.started[-1] == ("compute", True)
        pipeline.hello("compute", spare=True)
        pipeline.watch()
        assert pipeline.sent("compute", "init", spare=True)[-1]["standby"] is True
        pipeline.says("compute", "ready", spare=True, endpoints={}, facts={}, standby=True)
        old, spare = pipeline.instance("compute"), pipeline.pool.workers["compute"].spare
        pipeline.process("compute").die(-11)
        pipeline.watch()
        assert pipeline.instance("compute") is spare is not old
        assert pipeline.sent("compute", "init")[-1]["standby"] is False  # from now on it is at work
        pipeline.ready("compute")
        assert pipeline.phase("cam") == "resetting"
        pipeline.reset_done("cam")
        # the next one waits as long as a worker would that died as often, and 1 s at least
        count, delay = len(pipeline.started), (1.0, 1.0, 1.0, 2.0)[life]
        pipeline.wait(delay - 0.1)
        assert len(pipeline.started) == count
        pipeline.wait(0.2)
    assert len(pipeline.events("standby_ready")) == 4


def test_a_standby_process_that_is_not_ready_yet_gets_ready_and_takes_over():
    pipeline = fused()
    pipeline.hello("compute", spare=True)
    pipeline.watch()
    spare = pipeline.pool.workers["compute"].spare
    pipeline.process("compute").die(-9)
    pipeline.watch()
    assert pipeline.instance("compute") is spare
    pipeline.says("compute", "ready", endpoints={}, facts={}, standby=True)  # the answer to its first INIT
    assert [m["standby"] for m in pipeline.sent("compute", "init")][-1] is False
    pipeline.ready("compute")
    assert pipeline.phase("cam") == "resetting"


def test_a_standby_process_that_dies_is_replaced_and_no_stream_notices():
    pipeline = fused()
    pipeline.pool.workers["compute"].spare.process.die(1)
    pipeline.watch()
    assert [one["worker"] for one in pipeline.events("standby_died")] == ["compute"]
    assert pipeline.phase("cam") == "running"
    assert pipeline.dispatcher.status()["streams"]["cam"]["restarts"] == 0
    count = len(pipeline.started)
    pipeline.wait(9.9)
    assert len(pipeline.started) == count
    pipeline.wait(0.2)
    assert pipeline.started[count:] == [("compute", True)]


def test_a_system_without_room_for_a_process_is_tried_again():
    pipeline = split()
    pipeline.cannot_start = True
    pipeline.process("sinks.cam").die(1)
    pipeline.watch()
    assert reasons(pipeline)[-1] == ("sinks.cam", "cannot be started: Resource temporarily unavailable")
    pipeline.cannot_start = False
    pipeline.wait(0.9)
    assert starts(pipeline, "sinks.cam") == 1
    pipeline.wait(0.2)
    assert starts(pipeline, "sinks.cam") == 2


def test_messages_are_matched_to_the_life_that_sent_them():
    pipeline = split()
    old = pipeline.instance("memory.cam")
    pipeline.process("memory.cam").die(1)
    pipeline.watch()
    new = pipeline.instance("memory.cam")
    assert pipeline.pool.find(new.identity) == (pipeline.pool.workers["memory.cam"], new)
    assert pipeline.pool.find(old.identity) is None
    assert pipeline.pool.knew(old.identity)  # its last messages may still arrive
    assert not pipeline.pool.knew(new.identity)
    assert not pipeline.pool.knew(b"stranger")


def test_all_are_asked_to_exit_and_killed_a_moment_later():
    pipeline = split()

    def meanwhile():
        pipeline.now += 0.1
        pipeline.process("sinks.cam").die(0)  # the only one that obeys

    obeys, frozen = pipeline.process("sinks.cam"), pipeline.process("memory.cam")
    pipeline.pool.dismiss(False, meanwhile)
    assert all(pipeline.sent(worker, "exit") for worker in pipeline.pool.workers)
    assert frozen.signals == [signal.SIGKILL]
    assert obeys.signals == []
    pipeline.watch()
    assert not reasons(pipeline)  # they were asked to


def test_all_are_killed_at_once_after_a_second_signal():
    pipeline = split()
    processes = [pipeline.process(name) for name in pipeline.pool.workers]
    pipeline.pool.dismiss(True, lambda: None)
    assert all(one.signals == [signal.SIGKILL] for one in processes)
    assert not any(pipeline.sent(worker, "exit") for worker in pipeline.pool.workers)


def test_a_remote_worker_is_adopted_and_never_started_here():
    pipeline = FakePipeline(
        stream("cam"),
        placement="split",
        host="127.0.0.1",
        remote={"memory.cam": {"host": "127.0.0.1"}},
    )
    slot = pipeline.pool.workers["memory.cam"]
    pipeline.pool.start_all()
    assert slot.current is None
    assert all(name != "memory.cam" for name, _ in pipeline.started)
    pipeline.pool.adopt(slot, b"remote memory.cam#1")
    pipeline.now += 1
    pipeline.pool.adopt(slot, b"remote memory.cam#2")  # a person started it again
    assert reasons(pipeline) == [("memory.cam", "it was started anew")]
    assert pipeline.instance("memory.cam").identity == b"remote memory.cam#2"
    assert [m.kind for m in pipeline.sent("memory.cam")] == ["exit"]  # to the first, wherever it lives on
    pipeline.instance("memory.cam").kill("no heartbeat for 3 s")
    pipeline.watch()
    assert reasons(pipeline)[-1] == ("memory.cam", "no heartbeat for 3 s")
    pipeline.wait(100)
    assert slot.current is None  # its own machine has to start it again
