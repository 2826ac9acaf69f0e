"""A `result` message as frame and result, as sinks take them; checked before use.

received = read_result(inbox, message, "front", pictures=False)
received.frame.index, received.result.mask.shape  # 7, (480, 854)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, Field, StrictFloat, StrictInt, ValidationError

from streamvos.pipeline.wire.inbox import Inbox
from streamvos.pipeline.wire.messages import Message, Refused
from streamvos.types import Frame, InputError, ObjectResult, Result


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


class _Object(NamedTuple):
    """The fields of an `ObjectResult`, in the order in which the decoder sends them."""

    id: StrictInt
    score: StrictFloat
    state: Literal["tracking", "uncertain", "lost"]
    box: tuple[StrictInt, StrictInt, StrictInt, StrictInt] | None
    area: StrictInt


class _Fields(BaseModel):
    """What a `result` says besides its arrays (docs/protocol.md, 3)."""

    captured: StrictInt
    pts: StrictFloat
    ids: tuple[StrictInt, ...]
    dropped: dict[str, StrictInt]
    stamps: dict[str, Annotated[list[StrictInt], Field(min_length=3, max_length=3)]]
    objects: list[_Object] | None = None


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
    try:
        fields = _Fields.model_validate(message.fields)
    except ValidationError as error:
        raise Refused("field", ".".join(map(str, error.errors()[0]["loc"]))) from None
    objects = _no_objects
    if fields.objects is not None:
        found = {one.id: ObjectResult(*one) for one in fields.objects}
        objects = lambda: found  # noqa: E731
    frame = Frame(image, message.seq, fields.captured, fields.pts, stream)
    result = Result(mask, message.seq, fields.ids, _no_probabilities, objects)
    return ReceivedResult(frame, result, fields.dropped, fields.stamps)


@lru_cache(maxsize=4)
def _no_picture(height: int, width: int) -> np.ndarray:
    return np.broadcast_to(np.zeros(3, np.uint8), (height, width, 3))


def _no_probabilities() -> np.ndarray:
    raise InputError("probabilities stay where they are made; a pipeline's sinks have the masks")


def _no_objects() -> dict[int, ObjectResult]:
    raise InputError("no sink of this stream uses scores and boxes, so they were not computed")
