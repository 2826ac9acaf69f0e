"""What an edge is, and what both of its ends need: names, sockets, and the tokens of references."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import zmq

from streamvos.pipeline.wire.messages import ARRAY_BYTES, MAX_ARRAYS, Buffer, Refused

Mode = Literal["reference", "shared", "inline"]

TOKEN = struct.Struct("<QQ")
"""What travels within one process: incarnation, and number of a message."""

AT_ONCE = 64
"""Messages looked at in one call, so that a flood of bad ones cannot hold a stage."""

_HIGH_WATER = 64  # never reached under credits; bounds what a peer without manners can queue
_COPIED_BYTES = 2**16  # parts below are cheaper copied, and then aligned, than kept in ZeroMQ's memory


@dataclass(frozen=True, slots=True)
class EdgeSpec:
    """One edge.

    Attributes:
        name: "front/frames".
        stream: whose.
        producer, consumer: names of stages.
        endpoint: where the consumer binds; ends in ":*" for a tcp port that the system chooses.
        window: messages beyond credit.
        mode: how arrays travel.
        arena: where they lie under "shared"; it has `window` slots or more.
        curve: applies CURVE to a socket, as server or as client; None for local ones.
    """

    name: str
    stream: str
    producer: str
    consumer: str
    endpoint: str
    window: int
    mode: Mode
    arena: str | None = None
    curve: Any = None


def read_token(parts: Sequence[Buffer]) -> tuple[int, int]:
    """Incarnation and number.

    Raises:
        Refused: it is no token.
    """
    if len(parts) != 1 or len(parts[0]) != TOKEN.size:
        raise Refused("reference", "no token")
    incarnation, number = TOKEN.unpack(parts[0])
    return incarnation, number


def receive(socket: zmq.Socket[bytes]) -> list[Buffer] | None:
    """The parts of a message, of which large ones stay where ZeroMQ has them; None if there is none.

    More parts than any message may have are read and let go.
    """
    parts: list[Buffer] = []
    more = True
    while more:
        try:
            frame = socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        more = frame.more
        if len(parts) < MAX_ARRAYS + 4:
            parts.append(frame.bytes if len(frame) < _COPIED_BYTES else frame.buffer)
    return parts


def routing_id(spec: EdgeSpec, session: bytes) -> bytes:
    """Of the producer; with the session, so that nobody else takes its place by chance or by guessing."""
    return spec.producer.encode() + b"/" + session


def reference_space(context: zmq.Context[Any], spec: EdgeSpec) -> Any:
    """What tells the references of an edge from those of others: as its inproc endpoint, one per context."""
    return (context.underlying, spec.name) if spec.mode == "reference" else None


def socket_of(context: zmq.Context[Any], kind: int, spec: EdgeSpec) -> zmq.Socket[bytes]:
    """A socket with the limits that hold for every edge."""
    socket: zmq.Socket[bytes] = context.socket(kind)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, _HIGH_WATER)
    socket.setsockopt(zmq.RCVHWM, _HIGH_WATER)
    socket.setsockopt(zmq.MAXMSGSIZE, ARRAY_BYTES)
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 100)  # the peer is local, or was just reborn and is waited for
    if spec.endpoint.startswith("tcp://"):
        socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    return socket
