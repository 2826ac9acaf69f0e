"""What a stream begins with: its first frame, and the objects in it.

The objects come from a label map, from rectangles, from both, or, for a synthetic source, from its ground
truth.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from streamvos.data.boxes import Box, label_map_from_boxes, parse_box
from streamvos.data.labelmap import read_label_map
from streamvos.sources import GeneratedSource, Source
from streamvos.types import VOID, Frame, InputError, SinkError, SourceError

HOW_TO_BEGIN = (
    "say what to follow in the first frame: --mask FILE.png, a label map of it, or "
    "--box ID:LEFT,TOP,RIGHT,BOTTOM, a rectangle around an object; "
    "--save-first FILE.png stores that frame, to paint a mask on or to read off pixels"
)


def parse_boxes(texts: list[str] | None) -> dict[int, Box]:
    """Rectangles by object id.

    Raises:
        InputError: one cannot be read, or an id comes twice.
    """
    boxes: dict[int, Box] = {}
    for text in texts or ():
        object_id, box = parse_box(text)
        if object_id in boxes:
            raise InputError(f"--box {text}: object {object_id} has a box already; give each id once")
        boxes[object_id] = box
    return boxes


def given_label_map(source: Source, path: Path | None, boxes: Mapping[int, Box]) -> np.ndarray | None:
    """The label map that needs no frame to be known, at the frames' size; None if there are boxes alone.

    A mask of the source's native size is resized with its frames (nearest neighbor).

    Raises:
        InputError: nothing says what to follow; or the mask has another size than the frames, names no
            object, or names one that has a box too.
    """
    if path is None:
        if boxes:
            return None
        if isinstance(source, GeneratedSource):
            return source.label_map(0)
        raise InputError(f"{source.name}: {HOW_TO_BEGIN}")
    label_map = _fitted(read_label_map(path), path, source)
    twice = sorted(set(_ids(label_map)) & set(boxes))
    if twice:
        raise InputError(f"object {twice[0]} is in --mask {path} and has a --box; give it in one of them")
    return label_map


def first_label_map(frame: Frame, given: np.ndarray | None, boxes: Mapping[int, Box]) -> np.ndarray:
    """The label map of the first frame: `given` where it names something, elsewhere the boxes' objects.

    Raises:
        InputError: a box cannot be used, or nothing of its object is left beside the mask.
    """
    if not boxes:
        assert given is not None
        return given
    label_map = label_map_from_boxes(frame.image, boxes)
    if given is not None:
        label_map = np.where(given != 0, given, label_map)
        hidden = sorted(set(boxes) - set(_ids(label_map)))
        if hidden:
            raise InputError(f"--box {hidden[0]}: the mask covers all of its object; leave the box out")
    return label_map


def next_frame(source: Source) -> Frame:
    """The first frame of a source.

    Raises:
        SourceError: it has none.
    """
    frame = next(source, None)
    if frame is None:
        raise SourceError(f"{source.name} ended before its first frame")
    return frame


def save_frame(frame: Frame, path: Path) -> None:
    """Store a frame as a PNG, whole or not at all.

    Raises:
        InputError: the name does not end in .png.
        SinkError: it cannot be written.
    """
    check_picture_name(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            Image.fromarray(frame.image).save(temporary, format="PNG")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise SinkError(f"cannot write {path}: {error.strerror or error}; choose another place") from None


def check_picture_name(path: Path) -> None:
    """Lossy formats would blur what is painted on the frame.

    Raises:
        InputError: the name does not end in .png.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"--save-first {path}: the frame is stored as PNG; give a name that ends in .png")


def _fitted(label_map: np.ndarray, path: Path, source: Source) -> np.ndarray:
    ids = _ids(label_map)
    if not ids:
        raise InputError(
            f"the mask {path} names no object: every pixel is 0 (background) or 255 (void); paint each "
            "object with its id, 1..254"
        )
    if label_map.shape == source.size:
        return label_map
    if label_map.shape != source.native_size:
        is_native = source.size == source.native_size
        native = "" if is_native else f" ({_text(source.native_size)} before --height)"
        raise InputError(
            f"the mask {path} is {_text(label_map.shape)}, the frames are {_text(source.size)}{native}; both "
            "must agree (W x H)"
        )
    size = source.size[1], source.size[0]
    resized = np.asarray(cv2.resize(label_map, size, interpolation=cv2.INTER_NEAREST_EXACT))
    lost = sorted(set(ids) - set(_ids(resized)))
    if lost:
        raise InputError(
            f"object {lost[0]} of the mask {path} has no pixel left at {_text(source.size)}; give a larger "
            "--height"
        )
    return resized


def _ids(label_map: np.ndarray) -> list[int]:
    return [int(one) for one in np.unique(label_map) if 0 < one < VOID]


def _text(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]}"
