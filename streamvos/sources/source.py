"""What every source of frames has in common: one way to open, read and close it.

A source is a context manager and, like an open file, an iterator that is read once, from the first frame to
the last. Subclasses implement `_read`; numbering, resizing, skipping and the check of the size happen here.

    with open_source("videos/goat.mp4", height=480) as source:
        for frame in source:
            print(frame.index, frame.pts, frame.size)
"""

from __future__ import annotations

import math
import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, TypeVar

import numpy as np

from streamvos.types import Frame, InputError, SourceError

if TYPE_CHECKING:
    from collections.abc import Mapping

NOMINAL_FPS = 24.0
"""Frames per second that time stamps assume for a source without a clock (DAVIS plays at 24)."""

SourceType = TypeVar("SourceType", bound="Source")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which frames of a source to give, and at which size.

    Attributes:
        height: number of rows to resize to, the width in proportion; None keeps the size.
        stride: 1 gives every frame, 2 every second one, beginning with the first.
        max_frames: number of frames to stop after; None reads to the end.
        first_frame: the source's frame to begin with, counted from 0.

    Raises:
        InputError: a value is not a whole number >= 1 (`first_frame`: >= 0).
    """

    height: int | None = None
    stride: int = 1
    max_frames: int | None = None
    first_frame: int = 0

    def __post_init__(self) -> None:
        for name, least in (("height", 1), ("stride", 1), ("max_frames", 1), ("first_frame", 0)):
            value = getattr(self, name)
            if value is None and name in ("height", "max_frames"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be a whole number >= {least}, got {value!r}")

    def size(self, native: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the frames of a source whose pictures are `native` with square pixels."""
        if self.height is None:
            return native
        return self.height, max(1, round(native[1] * self.height / native[0]))

    def number(self, index: int) -> int:
        """The source's own number of the frame that is given as number `index`."""
        return self.first_frame + index * self.stride

    def length(self, native: int | None) -> int | None:
        """How many of `native` frames are given; None stays unknown, even with `max_frames`."""
        if native is None:
            return None
        length = math.ceil(max(native - self.first_frame, 0) / self.stride)
        return length if self.max_frames is None else min(length, self.max_frames)


def square_size(size: tuple[int, int], pixel_aspect: float) -> tuple[int, int]:
    """(H, W) with square pixels: the shorter side of a pixel is stretched, so that no detail is lost.

    Args:
        size: (H, W) in pixels that need not be square.
        pixel_aspect: width of a pixel divided by its height.
    """
    height, width = size
    if pixel_aspect >= 1:
        return height, max(1, math.floor(width * pixel_aspect + 0.5))
    return max(1, math.floor(height / pixel_aspect + 0.5)), width


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A frame at another size (H, W): the picture itself if it has it, else a new one."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    import cv2  # takes 16 MiB, and only resizing needs it

    method = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method))


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture before it is resized and numbered.

    Attributes:
        image: (H, W, 3) uint8, RGB, at the source's native size; writable and not shared.
        captured_ns: `time.monotonic_ns()` when it was taken or decoded.
        pts: seconds from the start of the stream.
    """

    image: np.ndarray
    captured_ns: int
    pts: float


class Source(ABC):
    """A stream of frames that can be read once, from the first to the last.

    The constructor opens it, so that its attributes are known before the first frame; `close` or the end of a
    `with` block closes it. A second loop over it continues where the first stopped.

    Attributes:
        name: name of the stream; never holds credentials.
        size: (H, W) of every frame in pixels, after resizing.
        native_size: (H, W) of the stored pictures, upright, before resizing. Where pixels are not square,
            `size` is that of the picture as it is shown.
        pixel_aspect: width of a stored pixel divided by its height.
        fps: frames per second, after `stride`; None where it is not known.
        length: number of frames, as far as it is known beforehand, or None. For a video file it is what the
            container claims.
        alive_ns: `time.monotonic_ns()` of the last skipped picture, 0 before. It tells a thread that waits
            for a frame that the source is skipping, not hanging.

    Raises (while iterating):
        InputError: a file of the source cannot be read or has another size than the first.
        TruncatedError: a video is damaged, or ends before the end that it promises.
        SourceError: a live source stalls, fails or changes its size; or the source is closed.
    """

    _fault: ClassVar[type[InputError] | type[SourceError]] = InputError
    """The error for a picture of another size: bad input on disk, a failure of a live source."""

    def __init__(
        self,
        *,
        name: str,
        native_size: tuple[int, int],
        fps: float | None,
        native_length: int | None,
        selection: Selection,
        pixel_aspect: float = 1.0,
    ) -> None:
        self.name = name
        self.size = selection.size(square_size(native_size, pixel_aspect))
        self.fps = None if fps is None else fps / selection.stride
        self.native_size, self.pixel_aspect = native_size, pixel_aspect
        self._native_length = native_length
        self._selection = selection
        self._given = 0
        self._next_number = 0  # the source's own number of the next picture to read
        self.length = self._checked_length()
        self._ended = False
        self._closed = False

    alive_ns = 0

    epoch_ns = 0
    """The time of `pts` 0 in ns since 1970; 0 where it is not known. Recordings say it."""

    @abstractmethod
    def _read(self) -> Picture | None:
        """The next picture at native size, or None at the end of the stream."""

    def _skip(self, count: int) -> None:
        """Skip `count` pictures; overridden by sources that need not decode them."""
        for _ in range(count):
            if self._read() is None:
                return
            self._note_progress()

    def _note_progress(self) -> None:
        """Note that a picture was skipped."""
        self.alive_ns = time.monotonic_ns()

    @property
    def first_frame(self) -> int:
        """The source's own number of the frame that is given first."""
        return self._selection.first_frame

    @property
    def stride(self) -> int:
        """Step between the source's own numbers of two frames."""
        return self._selection.stride

    def begin_at(self, first_frame: int) -> None:
        """Begin with another frame of the source; only before the first frame was taken.

        Raises:
            InputError: the source has no such frame.
        """
        assert not self._given
        self._selection = replace(self._selection, first_frame=first_frame)
        self.length = self._checked_length()

    def _checked_length(self) -> int | None:
        length, first = self._selection.length(self._native_length), self._selection.first_frame
        if length == 0 and first:
            raise InputError(
                f"{self.name} has {self._native_length} frames, numbered from 0; there is no frame "
                f"{first} to begin with (first_frame)"
            )
        return length

    def pass_over(self, count: int) -> None:
        """Skip the next `count` frames; the frames after them keep their numbers.

        Raises:
            InputError, SourceError: as when iterating.
        """
        left = self._selection.max_frames
        count = count if left is None else min(count, left - self._given)
        if count > 0 and not (self._ended or self._closed):
            self._given += count
            self._skip_to(self._selection.number(self._given - 1) + 1)

    def _skip_to(self, number: int) -> None:
        count, self._next_number = number - self._next_number, number
        if count:
            self._skip(count)

    def identity(self) -> Mapping[str, object]:
        """What tells whether a source that is opened again is still the same; see `changes`."""
        return {}

    def changes(self, earlier: Mapping[str, object], given: int) -> list[str]:
        """What is not as it was when the source was opened before; empty = nothing that matters.

        A stream that goes on after a crash refuses a source that has changed.

        Args:
            earlier: the `identity` of then.
            given: number of frames that were given then.
        """
        now = self.identity()
        different = {what: was for what, was in earlier.items() if was is not None and was != now.get(what)}
        return [
            f"the {what} differ" if isinstance(was, str) else f"the {what} was {was} and is {now.get(what)}"
            for what, was in different.items()
        ]

    def _position(self) -> str:
        """Name of the last picture in error messages."""
        return f"frame {self._given} of {self.name}"

    def stem(self, index: int) -> str:
        """File name without suffix for the results of frame `index`: the source's own number, as "00007"."""
        return f"{self._selection.number(index):05d}"

    def _called(self) -> tuple[str, ...]:
        """What names of files may call this source."""
        return (self.name,)

    def number_named(self, stem: str) -> int | None:
        """The source's own number of the frame that a file name says; None if it says none.

        A video's frame is said by its number alone ("00007"), or with the word "frame" or the video's name.
        """
        words = "|".join(map(re.escape, ("frame", *self._called())))
        match = re.fullmatch(rf"(?:(?:{words})[-_. ]*)?(\d{{1,9}})", stem, re.IGNORECASE)
        number = None if match is None else int(match[1])
        known = self._native_length is None or number is None or number < self._native_length
        return number if known else None

    def close(self) -> None:
        """Close files, devices and threads; a second call does nothing."""
        self._closed = True

    def __enter__(self: SourceType) -> SourceType:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self: SourceType) -> SourceType:
        return self

    def __next__(self) -> Frame:
        if self._closed:
            raise SourceError(f"{self.name} is closed; open it again to read it again")
        if self._ended or self._given == self._selection.max_frames:
            raise StopIteration
        self._skip_to(self._selection.number(self._given))
        self._next_number += 1
        picture = self._read()
        if picture is None:
            self._ended = True
            raise StopIteration
        height, width = picture.image.shape[:2]
        if (height, width) != self.native_size:
            raise self._fault(
                f"{self._position()} is {width}x{height} pixels, but the first frame was "
                f"{self.native_size[1]}x{self.native_size[0]}; all frames of a stream must have one size"
            )
        frame = Frame(
            image=resize(picture.image, self.size),
            index=self._given,
            captured_ns=picture.captured_ns,
            pts=picture.pts,
            stream=self.name,
        )
        self._given += 1
        return frame

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} size={self.size} fps={self.fps} length={self.length}>"
