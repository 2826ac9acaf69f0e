"""The socket for users: requests are checked, carried out and answered (docs/protocol.md, 8).

The server has no thread. Its owner polls its sockets and calls `handle`; `Commands` carries out the requests,
and may answer later.

    with ControlServer(context, runtime.control, session, commands) as server:
        while poll(server.sockets()):
            server.handle()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import zmq

from streamvos.masks.checks import MASK_BYTES
from streamvos.pipeline.wire.messages import (
    HEADER_BYTES,
    STATE_BYTES,
    Array,
    Buffer,
    Message,
    Place,
    Refused,
    RejectionCounter,
    decode,
    encode,
)
from streamvos.pipeline.wire.security import Curve, bind
from streamvos.types import MAX_OBJECT_ID, InputError, StreamvosError

PENDING_PER_CLIENT = 16
PENDING = 1024
REPLY_SECONDS = 60.0  # then a request is answered with an error; it may still be carried out

# per call of `handle`, so that a flood does not hold up the caller
_BUDGET = 64  # requests of each socket
_BUDGET_SECONDS = 0.05
_WAITING = 64  # requests of one client that ZeroMQ queues here; further ones wait in the client
_ID_RANGE = range(-(2**63), 2**64)  # integers that MessagePack can carry


VERBS = (
    "status",
    "annotate",
    "forget",
    "pause",
    "resume",
    "stop",
    "add_stream",
    "remove_stream",
    "snapshot",
)

State = tuple[int, bytes]
"""A saved state of a stream, and the frame after which it was saved."""

Reply = Callable[..., None]
"""reply(ok, **fields) answers one request, once; if `ok` is false, the field `error` says why."""


class Commands(Protocol):
    """What users can request. Each method may raise InputError, whose text is then the answer.

    `reply` is called once, at once or later, in the thread of `ControlServer.handle`.
    """

    def status(self) -> Mapping[str, Any]:
        """Fields of the reply to `status`."""

    def annotate(self, stream: str, mask: np.ndarray, reply: Reply) -> None:
        """Start, add or correct objects; reply(True, seq=...). `mask`: (H, W) uint8, read-only."""

    def forget(self, stream: str, object_id: int, reply: Reply) -> None:
        """Forget an object, 1..254; reply(True, seq=...)."""

    def pause(self, stream: str) -> None: ...

    def resume(self, stream: str) -> None: ...

    def stop(self, stream: str, reply: Reply) -> None:
        """End a stream, "" for all; reply(True) when it has ended."""

    def add_stream(
        self,
        table: Mapping[str, Any],
        method: Mapping[str, Any] | None,
        files: bool,
        reply: Reply,
        state: State | None = None,
    ) -> None:
        """Add a stream; reply(True, status=...) when it has begun.

        `table` and `method` are as in pipeline.toml, unchecked; `files`: whether they may name files;
        `state`: what `snapshot` gave, to go on from.
        """

    def snapshot(self, stream: str) -> State:
        """The newest saved state of a stream."""

    def remove_stream(self, stream: str, at_once: bool, reply: Reply) -> None:
        """End a stream and forget it; reply(True, status=...) when nothing of it is left."""


class ControlServer:
    """Receives requests and sends replies.

    Args:
        context: ZeroMQ context of the sockets; close the server before it ends.
        address: ipc:// address in the pipeline's folder.
        session: the public session, 8 bytes.
        commands: carries out the requests.
        second: further address, tcp://; needs `curve` beyond loopback.
        curve: keys and list of clients.
        remote_files: whether requests to the second address may add streams that name files.
        verbs: further verbs, each a function that takes the request's `stream` and the reply.

    Attributes:
        refused: cause -> messages that broke a rule, replies that could not be delivered, and connections
            for which there was no room.
        endpoints: where it listens, with ports.

    Raises:
        InputError: an address cannot be bound, or is not safe.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        address: str,
        session: bytes,
        commands: Commands,
        second: str | None = None,
        curve: Curve | None = None,
        remote_files: bool = False,
        verbs: Mapping[str, Callable[[str, Reply], None]] | None = None,
    ):
        self._verbs = verbs or {}
        self.refused = RejectionCounter("socket for users")
        self._remote_files = remote_files
        self._session, self._commands = session, commands
        self._pending: dict[_Pending, float] = {}
        self._sockets: list[zmq.Socket[bytes]] = []
        self.endpoints: list[str] = []
        try:
            for place in (address, second):
                if place is not None:
                    self._sockets.append(_router(context))
                    self.endpoints.append(bind(self._sockets[-1], place, curve, self.refused))
        except InputError:
            self.close()
            raise

    def sockets(self) -> list[zmq.Socket[bytes]]:
        """The sockets to poll for reading."""
        return list(self._sockets)

    def handle(self) -> None:
        """Handle requests that have arrived, for a short while, and end those that have waited too long."""
        until = time.monotonic() + _BUDGET_SECONDS
        for socket in self._sockets:
            for _ in range(_BUDGET):
                if time.monotonic() > until:
                    break
                try:
                    peer, *parts = socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._take(socket, peer, parts)
        self._give_up()

    def close(self) -> None:
        """Close the sockets; requests still pending get no reply."""
        self._pending.clear()
        for socket in self._sockets:
            socket.close(linger=200)  # the reply to `stop` is sent last and should arrive
        self._sockets = []

    def __enter__(self) -> ControlServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take(self, socket: zmq.Socket[bytes], peer: bytes, parts: list[bytes]) -> None:
        try:
            message = decode(parts, None)
            number = message["id"]
            if message.kind != "request":
                raise Refused("kind", message.kind)
            if type(number) is not int or number not in _ID_RANGE:
                raise Refused("id")
        except Refused as error:
            self.refused.count(error.cause, error)
            return
        pending = _Pending(socket, peer, number)
        self._pending[pending] = time.monotonic()
        reply = partial(self._answer, pending)
        try:
            self._check_crowd(peer)
            self._do(message, reply, local=socket is self._sockets[0])
        except Refused as error:
            self.refused.count(error.cause, error)
            reply(False, error=f"the request cannot be used: {error}; see docs/protocol.md, 8")
        except StreamvosError as error:
            reply(False, error=str(error))

    def _check_crowd(self, peer: bytes) -> None:
        own = sum(one.peer == peer for one in self._pending)
        if own > PENDING_PER_CLIENT or len(self._pending) > PENDING:
            self.refused.count("too many requests")
            raise InputError(
                f"too many requests wait for their answers (at most {PENDING_PER_CLIENT} of one client, "
                f"{PENDING} of all); wait for some of them first"
            )

    def _do(self, message: Message, reply: Reply, local: bool) -> None:
        verb, stream = message["verb"], message.stream
        if verb not in ("annotate", "add_stream") and message.arrays:
            raise Refused("arrays", f"{verb} has none")
        if verb in ("annotate", "forget", "pause", "resume", "remove_stream", "snapshot") and not stream:
            raise InputError(f"{verb} needs a stream; its name is missing")
        if verb == "status":
            reply(True, **self._commands.status())
        elif verb == "annotate":
            self._commands.annotate(stream, _mask_of(message), reply)
        elif verb == "forget":
            self._commands.forget(stream, _object_of(message), reply)
        elif verb == "pause":
            self._commands.pause(stream)
            reply(True)
        elif verb == "resume":
            self._commands.resume(stream)
            reply(True)
        elif verb == "stop":
            self._commands.stop(stream, reply)
        elif verb == "add_stream":
            files = _flag(message, "files", True) and (local or self._remote_files)
            table, method = _table(message, "table"), message.get("method") and _table(message, "method")
            self._commands.add_stream(table, method, files, reply, _state_of(message, local))
        elif verb == "remove_stream":
            self._commands.remove_stream(stream, _flag(message, "at_once", False), reply)
        elif verb == "snapshot":
            seq, blob = self._commands.snapshot(stream)
            reply(True, seq=seq, arrays={"snapshot": Array("uint8", (len(blob),), blob)})
        elif verb in self._verbs:
            self._verbs[verb](stream, reply)
        else:
            raise Refused("verb", f"{verb!r:.40}; there are {', '.join((*VERBS, *self._verbs))}")

    def _answer(self, pending: _Pending, ok: bool, /, **fields: Any) -> None:
        if self._pending.pop(pending, None) is None:
            return
        try:
            parts = self._encoded(pending.number, ok, fields)
        except Refused as error:
            self.refused.count("reply", error)
            parts = self._encoded(pending.number, False, {"error": f"the answer cannot be sent: {error}"})
        try:
            pending.socket.send_multipart([pending.peer, *parts], zmq.NOBLOCK)
        except zmq.ZMQError:  # the client has gone, or does not read its replies
            self.refused.count("client gone")

    def _encoded(self, number: int, ok: bool, fields: Mapping[str, Any]) -> list[Buffer]:
        # the envelope has these two
        rest = {name: value for name, value in fields.items() if name not in ("seq", "session", "arrays")}
        reply = {**rest, "id": number, "ok": ok}
        return encode(
            Message("reply", "", 0, fields.get("seq", 0), reply, fields.get("arrays", {})), self._session
        )

    def _give_up(self) -> None:
        deadline = time.monotonic() - REPLY_SECONDS
        for pending, since in list(self._pending.items()):
            if since > deadline:
                break  # they are in the order of their arrival
            text = f"not done within {REPLY_SECONDS:g} s; it will be, if the stream continues"
            self._answer(pending, False, error=text, pending=True)


@dataclass(eq=False, slots=True)  # a client may send the same number twice
class _Pending:
    """A request that has no answer yet."""

    socket: zmq.Socket[bytes]
    peer: bytes
    number: int


def _mask_of(message: Message) -> np.ndarray:
    array = message.arrays.get("mask")
    if array is None or len(message.arrays) != 1:
        raise Refused("arrays", "annotate has one, mask")
    if array.dtype != "uint8" or len(array.shape) != 2 or isinstance(array.data, Place):
        raise Refused("mask", f"expected (H, W) uint8 in a buffer, got {array.shape} {array.dtype}")
    if not 0 < array.nbytes <= MASK_BYTES:
        raise Refused("mask", f"{array.nbytes} pixels; expected 1 to {MASK_BYTES}")
    return array.numpy()


def _state_of(message: Message, local: bool) -> State | None:
    """The state that an added stream goes on from."""
    if not message.arrays:
        return None
    array = message.arrays.get("snapshot")
    if array is None or len(message.arrays) != 1:
        raise Refused("arrays", "add_stream has at most one, snapshot")
    if array.dtype != "uint8" or len(array.shape) != 1 or isinstance(array.data, Place):
        raise Refused("snapshot", f"expected (bytes,) uint8 in a buffer, got {array.shape} {array.dtype}")
    if not local:
        raise InputError("a stream goes on from a snapshot only if it is added on the pipeline's own machine")
    return message.seq, bytes(array.data)


def _object_of(message: Message) -> int:
    number = message["object"]
    if type(number) is not int or not 1 <= number <= MAX_OBJECT_ID:
        raise Refused("object", f"{number!r:.40}; expected a number 1..{MAX_OBJECT_ID}")
    return number


def _flag(message: Message, name: str, default: bool) -> bool:
    value = message.get(name, default)
    if not isinstance(value, bool):
        raise Refused(name, f"{value!r:.40}; expected true or false")
    return value


def _table(message: Message, name: str) -> Mapping[str, Any]:
    value = message[name]
    if not isinstance(value, dict):
        raise Refused(name, f"expected a map, as in pipeline.toml, got {type(value).__name__}")
    return value


def _router(context: zmq.Context[Any]) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # a reply to a client that has gone fails instead of vanishing
    socket.setsockopt(zmq.RCVHWM, _WAITING)
    socket.setsockopt(zmq.SNDHWM, _WAITING)
    socket.setsockopt(zmq.MAXMSGSIZE, max(MASK_BYTES, STATE_BYTES, HEADER_BYTES))
    socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)  # drops clients that were unplugged
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15000)
    return socket
