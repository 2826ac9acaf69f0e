"""The semi-supervised protocol: score the label maps of one sequence against the true ones.

The first frame is left out, because its mask was given, and so is the last, as DAVIS does. Frames are added
one at a time, and no more than two are in memory.

    >>> truth = np.zeros((40, 60), np.uint8)
    >>> truth[10:30, 10:30] = 1
    >>> scorer = SequenceScorer("goat")
    >>> for _ in range(3):
    ...     scorer.add(truth, np.roll(truth, 10, axis=1))
    >>> round(scorer.result().percent()["J"], 1)  # 200 pixels shared of 600
    33.3
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

import cv2
import numpy as np

from streamvos.masks.checks import check_label_map, object_ids
from streamvos.metrics.measures import measure_objects
from streamvos.metrics.scores import ObjectScore, SequenceScore
from streamvos.types import MAX_OBJECT_ID, InputError

_END = object()


class SequenceScorer:
    """J and F of every object in every frame of a sequence but the first and the last.

    Args:
        name: the sequence's name.
        ids: the objects to score; None means those of the first true label map. Where an object is
            absent from both maps its J and F are 1. True labels of other objects count as background.

    Raises:
        InputError: there is no id, one occurs twice, or one is not in 1..254.
    """

    def __init__(self, name: str = "sequence", ids: Iterable[int] | None = None):
        self.name = name
        self._ids = None if ids is None else check_object_ids(ids)
        self._size: tuple[int, int] | None = None
        self._count = 0
        # The newest frame, judged when the next one shows that it is not the last.
        self._waiting: tuple[np.ndarray, np.ndarray] | None = None
        self._values: list[tuple[np.ndarray, np.ndarray]] = []  # J and F of each judged frame, (K,) each

    def add(self, truth: np.ndarray, prediction: np.ndarray, frame: str | int | None = None) -> None:
        """Add the next frame.

        Args:
            truth: (H, W) integer label map; 0 background, 255 void, which is left out.
            prediction: (H, W) integer label map.
            frame: its name in error messages; by default frames are counted from 0.

        Raises:
            InputError: the size differs from the first frame's, a value is no label, a predicted object is
                not among those scored, or there is no object to score.
        """
        where = f"{self.name}, frame {self._count if frame is None else frame}"
        truth = check_label_map(truth, self._size, f"{where}: the truth")
        self._size = truth.shape[0], truth.shape[1]
        prediction = check_label_map(prediction, self._size, f"{where}: the prediction")
        if self._ids is None:
            self._ids = tuple(object_ids(truth))
            if not self._ids:
                raise InputError(
                    f"{where}: the true label map holds no object; give the ids, or a first mask"
                )
        check_predicted(prediction, self._ids, where)
        if self._waiting is not None:
            self._values.append(measure_objects(*self._waiting, self._ids))
        self._waiting = (truth, prediction) if self._count else None
        self._count += 1

    def result(self) -> SequenceScore:
        """The score of the frames so far, the last one left out.

        Raises:
            InputError: there are fewer than three.
        """
        if self._count < 3 or self._ids is None:
            raise InputError(
                f"{self.name} has {self._count} frame{'' if self._count == 1 else 's'}; at least 3 are "
                "needed, because the first and the last are not judged"
            )
        table = np.array(self._values)  # (N, 2, K)
        objects = (ObjectScore(one, table[:, 0, k], table[:, 1, k]) for k, one in enumerate(self._ids))
        return SequenceScore(self.name, tuple(objects))


def evaluate_sequence(
    truths: Iterable[np.ndarray],
    predictions: Iterable[np.ndarray],
    ids: Iterable[int] | None = None,
    *,
    name: str = "sequence",
) -> SequenceScore:
    """The score of a sequence from its true and predicted label maps, each in order; see `SequenceScorer`.

    Raises:
        InputError: as `SequenceScorer`, or different numbers of frames.
    """
    scorer = SequenceScorer(name, ids)
    for truth, prediction in pairs(truths, predictions, name):
        scorer.add(truth, prediction)
    return scorer.result()


def pairs(
    truths: Iterable[np.ndarray], predictions: Iterable[np.ndarray], name: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pairs of both series.

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


def check_object_ids(ids: Iterable[int]) -> tuple[int, ...]:
    """The ids, ascending.

    Raises:
        InputError: there is none, one occurs twice, or one is not in 1..254.
    """
    ordered = sorted(int(one) for one in ids)
    if not ordered or len(set(ordered)) != len(ordered) or ordered[0] < 1 or ordered[-1] > MAX_OBJECT_ID:
        raise InputError(
            f"the object ids are {ordered}; expected at least one, all different, in 1..{MAX_OBJECT_ID}"
        )
    return tuple(ordered)


def check_predicted(prediction: np.ndarray, ids: Sequence[int], where: str) -> None:
    """Refuse predictions of objects that do not exist: ids were mixed up, and no score would show it.

    Raises:
        InputError: the (H, W) uint8 label map holds a value that is neither 0 nor among the ids.
    """
    present = np.flatnonzero(cv2.calcHist([prediction], [0], None, [256], [0, 256]).ravel())
    unknown = sorted({int(label) for label in present} - {0, *ids})
    if unknown:
        raise InputError(
            f"{where}: the prediction holds the label{'s' if len(unknown) > 1 else ''} "
            f"{', '.join(map(str, unknown))}; the objects are {', '.join(map(str, ids))} (and 0, background)"
        )
