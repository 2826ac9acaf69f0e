"""The metrics' endpoint, read as Prometheus reads it: over HTTP, through the library's own parser."""

from __future__ import annotations

import os
import socket
import urllib.error
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from streamvos.pipeline.telemetry.prometheus import (
    STATES,
    Endpoint,
    EndpointError,
    parse_address,
    resident_bytes,
)
from streamvos.pipeline.telemetry.statistics import STAGES, StreamStatistics
from streamvos.types import InputError


def summary():
    statistics = StreamStatistics(warm_up=0)
    for seq in range(4):
        at = 10**12 + seq * 10**7
        stamps = {stage: [at, at, at + 2_000_000] for stage in STAGES}
        statistics.add([[seq, at, stamps, {"newer frame": 1}, False]], 1)
    statistics.interrupted(10**12)
    at = 10**12 + 250_000_000
    statistics.add([[4, at, {stage: [at, at, at] for stage in STAGES}, {}, True]], 2)
    return statistics.summary()


def snapshot():
    return {
        "pipeline": "door",
        "streams": {
            "front": {
                "state": "running",
                "incarnation": 2,
                "objects": 3,
                "queues": {"labels": 4},
                **summary(),
            },
            'odd "name"\n': {"state": "paused", "seq": 0},
        },
        "workers": {
            "compute": {"pid": os.getpid(), "up": True},
            "source.front": {"memory": 1000, "up": False},
        },
        "restarts": {"memory.front": {"signal 9": 2, "hung": 1}},
        "refused": {"extractor": {"dtype": 5}},
    }


@pytest.fixture
def scrape():
    """scrape(collect) -> {(sample name, labels): value}; endpoints are closed whatever happens."""
    opened = []

    def read(collect):
        endpoint = Endpoint.start("0", collect)
        opened.append(endpoint)
        with urllib.request.urlopen(endpoint.url, timeout=20) as reply:
            text = reply.read().decode()
        families = text_string_to_metric_families(text)
        return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}

    yield read
    for endpoint in opened:
        endpoint.close()


def test_everything_that_is_known_is_told(scrape):
    told = scrape(snapshot)
    front = ("stream", "front")
    assert told["streamvos_up",] == 1
    assert told["streamvos_frames_total", front] == 5
    assert told["streamvos_incarnation", front] == 2
    assert told["streamvos_objects", front] == 3
    assert told["streamvos_sequence", front] == 4
    assert told["streamvos_recoveries_total", front] == 1
    assert told["streamvos_dropped_frames_total", ("cause", "newer frame"), front] == 4
    assert told["streamvos_queue_depth", ("queue", "labels"), front] == 4
    assert told["streamvos_restarts_total", ("reason", "signal 9"), ("stage", "memory.front")] == 2
    assert told["streamvos_refused_messages_total", ("cause", "dtype"), ("stage", "extractor")] == 5
    assert told["streamvos_worker_up", ("worker", "compute")] == 1
    assert told["streamvos_worker_up", ("worker", "source.front")] == 0
    assert told["streamvos_resident_memory_bytes", ("worker", "source.front")] == 1000
    assert told["streamvos_resident_memory_bytes", ("worker", "compute")] > 10**6  # read from the process
    assert told["streamvos_recovery_seconds_count", front] == 1
    assert told["streamvos_recovery_seconds_sum", front] == pytest.approx(0.25)


def test_latencies_have_quantiles_in_seconds(scrape):
    told = scrape(snapshot)
    labels = (("stream", "front"), ("what", "memory"))
    quantile = told[("streamvos_latency_seconds", ("quantile", "0.95"), *labels)]
    assert quantile == pytest.approx(0.002, rel=0.011)  # 1 percent is the histogram's bound
    assert told[("streamvos_latency_seconds_count", *labels)] == 5
    assert told[("streamvos_latency_seconds_sum", *labels)] == pytest.approx(0.008)
    whats = {dict(labels)["what"] for name, *labels in told if name == "streamvos_latency_seconds_count"}
    assert {"glass to mask", "glass to written", "extractor wait", "source to extractor", *STAGES} <= whats


def test_a_stream_is_in_one_state(scrape):
    told = scrape(snapshot)
    states = {
        (dict(labels)["state"], v)
        for (name, *labels), v in told.items()
        if name == "streamvos_stream_state" and ("stream", "front") in labels
    }
    assert {state for state, _ in states} == set(STATES)
    assert [state for state, value in states if value] == ["running"]


@pytest.mark.parametrize(
    "given",
    [
        {},
        None,
        [],
        {"streams": None, "workers": 3, "restarts": [], "refused": {"x": None}},
        {
            "streams": {
                "a": None,
                "b": {"latencies": {"x": {"count": "many"}}, "fps": float("nan"), "state": 7},
            }
        },
        {
            "workers": {"a": {"pid": "x"}, "b": {"pid": 2**30}, "c": {"memory": True}},
            "restarts": {"a": {"b": "c"}},
        },
    ],
)
def test_what_is_missing_or_odd_is_left_out(scrape, given):
    told = scrape(lambda: given)
    assert told["streamvos_up",] == float(isinstance(given, dict))
    assert len(told) == 1


def test_a_collector_that_fails_is_told_and_may_recover(scrape):
    broken = True

    def collect():
        if broken:
            raise RuntimeError("not yet")
        return snapshot()

    assert scrape(collect) == {("streamvos_up",): 0}
    broken = False
    assert len(scrape(collect)) > 50


def test_it_listens_on_the_loopback_and_stops():
    endpoint = Endpoint.start(0, dict)
    try:
        assert endpoint.host == "127.0.0.1"
        assert endpoint.port > 0
        assert endpoint.url == f"http://127.0.0.1:{endpoint.port}/metrics"
        assert urllib.request.urlopen(endpoint.url, timeout=20).status == 200
        with pytest.raises(EndpointError, match="choose another port"):
            Endpoint.start(endpoint.port, dict)
    finally:
        endpoint.close()
        endpoint.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(endpoint.url, timeout=20)
    with socket.socket() as free:  # the port can be had again at once
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", endpoint.port))


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


def test_memory_of_a_process():
    assert resident_bytes(os.getpid()) > 10**6
    assert resident_bytes(2**30) is None
