"""A console without a pipeline: a scene whose truth is known, a backend that plays it, and networks of color.

The scene's objects have colors that nothing else has, so that a click and a frame later are decided by what
is in the picture, as with real networks, but at once and exactly.
"""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
from PIL import Image

from streamvos.console.selecting import Selecting
from streamvos.console.server import listen_at, make_server
from streamvos.masks.rle import encode_rles
from streamvos.pipeline.clients.client import PipelineError
from streamvos.pipeline.clients.published import Mask, Picture
from streamvos.types import InputError, ObjectResult, Result

TOKEN = "a-token-of-the-tests-0123"
SIZE = (120, 160)
PATIENCE = 30.0
COLORS = {1: (220, 40, 40), 2: (40, 70, 230)}


def truth(n: int) -> np.ndarray:
    """The label map of frame n: two disks that go to and fro."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    swing = abs((n % 80) - 40)
    label_map = np.zeros(SIZE, np.uint8)
    label_map[(rows - 44) ** 2 + (columns - 30 - swing) ** 2 < 18**2] = 1
    label_map[(rows - 90) ** 2 + (columns - 130 + swing) ** 2 < 14**2] = 2
    return label_map


def image(n: int) -> np.ndarray:
    """Frame n, RGB."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    gray = 110 + 40 * np.sin(rows / 9) * np.cos(columns / 13)
    picture = np.repeat(gray[..., None], 3, axis=2).astype(np.uint8)
    for number, color in COLORS.items():
        picture[truth(n) == number] = color
    return picture


def iou(found: np.ndarray, true: np.ndarray) -> float:
    """Of two bool masks."""
    return float((found & true).sum() / max(1, (found | true).sum()))


def fit(mask: np.ndarray, number: int, n: int) -> float:
    """IoU of a mask with an object about frame n: a busy machine may be late by a second."""
    return max(iou(mask, truth(one) == number) for one in range(n - 25, n + 1, 3))


def near(picture: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Pixels of about a color; JPEG changes them a little."""
    return np.abs(picture.astype(int) - np.asarray(color, int)).sum(axis=2) < 150


class ColorSelector:
    """Selects what has the color of a click; a click beside it takes away what has its color.

    Attributes:
        calls: the arguments of each call.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.delay = 0.0

    def select(self, frame, points=(), box=None, mask=None):
        self.calls.append({"points": list(points), "box": box, "mask": mask})
        time.sleep(self.delay)
        found = np.zeros(frame.shape[:2], bool) if mask is None else np.array(mask, bool)
        if box is not None:
            left, top, right, bottom = (round(one) for one in box)
            inside = np.zeros_like(found)
            inside[top:bottom, left:right] = True
            found |= inside & (np.ptp(frame.astype(int), axis=2) > 60)
        for x, y, sign in points:
            if not (0 <= x < frame.shape[1] and 0 <= y < frame.shape[0]):
                raise InputError(f"the click {(x, y, sign)} is not within the frame")
            like = near(frame, frame[int(y), int(x)])
            found = found | like if sign > 0 else found & ~like
        if box is None and mask is None and not any(sign > 0 for *_, sign in points):
            raise InputError(
                "nothing points at an object: give a box, an earlier mask, or a click with sign 1"
            )
        return found, 0.9


class ColorSegmenter:
    """Follows the colors that the objects had in the first frame."""

    def __init__(self) -> None:
        self.steps = 0
        self._colors: dict[int, np.ndarray] = {}

    def reset(self) -> None:
        self._colors.clear()

    def step(self, frame, mask=None) -> Result:
        self.steps += 1
        if mask is not None:
            self._colors = {int(n): np.median(frame[mask == n], axis=0) for n in np.unique(mask) if n}
        found = np.zeros(frame.shape[:2], np.uint8)
        for number, color in self._colors.items():
            found[near(frame, color)] = number
        return Result(found, 0, tuple(self._colors), lambda: found, dict)


class SceneBackend:
    """A pipeline with the streams "front" and "back" that plays the scene and follows by its truth.

    Attributes:
        calls: commands, in order.
        given: the label maps of `annotate`, with the frame they were applied to.
        objects: stream -> id -> the scene's object that it follows, or a fixed mask.
    """

    kind = "pipeline"
    name = "scene"

    def __init__(self, fps: float = 12.0, streams: tuple[str, ...] = ("front", "back")):
        self.calls: list[tuple[Any, ...]] = []
        self.given: list[tuple[int, np.ndarray]] = []
        self.objects: dict[str, dict[int, Any]] = {name: {} for name in streams}
        self.states = dict.fromkeys(streams, "running")
        self.followed: list[str] = []
        self.down = False
        self.stall_timeout = 10.0
        self.without_frames: set[str] = set()
        self.seq = 0
        self._followers: list[tuple[str, Any, Any]] = []
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._interval = 1 / fps
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ending.set()
        self._thread.join()

    def status(self) -> dict[str, Any]:
        if self.down:
            raise PipelineError("the pipeline does not answer")
        streams = {
            name: {
                "state": self.states[name],
                "reason": "",
                "objects": sorted(self.objects[name].copy()),
                "size": list(SIZE),
                "source": "camera:0",
                "policy": "latest",
                "seq": self.seq,
                "fps": 12.0,
                "dropped": {"newer frame": 3},
                "restarts": 0,
                "stall_timeout": self.stall_timeout,
                "latencies": {
                    "glass to mask": {"count": self.seq, "mean": 21.0, "p50": 20.0, "p95": 25.0, "p99": 30.0}
                },
            }
            for name in self.objects
        }
        return {
            "pipeline": "scene",
            "method": "tvos",
            "streams": streams,
            "publish": dict.fromkeys(streams, ""),
            "frames": dict.fromkeys(set(streams) - self.without_frames, ""),
        }

    def annotate(self, stream: str, mask: np.ndarray) -> int:
        if mask.shape != SIZE:
            raise InputError(f"the mask is {mask.shape}, the frames are {SIZE}")
        with self._lock:
            self.given.append((self.seq, mask.copy()))
            for number in np.unique(mask):
                if number:
                    own = mask == number
                    best = max(COLORS, key=lambda one: fit(own, one, self.seq))
                    good = fit(own, best, self.seq) > 0.5
                    self.objects[stream][int(number)] = best if good else own
            self.calls.append(("annotate", stream))
            return self.seq

    def forget(self, stream: str, object_id: int) -> int:
        if object_id not in self.objects[stream]:
            raise InputError(f"object {object_id} is not followed")
        self.calls.append(("forget", stream, object_id))
        del self.objects[stream][object_id]
        return self.seq

    def pause(self, stream: str) -> None:
        self.states[stream] = "paused"

    def resume(self, stream: str) -> None:
        self.states[stream] = "running"

    def stop(self, stream: str) -> None:
        self.states[stream] = "ended"

    def add_stream(self, name, source, method, keys):
        if name in self.objects:
            raise InputError(f"there is a stream {name!r} already")
        self.calls.append(("add", name, source, method, keys))
        self.objects[name], self.states[name] = {}, "running"
        return {"state": "running", "reason": ""}

    def remove_stream(self, stream):
        del self.objects[stream], self.states[stream]
        return {"state": "ended", "reason": ""}

    def follow(self, stream: str, on_picture, on_mask):
        self.followed.append(stream)
        one = (stream, on_picture, on_mask)
        self._followers.append(one)
        return _Unfollow(self._followers, one)

    def label_map(self, stream: str, n: int) -> np.ndarray:
        """What the pipeline makes of frame n."""
        label_map = np.zeros(SIZE, np.uint8)
        for number, what in self.objects[stream].copy().items():  # tests change it meanwhile
            label_map[truth(n) == what if isinstance(what, int) else what] = number
        return label_map

    def _play(self) -> None:
        while not self._ending.wait(self._interval):
            with self._lock:
                self.seq += 1
                pictures = _picture(self.seq)
            for stream, on_picture, on_mask in list(self._followers):
                if self.states.get(stream) != "running":
                    continue
                on_picture(Picture(stream, self.seq, 1, time.monotonic_ns(), self.seq / 12, SIZE, pictures))
                if self.objects.get(stream):
                    on_mask(_mask(stream, self.seq, self.label_map(stream, self.seq)))


def _picture(n: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image(n)).save(buffer, format="JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def _mask(stream: str, seq: int, label_map: np.ndarray) -> Mask:
    objects = {}
    for number in (int(one) for one in np.unique(label_map) if one):
        rows, columns = np.nonzero(label_map == number)
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        objects[number] = ObjectResult(number, 0.93, "tracking", box, len(rows))
    at = time.monotonic_ns()
    return Mask(
        stream=stream,
        seq=seq,
        incarnation=1,
        captured_ns=at - 20_000_000,
        pts=seq / 12,
        size=SIZE,
        objects=objects,
        dropped={},
        recovered=False,
        stamps={},
        received_ns=at,
        runs=encode_rles(label_map, objects),
        _decode=lambda: label_map,
    )


class _Unfollow:
    def __init__(self, followers: list, one: tuple):
        self._followers, self._one = followers, one

    def close(self) -> None:
        with contextlib.suppress(ValueError):
            self._followers.remove(self._one)


class Console:
    """A console that runs in a thread.

    Attributes:
        url: without the token.
        http: a client that knows the token.
    """

    def __init__(self, backend: Any, selecting: Selecting, port: int = 0, names_file=None):
        self.backend, self.selecting = backend, selecting
        self._socket = listen_at("127.0.0.1", port)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.page = f"{self.url}/#token={TOKEN}"
        self._server = make_server(backend, TOKEN, selecting, names_file=names_file)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )
        self._thread.start()
        self.http = httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=PATIENCE, trust_env=False
        )
        until(lambda: self.http.get("/api/streams").json().get("streams"), "the first status")

    def close(self) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()
        assert not self._thread.is_alive()


def until(condition, what: str = "it", seconds: float = PATIENCE):
    """Wait for a condition, and give its value."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.TransportError):
            if value := condition():
                return value
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def scene_console(**options: Any) -> Iterator[Console]:
    """A console of the scene, with networks of color, within the block."""
    backend = SceneBackend(**options)
    selector, segmenter = ColorSelector(), ColorSegmenter()
    console = Console(backend, Selecting(lambda: selector, lambda: segmenter))
    console.selector, console.segmenter = selector, segmenter  # type: ignore[attr-defined]
    try:
        yield console
    finally:
        console.close()
        backend.close()
