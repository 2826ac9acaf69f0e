"""`streamvos.Client`: three lines do, and errors say what to do."""

from __future__ import annotations

import inspect
import threading
import time

import msgpack
import numpy as np
import pytest
import zmq
from pipeline.small_server import (
    SESSION,
    SIZE,
    Recorder,
    make_frame,
    make_header,
    make_result,
    serving,
    short_folder,
    wait_for_forms,
)

from streamvos.pipeline.clients.client import Client, PipelineError, publishers_in
from streamvos.pipeline.clients.publishing import Publisher
from streamvos.pipeline.wire.runtime import Runtime
from streamvos.pipeline.wire.security import Curve, make_keys
from streamvos.types import InputError


@pytest.fixture
def runtime(monkeypatch):
    """The folder of a pipeline "door"."""
    with short_folder() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        with Runtime.claim("door") as runtime:
            yield runtime


@pytest.fixture
def context():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)  # with whatever a failed test left open


def test_three_lines_do(runtime, context):
    recorder = Recorder({"front": runtime.masks("front")})
    mask = np.zeros(SIZE, np.int64)
    mask[3:9, 4:8] = 5
    got = []
    with (
        Publisher(context, runtime.masks("front"), "front", SESSION) as publisher,
        serving(runtime.control, recorder),
    ):

        def publish() -> None:
            wait_for_forms(publisher, "rle")
            for seq in range(3):
                publisher.publish(make_frame(seq), make_result(mask.astype(np.uint8)), make_header(seq))
            publisher.end({"seq": 2})

        helper = threading.Thread(target=publish)
        helper.start()
        with Client("door") as client:
            assert client.annotate("front", mask) == 7
            for one in client.masks("front"):
                got.append(one)
        helper.join(20)
    assert [one.seq for one in got] == [0, 1, 2]
    assert all(np.array_equal(one.label_map, mask) for one in got)
    assert got[0].objects[5].box == (4, 3, 8, 9)
    assert recorder.calls[0][:2] == ("annotate", "front")
    assert recorder.calls[0][2].dtype == np.uint8
    assert np.array_equal(recorder.calls[0][2], mask)


def test_orders_reach_the_pipeline(runtime):
    recorder = Recorder()
    with serving(runtime.control, recorder), Client("door") as client:
        assert client.status()["streams"]["front"]["objects"] == [1, 2]
        assert client.forget("front", 2) == 7
        client.pause("front")
        client.resume("front")
        client.stop("front")
        client.stop()
        with Client(runtime.control) as other:  # by its address
            assert "ok" not in other.status()
    assert [call[:2] for call in recorder.calls[1:6]] == [
        ("forget", "front"),
        ("pause", "front"),
        ("resume", "front"),
        ("stop", "front"),
        ("stop", ""),
    ]


def test_streams_are_added_and_removed(runtime, tmp_path, monkeypatch):
    recorder = Recorder()
    monkeypatch.chdir(tmp_path)
    with serving(runtime.control, recorder), Client("door", timeout=5) as client:
        assert client.add_stream("side", "clip.mp4", mask="m.png", method="frtm-fast") == {"state": "running"}
        client.add_stream("back", "camera:1", height=240, sinks=[], files=False, method={"device": "cpu"})
        with pytest.raises(InputError, match="already"):
            client.add_stream("front", "camera:0")
        assert client.remove_stream("front")["state"] == "ended"
        client.remove_stream("front", at_once=True)
    side, back, *removed = recorder.calls
    publish = [{"kind": "publish"}]
    own = {"name": "side", "source": f"{tmp_path}/clip.mp4", "mask": f"{tmp_path}/m.png", "sinks": publish}
    assert side == ("add_stream", own, {"name": "frtm-fast"}, True)
    table = {"name": "back", "source": "camera:1", "height": 240, "sinks": []}
    assert back == ("add_stream", table, {"device": "cpu"}, False)
    assert removed == [("remove_stream", "front", False), ("remove_stream", "front", True)]


def test_a_stream_goes_on_from_a_state(runtime):
    recorder = Recorder()
    with serving(runtime.control, recorder, "tcp://127.0.0.1:*") as loop:
        with Client("door", timeout=5) as client:
            assert client.snapshot("front") == (7, b"state")
            client.add_stream("side", "camera:0", state=(7, b"state"))
            assert recorder.state == (7, b"state")
            client.add_stream("back", "camera:1")
            assert recorder.state is None
            with pytest.raises(InputError, match="at most 67108864"):
                client.add_stream("large", "camera:0", state=(7, bytes(2**26 + 1)))
            with pytest.raises(InputError, match="nobody"):
                client.snapshot("nobody")
        far = Client(loop.server.endpoints[1], timeout=5)
        with far, pytest.raises(InputError, match="own machine"):
            far.add_stream("far", "camera:0", state=(7, b"state"))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"sorce": "x"}, r'\[\[streams\]\] "side": unknown key "sorce"; did you mean "source"'),
        ({"height": "240"}, r'"side" height: expected a whole number, got "240"'),
        ({"sinks": [{"kind": "json"}]}, r'sink 1 \("json"\): a json sink needs path'),
        ({"method": {"nam": "tvos"}}, r'\[method\]: unknown key "nam"; did you mean "name"'),
        ({"boxes": ["1:2"]}, "boxes"),
    ],
    ids=str,
)
def test_a_stream_that_cannot_be_is_not_sent(runtime, keys, words):
    recorder = Recorder()
    with (
        serving(runtime.control, recorder),
        Client("door") as client,
        pytest.raises(InputError, match=words),
    ):
        client.add_stream("side", "camera:0", **keys)
    assert recorder.calls == []


def test_what_the_pipeline_refuses_is_an_input_error(runtime):
    with serving(runtime.control, Recorder()), Client("door") as client:
        with pytest.raises(InputError, match="no stream 'back'; there are front"):
            client.pause("back")
        with pytest.raises(InputError, match=r"1\.\.254"):
            client.forget("front", 300)
        with pytest.raises(InputError, match=r"kind = .publish."):
            client.masks("front")
        with pytest.raises(InputError, match=r"no stream .back."):
            client.masks("back")


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((4, 4)),
        np.zeros(16, np.uint8),
        np.zeros((0, 4), np.uint8),
        np.full((4, 4), 300),
        np.full((4, 4), -1),
    ],
)
def test_what_is_no_mask_is_refused_before_it_is_sent(runtime, mask):
    recorder = Recorder()
    with serving(runtime.control, recorder), Client("door") as client, pytest.raises(InputError):
        client.annotate("front", mask)
    assert recorder.calls == []


def test_a_missing_pipeline_is_reported_with_a_hint(runtime, context):
    with pytest.raises(InputError, match="no pipeline 'gate'"):
        Client("gate")
    with pytest.raises(InputError, match=r"no process listens at ipc:///tmp/nowhere"):
        Client("ipc:///tmp/nowhere")
    with pytest.raises(InputError, match="is no address"):
        Client("carrier://pigeon")
    with pytest.raises(InputError, match="needs both"):
        Client("tcp://127.0.0.1:1", secret="x")
    words = r"tcp://127.0.0.1:1 does not answer within 0.2 s; .*status"
    with Client("tcp://127.0.0.1:1", timeout=0.2) as client, pytest.raises(PipelineError, match=words):
        client.status()
    silent = context.socket(zmq.ROUTER)
    silent.linger = 0
    silent.bind(runtime.control)
    with Client("door", timeout=0.2) as client, pytest.raises(PipelineError, match="does not answer"):
        client.status()
    silent.close()


def test_a_pipeline_that_ends_before_it_answers_is_not_waited_for(runtime, context):
    server = context.socket(zmq.ROUTER)
    server.linger = 0
    server.bind(runtime.control)

    def take_and_go() -> None:
        if server.poll(10_000):
            server.recv_multipart()
        server.close()

    with Client("door", timeout=60) as client:
        asked = threading.Thread(target=take_and_go)
        asked.start()
        with pytest.raises(PipelineError, match="ended before it answered"):
            client.status()
        asked.join()
        with serving(runtime.control, Recorder()):
            assert client.status()  # of its next life, as if nothing had been


def test_an_answer_that_comes_too_late_is_not_taken_for_another(runtime):
    recorder = Recorder()
    recorder.hold = True
    with serving(runtime.control, recorder) as loop, Client("door", timeout=0.3) as client:
        with pytest.raises(PipelineError):
            client.forget("front", 1)
        loop.do(recorder.release)
        assert "streams" in client.status()


def test_nonsense_from_the_other_side_is_passed_over(runtime, context, rng):
    server = context.socket(zmq.ROUTER)
    server.linger = 0
    server.bind(runtime.control)

    def answer() -> None:
        peer, _, packed, *_ = server.recv_multipart()
        number = msgpack.unpackb(packed)["id"]
        for _ in range(30):
            server.send_multipart([peer, b"", rng.bytes(int(rng.integers(0, 80)))])
        server.send_multipart([peer, b"", msgpack.packb({"v": 1, "kind": "mask", "id": number})])
        server.send_multipart([peer, b"", msgpack.packb({"v": 1, "kind": "reply", "id": number})])
        good = {"v": 1, "kind": "reply", "id": number, "ok": True, "streams": {}}
        server.send_multipart([peer, b"", msgpack.packb(good)])

    helper = threading.Thread(target=answer)
    helper.start()
    with Client("door") as client:
        assert client.status() == {"streams": {}}
        assert sum(client.refused.values()) == 32
    helper.join(20)


def test_masks_end_when_the_pipeline_says_that_the_stream_has(runtime, context):
    """Whoever subscribes after the end, or missed it, does not wait for ever."""
    recorder = Recorder({"front": runtime.masks("front")})
    publisher = Publisher(context, runtime.masks("front"), "front", SESSION)
    with publisher, serving(runtime.control, recorder), Client("door", timeout=0.3) as client:
        masks = client.masks("front", "raw")
        time.sleep(0.4)
        recorder.state = "ended"
        assert list(masks) == []


def test_masks_of_all_streams_come_from_their_own_sockets(runtime, context):
    recorder = Recorder({name: runtime.masks(name) for name in ("front", "back")})
    mask = np.ones(SIZE, np.uint8)
    with (
        Publisher(context, runtime.masks("front"), "front", SESSION) as front,
        Publisher(context, runtime.masks("back"), "back", SESSION) as back,
        serving(runtime.control, recorder),
        Client("door") as client,
    ):
        masks = client.masks(form="png")
        for publisher, name in ((front, "front"), (back, "back")):
            wait_for_forms(publisher, "png")
            publisher.publish(make_frame(stream=name), make_result(mask), make_header(0))
            publisher.end({"seq": 0})
        assert sorted(one.stream for one in masks) == ["back", "front"]
        wait_for_forms(front)  # an exhausted iterator leaves no subscription behind


def test_who_is_slow_may_pass_over_what_is_old(runtime, context):
    mask = np.ones(SIZE, np.uint8)
    with (
        Publisher(context, runtime.masks("front"), "front", SESSION) as publisher,
        serving(runtime.control, Recorder({"front": runtime.masks("front")})),
        Client("door") as client,
    ):
        masks = client.masks("front", newest=True)
        wait_for_forms(publisher, "rle")
        for first in (0, 10, 20):
            for seq in range(first, first + 10):
                publisher.publish(make_frame(seq), make_result(mask, seq), make_header(seq))
            time.sleep(0.3)
            assert next(masks).seq == first + 9
        publisher.end({"seq": 29})
        assert list(masks) == []


def test_an_iterator_that_outlives_its_client_ends(runtime, context):
    recorder = Recorder({"front": runtime.masks("front")})
    with Publisher(context, runtime.masks("front"), "front", SESSION), serving(runtime.control, recorder):
        with Client("door") as client:
            masks = client.masks("front")
        assert list(masks) == []


def test_keys_over_tcp(runtime, tmp_path):
    for name in ("server", "friend", "stranger"):
        make_keys(tmp_path, name)
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "friend.key").write_bytes((tmp_path / "friend.key").read_bytes())
    curve = Curve(tmp_path / "server.key_secret", tmp_path / "clients")
    with serving(runtime.control, Recorder(), "tcp://127.0.0.1:*", curve) as loop:
        address, server_key = loop.server.endpoints[1], tmp_path / "server.key"
        with Client(address, secret=tmp_path / "friend.key_secret", server_key=server_key) as client:
            assert "streams" in client.status()
        unlisted = Client(address, secret=tmp_path / "stranger.key_secret", server_key=server_key)
        with unlisted as client, pytest.raises(PipelineError, match="does not admit our key"):
            client.status()
        with Client(address) as client, pytest.raises(PipelineError, match="give secret and server_key"):
            client.status()
        wrong = Client(address, secret=tmp_path / "friend.key_secret", server_key=tmp_path / "stranger.key")
        with wrong as client, pytest.raises(PipelineError, match="server_key"):
            client.status()


def test_publishers_everywhere_are_reached_where_the_pipeline_was():
    status = {"streams": {"front": {}}, "publish": {"front": "tcp://0.0.0.0:5601"}}
    assert publishers_in(status, "front", "tcp://10.0.0.5:5600") == {"front": "tcp://10.0.0.5:5601"}
    assert publishers_in(status, "", "ipc:///x") == {"front": "tcp://127.0.0.1:5601"}


def test_it_says_that_threads_do_not_share_it():
    assert "thread" in inspect.getdoc(Client)
