"""How well "lost" and the return of an object are recognized; what `bench lost` does.

Over each validation sequence of DAVIS 2016 (`streamvos.training.features.VALIDATION`) two cut-outs of
photographs swing from beyond one side of the frame to beyond the other, so that each of them leaves and
returns. Counted over all frames after the first, for all objects:

- precision and recall of the state "lost" against frames in which the object has no pixel;
- recovery: of all returns, those after which the object is found again (J above one half within ten frames in
  which it is visible);
- J&F of these clips, and how often "uncertain" is said of a mask with J below one half (recall) and rightly
  (precision), with the method's own threshold and with others; the best has the highest harmonic mean of
  both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import streamvos
from streamvos.datasets.davis import DavisDataset
from streamvos.metrics.evaluation import SequenceScorer
from streamvos.training.composites import LabeledClip, Path2D, Photographs, random_motion
from streamvos.training.features import VALIDATION

FRAMES = 50
THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))
"""Of the score, below which a mask could be called uncertain."""

PATIENCE = 10
"""Visible frames within which a returning object has to be found."""


class Swing(Path2D):
    """From the middle of the frame to `reach` pixels left and right of it, about once to and fro."""

    def __init__(self, rng: np.random.Generator, width: int, reach: float):
        super().__init__(rng, width / 2, 0, 0)
        self.reach, self.turns, self.phase = reach, rng.uniform(0.8, 1.3), rng.uniform(-0.5, 0.5)

    def __call__(self, u: float) -> float:
        return float(self.start + self.reach * np.sin(self.phase + 6.283 * self.turns * u))


def clips(data: Path, seed: int) -> Iterator[tuple[str, LabeledClip]]:
    """Name and clip of every validation sequence: its object (1), and two that leave and return (2, 3)."""
    photographs, dataset = Photographs(data), DavisDataset(data / "davis2016-train", year="2016")
    for number, name in enumerate(VALIDATION):
        rng, sequence = np.random.default_rng([seed, number]), dataset[name]
        frames = range(min(FRAMES, len(sequence)))
        images, labels = [sequence.image(t).copy() for t in frames], [sequence.mask(t).copy() for t in frames]
        height, width = labels[0].shape
        for label in (2, 3):
            cutout, motion = photographs.cutout(rng), random_motion(rng, (height, width), 0.4)
            share = float(rng.uniform(0.25, 0.45))
            mover = replace(motion, share=share, x=Swing(rng, width, width * (0.62 + share / 2)))
            for t in frames:
                mover.paste(cutout, t / len(frames), images[t], labels[t], label)
        yield name, LabeledClip(np.stack(images), np.stack(labels))


def judge(
    vos: streamvos.Segmenter, name: str, clip: LabeledClip
) -> tuple[Counter, list[tuple[float, bool]], float]:
    """Counts of one clip; of every mask its score and whether it is wrong; and the clip's J&F."""
    counts: Counter[str] = Counter()
    scores: list[tuple[float, bool]] = []
    ids = sorted(set(np.unique(clip.labels[0]).tolist()) - {0, 255})
    scorer = SequenceScorer(name, ids)
    waiting: dict[int, int] = {}
    seen = dict.fromkeys(ids, True)
    vos.reset()
    for t, (image, truth) in enumerate(zip(clip.images, clip.labels, strict=True)):
        truth = np.where(np.isin(truth, ids), truth, 0).astype(np.uint8)
        result = vos.step(image, truth if t == 0 else None)
        scorer.add(truth, result.mask)
        for i in ids if t else ():
            true, found = truth == i, result.mask == i
            visible, state = bool(true.any()), result.objects[i].state
            overlap = float((true & found).sum() / max((true | found).sum(), 1))
            counts["absent"] += int(not visible)
            counts["lost"] += state == "lost"
            counts["rightly lost"] += state == "lost" and not visible
            if state != "lost":
                scores.append((result.objects[i].score, overlap < 0.5))
            if visible and not seen[i]:
                counts["returns"] += 1
                waiting[i] = PATIENCE
            if i in waiting and visible:
                waiting[i] -= 1
                if overlap > 0.5:
                    counts["found again"] += 1
                if overlap > 0.5 or not waiting[i]:
                    del waiting[i]
            seen[i] = visible
    return counts, scores, scorer.result().percent()["J&F"]


def warnings(scores: list[tuple[float, bool]], threshold: float) -> dict[str, float | None]:
    """Precision and recall of calling masks uncertain whose score is below a threshold."""
    said = [wrong for score, wrong in scores if score < threshold]
    wrong = sum(wrong for _, wrong in scores)
    return {"precision": share(sum(said), len(said)), "recall": share(sum(said), wrong)}


def harmonic_mean(both: dict[str, float | None]) -> float:
    """0 if one of them is 0 or unknown."""
    values = [value or 0.0 for value in both.values()]
    return 0.0 if min(values) == 0 else float(len(values) / sum(1 / value for value in values))


def share(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 1) if whole else None


def measure(data: Path, method: str, seed: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Scores in percent of one method over all clips, and counts and other thresholds."""
    vos = streamvos.load(method)
    total: Counter[str] = Counter()
    scores: list[tuple[float, bool]] = []
    qualities = []
    for name, clip in clips(data, seed):
        counts, some, quality = judge(vos, name, clip)
        total += counts
        scores += some
        qualities.append(quality)
    own = vos.method.options.uncertain_below
    by_threshold = {threshold: warnings(scores, threshold) for threshold in THRESHOLDS}
    said = warnings(scores, own)
    found = {
        "J&F": round(float(np.mean(qualities)), 1),
        "lost precision": share(total["rightly lost"], total["lost"]),
        "lost recall": share(total["rightly lost"], total["absent"]),
        "found again": share(total["found again"], total["returns"]),
        "uncertain precision": said["precision"],
        "uncertain recall": said["recall"],
    }
    details = {
        "uncertain_below": own,
        "best_threshold": max(THRESHOLDS, key=lambda threshold: harmonic_mean(by_threshold[threshold])),
        "by_threshold": {str(threshold): one for threshold, one in by_threshold.items()},
        "counts": dict(total),
    }
    return {name: value for name, value in found.items() if value is not None}, details
