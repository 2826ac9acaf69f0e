"""What the pipeline's status says of its streams, now and over the last looks.

statuses = Statuses("door", "pipeline")
for change in statuses.take(client.status()): ...       # a stream's state is another one
statuses.stream("front")["ready"]
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from streamvos.types import InputError

READY_SECONDS = 10.0
"""A stream that gives no mask for so long is not ready, if the status does not say its own time-out."""

HISTORY = 60
"""Latencies of each stream that are remembered, one per look at the status."""

OVER = ("ended", "failed")
"""States of a stream that gives nothing any more."""


class UnknownStreamError(InputError):
    """A stream that is not there."""


class Change(NamedTuple):
    """A stream's state is another one than at the last look; "" = it is not there (any more)."""

    stream: str
    state: str
    reason: str


class _Past:
    """A stream over the last looks."""

    def __init__(self) -> None:
        self.state = ""
        self.history: deque[float | None] = deque(maxlen=HISTORY)
        self.seq: int | None = None
        self.since = 0.0  # when `seq` changed
        self.count, self.total = 0, 0.0  # of its latencies


class Statuses:
    """The last status, and what several of them tell together.

    Args:
        name: the pipeline's name, until it says it itself.
        kind: "pipeline" or "picture".

    Attributes:
        status: the last one; empty before the first.
        problem: why there is none now; "" if there is one.
    """

    def __init__(self, name: str, kind: str):
        self._name, self._kind = name, kind
        self.status: dict[str, Any] = {}
        self.problem = "the pipeline has not answered yet"
        self._past: dict[str, _Past] = {}

    def take(self, status: dict[str, Any]) -> list[Change]:
        """Note a new status."""
        is_first = not self.status
        self.status, self.problem = status, ""
        now, changes = time.monotonic(), []
        streams = status.get("streams", {})
        for name, one in streams.items():
            past = self._past.setdefault(name, _Past())
            if one.get("seq") != past.seq:
                past.seq, past.since = one.get("seq"), now
            state = str(one.get("state", ""))
            if state != past.state and not is_first:
                changes.append(Change(name, state, _reason(one)))
            past.state = state
            past.history.append(_latency(past, one))
        for name in set(self._past) - set(streams):
            del self._past[name]
            changes.append(Change(name, "", ""))
        return changes

    def summary(self) -> dict[str, Any]:
        """What pages show of the pipeline and of all streams."""
        return {
            "pipeline": self.status.get("pipeline", self._name),
            "kind": self._kind,
            "problem": self.problem,
            "method": self.status.get("method"),
            "streams": [self.stream(name) for name in self.streams],
        }

    @property
    def streams(self) -> list[str]:
        """Names of the streams."""
        return list(self.status.get("streams", {}))

    def stream(self, name: str) -> dict[str, Any]:
        """What is known of a stream.

        Raises:
            UnknownStreamError: there is none of this name.
        """
        one = self.status.get("streams", {}).get(name)
        if one is None:
            names = ", ".join(self.streams) or "none"
            raise UnknownStreamError(f"there is no stream {name[:80]!r}; there are: {names}")
        latency = one.get("latencies", {}).get("glass to mask") or {}
        unready = self._why_unready(name, one)
        return {
            "name": name,
            "state": one.get("state", ""),
            "reason": _reason(one),
            "last_failure": one.get("last_failure") or "",
            "source": one.get("source"),
            "policy": one.get("policy"),
            "size": one.get("size"),
            "seq": one.get("seq"),
            "fps": one.get("fps"),
            "dropped": one.get("dropped", {}),
            "restarts": one.get("restarts", 0),
            "objects": [int(n) for n in one.get("objects", [])],
            "latency_ms": {key: latency.get(key) for key in ("p50", "p95", "p99")},
            "history_ms": list(self._past[name].history),
            "publishes": self._is_listed("publish", name),
            "shows_frames": self._is_listed("frames", name),
            "ready": not unready,
            "unready": unready,
        }

    def unready(self) -> dict[str, str]:
        """The streams that have given no mask within their time-out, and why; not ended or paused ones."""
        found = {name: self._why_unready(name, one) for name, one in self.status.get("streams", {}).items()}
        return {name: reason for name, reason in found.items() if reason}

    def _is_listed(self, table: str, name: str) -> bool:
        return self._kind == "picture" or name in self.status.get(table, {})

    def _why_unready(self, name: str, one: Mapping[str, Any]) -> str:
        """Why a stream is not ready; "" if it is, or need not be."""
        state = one.get("state")
        if state in ("ended", "paused", "still"):
            return ""
        if state == "failed":
            return _reason(one) or "it has failed"
        past = self._past[name]
        if past.seq is None and state in ("starting", "recovering"):
            return one.get("last_failure") or f"it is {state}"
        seconds = float(one.get("stall_timeout") or READY_SECONDS)
        silent = time.monotonic() - past.since
        if past.seq is not None and silent < seconds:
            return ""
        if reason := _reason(one):
            return str(reason)
        if not one.get("objects"):
            return "it follows no object"
        return (
            f"no mask for {silent:.0f} s, and its stall_timeout is {seconds:g} s"
            if past.seq
            else "no mask yet"
        )


def _reason(one: Mapping[str, Any]) -> str:
    return one.get("reason") or one.get("waiting_for") or ""


def _latency(past: _Past, one: Mapping[str, Any]) -> float | None:
    """Mean latency since the last look, in ms; None if there was no mask."""
    found = one.get("latencies", {}).get("glass to mask") or {}
    count = int(found.get("count") or 0)
    total = count * float(found.get("mean") or 0)
    count_before, total_before = past.count, past.total
    past.count, past.total = count, total
    if count <= count_before:
        return None
    return max(0.0, (total - total_before) / (count - count_before))
