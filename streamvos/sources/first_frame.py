"""The label map of a stream's first frame, which says which objects to follow.

The objects come from a label map, from rectangles, from both, or, for a synthetic source, from its ground
truth. The command line and the pipeline both start their streams this way.

    given = given_label_map(source, Path("first.png"), boxes)
    frame = next(source)
    label_map = first_label_map(frame, given, boxes)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from streamvos.masks.boxes import Box
from streamvos.masks.checks import fit_label_map, named_objects, object_ids
from streamvos.masks.labelmap import read_label_map
from streamvos.selection.grabcut import GrabCut
from streamvos.selection.objects import select_objects
from streamvos.sources.generated import GeneratedSource
from streamvos.sources.images import ImagesSource
from streamvos.sources.source import Source
from streamvos.types import Frame, InputError

_LOGGER = logging.getLogger(__name__)


def begin_at_frame_of(mask: Path, source: Source, first_frame: int | None) -> None:
    """Let a source begin at the frame that a mask was drawn on, as far as the mask's name says which.

    A mask that is named like a picture lands on that picture. A mask whose name otherwise says a frame must
    say the one that it lands on, unless the user says `first_frame`.

    Args:
        mask: the mask's file.
        source: an open source, of which no frame was taken.
        first_frame: what the user says.

    Raises:
        InputError: the name says another frame.
    """
    if first_frame is not None:
        return
    number, place = source.number_named(mask.stem), source.first_frame
    if number is None or number == place:
        return
    if isinstance(source, ImagesSource) and source.has_picture(mask.stem):
        _LOGGER.warning(
            "the mask %s is named like a picture, so %s begins there: %d pictures before it are left out",
            mask, source.name, number,
        )  # fmt: skip
        source.begin_at(number)
        return
    raise InputError(
        f"the mask {mask} is named after frame {number} (numbered from 0), but would land on frame {place} "
        f"of {source.name}; say on which one it was drawn: --first-frame {number}, or --first-frame {place} "
        "(first_frame in pipeline.toml)"
    )


def given_label_map(
    source: Source, path: Path | None, boxes: Mapping[int, Box], first_frame: int | None = None
) -> np.ndarray | None:
    """The label map that is known before the first frame, (H, W) uint8 of the frames' size, or None.

    The source begins at the frame that the mask was drawn on (`begin_at_frame_of`).

    A mask of the source's native size is resized like its frames (nearest neighbor). Without mask and boxes
    a synthetic source gives its ground truth.

    Args:
        source: an open source.
        path: the mask's file.
        boxes: rectangles by object id.
        first_frame: the frame that the user says it was drawn on; None = as its name says, or the first.

    Raises:
        InputError: the mask has another size than the frames, names no object, names one with a box, or is
            named after another frame.
    """
    if path is None:
        return source.label_map(0) if isinstance(source, GeneratedSource) and not boxes else None
    begin_at_frame_of(path, source, first_frame)
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
    label_map = select_objects(GrabCut(), frame.image, boxes)
    if given is not None:
        label_map = np.where(given != 0, given, label_map)
        hidden = sorted(set(boxes) - set(object_ids(label_map)))
        if hidden:
            raise InputError(f"the mask covers all of object {hidden[0]}, which has a box; leave the box out")
    return label_map
