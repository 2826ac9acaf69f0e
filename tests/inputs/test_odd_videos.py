"""Hostile and odd videos and addresses: right, or refused in one line; never a traceback, never silence."""

from __future__ import annotations

import io
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inputs.table import scene

import streamvos
from streamvos.addresses import escape_password, file_of, host_of, redact
from streamvos.sources.first_frame import begin_at_frame_of
from streamvos.types import InputError, StreamvosError

FRAMES = 10
FEW = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
KINDS = {
    "mp4": ("mp4", "libx264"),
    "mkv": ("matroska", "libx264"),
    "avi": ("avi", "mjpeg"),
    "ts": ("mpegts", "mpeg2video"),
    "flv": ("flv", "libx264"),
    "webm": ("webm", "libvpx"),
    "h264": ("h264", "libx264"),
}


@cache
def video(kind: str) -> bytes:
    container, codec = KINDS[kind]
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25)
        stream.height, stream.width = 48, 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for t, image in enumerate(scene(FRAMES)[0]):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = t, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def read(path: Path) -> tuple[int, str]:
    """Number of frames, and the error; checks what holds for every source."""
    stamps = []
    try:
        with streamvos.open_source(path, max_frames=200) as source:
            for frame in source:
                assert frame.image.shape == (*source.size, 3)
                assert frame.index == len(stamps)
                stamps.append(frame.pts)
    except StreamvosError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert "\n" not in said
        return len(stamps), said
    assert stamps, "no frame and no error"
    assert all(before < after for before, after in pairwise(stamps))
    return len(stamps), ""


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@FEW
def test_damaged_bytes(tmp_path, kind, data):
    content = bytearray(video(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        new = data.draw(st.binary(min_size=1, max_size=24))
        content[place : place + len(new)] = new
    (tmp_path / f"clip.{kind}").write_bytes(bytes(content))
    read(tmp_path / f"clip.{kind}")


@pytest.mark.parametrize("kind", KINDS)
@given(share=st.floats(0, 0.98))
@FEW
def test_files_that_are_cut(tmp_path, kind, share):
    content = video(kind)
    (tmp_path / f"clip.{kind}").write_bytes(content[: int(len(content) * share)])
    count, said = read(tmp_path / f"clip.{kind}")
    assert count < FRAMES or not said
    if kind in ("mp4", "mkv", "avi", "webm") and count < FRAMES:  # FLV: half a second is no loss
        assert said


@given(content=st.binary(max_size=400), kind=st.sampled_from([*KINDS, "m3u8", "gif", "sdp", "", "mov"]))
@FEW
def test_bytes_that_are_no_video(tmp_path, content, kind):
    if kind == "sdp":  # which listens to the network
        kind = "mpd"
    (tmp_path / f"clip.{kind}").write_bytes(content)
    read(tmp_path / f"clip.{kind}")


@given(
    text=st.text(max_size=60),
    prefix=st.sampled_from(["", "camera:", "file://", "file:///", "/dev/", "rt://"]),
)
@FEW
def test_odd_places(tmp_path, monkeypatch, text, prefix):
    monkeypatch.chdir(tmp_path)
    spec = prefix + text
    if spec.removeprefix("camera:") in ("-", "synthetic") or spec.startswith("synthetic:"):
        return
    with pytest.raises(StreamvosError, match=r"\w"):
        streamvos.open_source(spec, open_timeout=1.0).close()


SECRETS = st.text("abcXYZ019#/?:%@&=+ ", min_size=1, max_size=12)


@given(secret=SECRETS, path=st.from_regex(r"(/[a-z0-9]{0,8}){0,3}", fullmatch=True))
@FEW
def test_no_secret_is_shown(secret, path):
    url = f"rtsp://admin:{secret}@10.0.0.5:554{path}"
    assert redact(url) == f"rtsp://***@10.0.0.5:554{path}"
    assert redact(escape_password(url)) == redact(url)
    assert escape_password(escape_password(url)) == escape_password(url)


@given(secret=st.text("abcXYZ#/?", min_size=1, max_size=12))
@FEW
def test_raw_passwords_reach_the_host(secret):
    url = escape_password(f"rtsp://admin:p{secret}@10.0.0.5:554/stream?a=b")
    authority = url.removeprefix("rtsp://").partition("/")[0]
    assert authority.rpartition("@")[2] == host_of(url) + ":554" == "10.0.0.5:554"
    for plain in ("rtsp://10.0.0.5:554/stream@2", "http://a/b?c=d@e", "rtsp://a:b@c/d#e", "clip.mp4"):
        assert escape_password(plain) == plain


@given(name=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20))
@FEW
def test_file_addresses_and_paths_are_the_same(name):
    path = Path("/somewhere") / name.replace("/", "_")
    assert file_of(path.as_uri()) == str(path)


@given(stem=st.text("0123456789clipframe_- .", min_size=1, max_size=12))
@FEW
def test_a_mask_lands_where_its_name_says_or_is_questioned(tmp_path, stem):
    path = tmp_path / "clip.mp4"
    path.write_bytes(video("mp4"))
    with streamvos.open_source(path) as source:
        number = source.number_named(stem)
        mask = tmp_path / f"{stem}.png"
        if number in (None, 0):
            begin_at_frame_of(mask, source, None)
        else:
            with pytest.raises(InputError, match=f"--first-frame {number}"):
                begin_at_frame_of(mask, source, None)
        begin_at_frame_of(mask, source, 0)
        assert source.first_frame == 0
        assert number is None or 0 <= number < FRAMES
        assert np.array_equal(next(source).size, (48, 64))
