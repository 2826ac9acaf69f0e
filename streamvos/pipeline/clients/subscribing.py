"""Subscribe to the masks of a pipeline: received, checked, decoded on demand (docs/protocol.md, 9).

with Subscription(context, ["ipc:///run/user/1000/streamvos/door/masks-front.sock"], "front") as masks:
    one = masks.receive(timeout=1.0)          # Mask, End, or None after 1 s
    one.label_map
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import zmq

from streamvos.pipeline.clients.published import (
    FORMS,
    JPEG,
    End,
    Form,
    Mask,
    Picture,
    read_mask,
    read_picture,
)
from streamvos.pipeline.wire.admission import HANDSHAKE_FAILURES, next_event
from streamvos.pipeline.wire.messages import ARRAY_BYTES, HEADER_BYTES, Refused, RejectionCounter
from streamvos.pipeline.wire.security import Curve, is_refusal
from streamvos.types import InputError

QUEUE = 16
"""Messages that wait for one subscriber, on either side; more are dropped for that one."""

_STREAMS = 1024  # whose last masks are remembered


class Subscription:
    """Masks of one publisher or several. Not thread-safe.

    Args:
        context: ZeroMQ context of the socket.
        addresses: addresses of the publishers.
        stream: name of one stream; "" for all streams of the publishers.
        form: how masks travel: "rle" and "png" are small, "raw" is fast on one host.
        curve: our keys, for tcp:// addresses.

    Attributes:
        refused: cause -> messages that broke a rule.
        connections: publishers that were connected when `receive` last looked.

    Raises:
        InputError: unknown form, or invalid address.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        addresses: Iterable[str],
        stream: str = "",
        form: Form = "rle",
        curve: Curve | None = None,
    ):
        if form not in FORMS:
            raise InputError(f"there is no form {form!r}; there are {', '.join(FORMS)}")
        self.form: Form = form
        self.refused = RejectionCounter("masks")
        self._socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, QUEUE)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max(ARRAY_BYTES, HEADER_BYTES))
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self._monitor: zmq.Socket[bytes] = self._socket.get_monitor_socket(
            HANDSHAKE_FAILURES | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._waiting: dict[tuple[str, bool], Mask | End] = {}
        self._last: dict[str, tuple[int, int]] = {}  # stream -> incarnation and seq of its last mask
        self.connections = self._broken = 0
        self._curve = curve
        self._addresses: set[str] = set()
        self.connect(addresses)
        self._socket.setsockopt_string(zmq.SUBSCRIBE, f"{form}/{stream}/" if stream else f"{form}/")

    def connect(self, addresses: Iterable[str]) -> None:
        """Subscribe to further publishers; those that are known already are left as they are.

        Raises:
            InputError: invalid address; the subscription is closed.
        """
        try:
            for address in addresses:
                if address in self._addresses:
                    continue
                if self._curve is not None and address.startswith("tcp://"):
                    self._curve.connect(self._socket)
                self._socket.connect(address)
                self._addresses.add(address)
        except zmq.ZMQError as error:
            self.close()
            raise InputError(
                f"{address!r:.200} is no address ({error.strerror}); expected ipc://PATH or tcp://HOST:PORT"
            ) from None

    def receive(self, timeout: float | None = None, newest: bool = False) -> Mask | End | None:
        """The next valid message; None if none came within `timeout` seconds.

        Args:
            timeout: seconds; None waits without limit.
            newest: skip masks that newer ones of their stream have overtaken.

        Raises:
            InputError: a publisher refuses our keys or uses others.
            zmq.ZMQError: the subscription is closed.
        """
        if self._socket.closed:  # a poll would only time out
            raise zmq.ZMQError(zmq.ENOTSOCK)
        if newest:
            self._take_all()
        if self._waiting:
            return self._waiting.pop(next(iter(self._waiting)))
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0, round(1000 * (deadline - time.monotonic())))
            ready = dict(self._poller.poll(left))
            if self._monitor in ready:
                self._listen(next_event(self._monitor)[0])
            if self._socket in ready:
                one = self._next()
                if one is not None:
                    return one
            elif not ready or left == 0:
                return None

    def _take_all(self) -> None:
        """Read all messages that have arrived; keep each stream's last mask, then its end."""
        while self._socket.poll(0):
            one = self._next()
            if one is not None:
                key = (one.stream, isinstance(one, End))
                self._waiting.pop(key, None)
                self._waiting[key] = one

    def _next(self) -> Mask | End | None:
        parts = self._socket.recv_multipart()
        try:
            one = read_mask(parts, self.form)
        except Refused as error:
            self.refused.count(error.cause, error)
            return None
        if isinstance(one, Mask):
            key = one.incarnation, one.seq
            if one.repeated and self._last.get(one.stream) == key:
                return None
            self._last[one.stream] = key
            if len(self._last) > _STREAMS:
                self._last.pop(next(iter(self._last)))
        return one

    def _listen(self, event: int) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.connections, self._broken = self.connections + 1, 0
        elif event == zmq.EVENT_DISCONNECTED:
            self.connections = max(0, self.connections - 1)
        else:
            self._broken += 1
        if is_refusal(event, self._broken):
            raise InputError(
                "the publisher of the masks uses other CURVE keys, or does not admit ours; "
                "give secret and server_key, and put our NAME.key into its folder security.clients"
            )

    def close(self) -> None:
        """Close the socket."""
        if not self._socket.closed:
            self._socket.disable_monitor()
        self._monitor.close()
        self._socket.close()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class FrameSubscription:
    """The frames of one stream, as its source takes them; the newest one wins. Not thread-safe.

    Args:
        context: ZeroMQ context of the socket.
        address: as `Client.status` gives it under "frames".
        stream: name of the stream.

    Raises:
        InputError: invalid address.
    """

    def __init__(self, context: zmq.Context[Any], address: str, stream: str):
        self.refused = RejectionCounter("frames")
        self._topic = f"{JPEG}/{stream}/".encode()
        self._socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, QUEUE)
        self._socket.setsockopt(zmq.MAXMSGSIZE, ARRAY_BYTES)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        try:
            self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise InputError(f"{address!r:.200} is no address ({error.strerror})") from None
        self._socket.setsockopt(zmq.SUBSCRIBE, self._topic)

    def receive(self, timeout: float) -> Picture | None:
        """The next valid frame; None if none came within `timeout` seconds.

        Raises:
            zmq.ZMQError: the subscription is closed.
        """
        if not self._socket.poll(round(1000 * timeout)):
            return None
        parts = self._socket.recv_multipart()
        try:
            return read_picture(parts, self._topic)
        except Refused as error:
            self.refused.count(error.cause, error)
            return None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> FrameSubscription:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
