"""The pipeline's metrics for Prometheus: an endpoint that tells what the supervisor knows.

    endpoint = Endpoint.start("9464", collect)       # http://127.0.0.1:9464/metrics
    endpoint.close()

Nothing is kept here: at every scrape, `collect` gives a snapshot, and the snapshot is told. Its form (every
key may be missing; what is None or of another type is left out):

    {
        "pipeline": "door",
        "streams": {
            "front": {
                "state": "running",                       # any word; see STATES
                "incarnation": 2, "seq": 812, "objects": [1, 2],             # or their number
                "restarts": 1,
                "queues": {"labels": 3, ...},             # frames that wait, by the queue's name
                **StreamStatistics().summary(),           # frames, fps, dropped, recoveries, latencies, ...
            },
        },
        "workers": {"compute": {"pid": 4711, "memory": 5 * 10**8, "up": True}},  # bytes; else read by the pid
        "restarts": {"memory.front": {"signal 9": 1}},    # stage or worker -> reason -> times
        "refused": {"extractor": {"dtype": 3}},           # who refused -> cause -> messages
    }

`collect` is called in a thread of the HTTP server: it should return what the supervisor's own thread made
last, or copies.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamvos.types import InputError, StreamvosError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

LOOPBACK = "127.0.0.1"

STATES = ("starting", "running", "waiting", "paused", "recovering", "ended", "failed")
"""States of a stream that are told as 0 even if none is in them, so that an alert can count on them."""

_QUANTILES = (("p50", "0.5"), ("p95", "0.95"), ("p99", "0.99"))


class EndpointError(StreamvosError, RuntimeError):
    """The metrics' endpoint cannot be opened."""


def parse_address(text: str | int) -> tuple[str, int]:
    """Host and port from "9464", 9464, "0.0.0.0:9464" or "[::1]:9464"; without a host, the loopback.

    Raises:
        InputError: another form, or no port from 0 (any that is free) to 65535.
    """
    match = re.fullmatch(
        r"(?:(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[A-Za-z0-9_.-]+):)?(?P<port>[0-9]{1,5})", str(text).strip()
    )
    if isinstance(text, bool) or match is None or int(match["port"]) > 65535:
        raise InputError(
            f"the metrics' address is {text!r}; expected PORT or HOST:PORT, such as 9464 or 0.0.0.0:9464"
        )
    return (match["host"] or LOOPBACK).strip("[]"), int(match["port"])


def resident_bytes(pid: int) -> int | None:
    """Memory of a process that is resident, shared pages included; None where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return None


class Endpoint:
    """An HTTP server in a thread of its own.

    Attributes:
        host, port: where it listens.
        url: of the metrics.
    """

    def __init__(self, host: str, port: int, server: Any, thread: threading.Thread) -> None:
        self.host, self.port = host, port
        self._server, self._thread = server, thread

    @classmethod
    def start(cls, address: str | int, collect: Callable[[], Mapping[str, Any]]) -> Endpoint:
        """Listen.

        Args:
            address: see `parse_address`; port 0 is any that is free. An address beyond the loopback is open
                to everybody who reaches it; metrics hold names of streams, no pictures or addresses.
            collect: see the head of this module; called once for every scrape.

        Raises:
            InputError: no such address.
            EndpointError: it is taken, or prometheus-client is not installed.
        """
        host, port = parse_address(address)
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError:
            raise EndpointError(
                "the metrics' endpoint needs prometheus-client; pip install 'streamvos[pipeline]' brings it"
            ) from None
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(collect))
        try:
            server, thread = start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise EndpointError(
                f"cannot serve metrics at {host}:{port}: {reason}; choose another port (0: any that is free)"
            ) from None
        return cls(host, int(server.server_address[1]), server, thread)

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop listening. Closing twice does no harm."""
        ending = threading.Thread(target=self._server.shutdown, daemon=True)
        ending.start()
        with contextlib.suppress(OSError):  # it looks up twice a second, or when somebody calls
            socket.create_connection(self._server.server_address[:2], timeout=0.1).close()
        ending.join(timeout=5)
        with contextlib.suppress(OSError):
            self._server.server_close()
        self._thread.join(timeout=5)


start = Endpoint.start


class _Collector:
    """Tells a snapshot in the words of prometheus-client."""

    def __init__(self, collect: Callable[[], Mapping[str, Any]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        """One scrape; a snapshot that cannot be had is told as `streamvos_up` 0."""
        from prometheus_client.core import GaugeMetricFamily

        try:
            snapshot = self._collect()
        except Exception:  # a scrape that fails is no reason to lose the next one
            snapshot = None
        usable = isinstance(snapshot, Mapping)
        yield GaugeMetricFamily("streamvos_up", "Whether the supervisor answers.", value=float(usable))
        if usable:
            assert snapshot is not None
            yield from _of_streams(_tables(snapshot, "streams"))
            yield from _of_workers(_tables(snapshot, "workers"))
            yield _counter(
                "streamvos_restarts",
                "Restarts of a stage's worker, by the reason.",
                ["stage", "reason"],
                _pairs(snapshot, "restarts"),
            )
            yield _counter(
                "streamvos_refused_messages",
                "Messages that broke a rule of the protocol, by cause.",
                ["stage", "cause"],
                _pairs(snapshot, "refused"),
            )


def _of_streams(streams: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    label = ["stream"]

    def each(key: str) -> list[tuple[list[str], float]]:
        return [
            ([name], value) for name, one in streams.items() if (value := _number(one.get(key))) is not None
        ]

    yield _state(streams)
    yield _gauge("streamvos_incarnation", "How often the stream was begun anew.", label, each("incarnation"))
    objects = [([name], n) for name, one in streams.items() if (n := _length(one.get("objects"))) is not None]
    yield _gauge("streamvos_objects", "Objects that are followed.", label, objects)
    yield _gauge("streamvos_sequence", "Number of the newest frame that was written.", label, each("seq"))
    yield _gauge("streamvos_frames_per_second", "Rate over the last seconds.", label, each("fps"))
    yield _gauge(
        "streamvos_stream_waiting_seconds",
        "For how long the stream has waited for its source or a disk; 0 if it does not.",
        label,
        each("waiting_seconds"),
    )
    yield _counter("streamvos_frames", "Frames that were written.", label, each("frames"))
    yield _counter("streamvos_recoveries", "Times that the stream came back.", label, each("recoveries"))
    yield _counter(
        "streamvos_left_out_times", "Times that cannot be, and are in no latency.", label, each("left_out")
    )
    dropped = [([s, cause], n) for s, one in streams.items() for cause, n in _numbers(one.get("dropped"))]
    yield _counter(
        "streamvos_dropped_frames", "Frames that were dropped, by cause.", ["stream", "cause"], dropped
    )
    queues = [([s, queue], n) for s, one in streams.items() for queue, n in _numbers(one.get("queues"))]
    yield _gauge("streamvos_queue_depth", "Frames that wait in a queue.", ["stream", "queue"], queues)
    yield _summary(
        "streamvos_latency_seconds",
        "Time that frames take, by what is measured (docs/pipeline.md).",
        ["stream", "what"],
        [
            ([s, what], one)
            for s, table in streams.items()
            for what, one in _tables(table, "latencies").items()
        ],
    )
    yield _summary(
        "streamvos_recovery_seconds",
        "Time from the death of a stage to the first mask after it.",
        label,
        [
            ([s], table["recovery_ms"])
            for s, table in streams.items()
            if isinstance(table.get("recovery_ms"), Mapping)
        ],
    )


def _state(streams: Mapping[str, Mapping[str, Any]]) -> Metric:
    values = []
    for name, one in streams.items():
        state = one.get("state")
        if isinstance(state, str):
            values += [([name, word], float(word == state)) for word in dict.fromkeys((*STATES, state))]
    return _gauge(
        "streamvos_stream_state", "1 for the state that the stream is in.", ["stream", "state"], values
    )


def _of_workers(workers: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    memory, alive = [], []
    for name, one in workers.items():
        pid, bytes_ = one.get("pid"), _number(one.get("memory"))
        if bytes_ is None and isinstance(pid, int) and pid > 0:
            bytes_ = _number(resident_bytes(pid))
        if bytes_ is not None:
            memory.append(([name], bytes_))
        if isinstance(one.get("up"), bool):
            alive.append(([name], float(one["up"])))
    yield _gauge("streamvos_resident_memory_bytes", "Resident memory of a worker.", ["worker"], memory)
    yield _gauge("streamvos_worker_up", "Whether the worker is there and ready.", ["worker"], alive)


_Values = Iterable[tuple[list[str], float]]


def _gauge(name: str, text: str, labels: list[str], values: _Values) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    metric = GaugeMetricFamily(name, text, labels=labels)
    for names, value in values:
        metric.add_metric(names, value)
    return metric


def _counter(name: str, text: str, labels: list[str], values: _Values) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    metric = CounterMetricFamily(name, text, labels=labels)
    for names, value in values:
        metric.add_metric(names, value)
    return metric


def _summary(
    name: str, text: str, labels: list[str], tables: Iterable[tuple[list[str], Mapping[str, Any]]]
) -> Metric:
    """Quantiles as Prometheus has them; the library's own family of summaries has none."""
    from prometheus_client.core import SummaryMetricFamily

    metric = SummaryMetricFamily(name, text, labels=labels)
    for names, table in tables:
        count, mean = _number(table.get("count")), _number(table.get("mean"))
        if count is None or mean is None:
            continue
        metric.add_metric(names, count_value=int(count), sum_value=count * mean / 1e3)
        for key, quantile in _QUANTILES:
            value = _number(table.get(key))
            if value is not None:
                named = dict(zip(labels, names, strict=True))
                metric.add_sample(name, {**named, "quantile": quantile}, value / 1e3)
    return metric


def _tables(values: Mapping[str, Any], key: str) -> dict[str, Mapping[str, Any]]:
    found = values.get(key)
    if not isinstance(found, Mapping):
        return {}
    return {str(name): one for name, one in found.items() if isinstance(one, Mapping)}


def _pairs(values: Mapping[str, Any], key: str) -> list[tuple[list[str], float]]:
    return [([name, what], n) for name, table in _tables(values, key).items() for what, n in _numbers(table)]


def _numbers(table: Any) -> list[tuple[str, float]]:
    if not isinstance(table, Mapping):
        return []
    return [(str(name), number) for name, one in table.items() if (number := _number(one)) is not None]


def _length(value: Any) -> float | None:
    """How many, told as a number or as a list of them."""
    return float(len(value)) if isinstance(value, (list, tuple)) else _number(value)


def _number(value: Any) -> float | None:
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None
