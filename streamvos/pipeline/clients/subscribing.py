"""Subscribe to the masks of a pipeline: received, checked, decoded on demand (docs/protocol.md, 9).

with Subscription(context, ["ipc:///run/user/1000/streamvos/door/masks-front.sock"], "front") as masks:
    one = masks.receive(timeout=1.0)          # Mask, End, or None after 1 s
    one.label_map
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import zmq

from streamvos.masks.rle import Rle, decode_rle
from streamvos.pipeline.wire.admission import HANDSHAKE_FAILURES, next_event
from streamvos.pipeline.wire.endpoints import NAME
from streamvos.pipeline.wire.messages import (
    ARRAY_BYTES,
    HEADER_BYTES,
    Array,
    Message,
    Place,
    Refused,
    RejectionCounter,
    decode,
    is_count,
)
from streamvos.pipeline.wire.security import Curve, is_refusal
from streamvos.types import MAX_OBJECT_ID, InputError, ObjectResult

Form = Literal["rle", "png", "raw"]
FORMS: tuple[Form, ...] = ("rle", "png", "raw")

JPEG = "jpeg"
"""The one form of frames."""

QUEUE = 16
"""Messages that wait for one subscriber, on either side; more are dropped for that one."""

_STREAMS = 1024  # whose last masks are remembered

_STATES = ("tracking", "uncertain", "lost")


@dataclass(frozen=True, slots=True)
class Mask:
    """The masks of one frame of a stream.

    Attributes:
        stream: name of the stream.
        seq: number of the frame, from 0; a gap means lost messages, since dropped frames have no number.
        incarnation: number of the stream's incarnation (docs/protocol.md, 5).
        captured_ns: when the frame was taken, monotonic ns of the pipeline's host.
        pts: seconds from the start of the stream.
        size: (H, W) in pixels.
        objects: id -> score, state, box, area.
        dropped: cause -> frames that the pipeline dropped since the previous frame.
        recovered: whether this frame is the first after a recovery.
        stamps: stage -> [received, started, done], monotonic ns.
        received_ns: when the message was received, monotonic ns of this host.
        repeated: whether it was sent again, for those who subscribed while the stream gave nothing.
        runs: id -> run lengths, with form "rle" only; not decoded yet, so they may be wrong.
    """

    stream: str
    seq: int
    incarnation: int
    captured_ns: int
    pts: float
    size: tuple[int, int]
    objects: Mapping[int, ObjectResult]
    dropped: Mapping[str, int]
    recovered: bool
    stamps: Mapping[str, list[int]]
    received_ns: int
    runs: Mapping[int, Rle]
    _decode: Callable[[], np.ndarray] = field(repr=False)
    repeated: bool = False

    @property
    def label_map(self) -> np.ndarray:
        """(H, W) uint8, 0 is background; decoded on each access.

        Raises:
            Refused: the message does not hold a label map of this size.
        """
        return self._decode()


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame of a stream, as JPEG.

    Attributes:
        stream, seq, incarnation, captured_ns, pts, size: as in `Mask`.
        jpeg: the file's bytes.
    """

    stream: str
    seq: int
    incarnation: int
    captured_ns: int
    pts: float
    size: tuple[int, int]
    jpeg: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class End:
    """The last message of a stream; `seq` is the number of its last frame."""

    stream: str
    seq: int
    incarnation: int


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
        try:
            for address in addresses:
                if curve is not None and address.startswith("tcp://"):
                    curve.connect(self._socket)
                self._socket.connect(address)
        except zmq.ZMQError as error:
            self.close()
            raise InputError(
                f"{address!r:.200} is no address ({error.strerror}); expected ipc://PATH or tcp://HOST:PORT"
            ) from None
        self._socket.setsockopt_string(zmq.SUBSCRIBE, f"{form}/{stream}/" if stream else f"{form}/")

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
            one = _read(parts, self.form)
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
            return self._read(parts)
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

    def _read(self, parts: list[bytes]) -> Picture:
        _need(parts[0] == self._topic, "topic", parts[0][:80])
        message = decode([self._topic.split(b"/")[1], *parts[1:]], None)
        _need(message.kind == "frame", "kind", message.kind)
        size, captured, pts = message["size"], message["captured"], message["pts"]
        _need(_are_counts(size, 2) and 0 < size[0] * size[1] <= ARRAY_BYTES, "size", size)
        _need(is_count(captured) and _is_number(pts), "captured or pts")
        image = message.arrays.get("image")
        if image is None or image.dtype != "uint8" or isinstance(image.data, Place) or len(image.shape) != 1:
            raise Refused("image")
        return Picture(
            message.stream,
            message.seq,
            message.incarnation,
            captured,
            float(pts),
            (size[0], size[1]),
            bytes(image.data),
        )


def _read(parts: list[bytes], form: Form) -> Mask | End:
    received = time.monotonic_ns()
    form_text, _, name = parts[0].decode(errors="replace").partition("/")
    # a reader may name a folder after the stream, so the name must be a valid one
    _need(form_text == form and name.endswith("/") and NAME.fullmatch(name[:-1]), "topic", parts[0][:80])
    message = decode([name[:-1].encode(), *parts[1:]], None)
    if message.kind == "end":
        return End(message.stream, message.seq, message.incarnation)
    _need(message.kind == "mask", "kind", message.kind)
    size, objects = message["size"], message["objects"]
    captured, pts = message["captured"], message["pts"]
    dropped, stamps = message.get("dropped", {}), message.get("stamps", {})
    _need(_are_counts(size, 2) and 0 < size[0] * size[1] <= ARRAY_BYTES, "size", size)
    _need(isinstance(objects, list) and len(objects) <= MAX_OBJECT_ID, "objects")
    _need(is_count(captured) and _is_number(pts), "captured or pts")
    _need(_is_small_map(dropped) and all(map(is_count, dropped.values())), "dropped")
    _need(_is_small_map(stamps) and all(_are_counts(one, 3) for one in stamps.values()), "stamps")
    return Mask(
        stream=message.stream,
        seq=message.seq,
        incarnation=message.incarnation,
        captured_ns=captured,
        pts=float(pts),
        size=(size[0], size[1]),
        objects={one.id: one for one in map(_object, objects)},
        dropped=dropped,
        recovered=message.get("recovered", False) is True,
        stamps=stamps,
        received_ns=received,
        runs={one["id"]: one["rle"] for one in objects} if form == "rle" else {},
        _decode=_decoder(form, message, (size[0], size[1])),
        repeated=message.get("repeated", False) is True,
    )


def _object(value: Any) -> ObjectResult:
    _need(isinstance(value, dict), "objects")
    number, score, state, box, area = (value.get(key) for key in ("id", "score", "state", "box", "area"))
    _need(is_count(number) and 1 <= number <= MAX_OBJECT_ID, "objects", "id")
    _need(_is_number(score) and state in _STATES, "objects", "score or state")
    _need(box is None or _are_counts(box, 4), "objects", "box")
    _need(is_count(area), "objects", "area")
    return ObjectResult(number, float(score), state, None if box is None else tuple(box), area)


def _decoder(form: Form, message: Message, size: tuple[int, int]) -> Callable[[], np.ndarray]:
    """The function that decodes the label map; cheap checks are done now."""
    if form == "rle":
        runs = {one["id"]: one.get("rle") for one in message["objects"]}
        for one in runs.values():
            _need(isinstance(one, dict) and one.get("size") == list(size), "rle")
        return lambda: _from_runs(runs, size)
    array = message.arrays.get("mask")
    if array is None or array.dtype != "uint8" or isinstance(array.data, Place):
        raise Refused("mask")
    _need(array.shape == size if form == "raw" else len(array.shape) == 1, "mask", f"{form}: {array.shape}")
    return array.numpy if form == "raw" else partial(_from_png, array, size)


def _from_runs(runs: Mapping[int, Mapping[str, object]], size: tuple[int, int]) -> np.ndarray:
    label_map = np.zeros(size, np.uint8)
    for number, rle in runs.items():
        try:
            label_map[decode_rle(rle) != 0] = number
        except InputError as error:
            raise Refused("rle", str(error)) from None
    return label_map


def _from_png(array: Array, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image  # only this form needs it

    try:
        with Image.open(io.BytesIO(array.data), formats=("PNG",)) as picture:
            # before any pixel is decompressed
            _need(picture.size == size[::-1] and picture.mode == "P", "png", f"{picture.mode} {picture.size}")
            return np.array(picture)
    except Refused:
        raise
    except Exception as error:  # Pillow raises many types for bad bytes
        raise Refused("png", type(error).__name__) from None


def _need(condition: object, cause: str, detail: object = "") -> None:
    if not condition:
        raise Refused(cause, str(detail)[:80])


def _are_counts(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(map(is_count, value))


def _is_small_map(value: Any) -> bool:
    return isinstance(value, dict) and len(value) <= 64


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
