"""The pictures of a topic in a recording: a rosbag2 folder, its .db3 or .mcap files, or any MCAP file.

    with BagSource("ride/", topic="/camera/image_raw") as source:
        for frame in source:
            print(frame.pts)

Pictures are sensor_msgs Image and CompressedImage, and Foxglove's CompressedImage and RawImage.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from streamvos.sources.bag_messages import DamagedRecordingError, Recorded, messages, recording_files
from streamvos.sources.bag_pictures import PICTURES, VIDEOS, picture_of
from streamvos.sources.clock import FileClock
from streamvos.sources.source import NOMINAL_FPS, Picture, Selection, Source
from streamvos.types import InputError, TruncatedError

logger = logging.getLogger(__name__)


class BagSource(Source):
    """Pictures of one topic. `pts` follows their stamps, or the times of recording where they have none.

    Args:
        place: a folder of a rosbag2 recording, or one of its files, or an MCAP file.
        topic: which; None = the only one that has pictures.
        name: name of the stream; that of the place if None.
        selection: which frames, and how large.
        allow_truncated: a recording that is damaged or breaks off is read that far, with a warning.

    Raises:
        InputError: this is no recording, has no such topic, or a picture cannot be read.
    """

    def __init__(
        self,
        place: str | Path,
        *,
        topic: str | None = None,
        name: str | None = None,
        selection: Selection | None = None,
        allow_truncated: bool = False,
    ) -> None:
        self.path, self._allow_truncated = Path(place), allow_truncated
        try:
            import mcap  # noqa: F401
            import mcap_protobuf  # noqa: F401
            import rosbags  # noqa: F401
        except ImportError as error:
            raise InputError(f"{error.name} is not installed: pip install 'streamvos[bags]'") from None
        self._files = recording_files(self.path)
        if not self._files:
            raise InputError(f"{place} holds no recording; expected .db3 or .mcap files")
        self.topic = self._choose(topic)
        self._read_so_far = 0
        self._clock = FileClock(1.0 / NOMINAL_FPS)
        self._messages = self._of_topic()
        self._pending = self._decode()
        if self._pending is None:
            raise InputError(f"{place} has no whole picture on {self.topic}")
        super().__init__(
            name=name or self.path.resolve().stem,
            native_size=(self._pending.image.shape[0], self._pending.image.shape[1]),
            fps=None,
            native_length=None,
            selection=selection or Selection(),
        )

    def identity(self) -> Mapping[str, object]:
        """Sizes and times of the files."""
        found = [one.stat() for one in self._files]
        return {
            "size of the recording": sum(one.st_size for one in found),
            "time of the recording": max(one.st_mtime_ns for one in found),
        }

    def close(self) -> None:
        self._messages.close()  # type: ignore[attr-defined]
        super().close()

    def _choose(self, wanted: str | None) -> str:
        """The topic to read: the wanted one, or the only one with pictures."""
        seen: dict[str, str] = {}
        for path in self._files:
            try:
                for message in messages(path, (*PICTURES, *VIDEOS)):
                    seen.setdefault(message.topic, message.type)
                    if message.topic == wanted and message.type in PICTURES:
                        return wanted
            except DamagedRecordingError:  # told when the pictures are read
                continue
        videos = {topic: seen.pop(topic) for topic in list(seen) if seen[topic] in VIDEOS}
        if (videos and not seen) or wanted in videos:
            topic = wanted if wanted in videos else min(videos)
            raise InputError(
                f"{topic} of {self.path} is {videos[topic]}, a video stream (H.264 or the like); expected "
                "pictures. Record foxglove.CompressedImage, or write the data of its messages one after "
                "another into a video file, such as FILE.h264"
            )
        shown = ", ".join(f"{topic} ({kind})" for topic, kind in sorted(seen.items())) or "none"
        if wanted is not None:
            raise InputError(f"{self.path} has no pictures on {wanted}; topics with pictures: {shown}")
        if len(seen) != 1:
            choose = "choose one with --topic" if seen else f"expected one of {', '.join(PICTURES)}"
            raise InputError(f"{self.path} has {len(seen)} topics with pictures: {shown}; {choose}")
        return next(iter(seen))

    def _of_topic(self) -> Iterator[Recorded]:
        for path in self._files:
            try:
                yield from (one for one in messages(path, PICTURES) if one.topic == self.topic)
            except DamagedRecordingError as error:
                what = f"{path} breaks off after {self._read_so_far} pictures of {self.topic}: {error}"
                if not self._allow_truncated:
                    raise TruncatedError(
                        f"{what}; take what can be read: --allow-truncated (allow_truncated in Python)"
                    ) from None
                logger.warning("%s", what)

    def _read(self) -> Picture | None:
        picture, self._pending = self._pending, None
        return picture or self._decode()

    def _decode(self) -> Picture | None:
        recorded = next(self._messages, None)
        if recorded is None:
            return None
        try:
            image, stamp = picture_of(recorded)
        except InputError as error:
            raise InputError(f"picture {self._read_so_far} on {self.topic} of {self.path}: {error}") from None
        stamp = stamp or recorded.time_ns
        if not self._read_so_far:
            self.epoch_ns = stamp
        self._read_so_far += 1
        return Picture(image, time.monotonic_ns(), self._clock((stamp - self.epoch_ns) / 1e9))

    def _skip(self, count: int) -> None:
        for _ in range(count):
            if self._pending is not None:
                self._pending = None
            elif next(self._messages, None) is None:
                return
            else:
                self._read_so_far += 1
            self._note_progress()
