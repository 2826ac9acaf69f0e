"""A full disk, and somebody who waits for room: with /dev/full, which never has any.

That a stream goes on when there is room again is held by tests/pipeline/test_full_disks.py, on a small disk.
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
    """Says so many times that it shall be tried again."""

    def __init__(self, times: int):
        self.left, self.errors = times, []

    def __call__(self, error: Exception) -> bool:
        self.errors.append(error)
        self.left -= 1
        return self.left >= 0


def write_all(sink, pairs):
    for pair in pairs:
        sink.write(*pair)


def test_a_line_is_tried_again_until_whoever_waits_gives_up(tmp_path, make_pair):
    (tmp_path / "results.partial.jsonl").symlink_to("/dev/full")
    sink, waits = JsonLinesSink(tmp_path / "results.jsonl"), Waits(3)
    sink.on_full = waits
    with pytest.raises(SinkError, match="No space left on device"):
        sink.write(*make_pair(0))
    assert len(waits.errors) == 4
    assert {full_reason(error) for error in waits.errors} == {"no space left on device"}
    sink.abort()


def test_nobody_is_asked_about_another_error(tmp_path, make_pair):
    sink, waits = LabelMapSink(tmp_path / "labels"), Waits(3)
    sink.on_full = waits
    (tmp_path / "labels").rmdir()
    with pytest.raises(SinkError, match="No such file"):
        sink.write(*make_pair(0))
    assert not waits.errors
    assert full_reason(OSError(errno.EFBIG, os.strerror(errno.EFBIG))) == ""


@pytest.mark.parametrize("ends", ["closed", "aborted"])
@pytest.mark.parametrize("times", [None, 0, 5])
def test_a_video_asks_while_a_piece_of_it_is_written(tmp_path, make_pair, times, ends):
    partial = tmp_path / "overlay.partial.mp4"
    partial.symlink_to("/dev/full")
    sink = OverlayVideoSink(tmp_path / "overlay.mp4", recoverable=True)
    waits = None if times is None else Waits(times)
    sink.on_full = waits
    with pytest.raises(SinkError, match="No space left on device"):
        write_all(sink, [make_pair(index) for index in range(100)])
    assert waits is None or len(waits.errors) == times + 1
    if ends == "closed":
        with pytest.raises(SinkError, match=r"overlay\.mp4: No space left on device"):
            sink.close()
    sink.abort()
    assert not partial.is_symlink()  # nothing of it can be played
    assert not (tmp_path / "overlay.mp4").exists()
