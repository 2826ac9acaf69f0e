"""The metrics' endpoint, read as Prometheus reads it: over HTTP, through the library's own parser."""

from __future__ import annotations

import os
import socket
import time
import urllib.error
import urllib.request

import pytest
from fake_pipeline import FakePipeline, stream
from prometheus_client.parser import text_string_to_metric_families

from streamvos.pipeline.config.tables import parse_address
from streamvos.pipeline.telemetry.prometheus import CONNECTIONS, STATES, serve_metrics
from streamvos.pipeline.telemetry.statistics import STAGES
from streamvos.types import InputError, StreamvosError


def times(at, work):
    """One stage after the other."""
    return {stage: [at + k * work, at + k * work, at + (k + 1) * work] for k, stage in enumerate(STAGES)}


@pytest.fixture(scope="module")
def snapshot():
    """The status of a pipeline that has recovered once."""
    pipeline = FakePipeline(stream("front"), stream("back"), placement="split")
    pipeline.begin()
    at, wall = 10**12, pipeline.observation
    for seq in range(9):  # five of them are left out of the latencies
        frame = [seq, at + seq * 10**7, times(at + seq * 10**7, 2_000_000), {"newer frame": 1}, False]
        wall.frames("front", 1, [frame])
    pipeline.process("memory.front").die(-9)
    pipeline.watch()
    back = round(pipeline.now * 1e9) + 250_000_000
    wall.frames("front", 2, [[9, back, times(back, 0), {}, True]])
    for _ in range(2):
        wall.died("memory.front", ("memory.front",), "hung for 3 s: and more", [])
    for _ in range(5):
        wall.refuse("dtype")
    pipeline.revive("memory.front")
    pipeline.reset_done("front")
    pipeline.beat("memory.front", memory_front={"objects": [1, 2, 3]})
    pipeline.beat("sinks.front", sinks_front={"queues": {"labels queue": 4}})
    pipeline.process("source.back").die(1)
    pipeline.watch()
    return pipeline.dispatcher.status


def scrape(status):
    """{(sample name, labels): value} as Prometheus reads them."""
    with serve_metrics("0", status) as url, urllib.request.urlopen(url, timeout=20) as reply:
        text = reply.read().decode()
    families = text_string_to_metric_families(text)
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


def test_every_metric_of_the_manual_is_there(snapshot):
    told = scrape(snapshot)
    front = ("stream", "front")
    assert told["streamvos_frames_total", front] == 10
    assert told["streamvos_incarnation", front] == 2
    assert told["streamvos_objects", front] == 3
    assert told["streamvos_sequence", front] == 9
    assert ("streamvos_sequence", ("stream", "back")) not in told  # it has written nothing yet
    assert told["streamvos_recoveries_total", front] == 1
    assert told["streamvos_left_out_times_total", front] == 0
    assert told["streamvos_stream_waiting_seconds", front] == 0
    assert told["streamvos_dropped_frames_total", ("cause", "newer frame"), front] == 9
    assert told["streamvos_queue_depth", ("queue", "labels queue"), front] == 4
    memory = ("stage", "memory.front")
    assert told["streamvos_restarts_total", ("reason", "signal 9 (SIGKILL)"), memory] == 1
    assert told["streamvos_restarts_total", ("reason", "hung for 3 s"), memory] == 2
    assert told["streamvos_refused_messages_total", ("cause", "dtype"), ("stage", "supervisor")] == 5
    assert told["streamvos_worker_up", ("worker", "memory.front")] == 1
    assert told["streamvos_worker_up", ("worker", "source.back")] == 0
    assert told["streamvos_resident_memory_bytes", ("worker", "sinks.front")] == 10**6
    assert told["streamvos_recovery_seconds_count", front] == 1
    assert told["streamvos_recovery_seconds_sum", front] == pytest.approx(0.25)


def test_latencies_have_quantiles_in_seconds(snapshot):
    told = scrape(snapshot)
    labels = (("stream", "front"), ("what", "memory"))
    quantile = told[("streamvos_latency_seconds", ("quantile", "0.95"), *labels)]
    assert quantile == pytest.approx(0.002, rel=0.011)  # 1 percent is the histogram's bound
    assert told[("streamvos_latency_seconds_count", *labels)] == 4
    assert told[("streamvos_latency_seconds_sum", *labels)] == pytest.approx(0.008)
    whats = {dict(labels)["what"] for name, *labels in told if name == "streamvos_latency_seconds_count"}
    assert {"glass to mask", "glass to written", "extractor wait", "source to extractor", *STAGES} <= whats


def test_a_stream_is_in_one_state(snapshot):
    told = scrape(snapshot)
    states = {
        (dict(labels)["state"], v)
        for (name, *labels), v in told.items()
        if name == "streamvos_stream_state" and ("stream", "front") in labels
    }
    assert {state for state, _ in states} == set(STATES)
    assert [state for state, value in states if value] == ["running"]


def test_names_of_streams_are_escaped(snapshot):
    status = snapshot()
    odd = 'odd "name"\n\\'
    status["streams"] = {odd: status["streams"]["front"]}
    assert scrape(lambda: status)["streamvos_frames_total", ("stream", odd)] == 10


def test_it_listens_on_the_loopback_and_stops(snapshot):
    with serve_metrics(0, snapshot) as url:
        assert url.startswith("http://127.0.0.1:")
        assert url.endswith("/metrics")
        port = int(url.removesuffix("/metrics").rpartition(":")[2])
        assert urllib.request.urlopen(url, timeout=20).status == 200
        with pytest.raises(StreamvosError, match="choose another port"), serve_metrics(port, snapshot):
            pass
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=20)
    with socket.socket() as free:  # the port is free again at once
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))


def test_a_crowd_of_idle_connections_takes_few_descriptors_and_does_not_shut_out_the_next(snapshot):
    with serve_metrics(0, snapshot) as url:
        address = ("127.0.0.1", int(url.removesuffix("/metrics").rpartition(":")[2]))
        before = len(os.listdir("/proc/self/fd"))
        idle = [socket.create_connection(address) for _ in range(50)]
        assert urllib.request.urlopen(url, timeout=20).status == 200
        deadline = time.monotonic() + 20
        while len(os.listdir("/proc/self/fd")) > before + len(idle) + CONNECTIONS:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for one in idle:
            one.close()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9464", ("127.0.0.1", 9464)),
        (9464, ("127.0.0.1", 9464)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:9464", ("::1", 9464)),
    ],
)
def test_addresses(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", ":", "x", "host:", ":9", "65536", "-1", "1.5", True, "a b:3", "::1:9", "tcp://a:3"]
)
def test_addresses_that_are_none(text):
    with pytest.raises(InputError, match="expected PORT or HOST:PORT"):
        parse_address(text)
