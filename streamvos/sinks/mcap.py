"""Results as an MCAP file, which Foxglove opens: frames, label maps, boxes with states, and the objects.

    /frames          foxglove.CompressedImage, JPEG
    /label_map       foxglove.CompressedImage, palette PNG whose indices are the ids
    /annotations     foxglove.ImageAnnotations: a box for each object, with its id, score and state
    /objects         streamvos.Objects: id, score, state, box and area

Messages are JSON with the schemas' fields as Foxglove documents them
(docs.foxglove.dev/docs/sdk/schemas). Times are the frames' `pts`, from the epoch of the source if it has one.
Chunks are compressed and have checksums; a file that was cut off is read up to its last whole chunk.

    with McapSink("out/results.mcap") as sink:
        sink.write(frame, result)
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from PIL import Image

from streamvos.masks.labelmap import davis_palette
from streamvos.sinks.record import OutputRecord, check_is_there, file_identity, give_name, new_partial
from streamvos.sinks.sink import Sink, cannot_write, make_folder
from streamvos.types import Frame, InputError, ObjectResult, Result

_JPEG_QUALITY = 90
_LINE_LOOP = 2  # foxglove.PointsAnnotation

_TIME = {
    "type": "object",
    "title": "time",
    "properties": {"sec": {"type": "integer", "minimum": 0}, "nsec": {"type": "integer", "minimum": 0}},
}
_NUMBER, _TEXT = {"type": "number"}, {"type": "string"}
_COLOR = {"type": "object", "title": "foxglove.Color", "properties": dict.fromkeys("rgba", _NUMBER)}
_POINT = {"type": "object", "title": "foxglove.Point2", "properties": {"x": _NUMBER, "y": _NUMBER}}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _object(title: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "title": title, "properties": properties}


IMAGE_SCHEMA = _object(
    "foxglove.CompressedImage",
    timestamp=_TIME,
    frame_id=_TEXT,
    data={"type": "string", "contentEncoding": "base64"},
    format=_TEXT,
)
ANNOTATIONS_SCHEMA = _object(
    "foxglove.ImageAnnotations",
    circles=_list({"type": "object"}),
    points=_list(
        _object(
            "foxglove.PointsAnnotation",
            timestamp=_TIME,
            type={"type": "integer"},
            points=_list(_POINT),
            outline_color=_COLOR,
            outline_colors=_list(_COLOR),
            fill_color=_COLOR,
            thickness=_NUMBER,
        )
    ),
    texts=_list(
        _object(
            "foxglove.TextAnnotation",
            timestamp=_TIME,
            position=_POINT,
            text=_TEXT,
            font_size=_NUMBER,
            text_color=_COLOR,
            background_color=_COLOR,
        )
    ),
)
OBJECTS_SCHEMA = _object(
    "streamvos.Objects",
    timestamp=_TIME,
    stream=_TEXT,
    index={"type": "integer"},
    objects=_list(
        _object(
            "streamvos.Object",
            id={"type": "integer"},
            score=_NUMBER,
            state=_TEXT,
            box={"type": ["array", "null"], "items": {"type": "integer"}},
            area={"type": "integer"},
        )
    ),
)


class McapSink(Sink):
    """Writes each frame with its results into one MCAP file.

    The file is NAME.RANDOM.partial.mcap until it is closed; after an exception it is completed and keeps
    that name.

    Args:
        path: the final file; its folder is made if missing.
        epoch_ns: the time of `pts` 0, ns since 1970; 0 = not known.
        record: lists the file; without it, an earlier file at `path` is replaced when the sink is closed.

    Raises:
        InputError: mcap is not installed.
        SinkError: the file cannot be made.
    """

    _repeatable: ClassVar[bool] = False  # a chunk may be written in part

    def __init__(self, path: str | Path, *, epoch_ns: int = 0, record: OutputRecord | None = None) -> None:
        super().__init__(path)
        try:
            from mcap.writer import Writer
        except ImportError:
            raise InputError("mcap is not installed: pip install 'streamvos[bags]'") from None
        make_folder(self.path.parent)
        self._epoch_ns, self._record = epoch_ns, record
        self.partial, descriptor = (new_partial if record is None else record.new_partial)(self.path)
        try:
            self._identity = file_identity(descriptor)
            self._file = open(descriptor, "wb")  # noqa: SIM115
            self._writer = Writer(self._file)
            self._writer.start(library="streamvos")
            self._channels = {
                topic: self._writer.register_channel(topic, "json", self._schema(schema))
                for topic, schema in (
                    ("/frames", IMAGE_SCHEMA),
                    ("/label_map", IMAGE_SCHEMA),
                    ("/annotations", ANNOTATIONS_SCHEMA),
                    ("/objects", OBJECTS_SCHEMA),
                )
            }
        except OSError as error:
            raise cannot_write(self.partial, error) from error

    @property
    def place(self) -> Path:
        return self.partial

    def _schema(self, schema: dict[str, Any]) -> int:
        return self._writer.register_schema(schema["title"], "jsonschema", json.dumps(schema).encode())

    def _write(self, frame: Frame, result: Result) -> None:
        nanoseconds = self._epoch_ns + round(frame.pts * 1e9)
        stamp = {"sec": nanoseconds // 10**9, "nsec": nanoseconds % 10**9}
        objects = [one for _, one in sorted(result.objects.items())]
        messages: dict[str, dict[str, Any]] = {
            "/frames": _image(stamp, frame.stream, "jpeg", jpeg_of(frame.image)),
            "/label_map": _image(stamp, frame.stream, "png", _palette_png(result.mask)),
            "/annotations": _annotations(stamp, objects),
            "/objects": {
                "timestamp": stamp,
                "stream": frame.stream,
                "index": frame.index,
                "objects": [
                    {
                        "id": one.id,
                        "score": round(one.score, 6),
                        "state": one.state,
                        "box": one.box,
                        "area": one.area,
                    }
                    for one in objects
                ],
            },
        }
        try:
            check_is_there(self.partial, self._identity)
            for topic, message in messages.items():
                content = json.dumps(message, separators=(",", ":")).encode()
                self._writer.add_message(
                    self._channels[topic], nanoseconds, content, nanoseconds, sequence=frame.index
                )
        except OSError as error:
            raise cannot_write(self.partial, error) from error

    def _finish(self) -> None:
        try:
            self._writer.finish()
            self._file.close()
            check_is_there(self.partial, self._identity)
            give_name(self.partial, self.path, self._record)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _abandon(self) -> None:
        with contextlib.suppress(Exception):
            self._writer.finish()
        with contextlib.suppress(OSError):
            self._file.close()


def jpeg_of(image: np.ndarray) -> bytes:
    """A picture, (H, W, 3) uint8 RGB, as a JPEG file."""
    ok, jpeg = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    )
    assert ok
    return bytes(jpeg)


def _image(stamp: dict[str, int], frame_id: str, kind: str, content: bytes) -> dict[str, Any]:
    data = base64.b64encode(content).decode()
    return {"timestamp": stamp, "frame_id": frame_id, "data": data, "format": kind}


def _palette_png(label_map: np.ndarray) -> bytes:
    picture, file = Image.fromarray(label_map), io.BytesIO()
    picture.putpalette(davis_palette().tobytes())
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _annotations(stamp: dict[str, int], objects: list[ObjectResult]) -> dict[str, Any]:
    points, texts = [], []
    for one in objects:
        if one.box is None:
            continue
        left, top, right, bottom = one.box
        color = dict(zip("rgb", (davis_palette()[one.id] / 255).round(3).tolist(), strict=True)) | {"a": 1.0}
        corners = ((left, top), (right, top), (right, bottom), (left, bottom))
        points.append(
            {
                "timestamp": stamp,
                "type": _LINE_LOOP,
                "points": [{"x": x, "y": y} for x, y in corners],
                "outline_color": color,
                "outline_colors": [],
                "fill_color": {"r": 0, "g": 0, "b": 0, "a": 0},
                "thickness": 2,
            }
        )
        state = "" if one.state == "tracking" else f" {one.state}"
        texts.append(
            {
                "timestamp": stamp,
                "position": {"x": left, "y": top},
                "text": f"{one.id} {one.score:.2f}{state}",
                "font_size": 12,
                "text_color": {"r": 1, "g": 1, "b": 1, "a": 1},
                "background_color": color,
            }
        )
    return {"circles": [], "points": points, "texts": texts}
