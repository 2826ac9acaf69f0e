"""Rows of the table of inputs: each makes its own files and says what must come out of them.

    @row("numbers of different lengths are sorted as numbers")
    def numbers(folder: Path) -> Case:
        images, label_maps = scene(12)
        ...
        return Case("frames", first=label_maps[0], pictures=images)

`test_inputs.py` runs every row through the Python API, through `streamvos run` and through the stages of a
pipeline; a row that only one of them can answer names its doors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SIZE = (48, 64)
"""(H, W) of the pictures of a scene."""

DOORS = ("api", "run", "pipeline")


@dataclass(frozen=True)
class Case:
    """An input and what must come out of it.

    Attributes:
        source: what `open_source` and `streamvos run` are given.
        mask: file of the first label map; None = `first` is written to first.png.
        first: (H, W) uint8, the label map that must lie on the first frame, as the frame is shown.
        pictures: every frame as it must be given, (H, W, 3) uint8; None does not look at them.
        tolerance: the mean absolute difference to `pictures` that compression may make.
        stamps: presentation time of every frame in seconds from the first; None does not look at them.
        stems: names of the label maps without ".png"; None does not look at them.
        says: a pattern of a line that must be logged or printed; empty = no line is expected.
        error: a pattern of the one line that the input is refused with; empty = it must be read.
        code: exit code of `streamvos run`.
        options: of `open_source`; `streamvos run` gets them as --options.
        run_options: arguments that only `streamvos run` gets.
        stream_options: keys that only the pipeline's stream gets.
    """

    source: str
    first: np.ndarray | None = None
    mask: Path | None = None
    pictures: Sequence[np.ndarray] | None = None
    tolerance: float = 6.0
    stamps: Sequence[float] | None = None
    stems: Sequence[str] | None = None
    says: str = ""
    error: str = ""
    code: int = 0
    options: Mapping[str, object] = field(default_factory=dict)
    run_options: Sequence[str] = ()
    stream_options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A line of the table: its name, what makes it in an empty current directory, who answers it."""

    name: str
    make: Callable[[Path], Case]
    doors: Sequence[str] = DOORS


Maker = Callable[[Path], Case]

ROWS: list[Row] = []
"""Every row of the modules that have been imported."""


def row(name: str, doors: Sequence[str] = DOORS) -> Callable[[Maker], Maker]:
    """Put a function into the table; it gets the folder that is the current directory."""

    def put(make: Maker) -> Maker:
        assert name not in [one.name for one in ROWS], name
        ROWS.append(Row(name, make, doors))
        return make

    return put


def scene(frames: int, size: tuple[int, int] = SIZE) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Pictures and label maps of a red and a blue disk, ids 1 and 2, that move over a smooth ground.

    No two frames are alike, and no frame equals itself when it is turned or mirrored.
    """
    height, width = size
    y, x = np.mgrid[:height, :width] / max(size)
    ground = np.stack([40 + 60 * x, 60 + 90 * y, 110 - 60 * x * y], axis=-1)
    images, label_maps = [], []
    for t in range(frames):
        image, label_map = ground.copy(), np.zeros(size, np.uint8)
        step = t / max(frames - 1, 1)
        for label, color, cx, cy in ((1, (230, 40, 30), 0.2, 0.25), (2, (30, 60, 240), 0.7, 0.5)):
            inside = np.hypot(x - cx - 0.1 * step, y - cy + 0.08 * step) < 0.13
            image[inside], label_map[inside] = color, label
        image[-6:, : max(1, round(width * (0.1 + 0.8 * step)))] = 250  # a bar that grows
        images.append(image.round().astype(np.uint8))
        label_maps.append(label_map)
    return images, label_maps
