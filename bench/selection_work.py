"""How many clicks an object takes, and how good a mask from a box is; what `bench selection` does.

Photographs that the selector never saw (`streamvos.training.selection.is_held_out`), and frames of videos. A
click falls into the middle of the largest error, the first one into the middle of the object. NoC@85 is the
mean number of clicks until the IoU is 0.85, at most 20. A noisy box has each side moved by about a twelfth of
its length. Seconds are medians: the first click on a frame, and those after it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from streamvos.datasets.davis import DavisDataset
from streamvos.selection.grabcut import object_in_box
from streamvos.selection.selector import Selector
from streamvos.training.composites import Photographs
from streamvos.training.selection import is_held_out, largest_error, noisy_box
from streamvos.types import VOID, InputError

MOST_CLICKS = 20
SHOWN = (1, 2, 3, 5)
SMALLEST = 300
"""Pixels of an object; smaller ones are left out."""


def samples(data: Path, dev: Path | None, limit: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Data set, picture (H, W, 3) and labels (H, W) uint8 with 1 as the object and 255 as void."""
    photographs = Photographs(data)
    for kind in photographs.OBJECTS:
        names = [name for name in photographs.names.get(kind, ()) if is_held_out(Path(name).stem)]
        for number, name in enumerate(names[:limit]):
            image, regions = photographs.read(kind, name)
            ids = [i for i in np.unique(regions) if i not in (0, VOID) and (regions == i).sum() >= SMALLEST]
            if ids:
                chosen = ids[number % len(ids)]
                yield kind, image, np.where(regions == VOID, VOID, regions == chosen).astype(np.uint8)
    if dev is not None:
        dataset = DavisDataset(dev, year="2016")
        for name in dataset.names:
            sequence = dataset[name]
            for t in np.linspace(0, len(sequence) - 1, max(2, limit // 15)).astype(int):
                if (sequence.mask(t) == 1).sum() >= SMALLEST:
                    yield "davis", sequence.image(t), sequence.mask(t)


def iou(labels: np.ndarray, found: np.ndarray) -> float:
    known, true = labels != VOID, labels == 1
    return float((found & true).sum() / max(((found | true) & known).sum(), 1))


def judge(selector: Selector, image: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, Any]:
    """IoU after each click and from a noisy box, GrabCut's from the same box, and seconds of the clicks."""
    points: list[Any] = []
    after: list[float] = []
    seconds: list[float] = []
    mask = None
    while len(after) < MOST_CLICKS:
        click = largest_error(labels, np.zeros(labels.shape, bool) if mask is None else mask)
        if click is None:
            break
        points.append(click)
        before = time.perf_counter()
        mask, _ = selector.select(image, points, mask=mask if mask is not None and mask.any() else None)
        seconds.append(time.perf_counter() - before)
        after.append(iou(labels, mask))
        if after[-1] >= 0.9 and len(after) >= max(SHOWN):
            break
    box = noisy_box(np.random.default_rng(seed), labels == 1)
    found, score = selector.select(image, box=box)
    left, top, right, bottom = (round(side) for side in box)
    try:
        of_grabcut = iou(labels, object_in_box(image, (left, top, right, bottom)))
    except InputError:
        of_grabcut = 0.0
    return {
        "after": after,
        "box": iou(labels, found),
        "score": score,
        "grabcut": of_grabcut,
        "seconds": seconds,
    }


def table(results: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the objects of one data set."""

    def clicks(level: float) -> float:
        return float(
            np.mean(
                [next((n for n, v in enumerate(r["after"], 1) if v >= level), MOST_CLICKS) for r in results]
            )
        )

    def after(n: int) -> float:
        return float(np.mean([r["after"][min(n, len(r["after"])) - 1] for r in results]))

    later = [s for r in results for s in r["seconds"][1:]]
    return {
        "objects": len(results),
        **{f"IoU after {n}": 100 * after(n) for n in SHOWN},
        "NoC@85": clicks(0.85),
        "NoC@90": clicks(0.90),
        "box": 100 * float(np.mean([r["box"] for r in results])),
        "box, GrabCut": 100 * float(np.mean([r["grabcut"] for r in results])),
        "score off by": 100 * float(np.mean([abs(r["box"] - r["score"]) for r in results])),
        "first click s": median(r["seconds"][0] for r in results),
        "next click s": median(later) if later else float("nan"),
    }
