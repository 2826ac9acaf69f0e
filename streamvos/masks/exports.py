"""First masks that were drawn in CVAT or Label Studio, read from what these tools export.

    for picture in read_export(Path("annotations.xml")):
        picture.name, picture.label_map.shape, picture.labels    # "frame1.png", (480, 854), {1: "goat"}

CVAT: "CVAT for images 1.1" and "CVAT for video 1.1" (XML; a video's tracks at the first frame that has any).
Label Studio: its JSON, with polygons and brush strokes. Each drawn shape is an object; shapes that share an
object (CVAT's tracks and groups, Label Studio's regions) share an id. Ids are 1, 2, ... in the file's order.
"""

from __future__ import annotations

import json
import logging
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from xml.parsers.expat import ExpatError, ParserCreate

import numpy as np

from streamvos.files import read_bytes
from streamvos.types import MAX_OBJECT_ID, InputError

MOST_BYTES = 64 * 2**20
"""Of an export's file."""

_SUFFIXES = (".xml", ".json")

MOST_PIXELS = 8192 * 8192
"""Of a picture."""


@dataclass(frozen=True)
class ExportedPicture:
    """The objects that were drawn on one picture.

    Attributes:
        name: file name of the picture, or "frame N" of a video.
        label_map: (H, W) uint8.
        labels: object id -> what it was called.
    """

    name: str
    label_map: np.ndarray
    labels: dict[int, str]


@dataclass(frozen=True)
class _Shape:
    """One drawn shape: `fill` draws it into a mask (H, W) uint8 of zeros with ones."""

    key: object
    label: str
    fill: Callable[[np.ndarray], None]


def is_export(path: Path) -> bool:
    """Whether a file's name, without "#NAME" behind it, is that of an export rather than of a picture."""
    return file_of_mask(path) != path or path.suffix.lower() in _SUFFIXES


def file_of_mask(path: Path) -> Path:
    """The file of a mask: of an export, the part before "#NAME"."""
    place, separator, _ = str(path).partition("#")
    return Path(place) if separator and Path(place).suffix.lower() in _SUFFIXES else path


def stem_of_mask(path: Path) -> str:
    """The name of the picture that a mask was drawn on, without its ending, as far as the path says it."""
    return path.stem if file_of_mask(path) == path else PurePath(str(path).partition("#")[2]).stem


def read_export(path: Path) -> list[ExportedPicture]:
    """All pictures of an export on which something was drawn.

    Raises:
        InputError: the file cannot be read, is no such export, or holds shapes that cannot be used.
    """
    content = read_bytes(path, "the export", MOST_BYTES)
    try:
        pictures = list(_cvat(content) if path.suffix.lower() == ".xml" else _label_studio(content))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        OverflowError,
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path} is no export of CVAT (for images or video 1.1) or Label Studio (JSON): {reason[:150]}"
        ) from None
    if not pictures:
        raise InputError(f"{path} holds no polygon and no mask; draw the objects and export again")
    return pictures


def label_map_of_export(path: Path) -> np.ndarray:
    """The label map of one picture of an export; `path` may end in "#NAME" to say which.

    Raises:
        InputError: see `read_export`; or the export has several pictures and none, or no such one, is named.
    """
    place = file_of_mask(path)
    pictures, wanted = read_export(place), str(path)[len(str(place)) + 1 :]
    chosen = [one for one in pictures if not wanted or one.name == wanted]
    if len(chosen) != 1:
        names = ", ".join(one.name for one in pictures[:5]) + (", ..." if len(pictures) > 5 else "")
        raise InputError(
            f"{place} holds {len(pictures)} pictures ({names}); name one of them: {place}#{pictures[0].name}"
        )
    named = ", ".join(f"{number} {label}" for number, label in chosen[0].labels.items())
    logging.getLogger(__name__).warning("%s: %s has the objects %s", place, chosen[0].name, named)
    return chosen[0].label_map


def _cvat(content: bytes) -> Iterator[ExportedPicture]:
    root = _parse_xml(content)
    if root.tag != "annotations":
        raise ValueError(f"its root is <{root.tag}>, expected <annotations>")
    for image in root.iter("image"):
        shapes = [
            shape for number, one in enumerate(image) if (shape := _cvat_shape(one, number)) is not None
        ]
        if shapes:
            size = int(image.attrib["height"]), int(image.attrib["width"])
            yield _drawn(PurePath(image.attrib["name"]).name, size, shapes)
    by_frame: dict[int, list[_Shape]] = {}
    for track in root.iter("track"):
        for one in track:
            if one.attrib.get("outside") == "1":
                continue
            shape = _cvat_shape(one, ("track", track.attrib["id"]), track.attrib.get("label", ""))
            if shape is not None:
                by_frame.setdefault(int(one.attrib["frame"]), []).append(shape)
    if by_frame:
        given = root.find(".//original_size")
        if given is None:
            raise ValueError("it names no original_size")
        first = min(by_frame)
        size = int(given.findtext("height", "")), int(given.findtext("width", ""))
        yield _drawn(f"frame {first}", size, by_frame[first])


def _cvat_shape(one: ElementTree.Element, number: object, label: str = "") -> _Shape | None:
    group = one.attrib.get("group_id", "0")
    key = number if group == "0" else ("group", group)
    label = one.attrib.get("label", label)
    if one.tag == "polygon":
        points = [tuple(map(float, pair.split(","))) for pair in one.attrib["points"].split(";")]
        return _Shape(key, label, lambda mask: _fill_polygon(mask, points))
    if one.tag == "mask":
        counts = [int(count) for count in one.attrib["rle"].split(",")]
        left, top, width, height = (int(one.attrib[name]) for name in ("left", "top", "width", "height"))
        _check_size((height, width))
        return _Shape(key, label, lambda mask: _fill_runs(mask, counts, left, top, height, width))
    return None


def _label_studio(content: bytes) -> Iterator[ExportedPicture]:
    tasks = json.loads(content)
    for number, task in enumerate([tasks] if isinstance(tasks, dict) else tasks):
        found = task.get("annotations") or task.get("completions") or []
        regions = [one for annotation in found[:1] for one in annotation["result"]]
        shapes, size = [], None
        for place, one in enumerate(regions):
            shape = _label_studio_shape(one, place)
            if shape is not None:
                shapes.append(shape)
                size = int(one["original_height"]), int(one["original_width"])
        if size is not None:
            source = next((v for v in task.get("data", {}).values() if isinstance(v, str)), f"task {number}")
            yield _drawn(PurePath(source).name, size, shapes)


def _label_studio_shape(one: dict[str, Any], place: int) -> _Shape | None:
    value, kind = one.get("value", {}), one.get("type", "")
    labels = value.get(kind) or value.get("labels") or [""]
    size = int(one.get("original_height", 0)), int(one.get("original_width", 0))
    if "points" in value and kind.startswith("polygon"):
        shares = np.array(value["points"], float) / 100  # of width and height
        points = shares * [size[1], size[0]]
        return _Shape(one.get("id", place), str(labels[0]), lambda mask: _fill_polygon(mask, points))
    if value.get("format") == "rle" and "rle" in value:
        _check_size(size)
        strokes = _unpack_strokes(bytes(value["rle"]), 4 * size[0] * size[1])
        alpha = strokes.reshape(*size, 4)[..., 3]

        def fill(mask: np.ndarray) -> None:
            mask[alpha > 127] = 1

        return _Shape(one.get("id", place), str(labels[0]), fill)
    return None


def _drawn(name: str, size: tuple[int, int], shapes: Sequence[_Shape]) -> ExportedPicture:
    """Later shapes lie in front."""
    _check_size(size)
    label_map, ids, labels = np.zeros(size, np.uint8), dict[object, int](), dict[int, str]()
    for shape in shapes:
        number = ids.setdefault(shape.key, len(ids) + 1)
        if number > MAX_OBJECT_ID:
            raise InputError(f"{name} has more than {MAX_OBJECT_ID} objects")
        labels.setdefault(number, shape.label)
        mask = np.zeros(size, np.uint8)
        shape.fill(mask)
        label_map[mask != 0] = number
    return ExportedPicture(name, label_map, labels)


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < 1 or size[0] * size[1] > MOST_PIXELS:
        raise InputError(f"a picture of {size[1]} x {size[0]} pixels (W x H) cannot be used")


def _fill_polygon(mask: np.ndarray, points: Iterable[Sequence[float]]) -> None:
    """Pixels whose middle lies inside (even-odd rule); OpenCV and Pillow also take those on the edge."""
    corners = np.array(list(points), float).reshape(-1, 2)
    if len(corners) < 3 or not np.isfinite(corners).all():
        raise InputError(f"a polygon has {len(corners)} corners; expected three or more, with finite places")
    (x0, y0), (x1, y1) = corners.T, np.roll(corners, -1, axis=0).T
    height, width = mask.shape
    first, last = (int(np.clip(np.floor(y), 0, height)) for y in (y0.min(), y0.max() + 1))
    for row in range(first, last):
        y = row + 0.5
        crossed = (y0 <= y) != (y1 <= y)
        share = (y - y0[crossed]) / (y1[crossed] - y0[crossed])
        crossings = np.sort(x0[crossed] + share * (x1[crossed] - x0[crossed]))
        columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(int)
        for start, end in columns.reshape(-1, 2):
            mask[row, start:end] = 1


def _fill_runs(mask: np.ndarray, counts: Sequence[int], left: int, top: int, height: int, width: int) -> None:
    """Runs of 0 and 1 in turn, row by row, of the window at (left, top)."""
    if min(counts) < 0 or sum(counts) != height * width:
        raise InputError(f"the runs of a mask cover {sum(counts)} pixels, its box {height} x {width}")
    values = np.arange(len(counts)) % 2
    window = np.repeat(values, counts).reshape(height, width).astype(np.uint8)
    rows, columns = slice(max(top, 0), top + height), slice(max(left, 0), left + width)
    part = mask[rows, columns]
    seen = window[rows.start - top :, columns.start - left :][: part.shape[0], : part.shape[1]]
    part[seen != 0] = 1


def _unpack_strokes(packed: bytes, expected: int) -> np.ndarray:
    """Label Studio's run lengths (the format of thi.ng's rle-pack): bits to `expected` values, uint8."""
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    place = 0

    def read(count: int) -> int:
        nonlocal place
        if place + count > len(bits):
            raise InputError("the brush strokes end in the middle of a run")
        value = 0
        for bit in bits[place : place + count].tolist():
            value = 2 * value + bit
        place += count
        return value

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    if total != expected:
        raise InputError(f"the brush strokes have {total} values, expected {expected} (RGBA)")
    values, done = np.zeros(total, np.uint8), 0
    while done < total:
        is_run = read(1)
        length = 1 + read(sizes[read(2)])
        if done + length > total:
            raise InputError("the brush strokes reach beyond their picture")
        if is_run:
            values[done : done + length] = read(word) & 255
        else:
            for k in range(length):
                values[done + k] = read(word) & 255
        done += length
    return values


def _parse_xml(content: bytes) -> ElementTree.Element:
    """XML without document types: entities could grow without end."""

    def refuse(*_: object) -> None:
        raise InputError("it declares a document type, which no export does")

    checker = ParserCreate()
    checker.StartDoctypeDeclHandler = refuse
    try:
        checker.Parse(content, True)
        return ElementTree.fromstring(content)
    except (ExpatError, ElementTree.ParseError, LookupError) as error:  # the last: an unknown encoding
        raise ValueError(str(error)) from None
