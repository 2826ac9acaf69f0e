"""Seeking to a frame by its number gives exactly the frames of decoding from the start, or none."""

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest

from streamvos.sources import VideoFileSource
from streamvos.sources.decoding import Decoder
from streamvos.sources.seeking import frames_from
from streamvos.types import Frame

COUNT = 420
SIZE = (48, 64)


def write(path: Path, codec: str, options: dict[str, str], times: list[int] | None = None) -> None:
    """A video of which no two frames are alike, and every frame depends on the ones before."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 255, (SIZE[0] // 4, SIZE[1] // 4, 3), dtype=np.uint8)
    picture = np.kron(coarse, np.ones((4, 4, 1), np.uint8))
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = SIZE
        stream.pix_fmt = {"qtrle": "rgb24", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        for t in range(COUNT):
            image = np.roll(picture, t, 1)
            image[t % SIZE[0]] = t % 256
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = (times or range(COUNT))[t], Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


FILES = {
    "closed.mp4": ("libx264", {"g": "30", "bf": "3"}),
    "open.mkv": ("libx264", {"x264-params": "open-gop=1:keyint=30:bframes=3"}),
    "hevc.mkv": ("libx265", {"x265-params": "open-gop=1:keyint=40:log-level=none"}),
    "mpeg4.avi": ("mpeg4", {"g": "20", "bf": "2"}),
    "still.mov": ("qtrle", {"g": "50"}),
    "every.avi": ("mjpeg", {}),
    # packets that become no frame of their own
    "hidden.webm": (
        "libvpx",
        {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "50", "deadline": "realtime"},
    ),
    # a picture is whole only some time after its keyframe, or there is one keyframe only
    "refresh.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=40:bframes=0"}),
    "once.mp4": ("libx264", {"g": "9999", "x264-params": "scenecut=0"}),
    "stream.ts": ("mpeg2video", {"g": "12", "bf": "2"}),
}
NOT_SOUGHT = ("refresh.mp4", "once.mp4", "stream.ts")
"""These are decoded from their beginnings."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str], tuple[Path, list[Frame]]]:
    """A file of that name, and all its frames."""

    @cache
    def make(name: str) -> tuple[Path, list[Frame]]:
        path = tmp_path_factory.mktemp("seeking") / name
        write(path, *FILES[name])
        with VideoFileSource(path) as source:
            everything = list(source)
        assert len(everything) == COUNT
        return path, everything

    return make


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("before", "over"), [(0, 250), (3, 301), (100, 300)])
def test_frames_after_a_seek_are_those_of_decoding_all(made, name, before, over):
    path, everything = made(name)
    with VideoFileSource(path) as source:
        given = [next(source) for _ in range(before)]
        source.pass_over(over)
        given += list(source)
    expected = everything[:before] + everything[before + over :]
    assert len(given) == len(expected)
    for one, two in zip(given, expected, strict=True):
        assert (one.index, one.pts) == (two.index, two.pts)
        assert np.array_equal(one.image, two.image)


@pytest.mark.parametrize("name", [name for name in FILES if name not in NOT_SOUGHT])
@pytest.mark.parametrize("number", [200, 333])
def test_these_files_can_be_sought(made, name, number):
    with av.open(str(made(name)[0])) as container:
        frames = frames_from(Decoder(container, container.streams.video[0]), number)
        assert frames is not None
        assert sum(1 for _ in frames) == COUNT - number


def test_skipped_frames_are_not_decoded(made, tmp_path):
    path, everything = made("every.avi")
    video = bytearray(path.read_bytes())
    starts = [at for at in range(len(video) - 2) if video[at : at + 3] == b"\xff\xd8\xff"]
    for at in range(20, 60):
        length = starts[at + 1] - starts[at] - 8  # the next chunk's header stays
        video[starts[at] : starts[at] + length] = bytes(length)
    (tmp_path / "damaged.avi").write_bytes(bytes(video))
    with VideoFileSource(tmp_path / "damaged.avi") as source:
        source.pass_over(300)
        given = list(source)
    assert [frame.index for frame in given] == list(range(300, COUNT))
    assert all(np.array_equal(one.image, two.image) for one, two in zip(given, everything[300:], strict=True))


def test_no_seek_past_the_end_or_to_the_beginning(made):
    path, _ = made("closed.mp4")
    for number in (0, 5, COUNT, COUNT + 1000):
        with av.open(str(path)) as container:
            assert frames_from(Decoder(container, container.streams.video[0]), number) is None
    with VideoFileSource(path) as source:
        source.pass_over(COUNT + 50)
        assert list(source) == []


def test_uneven_times_are_kept(tmp_path):
    times = list(np.cumsum(np.random.default_rng(5).integers(1, 5, COUNT)))
    write(tmp_path / "uneven.mkv", "libx264", {"g": "30", "bf": "3"}, [int(t) for t in times])
    with VideoFileSource(tmp_path / "uneven.mkv") as source:
        source.pass_over(300)
        frame = next(source)
    assert frame.index == 300
    assert frame.pts == pytest.approx((times[300] - times[0]) / 25, abs=2e-3)  # Matroska counts milliseconds
