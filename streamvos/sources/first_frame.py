"""The label map of a stream's first frame, which says which objects to follow.

The objects come from a label map, from boxes and clicks, from both, or, for a synthetic source, from its
ground truth. The command line and the pipeline both start their streams this way.

    given = given_label_map(source, Path("first.png"), pointing)
    frame = next(source)
    label_map = first_label_map(frame, given, pointing, selector)
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from streamvos.masks.checks import fit_label_map, named_objects, object_ids
from streamvos.masks.exports import stem_of_mask
from streamvos.masks.labelmap import read_label_map
from streamvos.masks.pointing import Pointing
from streamvos.selection.objects import Selects, select_objects
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
    number, place = source.number_named(stem_of_mask(mask)), source.first_frame
    if number is None or number == place:
        return
    if isinstance(source, ImagesSource) and source.has_picture(stem_of_mask(mask)):
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
    source: Source, path: Path | None, pointing: Pointing, first_frame: int | None = None
) -> np.ndarray | None:
    """The label map that is known before the first frame, (H, W) uint8 of the frames' size, or None.

    The source begins at the frame that the mask was drawn on (`begin_at_frame_of`).

    A mask of the source's native size is resized like its frames (nearest neighbor). Without a mask, and
    if nothing is pointed at, a synthetic source gives its ground truth.

    Args:
        source: an open source.
        path: the mask's file.
        pointing: further objects.
        first_frame: the frame that the user says it was drawn on; None = as its name says, or the first.

    Raises:
        InputError: the mask has another size than the frames, names no object, names one that is also
            pointed at, or is named after another frame.
    """
    if path is None:
        return source.label_map(0) if isinstance(source, GeneratedSource) and not pointing.ids else None
    begin_at_frame_of(path, source, first_frame)
    label_map, name = read_label_map(path), f"the mask {path}"
    twice = sorted(set(named_objects(label_map, name)) & set(pointing.ids))
    if twice:
        raise InputError(f"object {twice[0]} is in {name} and has a box or a point too; give it in one way")
    return fit_label_map(label_map, source.size, source.native_size, name)


def first_label_map(
    frame: Frame, given: np.ndarray | None, pointing: Pointing, selector: Selects | None
) -> np.ndarray:
    """The label map of the first frame: `given` where it names something, elsewhere what is pointed at.

    Args:
        selector: makes masks of boxes and clicks; not needed where nothing is pointed at.

    Raises:
        InputError: see `select_objects`; or the mask covers a whole object.
    """
    if not pointing.ids:
        assert given is not None
        return given
    assert selector is not None
    label_map = select_objects(selector, frame.image, pointing)
    if given is not None:
        label_map = np.where(given != 0, given, label_map)
        hidden = sorted(set(pointing.ids) - set(object_ids(label_map)))
        if hidden:
            raise InputError(f"the mask covers all of object {hidden[0]}; leave its box and points out")
    return label_map
