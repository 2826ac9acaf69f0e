"""Messages that a pipeline publishes: masks, frames and ends, checked, and decoded on demand.

Their rules are in docs/protocol.md, 9.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from streamvos.masks.rle import Rle, decode_rle
from streamvos.pipeline.wire.endpoints import NAME
from streamvos.pipeline.wire.messages import ARRAY_BYTES, Array, Message, Place, Refused, decode, is_count
from streamvos.types import MAX_OBJECT_ID, InputError, ObjectResult

Form = Literal["rle", "png", "raw"]
FORMS: tuple[Form, ...] = ("rle", "png", "raw")

JPEG = "jpeg"
"""The one form of frames."""

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


def read_mask(parts: list[bytes], form: Form) -> Mask | End:
    """A mask in a form, or the end of a stream.

    Raises:
        Refused: the message breaks a rule.
    """
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


def read_picture(parts: list[bytes], topic: bytes) -> Picture:
    """A frame; `topic`: what was subscribed to.

    Raises:
        Refused: the message breaks a rule.
    """
    _need(parts[0] == topic, "topic", parts[0][:80])
    message = decode([topic.split(b"/")[1], *parts[1:]], None)
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
    return array.numpy if form == "raw" else partial(from_png, array, size)


def _from_runs(runs: Mapping[int, Mapping[str, object]], size: tuple[int, int]) -> np.ndarray:
    label_map = np.zeros(size, np.uint8)
    for number, rle in runs.items():
        try:
            label_map[decode_rle(rle) != 0] = number
        except InputError as error:
            raise Refused("rle", str(error)) from None
    return label_map


def from_png(array: Array, size: tuple[int, int]) -> np.ndarray:
    """The label map of a PNG, (H, W) uint8; Refused if it is none of this size."""
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
