"""What is left of an overlay video when its writer is killed: it plays, whatever the moment."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streamvos.sinks import OverlayVideoSink
from streamvos.sinks.overlay_parts import free_part, part_path, remove_partial_parts, rescue_parts
from streamvos.sinks.record import OutputRecord, new_partial
from streamvos.sources import VideoFileSource


@pytest.fixture
def killed(tmp_path, make_pair) -> bytes:
    """An unclosed video of 80 frames, of which the first has the index 100."""
    sink = OverlayVideoSink(tmp_path / "killed/overlay.mp4", recoverable=True)
    for index in range(100, 180):
        sink.write(*make_pair(index))
    left = sink.partial.read_bytes()
    sink.abort()
    return left


@pytest.fixture
def record(tmp_path) -> OutputRecord:
    """The record of overlay.mp4."""
    return OutputRecord(tmp_path, "overlay.mp4")


def leave(record: OutputRecord, content: bytes, part: int = 1) -> Path:
    """A partial file as a killed writer leaves it."""
    partial, descriptor = record.new_partial(part_path(record.folder / record.of, part), part)
    os.write(descriptor, content)
    os.close(descriptor)
    return partial


def count(path: Path) -> int:
    with VideoFileSource(path) as source:
        return len(list(source))


def test_it_plays_to_half_a_second_before_the_kill(tmp_path, killed, record):
    partial = leave(record, killed)
    last = rescue_parts(tmp_path / "overlay.mp4", record)
    frames = count(tmp_path / "overlay.mp4")
    assert last == 100 + frames - 1
    assert 80 - frames <= 24  # a fragment of 12 frames, and what the encoder held
    assert not partial.exists()


def test_wherever_it_was_cut_off_the_rest_plays(tmp_path, killed, record):
    chance = random.Random(0)
    for _ in range(25):
        partial = leave(record, killed[: chance.randint(0, len(killed))], part=2)
        last = rescue_parts(tmp_path / "overlay.mp4", record)
        part = part_path(tmp_path / "overlay.mp4", 2)
        assert part.exists() is (last is not None)
        if last is not None:
            assert count(part) == last - 99
            part.unlink()
        assert not partial.exists()


def test_a_torn_header_of_a_fragment_costs_no_earlier_one(tmp_path, killed, record):
    second = killed.index(b"moof", killed.index(b"moof") + 4) - 4
    for written in range(0, 200, 4):  # its header takes about 150 bytes
        leave(record, killed[: second + written])
        assert rescue_parts(tmp_path / "overlay.mp4", record) == 111
        assert count(tmp_path / "overlay.mp4") == 12


WRITER = """
import itertools, sys
import numpy as np
from pathlib import Path
from streamvos.sinks import OverlayVideoSink
from streamvos.sinks.record import OutputRecord
from streamvos.types import Frame, Result

path = Path(sys.argv[1])
sink = OverlayVideoSink(path, recoverable=True, record=OutputRecord(path.parent, path.name))
for index in itertools.count():
    image = np.full((48, 64, 3), index % 256, np.uint8)
    result = Result(np.zeros((48, 64), np.uint8), 0, (), lambda: np.zeros(0), dict)
    sink.write(Frame(image, index, 0, index / 24, "clip"), result)
    print(index, flush=True)
"""


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_process_loses_at_most_the_last_fragment(tmp_path, record, seed):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "overlay.mp4")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        stop = random.Random(seed).randint(60, 120)
        written = next(int(line) for line in writer.stdout if int(line) >= stop)
        os.kill(writer.pid, signal.SIGKILL)
        written = max([written, *map(int, writer.stdout)])
    last = rescue_parts(tmp_path / "overlay.mp4", record)
    assert last is not None
    assert count(tmp_path / "overlay.mp4") == last + 1
    assert written - last <= 24  # a fragment of 12 frames, and what the encoder held


def test_a_finished_video_with_its_partial_name_is_renamed(tmp_path, make_pair, record):
    sink = OverlayVideoSink(tmp_path / "overlay.mp4", recoverable=True, record=record)
    for index in range(5):
        sink.write(*make_pair(index))
    sink.abort()
    assert rescue_parts(tmp_path / "overlay.mp4", record) == 4
    assert count(tmp_path / "overlay.mp4") == 5


def test_a_kill_while_the_index_is_written_costs_no_frame(tmp_path, make_pair, record):
    sink = OverlayVideoSink(tmp_path / "overlay.mp4", recoverable=True)
    for index in range(70):
        sink.write(*make_pair(index))
    begun = sink.partial.read_bytes()
    sink.close()
    finished = sink.path.read_bytes()
    index_at = finished.rindex(b"moov") - 4
    assert index_at > len(begun)
    for written in (0, 1, 8, 100, len(finished) - index_at):
        # the muxer marks the file as finished, at its beginning, after the index
        left = begun + finished[len(begun) : index_at + written]
        (tmp_path / "overlay.mp4").unlink(missing_ok=True)
        leave(record, left)
        assert rescue_parts(tmp_path / "overlay.mp4", record) == 69
        assert count(tmp_path / "overlay.mp4") == 70


def test_closed_in_order_it_is_a_video_like_any_other(tmp_path, make_pair):
    with OverlayVideoSink(tmp_path / "overlay.mp4", recoverable=True) as sink:
        for index in range(40):
            sink.write(*make_pair(index))
    with VideoFileSource(sink.path) as source:
        assert source.length == 40
        assert source.fps == pytest.approx(24)
        assert len(list(source)) == 40


def test_only_partial_files_on_the_record_are_touched(tmp_path, record, killed):
    target = tmp_path / "mine.mp4"
    target.write_bytes(killed)
    names = ["overlay.partial.mp4", "overlay.2.partial.mp4", "overlay.1234abcd.partial.mp4"]
    for name in names:
        (tmp_path / name).write_bytes(b"something of the user's")
    other, descriptor = new_partial(tmp_path / "overlay.mp4")
    os.close(descriptor)
    OutputRecord(tmp_path, "overlay.2.mp4").expect(other, partial=1)  # of another video
    linked = leave(record, b"")
    linked.unlink()
    linked.symlink_to(target)  # is not followed
    kept = {*names, other.name, "mine.mp4", linked.name}
    assert rescue_parts(tmp_path / "overlay.mp4", record) is None
    remove_partial_parts(record)
    assert {path.name for path in tmp_path.glob("*.mp4")} == kept
    assert target.read_bytes() == killed
    leave(record, b"something")
    remove_partial_parts(record)
    assert {path.name for path in tmp_path.glob("*.mp4")} == kept


def test_a_part_takes_the_name_of_no_other_file(tmp_path, record, killed):
    (tmp_path / "overlay.2.mp4").write_bytes(b"the user's")
    others = [tmp_path / "overlay.3.mp4"]
    assert free_part(tmp_path / "overlay.mp4", 2, record, others) == 4
    leave(record, killed, part=2)
    assert rescue_parts(tmp_path / "overlay.mp4", record, others) is not None
    assert count(tmp_path / "overlay.4.mp4") > 0
    assert (tmp_path / "overlay.2.mp4").read_bytes() == b"the user's"
