"""A segmenter on the sequences of a data set: scored, timed, and under a clock that does not stop.

offline = evaluate(vos, sequence)
seconds = fmean(offline.seconds[1:])
late = evaluate(vos, sequence, fps=30, cost=lambda frame, measured: seconds)
offline.score.percent()["J&F"], late.score.percent()["J&F"], late.behind
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from streamvos.datasets.davis import DavisSequence
from streamvos.masks.checks import fit_label_map
from streamvos.metrics.evaluation import SequenceScorer
from streamvos.metrics.scores import SequenceScore
from streamvos.metrics.streaming import newest_finished
from streamvos.segmenter import Segmenter
from streamvos.sinks.resizing import at_size
from streamvos.sources.source import NOMINAL_FPS, Selection, resize
from streamvos.types import Frame, Result

Cost = Callable[[int, float], float]
"""What a frame costs on the clock, in seconds, from its number and the seconds that it took here."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What became of one sequence.

    Attributes:
        score: of the masks that counted.
        counted: the processed frame whose mask counted, of each frame.
        seconds: what `Segmenter.step` took, of each processed frame in order; the first learns the objects.
        costs: what they cost on the clock, in seconds.
    """

    score: SequenceScore
    counted: tuple[int, ...]
    seconds: tuple[float, ...]
    costs: tuple[float, ...]

    @property
    def behind(self) -> float:
        """How many frames old the masks were, in the mean over the frames that are scored."""
        return float(np.mean([frame - shown for frame, shown in enumerate(self.counted)][1:-1]))


def evaluate(
    vos: Segmenter,
    sequence: DavisSequence,
    *,
    height: int | None = None,
    fps: float = NOMINAL_FPS,
    cost: Cost | None = None,
    show: Callable[[Frame, Result], object] = lambda frame, result: None,
) -> Evaluation:
    """Segment a sequence and score, at every frame, the newest mask that is finished by then.

    Args:
        vos: a segmenter, which is reset first.
        sequence: a sequence with a label map for every frame.
        height: rows that frames are resized to; masks are scored at the size of the true ones.
        fps: frames per second, under a `cost`.
        cost: None: none, so that every frame is processed and has its own mask (offline).
        show: called with every frame, whose picture is black, and the result that counts there.

    Raises:
        InputError: a file cannot be used, or an object has no pixel left at this height.
    """
    run = _Run(vos, sequence, height, cost or (lambda frame, measured: 0.0))
    scorer, counted = SequenceScorer(sequence.name, sequence.object_ids), []
    for index, shown in enumerate(newest_finished(len(sequence), fps, run.process)):
        result = run.newest(shown)
        scorer.add(sequence.mask(index), result.mask)
        counted.append(shown)
        show(_frame(sequence, index, result.mask.shape), result)
    return Evaluation(scorer.result(), tuple(counted), tuple(run.seconds), tuple(run.costs))


class _Run:
    """Processes frames on request, and keeps the results that may still count."""

    def __init__(self, vos: Segmenter, sequence: DavisSequence, height: int | None, cost: Cost):
        self._vos, self._sequence, self._cost = vos, sequence, cost
        self._selection = Selection(height=height)
        self._results: dict[int, Result] = {}
        self.seconds: list[float] = []
        self.costs: list[float] = []
        vos.reset()

    def process(self, index: int) -> float:
        """Segment a frame; what it costs."""
        image = self._sequence.image(index)
        native = image.shape[0], image.shape[1]
        size = self._selection.size(native)
        given = self._sequence.first_mask() if index == 0 else None
        picture = resize(image, size)
        mask = None if given is None else fit_label_map(given, size, native)
        before = time.perf_counter()
        result = self._vos.step(picture, mask)
        self.seconds.append(time.perf_counter() - before)
        self.costs.append(self._cost(index, self.seconds[-1]))
        if size != native:
            _, result = at_size(_frame(self._sequence, index, size), result, native, given)
        self._results[index] = result
        return self.costs[-1]

    def newest(self, shown: int) -> Result:
        """A frame's result, after which earlier ones are forgotten."""
        self._results = {index: one for index, one in self._results.items() if index >= shown}
        return self._results[shown]


def _frame(sequence: DavisSequence, index: int, size: tuple[int, ...]) -> Frame:
    black = np.broadcast_to(np.zeros(3, np.uint8), (*size, 3))
    return Frame(black, index, 0, index / NOMINAL_FPS, sequence.name)
