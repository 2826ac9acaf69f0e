"""Recordings as sources: rosbag2 in both storages, MCAP of other writers, and recordings that break off."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs rosbags, of the extra bags")
pytest.importorskip("mcap", reason="needs mcap, of the extra bags")

from mcap.writer import Writer as McapWriter
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

from streamvos.rosmsg.pictures import COMPRESSED, IMAGE, rgb_image
from streamvos.rosmsg.types import encode, make, time_of, typestore
from streamvos.sources import open_source
from streamvos.sources.places import files_of
from streamvos.types import InputError, TruncatedError

STORAGES = {"sqlite3": StoragePlugin.SQLITE3, "mcap": StoragePlugin.MCAP}
START_NS = 1_700_000_000 * 10**9
STEP_NS = 40_000_000
COUNT = 6


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)


def message(number: int, stamped: bool = True):
    stamp = time_of(START_NS + number * STEP_NS if stamped else 0)
    return rgb_image(picture(number), make("std_msgs/msg/Header", stamp=stamp, frame_id="camera"))


def record(
    folder: Path, storage: str = "sqlite3", topics=("/camera/image_raw",), stamped=True, compressed=False
):
    """A folder with `COUNT` pictures a topic, and other messages between."""
    writer = Writer(folder, version=9, storage_plugin=STORAGES[storage])
    if compressed:
        writer.set_compression(CompressionMode.MESSAGE, CompressionFormat.ZSTD)
    with writer:
        connections = [writer.add_connection(topic, IMAGE, typestore=typestore()) for topic in topics]
        other = writer.add_connection("/other", "std_msgs/msg/Header", typestore=typestore())
        for number in range(COUNT):
            # the times of recording are later, by one second
            recorded_ns = START_NS + number * STEP_NS + 10**9
            for connection in connections:
                writer.write(connection, recorded_ns, encode(message(number, stamped)))
            writer.write(other, recorded_ns + 1, encode(make("std_msgs/msg/Header")))
    return folder


def frames_of(place, **options):
    with open_source(str(place), **options) as source:
        return source, list(source)


def read_to_the_break(place):
    """The frames before the error, and the error."""
    frames = []
    try:
        with open_source(str(place)) as source:
            for frame in source:
                frames.append(frame)
    except InputError as error:
        return frames, error
    return frames, None


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "message-zstd"])
@pytest.mark.parametrize("storage", STORAGES)
def test_a_folder_its_file_and_a_folder_without_metadata(tmp_path, storage, compressed):
    folder = record(tmp_path / "ride", storage, compressed=compressed)
    (file,) = [one for one in folder.iterdir() if one.suffix in (".db3", ".mcap")]
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(file, bare)
    for place in (folder, file, bare):
        source, frames = frames_of(place)
        assert (source.topic, len(frames), source.size) == ("/camera/image_raw", COUNT, (48, 64))
        assert np.allclose([one.pts for one in frames], np.arange(COUNT) * 0.04)
        for number, frame in enumerate(frames):
            assert np.array_equal(frame.image, picture(number))


def test_without_stamps_the_times_of_recording_count(tmp_path):
    _, frames = frames_of(record(tmp_path / "ride", stamped=False))
    assert np.allclose([one.pts for one in frames], np.arange(COUNT) * 0.04)


def test_one_of_several_topics(tmp_path):
    folder = record(tmp_path / "ride", topics=("/left", "/right"))
    with pytest.raises(InputError, match=r"2 topics .*: /left .*, /right .*choose one with --topic"):
        open_source(str(folder))
    with pytest.raises(InputError, match=r"no pictures on /up; topics with pictures: /left"):
        open_source(str(folder), topic="/up")
    _, frames = frames_of(folder, topic="/right", stride=2, first_frame=1, height=24)
    assert [one.size for one in frames] == [(24, 32)] * 3
    assert np.allclose([one.pts for one in frames], [0.04, 0.12, 0.2])


def test_a_recording_that_breaks_off_gives_what_is_whole(tmp_path):
    whole = next(record(tmp_path / "ride", "mcap").glob("*.mcap"))
    _, all_frames = frames_of(whole)
    counts = set()
    for share in (0.3, 0.6, 0.95, 0.999):
        part = tmp_path / f"{share}.mcap"
        part.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
        frames, error = read_to_the_break(part)
        assert any(
            said in str(error) for said in ("breaks off", "no whole picture", "0 topics with pictures")
        )
        if not frames:
            continue
        for frame in frames:
            assert np.array_equal(frame.image, all_frames[frame.index].image)
        assert [one.index for one in frames] == list(range(len(frames)))
        _, allowed = frames_of(part, allow_truncated=True)
        assert len(allowed) == len(frames)
        counts.add(len(frames))
    assert COUNT in counts  # without the index alone, nothing is lost


def test_damage_within_is_told(tmp_path):
    """Where the writer left checksums, as mcap's does."""
    path = write_json(tmp_path / "a.mcap", "foxglove.RawImage", [raw(number) for number in range(300)])
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 255
    path.write_bytes(content)
    with pytest.raises(TruncatedError, match="breaks off after"):
        frames_of(path)
    _, frames = frames_of(path, allow_truncated=True)
    assert 0 < len(frames) < 300


def test_a_broken_database_is_one_line(tmp_path):
    folder = record(tmp_path / "ride")
    (file,) = folder.glob("*.db3")
    file.write_bytes(b"nothing like a database" * 99)
    with pytest.raises(InputError, match="cannot read the recording"):
        open_source(str(folder))


@pytest.mark.parametrize(
    ("make_place", "said"),
    [
        (lambda here: here / "none.mcap", "there is no"),
        (
            lambda here: (here / "a.mcap").write_bytes(b"no recording") and here / "a.mcap",
            "is no MCAP file",
        ),
        (lambda here: (here / "a.db3.zstd").write_bytes(b"x") and here, "unpack it with `zstd -d`"),
    ],
)
def test_what_is_no_recording_is_one_line(tmp_path, make_place, said):
    with pytest.raises(InputError, match=said):
        open_source(str(make_place(tmp_path)))


def test_a_topic_of_what_has_none():
    with pytest.raises(InputError, match="synthetic:seed=1 is no recording of messages"):
        open_source("synthetic:seed=1", topic="/camera")


def write_json(path: Path, schema: str, values, encoding: str = "json") -> Path:
    with open(path, "wb") as file:
        writer = McapWriter(file)
        writer.start()
        schema_id = writer.register_schema(schema, "jsonschema", b"{}")
        channel = writer.register_channel("/camera", encoding, schema_id)
        for number, value in enumerate(values):
            writer.add_message(channel, START_NS + number * STEP_NS, json.dumps(value).encode(), 0)
        writer.finish()
    return path


def raw(number: int) -> dict[str, object]:
    return {
        "timestamp": {"sec": 5, "nsec": number * STEP_NS},
        "frame_id": "camera",
        "width": 64,
        "height": 48,
        "encoding": "rgb8",
        "step": 192,
        "data": base64.b64encode(picture(number).tobytes()).decode(),
    }


def test_pictures_in_foxgloves_json(tmp_path):
    path = write_json(tmp_path / "a.mcap", "foxglove.RawImage", [raw(0), raw(1)])
    _, frames = frames_of(path)
    assert np.allclose([one.pts for one in frames], [0, 0.04])
    assert np.array_equal(frames[1].image, picture(1))


@pytest.mark.parametrize(
    ("change", "encoding", "said"),
    [
        ({"data": "no base64!"}, "json", "no foxglove.RawImage in JSON"),
        ({"width": "many"}, "json", "no foxglove.RawImage in JSON"),
        ({"width": 65}, "json", "expected rows of at least 195 bytes"),
        ({"timestamp": {"sec": 1e999}}, "json", "no foxglove.RawImage in JSON"),
        ({}, "protobuf", "no foxglove.RawImage in protobuf"),  # the schema is none of protobuf
        ({}, "flatbuffer", "is encoded as 'flatbuffer'; expected CDR"),
    ],
)
def test_pictures_that_are_none(tmp_path, change, encoding, said):
    path = write_json(tmp_path / "a.mcap", "foxglove.RawImage", [{**raw(0), **change}], encoding)
    with pytest.raises(InputError, match=f"picture 0 on /camera of .*{said}"):
        open_source(str(path))


def test_nothing_is_written_over_a_recording(tmp_path):
    folder = record(tmp_path / "ride", "mcap")
    ((path, reads),) = files_of(str(folder))
    assert path == folder
    assert reads(folder / "results.mcap")
    assert not reads(folder / "overlay.mp4")
    ((_, reads),) = files_of(str(next(folder.glob("*.mcap"))))
    assert not reads(folder / "other.mcap")


def test_compressed_images(tmp_path):
    import io

    from PIL import Image

    with Writer(tmp_path / "ride", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/camera/compressed", COMPRESSED, typestore=typestore())
        for number in range(2):
            file = io.BytesIO()
            Image.fromarray(picture(number)).save(file, "PNG")
            data = np.frombuffer(file.getvalue(), np.uint8)
            stamp = time_of(START_NS + number * STEP_NS)
            header = make("std_msgs/msg/Header", stamp=stamp)
            writer.write(
                connection, START_NS, encode(make(COMPRESSED, header=header, format="png", data=data))
            )
    _, frames = frames_of(tmp_path / "ride")
    assert np.array_equal(frames[1].image, picture(1))
