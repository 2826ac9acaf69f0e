"""The label map of a stream's first frame, which says which objects to follow.

The objects come from a label map, from rectangles, from both, or, for a synthetic source, from its ground
truth. The command line and the pipeline both start their streams this way.

    given = given_label_map(source, Path("first.png"), boxes)
    frame = next(source)
    label_map = first_label_map(frame, given, boxes)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from streamvos.masks.boxes import Box, label_map_from_boxes
from streamvos.masks.checks import fit_label_map, named_objects, object_ids
from streamvos.masks.labelmap import read_label_map
from streamvos.sources.generated import GeneratedSource
from streamvos.sources.source import Source
from streamvos.types import Frame, InputError


def given_label_map(source: Source, path: Path | None, boxes: Mapping[int, Box]) -> np.ndarray | None:
    """The label map that is known before the first frame, (H, W) uint8 of the frames' size, or None.

    A mask of the source's native size is resized like its frames (nearest neighbor). Without mask and boxes
    a synthetic source gives its ground truth.

    Args:
        source: an open source.
        path: the mask's file.
        boxes: rectangles by object id.

    Raises:
        InputError: the mask has another size than the frames, names no object, or names one with a box.
    """
    if path is None:
        return source.label_map(0) if isinstance(source, GeneratedSource) and not boxes else None
    label_map, name = read_label_map(path), f"the mask {path}"
    twice = sorted(set(named_objects(label_map, name)) & set(boxes))
    if twice:
        raise InputError(f"object {twice[0]} is in {name} and has a box too; give it in one of them")
    return fit_label_map(label_map, source.size, source.native_size, name)


def first_label_map(frame: Frame, given: np.ndarray | None, boxes: Mapping[int, Box]) -> np.ndarray:
    """The label map of the first frame: `given` where it names something, elsewhere the boxes' objects.

    Raises:
        InputError: a box cannot be used, or the mask covers its whole object.
    """
    if not boxes:
        assert given is not None
        return given
    label_map = label_map_from_boxes(frame.image, boxes)
    if given is not None:
        label_map = np.where(given != 0, given, label_map)
        hidden = sorted(set(boxes) - set(object_ids(label_map)))
        if hidden:
            raise InputError(f"the mask covers all of object {hidden[0]}, which has a box; leave the box out")
    return label_map
