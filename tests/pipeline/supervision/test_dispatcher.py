"""How workers' messages are handled, and when workers are initialized."""

from __future__ import annotations

import pytest
from fake_pipeline import FakePipeline, stream

from streamvos.pipeline.wire.messages import Refused


def opening(*streams, **config):
    pipeline = FakePipeline(*streams, **config)
    pipeline.pool.start_all()
    for worker in pipeline.pool.workers:
        pipeline.hello(worker)
    pipeline.watch()
    return pipeline


def initialized(pipeline):
    """Workers that were sent INIT."""
    return {worker for worker in pipeline.pool.workers if pipeline.sent(worker, "init")}


def test_sources_begin_first_and_others_when_the_size_of_the_frames_is_known():
    pipeline = opening(stream("a"), stream("b"), placement="split")
    assert initialized(pipeline) == {"source.a", "source.b"}
    pipeline.ready("source.a")
    pipeline.watch()
    assert initialized(pipeline) == {"source.a", "source.b", "memory.a", "decoder.a", "sinks.a"}
    pipeline.ready("source.b")
    pipeline.watch()
    assert initialized(pipeline) == set(pipeline.pool.workers)
    (init,) = pipeline.sent("extractor", "init")
    assert set(init["facts"]) == {"a", "b"}
    assert (init["life"], init["standby"], init["stages"]) == (0, False, ["extractor"])


def test_a_source_that_cannot_be_opened_does_not_hold_up_the_others():
    pipeline = opening(stream("a"), stream("b"))
    pipeline.ready("source.a")
    pipeline.watch()
    assert "compute" not in initialized(pipeline)
    pipeline.process("source.b").die(3)  # it has been tried
    pipeline.watch()
    assert "compute" in initialized(pipeline)


def test_the_networks_do_not_wait_for_a_slow_source():
    pipeline = opening(stream("a"), stream("b"))
    pipeline.ready("source.a")
    pipeline.wait(4.9)
    assert "compute" not in initialized(pipeline)
    pipeline.wait(0.2)
    assert "compute" in initialized(pipeline)


def test_a_late_stream_joins_the_others():
    pipeline = opening(stream("a"), stream("b"))
    pipeline.ready("source.a")
    pipeline.wait(5.1)
    pipeline.ready("compute")
    pipeline.ready("sinks.a")
    pipeline.reset_done("a")
    assert (pipeline.phase("a"), pipeline.phase("b")) == ("running", "opening")
    pipeline.ready("source.b")
    pipeline.watch()
    pipeline.ready("sinks.b")
    pipeline.reset_done("b")
    assert (pipeline.phase("a"), pipeline.phase("b")) == ("running", "running")


def test_each_worker_gets_the_password_of_its_own_camera_alone():
    secret = "rtsp://admin:hunter2@10.0.0.5/live"
    pipeline = opening(stream("cam", source=secret), stream("clip"), placement="split")
    pipeline.ready("source.cam")
    pipeline.ready("source.clip")
    pipeline.watch()
    knows = {w for w in pipeline.pool.workers if "hunter2" in str(pipeline.sent(w, "init")[0].fields)}
    assert knows == {"source.cam"}


def test_workers_that_are_ready_learn_the_addresses_of_their_consumers():
    pipeline = opening(stream("cam"), placement="split")
    pipeline.ready("source.cam")
    pipeline.watch()
    consumers = {"extractor": "frames", "memory.cam": "features", "decoder.cam": "evidence"}
    for name, edge in consumers.items():
        endpoints = {f"cam/{edge}": f"ipc:///{name}"}
        pipeline.says(name, "ready", endpoints=endpoints, facts={}, standby=False)
    for name, consumer, edge in (
        ("source.cam", "extractor", "frames"),
        ("extractor", "memory.cam", "features"),
        ("memory.cam", "decoder.cam", "evidence"),
    ):
        known = pipeline.sent(name, "connect")[-1]["endpoints"]
        assert known == {f"cam/{edge}": f"ipc:///{consumer}"}


@pytest.fixture
def pipeline():
    running = FakePipeline(stream("a"), stream("b"), placement="split")
    running.begin()
    running.forget_sent()
    return running


def fails(pipeline, worker, name, stage, fatal, ended=False):
    fields = {"stage": stage, "error": "it broke", "fatal": fatal, "ended": ended}
    pipeline.says(worker, "failed", name, **fields)


def test_a_failure_that_is_no_fault_of_the_input_is_tried_again(pipeline):
    fails(pipeline, "memory.a", "a", "memory.a", fatal=False)
    pipeline.watch()
    assert [one["reason"] for one in pipeline.events("died")] == ["memory.a failed: it broke"]
    assert pipeline.instance("memory.a").life == 1
    assert (pipeline.phase("a"), pipeline.phase("b")) == ("recovering", "running")


def test_a_fault_of_the_input_ends_its_stream(pipeline):
    fails(pipeline, "memory.a", "a", "memory.a", fatal=True)
    pipeline.says("sinks.a", "ended", "a")
    assert (pipeline.phase("a"), pipeline.phase("b")) == ("over", "running")
    assert (pipeline.manager.streams["a"].reason, pipeline.manager.ends.code) == ("it broke", 2)
    assert not pipeline.events("died")


def test_a_fault_of_the_input_without_a_stream_ends_all_streams_of_the_worker(pipeline):
    fails(pipeline, "extractor", "", "extractor", fatal=True)  # weights that are not there
    for name in ("a", "b"):
        pipeline.says(f"sinks.{name}", "ended", name)
    assert pipeline.manager.ends.all_over
    assert pipeline.manager.ends.code == 2


def test_frames_before_the_damage_in_a_file_are_still_written(pipeline):
    fails(pipeline, "source.a", "a", "source.a", fatal=True, ended=True)
    assert pipeline.phase("a") == "ending"
    assert not pipeline.sent("sinks.a", "stop")
    pipeline.says("sinks.a", "ended", "a")
    assert (pipeline.manager.streams["a"].reason, pipeline.manager.ends.code) == ("it broke", 2)


def test_a_worker_that_is_dying_is_killed(pipeline):
    pipeline.says("memory.a", "dying", stage="memory.a")
    pipeline.watch()
    assert [one["reason"] for one in pipeline.events("died")] == ["failed in memory.a"]


def test_every_message_is_a_sign_of_life(pipeline):
    pipeline.now += 2.5
    pipeline.ack("a", 1)
    pipeline.now += 1.0  # the heartbeat's timeout is 3 s
    pipeline.watch()
    assert not pipeline.process("sinks.a").signals
    assert pipeline.process("sinks.b").signals


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stages": 3},
        {"stages": {"memory.a": 3}},
        {"stages": {}, "clock": "late"},
        {"stages": {"memory.a": {"busy_since": 1.5}}},
        {"stages": {"memory.a": {"waiting_for": 3}}},
        {"stages": {"memory.a": {"objects": "many"}}},
        {"stages": {"memory.a": {"refused": {"x": "y"}}}},
        {"stages": {"memory.a": {"queues": {3: 4}}}},
    ],
    ids=str,
)
def test_a_malformed_heartbeat_is_refused_and_leaves_the_last_one(pipeline, fields):
    pipeline.beat("memory.a", memory_a={"objects": [1]})
    with pytest.raises(Refused):
        pipeline.says("memory.a", "beat", **fields)
    assert pipeline.dispatcher.status()["streams"]["a"]["objects"] == [1]


def test_a_heartbeat_speaks_for_its_own_stages_alone(pipeline):
    pipeline.beat("memory.a", memory_b={"objects": [1]})
    assert pipeline.dispatcher.status()["streams"]["b"]["objects"] == []


def test_waiting_is_logged_when_it_begins_and_when_it_ends(pipeline):
    since = round((pipeline.now - 2) * 1e9)
    for _ in range(3):
        pipeline.beat("sinks.a", sinks_a={"waiting_for": "no space left", "waiting_since": since})
    assert pipeline.dispatcher.status()["streams"]["a"]["state"] == "waiting"
    pipeline.beat("sinks.a", sinks_a={})
    assert [one["seconds"] for one in pipeline.events("waiting")] == [2.0]
    assert [one["stage"] for one in pipeline.events("goes_on")] == ["sinks.a"]
    assert pipeline.dispatcher.status()["streams"]["a"]["state"] == "running"


def test_clocks_of_other_hosts_do_not_make_a_stage_look_hung():
    pipeline = FakePipeline(
        stream("cam"), placement="split", host="127.0.0.1", remote={"memory.cam": {"host": "127.0.0.1"}}
    )
    slot = pipeline.pool.workers["memory.cam"]
    pipeline.pool.adopt(slot, b"remote memory.cam#1")
    slot.current.state = "ready"
    there = 5 * 10**9  # that machine has just been switched on
    stages = {"memory.cam": {"busy_since": there - 10**9}}
    pipeline.says("memory.cam", "beat", stages=stages, clock=there)
    pipeline.wait(28.9)
    pipeline.watch()
    assert not pipeline.events("died")
    pipeline.wait(0.2)
    pipeline.watch()
    assert [one["reason"] for one in pipeline.events("died")] == ["hung for 30 s in memory.cam"]
