"""The socket for users: what is asked is done, what is wrong is answered, and what is noise is counted."""

from __future__ import annotations

import time

import msgpack
import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from pipeline.raw_client import RawClient
from pipeline.small_server import SESSION, Recorder, serving, short_folder

from streamvos.pipeline.clients import control
from streamvos.pipeline.clients.client import Client, PipelineError
from streamvos.types import InputError


@pytest.fixture
def place():
    with short_folder() as folder:
        yield f"ipc://{folder}/control.sock"


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)  # with whatever a failed test left open


def test_every_verb_reaches_the_pipeline_and_is_answered(place, rng):
    recorder = Recorder()
    mask = rng.integers(0, 4, (24, 40), np.uint8)
    with serving(place, recorder), RawClient(place) as client:
        status = client.request("status")
        assert status["ok"] is True
        assert status["streams"]["front"]["seq"] == 7
        assert status["session"] == SESSION
        assert client.request("annotate", "front", mask=mask)["seq"] == 7
        assert client.request("forget", "front", object=3)["seq"] == 7
        for verb, stream in (("pause", "front"), ("resume", "front"), ("stop", "front"), ("stop", "")):
            reply = client.request(verb, stream)
            assert reply["ok"] is True
            assert "error" not in reply
        added = client.request("add_stream", table={"name": "side", "source": "camera:0"})
        assert added["status"] == {"state": "running"}
        removed = client.request("remove_stream", "front", at_once=True)
        assert removed["status"]["state"] == "ended"
        assert client.request("snapshot", "front")["seq"] == 7
    assert recorder.calls[-1] == ("snapshot", "front")
    verbs = [call[0] for call in recorder.calls]
    assert verbs == [*control.VERBS[:6], "stop", *control.VERBS[6:]]
    recorder.calls.pop()
    assert recorder.calls[-2] == ("add_stream", {"name": "side", "source": "camera:0"}, None, True)
    assert recorder.calls.pop() == ("remove_stream", "front", True)
    recorder.calls.pop()
    assert np.array_equal(recorder.calls[1][2], mask)
    assert recorder.calls[2] == ("forget", "front", 3)
    assert recorder.calls[-1] == ("stop", "")


@pytest.mark.parametrize(
    ("verb", "fields"),
    [
        ("add_stream", {}),
        ("add_stream", {"table": "camera:0"}),
        ("add_stream", {"table": {"name": "side"}, "method": "tvos"}),
        ("add_stream", {"table": {"name": "side"}, "files": 1}),
        ("remove_stream", {"at_once": "yes"}),
    ],
    ids=str,
)
def test_requests_about_streams_that_cannot_be_used(place, verb, fields):
    recorder = Recorder()
    with serving(place, recorder), RawClient(place) as client:
        assert "docs/protocol.md" in client.request(verb, "front", **fields)["error"]
    assert recorder.calls == []


@pytest.mark.parametrize("allowed", [False, True])
def test_over_tcp_a_stream_names_files_only_if_the_pipeline_allows_it(place, allowed):
    recorder = Recorder()
    with serving(place, recorder, "tcp://127.0.0.1:*", remote_files=allowed) as loop:
        for address in loop.server.endpoints:
            with RawClient(address) as client:
                for files in (True, False):
                    client.request("add_stream", table={"name": "side"}, files=files)
    assert [call[3] for call in recorder.calls] == [True, False, allowed, False]


def test_a_req_socket_is_a_client_too(place, context):
    with serving(place, Recorder()):
        socket = context.socket(zmq.REQ)
        socket.linger = 0
        socket.connect(place)
        request = {"v": 1, "kind": "request", "verb": "pause", "id": -5, "stream": "front"}
        socket.send(msgpack.packb(request))
        assert socket.poll(10_000)
        reply = msgpack.unpackb(socket.recv())
        assert (reply["id"], reply["ok"]) == (-5, True)


@pytest.mark.parametrize(
    ("verb", "stream", "more", "words"),
    [
        ("dance", "front", {}, "status, annotate, forget"),
        (7, "front", {}, "7"),
        ("pause", "", {}, "needs a stream"),
        ("pause", "back", {}, "no stream 'back'"),
        ("forget", "front", {}, "lacks object"),
        ("forget", "front", {"object": 0}, "1..254"),
        ("forget", "front", {"object": 255}, "1..254"),
        ("forget", "front", {"object": True}, "1..254"),
        ("forget", "front", {"object": "3"}, "1..254"),
        ("annotate", "front", {}, "mask"),
        ("annotate", "front", {"arrays": {"mask": ["uint8", [0, 4], 0]}}, "pixels"),
        ("annotate", "front", {"arrays": {"mask": ["uint8", [2, 2], ["front/frames", 0, 0, 0]]}}, "buffer"),
        ("annotate", "front", {"arrays": {"mask": ["uint8", [2, 2], ["frames", 0, 1, 0]]}}, "buffer"),
    ],
)
def test_a_bad_request_is_answered_with_a_sentence(place, verb, stream, more, words):
    recorder = Recorder()
    with serving(place, recorder), RawClient(place) as client:
        header = {"v": 1, "kind": "request", "id": 1, "verb": verb, "stream": stream, **more}
        wants_buffer = any(one[2] == 0 for one in more.get("arrays", {}).values())
        client.socket.send_multipart([b"", msgpack.packb(header), *([b""] if wants_buffer else [])])
        reply = client.receive()
        assert reply["ok"] is False
        assert words in reply["error"]
        assert client.request("status")["ok"] is True
    assert [call[0] for call in recorder.calls] == ["status"]


def test_masks_of_another_kind_are_refused(place):
    recorder = Recorder()
    with serving(place, recorder), RawClient(place) as client:
        for dtype, shape, size in (("float32", [4, 4], 64), ("uint8", [4, 4, 3], 48), ("uint8", [16], 16)):
            header = {"v": 1, "kind": "request", "id": 9, "verb": "annotate", "stream": "front"}
            header["arrays"] = {"mask": [dtype, shape, 0]}
            client.socket.send_multipart([b"", msgpack.packb(header), bytes(size)])
            reply = client.receive()
            assert (reply["id"], reply["ok"]) == (9, False)
            assert "(H, W) uint8" in reply["error"]
    assert recorder.calls == []


def test_noise_is_counted_and_not_answered(place, rng):
    noise = [
        [],
        [b""],
        [b"", b""],
        [b"", b"\xc1"],
        [b"", msgpack.packb([1, 2])],
        [b"", msgpack.packb({"v": 2, "kind": "request", "id": 1})],
        [b"", msgpack.packb({"v": 1, "kind": "request", "verb": "status"})],
        [b"", msgpack.packb({"v": 1, "kind": "request", "verb": "status", "id": "x"})],
        [b"", msgpack.packb({"v": 1, "kind": "request", "verb": "status", "id": 1.5})],
        [b"", msgpack.packb({"v": 1, "kind": "credit", "id": 1})],
        [b"other", msgpack.packb({"v": 1, "kind": "request", "verb": "status", "id": 1, "stream": "front"})],
        [b"", msgpack.packb({"v": 1, "kind": "request", "verb": "status", "id": 1}), b"more"],
        *([b"", rng.bytes(int(rng.integers(1, 200)))] for _ in range(50)),
    ]
    recorder = Recorder()
    with serving(place, recorder) as loop, RawClient(place) as client:
        for parts in noise[1:]:
            client.socket.send_multipart(parts)
        assert client.request("status")["ok"] is True  # comes behind all of it, and is the only answer
        assert sum(loop.server.refused.values()) == len(noise) - 1
        assert len(loop.server.refused) < 15
    assert recorder.calls == [("status",)]


values = some.recursive(
    some.none()
    | some.booleans()
    | some.integers(-(2**63), 2**63)
    | some.floats()
    | some.text()
    | some.binary(),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(some.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
names = some.sampled_from(
    ["v", "kind", "id", "verb", "stream", "arrays", "object", "seq", "session", "incarnation"]
)
likely = some.fixed_dictionaries(
    {"v": some.just(1) | values, "kind": some.just("request") | values, "id": some.integers() | values},
    optional={
        "verb": some.sampled_from(["status", "annotate", "forget", "pause", "stop"]) | values,
        "stream": some.just("front") | values,
        "object": some.integers(0, 300) | values,
        "arrays": some.dictionaries(some.just("mask"), some.lists(values, max_size=4)) | values,
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    header=likely | some.dictionaries(names, values, max_size=6),
    rest=some.lists(some.binary(max_size=64), max_size=3),
)
def test_whatever_comes_the_server_lives(fuzzed, header, rest):
    loop, client = fuzzed
    try:
        packed = msgpack.packb(header)
    except (OverflowError, ValueError):
        packed = b"\x81"
    client.socket.send_multipart([b"", packed, *rest])
    client.number += 2**40  # no id that hypothesis would think of
    assert client.request("status")["ok"] is True
    assert loop.error is None
    assert len(loop.server._pending) == 0
    assert len(loop.server.refused) < 25


@pytest.fixture(scope="module")
def fuzzed():
    with short_folder() as folder:
        place = f"ipc://{folder}/c"
        with serving(place, Recorder()) as loop, RawClient(place) as client:
            yield loop, client


def test_answers_may_come_late_and_in_another_order(place):
    recorder = Recorder()
    recorder.hold = True
    with serving(place, recorder) as loop, RawClient(place) as client:
        numbers = [client.send("forget", "front", object=1 + k) for k in range(3)]
        assert client.request("status")["ok"] is True
        loop.do(recorder.release)
        assert [client.receive()["id"] for _ in numbers] == numbers[::-1]


def test_a_client_has_so_many_requests_pending_and_others_are_free(place):
    recorder = Recorder()
    recorder.hold = True
    with serving(place, recorder) as loop, RawClient(place) as greedy, RawClient(place) as other:
        for _ in range(control.PENDING_PER_CLIENT):
            greedy.send("forget", "front", object=1)
        reply = greedy.request("forget", "front", object=1)
        assert reply["ok"] is False
        assert "too many requests" in reply["error"]
        assert other.request("status")["ok"] is True
        loop.do(recorder.release)
        for _ in range(control.PENDING_PER_CLIENT):
            assert greedy.receive()["ok"] is True
        assert greedy.request("status")["ok"] is True


def test_a_client_that_is_gone_is_no_problem(place):
    recorder = Recorder()
    recorder.hold = True
    with serving(place, recorder) as loop:
        with RawClient(place) as client:
            client.send("forget", "front", object=1)
            deadline = time.monotonic() + 20
            while not recorder.held:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        time.sleep(0.1)  # for the end of the connection to arrive
        loop.do(recorder.release)
        assert loop.server._pending == {}
        with RawClient(place) as client:
            assert client.request("status")["ok"] is True


def test_a_request_that_is_never_done_is_answered_at_last(place, monkeypatch):
    monkeypatch.setattr(control, "REPLY_SECONDS", 0.2)
    recorder = Recorder()
    recorder.hold = True
    with serving(place, recorder) as loop, RawClient(place) as client:
        reply = client.request("forget", "front", object=1)
        assert reply["ok"] is False
        assert "not done" in reply["error"]
        assert reply["pending"] is True  # it was not refused
        loop.do(recorder.release)  # too late, and nobody minds
        assert client.request("status")["ok"] is True


def test_what_may_still_be_done_is_not_a_refusal(place, monkeypatch):
    monkeypatch.setattr(control, "REPLY_SECONDS", 0.2)
    recorder = Recorder()
    recorder.hold = True
    with serving(place, recorder), Client(place) as client, pytest.raises(PipelineError, match="not done"):
        client.forget("front", 1)


def test_an_answer_that_cannot_be_sent_is_an_answer(place):
    recorder = Recorder()
    recorder.publish = {"front": object()}
    with serving(place, recorder) as loop, RawClient(place) as client:
        reply = client.request("status")
        assert reply["ok"] is False
        assert "cannot be sent" in reply["error"]
        assert loop.server.refused["reply"] == 1


def test_too_large_a_message_ends_its_connection_alone(place):
    with serving(place, Recorder()), RawClient(place, seconds=1) as rude, RawClient(place) as polite:
        rude.socket.send_multipart([b"", b"x", bytes(control.MASK_BYTES + 1)])
        with pytest.raises(TimeoutError):
            rude.receive()
        assert polite.request("status")["ok"] is True


def test_an_open_address_is_refused_and_nothing_stays_bound(place, context):
    with pytest.raises(InputError, match="CURVE keys"):
        control.ControlServer(context, place, SESSION, Recorder(), "tcp://0.0.0.0:5999")
    with serving(place, Recorder(), "tcp://127.0.0.1:*") as loop:
        assert loop.server.endpoints[1].startswith("tcp://127.0.0.1:")
        with RawClient(loop.server.endpoints[1]) as client:
            assert client.request("status")["ok"] is True
