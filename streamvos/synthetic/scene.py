"""Chooses the layers of a synthetic video: what they show, where they are and how they move.

A scene is a stack of layers, each a surface (streamvos/synthetic/surfaces.py) with a motion
(streamvos/synthetic/motion.py): a background under a moving camera, labelled objects, unlabelled look-alikes
of them, and occluders in front.

    >>> layers = Scene(np.random.default_rng(0), SyntheticOptions(size=(96, 128), objects=3)).build()
    >>> layers[0].number
    0
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np

from streamvos.synthetic.motion import (
    STIFF,
    Layer,
    Trajectory,
    inverse_keep_inside,
    keep_inside,
    random_deformation,
    sample,
    sinusoids,
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


class Scene:
    """Chooses the layers of a video; the options are validated."""

    def __init__(self, rng: np.random.Generator, options: SyntheticOptions) -> None:
        self.rng, self.options = rng, options
        self.height, self.width = int(options.size[0]), int(options.size[1])
        self.size = self.height, self.width
        self.extent = np.array([self.width, self.height], np.float64)
        self.side = float(min(self.size))
        self.half = self.extent / 2
        # One frame before and one after the video, so that the speed is known at its ends.
        self.times = np.arange(-1, options.length + 1, dtype=np.float64)
        # Speeds grow with the frame, up to 480 lines.
        self.pace = min(self.side, 480.0) * options.motion
        self.drifts: dict[int, Array] = {}
        self.pan = np.zeros((len(self.times), 2))
        self.order = rng.permutation(options.objects + options.distractors)
        # The background's photograph and then those for objects; empty where everything is drawn.
        self.stills: list[str] = []

    def build(self) -> list[Layer]:
        """The layers from back to front; the background, number 0, is the first."""
        options, rng = self.options, self.rng
        if options.stills is not None:
            names = list_stills(Path(options.stills))
            picks = rng.choice(len(names), size=3 + min(options.objects, 8))
            self.stills = [names[int(k)] for k in picks]
        background = self._background()
        middle = self._objects(background.surface)
        for k in range(options.distractors):
            surface = look_alike(rng, middle[k % options.objects].surface)
            middle.append(self._wanderer(len(middle) + 1, surface))
        occluders = [self._occluder(len(middle) + 1 + k) for k in range(options.occluders)]
        shuffled = [middle[int(k)] for k in rng.permutation(len(middle))]
        layers = self._settle([background, *shuffled, *occluders])
        layers = [self._excursion(layer) if self._is_object(layer) else layer for layer in layers]
        offsets = np.cumsum([0, *(layer.surface.region_count for layer in layers[:-1])])
        return [replace(one, region_offset=int(offset)) for one, offset in zip(layers, offsets, strict=True)]

    def _is_object(self, layer: Layer) -> bool:
        return 1 <= layer.number <= self.options.objects

    def _is_occluder(self, layer: Layer) -> bool:
        return layer.number > self.options.objects + self.options.distractors

    def _still(self, place: int) -> Still | None:
        return read_still(Path(str(self.options.stills)), self.stills[place]) if self.stills else None

    def _background(self) -> Layer:
        """The farthest layer, moved by the camera: pan, shake, zoom, roll, and a slow bending for depth."""
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
        size = ceil(2 * (far_y + spare)), ceil(2 * (far_x + spare))
        still = self._still(0)
        if still is None:
            surface = drawn_background(rng, size)
        else:
            # Mirrored, so that an object cut from the same photograph differs from its source.
            mirror = self.options.same_still > 0 or bool(rng.random() < 0.5)
            surface = photograph_background(rng, still, size, mirror)
        return Layer(0, surface, Trajectory(centers, angles, np.stack([zoom, zoom], 1)), deformation)

    def _objects(self, background: Surface) -> list[Layer]:
        rng, layers = self.rng, []
        total = self.options.objects + 0.5 * self.options.distractors
        room = float(np.sqrt(self.height * self.width / total))
        smallest, largest = min(0.17 * self.side, 0.6 * room), min(0.72 * self.side, 1.15 * room)
        # Enough pixels to be visible in frame 0, with a reserve for overlaps.
        enough = 2.5 * self._least_area()
        for k in range(self.options.objects):
            diameter = max(6.0, float(np.exp(rng.uniform(np.log(smallest), np.log(largest)))))
            still = None
            if self.stills:
                other = 1 + k % (len(self.stills) - 1)
                still = self._still(0 if rng.random() < self.options.same_still else other)
            surface = object_surface(rng, still, diameter)
            if surface.area < enough:
                surface = object_surface(rng, still, largest)
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
            drift = drift + self.pan  # it stands on the ground; otherwise the camera follows it
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
        """A layer that crosses the frame to and fro on a straight line, from outside to outside."""
        rng, motion, times = self.rng, self.options.motion, self.times
        surface = occluder_surface(rng, self._still(2), self.side * float(rng.uniform(0.2, 0.55)), self.size)
        away = rng.uniform(-0.3, 0.3, 2) * self.extent
        reach = 0.5 * max(self.size) + surface.radius + float(np.abs(away).max())
        tilt = rng.normal(0, 0.25) + (np.pi if rng.random() < 0.5 else 0)
        start = rng.uniform(0.3, 0.9) if rng.random() < 0.7 else rng.uniform(0.9, 2.2)
        phase = start + times * self.pace * float(rng.uniform(0.008, 0.03)) / reach
        direction = np.array([np.cos(tilt), np.sin(tilt)])
        centers = self.half + away - (reach * np.cos(phase))[:, None] * direction
        angles = rng.normal(0, 0.1) + sinusoids(rng, times, 0.01 * motion, limit=0.2)
        scales = np.exp(sinusoids(rng, times, 0.004 * motion, limit=0.15))
        return Layer(number, surface, Trajectory(centers, angles, np.stack([scales, scales], 1)), STIFF)

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
        """Where the middle of an object or distractor is in frame 0, (2,): near that of its own cell."""
        count = len(self.order)
        place = self._cells(count)[0][self.order[number - 1]]
        place = place + self.rng.uniform(-0.3, 0.3, 2) * self.extent / np.sqrt(count)
        margin = 0.12 * self.side
        return np.clip(place, margin, self.extent - margin)

    def _wander(self, number: int, start: Array) -> Array:
        """The path (T + 2, 2) of an object or distractor that stands at `start` in frame 0."""
        free = inverse_keep_inside(start, self.half) + self.drifts[number] / self.half
        return keep_inside(free, self.half)

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
        """Move hidden objects until frame 0 shows every one of them."""
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
                    layers[place] = _with_centers(layer, self._wander(layer.number, start))
            if attempt >= 2:
                behind = [layer for layer in layers if layer.number not in hidden]
                layers = self._occluders_aside(behind + [layer for layer in layers if layer.number in hidden])
        return self._settle_on_grid(self._occluders_aside(layers))

    def _occluders_aside(self, layers: list[Layer]) -> list[Layer]:
        """The layers with the occluders in front, shifted to begin outside the frame."""
        ordered = [layer for layer in layers if not self._is_occluder(layer)]
        for layer in filter(self._is_occluder, layers):
            centers = layer.path.centers
            away = centers[1] - self.half
            axis = int(np.argmax(np.abs(away)))
            gone = self.half[axis] + layer.reach() * layer.path.scales[1].max() + 2
            shift = np.zeros(2)
            shift[axis] = np.copysign(max(0.0, gone - abs(away[axis])), away[axis])
            ordered.append(_with_centers(layer, centers + shift))
        return ordered

    def _settle_on_grid(self, layers: list[Layer]) -> list[Layer]:
        """The last resort in crowded or tiny frames: a disc per object, each in a cell of its own."""
        middles, cell = self._cells(self.options.objects)
        side = max(5, int(cell.min()))
        discs = []
        for layer in filter(self._is_object, layers):
            surface = drawn_surface(self.rng, side, ellipse_outline(side))
            layer = replace(layer, surface=surface, deformation=STIFF)
            discs.append(_with_centers(layer, self._wander(layer.number, middles[layer.number - 1])))
        others = [layer for layer in layers if not self._is_object(layer)]
        behind = len(others) - self.options.occluders  # the occluders are last
        return others[:behind] + discs + others[behind:]

    def _excursion(self, layer: Layer) -> Layer:
        """Perhaps let an object leave through the nearest side and come back the same way."""
        length = self.options.length
        if self.rng.random() >= self.options.leave or length < 24 or self.options.motion == 0:
            return layer  # in shorter videos there is no time to leave and return
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
        return _with_centers(layer, centers + share[:, None] * (target - centers))


def _with_centers(layer: Layer, centers: Array) -> Layer:
    return replace(layer, path=replace(layer.path, centers=centers))
