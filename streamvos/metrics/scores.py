"""From one number per object and frame to the numbers in papers.

The J (or F) of an object's frames becomes three numbers: the mean; the recall, the part of the frames above
one half; and the decay, the mean of the first quarter of the frames less that of the last. A sequence has the
means over its objects, the whole the means over the sequences.

    scores = summarize([evaluate_sequence(truths, predictions, name="goat")])
    scores.mean["J&F"]  # 71.3

DAVIS 2017's own table averages over the objects of all sequences at once, so a sequence with five objects
weighs five times as much as one with a single object; see `Scores.mean_objects`. With one object per sequence
(DAVIS 2016) the two are the same.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streamvos.types import InputError

MEASURES = ("J", "F", "J&F", "J_recall", "J_decay", "F_recall", "F_decay")
"""The seven numbers of a sequence and of the mean, in the order in which they are written."""

_BINS = 4  # decay compares the first with the last of these (Perazzi et al. 2016, section 5.2)
_RECALL_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Statistics:
    """The statistics of a series of per-frame values, as fractions (decay may be negative)."""

    mean: float
    recall: float
    decay: float


def statistics(values: np.ndarray | Sequence[float]) -> Statistics:
    """Mean, recall and decay of one object's J or F over its frames.

    Decay splits the N frames into four bins at the frames round(1 + k (N - 1) / 4), k = 0..4, halves
    upwards; neighboring bins share the frame on their border, as in the DAVIS evaluation.

    Args:
        values: (N,) one value per frame; nan stands for a frame that was not judged and is left out.

    Returns:
        The three numbers; nan where no frame was judged.
    """
    series = np.asarray(values, np.float64)
    if series.ndim != 1:
        raise InputError(f"the values have shape {series.shape}; expected one value per frame, (N,)")
    series = series[~np.isnan(series)]
    count = len(series)
    if count == 0:
        return Statistics(math.nan, math.nan, math.nan)
    # floor(x + 1/2) in whole numbers: (1 + k (N-1) / 4) - 1, halves up
    edges = [(2 * k * (count - 1) + _BINS) // (2 * _BINS) for k in range(_BINS + 1)]
    first, last = series[edges[0] : edges[1] + 1], series[edges[-2] : edges[-1] + 1]
    return Statistics(
        mean=float(series.mean()),
        recall=float((series > _RECALL_THRESHOLD).mean()),
        decay=float(first.mean() - last.mean()),
    )


@dataclass(frozen=True, slots=True, eq=False)
class ObjectScore:
    """One object of one sequence.

    Attributes:
        id: the object's id in the label maps.
        regions: (N,) float64, J per judged frame, 0..1.
        boundaries: (N,) float64, F per judged frame, 0..1.
    """

    id: int
    regions: np.ndarray
    boundaries: np.ndarray

    def percent(self) -> dict[str, float]:
        """The seven `MEASURES` of this object in percent."""
        region, boundary = statistics(self.regions), statistics(self.boundaries)
        means = (region.mean, boundary.mean, (region.mean + boundary.mean) / 2)
        values = (*means, region.recall, region.decay, boundary.recall, boundary.decay)
        return {name: 100 * value for name, value in zip(MEASURES, values, strict=True)}


@dataclass(frozen=True, slots=True, eq=False)
class SequenceScore:
    """One sequence, with a score per object in the order of their ids."""

    name: str
    objects: tuple[ObjectScore, ...]

    def percent(self) -> dict[str, float]:
        """The seven `MEASURES` in percent: the means over the objects."""
        return _mean(one.percent() for one in self.objects)


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Several sequences and their mean; `sequences` is name -> score, in the order given."""

    sequences: Mapping[str, SequenceScore]

    @property
    def mean(self) -> dict[str, float]:
        """The seven `MEASURES` in percent: the means over the sequences."""
        return _mean(score.percent() for score in self.sequences.values())

    @property
    def mean_objects(self) -> dict[str, float]:
        """The same, averaged over the objects of all sequences at once (DAVIS 2017's own table)."""
        return _mean(one.percent() for score in self.sequences.values() for one in score.objects)

    def to_json(self) -> dict[str, dict]:
        """`{"sequences": {name: {measure: percent}}, "mean": {measure: percent}}`, ready for `json.dump`."""
        return {
            "sequences": {name: score.percent() for name, score in self.sequences.items()},
            "mean": self.mean,
        }


def summarize(scores: Iterable[SequenceScore]) -> Scores:
    """Gather the scores of sequences.

    Raises:
        InputError: there is none, or two have the same name.
    """
    sequences: dict[str, SequenceScore] = {}
    for score in scores:
        if score.name in sequences:
            raise InputError(f"two sequences are called '{score.name}'; every name must occur once")
        sequences[score.name] = score
    if not sequences:
        raise InputError("there is no sequence to summarize; expected at least one")
    return Scores(sequences)


def _mean(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """The mean of every measure over the rows, without nan; nan where there is nothing else."""
    table = np.array([[row[name] for name in MEASURES] for row in rows], np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=RuntimeWarning)  # a column of nan alone stays nan
        means = np.nanmean(table, axis=0)
    return {name: float(value) for name, value in zip(MEASURES, means, strict=True)}
