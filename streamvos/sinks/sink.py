"""What every sink of results has in common: one way to open, write and close it.

A sink is a context manager. Its output gets its final name only when the block ends without an exception.
A sink of one file writes NAME.RANDOM.partial.SUFFIX in the same folder and renames it when closed. After an
exception the partial file is finished as far as possible (a video plays, lines are whole) and keeps its
partial name, so that a file with the final name is always whole.

A full disk is an error like any other, unless `Sink.on_full` waits for room. Then nothing is lost: a frame
that was written in part is removed, or completed, before the next.

    with JsonLinesSink("out/results.jsonl") as sink:
        sink.write(frame, result)
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import ClassVar, TypeVar

from streamvos.types import Frame, InputError, Result, SinkError

SinkType = TypeVar("SinkType", bound="Sink")


class Sink(ABC):
    """Takes frames with their results, one after the other.

    Attributes:
        path: the file or folder of the finished output.
        on_full: function that the writing thread calls with the error when the disk or a quota is full. It
            may wait, and returns whether to try again; otherwise, or without such a function, the error is
            raised. Label maps, lines of JSON and recoverable videos can be tried again.
    """

    on_full: Callable[[Exception], bool] | None = None

    _repeatable: ClassVar[bool] = True
    """Whether a failed `_write` leaves nothing behind, so that it can be called again."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._open = True

    @property
    def place(self) -> Path:
        """Where the output is until the sink is closed, and after a failure."""
        return self.path

    def write(self, frame: Frame, result: Result) -> None:
        """Write one frame's result.

        Raises:
            InputError: the mask's size is not the frame's, or the sink is closed. Nothing was written.
            SinkError: it cannot be written (full disk, missing permission).
        """
        if not self._open:
            raise InputError(f"the sink for {self.path} is closed; open it again to write")
        if result.mask.dtype != "uint8":
            raise InputError(f"the mask of frame {frame.index} is {result.mask.dtype}; a label map is uint8")
        if result.mask.shape != frame.size:
            raise InputError(
                f"the mask of frame {frame.index} has the shape {result.mask.shape}, but its picture is "
                f"{frame.size}; a result must have its frame's own size"
            )
        while True:
            try:
                return self._write(frame, result)
            except SinkError as error:
                if not (self._repeatable and self._may_try_again(error)):
                    raise

    def _may_try_again(self, error: Exception) -> bool:
        """Whether a failed write should be tried again, after waiting for room."""
        return full_reason(error) != "" and self.on_full is not None and self.on_full(error)

    def close(self) -> None:
        """Finish the output and give it its final name; a second call does nothing.

        Raises:
            SinkError: it cannot be finished or renamed.
        """
        if self._open:
            self._open = False
            self._finish()

    def abort(self) -> None:
        """Stop without the final name; whole frames stay under the partial name. Never raises."""
        if self._open:
            self._open = False
            self._abandon()

    def __enter__(self: SinkType) -> SinkType:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    @abstractmethod
    def _write(self, frame: Frame, result: Result) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...

    @abstractmethod
    def _abandon(self) -> None: ...


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, or raise a `SinkError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(path: Path, error: Exception) -> SinkError:
    """The error for a `path` that cannot be written, with the reason and what to do about it."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    number = getattr(error, "errno", None)
    advice = _ADVICE.get(number, "choose another place") if number is not None else "choose another place"
    return SinkError(f"cannot write {path}: {reason}; {advice}")


_ADVICE = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "free some space or choose another place",
    errno.EISDIR: "a folder is in the way: choose another place",
    errno.EEXIST: "something is in the way: choose another place",
    errno.ENOTDIR: "a file is in the way: choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "was its folder removed?",
}


def full_reason(error: BaseException) -> str:
    """The system's message if an error or its cause is a full disk or quota, else "".

    Such as "no space left on device".
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return (cause.strerror or "no space left on device").lower()
        cause = cause.__cause__
    return ""
