"""How the layers of a synthetic video move and bend.

A motion maps backward, from a pixel of frame t to the point of the layer's surface that it shows. No map has
to be inverted, and the correspondence between two frames is exact by construction: two pixels with the same
surface point show the same thing.

    >>> rng = np.random.default_rng(0)
    >>> drift = sinusoids(rng, np.arange(10), speed=2.0)
    >>> drift.shape, float(drift[0])
    ((10,), 0.0)
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

import cv2
import numpy as np

from streamvos.synthetic.surfaces import Surface

Array = np.ndarray

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom exclusive."""


def sinusoids(
    rng: np.random.Generator,
    times: Array,
    speed: float,
    periods: tuple[float, float] = (18.0, 130.0),
    limit: float | None = None,
) -> Array:
    """A smooth random signal that is 0 at time 0.

    Args:
        times: (T,) in frames.
        speed: root mean square change per frame.
        periods: shortest and longest period in frames.
        limit: largest magnitude; the signal is squashed smoothly to stay below it; 0 gives zeros.

    Returns:
        (T,) float64.
    """
    terms = 3
    shares = rng.dirichlet(np.ones(terms))
    period = np.exp(rng.uniform(np.log(periods[0]), np.log(periods[1]), terms))
    phase = rng.uniform(0, 2 * np.pi, terms)
    amplitude = np.sqrt(2 * shares) * speed * period / (2 * np.pi)
    angles = 2 * np.pi * np.asarray(times)[:, None] / period + phase
    signal = ((np.sin(angles) - np.sin(phase)) * amplitude).sum(1)
    if limit is None:
        return signal
    return limit * np.tanh(signal / limit) if limit > 0 else np.zeros_like(signal)


def keep_inside(points: Array, half: Array) -> Array:
    """Map free paths smoothly into the frame: almost linear in its middle, bending near its border.

    Args:
        points: (T, 2) x, y relative to the middle of the frame, in half widths and half heights.
        half: (2,) half the frame's width and height in pixels.

    Returns:
        (T, 2) x, y in pixels.
    """
    return half + points / (1 + np.abs(points) ** 4) ** 0.25 * half - 0.5


def inverse_keep_inside(points: Array, half: Array) -> Array:
    """The free points that `keep_inside` maps to `points`, (..., 2) x, y in pixels."""
    squashed = np.clip((points + 0.5 - half) / half, -0.97, 0.97)
    return squashed / (1 - np.abs(squashed) ** 4) ** 0.25


@dataclass(frozen=True)
class Deformation:
    """A smooth bending of a surface over time: travelling waves and turning joints.

    Attributes:
        vectors: (K, 2) wave vectors in radians per pixel.
        amplitudes: (K, 2) displacement in pixels.
        phases: (K, 3) start, swing and rate: the phase at t is start + swing * sin(rate * t + start).
        joints: (J, 7) x, y of the joint, unit axis x and y, softness in pixels, largest angle, rate.
    """

    vectors: Array
    amplitudes: Array
    phases: Array
    joints: Array

    def __call__(self, points: Array, t: float) -> Array:
        """Positions of `points`, (..., 2), after bending at time `t` in frames."""
        for x, y, axis_x, axis_y, softness, largest, rate in self.joints:
            dx, dy = points[..., 0] - x, points[..., 1] - y
            along = np.clip((dx * axis_x + dy * axis_y) / softness, 0, 1)
            angle = largest * np.sin(rate * t + x) * along * along * (3 - 2 * along)
            cosine, sine = np.cos(angle), np.sin(angle)
            points = np.stack([x + cosine * dx - sine * dy, y + sine * dx + cosine * dy], -1)
        start, swing, rate = self.phases.T
        phase = start + swing * np.sin(rate * t + 1.7 * start)
        return points + np.sin(points @ self.vectors.T + phase) @ self.amplitudes

    def reach(self, radius: float) -> float:
        """Upper bound on the displacement of a point that starts or ends within `radius` of the origin."""
        far = float(np.abs(self.amplitudes).sum(0).max()) * 1.42
        for x, y, *_, largest, _ in self.joints:
            far += min(abs(largest) * (radius + far + float(np.hypot(x, y))), 2 * float(np.hypot(x, y)))
        return far


STIFF = Deformation(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros((0, 3)), np.zeros((0, 7)))
"""No deformation at all."""


def random_deformation(
    rng: np.random.Generator, diameter: float, strength: float, speed: float, joints: int = 0
) -> Deformation:
    """A random deformation that does not fold a surface `diameter` pixels across.

    Args:
        diameter: of the surface in pixels.
        strength: sum of the waves' gradients; folding is impossible below 1.
        speed: scale of the rates of change; 0 freezes the deformation.
        joints: number of places where the surface bends.
    """
    count = 3
    lengths = diameter * np.exp(rng.uniform(np.log(0.55), np.log(2.0), count))
    turns = rng.uniform(0, 2 * np.pi, count)
    vectors = np.stack([np.cos(turns), np.sin(turns)], 1) * (2 * np.pi / lengths)[:, None]
    turns = rng.uniform(0, 2 * np.pi, count)
    gradients = strength * rng.dirichlet(np.ones(count))
    amplitudes = np.stack([np.cos(turns), np.sin(turns)], 1) * (gradients * lengths / (2 * np.pi))[:, None]
    rates = 2 * np.pi / np.exp(rng.uniform(np.log(14), np.log(70), count))
    swings = rng.uniform(0.6, 2.2, count) * min(speed, 1.5)
    phases = np.stack([rng.uniform(0, 2 * np.pi, count), swings, rates], 1)
    bends = np.zeros((joints, 7))
    for k in range(joints):
        place = rng.uniform(-0.2, 0.2, 2) * diameter
        axis = rng.uniform(0, 2 * np.pi)
        largest = rng.uniform(0.15, 0.55) * min(strength / 0.25, 1.0) * min(speed, 1.0)
        rate = 2 * np.pi / np.exp(rng.uniform(np.log(16), np.log(50)))
        bends[k] = (*place, np.cos(axis), np.sin(axis), 0.45 * diameter, largest, rate)
    return Deformation(vectors, amplitudes, phases, bends)


@dataclass(frozen=True)
class Trajectory:
    """The position of a layer in every frame, and in one frame before and after for the speed at the ends.

    Attributes:
        centers: (T + 2, 2) x, y in frame pixels of the middle of the surface.
        angles: (T + 2,) radians.
        scales: (T + 2, 2) frame pixels per surface pixel along the surface's own x and y.
    """

    centers: Array
    angles: Array
    scales: Array

    def velocity(self, t: int) -> Array:
        """(2,) x, y in pixels per frame."""
        return (self.centers[t + 2] - self.centers[t]) / 2


@dataclass(frozen=True)
class Layer:
    """A surface in motion.

    Attributes:
        number: its value in `SyntheticFrame.layer`.
        region_offset: added to the surface's region numbers, so that no two layers share one.
    """

    number: int
    surface: Surface
    path: Trajectory
    deformation: Deformation
    region_offset: int = 0

    def box(self, t: int, size: tuple[int, int]) -> Box | None:
        """Where the layer may be visible in frame `t` of `size` (H, W); None if nowhere."""
        center = self.path.centers[t + 1]
        reach = self.reach() * float(self.path.scales[t + 1].max()) + 1
        left, top = max(0, int(center[0] - reach)), max(0, int(center[1] - reach))
        right, bottom = min(size[1], ceil(center[0] + reach) + 1), min(size[0], ceil(center[1] + reach) + 1)
        return (left, top, right, bottom) if left < right and top < bottom else None

    def reach(self) -> float:
        """Largest distance of any of its points from its middle, in surface pixels."""
        radius = self.surface.radius
        return radius + self.deformation.reach(radius)

    def map(self, t: int, box: Box) -> Array:
        """The surface point that each pixel of a box shows at frame `t`.

        The motion is evaluated on a coarse grid and interpolated linearly in between. The interpolated map is
        what moves the pixels, so it is the truth and not an approximation of it.

        Returns:
            (bottom - top, right - left, 2) float32, x and y in surface pixels.
        """
        step = 16 if self.number == 0 else 8 if self.surface.radius > 24 else 4
        left, top, right, bottom = box
        width, height = right - left, bottom - top
        columns, rows = -(-width // step) + 2, -(-height // step) + 2
        path, k = self.path, t + 1
        # cv2.resize aligns pixel borders, so the sample of coarse cell i is at (i + 0.5) * step - 0.5.
        # One more cell on each side keeps the interpolation away from its clamped rim.
        xs = (np.arange(columns) - 0.5) * step - 0.5 + left - path.centers[k, 0]
        ys = (np.arange(rows) - 0.5) * step - 0.5 + top - path.centers[k, 1]
        cosine, sine = np.cos(path.angles[k]), np.sin(path.angles[k])
        points = np.empty((rows, columns, 2))
        points[..., 0] = (cosine * xs + sine * ys[:, None]) / path.scales[k, 0]
        points[..., 1] = (-sine * xs + cosine * ys[:, None]) / path.scales[k, 1]
        points = (self.deformation(points, float(t)) + self.surface.middle).astype(np.float32)
        fine = cv2.resize(points, (columns * step, rows * step), interpolation=cv2.INTER_LINEAR)
        return np.ascontiguousarray(fine[step : step + height, step : step + width])


# None means that the map is in one array; OpenCV's stubs lack it, and an empty array hangs OpenCV 5.0.
_NO_MAP: Any = None


def sample(surface: Array, points: Array, nearest: bool = False, border: int = cv2.BORDER_CONSTANT) -> Array:
    """Read a surface at the points that a frame's pixels show.

    Args:
        surface: (h, w) or (h, w, C) uint8 or uint16.
        points: (H, W, 2) float32, x and y on the surface, from `Layer.map`.
        nearest: take the nearest value, as for region numbers, instead of blending four.
        border: OpenCV's border mode for points outside the surface; by default the value there is 0.

    Returns:
        (H, W) or (H, W, C), of the surface's dtype.
    """
    method = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return np.asarray(cv2.remap(surface, points, _NO_MAP, method, borderMode=border))
