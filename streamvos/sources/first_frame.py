"""Which objects a stream begins with: the label map of its first frame.

The objects come from a label map, from rectangles, from both, or, for a synthetic source, from its ground
truth. The command line and the pipeline begin their streams with it.

    >>> parse_boxes(["2:200,120,420,460"])
    {2: (200, 120, 420, 460)}

    given = given_label_map(source, Path("first.png"), boxes)
    frame = next(source)
    label_map = first_label_map(frame, given, boxes)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np

from streamvos.masks.boxes import Box, label_map_from_boxes, parse_box
from streamvos.masks.labelmap import read_label_map
from streamvos.sources.generated import GeneratedSource
from streamvos.sources.source import Source
from streamvos.types import VOID, Frame, InputError


def parse_boxes(texts: Iterable[str] | None) -> dict[int, Box]:
    """Rectangles by object id.

    Args:
        texts: "ID:LEFT,TOP,RIGHT,BOTTOM" each.

    Raises:
        InputError: one cannot be read, or an id comes twice.
    """
    boxes: dict[int, Box] = {}
    for text in texts or ():
        object_id, box = parse_box(text)
        if object_id in boxes:
            raise InputError(f"the box {text}: object {object_id} has a box already; give each id once")
        boxes[object_id] = box
    return boxes


def given_label_map(
    source: Source, path: Path | None, boxes: Mapping[int, Box], called: str = "the mask"
) -> np.ndarray | None:
    """The label map that needs no frame to be known, (H, W) uint8 at the frames' size; None if there is none.

    A mask of the source's native size is resized with its frames (nearest neighbor). Without a mask and boxes
    a synthetic source gives its ground truth.

    Args:
        source: that is open.
        path: of the mask.
        boxes: by object id.
        called: what messages call the mask.

    Raises:
        InputError: the mask has another size than the frames, names no object, or names one that has a box
            too.
    """
    if path is None:
        return source.label_map(0) if isinstance(source, GeneratedSource) and not boxes else None
    label_map = _fitted(read_label_map(path), path, source)
    twice = sorted(set(_ids(label_map)) & set(boxes))
    if twice:
        raise InputError(f"object {twice[0]} is in {called} {path} and has a box too; give it in one of them")
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
            raise InputError(f"the mask covers all of object {hidden[0]}, which has a box; leave the box out")
    return label_map


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
        native = "" if is_native else f" ({_text(source.native_size)} before they are resized to the height)"
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
            "height"
        )
    return resized


def _ids(label_map: np.ndarray) -> list[int]:
    return [int(one) for one in np.unique(label_map) if 0 < one < VOID]


def _text(size: tuple[int, ...]) -> str:
    return f"{size[1]} x {size[0]}"
