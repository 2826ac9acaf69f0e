"""Video files: exact times, true sizes, and errors for damaged files."""

import gc
import io
import socket
from fractions import Fraction

import av
import numpy as np
import pytest

from streamvos.sources import Selection, VideoFileSource
from streamvos.types import Frame, InputError

MP4 = {"container": "mp4", "codec": "libx264"}


def test_frames_come_in_order_with_their_times(tmp_path, make_video, number_of):
    (tmp_path / "clip.mp4").write_bytes(make_video(20, **MP4))
    with VideoFileSource(tmp_path / "clip.mp4") as source:
        assert (source.name, source.size, source.length) == ("clip", (48, 64), 20)
        assert source.fps == pytest.approx(25)
        frames = list(source)
    assert [number_of(frame.image) for frame in frames] == list(range(20))
    assert [frame.index for frame in frames] == list(range(20))
    assert [frame.pts for frame in frames] == pytest.approx([index / 25 for index in range(20)])
    assert frames[0].image.shape == (48, 64, 3)
    assert frames[0].image.flags.writeable


def test_uneven_times_are_exact_and_count_from_the_first_frame(tmp_path, make_video):
    times = [50, 51, 53, 60, 61, 90]
    (tmp_path / "clip.mkv").write_bytes(make_video(6, container="matroska", codec="libx264", times=times))
    with VideoFileSource(tmp_path / "clip.mkv") as source:
        played = [frame.pts for frame in source]
    # Matroska counts milliseconds.
    assert played == pytest.approx([(time - 50) / 25 for time in times], abs=1e-3)


def test_files_without_a_frame_count_have_no_length(tmp_path, make_video):
    (tmp_path / "clip.ts").write_bytes(make_video(8))
    with VideoFileSource(tmp_path / "clip.ts") as source:
        assert source.length is None
        assert len(list(source)) == 8


def test_selection(tmp_path, make_video, number_of):
    (tmp_path / "clip.mp4").write_bytes(make_video(11, **MP4))
    selection = Selection(height=24, stride=4, max_frames=5)
    with VideoFileSource(tmp_path / "clip.mp4", name="mine", selection=selection) as source:
        assert (source.name, source.size, source.length) == ("mine", (24, 32), 3)
        frames = list(source)
    assert [number_of(frame.image) for frame in frames] == [0, 4, 8]
    assert [frame.pts for frame in frames] == pytest.approx([0, 4 / 25, 8 / 25])
    assert {frame.size for frame in frames} == {(24, 32)}


def turned(video: bytes, quarter_turns: int) -> bytes:
    """The same MP4, whose track header asks players to turn it clockwise by so many quarters."""
    cosine, sine = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarter_turns]
    # The matrix (a b u; c d v; x y w) of ISO 14496-12; u, v and w have 30 fractional bits, the others 16.
    matrix = [cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30]
    place = video.index(b"tkhd") + 4 + 40  # version 0: 40 bytes precede the matrix
    packed = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    return video[:place] + packed + video[place + 36 :]


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_rotation_in_the_metadata_is_applied(tmp_path, make_video, quarter_turns):
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32] = 255  # the upper left quarter
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    (tmp_path / "clip.mp4").write_bytes(turned(file.getvalue(), quarter_turns))
    expected = np.rot90(image, -quarter_turns)
    with VideoFileSource(tmp_path / "clip.mp4") as source:
        seen = next(source).image
    assert source.size == expected.shape[:2]
    # Coding loss is a few levels; a wrong turn is 255 over half of the picture.
    assert np.abs(seen.astype(int) - expected).mean() < 8


def test_a_video_that_changes_its_size(tmp_path, make_video):
    (tmp_path / "clip.ts").write_bytes(make_video(5) + make_video(5, size=(64, 96)))
    with VideoFileSource(tmp_path / "clip.ts") as source:
        frames = []
        with pytest.raises(InputError, match=r"96x64 pixels.*64x48"):
            frames.extend(source)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_that_was_cut_off_says_so(tmp_path, make_video, share):
    video = make_video(40, (128, 128), **MP4)
    assert video.index(b"mdat") < video.index(b"moov")
    (tmp_path / "cut.mp4").write_bytes(video[: int(len(video) * share)])  # the index at the end is gone
    with pytest.raises(InputError, match=r"cannot open the video .*cut\.mp4"):
        VideoFileSource(tmp_path / "cut.mp4")


def test_damage_in_the_middle_names_the_frame(tmp_path, make_video):
    video = bytearray(make_video(30, (64, 64), container="avi", codec="mjpeg"))
    starts = [place for place in range(len(video) - 2) if video[place : place + 3] == b"\xff\xd8\xff"]
    assert len(starts) == 30
    for place in range(12, 15):
        length = starts[place + 1] - starts[place] - 8  # the next chunk's header stays
        video[starts[place] : starts[place] + length] = bytes(length)
    (tmp_path / "clip.avi").write_bytes(bytes(video))
    with VideoFileSource(tmp_path / "clip.avi") as source:
        frames: list[Frame] = []
        with pytest.raises(InputError, match=r"frame 12 of .*clip\.avi"):
            frames.extend(source)
    assert len(frames) == 12


@pytest.mark.parametrize(
    ("name", "content"), [("empty.mp4", b""), ("text.mp4", b"no video " * 100), ("zeros.mp4", bytes(5000))]
)
def test_files_that_are_not_videos_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name) as caught:
        VideoFileSource(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_sound_alone_is_no_video(tmp_path):
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.rate = 8000
        output.mux(stream.encode(sound))
    (tmp_path / "sound.wav").write_bytes(file.getvalue())
    with pytest.raises(InputError, match="no video stream"):
        VideoFileSource(tmp_path / "sound.wav")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        VideoFileSource(tmp_path / "absent.mp4")
    with pytest.raises(InputError, match="folder"):
        VideoFileSource(tmp_path)


def test_a_playlist_does_not_reach_the_network(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        playlist = f"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.ts\n#EXT-X-ENDLIST\n"
        (tmp_path / "list.m3u8").write_text(playlist)
        with pytest.raises(InputError, match=r"list\.m3u8"):
            VideoFileSource(tmp_path / "list.m3u8")
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):  # no connection was made
            server.accept()


def test_names_with_odd_characters(tmp_path, make_video):
    path = tmp_path / "a b%d#?:ü.mp4"
    path.write_bytes(make_video(3, **MP4))
    with VideoFileSource(path) as source:
        assert len(list(source)) == 3


def test_decoded_frames_are_freed_at_once(tmp_path, make_video):
    """Of 1080p, a hundred frames that wait for the garbage collector take 300 MB."""
    (tmp_path / "clip.mp4").write_bytes(make_video(40, **MP4))
    gc.collect()
    gc.disable()
    try:
        with VideoFileSource(tmp_path / "clip.mp4") as source:
            assert len(list(source)) == 40
            assert sum(isinstance(one, av.VideoFrame) for one in gc.get_objects()) <= 2
    finally:
        gc.enable()


def test_closing_early_lets_the_file_go(tmp_path, make_video):
    path = tmp_path / "clip.mp4"
    path.write_bytes(make_video(30, **MP4))
    source = VideoFileSource(path)
    next(source)
    source.close()
    source.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(source)
