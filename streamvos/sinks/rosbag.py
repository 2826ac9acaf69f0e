"""Results as a rosbag2 recording in MCAP: the topics of `streamvos ros2`, and the pictures.

    /streamvos/image/compressed    sensor_msgs/CompressedImage, JPEG
    /streamvos/label_map           sensor_msgs/Image, mono8
    /streamvos/detections          vision_msgs/Detection2DArray
    /streamvos/labels              vision_msgs/LabelInfo, latched, when the objects change

Stamps are the frames' `pts`, from the epoch of the source if it has one; the frame id is the stream's name.

    with RosbagSink("out/rosbag") as sink:
        sink.write(frame, result)
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from streamvos.rosmsg.pictures import COMPRESSED, IMAGE, label_map_image
from streamvos.rosmsg.results import detections, label_info
from streamvos.rosmsg.types import encode, make, time_of
from streamvos.sinks.claim import files_of_recording, refuse_others_in
from streamvos.sinks.mcap import jpeg_of
from streamvos.sinks.record import OutputRecord, check_is_there, file_identity, give_name
from streamvos.sinks.sink import Sink, cannot_write, make_folder
from streamvos.types import Frame, InputError, Result, SinkError

_PICTURES, _LABEL_MAP, _DETECTIONS, _LABELS = (
    f"/streamvos/{name}" for name in ("image/compressed", "label_map", "detections", "labels")
)
_TYPES = {
    _PICTURES: COMPRESSED,
    _LABEL_MAP: IMAGE,
    _DETECTIONS: "vision_msgs/msg/Detection2DArray",
    _LABELS: "vision_msgs/msg/LabelInfo",
}
_VERSION: Literal[8] = 8  # of metadata.yaml: ROS 2 Humble reads no later one, and Jazzy reads this
_END_NS = 2**31 * 10**9  # ROS's stamps have 32 bits of seconds


class RosbagSink(Sink):
    """Writes each frame with its results into one recording, a folder with a .mcap file and metadata.yaml.

    The folder is NAME.RANDOM.partial until it is closed; after an exception the recording is completed and
    keeps that name.

    Args:
        path: the final folder; the one around it is made if missing.
        epoch_ns: the time of `pts` 0, ns since 1970; 0 = not known.
        uncertain_below: score below which an object is uncertain, for LabelInfo.
        record: lists the files; without it, the files of an earlier recording at `path` are replaced when the
            sink is closed.

    Raises:
        InputError: rosbags is not installed, or the folder is there and holds something else.
        SinkError: the recording cannot be made.
    """

    _repeatable: ClassVar[bool] = False  # a chunk may be written in part

    def __init__(
        self,
        path: str | Path,
        *,
        epoch_ns: int = 0,
        uncertain_below: float = 0.0,
        record: OutputRecord | None = None,
    ) -> None:
        super().__init__(path)
        try:
            from rosbags.rosbag2 import StoragePlugin, Writer
            from rosbags.rosbag2.enums import CompressionFormat, CompressionMode
        except ImportError:
            raise InputError("rosbags is not installed: pip install 'streamvos[bags]'") from None
        refuse_others_in(self.path)
        make_folder(self.path.parent)
        self._epoch_ns, self._uncertain_below, self._record = epoch_ns, uncertain_below, record
        self._known: tuple[int, ...] | None = None
        self._is_whole = True
        self.partial = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.partial")
        self._files = files_of_recording(self.partial, self.path.name)
        if record is not None:
            for path in self._files:
                record.expect(path, 1)
        self._writer = Writer(self.partial, version=_VERSION, storage_plugin=StoragePlugin.MCAP)
        self._writer.set_compression(CompressionMode.STORAGE, CompressionFormat.ZSTD)
        try:
            self._writer.open()
            storage = self._writer.storage
            assert storage is not None
            os.rename(storage.path, self._files[0])  # rosbags names the file after the partial folder
            storage.path = self._files[0]
            self._identity = file_identity(self._files[0])
            self._connections = {topic: self._connection(topic) for topic in _TYPES}
        except OSError as error:
            self.abort()
            with contextlib.suppress(OSError):
                self.partial.rmdir()
            raise cannot_write(self.partial, error) from error

    @property
    def place(self) -> Path:
        return self.partial

    def _connection(self, topic: str) -> Any:
        from streamvos.rosmsg.types import typestore

        qos = [_latched()] if topic == _LABELS else []
        return self._writer.add_connection(
            topic, _TYPES[topic], typestore=typestore(), offered_qos_profiles=qos
        )

    def _write(self, frame: Frame, result: Result) -> None:
        nanoseconds = self._epoch_ns + round(frame.pts * 1e9)
        if not 0 <= nanoseconds < _END_NS:
            raise SinkError(
                f"cannot write {self.partial}: the time of frame {frame.index} is "
                f"{nanoseconds / 1e9:.3f} s since 1970; a ROS stamp is at most {_END_NS // 10**9 - 1} s"
            )
        header = make("std_msgs/msg/Header", stamp=time_of(nanoseconds), frame_id=frame.stream)
        names = {key: str(key) for key in result.object_ids}
        data = np.frombuffer(jpeg_of(frame.image), np.uint8)
        messages = {
            _PICTURES: make(COMPRESSED, header=header, format="jpeg", data=data),
            _LABEL_MAP: label_map_image(result.mask, header),
            _DETECTIONS: detections(result.objects, names, header),
        }
        if result.object_ids != self._known:
            messages[_LABELS] = label_info(names, header, self._uncertain_below)
        contents = {topic: encode(message) for topic, message in messages.items()}
        check_is_there(self._files[0], self._identity)
        try:
            for topic, content in contents.items():
                self._writer.write(self._connections[topic], nanoseconds, content)
        except OSError as error:
            self._is_whole = False
            raise cannot_write(self.partial, error) from error
        self._known = result.object_ids

    def _finish(self) -> None:
        try:
            self._writer.close()
        except OSError as error:
            self._close_file()
            raise cannot_write(self.partial, error) from error
        try:
            check_is_there(self._files[0], self._identity)
            make_folder(self.path)
            for partial, path in zip(self._files, files_of_recording(self.path), strict=True):
                give_name(partial, path, self._record)
            self.partial.rmdir()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _abandon(self) -> None:
        if self._is_whole:
            with contextlib.suppress(Exception):
                self._writer.close()
        self._close_file()

    def _close_file(self) -> None:
        with contextlib.suppress(Exception):
            self._writer.abort()
        with contextlib.suppress(OSError):  # left where the disk is full
            self._writer.metapath.with_suffix(".yaml.tmp").unlink(missing_ok=True)


def _latched() -> Any:
    """The profile with which a player gives a topic's last message to who comes later, too."""
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    forever = QosTime(9_223_372_036, 854_775_807)  # as ROS writes it
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=1,
        reliability=QosReliability.RELIABLE,
        durability=QosDurability.TRANSIENT_LOCAL,
        deadline=forever,
        lifespan=forever,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=forever,
        avoid_ros_namespace_conventions=False,
    )
