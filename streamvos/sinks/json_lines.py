"""Results as lines of JSON, one a frame, for programs that read along.

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

    >>> with JsonLinesSink("out/results.jsonl") as sink:  # tail -f out/results.partial.jsonl
    ...     sink.write(frame, result)
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from streamvos.sinks.rle import encode_rles
from streamvos.sinks.sink import Sink, cannot_write, make_folder, partial_path
from streamvos.types import Frame, InputError, Result


class JsonLinesSink(Sink):
    """Writes one line of JSON per frame; a line is either there as a whole or not at all.

    The lines go to NAME.partial.jsonl, each as soon as it is known, and the file is renamed when the
    sink is closed. A line that does not fit on the disk is taken back before the error is raised.

    Args:
        path: the final file, such as out/results.jsonl; its folder is made if missing.

    Raises:
        SinkError: the file cannot be made.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        make_folder(self.path.parent)
        self._partial = partial_path(self.path)
        try:
            # Unbuffered: one line is one call to the system, which a crash cannot cut in two.
            self._file = open(self._partial, "wb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise cannot_write(self._partial, error) from error
        self._size = 0

    def _write(self, frame: Frame, result: Result) -> None:
        line = _line(frame, result)
        try:
            written = self._file.write(line)
            while written < len(line):  # a disk that fills up takes a part, and fails at the next try
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


def _line(frame: Frame, result: Result) -> bytes:
    found = result.objects
    encoded = encode_rles(result.mask, found)
    objects: list[dict[str, Any]] = [
        {
            "id": int(key),
            "score": round(float(found[key].score), 6),
            "state": found[key].state,
            "box": None if found[key].box is None else [int(edge) for edge in found[key].box or ()],
            "area": int(found[key].area),
            "rle": encoded[int(key)],
        }
        for key in sorted(found)
    ]
    record = {
        "stream": frame.stream,
        "index": int(frame.index),
        "pts": round(float(frame.pts), 6),
        "captured_ns": int(frame.captured_ns),
        "size": list(frame.size),
        "objects": objects,
    }
    try:
        text = json.dumps(record, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise InputError(f"frame {frame.index} has a time or score that is no number: {error}") from error
    return text.encode() + b"\n"
