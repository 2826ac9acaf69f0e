"""Videos: their frames, orientation, time stamps, ends, and the frame that a mask lands on."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from inputs.table import Case, row, scene
from inputs.web import serve
from PIL import Image
from small_videos import write_video

FPS = 25
IDENTITY = (1, 0, 0, 1)
TURNS = {
    "as stored": IDENTITY,
    "mirrored": (-1, 0, 0, 1),
    "turned by 180 degrees": (-1, 0, 0, -1),
    "upside down": (1, 0, 0, -1),
    "mirrored and turned left": (0, 1, 1, 0),
    "turned right": (0, 1, -1, 0),
    "mirrored and turned right": (0, -1, -1, 0),
    "turned left": (0, -1, 1, 0),
}
"""Name -> (a, b, c, d): the stored point (x, y) is shown at (a x + c y, b x + d y)."""


def shown(image: np.ndarray, matrix: Sequence[int]) -> np.ndarray:
    """The picture or label map as a player shows it, by the definition: point by point."""
    a, b, c, d = matrix
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    columns, rows = a * x + c * y, b * x + d * y
    columns, rows = columns - columns.min(), rows - rows.min()
    result = np.empty((rows.max() + 1, columns.max() + 1, *image.shape[2:]), image.dtype)
    result[rows, columns] = image
    return result


def with_matrix(path: Path, matrix: Sequence[int]) -> None:
    """Put a display matrix into the track header of an MP4."""
    a, b, c, d = (value << 16 for value in matrix)
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))


def write(path: Path, images: Sequence[np.ndarray], codec: str = "libx264", **more: Any) -> None:
    """A video of a few frames per keyframe; `more`: format, options, pix_fmt, aspect, times (in frames)."""
    times = more.get("times") or range(len(images))
    with av.open(str(path), "w", format=more.get("format"), options=more.get("options") or {}) as container:
        stream: Any = container.add_stream(codec, rate=FPS)
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = more.get("pix_fmt", "yuv420p")
        stream.bit_rate, stream.codec_context.gop_size = 2_000_000, 4
        if "aspect" in more:
            stream.codec_context.sample_aspect_ratio = more["aspect"]
        for image, time in zip(images, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _turned(name: str, matrix: Sequence[int]) -> None:
    @row(f"a video {name}")
    def make(folder: Path) -> Case:
        images, label_maps = scene(3)
        write_video(folder / "clip.mp4", images, FPS)
        with_matrix(folder / "clip.mp4", matrix)
        return Case(
            "clip.mp4", first=shown(label_maps[0], matrix), pictures=[shown(i, matrix) for i in images]
        )


for _name, _matrix in TURNS.items():
    _turned(_name, _matrix)


@row("pixels twice as wide as high are made square")
def wide_pixels(folder: Path) -> Case:
    images, label_maps = scene(3, (48, 128))
    write(folder / "clip.mp4", [image[:, ::2] for image in images], aspect=Fraction(2, 1))
    return Case("clip.mp4", first=label_maps[0], pictures=images, tolerance=9)


@row("pixels twice as high as wide are made square")
def high_pixels(folder: Path) -> Case:
    images, label_maps = scene(3, (96, 64))
    write(folder / "clip.mp4", [image[::2] for image in images], aspect=Fraction(1, 2))
    return Case("clip.mp4", first=label_maps[0], pictures=images, tolerance=9)


@row("a mask of the stored size, where pixels are not square", ("run", "pipeline"))
def stored_mask(folder: Path) -> Case:
    images, label_maps = scene(3, (48, 128))
    write(folder / "clip.mp4", [image[:, ::2] for image in images], aspect=Fraction(2, 1))
    Image.fromarray(label_maps[0][:, ::2]).save("stored.png")
    first = label_maps[0][:, ::2].repeat(2, 1)
    return Case("clip.mp4", mask=Path("stored.png"), first=first)


@row("HDR is tone-mapped, and said")
def hdr(folder: Path) -> Case:
    images, label_maps = scene(3)
    with av.open("clip.mkv", "w") as container:
        stream: Any = container.add_stream("libx265", rate=FPS, options={"x265-params": "log-level=none"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace = 16, 9, 9
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p10le")
            frame.color_trc, frame.color_primaries, frame.colorspace = 16, 9, 9
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return Case("clip.mkv", first=label_maps[0], says=r"HDR \(PQ\)")


@row("a video in full range")
def full_range(folder: Path) -> Case:
    images, label_maps = scene(3)
    write(folder / "clip.avi", images, "mjpeg", pix_fmt="yuvj420p")
    return Case("clip.avi", first=label_maps[0], pictures=images)


# ---- which stream


def _with_cover(path: Path, images: Sequence[np.ndarray], cover_first: bool) -> None:
    """A Matroska file with a cover, which is a video stream of one picture."""
    with av.open(str(path), "w") as container:
        streams: dict[str, Any] = {}
        for kind in ("cover", "video") if cover_first else ("video", "cover"):
            stream: Any = container.add_stream("mjpeg" if kind == "cover" else "libx264", rate=FPS)
            stream.height, stream.width = (96, 128) if kind == "cover" else images[0].shape[:2]
            stream.pix_fmt = "yuvj420p" if kind == "cover" else "yuv420p"
            streams[kind] = stream
        streams["cover"].disposition = av.stream.Disposition.attached_pic
        cover = av.VideoFrame.from_ndarray(np.full((96, 128, 3), 99, np.uint8), format="rgb24")
        container.mux([*streams["cover"].encode(cover), *streams["cover"].encode(None)])
        for image in images:
            container.mux(streams["video"].encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(streams["video"].encode(None))


@row("a cover picture before the video")
def cover_first(folder: Path) -> Case:
    images, label_maps = scene(4)
    _with_cover(folder / "clip.mp4", images, cover_first=True)
    return Case("clip.mp4", first=label_maps[0], pictures=images, tolerance=8)


@row("a cover picture after the video")
def cover_last(folder: Path) -> Case:
    images, label_maps = scene(4)
    _with_cover(folder / "clip.mp4", images, cover_first=False)
    return Case("clip.mp4", first=label_maps[0], pictures=images, tolerance=8)


@row("sound with a cover is no video")
def sound(folder: Path) -> Case:
    _, label_maps = scene(1)
    with av.open("song.m4a", "w", format="mp4") as container:
        audio: Any = container.add_stream("aac", rate=8000, layout="mono")
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 48, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        noise = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        noise.rate = 8000
        picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        container.mux([*cover.encode(picture), *cover.encode(None)])
        container.mux([*audio.encode(noise), *audio.encode(None)])
    return Case("song.m4a", first=label_maps[0], error=r"song\.m4a holds no video, only a cover")


@row("of two videos, the larger one, and said")
def two_videos(folder: Path) -> Case:
    images, label_maps = scene(4)
    with av.open("clip.mkv", "w") as container:
        streams: list[Any] = [container.add_stream("libx264", rate=FPS) for _ in range(2)]
        for stream, size in zip(streams, ((24, 32), (48, 64)), strict=True):
            stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for image in images:
            for stream, step in zip(streams, (2, 1), strict=True):
                small = np.ascontiguousarray(image[::step, ::step])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(small, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    return Case("clip.mkv", first=label_maps[0], pictures=images, tolerance=9, says="holds 2 videos")


# ---- time stamps


@row("two MPEG-TS files that were joined")
def joined(folder: Path) -> Case:
    images, label_maps = scene(5)
    write(folder / "one.ts", images)
    (folder / "joined.ts").write_bytes((folder / "one.ts").read_bytes() * 2)
    return Case("joined.ts", first=label_maps[0], pictures=images * 2, stamps=[t / FPS for t in range(10)])


@row("frames at uneven times")
def uneven(folder: Path) -> Case:
    images, label_maps = scene(5)
    write(folder / "clip.mp4", images, times=[0, 1, 5, 6, 20])
    return Case("clip.mp4", first=label_maps[0], pictures=images, stamps=[0, 0.04, 0.2, 0.24, 0.8])


# ---- ends

BREAKS = {
    "mp4": ("libx264", {"movflags": "+faststart"}, r"of its 24 frames are missing"),
    "mov": ("libx264", {"movflags": "+faststart"}, r"of its 24 frames are missing"),
    "mkv": ("libx264", {}, r"breaks off after \d+ frames: the last \d\.\d s are missing"),
    "webm": ("libvpx", {}, r"breaks off after \d+ frames"),
    "avi": ("mpeg4", {}, r"of its 24 frames are missing"),
    "flv": ("libx264", {}, r"breaks off after \d+ frames"),
    "ts": ("libx264", {}, r"cannot decode frame \d+ of clip\.ts, which is damaged"),
}


def _broken(suffix: str, allowed: bool) -> None:
    codec, options, error = BREAKS[suffix]

    @row(f"a {suffix} that breaks off" + (", allowed" if allowed else ""), ("run", "pipeline"))
    def make(folder: Path) -> Case:
        images, label_maps = scene(24)
        write(folder / f"clip.{suffix}", images, codec, options=options)
        data = (folder / f"clip.{suffix}").read_bytes()
        (folder / f"clip.{suffix}").write_bytes(data[: len(data) * 7 // 10])
        if not allowed:
            return Case(f"clip.{suffix}", first=label_maps[0], error=error, code=1)
        return Case(
            f"clip.{suffix}",
            first=label_maps[0],
            run_options=["--allow-truncated"],
            stream_options={"allow_truncated": True},
            says=error if suffix != "ts" else r"damaged places were passed over",
        )


for _suffix in BREAKS:
    _broken(_suffix, False)
    _broken(_suffix, True)


def _whole(suffix: str, codec: str, options: dict[str, str], format: str | None = None) -> None:
    @row(f"a whole {suffix}")
    def make(folder: Path) -> Case:
        images, label_maps = scene(9)
        pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        write(folder / f"clip.{suffix}", images, codec, options=options, format=format, pix_fmt=pixels)
        return Case(f"clip.{suffix}", first=label_maps[0], pictures=images, tolerance=9)


for _suffix, _codec, _options, _format in (
    ("fragmented.mp4", "libx264", {"movflags": "+frag_keyframe+empty_moov"}, None),
    ("mkv", "libx264", {}, None),
    ("webm", "libvpx", {}, None),
    ("avi", "mpeg4", {}, None),
    ("flv", "libx264", {}, None),
    ("asf", "msmpeg4v3", {}, None),
    ("mpg", "mpeg2video", {}, "mpeg"),
    ("h264", "libx264", {}, "h264"),
    ("mjpeg", "mjpeg", {}, "mjpeg"),
):
    _whole(_suffix, _codec, _options, _format)


@row("sound that is longer than the video is no missing end")
def longer_sound(folder: Path) -> Case:
    images, label_maps = scene(5)
    with av.open("clip.mkv", "w") as container:
        video: Any = container.add_stream("libx264", rate=FPS)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        audio: Any = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        noise = av.AudioFrame.from_ndarray(np.zeros((1, 8000 * 3), np.int16), format="s16", layout="mono")
        noise.rate = 8000
        for image in images:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux([*video.encode(None), *audio.encode(noise), *audio.encode(None)])
    return Case("clip.mkv", first=label_maps[0], pictures=images)


@row("a recording that begins between two keyframes")
def begins_anywhere(folder: Path) -> Case:
    images, label_maps = scene(16)
    write(folder / "all.ts", images)
    with av.open("all.ts") as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
        start = packets[1].pos // 188 * 188
    data = (folder / "all.ts").read_bytes()
    (folder / "clip.ts").write_bytes(data[: 188 * 3] + data[start:])  # the tables come first
    return Case("clip.ts", first=label_maps[keys[1]], pictures=images[keys[1] :])


# ---- which frame a mask lands on


@row("an mp4 behind http:// is no live stream", ("api", "run"))
def behind_http(folder: Path) -> Case:
    images, label_maps = scene(12)
    write(folder / "clip.mp4", images, options={"movflags": "+faststart"})
    return Case(serve(folder, "clip.mp4"), first=label_maps[0], pictures=images)


@row("a finished playlist behind http:// is no live stream", ("api", "run"))
def playlist(folder: Path) -> Case:
    images, label_maps = scene(12)
    write(folder / "list.m3u8", images, format="hls", options={"hls_time": "0.16", "hls_list_size": "0"})
    return Case(serve(folder, "list.m3u8"), first=label_maps[0], pictures=images)


@row("an mp4 behind http://, in a pipeline that knows it", ("pipeline",))
def behind_http_in_a_pipeline(folder: Path) -> Case:
    images, label_maps = scene(12)
    write(folder / "clip.mp4", images, options={"movflags": "+faststart"})
    url = serve(folder, "clip.mp4")
    return Case(url, first=label_maps[0], pictures=images, stream_options={"finite": True})


@row("a finished playlist on disk")
def playlist_on_disk(folder: Path) -> Case:
    images, label_maps = scene(12)
    write(folder / "list.m3u8", images, format="hls", options={"hls_time": "0.16", "hls_list_size": "0"})
    return Case("list.m3u8", first=label_maps[0], pictures=images)


@row("the first frame is chosen")
def first_frame(folder: Path) -> Case:
    images, label_maps = scene(8)
    write(folder / "clip.mp4", images)
    return Case(
        "clip.mp4",
        first=label_maps[5],
        pictures=images[5:],
        stems=["00005", "00006", "00007"],
        options={"first_frame": 5},
    )


@row("labels of every second frame have the numbers of their frames")
def stride(folder: Path) -> Case:
    images, label_maps = scene(8)
    write(folder / "clip.mp4", images)
    more = {"first_frame": 1, "stride": 3}
    stems = ["00001", "00004", "00007"]
    return Case("clip.mp4", first=label_maps[1], pictures=images[1::3], stems=stems, options=more)


def _recorded(name: str, topic: str, error: str = "") -> None:
    @row(name)
    def make(folder: Path) -> Case:
        rosbag2 = pytest.importorskip("rosbags.rosbag2", reason="needs rosbags, of the extra bags")
        pytest.importorskip("mcap_protobuf", reason="needs mcap-protobuf-support, of the extra bags")
        from streamvos.rosmsg.pictures import IMAGE, rgb_image
        from streamvos.rosmsg.types import encode, make, time_of, typestore

        images, label_maps = scene(4)
        with rosbag2.Writer(folder / "ride", version=9) as writer:
            for place in ("/left", "/right"):
                connection = writer.add_connection(place, IMAGE, typestore=typestore())
                for number, image in enumerate(images):
                    stamp = (number + 1) * 10**8
                    header = make("std_msgs/msg/Header", stamp=time_of(stamp), frame_id="")
                    picture = image if place == "/right" else 255 - image
                    writer.write(connection, stamp, encode(rgb_image(picture, header)))
        options = {"topic": topic} if topic else {}
        return Case(
            "ride", first=label_maps[0], pictures=None if error else images, error=error, options=options
        )


_recorded("one of two topics of a recording", "/right")
_recorded("a recording of two topics", "", error="2 topics .*/left .*/right")


@row("there is no such first frame")
def no_such_frame(folder: Path) -> Case:
    images, label_maps = scene(3)
    write(folder / "clip.mp4", images)
    return Case("clip.mp4", first=label_maps[0], error="there is no frame 3", options={"first_frame": 3})


def _named(name: str, says: str, options: dict[str, object]) -> None:
    @row(f"the mask {name} of a video, {options or 'nothing said'}", ("run", "pipeline"))
    def make(folder: Path) -> Case:
        images, label_maps = scene(8)
        write(folder / "clip.mp4", images)
        place = int(str(options.get("first_frame", 0)))
        Image.fromarray(label_maps[place]).save(name)
        return Case("clip.mp4", mask=Path(name), first=label_maps[place], error=says, options=options)


_named("00005.png", "named after frame 5 .*--first-frame 5, or --first-frame 0", {})
_named("clip_3.png", "named after frame 3", {})
_named("00005.png", "", {"first_frame": 5})
_named("00005.png", "", {"first_frame": 2})
_named("00000.png", "", {})
_named("00999.png", "", {})
_named("mask.png", "", {})


@row("a mask that is named like a picture lands on it", ("run", "pipeline"))
def named_like_a_picture(folder: Path) -> Case:
    images, label_maps = scene(8)
    (folder / "frames").mkdir()
    for t, image in enumerate(images):
        Image.fromarray(image).save(folder / "frames" / f"shot{t}.png")
    Image.fromarray(label_maps[3]).save("shot3.png")
    stems = [f"shot{t}" for t in range(3, 8)]
    case = {"first": label_maps[3], "pictures": images[3:], "stems": stems, "says": "begins there"}
    return Case("frames", mask=Path("shot3.png"), **case)  # type: ignore[arg-type]


# ---- places


@row("a file:// address")
def file_url(folder: Path) -> Case:
    images, label_maps = scene(3)
    write(folder / "a clip.mp4", images)
    return Case(f"file://{folder}/a%20clip.mp4", first=label_maps[0], pictures=images)


@row("a named pipe")
def fifo(folder: Path) -> Case:
    images, label_maps = scene(6)
    write(folder / "clip.mkv", images)
    os.mkfifo("pipe.mkv")

    def send() -> None:
        with open("pipe.mkv", "wb") as pipe:
            pipe.write((folder / "clip.mkv").read_bytes())

    threading.Thread(target=send, daemon=True).start()
    return Case("pipe.mkv", first=label_maps[0], pictures=images)


@row("the standard input belongs to run", ("pipeline",))
def standard_input(folder: Path) -> Case:
    _, label_maps = scene(1)
    return Case("-", first=label_maps[0], error="the standard input has one reader")


@row("/dev/null is no camera", ("api", "run"))
def dev_null(folder: Path) -> Case:
    _, label_maps = scene(1)
    return Case("/dev/null", first=label_maps[0], error="not a camera")
