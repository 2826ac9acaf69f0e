"""Results as lines of JSON, one per frame, for programs that read them while they are written.

A line is an object with these members:

    stream       name of the stream
    index        the frame's place in the stream, from 0
    pts          seconds from the start of the stream
    captured_ns  when the frame was taken, monotonic nanoseconds of this machine
    size         [H, W] in pixels
    objects      one per known object, by id:
        id       the user's id
        score    0..1
        state    "tracking", "uncertain" or "lost"
        box      [left, top, right, bottom] in pixels, right and bottom exclusive; null if lost
        area     pixels
        rle      {"size": [H, W], "counts": "..."}, COCO's compressed run-length encoding

    with JsonLinesSink("out/results.jsonl") as sink:  # tail -f out/results.partial.jsonl
        sink.write(frame, result)
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from pathlib import Path

from streamvos.masks.rle import encode_rles
from streamvos.sinks.sink import Sink, cannot_write, make_folder, partial_path
from streamvos.types import Frame, InputError, Result


class JsonLinesSink(Sink):
    """Writes one whole line of JSON per frame.

    The lines go to NAME.partial.jsonl at once, and the file is renamed when the sink is closed. A line that
    does not fit on the disk is removed before the error is raised.

    Args:
        path: the final file, such as out/results.jsonl; its folder is made if missing.
        resume: continue after the last whole line of an earlier writer of the same stream, whose file may be
            partial (it was killed) or final; if there is none, begin a new file.

    Attributes:
        last_index: frame of the last earlier line; None if there is none.

    Raises:
        SinkError: the file cannot be made.
    """

    def __init__(self, path: str | Path, *, resume: bool = False) -> None:
        super().__init__(path)
        make_folder(self.path.parent)
        self._partial = partial_path(self.path)
        self.last_index: int | None = None
        self._size = 0
        try:
            if resume and not self._partial.exists() and self.path.exists():
                os.replace(self.path, self._partial)
            resume = resume and self._partial.exists()
            # Unbuffered: one line is one system call, which a crash cannot cut in two.
            self._file = open(self._partial, "r+b" if resume else "wb", buffering=0)  # noqa: SIM115
            if resume:
                self._size, self.last_index = _end_of_lines(self._partial)
                self._file.truncate(self._size)
                self._file.seek(self._size)
        except OSError as error:
            raise cannot_write(self._partial, error) from error

    def _write(self, frame: Frame, result: Result) -> None:
        line = _line(frame, result)
        try:
            written = self._file.write(line)
            while written < len(line):  # a disk that fills up takes a part, and the next try fails
                written += self._file.write(line[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self._size)
                self._file.seek(self._size)
            raise cannot_write(self._partial, error) from error
        self._size += len(line)

    def _finish(self) -> None:
        try:
            self._file.close()
            os.replace(self._partial, self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _end_of_lines(path: Path) -> tuple[int, int | None]:
    """Where the last valid line ends, in bytes, and the index of its frame."""
    if path.stat().st_size == 0:
        return 0, None  # an empty file cannot be mapped
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        end = content.rfind(b"\n") + 1
        while end > 0:
            start = content.rfind(b"\n", 0, end - 1) + 1
            try:
                return end, int(json.loads(content[start:end])["index"])
            except (ValueError, KeyError, TypeError):  # not a line of this sink: look at the one before it
                end = start
    return 0, None


def _line(frame: Frame, result: Result) -> bytes:
    encoded = encode_rles(result.mask, result.objects)
    objects = [
        {
            "id": key,
            "score": round(item.score, 6),
            "state": item.state,
            "box": item.box,
            "area": item.area,
            "rle": encoded[key],
        }
        for key, item in sorted(result.objects.items())
    ]
    record = {
        "stream": frame.stream,
        "index": int(frame.index),
        "pts": round(float(frame.pts), 6),
        "captured_ns": int(frame.captured_ns),
        "size": frame.size,
        "objects": objects,
    }
    try:
        text = json.dumps(record, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise InputError(f"frame {frame.index} has a time or score that is not a number: {error}") from error
    return text.encode() + b"\n"
