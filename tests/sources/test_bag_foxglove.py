"""Foxglove's pictures in MCAP files as its own SDK writes them, in protobuf, and as ROS nodes do, in CDR."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("rosbags", reason="needs rosbags, of the extra bags")
pytest.importorskip("mcap_protobuf", reason="needs mcap-protobuf-support, of the extra bags")

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import DESCRIPTOR as TIMESTAMP
from mcap.writer import Writer

from streamvos.rosmsg.types import encode, make, time_of
from streamvos.sources import open_source
from streamvos.types import InputError

START_NS = 1_700_000_000 * 10**9
STEP_NS = 40_000_000
RAW, COMPRESSED, VIDEO = "foxglove.RawImage", "foxglove.CompressedImage", "foxglove.CompressedVideo"

FIELDS = {  # name -> (number, type), as Foxglove's .proto files have them
    RAW: {
        "timestamp": (1, Field.TYPE_MESSAGE),
        "frame_id": (7, Field.TYPE_STRING),
        "width": (2, Field.TYPE_FIXED32),
        "height": (3, Field.TYPE_FIXED32),
        "encoding": (4, Field.TYPE_STRING),
        "step": (5, Field.TYPE_FIXED32),
        "data": (6, Field.TYPE_BYTES),
    },
    COMPRESSED: {
        "timestamp": (1, Field.TYPE_MESSAGE),
        "frame_id": (4, Field.TYPE_STRING),
        "data": (2, Field.TYPE_BYTES),
        "format": (3, Field.TYPE_STRING),
    },
}
FIELDS[VIDEO] = FIELDS[COMPRESSED]


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)


def schema(name: str, fields=None) -> FileDescriptorSet:
    """What describes a type in a file, and the file of its stamps."""
    file = descriptor_pb2.FileDescriptorProto(
        name="picture.proto", package="foxglove", syntax="proto3", dependency=[TIMESTAMP.name]
    )
    message = file.message_type.add(name=name.removeprefix("foxglove."))
    for field, (number, kind) in (fields or FIELDS[name]).items():
        added = message.field.add(name=field, number=number, type=kind, label=Field.LABEL_OPTIONAL)
        if kind == Field.TYPE_MESSAGE:
            added.type_name = ".google.protobuf.Timestamp"
    timestamp = descriptor_pb2.FileDescriptorProto()
    TIMESTAMP.CopyToProto(timestamp)
    return FileDescriptorSet(file=[file, timestamp])


def content(described: FileDescriptorSet, values) -> bytes:
    """A message of the first type that is described."""
    pool = DescriptorPool()
    for file in reversed(described.file):
        pool.Add(file)
    message = GetMessageClass(
        pool.FindMessageTypeByName(f"foxglove.{described.file[0].message_type[0].name}")
    )()
    for field, value in values.items():
        if field == "timestamp":
            message.timestamp.seconds, message.timestamp.nanos = value
        else:
            setattr(message, field, value)
    return message.SerializeToString()


def write(path: Path, name: str, descriptors: bytes, contents, encoding="protobuf", topics=("/camera",)):
    kind = {"protobuf": "protobuf", "cdr": "ros2msg"}[encoding]
    with open(path, "wb") as file:
        writer = Writer(file)
        writer.start()
        number = writer.register_schema(name, kind, descriptors)
        for topic in topics:
            channel = writer.register_channel(topic, encoding, number)
            for index, one in enumerate(contents):
                writer.add_message(channel, START_NS + index * STEP_NS, one, 0)
        writer.finish()
    return path


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, "PNG")
    return file.getvalue()


def raw(number: int, **changed):
    values = {
        "timestamp": (5, number * STEP_NS),
        "frame_id": "camera",
        "width": 64,
        "height": 48,
        "encoding": "rgb8",
        "step": 192,
        "data": picture(number).tobytes(),
    }
    return values | changed


def compressed(number: int, **changed):
    values = {"timestamp": (5, number * STEP_NS), "frame_id": "camera", "data": png(number), "format": "png"}
    return values | changed


def frames_of(place, **options):
    with open_source(str(place), **options) as source:
        return source, list(source)


def refused(place) -> str:
    with pytest.raises(InputError) as caught:
        frames_of(place)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "values"), [(RAW, raw), (COMPRESSED, compressed)])
def test_pictures_in_protobuf(tmp_path, name, values):
    described = schema(name)
    contents = [content(described, values(number)) for number in range(3)]
    source, frames = frames_of(write(tmp_path / "a.mcap", name, described.SerializeToString(), contents))
    assert source.epoch_ns == 5 * 10**9
    assert np.allclose([one.pts for one in frames], [0, 0.04, 0.08])
    for number, frame in enumerate(frames):
        assert np.array_equal(frame.image, picture(number))


def test_the_package_of_foxglove(tmp_path):
    """Its generated classes, and the writer that belongs to them."""
    package = "foxglove_schemas_protobuf.RawImage_pb2"
    classes = pytest.importorskip(package, reason="needs foxglove-schemas-protobuf")
    from mcap_protobuf.writer import Writer as ProtobufWriter

    with open(tmp_path / "a.mcap", "wb") as file, ProtobufWriter(file) as writer:
        for number in range(2):
            values = raw(number)
            seconds, nanos = values.pop("timestamp")
            message = classes.RawImage(**values)
            message.timestamp.seconds, message.timestamp.nanos = seconds, nanos
            writer.write_message("/camera", message, log_time=START_NS)
    _, frames = frames_of(tmp_path / "a.mcap")
    assert np.array_equal(frames[1].image, picture(1))
    assert np.allclose([one.pts for one in frames], [0, 0.04])


def test_without_stamps_the_times_of_recording_count(tmp_path):
    described = schema(RAW, {name: FIELDS[RAW][name] for name in FIELDS[RAW] if name != "timestamp"})
    values = [{k: v for k, v in raw(number).items() if k != "timestamp"} for number in range(2)]
    contents = [content(described, one) for one in values]
    source, frames = frames_of(write(tmp_path / "a.mcap", RAW, described.SerializeToString(), contents))
    assert source.epoch_ns == START_NS
    assert np.allclose([one.pts for one in frames], [0, 0.04])
    for seconds in (-5, 2**62):
        odd = content(schema(RAW), raw(0, timestamp=(seconds, 0)))
        write(tmp_path / "b.mcap", RAW, schema(RAW).SerializeToString(), [odd])
        assert frames_of(tmp_path / "b.mcap")[0].epoch_ns == START_NS


def test_pictures_in_cdr(tmp_path):
    for name, values in (("RawImage", raw), ("CompressedImage", compressed)):
        fields = [values(number) for number in range(2)]
        for one in fields:
            one["timestamp"] = time_of(one["timestamp"][0] * 10**9 + one["timestamp"][1])
            one["data"] = np.frombuffer(one["data"], np.uint8)
        kind = f"foxglove_msgs/msg/{name}"
        contents = [encode(make(kind, **one)) for one in fields]
        source, frames = frames_of(write(tmp_path / f"{name}.mcap", kind, b"", contents, "cdr"))
        assert source.epoch_ns == 5 * 10**9
        assert np.array_equal(frames[1].image, picture(1))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"width": 2**32 - 1, "height": 2**32 - 1}, "expected 1 to 67108864 pixels"),
        ({"step": 2**32 - 1}, "expected rows of at least 192 bytes"),
        ({"height": 0}, "an image is 64 x 0"),
        ({"data": b""}, "has 0 bytes and rows of 192"),
        ({"encoding": "32FC1"}, "has the encoding '32FC1'"),
    ],
)
def test_pictures_that_are_none(tmp_path, changed, said):
    described = schema(RAW)
    contents = [content(described, raw(0, **changed))]
    place = write(tmp_path / "a.mcap", RAW, described.SerializeToString(), contents)
    assert said in refused(place)
    assert f"picture 0 on /camera of {place}: " in refused(place)


def test_messages_that_are_cut(tmp_path):
    described = schema(COMPRESSED)
    whole = content(described, compressed(0))
    for length in (1, 10, len(whole) // 2, len(whole) - 1):
        place = write(tmp_path / "a.mcap", COMPRESSED, described.SerializeToString(), [whole[:length]])
        assert "no foxglove.CompressedImage in protobuf: DecodeError" in refused(place)
    place = write(tmp_path / "a.mcap", COMPRESSED, described.SerializeToString(), [b""])
    assert "a compressed image of 0 bytes" in refused(place)


def changed_fields(**changed):
    fields = {**FIELDS[RAW], **changed}
    return schema(RAW, {name: one for name, one in fields.items() if one is not None})


SCHEMAS = {
    "no field": (changed_fields(step=None), "its protobuf schema has no field 'step'"),
    "text": (changed_fields(width=(2, Field.TYPE_STRING)), "'width' of its protobuf schema is str; expected"),
    "stamp": (changed_fields(timestamp=(1, Field.TYPE_INT64)), "protobuf schema has no field 'seconds'"),
    "other name": (schema(COMPRESSED), "is missing that schema"),
    "alone": (FileDescriptorSet(file=schema(RAW).file[:1]), "no foxglove.RawImage in protobuf"),
    "twice": (FileDescriptorSet(file=[*schema(RAW).file] * 2), "no foxglove.RawImage in protobuf"),
    "none": (FileDescriptorSet(), "is missing that schema"),
}


@pytest.mark.parametrize("which", SCHEMAS)
def test_schemas_that_do_not_fit(tmp_path, which):
    described, said = SCHEMAS[which]
    place = write(tmp_path / "a.mcap", RAW, described.SerializeToString(), [b""])
    assert said in refused(place)


def test_a_damaged_schema(tmp_path):
    descriptors = schema(RAW).SerializeToString()
    rng = np.random.default_rng(0)
    good = content(schema(RAW), raw(0))
    for length in range(0, len(descriptors), 23):
        refused(write(tmp_path / "a.mcap", RAW, descriptors[:length], [good]))
    for _ in range(60):
        damaged = bytearray(descriptors)
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        place = write(tmp_path / "a.mcap", RAW, bytes(damaged), [good])
        with contextlib.suppress(InputError):  # and no other error
            frames_of(place)


def test_a_circle_of_files(tmp_path):
    described = FileDescriptorSet()
    for own, other in ("ab", "ba"):
        described.file.add(name=own, dependency=[other])
    assert "no foxglove" in refused(write(tmp_path / "a.mcap", RAW, described.SerializeToString(), [b""]))


def test_video_is_told_apart(tmp_path):
    described = schema(VIDEO)
    contents = [content(described, compressed(0, format="h264"))]
    place = write(tmp_path / "a.mcap", VIDEO, described.SerializeToString(), contents)
    said = refused(place)
    assert f"/camera of {place} is foxglove.CompressedVideo, a video stream" in said
    with pytest.raises(InputError, match=r"/camera of .* is foxglove.CompressedVideo"):
        open_source(str(place), topic="/camera")
