"""What flows between the rooms: frames, features, evidence, results, and the errors.

Every shape, dtype and unit of the project is stated once, here. H and W are the height and width of
the frame in pixels; h and w those of a feature map in cells; C channels; B frames in a batch; K the
number of objects, so that 1 + K counts the background too.

    >>> import numpy as np
    >>> frame = Frame(np.zeros((480, 854, 3), np.uint8), index=0, captured_ns=0, pts=0.0)
    >>> frame.size
    (480, 854)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the command line imports this file and starts faster without NumPy
    import numpy as np
    import torch

VOID = 255
"""The value that a label map gives to pixels of unknown label (DAVIS and PASCAL VOC)."""

MAX_OBJECT_ID = 254
"""The largest object id; 0 is the background and 255 is void."""

State = Literal["tracking", "uncertain", "lost"]


class StreamvosError(Exception):
    """Base of every error that streamvos raises on purpose."""


class InputError(StreamvosError, ValueError):
    """The caller gave something that cannot be used; nothing was changed.

    The message says what came, what was expected, and what to do.
    """


class SourceError(StreamvosError, RuntimeError):
    """A source could not be opened, or failed while it was read."""


class SinkError(StreamvosError, RuntimeError):
    """A sink could not write what it was given (full disk, missing permission)."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a stream.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        index: position in the stream, counted from 0 without gaps.
        captured_ns: when the frame was taken or decoded, `time.monotonic_ns()`.
        pts: presentation time in seconds from the start of the stream.
        stream: name of the stream it belongs to.
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
    """What an extractor makes of a batch of frames.

    Attributes:
        maps: name -> (B, C, h, w) float; the names are the method's own.
        size: (H, W) of the frames in pixels.
    """

    maps: Mapping[str, torch.Tensor]
    size: tuple[int, int]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.maps[name]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a target says about the current frame before it is decoded.

    Attributes:
        maps: name -> tensor; the names and meanings are the method's own. The method's decoder
            turns them, and nothing else, into probabilities.
        object_ids: the K ids that the channels 1..K stand for, ascending.
    """

    maps: Mapping[str, torch.Tensor]
    object_ids: tuple[int, ...]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.maps[name]


@dataclass(frozen=True, slots=True)
class Annotation:
    """What the user says about a frame while objects may already be followed.

    Attributes:
        label_map: (H, W) int64; the pixels of the objects that it names are known, 0 and 255 (void) say
            nothing.
        object_ids: the ids it names, ascending; each has at least one pixel.
    """

    label_map: torch.Tensor
    object_ids: tuple[int, ...]

    def masks(self) -> torch.Tensor:
        """(K, H, W) float32, one or zero: the pixels of each named object."""
        import torch  # processes that only read cameras or write files do without it

        ids = torch.tensor(self.object_ids, device=self.label_map.device, dtype=self.label_map.dtype)
        return (self.label_map[None] == ids[:, None, None]).float()


@dataclass(frozen=True, slots=True)
class ObjectResult:
    """One object in one frame.

    Attributes:
        id: the user's id, 1..254.
        score: mean probability over the object's own pixels, 0..1; 0 where it has none.
        state: "tracking"; "uncertain" if the score is low; "lost" if no pixel is left.
        box: (left, top, right, bottom) in pixels, right and bottom exclusive; None when lost.
        area: number of pixels.
    """

    id: int
    score: float
    state: State
    box: tuple[int, int, int, int] | None
    area: int


@dataclass(frozen=True, slots=True)
class Result:
    """The answer for one frame.

    Attributes:
        mask: (H, W) uint8 label map at the frame's own size; 0 is background, ids are the user's.
        index: how many frames the segmenter had seen before this one since its last reset.
        object_ids: the ids known at this frame, ascending; channel k + 1 of `probabilities` is
            `object_ids[k]`.
    """

    mask: np.ndarray
    index: int
    object_ids: tuple[int, ...]
    _probabilities: Callable[[], np.ndarray] = field(repr=False)
    _objects: Callable[[], dict[int, ObjectResult]] = field(repr=False)

    @property
    def probabilities(self) -> np.ndarray:
        """(1 + K, H, W) float32, background first, summing to 1 per pixel; made when asked."""
        return self._probabilities()

    @property
    def objects(self) -> dict[int, ObjectResult]:
        """Score, state, box and area per object id; made when asked."""
        return self._objects()
