"""The semi-supervised protocol: score the label maps of one sequence against the true ones.

The first frame is left out, because its mask was given, and so is the last, as DAVIS does. Masks are
taken one pair at a time, so that a sequence of any length needs the memory of two frames.

    score = evaluate_sequence(truths, predictions, name="goat")  # any iterables of (H, W) label maps
    score.percent()["J"]  # 68.2
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import cv2
import numpy as np

from streamvos.metrics.measures import TOLERANCE, boundary_radius, label_map, measure_objects
from streamvos.metrics.scores import ObjectScore, SequenceScore
from streamvos.types import MAX_OBJECT_ID, VOID, InputError

_END = object()


def evaluate_sequence(
    truths: Iterable[np.ndarray],
    predictions: Iterable[np.ndarray],
    object_ids: Iterable[int] | None = None,
    *,
    name: str = "sequence",
    tolerance: float = TOLERANCE,
    frame_names: Sequence[str] | None = None,
) -> SequenceScore:
    """J and F of every object in every frame but the first and the last.

    Args:
        truths: (H, W) integer label maps of all frames in order; 0 background, 255 void (left out).
        predictions: (H, W) integer label maps of the same frames, the first and last included.
        object_ids: the objects to score; by default those of the first true label map. Where an object
            is absent from both maps its J and F are 1. True labels of other objects count as background.
        name: of the sequence.
        tolerance: of the boundary; below 1 a part of the diagonal, from 1 upwards pixels.
        frame_names: what to call the frames in an error; by default they are counted from 0.

    Raises:
        InputError: fewer than three frames, different numbers of frames, a size that differs within a
            pair or from the first frame's, a value that is no label, a predicted object that is not
            among those scored, or no object to score.
    """
    boundary_radius((1, 1), tolerance)  # refuses a bad tolerance before the first frame is read
    ids = None if object_ids is None else check_object_ids(object_ids)
    regions: list[np.ndarray] = []
    boundaries: list[np.ndarray] = []
    waiting: tuple[np.ndarray, np.ndarray] | None = None  # judged once it is known not to be the last
    size: tuple[int, ...] | None = None
    count = 0
    labels = iter(frame_names or ())
    for index, (truth, prediction) in enumerate(pairs(truths, predictions, name)):
        where = f"{name}, frame {next(labels, index)}"
        truth = label_map(truth, f"{where}: the truth")
        prediction = label_map(prediction, f"{where}: the prediction")
        if ids is None:
            ids = labels_of(truth)
            if not ids:
                raise InputError(
                    f"{where}: the true label map holds no object; give object_ids, or a first mask"
                )
        size = truth.shape if size is None else size
        for what, array in (("truth", truth), ("prediction", prediction)):
            if array.shape != size:
                raise InputError(
                    f"{where}: the {what} is {array.shape[0]} x {array.shape[1]} (height x width); expected "
                    f"{size[0]} x {size[1]} as in the first true label map"
                )
        check_predicted(prediction, ids, where)
        if waiting is not None:
            region, boundary = measure_objects(*waiting, ids, tolerance)
            regions.append(region)
            boundaries.append(boundary)
        waiting = (truth, prediction) if index > 0 else None
        count = index + 1
    if count < 3 or ids is None:
        raise InputError(
            f"{name} has {count} frame{'' if count == 1 else 's'}; at least 3 are needed, because the first "
            "and the last are not judged"
        )
    return sequence_score(name, ids, regions, boundaries)


def sequence_score(
    name: str, object_ids: Sequence[int], regions: Sequence[np.ndarray], boundaries: Sequence[np.ndarray]
) -> SequenceScore:
    """The score of one sequence from N frames' J and F, each (K,) in the order of `object_ids`."""
    by_object = zip(object_ids, np.stack(regions, axis=1), np.stack(boundaries, axis=1), strict=True)
    return SequenceScore(name, tuple(ObjectScore(*columns) for columns in by_object))


def pairs(
    truths: Iterable[np.ndarray], predictions: Iterable[np.ndarray], name: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Both series side by side.

    Raises:
        InputError: one ends before the other.
    """
    both: Iterator[tuple[Any, Any]] = zip_longest(truths, predictions, fillvalue=_END)
    for index, (truth, prediction) in enumerate(both):
        if truth is _END or prediction is _END:
            short, long = ("predictions", "truth") if prediction is _END else ("truth", "predictions")
            raise InputError(
                f"{name}: the {short} end after {index} frames, the {long} go on; expected one per frame"
            )
        yield truth, prediction


def labels_of(labels: np.ndarray) -> tuple[int, ...]:
    """The object ids in a (H, W) uint8 label map, ascending, without background and void."""
    present = np.flatnonzero(cv2.calcHist([labels], [0], None, [256], [0, 256]).ravel())
    return tuple(int(label) for label in present if 0 < label < VOID)


def check_object_ids(object_ids: Iterable[int]) -> tuple[int, ...]:
    """The ids, ascending.

    Raises:
        InputError: there is none, one occurs twice, or one is not in 1..254.
    """
    ids = sorted(int(one) for one in object_ids)
    if not ids or len(set(ids)) != len(ids) or ids[0] < 1 or ids[-1] > MAX_OBJECT_ID:
        raise InputError(
            f"the object ids are {ids}; expected at least one, all different, in 1..{MAX_OBJECT_ID}"
        )
    return tuple(ids)


def check_predicted(prediction: np.ndarray, object_ids: Sequence[int], where: str) -> None:
    """Refuse a prediction of an object that does not exist: it is a mix-up, and no score would show it.

    Raises:
        InputError: the (H, W) uint8 label map holds a value that is neither 0 nor among the ids.
    """
    present = np.flatnonzero(cv2.calcHist([prediction], [0], None, [256], [0, 256]).ravel())
    unknown = sorted({int(label) for label in present} - {0, *object_ids})
    if unknown:
        raise InputError(
            f"{where}: the prediction holds the label{'s' if len(unknown) > 1 else ''} "
            f"{', '.join(map(str, unknown))}; the objects are {', '.join(map(str, object_ids))} (and 0, "
            "background)"
        )
