"""The pipeline's metrics for Prometheus, served by prometheus-client.

    with serve_metrics("9464", lambda: status) as url:       # http://127.0.0.1:9464/metrics
        ...

Nothing is stored here: each scrape turns the pipeline's last status into the library's metric families. The
HTTP server reads the status in a thread of its own, so it must not change afterwards.
"""

from __future__ import annotations

import io
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from streamvos.pipeline.config.tables import parse_address
from streamvos.types import StreamvosError

CONNECTIONS = 8
"""How many connections are served at a time."""

IDLE_SECONDS = 5.0
"""A client that sends or takes nothing for so long is left."""

STATES = ("starting", "running", "waiting", "paused", "recovering", "ended", "failed")
"""States of a stream. Every one is exported, those it is not in as 0, so that alerts can rely on them."""

_QUANTILES = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}

Status = Mapping[str, Any]
_Samples = Mapping[Any, Any]  # tuple of the labels' values -> number or table; None = not known yet


@contextmanager
def serve_metrics(address: str | int, status: Callable[[], Status]) -> Iterator[str]:
    """Serve the metrics over HTTP within the block.

    Args:
        address: see `parse_address`; port 0 takes any free one. An address beyond the loopback is open to
            everybody who reaches it; metrics contain names of streams, but no images or addresses.
        status: returns the pipeline's status, as `Dispatcher.status` makes it; called for every scrape.

    Yields:
        The URL of the metrics.

    Raises:
        InputError: the address has another form.
        StreamvosError: nothing can listen there.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StatusCollector(status))
    with serve_app(address, make_wsgi_app(registry), "metrics") as url:
        yield f"{url}/metrics"


@contextmanager
def serve_app(address: str | int, app: Any, what: str) -> Iterator[str]:
    """Serve a WSGI application over HTTP within the block, to few connections at a time.

    Args:
        address: as for `serve_metrics`.
        app: the application.
        what: what it is, for messages.

    Yields:
        Its URL, without a path.

    Raises:
        InputError: the address has another form.
        StreamvosError: nothing can listen there.
    """
    host, port = parse_address(address)
    try:
        server = _Server((host, port), app)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StreamvosError(
            f"cannot serve the {what} at {host}:{port}: {reason}; choose another port (0: any that is free)"
        ) from None
    thread = threading.Thread(target=server.serve_forever, name=what, daemon=True)
    thread.start()
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def metrics_text(status: Status) -> bytes:
    """The metrics of one status in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StatusCollector(lambda: status))
    return generate_latest(registry)


class _Handler(WSGIRequestHandler):
    """Serves one connection."""

    timeout = IDLE_SECONDS

    def log_message(self, format: str, *args: object) -> None:
        """Write nothing: whoever can connect could fill the log."""

    def get_stderr(self) -> io.StringIO:
        """Where wsgiref writes tracebacks; the client is told of a failure, too."""
        return io.StringIO()


class _Server(ThreadingMixIn, WSGIServer):
    """An HTTP server with few connections at a time: one too many ends the oldest."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], app: Any):
        family, *_, place = next(iter(socket.getaddrinfo(*address, type=socket.SOCK_STREAM)))
        self.address_family = family
        self._connections: deque[socket.socket] = deque()  # the oldest first
        self._lock = threading.Lock()
        super().__init__((str(place[0]), int(place[1])), _Handler)
        self.set_app(app)

    def server_bind(self) -> None:
        """Bind, without asking the network for this host's name, as the base class does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own; the oldest one of too many ends."""
        with self._lock:
            if len(self._connections) == CONNECTIONS:
                with suppress(OSError):  # its thread closes it
                    self._connections.popleft().shutdown(socket.SHUT_RDWR)
            self._connections.append(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End a connection that was served."""
        with self._lock, suppress(ValueError):
            self._connections.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing: the client hung up, or sent no HTTP."""


class _StatusCollector(Collector):
    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """The metrics of one scrape."""
        status = self._status()
        streams, workers = status["streams"], status["workers"]

        def each(key: str) -> _Samples:
            return {(name,): one[key] for name, one in streams.items()}

        def pairs(key: str) -> _Samples:
            return _pairs({name: one[key] for name, one in streams.items()})

        states = {(name, word): word == one["state"] for name, one in streams.items() for word in STATES}
        yield _metric(Gauge, "stream_state stream state", "1 for the stream's state.", states)
        yield _metric(Gauge, "incarnation stream", "Incarnations so far.", each("incarnation"))
        objects = {(name,): len(one["objects"]) for name, one in streams.items()}
        yield _metric(Gauge, "objects stream", "Tracked objects.", objects)
        yield _metric(Gauge, "sequence stream", "Number of the newest written frame.", each("seq"))
        yield _metric(Gauge, "frames_per_second stream", "Rate over the last seconds.", each("fps"))
        text = "For how long the stream has waited for its source or a disk; 0 if it does not wait."
        yield _metric(Gauge, "stream_waiting_seconds stream", text, each("waiting_seconds"))
        yield _metric(Counter, "frames stream", "Written frames.", each("frames"))
        yield _metric(Counter, "recoveries stream", "Recoveries of the stream.", each("recoveries"))
        yield _metric(Counter, "left_out_times stream", "Impossible times, in no latency.", each("left_out"))
        yield _metric(Counter, "dropped_frames stream cause", "Dropped frames by cause.", pairs("dropped"))
        yield _metric(Gauge, "queue_depth stream queue", "Frames that wait in a queue.", pairs("queues"))
        text = "Time that frames take, by what is measured (docs/pipeline.md)."
        yield _summary("latency_seconds stream what", text, pairs("latencies"))
        text = "Time from the death of a stage to the first mask after it."
        yield _summary("recovery_seconds stream", text, each("recovery_ms"))
        memory = {(name,): one["beat"].get("memory") for name, one in workers.items()}
        yield _metric(Gauge, "resident_memory_bytes worker", "Resident memory of a worker.", memory)
        ready = {(name,): one["up"] for name, one in workers.items()}
        yield _metric(Gauge, "worker_up worker", "Whether the worker is ready.", ready)
        restarts, refused = _pairs(status["restarts"]), _pairs(status["refused"])
        yield _metric(Counter, "restarts stage reason", "Restarts of a stage's worker.", restarts)
        yield _metric(Counter, "refused_messages stage cause", "Messages that broke a rule.", refused)


def _pairs(tables: Mapping[str, Mapping[str, Any]]) -> _Samples:
    return {(name, what): value for name, table in tables.items() for what, value in table.items()}


def _metric(kind: type[Gauge | Counter], name_and_labels: str, text: str, samples: _Samples) -> Metric:
    name, *labels = name_and_labels.split()
    family = kind(f"streamvos_{name}", text, labels=labels)
    for values, sample in samples.items():
        if sample is not None:
            family.add_metric(values, sample)
    return family


def _summary(name_and_labels: str, text: str, tables: _Samples) -> Metric:
    """Count, sum and quantiles in seconds of tables in ms; the library's own summaries have no quantiles."""
    name, *labels = name_and_labels.split()
    family = SummaryMetricFamily(f"streamvos_{name}", text, labels=labels)
    for values, one in tables.items():
        if one is not None:
            family.add_metric(values, one["count"], one["count"] * one["mean"] / 1e3)
            for key, quantile in _QUANTILES.items():
                named = dict(zip(labels, values, strict=True))
                family.add_sample(family.name, {**named, "quantile": quantile}, one[key] / 1e3)
    return family
