"""What the console shows and commands: a running pipeline, or one frame of a source.

    backend = PipelineBackend("door")
    backend.status()["streams"]
    with backend.follow("front", on_picture, on_mask):
        ...

The console is a client like any other: nothing that happens to it reaches the pipeline.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import zmq
from PIL import Image

from streamvos.masks.checks import check_label_map, object_ids
from streamvos.masks.labelmap import write_label_map
from streamvos.masks.rle import encode_rles
from streamvos.pipeline.clients.client import Client, PipelineError, publishers_in
from streamvos.pipeline.clients.published import Mask, Picture
from streamvos.pipeline.clients.subscribing import FrameSubscription, Subscription
from streamvos.types import InputError, ObjectResult

COMMAND_SECONDS = 20.0
"""Longest wait for the pipeline's answer to a command."""

_POLL_SECONDS = 0.25  # how soon a thread sees that it has to end

OnPicture = Callable[[Picture], None]
OnMask = Callable[[Mask], None]


class Following(Protocol):
    """Pictures and masks of one stream, until it is closed."""

    def close(self) -> None: ...


class Backend(Protocol):
    """What a console needs; methods are called from any thread.

    Every method may raise InputError, if the request is at fault, or PipelineError, if nobody answers.
    """

    name: str
    kind: Literal["pipeline", "picture"]

    def status(self) -> dict[str, Any]:
        """As `Client.status`."""
        ...

    def annotate(self, stream: str, mask: np.ndarray) -> int:
        """Start, add or correct objects; returns the number of the frame."""
        ...

    def forget(self, stream: str, object_id: int) -> int:
        """Forget an object; returns the number of the first frame without it."""
        ...

    def pause(self, stream: str) -> None: ...

    def resume(self, stream: str) -> None: ...

    def stop(self, stream: str) -> None: ...

    def add_stream(
        self, name: str, source: str, method: str | None, keys: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """As `Client.add_stream`; `keys`: further ones of [[streams]]."""
        ...

    def remove_stream(self, stream: str) -> Mapping[str, Any]:
        """As `Client.remove_stream`."""
        ...

    def follow(self, stream: str, on_picture: OnPicture, on_mask: OnMask) -> Following:
        """Call functions, in other threads, with each picture and each mask of a stream."""
        ...


class PipelineBackend:
    """A pipeline of this machine that `streamvos serve` runs, or that will run later.

    Args:
        name: the pipeline's name, or its ipc:// address.
        files: whether streams that are added may be files of the pipeline's machine.
    """

    kind: Literal["pipeline", "picture"] = "pipeline"

    def __init__(self, name: str, files: bool = True):
        self.name, self._files = name, files
        self._client: Client | None = None  # for `status`; each command has its own
        self._lock = threading.Lock()

    def status(self) -> dict[str, Any]:
        with self._lock:
            try:
                if self._client is None:
                    self._client = Client(self.name, timeout=3.0)
                return self._client.status()
            except (InputError, PipelineError):
                if self._client is not None:
                    self._client.close()
                self._client = None
                raise

    def annotate(self, stream: str, mask: np.ndarray) -> int:
        with self._connected() as client:
            return client.annotate(stream, mask)

    def forget(self, stream: str, object_id: int) -> int:
        with self._connected() as client:
            return client.forget(stream, object_id)

    def pause(self, stream: str) -> None:
        with self._connected() as client:
            client.pause(stream)

    def resume(self, stream: str) -> None:
        with self._connected() as client:
            client.resume(stream)

    def stop(self, stream: str) -> None:
        with self._connected() as client:
            client.stop(stream)

    def add_stream(
        self, name: str, source: str, method: str | None, keys: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        with self._connected() as client:
            return client.add_stream(name, source, method=method, files=self._files, **keys)

    def remove_stream(self, stream: str) -> Mapping[str, Any]:
        with self._connected() as client:
            return client.remove_stream(stream)

    def follow(self, stream: str, on_picture: OnPicture, on_mask: OnMask) -> Following:
        with self._connected() as client:
            status = client.status()
            address = client.address
        frames = status.get("frames", {}).get(stream)
        masks = None
        with suppress(InputError):  # it publishes none
            masks = publishers_in(status, stream, address)[stream]
        if frames is None:  # they stay on another machine
            on_mask = _with_picture(on_picture, on_mask)
        return _PipelineFollowing(stream, frames, masks, on_picture, on_mask)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    def _connected(self) -> Client:
        return Client(self.name, timeout=COMMAND_SECONDS)


class _PipelineFollowing:
    """Two threads that read what a stream's source and its sink publish."""

    def __init__(
        self, stream: str, frames: str | None, masks: str | None, on_picture: OnPicture, on_mask: OnMask
    ):
        self._ending = threading.Event()
        self._zmq: zmq.Context[Any] = zmq.Context()
        self._threads = []
        if frames is not None:
            arguments = (FrameSubscription(self._zmq, frames, stream), on_picture)
            self._threads.append(threading.Thread(target=self._read_frames, args=arguments, daemon=True))
        if masks is not None:
            subscription = Subscription(self._zmq, [masks], stream, "rle")
            self._threads.append(
                threading.Thread(target=self._read_masks, args=(subscription, on_mask), daemon=True)
            )
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self._zmq.term()

    def _read_frames(self, frames: FrameSubscription, on_picture: OnPicture) -> None:
        with frames:
            while not self._ending.is_set():
                one = frames.receive(_POLL_SECONDS)
                if one is not None:
                    on_picture(one)

    def _read_masks(self, masks: Subscription, on_mask: OnMask) -> None:
        with masks, suppress(InputError):  # it refuses our keys
            while not self._ending.is_set():
                one = masks.receive(_POLL_SECONDS)
                if isinstance(one, Mask):
                    on_mask(one)


def _with_picture(on_picture: OnPicture, on_mask: OnMask) -> OnMask:
    """A function that shows masks on a plain picture."""

    def show(mask: Mask) -> None:
        jpeg = _plain_picture(mask.size)
        where = (mask.stream, mask.seq, mask.incarnation, mask.captured_ns, mask.pts, mask.size)
        on_picture(Picture(*where, jpeg))
        on_mask(mask)

    return show


@lru_cache(maxsize=8)
def _plain_picture(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size[1], size[0]), (38, 42, 46)).save(buffer, format="JPEG")
    return buffer.getvalue()


class PictureBackend:
    """One frame whose objects are pointed at, and the file that their label map is written to.

    Args:
        name: what the picture shows.
        image: (H, W, 3) uint8 RGB.
        target: the label map's file, written by `stop`.

    Attributes:
        finished: set when the file has been written.
    """

    kind: Literal["pipeline", "picture"] = "picture"

    STREAM = "picture"

    def __init__(self, name: str, image: np.ndarray, target: Path):
        self.name = name
        self.label_map = np.zeros(image.shape[:2], np.uint8)
        self.finished = threading.Event()
        self._target = target
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=95, subsampling=0)
        size = (image.shape[0], image.shape[1])
        self._picture = Picture(self.STREAM, 0, 1, time.monotonic_ns(), 0.0, size, buffer.getvalue())
        self._lock = threading.Lock()
        self._followers: list[OnMask] = []

    def status(self) -> dict[str, Any]:
        stream: dict[str, Any] = {
            "state": "ended" if self.finished.is_set() else "still",
            "objects": object_ids(self.label_map),
            "size": list(self._picture.size),
            "source": self.name,
            "seq": 0,
            "fps": None,
            "dropped": {},
            "latencies": {},
        }
        return {"pipeline": self.name, "streams": {self.STREAM: stream}, "publish": {}, "workers": {}}

    def annotate(self, stream: str, mask: np.ndarray) -> int:
        given = check_label_map(mask, self._picture.size)
        named = object_ids(given)
        with self._lock:
            before = np.where(np.isin(self.label_map, named), np.uint8(0), self.label_map)
            self.label_map = np.where(given != 0, given, before)
        self._tell()
        return 0

    def forget(self, stream: str, object_id: int) -> int:
        with self._lock:
            if not (self.label_map == object_id).any():
                raise InputError(f"there is no object {object_id}")
            self.label_map = np.where(self.label_map == object_id, np.uint8(0), self.label_map)
        self._tell()
        return 0

    def pause(self, stream: str) -> None:
        raise InputError("this is one picture, which does not run")

    def resume(self, stream: str) -> None:
        self.pause(stream)

    def add_stream(
        self, name: str, source: str, method: str | None, keys: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        raise InputError("this is one picture, to which no stream can be added")

    def remove_stream(self, stream: str) -> Mapping[str, Any]:
        raise InputError("this is one picture, which cannot be removed")

    def stop(self, stream: str) -> None:
        if not object_ids(self.label_map):
            raise InputError("no object has been selected yet")
        write_label_map(self._target, self.label_map)
        self.finished.set()

    def follow(self, stream: str, on_picture: OnPicture, on_mask: OnMask) -> Following:
        on_picture(self._picture)
        self._followers.append(on_mask)
        on_mask(self._mask())
        return _Unfollow(self._followers, on_mask)

    def _tell(self) -> None:
        mask = self._mask()
        for one in list(self._followers):
            one(mask)

    def _mask(self) -> Mask:
        label_map = self.label_map
        ids = object_ids(label_map)
        objects = {}
        for one in ids:
            rows, columns = np.nonzero(label_map == one)
            box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
            objects[one] = ObjectResult(one, 1.0, "tracking", box, len(rows))
        picture, now = self._picture, time.monotonic_ns()
        drops: Mapping[str, int] = {}
        return Mask(
            stream=picture.stream,
            seq=picture.seq,
            incarnation=picture.incarnation,
            captured_ns=picture.captured_ns,
            pts=0.0,
            size=picture.size,
            objects=objects,
            dropped=drops,
            recovered=False,
            stamps={},
            received_ns=now,
            runs=encode_rles(label_map, ids),
            _decode=lambda: label_map,
        )


class _Unfollow:
    def __init__(self, followers: list[OnMask], one: OnMask):
        self._followers, self._one = followers, one

    def close(self) -> None:
        with suppress(ValueError):
            self._followers.remove(self._one)
