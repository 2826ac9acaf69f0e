"""The data that all rooms share: frames, features, evidence, annotations, results, and the errors.

Shapes use these letters everywhere in the project: H and W are the height and width of a frame in pixels,
h and w those of a feature map in cells, C the channels, B the frames of a batch, and K the number of
objects, so that 1 + K counts the background too.

    >>> import numpy as np
    >>> frame = Frame(np.zeros((480, 854, 3), np.uint8), index=0, captured_ns=0, pts=0.0)
    >>> frame.size
    (480, 854)
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the command line imports this file and starts faster without NumPy
    import numpy as np
    import torch
    from supervision import Detections

DEFAULT_METHOD = "tvos"
"""The method where the caller names none; docs/results.md says why."""

VOID = 255
"""Label of the pixels whose object is unknown (DAVIS and PASCAL VOC)."""

MAX_OBJECT_ID = 254
"""The largest object id; 0 is the background and 255 is void."""

State = Literal["tracking", "uncertain", "lost"]


class StreamvosError(Exception):
    """Base class of all errors that streamvos raises."""


class InputError(StreamvosError, ValueError):
    """The input cannot be used; the state is unchanged.

    The message says what came, what was expected, and what to do.
    """


class TruncatedError(InputError):
    """A source is damaged, or ends before the end that it promises; all frames before that were given."""


class SourceError(StreamvosError, RuntimeError):
    """A source cannot be opened, or fails while it is read."""


class SinkError(StreamvosError, RuntimeError):
    """A sink cannot write a result (full disk, missing permission)."""


_NO_MEMORY = re.compile(
    r"(can't|cannot) allocate memory|not enough memory|out of memory|insufficient memory|bad_alloc"
    r"|failed to map segment|can't start new thread|MemoryError",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that this machine or its GPU has too little memory.

    Libraries say so in different ways: torch on a processor, OpenCV and the loader of shared libraries raise
    errors of their usual types.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return not isinstance(error, StreamvosError) and _NO_MEMORY.search(str(error)) is not None


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a stream.

    Attributes:
        image: the picture, (H, W, 3) uint8 RGB.
        index: its position in the stream, counted from 0 without gaps.
        captured_ns: the time when it was captured or decoded, in ns of `time.monotonic_ns()`.
        pts: its presentation time, in seconds from the start of the stream.
        stream: the name of its stream.
    """

    image: np.ndarray
    index: int
    captured_ns: int
    pts: float
    stream: str = "stream"

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return int(self.image.shape[0]), int(self.image.shape[1])


@dataclass(frozen=True, slots=True)
class Features:
    """The output of an extractor for a batch of frames.

    Attributes:
        maps: feature maps by name, each (B, C, h, w) float; every method has its own names.
        size: (H, W) of the frames in pixels.
    """

    maps: Mapping[str, torch.Tensor]
    size: tuple[int, int]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.maps[name]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a target knows about the current frame; the decoder needs nothing else.

    Attributes:
        maps: tensors by name; every method has its own names and shapes.
        object_ids: the K ids of the channels 1..K, ascending.
    """

    maps: Mapping[str, torch.Tensor]
    object_ids: tuple[int, ...]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.maps[name]


@dataclass(frozen=True, slots=True)
class Annotation:
    """A mask that the user gives with a frame; other objects may already be tracked.

    Attributes:
        label_map: (H, W) int64. The pixels of its objects are certain; 0 and 255 (void) leave a pixel to
            the prediction.
        object_ids: the ids in the label map, ascending; each has at least one pixel.
    """

    label_map: torch.Tensor
    object_ids: tuple[int, ...]

    def masks(self) -> torch.Tensor:
        """One mask per object, (K, H, W) float32 of 0 and 1."""
        import torch  # processes that only read cameras or write files do not load it

        ids = torch.tensor(self.object_ids, device=self.label_map.device, dtype=self.label_map.dtype)
        return (self.label_map[None] == ids[:, None, None]).float()


@dataclass(frozen=True, slots=True)
class ObjectResult:
    """One object in one frame.

    Attributes:
        id: the id that the user gave it, 1..254.
        score: the mean probability over its pixels, 0..1; 0 if it has no pixel.
        state: "tracking"; "uncertain" if the score is low; "lost" if it has no pixel.
        box: (left, top, right, bottom) in pixels, right and bottom exclusive; None if it is lost.
        area: the number of its pixels.
    """

    id: int
    score: float
    state: State
    box: tuple[int, int, int, int] | None
    area: int


@dataclass(frozen=True, slots=True)
class Result:
    """The objects of one frame.

    Attributes:
        mask: the label map, (H, W) uint8 at the frame's own size; 0 is background.
        index: the number of frames since the last reset, not counting this one.
        object_ids: the K known ids, ascending; channel k + 1 of `probabilities` is `object_ids[k]`.
    """

    mask: np.ndarray
    index: int
    object_ids: tuple[int, ...]
    _probabilities: Callable[[], np.ndarray] = field(repr=False)
    _objects: Callable[[], dict[int, ObjectResult]] = field(repr=False)

    @property
    def probabilities(self) -> np.ndarray:
        """(1 + K, H, W) float32, background first, summing to 1 per pixel; computed on access."""
        return self._probabilities()

    @property
    def objects(self) -> dict[int, ObjectResult]:
        """Score, state, box and area by object id; computed on access."""
        return self._objects()

    def to_supervision(self) -> Detections:
        """The objects that are seen, as `supervision.Detections`.

        `tracker_id` and `class_id` are the object's id, `confidence` is its score, `data["state"]` its state.

        Raises:
            InputError: supervision is not installed.
        """
        import numpy as np

        try:
            from supervision import Detections
        except ImportError:
            raise InputError("supervision is not installed: pip install 'streamvos[supervision]'") from None
        seen = [one for one in self.objects.values() if one.box is not None]
        ids = np.array([one.id for one in seen], int)
        return Detections(
            xyxy=np.array([one.box for one in seen], np.float32).reshape(-1, 4),
            mask=self.mask[None] == ids[:, None, None],
            confidence=np.array([one.score for one in seen], np.float32),
            class_id=ids,
            tracker_id=ids.copy(),
            data={"state": np.array([one.state for one in seen], str)},
        )
