"""The pipeline's metrics for Prometheus, served by prometheus-client.

    with serve_metrics("9464", lambda: status) as url:       # http://127.0.0.1:9464/metrics
        ...

Nothing is kept here: each scrape turns the pipeline's last status into the library's metric families. The
status is asked for in a thread of the HTTP server, so it must be one that nobody changes any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from streamvos.pipeline.config.supervision import parse_address
from streamvos.types import StreamvosError

STATES = ("starting", "running", "waiting", "paused", "recovering", "ended", "failed")
"""States of a stream; those that it is not in are 0, so that an alert can count on them."""

_QUANTILES = {"p50": "0.5", "p95": "0.95", "p99": "0.99"}

Status = Mapping[str, Any]
_Samples = Iterable[tuple[tuple[str, ...], float | None]]


@contextmanager
def serve_metrics(address: str | int, status: Callable[[], Status]) -> Iterator[str]:
    """Serve the metrics over HTTP within the block.

    Args:
        address: see `parse_address`; port 0 takes any free one. An address beyond the loopback is open to
            everybody who reaches it; metrics hold names of streams, no pictures or addresses.
        status: returns the pipeline's status, as `StreamManager.status` makes it; called for every scrape.

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
        try:
            status = self._status()
        except Exception:  # a scrape that fails is no reason to lose the next one
            yield GaugeMetricFamily("streamvos_up", "Whether the supervisor answers.", value=0)
            return
        yield GaugeMetricFamily("streamvos_up", "Whether the supervisor answers.", value=1)
        yield from _of_streams(status["streams"])
        workers = status["workers"].items()
        yield _gauge(
            "streamvos_resident_memory_bytes",
            "Resident memory of a worker.",
            ["worker"],
            (((name,), one["beat"].get("memory")) for name, one in workers),
        )
        yield _gauge(
            "streamvos_worker_up",
            "Whether the worker is there and ready.",
            ["worker"],
            (((name,), one["up"]) for name, one in workers),
        )
        yield _counter(
            "streamvos_restarts",
            "Restarts of a stage's worker, by the reason.",
            ["stage", "reason"],
            _pairs(status["restarts"]),
        )
        yield _counter(
            "streamvos_refused_messages",
            "Messages that broke a rule of the protocol, by cause.",
            ["stage", "cause"],
            _pairs(status["refused"]),
        )


def _of_streams(streams: Mapping[str, Status]) -> Iterator[Metric]:
    def each(key: str) -> _Samples:
        return (((name,), one[key]) for name, one in streams.items())

    def tables(key: str) -> dict[str, Any]:
        return {name: one[key] for name, one in streams.items()}

    label = ["stream"]
    states = (((name, word), word == one["state"]) for name, one in streams.items() for word in STATES)
    yield _gauge("streamvos_stream_state", "1 for the stream's state.", ["stream", "state"], states)
    yield _gauge("streamvos_incarnation", "How often the stream was begun anew.", label, each("incarnation"))
    objects = (((name,), len(one["objects"])) for name, one in streams.items())
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
    dropped, queues = _pairs(tables("dropped")), _pairs(tables("queues"))
    yield _counter(
        "streamvos_dropped_frames", "Frames that were dropped, by cause.", ["stream", "cause"], dropped
    )
    yield _gauge("streamvos_queue_depth", "Frames that wait in a queue.", ["stream", "queue"], queues)
    latencies = SummaryMetricFamily(
        "streamvos_latency_seconds",
        "Time that frames take, by what is measured (docs/pipeline.md).",
        labels=["stream", "what"],
    )
    for name, table in tables("latencies").items():
        for what, one in table.items():
            _add_summary(latencies, {"stream": name, "what": what}, one)
    yield latencies
    recoveries = SummaryMetricFamily(
        "streamvos_recovery_seconds",
        "Time from the death of a stage to the first mask after it.",
        labels=label,
    )
    for name, one in tables("recovery_ms").items():
        if one is not None:
            _add_summary(recoveries, {"stream": name}, one)
    yield recoveries


def _gauge(name: str, text: str, labels: list[str], samples: _Samples) -> Metric:
    return _filled(GaugeMetricFamily(name, text, labels=labels), samples)


def _counter(name: str, text: str, labels: list[str], samples: _Samples) -> Metric:
    return _filled(CounterMetricFamily(name, text, labels=labels), samples)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, samples: _Samples) -> Metric:
    for labels, value in samples:
        if value is not None:  # not known yet
            family.add_metric(labels, value)
    return family


def _pairs(tables: Mapping[str, Mapping[str, float]]) -> _Samples:
    return (((name, what), value) for name, table in tables.items() for what, value in table.items())


def _add_summary(family: SummaryMetricFamily, labels: dict[str, str], one: Mapping[str, Any]) -> None:
    """Count, sum and quantiles in seconds of a table in ms; the library's own summaries have no quantiles."""
    family.add_metric(list(labels.values()), one["count"], one["count"] * one["mean"] / 1e3)
    for key, quantile in _QUANTILES.items():
        family.add_sample(family.name, {**labels, "quantile": quantile}, one[key] / 1e3)
