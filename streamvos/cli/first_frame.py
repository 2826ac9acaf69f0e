"""What a stream begins with on the command line: its first frame, and the objects in it.

How label map and rectangles become the first label map is in streamvos/sources/first_frame.py; here is what
only the command line does with them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from streamvos.masks.boxes import Box, parse_boxes
from streamvos.sources import Source
from streamvos.sources.first_frame import first_label_map
from streamvos.sources.first_frame import given_label_map as _given_label_map
from streamvos.types import Frame, InputError, SinkError, SourceError

__all__ = [
    "HOW_TO_BEGIN",
    "check_picture_name",
    "first_label_map",
    "given_label_map",
    "next_frame",
    "parse_boxes",
    "save_frame",
]

HOW_TO_BEGIN = (
    "say what to follow in the first frame: --mask FILE.png, a label map of it, or "
    "--box ID:LEFT,TOP,RIGHT,BOTTOM, a rectangle around an object; "
    "--save-first FILE.png stores that frame, to paint a mask on or to read off pixels"
)


def given_label_map(source: Source, path: Path | None, boxes: Mapping[int, Box]) -> np.ndarray | None:
    """The label map that needs no frame to be known, at the frames' size; None if there are boxes alone.

    Raises:
        InputError: nothing says what to follow; or as `streamvos.sources.first_frame.given_label_map`.
    """
    given = _given_label_map(source, path, boxes)
    if given is None and not boxes:
        raise InputError(f"{source.name}: {HOW_TO_BEGIN}")
    return given


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
