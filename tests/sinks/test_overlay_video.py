"""The overlay video: H.264 that browsers play, true colors and times, never half at its final name."""

from pathlib import Path

import av
import numpy as np
import pytest

from streamvos.sinks import Overlay, OverlayVideoSink
from streamvos.sources import VideoFileSource
from streamvos.types import Frame, InputError, SinkError


def boxes(path: Path) -> list[str]:
    """Kinds of the top-level boxes of an MP4 in their order."""
    data, place, kinds = path.read_bytes(), 0, []
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        kinds.append(data[place + 4 : place + 8].decode("latin-1"))
        place += size
    return kinds


def test_it_is_what_browsers_play(tmp_path, make_pair):
    with OverlayVideoSink(tmp_path / "deep/overlay.mp4") as sink:
        for index in range(30):
            sink.write(*make_pair(index))
    with av.open(str(sink.path)) as container:
        (stream,) = container.streams
        assert stream.codec_context.name == "h264"
        assert stream.pix_fmt == "yuv420p"
        assert (stream.width, stream.height) == (64, 48)
        assert stream.frames == 30
        assert float(stream.average_rate) == pytest.approx(24)
        # 30 frames at 24 per second, the last one's duration included.
        assert float(stream.duration * stream.time_base) == pytest.approx(1.25, abs=1e-3)
    kinds = boxes(sink.path)
    assert kinds.index("moov") < kinds.index("mdat")
    assert [path.name for path in sink.path.parent.iterdir()] == ["overlay.mp4"]


def test_the_pictures_are_those_that_were_drawn(tmp_path, make_result):
    overlay, size = Overlay(labels=False), (96, 128)
    image = np.full((*size, 3), (30, 170, 90), np.uint8)
    image[:, 64:] = 190, 40, 120
    mask = np.zeros(size, np.uint8)
    mask[48:, :32] = 1
    mask[48:, 96:] = 2
    with OverlayVideoSink(tmp_path / "overlay.mp4", overlay=overlay) as sink:
        for index in range(4):
            sink.write(Frame(image, index, 0, index / 24), make_result(mask))
    drawn = overlay(image, make_result(mask)).astype(int)
    with VideoFileSource(sink.path) as source:
        for index, frame in enumerate(source):
            assert frame.pts == pytest.approx(index / 24, abs=1e-4)
            for rows, columns in ((20, 20), (20, 100), (72, 16), (72, 112)):
                # A wrong matrix or range would shift these colors by 10 levels and more.
                assert np.abs(frame.image[rows, columns] - drawn[rows, columns]).max() <= 4


@pytest.mark.parametrize("size", [(47, 64), (48, 63), (45, 61)])
def test_odd_sizes_gain_a_row_or_column(tmp_path, make_pair, size):
    with OverlayVideoSink(tmp_path / "overlay.mp4") as sink:
        for index in range(3):
            sink.write(*make_pair(index, size))
    with VideoFileSource(sink.path) as source:
        assert source.size == (size[0] + size[0] % 2, size[1] + size[1] % 2)
        assert len(list(source)) == 3


def test_uneven_times_are_kept_and_standing_ones_rise(tmp_path, make_pair):
    times = [5.0, 5.1, 5.1, 5.7, 5.6, 6.0]
    with OverlayVideoSink(tmp_path / "overlay.mp4") as sink:
        for index, seconds in enumerate(times):
            sink.write(*make_pair(index, pts=seconds))
    with VideoFileSource(sink.path) as source:
        played = [frame.pts for frame in source]
    assert played == sorted(set(played))
    assert played == pytest.approx([0, 0.1, 0.1, 0.7, 0.7, 1.0], abs=1e-3)


def test_a_single_frame_is_a_video(tmp_path, make_pair):
    with OverlayVideoSink(tmp_path / "overlay.mp4") as sink:
        sink.write(*make_pair(0))
    with VideoFileSource(sink.path) as source:
        assert len(list(source)) == 1


def test_no_frame_no_file(tmp_path):
    with OverlayVideoSink(tmp_path / "overlay.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_after_an_exception_the_partial_video_plays_and_the_final_name_is_untouched(tmp_path, make_pair):
    (tmp_path / "overlay.mp4").write_bytes(b"of an earlier run")
    with pytest.raises(KeyError), OverlayVideoSink(tmp_path / "overlay.mp4") as sink:  # noqa: PT012
        for index in range(5):
            sink.write(*make_pair(index))
        raise KeyError
    assert (tmp_path / "overlay.mp4").read_bytes() == b"of an earlier run"
    with VideoFileSource(sink.partial) as source:
        assert len(list(source)) == 5


def test_a_frame_of_another_size_is_refused_and_the_video_goes_on(tmp_path, make_pair):
    with OverlayVideoSink(tmp_path / "overlay.mp4") as sink:
        sink.write(*make_pair(0))
        with pytest.raises(InputError, match=r"128x96.*64x48"):
            sink.write(*make_pair(1, (96, 128)))
        sink.write(*make_pair(1))
    with VideoFileSource(sink.path) as source:
        assert len(list(source)) == 2


def test_a_full_disk_leaves_nothing_at_the_final_name(tmp_path, make_result, file_size_limit):
    rng = np.random.default_rng(0)
    result = make_result(np.zeros((128, 128), np.uint8))

    def write_noise() -> None:
        with OverlayVideoSink(tmp_path / "overlay.mp4") as sink:
            for index in range(40):
                noise = rng.integers(0, 256, (128, 128, 3)).astype(np.uint8)
                sink.write(Frame(noise, index, 0, index / 24), result)

    with file_size_limit(100_000), pytest.raises(SinkError, match="overlay") as caught:
        write_noise()
    assert "large" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["overlay.avi", "overlay"])
def test_other_kinds_of_file_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"\.mp4"):
        OverlayVideoSink(tmp_path / name)


def test_a_folder_in_the_way(tmp_path, make_pair):
    (tmp_path / "overlay.mp4").mkdir()
    sink = OverlayVideoSink(tmp_path / "overlay.mp4")
    sink.write(*make_pair(0))
    with pytest.raises(SinkError, match=r"overlay\.mp4: Is a directory; a folder is in the way"):
        sink.close()


def test_a_file_that_is_removed_while_it_is_written_is_an_error(tmp_path, make_pair):
    sink = OverlayVideoSink(tmp_path / "overlay.mp4", recoverable=True)
    sink.write(*make_pair(0))
    sink.partial.unlink()
    with pytest.raises(SinkError, match=r"partial\.mp4"):
        sink.close()
    assert not sink.path.exists()
