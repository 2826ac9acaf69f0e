"""The node's health, once a second on /diagnostics: rate, drops, latency, and the objects' states."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Sequence

from streamvos.ros2.transport import Qos, Transport
from streamvos.rosmsg.types import make, time_of

OK, WARN, ERROR = 0, 1, 2
PERIOD = 1.0
_WINDOW = 512  # newest frames whose latencies count
_LIVED = 60.0  # seconds for which an error of a picture is shown


class Diagnostics:
    """Counts frames, and publishes a DiagnosticArray.

    Args:
        transport: where to publish.
        name: the node's name.
    """

    def __init__(self, transport: Transport, name: str) -> None:
        self._publish = transport.publisher(
            "/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", Qos(depth=10)
        )
        self._name = name
        self._since_stamp: deque[float] = deque(maxlen=_WINDOW)
        self._since_arrival: deque[float] = deque(maxlen=_WINDOW)
        self._frames, self._refused = 0, 0
        self._last, self._last_frames, self._last_arrived = time.monotonic(), 0, 0
        self._problem: tuple[str, float] | None = None

    def frame(self, stamp_ns: int, arrived_ns: int) -> None:
        """Count a frame whose results were just published.

        Args:
            stamp_ns: its header's stamp, ns since the epoch; 0 = none.
            arrived_ns: `time.monotonic_ns()` when it came.
        """
        self._frames += 1
        self._problem = None
        self._since_arrival.append((time.monotonic_ns() - arrived_ns) / 1e6)
        age = (time.time_ns() - stamp_ns) / 1e6
        if stamp_ns and 0 <= age < 60_000:  # else the camera's clock is another one, or a bag is played
            self._since_stamp.append(age)

    def refused(self, reason: str) -> bool:
        """Count a picture that could not be used; whether the reason is another one than the last."""
        self._refused += 1
        is_new = self._problem is None or self._problem[0] != reason
        self._problem = reason, time.monotonic()
        return is_new

    def due(self) -> float:
        """Seconds until the next report."""
        return max(self._last + PERIOD - time.monotonic(), 0.0)

    def report(self, state: str, topic: str, arrived: int, dropped: int, states: Sequence[str]) -> None:
        """Publish.

        Args:
            state: of the lifecycle.
            topic: of the pictures.
            arrived, dropped: pictures so far.
            states: of the objects.
        """
        now = time.monotonic()
        seconds = max(now - self._last, 1e-3)
        rate = (self._frames - self._last_frames) / seconds
        came, self._last_arrived = arrived - self._last_arrived, arrived
        self._last, self._last_frames = now, self._frames
        if self._problem is not None and now - self._problem[1] > _LIVED:
            self._problem = None
        level, message = OK, f"{state}, {rate:.1f} frames/s"
        if self._problem is not None:
            level, message = ERROR, self._problem[0]
        elif state == "active" and not came:
            level, message = WARN, f"no picture came on {topic} for {seconds:.1f} s"
        elif states and all(one == "lost" for one in states):
            level, message = WARN, "every object is lost"
        counts = Counter(states)
        values = {
            "state": state,
            "rate (frames/s)": f"{rate:.2f}",
            "frames": str(self._frames),
            "pictures": str(arrived),
            "dropped for newer ones": str(dropped),
            "refused": str(self._refused),
            **_percentiles("latency from stamp", self._since_stamp),
            **_percentiles("latency from arrival", self._since_arrival),
            "objects": str(len(states)),
            **{kind: str(counts[kind]) for kind in ("tracking", "uncertain", "lost")},
        }
        status = make(
            "diagnostic_msgs/msg/DiagnosticStatus",
            level=level,
            name=f"{self._name}: segmentation",
            message=message,
            values=[
                make("diagnostic_msgs/msg/KeyValue", key=key, value=text) for key, text in values.items()
            ],
        )
        header = make("std_msgs/msg/Header", stamp=time_of(time.time_ns()))
        self._publish(make("diagnostic_msgs/msg/DiagnosticArray", header=header, status=[status]))


def _percentiles(what: str, milliseconds: deque[float]) -> dict[str, str]:
    ordered = sorted(milliseconds)
    ranks = {q: max(math.ceil(q * len(ordered) / 100) - 1, 0) for q in (50, 99)}
    return {f"{what} p{q} (ms)": f"{ordered[rank]:.1f}" if ordered else "" for q, rank in ranks.items()}
