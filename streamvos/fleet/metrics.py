"""The metrics of all pipelines of a fleet as one scrape, and those of the fleet itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from streamvos.pipeline.telemetry.prometheus import metrics_text


def fleet_metrics(shown: Mapping[str, Any]) -> bytes:
    """The metrics of a `Fleet.overview` in Prometheus' text format.

    Streams keep their names, which are the fleet's; workers and stages are prefixed with their share.
    """
    merged: dict[str, dict[str, Any]] = {"streams": {}, "workers": {}, "restarts": {}, "refused": {}}
    for share, status in sorted(shown["pipelines"].items()):
        own = {name for name, one in shown["streams"].items() if one["share"] == share}
        merged["streams"] |= {name: one for name, one in status["streams"].items() if name in own}
        for kind in ("workers", "restarts", "refused"):
            merged[kind] |= {f"{share}/{name}": one for name, one in status[kind].items()}
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_FleetCollector(shown))
    return metrics_text(merged) + generate_latest(registry)


class _FleetCollector(Collector):
    def __init__(self, shown: Mapping[str, Any]) -> None:
        self._shown = shown

    def collect(self) -> Iterator[Metric]:
        """The metrics of one scrape."""
        streams, shares = self._shown["streams"], self._shown["shares"]
        up = GaugeMetricFamily(
            "streamvos_fleet_share_up", "Whether a share answers.", labels=["share", "machine"]
        )
        used = GaugeMetricFamily("streamvos_fleet_share_used", "The used part of a share.", labels=["share"])
        for name, one in shares.items():
            up.add_metric([name, one["machine"]], one["state"] != "starting")
            used.add_metric([name], one["used"])
        yield up
        yield used
        state = GaugeMetricFamily(
            "streamvos_fleet_stream", "1 for each stream.", labels=["stream", "state", "share"]
        )
        epoch = CounterMetricFamily(
            "streamvos_fleet_placements", "Placements of a stream.", labels=["stream"]
        )
        gone = CounterMetricFamily(
            "streamvos_fleet_gone_frames",
            "Frames of a stream's earlier placements, written or by the cause of their drop.",
            labels=["stream", "what"],
        )
        for name, one in streams.items():
            state.add_metric([name, one["state"], one["share"]], 1)
            epoch.add_metric([name], one["epoch"])
            for what, count in one["gone"].items():
                gone.add_metric([name, what], count)
        yield state
        yield epoch
        yield gone
        returns = self._shown["returns"]
        text = "Time from the loss of a share to the first mask elsewhere."
        name = "streamvos_fleet_return_seconds"
        yield SummaryMetricFamily(name, text, returns["count"], returns["seconds"])
        yield GaugeMetricFamily(
            "streamvos_fleet_store_up", "Whether the store takes what it is given.", not self._shown["store"]
        )
