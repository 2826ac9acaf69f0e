"""Videos of photographed objects that move over a photograph, with exact ground truth: what the demo shows.

    >>> video = PhotographVideo(seed=1, options=PhotographOptions(size=(180, 320), length=8))
    >>> len(video), video[0].image.shape, sorted(set(video[0].label_map.ravel().tolist()))
    (8, (180, 320, 3), [0, 1, 2])

A person walks through the lower part of the frame: object 1. Object 2, which the seed chooses, flies behind
her, leaves the frame and returns. Its mirrored look-alike, another thing and a rocket are not labelled; the
last two pass in front of the objects. The camera moves, the light changes a little, and there is noise.
The pictures, their authors and licences: streamvos/synthetic/photographs/CREDITS.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index as as_index
from pathlib import Path
from typing import overload

import cv2
import numpy as np

from streamvos.synthetic.camera import Light, sensor_noise
from streamvos.synthetic.cutouts import Cutout, MovingCutout
from streamvos.synthetic.options import PhotographOptions, validate, validate_seed

FOLDER = Path(__file__).with_name("photographs")
BACKGROUND, PERSON, ROCKET = "pagoda", "astronaut", "rocket"
FLYING = {"raccoon": 0.42, "cup": 0.36, "flower": 0.33}
"""What may be object 2, with its side as a share of the frame's shorter side."""

Rng = np.random.Generator
Points = Sequence[float]


@dataclass(frozen=True, eq=False)
class PhotographFrame:
    """A frame and its ground truth.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        label_map: (H, W) uint8, ids of the visible objects; 0 is everything else.
    """

    image: np.ndarray
    label_map: np.ndarray


class PhotographVideo(Sequence[PhotographFrame]):
    """A video whose frames are rendered on request, in any order.

    The same seed and options give the same video. Frame 0 shows both labelled objects.

    Raises:
        InputError: the seed is not an integer >= 0, or an option is out of range.
    """

    def __init__(self, seed: int, options: PhotographOptions | None = None) -> None:
        options = PhotographOptions() if options is None else options
        validate_seed(seed)
        validate(options)
        self.options = options
        self._seed = int(seed)
        self._size = int(options.size[0]), int(options.size[1])
        rng = np.random.default_rng(self._seed)
        self._background = _read(BACKGROUND)[..., :3]
        self._camera = [_wave(rng, reach) for reach in (0.045, 0.045, 0.05, 1.2)]  # x, y, zoom, degrees
        self._layers = _cast(rng, self._size)
        self._light = Light(rng, options.length, strength=0.35)

    def __len__(self) -> int:
        return self.options.length

    @overload
    def __getitem__(self, index: int) -> PhotographFrame: ...

    @overload
    def __getitem__(self, index: slice) -> list[PhotographFrame]: ...

    def __getitem__(self, index: int | slice) -> PhotographFrame | list[PhotographFrame]:
        if isinstance(index, slice):
            return [self[t] for t in range(*index.indices(len(self)))]
        t = as_index(index)
        t = t + len(self) if t < 0 else t
        if not 0 <= t < len(self):
            raise IndexError(f"frame {index} of a video of {len(self)} frames")
        return self._render(t)

    def _render(self, t: int) -> PhotographFrame:
        u = t / max(len(self) - 1, 1)
        image = self._backdrop(u)
        labels = np.zeros(self._size, np.uint8)
        for cutout, mover, label in self._layers:
            mover.paste(cutout, u, image, labels, label)
        image = self._light.apply(image, t)
        noise = sensor_noise(self._seed, t, self._size, coarse=True)
        return PhotographFrame(cv2.addWeighted(image, 1.0, noise, 2 / 32, 0, dtype=cv2.CV_8U), labels)

    def _backdrop(self, u: float) -> np.ndarray:
        """The background at `u` in 0..1: it always covers the whole frame."""
        (height, width), (h, w) = self._size, self._background.shape[:2]
        x, y, zoom, angle = (path(u) for path in self._camera)
        scale = max(height / h, width / w) * 1.2 * np.exp(zoom)
        matrix = cv2.getRotationMatrix2D((w / 2, h / 2), angle, scale)
        matrix[:, 2] += [width / 2 - w / 2 + x * width, height / 2 - h / 2 + y * height]
        drawn = cv2.warpAffine(self._background, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
        return np.asarray(drawn)


def _cast(rng: Rng, size: tuple[int, int]) -> list[tuple[Cutout, MovingCutout, int]]:
    """Who is seen, from the back to the front: the cut-out, its motion, and its id or 0."""
    height, width = size
    short = min(size)
    followed, passing = (str(name) for name in rng.permutation(list(FLYING))[:2])
    side = FLYING[followed]
    person = _cutout(PERSON)
    tall = float(rng.uniform(0.6, 0.68))
    grown = float(rng.uniform(0.1, 0.2))  # she comes nearer

    def shaken(*values: float) -> list[float]:
        return [value + float(rng.uniform(-0.02, 0.02)) for value in values]

    def flight(
        share: float, times: Points, xs: Points, ys: Points, tilt: float, bend: float = 0.015
    ) -> MovingCutout:
        """A flight through points given in shares of the frame."""
        return MovingCutout(
            size,
            share,
            x=_through(times, np.multiply(shaken(*xs), width)),
            y=_through(times, np.multiply(shaken(*ys), height)),
            zoom=_wave(rng, 0.12),
            angle=_wave(rng, tilt),
            stretch=_wave(rng, 0.06),
            mirror=bool(rng.random() < 0.5),
            bend=_bending(rng, bend),
        )

    away = 1.04 + 0.36 * side  # beyond the right border
    times = (0, 0.14, 0.28, 0.44, 0.52, 0.6, 0.8, 1)
    xs = (0.72, 0.8, 0.62, away, away + 0.05, away, 0.62, 0.3)
    flying = flight(side, times, xs, (0.32, 0.5, 0.3, 0.45, 0.35, 0.3, 0.35, 0.4), tilt=18)
    xs = (0.1, 0.28, 0.7, 0.74, 0.68, 0.6, 0.6, 0.6)
    twin = flight(0.8 * side, times, xs, (0.2, 0.3, 0.2, 0.25, 0.1, -0.4, -1, -1), tilt=25)
    passer = flight(0.2, (0, 0.3, 0.6, 1), (1.3, 0.9, 0.3, -0.3), (0.5, 0.75, 0.7, 0.55), tilt=40)
    rocket = flight(0.28, (0, 0.55, 1), (-0.1, 0.4, 0.9), (2.2, 0.75, -1.2), tilt=4, bend=0)
    walk = MovingCutout(
        size,
        tall,
        x=_through((0, 0.35, 0.7, 1), np.multiply(shaken(0.25, 0.38, 0.62, 0.45), width)),
        y=lambda u: height + short * (0.05 - 0.5 * tall * np.exp(grown * u) + 0.012 * np.sin(44 * u)),
        zoom=lambda u: grown * u,
        angle=_wave(rng, 2.5),
        stretch=lambda u: 0.0,
        mirror=False,
        bend=_bending(rng, 0.01),
    )
    return [
        (_dyed(_cutout(followed)), twin, 0),
        (_cutout(followed), flying, 2),
        (person, walk, 1),
        (_cutout(passing), passer, 0),
        (_cutout(ROCKET), rocket, 0),
    ]


def _through(times: Points, values: Points | np.ndarray) -> Callable[[float], float]:
    """A smooth path that has `values` at `times`: a cubic Hermite spline."""
    places, points = np.asarray(times, float), np.asarray(values, float)
    slopes = np.gradient(points, places)

    def path(u: float) -> float:
        k = int(np.clip(np.searchsorted(places, u, side="right") - 1, 0, len(places) - 2))
        step = places[k + 1] - places[k]
        s = (u - places[k]) / step
        ends = (1 + 2 * s) * (1 - s) ** 2 * points[k] + s * s * (3 - 2 * s) * points[k + 1]
        return float(ends + step * s * (1 - s) * ((1 - s) * slopes[k] - s * slopes[k + 1]))

    return path


def _wave(rng: Rng, reach: float) -> Callable[[float], float]:
    """A path that swings by `reach` to both sides, once or twice."""
    phase, turns = rng.uniform(0, 2 * np.pi), rng.uniform(1, 2)
    return lambda u: float(reach * np.sin(phase + 2 * np.pi * turns * u))


def _bending(rng: Rng, reach: float) -> Callable[[float], np.ndarray]:
    """Displacements (2, 4, 4) float32 that swing; `reach` is their standard deviation at the most."""
    first, second = rng.normal(0, reach, (2, 2, 4, 4))
    turns = rng.uniform(1.5, 2.5) * 2 * np.pi
    return lambda u: (np.cos(turns * u) * first + np.sin(turns * u) * second).astype(np.float32)


def _dyed(cutout: Cutout) -> Cutout:
    """The same object in slightly other colors, mirrored."""
    image = np.clip(cutout.image * np.array([0.8, 0.95, 1.15]), 0, 255).astype(np.uint8)
    return Cutout(np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(cutout.alpha[:, ::-1]))


def _cutout(name: str) -> Cutout:
    picture = _read(name)
    return Cutout(np.ascontiguousarray(picture[..., :3]), picture[..., 3].astype(np.float32) / 255)


def _read(name: str) -> np.ndarray:
    """A picture of the package, (h, w, 3 or 4) uint8 RGB or RGBA."""
    packed = np.frombuffer((FOLDER / f"{name}.webp").read_bytes(), np.uint8)
    picture = np.asarray(cv2.imdecode(packed, cv2.IMREAD_UNCHANGED))
    order = cv2.COLOR_BGRA2RGBA if picture.shape[2] == 4 else cv2.COLOR_BGR2RGB
    return np.asarray(cv2.cvtColor(picture, order))
