"""Pictures in the messages of a recording: ROS's and Foxglove's, in CDR, protobuf or JSON.

    image, stamp_ns = picture_of(recorded)

Protobuf is read with the descriptors that the file holds, as Foxglove documents it, and nothing of them is
executed. A recording of a video stream is told apart from one of pictures by its type (`VIDEOS`).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from streamvos.rosmsg.pictures import COMPRESSED, IMAGE, rgb_of
from streamvos.rosmsg.types import decode, make, stamp_ns, time_ns
from streamvos.sources.bag_messages import Recorded
from streamvos.types import InputError

_FOXGLOVE = {  # type -> whether its pictures are compressed
    "foxglove.CompressedImage": True,
    "foxglove.RawImage": False,
    "foxglove_msgs/msg/CompressedImage": True,
    "foxglove_msgs/msg/RawImage": False,
}
PICTURES = (IMAGE, COMPRESSED, *_FOXGLOVE)
VIDEOS = ("foxglove.CompressedVideo", "foxglove_msgs/msg/CompressedVideo")

_FIELDS: dict[bool, dict[str, type]] = {
    True: {"data": bytes, "format": str},
    False: {"width": int, "height": int, "step": int, "encoding": str, "data": bytes},
}


def picture_of(recorded: Recorded) -> tuple[np.ndarray, int]:
    """The picture of a message of one of `PICTURES`, (H, W, 3) uint8 RGB, and its stamp.

    The stamp is in ns since the epoch, and 0 if the message has none, or one that 63 bits cannot hold.

    Raises:
        InputError: the message is damaged, encoded otherwise, or has no picture that can be read.
    """
    if recorded.encoding == "cdr" and recorded.type in (IMAGE, COMPRESSED):
        message = decode(recorded.content, recorded.type)
        return rgb_of(message), _plausible(stamp_ns(message.header))
    is_compressed = _FOXGLOVE.get(recorded.type)
    if is_compressed is None or recorded.encoding not in _READERS:
        raise InputError(
            f"{recorded.type} is encoded as {recorded.encoding!r}; expected CDR, or of Foxglove's types also "
            "protobuf or JSON"
        )
    fields, stamp = _READERS[recorded.encoding](recorded, _FIELDS[is_compressed])
    fields["data"] = np.frombuffer(fields["data"], np.uint8)
    kind = COMPRESSED if is_compressed else IMAGE
    return rgb_of(make(kind, **fields)), _plausible(stamp)


def _plausible(stamp: int) -> int:
    return stamp if 0 <= stamp < 2**63 else 0


def _of_cdr(recorded: Recorded, expected: dict[str, type]) -> tuple[dict[str, Any], int]:
    message = decode(recorded.content, recorded.type)
    return {name: getattr(message, name) for name in expected}, time_ns(message.timestamp)


def _of_json(recorded: Recorded, expected: dict[str, type]) -> tuple[dict[str, Any], int]:
    try:
        found = json.loads(recorded.content)
        stamp = found.get("timestamp") or {}
        nanoseconds = int(stamp.get("sec", 0)) * 10**9 + int(stamp.get("nsec", 0))
        fields = {name: kind(found[name]) for name, kind in expected.items() if kind is not bytes}
        return {**fields, "data": base64.b64decode(found["data"], validate=True)}, nanoseconds
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"no {recorded.type} in JSON: {_said(error)}") from None


def _of_protobuf(recorded: Recorded, expected: dict[str, type]) -> tuple[dict[str, Any], int]:
    from google.protobuf.message import DecodeError
    from mcap.exceptions import McapError

    try:
        message = _decoder(recorded.type, recorded.schema)(recorded.content)
    except (DecodeError, McapError, TypeError, KeyError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"no {recorded.type} in protobuf: {_said(error)}") from None
    fields = {name: _field(message, name, kind) for name, kind in expected.items()}
    stamp = getattr(message, "timestamp", None)
    if stamp is None:
        return fields, 0
    return fields, _field(stamp, "seconds", int) * 10**9 + _field(stamp, "nanos", int)


@lru_cache(maxsize=8)
def _decoder(name: str, descriptors: bytes) -> Callable[[bytes], Any]:
    """A function that decodes messages of a type, as a serialized FileDescriptorSet describes it."""
    from mcap.records import Schema
    from mcap_protobuf.decoder import DecoderFactory

    found = DecoderFactory().decoder_for(
        "protobuf", Schema(id=1, name=name, encoding="protobuf", data=descriptors)
    )
    assert found is not None
    return found


def _field(message: Any, name: str, kind: type) -> Any:
    try:
        value = getattr(message, name)
    except AttributeError:
        raise InputError(f"its protobuf schema has no field {name!r}") from None
    if not isinstance(value, kind):
        raise InputError(
            f"the field {name!r} of its protobuf schema is {type(value).__name__}; expected {kind.__name__}"
        )
    return value


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


_READERS: dict[str, Callable[[Recorded, dict[str, type]], tuple[dict[str, Any], int]]] = {
    "cdr": _of_cdr,
    "json": _of_json,
    "protobuf": _of_protobuf,
}
