"""The pipeline's metrics for Prometheus, served by prometheus-client.

    with serve_metrics("9464", lambda: status) as url:       # http://127.0.0.1:9464/metrics
        ...

Nothing is kept here: each scrape turns the pipeline's last status into the library's metric families. The
status is read in a thread of the HTTP server, so it must not change afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from streamvos.pipeline.config.tables import parse_address
from streamvos.types import StreamvosError

STATES = ("starting", "running", "waiting", "paused", "recovering", "ended", "failed")
"""States of a stream; those that it is not in are 0, so that an alert can count on them."""

_QUANTILES = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}

Status = Mapping[str, Any]
_Samples = Mapping[tuple[str, ...], Any]  # values of the labels -> number or table; None = not known yet


@contextmanager
def serve_metrics(address: str | int, status: Callable[[], Status]) -> Iterator[str]:
    """Serve the metrics over HTTP within the block.

    Args:
        address: see `parse_address`; port 0 takes any free one. An address beyond the loopback is open to
            everybody who reaches it; metrics hold names of streams, no pictures or addresses.
        status: returns the pipeline's status, as `Dispatcher.status` makes it; called for every scrape.

    Yields:
        The URL of the metrics.

    Raises:
        InputError: the address has another form.
        StreamvosError: nothing can listen there.
    """
    host, port = parse_address(address)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector(status))
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StreamvosError(
            f"cannot serve metrics at {host}:{port}: {reason}; choose another port (0: any that is free)"
        ) from None
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{server.server_address[1]}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class StatusCollector(Collector):
    """Turns a status into metric families.

    Args:
        status: returns the pipeline's status.
    """

    def __init__(self, status: Callable[[], Status]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """The metrics of one scrape; without a status, `streamvos_up` is 0 and the only one."""
        up = GaugeMetricFamily("streamvos_up", "Whether the supervisor answers.")
        try:
            status = self._status()
        except Exception:  # a scrape that fails is no reason to lose the next one
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from _of_streams(status["streams"])
        workers = status["workers"]
        memory: _Samples = {(name,): one["beat"].get("memory") for name, one in workers.items()}
        yield _gauge("streamvos_resident_memory_bytes worker", "Resident memory of a worker.", memory)
        ready: _Samples = {(name,): one["up"] for name, one in workers.items()}
        yield _gauge("streamvos_worker_up worker", "Whether the worker is there and ready.", ready)
        restarts, refused = _pairs(status["restarts"]), _pairs(status["refused"])
        yield _counter(
            "streamvos_restarts stage reason", "Restarts of a stage's worker, by the reason.", restarts
        )
        yield _counter(
            "streamvos_refused_messages stage cause", "Messages that broke a rule, by cause.", refused
        )


def _of_streams(streams: Mapping[str, Status]) -> Iterator[Metric]:
    def each(key: str) -> _Samples:
        return {(name,): one[key] for name, one in streams.items()}

    def pairs(key: str) -> _Samples:
        return _pairs({name: one[key] for name, one in streams.items()})

    states: _Samples = {
        (name, word): word == one["state"] for name, one in streams.items() for word in STATES
    }
    yield _gauge("streamvos_stream_state stream state", "1 for the stream's state.", states)
    yield _gauge("streamvos_incarnation stream", "How often the stream was begun anew.", each("incarnation"))
    objects: _Samples = {(name,): len(one["objects"]) for name, one in streams.items()}
    yield _gauge("streamvos_objects stream", "Objects that are followed.", objects)
    yield _gauge("streamvos_sequence stream", "Number of the newest frame that was written.", each("seq"))
    yield _gauge("streamvos_frames_per_second stream", "Rate over the last seconds.", each("fps"))
    text = "For how long the stream has waited for its source or a disk; 0 if it does not."
    yield _gauge("streamvos_stream_waiting_seconds stream", text, each("waiting_seconds"))
    yield _counter("streamvos_frames stream", "Frames that were written.", each("frames"))
    yield _counter("streamvos_recoveries stream", "Times that the stream came back.", each("recoveries"))
    yield _counter(
        "streamvos_left_out_times stream", "Times that cannot be, and are in no latency.", each("left_out")
    )
    yield _counter(
        "streamvos_dropped_frames stream cause", "Frames that were dropped, by cause.", pairs("dropped")
    )
    yield _gauge("streamvos_queue_depth stream queue", "Frames that wait in a queue.", pairs("queues"))
    text = "Time that frames take, by what is measured (docs/pipeline.md)."
    yield _summary("streamvos_latency_seconds stream what", text, pairs("latencies"))
    text = "Time from the death of a stage to the first mask after it."
    yield _summary("streamvos_recovery_seconds stream", text, each("recovery_ms"))


def _pairs(tables: Mapping[str, Mapping[str, Any]]) -> _Samples:
    return {(name, what): value for name, table in tables.items() for what, value in table.items()}


def _gauge(name_and_labels: str, text: str, samples: _Samples) -> Metric:
    name, *labels = name_and_labels.split()
    return _filled(GaugeMetricFamily(name, text, labels=labels), samples)


def _counter(name_and_labels: str, text: str, samples: _Samples) -> Metric:
    name, *labels = name_and_labels.split()
    return _filled(CounterMetricFamily(name, text, labels=labels), samples)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, samples: _Samples) -> Metric:
    for labels, value in samples.items():
        if value is not None:  # not known yet
            family.add_metric(labels, value)
    return family


def _summary(name_and_labels: str, text: str, tables: _Samples) -> Metric:
    """Count, sum and quantiles in seconds of tables in ms; the library's own summaries have no quantiles."""
    name, *labels = name_and_labels.split()
    family = SummaryMetricFamily(name, text, labels=labels)
    for values, one in tables.items():
        if one is not None:
            family.add_metric(values, one["count"], one["count"] * one["mean"] / 1e3)
            for key, quantile in _QUANTILES.items():
                named = dict(zip(labels, values, strict=True))
                family.add_sample(family.name, {**named, "quantile": quantile}, one[key] / 1e3)
    return family
