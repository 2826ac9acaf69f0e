"""Streams that are added and removed: what is admitted, refused, and left; without processes."""

from __future__ import annotations

import pytest
from fake_pipeline import RESET_STAGES, FakePipeline, stream

from streamvos.pipeline.supervision import additions
from streamvos.pipeline.supervision.commands import Commands
from streamvos.pipeline.wire.arenas import ArenaError
from streamvos.types import InputError

OWN = {"compute.side", "source.side", "sinks.side"}


class Reply:
    """Notes the answers to a user."""

    def __init__(self):
        self.answers = []

    def __call__(self, ok, **fields):
        self.answers.append((ok, fields))

    @property
    def error(self):
        ((ok, fields),) = self.answers
        assert not ok
        return fields["error"]

    @property
    def status(self):
        ((ok, fields),) = self.answers
        assert ok, fields
        return fields["status"]


@pytest.fixture
def pipeline():
    running = FakePipeline(stream("front"), supervision={"standby": False})
    running.begin()
    running.forget_sent()
    return running


def add(pipeline, name="side", method=None, files=True, **more):
    reply = Reply()
    Commands(pipeline.dispatcher).add_stream(stream(name, **more), method, files, reply)
    pipeline.watch()
    return reply


def begin(pipeline, name="side"):
    for kind in ("source", "compute", "sinks"):
        pipeline.revive(f"{kind}.{name}")
    pipeline.reset_done(name)
    pipeline.watch()


def added(pipeline, name="side", **more):
    reply = add(pipeline, name, **more)
    begin(pipeline, name)
    assert reply.status["state"] == "running"


def remove(pipeline, name="side", at_once=False):
    reply = Reply()
    Commands(pipeline.dispatcher).remove_stream(name, at_once, reply)
    pipeline.watch()
    return reply


def exit_all(pipeline, name="side"):
    """Its processes do what they were told."""
    for worker in (f"{kind}.{name}" for kind in ("source", "compute", "sinks")):
        if worker in pipeline.pool.workers and pipeline.pool.workers[worker].current is not None:
            assert pipeline.sent(worker, "exit") or pipeline.process(worker).signals
            pipeline.process(worker).die(0)
    pipeline.watch()


def everything(pipeline):
    """What must not change when a request is refused."""
    status = pipeline.dispatcher.status()
    return status, set(pipeline.resources.held), list(pipeline.started), dict(pipeline.topology.edges)


# ---- adding


def test_an_added_stream_has_workers_of_its_own_and_begins(pipeline):
    reply = add(pipeline)
    assert [name for name, _ in pipeline.started[-3:]] == ["compute.side", "source.side", "sinks.side"]
    assert reply.answers == []
    assert pipeline.dispatcher.status()["streams"]["side"]["state"] == "starting"
    begin(pipeline)
    assert (reply.status["state"], reply.status["method"]) == ("running", "tvos")
    assert pipeline.pool.workers["compute.side"].stages == ("extractor.side", "memory.side", "decoder.side")
    assert pipeline.topology.workers_of("side") == OWN
    assert pipeline.topology.workers_of("front").isdisjoint(OWN)
    assert pipeline.resources.held == {"side"}
    assert pipeline.dispatcher.status()["publish"] == {}
    assert [one["stream"] for one in pipeline.events("stream_added")] == ["side"]


def test_in_split_each_stage_of_an_added_stream_is_a_process():
    pipeline = FakePipeline(stream("front"), placement="split")
    pipeline.begin()
    add(pipeline)
    names = {f"{kind}.side" for kind in ("source", *RESET_STAGES)}
    assert pipeline.topology.workers_of("side") == names == {name for name, _ in pipeline.started[-5:]}


def test_its_workers_know_it_alone_and_the_others_do_not_know_it(pipeline):
    secret = "rtsp://admin:hunter2@10.0.0.5/live"
    add(pipeline, source=secret, method={"name": "rgmp"})
    begin(pipeline)
    for name in OWN:
        (init,) = pipeline.sent(name, "init")
        assert [one["name"] for one in init["config"]["streams"]] == ["side"]
        assert init["config"]["method"]["name"] == "rgmp"
        assert {edge["stream"] for edge in init["edges"]} == {"side"}
        assert ("hunter2" in str(init.fields)) == (name == "source.side")
    sent = {message.kind for name in ("compute", "source.front") for message in pipeline.sent(name)}
    assert sent <= {"connect"}  # which they have been told already
    pipeline.process("compute").die(-9)
    pipeline.watch()
    pipeline.watch()
    pipeline.hello("compute")
    pipeline.watch()
    (init,) = pipeline.sent("compute", "init")
    assert [one["name"] for one in init["config"]["streams"]] == ["front"]
    assert init["config"]["method"]["name"] == "tvos"
    assert pipeline.phase("side") == "running"


@pytest.mark.parametrize("worker", sorted(OWN))
def test_the_death_of_an_added_worker_is_like_any_other_and_nobody_elses(pipeline, worker):
    added(pipeline)
    pipeline.process(worker).die(-9)
    pipeline.watch()
    pipeline.revive(worker)
    pipeline.reset_done("side")
    assert (pipeline.phase("side"), pipeline.manager.streams["side"].incarnation) == ("running", 2)
    assert (pipeline.phase("front"), pipeline.manager.streams["front"].incarnation) == ("running", 1)


def test_a_death_while_it_begins_is_tried_again(pipeline):
    reply = add(pipeline)
    pipeline.process("source.side").die(-11)
    pipeline.watch()
    assert reply.answers == []
    begin(pipeline)
    assert reply.status["state"] == "running"


def test_a_stream_that_ends_at_once_has_been_added(pipeline):
    reply = add(pipeline)
    for kind in ("source", "compute", "sinks"):
        pipeline.revive(f"{kind}.side")
    pipeline.reset_done("side")
    pipeline.says("sinks.side", "ended", "side")  # before the supervisor looks again
    pipeline.watch()
    assert reply.status["state"] == "ended"
    exit_all(pipeline)
    assert "side" in pipeline.manager.streams


def test_a_live_source_that_cannot_be_opened_is_added_all_the_same(pipeline):
    reply = add(pipeline, source="camera:7")
    pipeline.process("source.side").die(3)
    pipeline.watch()
    assert reply.status["state"] == "starting"
    assert "source.side" in reply.status["last_failure"]
    assert "side" in pipeline.manager.streams


@pytest.mark.parametrize(
    ("worker", "stage", "fields"),
    [
        ("source.side", "source.side", {"fatal": True}),
        ("compute.side", "extractor.side", {"fatal": True}),
        ("compute.side", "memory.side", {"fatal": False, "shortage": True}),
        ("source.side", "source.side", {"fatal": False, "shortage": True}),
    ],
    ids=["no source", "no weights", "no memory", "no memory for frames"],
)
def test_what_cannot_begin_is_not_added(pipeline, worker, stage, fields):
    before = everything(pipeline)[0]
    reply = add(pipeline, source="camera:7")
    pipeline.hello(worker)
    pipeline.says(worker, "failed", "side", stage=stage, error="there is none", ended=False, **fields)
    pipeline.watch()
    assert reply.answers == []  # its processes still exist
    exit_all(pipeline)
    assert reply.error == "stream side cannot be added: there is none"
    assert pipeline.dispatcher.status() == before
    assert pipeline.resources.held == set()
    assert pipeline.resources.calls[-1] == ("forget", "side")
    assert pipeline.manager.ends.code == 0
    added(pipeline)  # the name is free


REFUSED = [
    ({"name": "front"}, "there is a stream 'front' already; choose another name"),
    ({"sorce": "x"}, 'unknown key "sorce"; did you mean "source"?'),
    ({"name": "a/b"}, "expected a name of 1 to 64 letters"),
    ({"source": "ftp://x/y.mp4"}, "cannot read ftp://x/y.mp4"),
    ({"policy": "latest"}, '"latest" drops frames of a live source'),
    ({"boxes": ["1:2,3"]}, "boxes"),
    ({"method": {"nam": "rgmp"}}, '[method]: unknown key "nam"; did you mean "name"?'),
    ({"sinks": [{"kind": "json", "path": "/o/f.jsonl"}]}, 'the json sink of "front" write to the same place'),
    ({"sinks": [{"kind": "json", "path": "/o/in.mp4"}], "source": "/o/in.mp4"}, "would replace what is read"),
    (
        {"sinks": [{"kind": "labels", "path": "/o/f.jsonl/x"}]},
        'which is the file of the json sink of "front"',
    ),
    ({"sinks": [{"kind": "publish", "address": "tcp://127.0.0.1:5599"}]}, "publish at the same address"),
    ({"sinks": [{"kind": "publish", "address": "tcp://0.0.0.0:5598"}]}, "can be reached from other hosts"),
]


@pytest.mark.parametrize(("keys", "words"), REFUSED, ids=[words[:40] for _, words in REFUSED])
def test_refused_additions_change_nothing(keys, words):
    sinks = [
        {"kind": "json", "path": "/o/f.jsonl"},
        {"kind": "publish", "address": "tcp://127.0.0.1:5599"},
    ]
    pipeline = FakePipeline(stream("front", sinks=sinks), supervision={"standby": False})
    pipeline.begin()
    before = everything(pipeline)
    more = {"name": "side", **keys}
    reply = add(pipeline, **more)
    assert words in reply.error
    assert "\n" not in reply.error
    assert everything(pipeline) == before
    assert not pipeline.dispatcher.additions.waiting


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({}, "the source side.mp4"),
        ({"source": "camera:clip.mp4"}, "the source camera:clip.mp4"),
        ({"source": "file:///etc/x.mp4"}, "the source /etc/x.mp4"),
        ({"source": "synthetic:stills=/home"}, "the folder of its synthetic source"),
        ({"source": "camera:0", "mask": "m.png"}, "the mask m.png"),
        ({"source": "camera:0", "sinks": [{"kind": "json", "path": "x.jsonl"}]}, "the json sink x.jsonl"),
        (
            {"source": "camera:0", "sinks": [{"kind": "publish", "address": "ipc:///x/y"}]},
            "the socket ipc:///x/y",
        ),
        ({"source": "camera:0", "method": {"name": "os:system"}}, "the module of the method os:system"),
        ({"source": "camera:0", "method": {"weights": "w.pt"}}, "the weights w.pt"),
    ],
    ids=str,
)
def test_a_request_that_may_name_no_files_is_refused_if_it_does(pipeline, keys, named):
    before = everything(pipeline)
    assert named in add(pipeline, files=False, **keys).error
    assert everything(pipeline) == before


@pytest.mark.parametrize("source", ["camera:0", "rtsp://10.0.0.5/x", "synthetic:seed=3", "camera:rtsp://h/x"])
def test_cameras_and_addresses_are_no_files(pipeline, source):
    sinks = [{"kind": "publish"}, {"kind": "publish", "address": "tcp://127.0.0.1:*"}][1:]
    add(pipeline, files=False, source=source, sinks=sinks, method={"name": "rgmp", "device": "cpu"})
    assert "side" in pipeline.manager.streams


def test_a_method_of_another_name_has_weights_and_options_of_its_own():
    method = {"device": "cpu", "options": {"top_k": 5}, "weights": "tvos.pt", "threads": 3}
    pipeline = FakePipeline(stream("front"), method=method)
    add(pipeline, "other", method={"name": "rgmp"})
    add(pipeline, "same", method={"device": "cuda"})
    other, same = (pipeline.manager.streams[name].method for name in ("other", "same"))
    assert (other.name, other.weights, other.options, other.threads) == ("rgmp", "default", {}, 3)
    assert (same.name, same.weights, same.options, same.device) == ("tvos", "tvos.pt", {"top_k": 5}, "cuda")


def test_without_descriptors_nothing_is_begun(pipeline):
    pipeline.resources.fails = ArenaError("cannot make shared memory for side/frames: no descriptors")
    before = everything(pipeline)
    assert "no descriptors" in add(pipeline).error
    assert everything(pipeline) == before
    pipeline.resources.fails = None
    added(pipeline)


def test_without_processes_it_is_tried_again(pipeline):
    pipeline.cannot_start = True
    reply = add(pipeline)
    pipeline.cannot_start = False
    pipeline.wait(1.5)
    begin(pipeline)
    assert reply.status["state"] == "running"


def test_two_additions_of_one_name_at_once_are_one(pipeline):
    pipeline.checks_wait = True
    replies = [add(pipeline) for _ in range(2)]
    assert not any(reply.answers for reply in replies)
    assert "side" not in pipeline.manager.streams
    with pytest.raises(InputError, match="side is still being checked"):
        remove(pipeline)
    pipeline.check()
    pipeline.watch()
    assert "'side' already" in replies[1].error
    begin(pipeline)
    assert replies[0].status["state"] == "running"


def test_a_check_that_does_not_end_holds_up_nobody_for_long(pipeline):
    pipeline.checks_wait = True
    hanging, next_one = add(pipeline), add(pipeline, "next")
    pipeline.wait(additions.CHECK_SECONDS - 1)
    assert hanging.answers == []
    pipeline.wait(2)
    assert "could not be checked within 45 s" in hanging.error
    assert "side" not in pipeline.manager.streams
    pipeline.check()  # both, after all
    pipeline.watch()
    assert set(pipeline.manager.streams) == {"front", "next"}
    assert next_one.answers == []
    assert pipeline.phase("front") == "running"


def test_what_no_check_foresees_is_an_answer(pipeline):
    pipeline.checks_wait = True
    reply = add(pipeline)
    _, future = pipeline.checks.pop()
    future.set_exception(RuntimeError("surprise"))
    pipeline.watch()
    assert reply.error == "RuntimeError: surprise"


def test_there_are_only_so_many(pipeline, monkeypatch):
    monkeypatch.setattr(additions, "MOST_STREAMS", 2)
    added(pipeline)
    assert "at most 2" in add(pipeline, "third").error
    remove(pipeline, at_once=True)
    pipeline.says("sinks.side", "ended", "side")
    exit_all(pipeline)
    added(pipeline, "third")


# ---- removing


def test_a_removed_stream_drains_and_is_forgotten(pipeline):
    added(pipeline)
    pipeline.ack("side", 7)
    reply = remove(pipeline)
    assert pipeline.sent("source.side", "stop")
    assert not pipeline.sent("sinks.side", "stop")
    pipeline.says("sinks.side", "ended", "side")
    pipeline.watch()
    assert reply.answers == []
    assert "side" in pipeline.dispatcher.status()["streams"]
    exit_all(pipeline)
    assert reply.status["state"] == "ended"
    status = pipeline.dispatcher.status()
    assert set(status["streams"]) == set(status["frames"]) == {"front"}
    assert set(status["workers"]) == {"compute", "source.front", "sinks.front"}
    assert pipeline.resources.calls[-2:] == [("free", "side"), ("forget", "side")]
    assert {edge.stream for edge in pipeline.topology.edges.values()} == {"front"}
    assert not pipeline.dispatcher.finished


def test_at_once_leaves_out_what_is_on_its_way(pipeline):
    added(pipeline)
    remove(pipeline, at_once=True)
    assert [one["drain"] for one in pipeline.sent("sinks.side", "stop")] == [False]
    assert not pipeline.sent("source.side", "stop")


def test_whoever_does_not_want_to_wait_for_the_drain_may_remove_again(pipeline):
    added(pipeline)
    first, second = remove(pipeline), remove(pipeline, at_once=True)
    assert pipeline.sent("sinks.side", "stop")
    pipeline.says("sinks.side", "ended", "side")
    pipeline.watch()
    exit_all(pipeline)
    assert first.status == second.status


def test_a_name_can_be_used_again_and_nothing_of_the_first_counts(pipeline):
    known = everything(pipeline)[0]
    for _ in range(3):
        added(pipeline)
        pipeline.process("compute.side").die(-9)
        pipeline.watch()
        pipeline.revive("compute.side")
        pipeline.reset_done("side")
        status = pipeline.dispatcher.status()
        assert (status["streams"]["side"]["restarts"], status["streams"]["side"]["incarnation"]) == (1, 2)
        remove(pipeline)
        pipeline.says("sinks.side", "ended", "side")
        pipeline.watch()
        exit_all(pipeline)
        assert pipeline.dispatcher.status() == known


def test_sockets_are_never_used_again(pipeline):
    endpoints = []
    for _ in range(3):
        added(pipeline)
        endpoints += [
            edge.endpoint for name, edge in pipeline.topology.edges.items() if name == "side/frames"
        ]
        remove(pipeline, at_once=True)
        pipeline.says("sinks.side", "ended", "side")
        pipeline.watch()
        exit_all(pipeline)
    assert len(set(endpoints)) == 3


def test_a_stream_of_the_beginning_can_be_removed_and_added_again():
    pipeline = FakePipeline(stream("front"), stream("side"), supervision={"standby": False})
    pipeline.begin()
    remove(pipeline)
    pipeline.says("sinks.side", "ended", "side")
    pipeline.watch()
    for worker in ("source.side", "sinks.side"):
        pipeline.process(worker).die(0)
    pipeline.watch()
    assert set(pipeline.manager.streams) == {"front"}
    assert pipeline.pool.workers["compute"].stages == ("extractor", "memory.front", "decoder.front")
    assert not pipeline.process("compute").signals
    added(pipeline)
    # the stages that "compute" still has of the first "side" must find nothing of the second
    for name in ("compute", "compute.side"):
        for message in pipeline.sent(name, "connect")[-1:]:
            own = {"front"} if name == "compute" else {"side"}
            assert {edge.partition("/")[0] for edge in message["endpoints"]} <= own
    pipeline.says("compute", "ack", "side", seq=99, frames=[])
    assert pipeline.manager.streams["side"].acked == -1
    pipeline.process("compute").die(-9)
    pipeline.watch()
    assert (pipeline.phase("front"), pipeline.phase("side")) == ("recovering", "running")


def test_a_stream_can_be_removed_while_it_begins(pipeline):
    reply = add(pipeline)
    removal = remove(pipeline)
    exit_all(pipeline)
    assert reply.error == "stream side cannot be added: it was ended before it had begun"
    assert removal.status["state"] == "ended"
    assert set(pipeline.manager.streams) == {"front"}


def test_a_stream_can_be_removed_while_it_recovers(pipeline):
    added(pipeline)
    pipeline.process("compute.side").die(-9)
    pipeline.watch()
    reply = remove(pipeline)
    assert [one["drain"] for one in pipeline.sent("sinks.side", "stop")] == [False]
    pipeline.says("sinks.side", "ended", "side")
    pipeline.watch()
    exit_all(pipeline)
    assert reply.status["state"] == "ended"


def test_a_worker_that_does_not_exit_is_killed(pipeline):
    added(pipeline)
    reply = remove(pipeline)
    pipeline.says("sinks.side", "ended", "side")
    pipeline.wait(1.5)
    assert not pipeline.process("compute.side").signals
    pipeline.wait(1.0)
    pipeline.watch()
    assert reply.status["state"] == "ended"
    assert not pipeline.events("died")


def test_a_stream_that_has_failed_can_be_removed_and_no_longer_counts(pipeline):
    added(pipeline)
    pipeline.says(
        "source.side", "failed", "side", stage="source.side", error="broken", fatal=True, ended=False
    )
    pipeline.says("sinks.side", "ended", "side")
    pipeline.watch()
    exit_all(pipeline)
    assert (pipeline.dispatcher.status()["streams"]["side"]["state"], pipeline.manager.ends.code) == (
        "failed",
        2,
    )
    assert "it has ended: remove it first" in add(pipeline).error
    status = remove(pipeline).status
    assert (status["state"], status["reason"], pipeline.manager.ends.code) == ("failed", "broken", 0)


@pytest.mark.parametrize("name", ["back", "x" * 10_000])
def test_what_is_not_there_cannot_be_removed(pipeline, name):
    before = everything(pipeline)
    with pytest.raises(InputError, match=r"there is no stream .* there are: front") as error:
        remove(pipeline, name)
    assert len(str(error.value)) < 300
    assert everything(pipeline) == before


# ---- the last stream, and the end


@pytest.mark.parametrize("keep", [False, True])
def test_a_pipeline_without_streams_goes_on_only_if_it_is_to(keep):
    pipeline = FakePipeline(stream("front"), keep=keep, supervision={"standby": True})
    pipeline.begin()
    reply = remove(pipeline, "front")
    pipeline.says("sinks.front", "ended", "front")
    pipeline.watch()
    assert not pipeline.dispatcher.finished  # whoever removed it has no answer yet
    for worker in list(pipeline.pool):
        for instance in worker.instances:
            instance.process.die(0)
    pipeline.watch()
    assert reply.status["state"] == "ended"
    assert pipeline.dispatcher.finished == (not keep)
    assert pipeline.pool.workers == {}
    if keep:
        added(pipeline)
        assert "compute.side" in pipeline.pool.workers


def test_a_pipeline_may_begin_without_streams():
    pipeline = FakePipeline(keep=True)
    pipeline.begin()
    assert (pipeline.started, pipeline.dispatcher.finished) == ([], False)
    added(pipeline)
    reply = Reply()
    Commands(pipeline.dispatcher).stop("", reply)
    assert "is ending" in add(pipeline, "late").error
    pipeline.says("sinks.side", "ended", "side")
    assert reply.answers == [(True, {})]
    assert pipeline.dispatcher.finished


def test_the_end_of_the_pipeline_is_an_answer_for_whoever_adds_or_removes(pipeline):
    added(pipeline)
    adding, removing = add(pipeline, "late"), remove(pipeline)
    pipeline.checks_wait = True
    checked = add(pipeline, "later")
    pipeline.pool.leaving = True
    pipeline.manager.ends.close()
    for name in ("side", "front"):
        pipeline.says(f"sinks.{name}", "ended", name)
    pipeline.check()
    pipeline.watch()
    exit_all(pipeline, "late")
    exit_all(pipeline)
    pipeline.watch()
    assert "cannot be added" in adding.error
    assert "is ending" in checked.error
    assert removing.status["state"] == "ended"
    assert pipeline.dispatcher.finished
