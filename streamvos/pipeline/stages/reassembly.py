"""A `result` message as frame and result, as sinks take them; checked before use.

received = read_result(inbox, message, "front", pictures=False)
received.frame.index, received.result.mask.shape  # 7, (480, 854)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from streamvos.pipeline.wire.inbox import Inbox
from streamvos.pipeline.wire.messages import Message, Refused
from streamvos.types import Frame, InputError, ObjectResult, Result

_STATES = ("tracking", "uncertain", "lost")


@dataclass(frozen=True, slots=True)
class ReceivedResult:
    """One result of a stream.

    Attributes:
        frame: the frame with its picture, or with a black one that takes no memory.
        result: its mask and objects, without probabilities.
        dropped: cause -> frames dropped before this one.
        stamps: stage -> [received, started, done], monotonic ns.
    """

    frame: Frame
    result: Result
    dropped: dict[str, int]
    stamps: dict[str, list[int]]


def read_result(inbox: Inbox, message: Message, stream: str, pictures: bool) -> ReceivedResult:
    """Read a message, copying what lies in shared memory.

    Raises:
        Refused: a field is missing or of another kind; or its time is over.
    """
    mask = inbox.array(message, "mask")
    if mask.dtype != np.uint8 or mask.ndim != 2 or not mask.size:
        raise Refused("shape", f"a mask is (H, W) uint8, got {mask.shape} {mask.dtype}")
    height, width = mask.shape
    image = inbox.array(message, "image") if pictures else _no_picture(height, width)
    if image.dtype != np.uint8 or image.shape != (height, width, 3):
        raise Refused("shape", f"the picture of a mask {mask.shape} is {image.shape} {image.dtype}")
    captured, pts = message["captured"], message["pts"]
    if not _is_number(captured) or not (_is_number(pts) or isinstance(pts, float)):
        raise Refused("field", "captured or pts")
    ids = message["ids"]
    if not isinstance(ids, (list, tuple)) or not all(_is_number(one) for one in ids):
        raise Refused("field", "ids")
    objects = _objects(message.get("objects"))
    frame = Frame(image, message.seq, captured, float(pts), stream)
    result = Result(mask, message.seq, tuple(ids), _no_probabilities, objects)
    return ReceivedResult(frame, result, _counts(message.get("dropped")), _stamps(message.get("stamps")))


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _counts(value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping) or not all(map(_is_number, value.values())):
        raise Refused("field", "dropped")
    return {str(cause): count for cause, count in value.items()}


def _stamps(value: Any) -> dict[str, list[int]]:
    if not isinstance(value, Mapping):
        raise Refused("field", "stamps")
    stamps = {str(stage): times for stage, times in value.items()}
    for times in stamps.values():
        if not isinstance(times, (list, tuple)) or len(times) != 3 or not all(map(_is_number, times)):
            raise Refused("field", "stamps")
    return {stage: list(times) for stage, times in stamps.items()}


def _objects(described: Any) -> Any:
    """What gives a result's objects."""
    if described is None:
        return _no_objects
    try:
        objects = {one.id: one for one in (_object(*row) for row in described)}
    except (TypeError, ValueError):
        raise Refused("field", "objects") from None
    return lambda: objects


def _object(key: Any, score: Any, state: Any, box: Any, area: Any) -> ObjectResult:
    if state not in _STATES:
        raise ValueError(state)
    edges = None if box is None else tuple(int(edge) for edge in box)
    if edges is not None and len(edges) != 4:
        raise ValueError(box)
    return ObjectResult(int(key), float(score), state, edges, int(area))


@lru_cache(maxsize=4)
def _no_picture(height: int, width: int) -> np.ndarray:
    return np.broadcast_to(np.zeros(3, np.uint8), (height, width, 3))


def _no_probabilities() -> np.ndarray:
    raise InputError("probabilities stay where they are made; a pipeline's sinks have the masks")


def _no_objects() -> dict[int, ObjectResult]:
    raise InputError("no sink of this stream uses scores and boxes, so they were not computed")
