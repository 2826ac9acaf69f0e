"""How the node reaches others: one small interface, over Cyclone DDS alone or over a ROS installation.

    transport = open_transport("auto", "streamvos", domain=None)    # of `opening`
    publish = transport.publisher("/streamvos/label_map", "sensor_msgs/msg/Image", Qos())
    transport.subscribe("/camera/image_raw", "sensor_msgs/msg/Image", Qos(reliable=False), take)
    transport.serve("/streamvos/list", "streamvos_msgs/srv/ListObjects", answer)

Messages are those of `rosmsg`. A subscription is given bytes, so that only the newest picture is decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Qos:
    """Quality of service.

    Attributes:
        reliable: whether lost messages are sent again; a best-effort reader matches every writer.
        depth: newest messages that are kept.
        latched: whether who comes later gets the last one, too (transient local).
    """

    reliable: bool = True
    depth: int = 1
    latched: bool = False


class Transport(Protocol):
    """A node's connections. Functions that it calls run in its threads."""

    def publisher(self, topic: str, message_type: str, qos: Qos) -> Callable[[Any], None]:
        """A function that publishes a message, and never waits for who reads it."""

    def subscribe(self, topic: str, message_type: str, qos: Qos, take: Callable[[bytes], None]) -> None:
        """Call `take` with each message's bytes, one at a time."""

    def serve(self, name: str, service_type: str, answer: Callable[[Any], Any]) -> None:
        """Answer requests, one at a time; subscriptions go on meanwhile."""

    def close(self) -> None:
        """End all threads and leave the network."""
