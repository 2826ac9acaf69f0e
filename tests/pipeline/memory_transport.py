"""ZeroMQ's ROUTER and DEALER sockets in memory: edges and stages at work without waiting.

Edges take a context and ask it for sockets; with this one they are two queues. Credits, incarnations,
refusals, arenas and references are therefore the package's own code, and a message that was sent can be
received at once.

    context = MemoryContext()
    inbox = Inbox(context, spec, session, arenas)
    outbox = Outbox(context, spec, session, arenas)
    outbox.connect(inbox.bind())

    stage = MemoryStage("memory.s", StageContext(config, context, ...))    # and call its `step` directly
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import zmq


class MemoryContext:
    """Makes sockets that reach each other by the endpoints they bind; stands in for `zmq.Context`."""

    def __init__(self) -> None:
        self.underlying = id(self)  # what `Inbox` and `Outbox` tell contexts apart by
        self.bound: dict[str, MemorySocket] = {}
        self.sockets: list[MemorySocket] = []
        self.ports = 49152

    def socket(self, kind: int) -> MemorySocket:
        self.sockets.append(made := MemorySocket(self, kind))
        return made

    def destroy(self, linger: int = 0) -> None:
        for socket in self.sockets:
            socket.close()

    term = destroy


class MemorySocket:
    """A ROUTER that is bound, or a DEALER that is connected to one; a full queue raises `zmq.Again`."""

    def __init__(self, context: MemoryContext, kind: int):
        assert kind in (zmq.ROUTER, zmq.DEALER)
        self._context, self._kind = context, kind
        self._options: dict[int, Any] = {zmq.SNDHWM: 1000}
        self._endpoint = ""  # bound or connected
        self._unsent: deque[list[bytes]] = deque()  # of a DEALER whose peer is not bound yet
        self._received: deque[list[bytes]] = deque()
        self._parts: deque[bytes] = deque()  # of the message that is being received
        self._peers: dict[bytes, MemorySocket] = {}  # of a ROUTER: routing id -> DEALER, the newest
        self.closed = False

    def setsockopt(self, option: int, value: Any) -> None:
        self._options[option] = value

    def getsockopt_string(self, option: int) -> str:
        assert option == zmq.LAST_ENDPOINT
        return self._endpoint

    def bind(self, endpoint: str) -> None:
        if endpoint.endswith(":*"):
            self._context.ports += 1
            endpoint = f"{endpoint[:-1]}{self._context.ports}"
        if endpoint in self._context.bound:
            raise zmq.ZMQError(zmq.EADDRINUSE)
        self._context.bound[endpoint] = self
        self._endpoint = endpoint
        for other in self._context.sockets:
            if other._kind == zmq.DEALER and other._endpoint == endpoint:
                other._greet()

    def connect(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._greet()

    def disconnect(self, endpoint: str) -> None:
        assert endpoint == self._endpoint
        self._unsent.clear()
        self._endpoint = ""

    def send_multipart(self, parts: Sequence[Any], flags: int = 0) -> None:
        message = [bytes(part) for part in parts]  # whoever sends may change its buffers afterwards
        if self._kind == zmq.ROUTER:
            peer = self._peers.get(message[0])
            if peer is not None and not peer.closed and peer._endpoint == self._endpoint:
                peer._received.append(message[1:])  # to anybody else: dropped, as ZeroMQ does
            return
        consumer = self._context.bound.get(self._endpoint)
        queue = self._unsent if consumer is None else consumer._received
        if len(queue) >= self._options[zmq.SNDHWM] + self._options.get(zmq.RCVHWM, 0):
            raise zmq.Again
        queue.append(message if consumer is None else [self._identity, *message])

    def send(self, part: Any, flags: int = 0) -> None:
        self.send_multipart([part], flags)

    def recv(self, flags: int = 0, copy: bool = False) -> _Part:
        if not self._parts:
            if not self._received:
                raise zmq.Again  # nobody else runs, so there is nothing to wait for
            self._parts.extend(self._received.popleft())
        return _Part(self._parts.popleft(), bool(self._parts))

    def poll(self, timeout: float | None = None, flags: int = zmq.POLLIN) -> int:
        """What is possible now, without waiting."""
        return flags & (zmq.POLLOUT | (zmq.POLLIN if self._received or self._parts else 0))

    def close(self, linger: int | None = None) -> None:
        if self._context.bound.get(self._endpoint) is self:
            del self._context.bound[self._endpoint]
        self.closed = True
        self._endpoint = ""

    @property
    def _identity(self) -> bytes:
        return self._options.get(zmq.ROUTING_ID) or b"\0%d" % id(self)

    def _greet(self) -> None:
        consumer = self._context.bound.get(self._endpoint)
        if consumer is not None:
            consumer._peers[self._identity] = self  # ROUTER_HANDOVER: the last to come takes the place
            consumer._received.extend([self._identity, *message] for message in self._unsent)
            self._unsent.clear()


class _Part:
    """What `recv(copy=False)` gives: a part of a message, whose memory the receiver may keep and change."""

    def __init__(self, data: bytes, more: bool):
        self.bytes, self.more = data, more
        self.buffer = memoryview(bytearray(data))

    def __len__(self) -> int:
        return len(self.bytes)
