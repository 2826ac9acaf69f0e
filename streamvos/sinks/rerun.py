"""Frames, masks, boxes, scores, states and latencies in Rerun's viewer, live or as a file.

    with RerunSink("out.rrd") as sink:              # or "127.0.0.1:9876", where a viewer listens
        sink.write(frame, result)

At most `RATE` frames a second are logged, and each is handed over before the next: what a viewer cannot take
in time is left out, and never piles up. A viewer that goes away ends the logging, with a warning, and nothing
else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from streamvos.masks.labelmap import davis_palette
from streamvos.sinks.record import check_is_there, file_identity, give_name, new_partial
from streamvos.sinks.sink import Sink, cannot_write, make_folder
from streamvos.types import MAX_OBJECT_ID, Frame, InputError, Result

logger = logging.getLogger(__name__)

RATE = 10.0
"""Frames a second that are logged: of a viewer's in real time, of a file's by their `pts`."""

ANYWHERE = "127.0.0.1:9876"
"""Where Rerun's viewer listens by itself."""

_JPEG_QUALITY = 85
_FLUSH_SECONDS = 2.0


def is_file(target: str) -> bool:
    """Whether a target is a file, and not a viewer's address."""
    return target.lower().endswith(".rrd")


def check_target(target: str) -> None:
    """Refuse what cannot be logged to; InputError: rerun-sdk is missing, or no viewer listens there."""
    try:
        import rerun  # noqa: F401
    except ImportError:
        raise InputError("rerun-sdk is not installed: pip install 'streamvos[rerun]'") from None
    if is_file(target):
        return
    host, colon, port = target.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise InputError(f"--rerun is {target!r}; expected FILE.rrd or HOST:PORT, such as {ANYWHERE}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError as error:
        raise InputError(
            f"no Rerun viewer listens at {target} ({error.strerror or error}); start one with `rerun`, or "
            "give FILE.rrd"
        ) from None


class RerunSink(Sink):
    """Logs results.

    Args:
        target: FILE.rrd, which is partial until it is closed, or HOST:PORT of a viewer.
        rate: frames a second.

    Raises:
        InputError: see `check_target`.
        SinkError: the file cannot be made.
    """

    _repeatable: ClassVar[bool] = False

    def __init__(self, target: str, *, rate: float = RATE) -> None:
        super().__init__(target)
        check_target(target)
        import rerun as rr

        self._rr, self._period, self._due = rr, 1 / rate, -np.inf
        self._states: dict[int, str] = {}
        self._recording: Any = rr.RecordingStream("streamvos")
        self.partial: Path | None = None
        if is_file(target):
            make_folder(self.path.parent)
            self.partial, descriptor = new_partial(self.path)
            self._identity = file_identity(descriptor)
            os.close(descriptor)
            self._recording.save(self.partial)
        else:
            self._recording.connect_grpc(f"rerun+http://{target}/proxy")
        palette = davis_palette()
        classes = [(key, str(key), tuple(palette[key].tolist())) for key in range(1, MAX_OBJECT_ID + 1)]
        self._log("/", rr.AnnotationContext([(0, "background", (0, 0, 0, 0)), *classes]), static=True)

    @property
    def place(self) -> Path:
        return self.partial or self.path

    def _log(self, path: str, what: Any, static: bool = False) -> None:
        self._recording.log(path, what, static=static)

    def _write(self, frame: Frame, result: Result) -> None:
        now = frame.pts if self.partial is not None else time.monotonic()
        if self._recording is None or now < self._due:
            return
        self._due = max(self._due, now) + self._period
        rr = self._rr
        self._recording.set_time("frame", sequence=frame.index)
        self._recording.set_time("pts", duration=frame.pts)
        self._log("frame", rr.Image(frame.image).compress(jpeg_quality=_JPEG_QUALITY))
        self._log("frame/label_map", rr.SegmentationImage(result.mask))
        objects = [one for _, one in sorted(result.objects.items())]
        seen = [one for one in objects if one.box is not None]
        boxes = np.array([one.box for one in seen], np.float32).reshape(-1, 4)
        self._log(
            "frame/boxes",
            rr.Boxes2D(
                array=boxes,
                array_format=rr.Box2DFormat.XYXY,
                labels=[f"{one.id} {one.score:.2f}" for one in seen],
                class_ids=[one.id for one in seen],
            ),
        )
        self._log("latency_ms", rr.Scalars((time.monotonic_ns() - frame.captured_ns) / 1e6))
        for one in objects:
            self._log(f"objects/{one.id}/score", rr.Scalars(one.score))
            if self._states.get(one.id) != one.state:
                self._states[one.id] = one.state
                self._log("states", rr.TextLog(f"object {one.id}: {one.state}"))
        self._hand_over()

    def _hand_over(self) -> None:
        try:
            self._recording.flush(timeout_sec=_FLUSH_SECONDS)
        except Exception as error:  # Rerun's errors have no common base
            reason = " ".join(str(error).split())
            logger.warning("Rerun at %s takes no more, the results go on without it: %s", self.place, reason)
            self._recording = None

    def _finish(self) -> None:
        if self._recording is not None:
            self._hand_over()
        if self._recording is not None:
            self._recording.disconnect()
        if self.partial is not None:
            try:
                check_is_there(self.partial, self._identity)
                give_name(self.partial, self.path, None)
            except OSError as error:
                raise cannot_write(self.path, error) from error

    def _abandon(self) -> None:
        if self._recording is not None:
            with contextlib.suppress(Exception):
                self._recording.flush(timeout_sec=_FLUSH_SECONDS)
            with contextlib.suppress(Exception):
                self._recording.disconnect()
