"""The layers of a synthetic video: what they show, where they are and how they move.

A scene is a stack of layers, each a surface (streamvos/synthetic/surfaces.py) with a motion
(streamvos/synthetic/motion.py): a background under a moving camera, labelled objects, look-alikes of them
that are not labelled, and occluders in front. This file chooses them; streamvos/synthetic/synthetic.py
renders them.

    >>> layers = Scene(np.random.default_rng(0), SyntheticOptions(size=(96, 128), objects=3)).build()
    >>> [layer.number for layer in layers][0]
    0
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import numpy as np

from streamvos.synthetic.motion import (
    STIFF,
    Deformation,
    Trajectory,
    inverse_keep_inside,
    keep_inside,
    random_deformation,
    sample,
    sinusoids,
    surface_map,
)
from streamvos.synthetic.options import SyntheticOptions, list_stills
from streamvos.synthetic.surfaces import (
    Still,
    Surface,
    camouflage,
    drawn_background,
    drawn_surface,
    look_alike,
    object_surface,
    occluder_surface,
    photograph_background,
    read_still,
)
from streamvos.synthetic.textures import ellipse_outline

Array = np.ndarray
Box = tuple[int, int, int, int]

SHORTEST_EXCURSION = 24
"""Shorter videos leave no time for an object to leave the frame and return."""


@dataclass(frozen=True)
class Layer:
    """A surface in motion.

    Attributes:
        number: its value in `SyntheticFrame.layer`.
        surface: texture, outline and regions.
        path: trajectory.
        deformation: bending.
        region_offset: added to the surface's region numbers, so that no two layers share one.
    """

    number: int
    surface: Surface
    path: Trajectory
    deformation: Deformation
    region_offset: int = 0

    def box(self, t: int, size: tuple[int, int]) -> Box | None:
        """Left, top, right, bottom of the area where it may be visible at frame `t`; None if nowhere."""
        center = self.path.centers[t + 1]
        reach = self.reach() * float(self.path.scales[t + 1].max()) + 1
        left, top = max(0, int(center[0] - reach)), max(0, int(center[1] - reach))
        right, bottom = min(size[1], ceil(center[0] + reach) + 1), min(size[0], ceil(center[1] + reach) + 1)
        return (left, top, right, bottom) if left < right and top < bottom else None

    def reach(self) -> float:
        """Largest distance from its middle, in surface pixels, of any of its points."""
        radius = self.surface.radius
        return radius + self.deformation.reach(radius)

    def map(self, t: int, box: Box) -> Array:
        """Surface coordinates of the box's pixels, (h, w, 2) float32."""
        step = 16 if self.number == 0 else 8 if self.surface.radius > 24 else 4
        return surface_map(self.path, self.deformation, self.surface.anchor, t, box, step)


class Scene:
    """Chooses the layers of a video.

    Args:
        rng: source of randomness.
        options: validated options.
    """

    def __init__(self, rng: np.random.Generator, options: SyntheticOptions) -> None:
        self.rng, self.options = rng, options
        self.height, self.width = int(options.size[0]), int(options.size[1])
        self.size = self.height, self.width
        self.extent = np.array([self.width, self.height], np.float64)
        self.side = float(min(self.size))
        # One frame before and one after the video, so that the speed is known at its ends.
        self.times = np.arange(-1, options.length + 1, dtype=np.float64)
        # Speeds follow the size of the frame, up to that of the usual video.
        self.pace = min(self.side, 480.0) * options.motion
        self.drifts: dict[int, Array] = {}
        self.pan = np.zeros((len(self.times), 2))
        self.order = rng.permutation(options.objects + options.distractors)
        # Names of the background's photograph and then of those for objects; empty where all is drawn.
        self.stills: list[str] = []

    def build(self) -> list[Layer]:
        """The layers from back to front; the background, number 0, is the first."""
        options, rng = self.options, self.rng
        if options.stills is not None:
            names = list_stills(Path(options.stills))
            picks = rng.choice(len(names), size=3 + min(options.objects, 8))
            self.stills = [names[int(k)] for k in picks]
        background = self._background()
        objects = self._objects(background.surface)
        distractors = []
        for k in range(options.distractors):
            number = 1 + options.objects + k
            surface = look_alike(rng, objects[k % len(objects)].surface)
            distractors.append(self._wanderer(number, surface))
        first = 1 + options.objects + options.distractors
        occluders = [self._occluder(first + k) for k in range(options.occluders)]
        middle = [*objects, *distractors]
        middle = [middle[int(k)] for k in rng.permutation(len(middle))]
        layers = self._settle([background, *middle, *occluders])
        layers = [self._excursion(layer) if self._is_object(layer) else layer for layer in layers]
        offsets = np.cumsum([0, *(layer.surface.region_count for layer in layers)])[:-1]
        numbered = zip(layers, offsets, strict=True)
        return [replace(layer, region_offset=int(offset)) for layer, offset in numbered]

    def _is_object(self, layer: Layer) -> bool:
        return 1 <= layer.number <= self.options.objects

    def _is_occluder(self, layer: Layer) -> bool:
        return layer.number > self.options.objects + self.options.distractors

    def _still(self, place: int) -> Still:
        """A photograph, read when it is needed."""
        assert self.options.stills is not None
        return read_still(Path(self.options.stills), self.stills[place])

    # What stands in the scene

    def _background(self) -> Layer:
        """The farthest layer, moved by the camera: pan, shake, zoom, roll, and a slow bending like depth."""
        rng, motion, times = self.rng, self.options.motion, self.times
        speed = self.pace * float(np.exp(rng.uniform(np.log(0.0005), np.log(0.014))))
        limit = 0.3 * self.side
        pan = np.stack([sinusoids(rng, times, speed * share, limit=limit) for share in (1.0, 0.5)], 1)
        if rng.random() < 0.4:
            shake = self.pace * rng.uniform(0.0005, 0.004)
            pan += np.stack([sinusoids(rng, times, shake, periods=(4, 14)) for _ in range(2)], 1)
        self.pan = pan
        angles = sinusoids(rng, times, 0.003 * motion * rng.random(), limit=0.12)
        zoom = np.exp(sinusoids(rng, times, 0.004 * motion * rng.random(), limit=0.12))
        centers = pan + (self.extent - 1) / 2
        deformation = STIFF
        if self.options.deformation > 0:
            strength = float(rng.uniform(0.0, 0.1)) * self.options.deformation
            deformation = random_deformation(rng, 0.8 * max(self.size), strength, motion)
        # How much of the background is ever seen, on one side of its middle.
        corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * self.extent - centers[:, None]
        cosine, sine = (np.cos(angles) / zoom)[:, None], (np.sin(angles) / zoom)[:, None]
        far_x = np.abs(cosine * corners[..., 0] + sine * corners[..., 1]).max()
        far_y = np.abs(-sine * corners[..., 0] + cosine * corners[..., 1]).max()
        spare = deformation.reach(0.0) + 2
        height, width = ceil(2 * (far_y + spare)), ceil(2 * (far_x + spare))
        if self.stills:
            # Mirrored, so that an object cut from the same photograph differs from what it was cut from.
            mirror = self.options.same_still > 0 or bool(rng.random() < 0.5)
            surface = photograph_background(rng, self._still(0), height, width, mirror)
        else:
            surface = drawn_background(rng, height, width)
        return Layer(0, surface, Trajectory(centers, angles, np.stack([zoom, zoom], 1)), deformation)

    def _objects(self, background: Surface) -> list[Layer]:
        rng, layers = self.rng, []
        total = self.options.objects + 0.5 * self.options.distractors
        room = float(np.sqrt(self.height * self.width / total))
        smallest, largest = min(0.17 * self.side, 0.6 * room), min(0.72 * self.side, 1.15 * room)
        # Enough pixels for the promise about frame 0, with a reserve for overlaps.
        enough = 2.5 * self._least_area()
        for k in range(self.options.objects):
            diameter = max(6.0, float(np.exp(rng.uniform(np.log(smallest), np.log(largest)))))
            own: list[Still] = []
            if self.stills:
                other = 1 + k % (len(self.stills) - 1)
                own = [self._still(0 if rng.random() < self.options.same_still else other)]
            surface = object_surface(rng, own, diameter)
            if surface.area < enough:
                surface = object_surface(rng, own, largest)
            if self.stills and rng.random() < 0.25:
                surface = camouflage(rng, surface, background)
            layers.append(self._wanderer(k + 1, surface))
        return layers

    def _wanderer(self, number: int, surface: Surface) -> Layer:
        """An object or distractor that wanders about and bends."""
        rng, motion, times = self.rng, self.options.motion, self.times
        speed = self.pace * float(np.exp(rng.uniform(np.log(0.002), np.log(0.024))))
        heading = rng.dirichlet([2.0, 1.2])
        drift = np.stack([sinusoids(rng, times, speed * np.sqrt(share)) for share in heading], 1)
        if rng.random() < 0.5:
            drift = drift + self.pan  # it stands on the ground instead of being followed by the camera
        self.drifts[number] = drift
        angles = sinusoids(rng, times, 0.02 * motion * rng.random(), limit=rng.uniform(0.05, 0.8))
        if rng.random() < 0.08:
            angles = angles + times * rng.uniform(-0.08, 0.08) * motion
        scales = sinusoids(rng, times, 0.012 * motion * rng.random(), limit=rng.uniform(0.05, 0.32))
        strength = self.options.deformation * float(rng.uniform(0.05, 0.3))
        turning = sinusoids(rng, times, 0.04 * motion * strength, limit=0.6 * strength)
        scales = np.exp(np.stack([scales + turning, scales - 0.3 * turning], 1))
        deformation = STIFF
        if strength > 0:
            joints = int(rng.integers(0, 3))
            deformation = random_deformation(rng, 2 * surface.radius, strength, motion, joints)
        path = Trajectory(self._wander(number, self._start(number)), angles, scales)
        return Layer(number, surface, path, deformation)

    def _occluder(self, number: int) -> Layer:
        """Something that moves to and fro across the frame on a straight line, from outside to outside."""
        rng, motion, times = self.rng, self.options.motion, self.times
        stills = [self._still(2)] if self.stills else []
        surface = occluder_surface(rng, stills, self.side * float(rng.uniform(0.2, 0.55)), self.size)
        away = rng.uniform(-0.3, 0.3, 2) * self.extent
        reach = 0.5 * max(self.size) + surface.radius + float(np.abs(away).max())
        tilt = rng.normal(0, 0.25) + (np.pi if rng.random() < 0.5 else 0)
        start = rng.uniform(0.3, 0.9) if rng.random() < 0.7 else rng.uniform(0.9, 2.2)
        phase = start + times * self.pace * float(rng.uniform(0.008, 0.03)) / reach
        direction = np.array([np.cos(tilt), np.sin(tilt)])
        centers = self.extent / 2 + away - (reach * np.cos(phase))[:, None] * direction
        angles = rng.normal(0, 0.1) + sinusoids(rng, times, 0.01 * motion, limit=0.2)
        scales = np.exp(sinusoids(rng, times, 0.004 * motion, limit=0.15))
        return Layer(number, surface, Trajectory(centers, angles, np.stack([scales, scales], 1)), STIFF)

    # Where it stands

    def _least_area(self) -> float:
        """Visible pixels that every object must have in frame 0."""
        return min(0.003, 0.2 / self.options.objects) * self.height * self.width

    def _cells(self, count: int) -> tuple[Array, Array]:
        """Middles (count, 2) of a grid of cells over the frame, and the size (2,) of a cell; x, y."""
        rows = int(np.clip(round(np.sqrt(count * self.height / self.width)), 1, count))
        columns = ceil(count / rows)
        rows = ceil(count / columns)
        ys, xs = np.meshgrid(np.arange(rows) + 0.5, np.arange(columns) + 0.5, indexing="ij")
        cell = self.extent / [columns, rows]
        return np.stack([xs.ravel(), ys.ravel()], 1)[:count] * cell, cell

    def _start(self, number: int) -> Array:
        """A place (2,) for the middle of an object or distractor in frame 0: its own cell, jittered."""
        count = len(self.order)
        place = self._cells(count)[0][self.order[number - 1]]
        place = place + self.rng.uniform(-0.3, 0.3, 2) * self.extent / np.sqrt(count)
        margin = 0.12 * self.side
        return np.clip(place, margin, self.extent - margin)

    def _wander(self, number: int, start: Array) -> Array:
        """The path (T + 2, 2) of an object or distractor that stands at `start` in frame 0."""
        free = inverse_keep_inside(start, self.size) + self.drifts[number] / (self.extent / 2)
        return keep_inside(free, self.size)

    def _areas(self, layers: list[Layer]) -> Array:
        """Visible pixels per layer number in frame 0."""
        seen = np.zeros(self.size, np.uint8)
        for layer in layers[1:]:
            box = layer.box(0, self.size)
            if box is not None:
                alpha = np.ascontiguousarray(layer.surface.texture[..., 3])
                inside = sample(alpha, layer.map(0, box)) >= 128
                seen[box[1] : box[3], box[0] : box[2]][inside] = layer.number
        return np.bincount(seen.ravel(), minlength=len(layers))

    def _settle(self, layers: list[Layer]) -> list[Layer]:
        """Move what is hidden or outside until frame 0 shows every labelled object."""
        least = self._least_area()
        for attempt in range(8):
            areas = self._areas(layers)
            hidden = {k for k in range(1, self.options.objects + 1) if areas[k] < least}
            if not hidden:
                return layers
            for place, layer in enumerate(layers):
                if layer.number in hidden:
                    start = self._start(layer.number)
                    if attempt > 3:
                        start = self.rng.uniform(0.15, 0.85, 2) * self.extent
                    path = replace(layer.path, centers=self._wander(layer.number, start))
                    layers[place] = replace(layer, path=path)
            if attempt >= 2:
                behind = [layer for layer in layers if layer.number not in hidden]
                layers = self._occluders_aside(behind + [layer for layer in layers if layer.number in hidden])
        return self._settle_on_grid(self._occluders_aside(layers))

    def _occluders_aside(self, layers: list[Layer]) -> list[Layer]:
        """The occluders in front, and shifted to begin outside the frame."""
        ordered = [layer for layer in layers if not self._is_occluder(layer)]
        for layer in (layer for layer in layers if self._is_occluder(layer)):
            centers = layer.path.centers
            away = centers[1] - self.extent / 2
            axis = int(np.argmax(np.abs(away)))
            gone = 0.5 * self.extent[axis] + layer.reach() * layer.path.scales[1].max() + 2
            shift = np.zeros(2)
            shift[axis] = np.copysign(max(0.0, gone - abs(away[axis])), away[axis])
            ordered.append(replace(layer, path=replace(layer.path, centers=centers + shift)))
        return ordered

    def _settle_on_grid(self, layers: list[Layer]) -> list[Layer]:
        """The last resort in crowded or tiny frames: a disc per object, each in a cell of its own."""
        middles, cell = self._cells(self.options.objects)
        side = max(5, int(cell.min()))
        objects = []
        for layer in (layer for layer in layers if self._is_object(layer)):
            surface = drawn_surface(self.rng, side, ellipse_outline(side))
            path = replace(layer.path, centers=self._wander(layer.number, middles[layer.number - 1]))
            objects.append(replace(layer, surface=surface, path=path, deformation=STIFF))
        others = [layer for layer in layers if not self._is_object(layer)]
        occluders = [layer for layer in others if self._is_occluder(layer)]
        return [layer for layer in others if not self._is_occluder(layer)] + objects + occluders

    def _excursion(self, layer: Layer) -> Layer:
        """Perhaps let an object leave through the nearest side and come back the same way."""
        length = self.options.length
        if self.rng.random() >= self.options.leave or length < SHORTEST_EXCURSION or self.options.motion == 0:
            return layer
        ramp = max(3.0, min(0.3 * length, 50 / self.options.motion))
        away = min(self.rng.uniform(0.08, 0.3) * length, length - 3 - 2 * ramp)
        begin = self.rng.uniform(1, length - 1 - 2 * ramp - away)
        rise = (self.times - begin) / ramp
        fall = (begin + 2 * ramp + away - self.times) / ramp
        share = np.clip(np.minimum(rise, fall), 0, 1)
        share = share * share * (3 - 2 * share)
        centers = layer.path.centers
        reach = layer.reach() * float(layer.path.scales.max()) + 2
        x, y = centers[int(np.argmax(share))]
        side = int(np.argmin([x, self.width - x, y, self.height - y]))
        target = centers.copy()
        target[:, side // 2] = (-reach, self.width + reach, -reach, self.height + reach)[side]
        moved = centers + share[:, None] * (target - centers)
        return replace(layer, path=replace(layer.path, centers=moved))
