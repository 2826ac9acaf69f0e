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

    with JsonLinesSink("out/results.jsonl") as sink:  # tail -f out/results.*.partial.jsonl
        sink.write(frame, result)
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import os
from pathlib import Path

from streamvos.masks.rle import encode_rles
from streamvos.sinks.record import (
    OutputRecord,
    check_is_there,
    file_identity,
    give_name,
    is_plain_file,
    new_partial,
)
from streamvos.sinks.sink import Sink, cannot_write, make_folder
from streamvos.types import Frame, InputError, Result, SinkError


class JsonLinesSink(Sink):
    """Writes one whole line of JSON per frame.

    The lines go to NAME.RANDOM.partial.jsonl at once, and the file is renamed when the sink is closed. A line
    that does not fit on the disk is removed before the error is raised.

    Args:
        path: the final file, such as out/results.jsonl; its folder is made if missing.
        resume: continue after the last whole line of an earlier writer of the same stream, whose file may be
            partial (it was killed) or final; if there was none, begin a new file.
        record: lists the file and finds a killed writer's; without it, an earlier file at `path` is replaced
            when the sink is closed.

    Attributes:
        partial: the file while it is written.
        last_index: frame of the last earlier line; None if there is none.

    Raises:
        SinkError: the file cannot be made, or the earlier one is gone.
    """

    def __init__(self, path: str | Path, *, resume: bool = False, record: OutputRecord | None = None) -> None:
        super().__init__(path)
        make_folder(self.path.parent)
        self._record = record
        self.last_index: int | None = None
        self._size = 0
        earlier = _earlier_file(self.path, record) if resume else None
        for _, left in [] if record is None else record.partials():
            if left != earlier:
                left.unlink(missing_ok=True)
        make = new_partial if record is None else record.new_partial
        self.partial, descriptor = make(self.path)
        try:
            if earlier is not None:  # under a new name: a writer that is not quite dead keeps the old one
                os.close(descriptor)
                os.replace(earlier, self.partial)
                descriptor = os.open(self.partial, os.O_RDWR | os.O_NOFOLLOW)
            self._identity = file_identity(descriptor)
            # Unbuffered: one line is one system call, which a crash cannot cut in two.
            self._file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115
            if earlier is not None:
                self._size, self.last_index = _end_of_lines(self._file)
                self._file.truncate(self._size)
                self._file.seek(self._size)
        except OSError as error:
            raise cannot_write(self.partial, error) from error

    @property
    def place(self) -> Path:
        return self.partial

    def _write(self, frame: Frame, result: Result) -> None:
        line = _line(frame, result)
        try:
            check_is_there(self.partial, self._identity)
            written = self._file.write(line)
            while written < len(line):  # a disk that fills up takes a part, and the next try fails
                written += self._file.write(line[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self._size)
                self._file.seek(self._size)
            raise cannot_write(self.partial, error) from error
        self._size += len(line)

    def _finish(self) -> None:
        try:
            self._file.close()
            check_is_there(self.partial, self._identity)
            give_name(self.partial, self.path, self._record)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _earlier_file(path: Path, record: OutputRecord | None) -> Path | None:
    """The file of an earlier writer of the same stream, if there was one."""
    if record is None:
        return path if is_plain_file(path) else None
    found = [one for _, one in record.partials()]
    found += [path] if record.is_ours(path) else []
    if not found and record.has_begun():
        raise SinkError(f"{path} was removed while it was written; its first lines are lost")
    return max(found, key=lambda one: one.stat().st_size, default=None)


def _end_of_lines(file: io.RawIOBase) -> tuple[int, int | None]:
    """Where the last valid line ends, in bytes, and the index of its frame."""
    if os.fstat(file.fileno()).st_size == 0:
        return 0, None  # an empty file cannot be mapped
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
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
