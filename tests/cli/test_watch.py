"""`streamvos watch`: what is published is shown, counted and stored."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
)

from streamvos.cli import watch
from streamvos.masks.labelmap import read_label_map
from streamvos.pipeline.clients.publishing import Publisher
from streamvos.pipeline.wire import runtime
from streamvos.pipeline.wire.runtime import Runtime


@pytest.fixture
def home(monkeypatch):
    """A pipeline "door" whose stream "front" publishes; no other pipeline of this machine is seen."""
    with short_folder() as folder:
        monkeypatch.setattr(runtime, "_bases", lambda: [folder / "streamvos"])
        claimed = Runtime.claim("door")
        with claimed, serving(claimed.control, Recorder({"front": claimed.masks("front")})):
            yield claimed


def publish(publisher: Publisher, seqs: list[int]) -> None:
    """Frames of these numbers, the objects 1 and 3 in each."""
    for seq in seqs:
        mask = np.zeros(SIZE, np.uint8)
        mask[1:5, seq % 8 : seq % 8 + 4], mask[10:20, 10:20] = 1, 3
        captured = time.monotonic_ns() - 20_000_000
        publisher.publish(make_frame(seq), make_result(mask), make_header(seq, captured=captured))
        time.sleep(0.005)


@contextmanager
def publishing(address: str, job: Callable[[Publisher], None], stream: str = "front") -> Iterator[None]:
    """Does `job` in a thread as soon as somebody has subscribed."""
    context: zmq.Context = zmq.Context()
    with Publisher(context, address, stream, SESSION) as publisher:

        def work() -> None:
            deadline = time.monotonic() + 60
            while not publisher.forms and time.monotonic() < deadline:
                time.sleep(0.01)
            job(publisher)

        helper = threading.Thread(target=work)
        helper.start()
        try:
            yield
        finally:
            helper.join(90)
    context.destroy(linger=0)


def whole_stream(publisher: Publisher) -> None:
    publish(publisher, [*range(6), *range(8, 12)])
    publisher.end({"seq": 11})


@pytest.mark.parametrize("form", ["rle", "png", "raw"])
def test_a_stream_is_followed_to_its_end(call, home, tmp_path, form):
    with publishing(home.masks("front"), whole_stream):
        answer = call("watch", "door", "--form", form, "--save", tmp_path / "masks", "--json")
    assert answer.code == 0, answer
    report = json.loads(answer.out)["streams"]["front"]
    assert (report["frames"], report["seq"], report["lost_on_the_way"], report["ended"]) == (10, 11, 2, True)
    assert report["dropped"] == {"newer frame": 10}
    assert report["size"] == list(SIZE)
    assert report["fps"] > 1
    assert report["latency"]["count"] == 10
    assert report["latency"]["p50_ms"] >= 20
    assert {key: one["state"] for key, one in report["objects"].items()} == {"1": "tracking", "3": "tracking"}
    stored = sorted((tmp_path / "masks" / "front").glob("*.png"))
    assert [one.name for one in stored] == [f"{seq:05d}.png" for seq in (*range(6), *range(8, 12))]
    label_map = read_label_map(stored[2])
    assert set(np.unique(label_map)) == {0, 1, 3}
    assert (label_map[1:5, 2:6] == 1).all()


def test_by_address_and_only_so_many(call, home):
    with publishing(home.masks("front"), lambda publisher: publish(publisher, list(range(20)))):
        answer = call("watch", home.masks("front"), "--max", 5)
    assert answer.code == 0, answer
    line = next(line for line in answer.out.splitlines() if "front" in line)
    assert "1 tracking, 3 tracking" in line
    assert "newer frame 5" in line


def test_the_address_of_the_control_socket_does_too(call, home):
    with publishing(home.masks("front"), whole_stream):
        answer = call("watch", home.control, "--stream", "front", "--json")
    assert json.loads(answer.out)["streams"]["front"]["frames"] == 10


def test_errors_are_one_line(call, home, tmp_path):
    assert "no pipeline 'gate'" in call("watch", "gate").error
    assert "no stream 'back'" in call("watch", "door", "--stream", "back").error
    assert "no form 'jpeg'" in call("watch", "door", "--form", "jpeg").error
    assert "no process listens at" in call("watch", f"ipc://{tmp_path}/x").error
    assert "no address" in call("watch", "tcp://127.0.0.1").error
    (tmp_path / "file").write_text("")
    assert "is a file" in call("watch", "door", "--save", tmp_path / "file" / "deeper").error


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_the_table(home, tmp_path, number, code):
    def endless(publisher: Publisher) -> None:
        seq = 0
        while process.poll() is None:
            publish(publisher, [seq])
            seq += 1

    command = [sys.executable, "-m", "streamvos.cli", "watch", home.masks("front"), "--save", str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        with publishing(home.masks("front"), endless):
            deadline = time.monotonic() + 60
            while not list(tmp_path.glob("front/0*.png")):
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, err
    assert any("front" in line for line in out.splitlines())


def test_streams_that_are_added_are_watched_too(call, monkeypatch):
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.1)
    with short_folder() as folder:
        monkeypatch.setattr(runtime, "_bases", lambda: [folder / "streamvos"])
        with Runtime.claim("door") as claimed:
            recorder = Recorder({"front": claimed.masks("front")})

            def front(publisher: Publisher) -> None:
                publish(publisher, [0])
                recorder.publish = {**recorder.publish, "side": claimed.masks("side")}

            with (
                serving(claimed.control, recorder),
                publishing(claimed.masks("front"), front),
                publishing(claimed.masks("side"), lambda one: publish(one, [0, 1]), "side"),
            ):
                report = json.loads(call("watch", "door", "--max", "3", "--json").out)
    assert {name: one["frames"] for name, one in report["streams"].items()} == {"front": 1, "side": 2}
