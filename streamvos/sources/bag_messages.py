"""The messages of a recording: rosbag2 (folders, .db3, .mcap) and MCAP files of other writers.

Files are read from the front and without their index, so that a recording that was cut off, or never closed,
gives what it holds. A folder's metadata.yaml, which a recorder writes last, is not needed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamvos.files import open_file
from streamvos.pictures.listing import natural_key
from streamvos.sources.places import RECORDINGS, is_recording
from streamvos.types import InputError

_ZSTD = b"\x28\xb5\x2f\xfd"  # begins a message that the recorder compressed
_MOST_BYTES = 2**30  # of a record


class DamagedRecordingError(Exception):
    """A recording cannot be read on from here."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A message.

    Attributes:
        topic: its topic.
        type: its type or schema, such as "sensor_msgs/msg/Image" or "foxglove.CompressedImage".
        encoding: of its content: "cdr", "protobuf", "json", ...
        time_ns: when it was recorded, ns since the epoch.
        content: its bytes.
        schema: the definition of its type as an MCAP file holds it; empty in others.
    """

    topic: str
    type: str
    encoding: str
    time_ns: int
    content: bytes
    schema: bytes = b""


def recording_files(path: Path) -> list[Path]:
    """The files of a recording in their order; empty if this is none.

    Raises:
        InputError: they are compressed as a whole.
    """
    if path.is_file():
        inside = [path]
    elif path.is_dir():
        inside = sorted((one for one in path.iterdir() if one.is_file()), key=natural_key)
    else:
        return []
    for one in inside:
        if is_recording(one) and one.suffix.lower() == ".zstd":
            raise InputError(f"{one} is compressed as a whole; unpack it with `zstd -d`, and give its folder")
    return [one for one in inside if one.suffix.lower() in RECORDINGS]


def messages(path: Path, types: tuple[str, ...]) -> Iterator[Recorded]:
    """The messages of some types in one file, in the order of the file.

    Raises:
        InputError: the file cannot be opened, or holds something else.
        DamagedRecordingError: it is damaged or breaks off.
    """
    return _of_mcap(path, types) if path.suffix.lower() == ".mcap" else _of_sqlite(path, types)


def _of_mcap(path: Path, types: tuple[str, ...]) -> Iterator[Recorded]:
    import zstandard
    from mcap.exceptions import EndOfFile, InvalidMagic, McapError
    from mcap.records import Channel, Message, Schema
    from mcap.stream_reader import StreamReader

    with open_file(path, "the recording") as file:
        schemas: dict[int, Any] = {}
        channels: dict[int, Any] = {}
        reader = StreamReader(file, validate_crcs=True, record_size_limit=_MOST_BYTES)
        found = False
        try:
            for record in reader.records:
                found = True
                if isinstance(record, Schema):
                    schemas[record.id] = record
                elif isinstance(record, Channel):
                    channels[record.id] = record
                elif isinstance(record, Message):
                    channel = channels[record.channel_id]
                    schema = schemas.get(channel.schema_id)
                    if schema is not None and schema.name in types:
                        yield Recorded(
                            channel.topic,
                            schema.name,
                            channel.message_encoding,
                            record.log_time,
                            _unpacked(record.data),
                            schema.data,
                        )
        except InvalidMagic:
            if not found:
                raise InputError(f"{path} is no MCAP file: it does not begin like one") from None
            raise DamagedRecordingError("its end is missing") from None
        except EndOfFile:
            raise DamagedRecordingError("its end is missing") from None
        except (
            McapError,
            ValueError,  # also of a wrong checksum
            KeyError,
            RuntimeError,
            struct.error,
            MemoryError,
            zstandard.ZstdError,
        ) as error:
            raise DamagedRecordingError(" ".join(str(error).split()) or type(error).__name__) from None


def _of_sqlite(path: Path, types: tuple[str, ...]) -> Iterator[Recorded]:
    import apsw
    import zstandard
    from rosbags.rosbag2 import Reader
    from rosbags.rosbag2.errors import ReaderError

    open_file(path, "the recording").close()
    reader = Reader(path)
    try:
        reader.open()
    except (ReaderError, apsw.Error, OSError, ValueError, KeyError) as error:
        raise InputError(f"cannot read the recording {path}: {' '.join(str(error).split())}") from None
    with closing(reader):
        wanted = [one for one in reader.connections if one.msgtype in types]
        if not wanted:
            return
        try:
            for connection, time_ns, content in reader.messages(wanted):
                data = _unpacked(bytes(content))
                yield Recorded(connection.topic, connection.msgtype, "cdr", time_ns, data)
        except (ReaderError, apsw.Error, zstandard.ZstdError, OSError) as error:
            raise DamagedRecordingError(" ".join(str(error).split())) from None


def _unpacked(content: bytes) -> bytes:
    """A message without the compression that rosbag2's recorder may have given it."""
    if not content.startswith(_ZSTD):
        return content
    import zstandard

    return zstandard.ZstdDecompressor().decompress(content, _MOST_BYTES)
