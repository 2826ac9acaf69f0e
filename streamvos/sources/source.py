"""What every source of frames has in common: one way to open, read and close it.

A source is a context manager and, like an open file, an iterator that is read once, from the first frame to
the last. Subclasses implement `_read`; numbering, resizing, skipping and the check of the size happen here.

    with open_source("videos/goat.mp4", height=480) as source:
        for frame in source:
            print(frame.index, frame.pts, frame.size)
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, TypeVar

import numpy as np

from streamvos.types import Frame, InputError, SourceError

NOMINAL_FPS = 24.0
"""Frames per second that time stamps assume for a source without a clock (DAVIS plays at 24)."""

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".gif"}
)
"""File names that count as pictures; all others in a folder are skipped."""

SourceType = TypeVar("SourceType", bound="Source")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which frames of a source to give, and at which size.

    Attributes:
        height: number of rows to resize to, the width in proportion; None keeps the size.
        stride: 1 gives every frame, 2 every second one, beginning with the first.
        max_frames: number of frames to stop after; None reads to the end.

    Raises:
        InputError: a value is not a whole number >= 1.
    """

    height: int | None = None
    stride: int = 1
    max_frames: int | None = None

    def __post_init__(self) -> None:
        for name in ("height", "stride", "max_frames"):
            value = getattr(self, name)
            if value is None and name != "stride":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} must be a whole number >= 1, got {value!r}")

    def size(self, native: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the frames of a source whose native size is `native`."""
        if self.height is None:
            return native
        return self.height, max(1, round(native[1] * self.height / native[0]))

    def length(self, native: int | None) -> int | None:
        """How many of `native` frames are given; None stays unknown, even with `max_frames`."""
        if native is None:
            return None
        length = math.ceil(native / self.stride)
        return length if self.max_frames is None else min(length, self.max_frames)


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
        native_size: (H, W) before resizing.
        fps: frames per second, after `stride`; None where it is not known.
        length: number of frames, as far as it is known beforehand, or None. For a video file it is what the
            container claims.
        alive_ns: `time.monotonic_ns()` of the last skipped picture, 0 before. It tells a thread that waits
            for a frame that the source is skipping, not hanging.

    Raises (while iterating):
        InputError: a file of the source is damaged or has another size than the first.
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
    ) -> None:
        self.name = name
        self.size = selection.size(native_size)
        self.fps = None if fps is None else fps / selection.stride
        self.length = selection.length(native_length)
        self.native_size = native_size
        self._selection = selection
        self._given = 0
        self._ended = False
        self._closed = False

    alive_ns = 0

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

    def pass_over(self, count: int) -> None:
        """Skip the next `count` frames; the frames after them keep their numbers.

        Raises:
            InputError, SourceError: as when iterating.
        """
        left = self._selection.max_frames
        count = count if left is None else min(count, left - self._given)
        if count > 0 and not (self._ended or self._closed):
            stride = self._selection.stride
            self._skip(count * stride if self._given else 1 + (count - 1) * stride)
            self._given += count

    def _position(self) -> str:
        """Name of the last picture in error messages."""
        return f"frame {self._given} of {self.name}"

    def stem(self, index: int) -> str:
        """File name without suffix for the results of frame `index`, such as "00007"."""
        return f"{index:05d}"

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
        if self._given and self._selection.stride > 1:
            self._skip(self._selection.stride - 1)
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
            image=self._resize(picture.image),
            index=self._given,
            captured_ns=picture.captured_ns,
            pts=picture.pts,
            stream=self.name,
        )
        self._given += 1
        return frame

    def _resize(self, image: np.ndarray) -> np.ndarray:
        if self.size == self.native_size:
            return image
        import cv2  # takes 16 MiB, and only resizing needs it

        shrinks = self.size[0] < self.native_size[0]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(image, (self.size[1], self.size[0]), interpolation=method))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} size={self.size} fps={self.fps} length={self.length}>"
