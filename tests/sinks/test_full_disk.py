"""A full disk, and waiting for room on it: with /dev/full, which never has any.

tests/pipeline/test_full_disks.py tests that a stream continues when there is room again, on a small disk.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from streamvos.sinks import JsonLinesSink, LabelMapSink, OverlayVideoSink
from streamvos.sinks.sink import full_reason
from streamvos.types import SinkError

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


class Waits:
    """Asks for so many further tries."""

    def __init__(self, times: int):
        self.left, self.errors = times, []

    def __call__(self, error: Exception) -> bool:
        self.errors.append(error)
        self.left -= 1
        return self.left >= 0


def fill(descriptor: int) -> None:
    """Make the disk full for an open file: what is written to it goes to /dev/full."""
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, descriptor)
    os.close(full)


def write_all(sink, pairs):
    for pair in pairs:
        sink.write(*pair)


def test_a_line_is_tried_again_until_on_full_gives_up(tmp_path, make_pair):
    sink, waits = JsonLinesSink(tmp_path / "results.jsonl"), Waits(3)
    fill(sink._file.fileno())
    sink.on_full = waits
    with pytest.raises(SinkError, match="No space left on device"):
        sink.write(*make_pair(0))
    assert len(waits.errors) == 4
    assert {full_reason(error) for error in waits.errors} == {"no space left on device"}
    sink.abort()


def test_on_full_is_not_called_for_another_error(tmp_path, make_pair):
    sink, waits = LabelMapSink(tmp_path / "labels"), Waits(3)
    sink.on_full = waits
    (tmp_path / "labels").rmdir()
    with pytest.raises(SinkError, match="No such file"):
        sink.write(*make_pair(0))
    assert not waits.errors
    assert full_reason(OSError(errno.EFBIG, os.strerror(errno.EFBIG))) == ""


@pytest.mark.parametrize("ends", ["closed", "aborted"])
@pytest.mark.parametrize("times", [None, 0, 5])
def test_a_video_calls_on_full_while_a_piece_is_written(tmp_path, make_pair, times, ends):
    sink = OverlayVideoSink(tmp_path / "overlay.mp4", recoverable=True)
    fill(sink._file.fileno())
    waits = None if times is None else Waits(times)
    sink.on_full = waits
    with pytest.raises(SinkError, match="No space left on device"):
        write_all(sink, [make_pair(index) for index in range(100)])
    assert waits is None or len(waits.errors) == times + 1
    if ends == "closed":
        with pytest.raises(SinkError, match=r"overlay\.mp4: No space left on device"):
            sink.close()
    sink.abort()
    assert not sink.partial.exists()  # nothing of it can be played
    assert not (tmp_path / "overlay.mp4").exists()
