"""Videos of moving objects with exact ground truth, made on the spot.

They serve the demo (no download needed), the tests (the truth is known) and training from scratch
(every pixel knows which point of which surface it shows). A video is a stack of layers: a background
under a moving camera, labelled objects, look-alikes of them that are not labelled, and occluders in
front. Each layer is a surface (streamvos/data/surfaces.py) with a motion (streamvos/data/motion.py).

    >>> video = SyntheticVideo(seed=0, options=SyntheticOptions(size=(240, 320), length=8))
    >>> len(video), video[0].image.shape, sorted(set(video[0].label_map.ravel().tolist()))
    (8, (240, 320, 3), [0, 1, 2])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, hypot, isfinite
from pathlib import Path
from typing import overload

import cv2
import numpy as np

from streamvos.data.motion import (
    STIFF,
    Deformation,
    Trajectory,
    inverse_keep_inside,
    keep_inside,
    random_deformation,
    sinusoids,
    surface_map,
)
from streamvos.data.surfaces import (
    Still,
    Surface,
    drawn_background,
    drawn_surface,
    list_stills,
    look_alike,
    object_surface,
    occluder_surface,
    photograph_background,
    read_still,
)
from streamvos.data.textures import ellipse_outline
from streamvos.types import MAX_OBJECT_ID, InputError

Array = np.ndarray

SMALLEST_SIDE = 16
"""Frames smaller than this on a side are refused: nothing can be told apart in them."""

PIXELS_PER_OBJECT = 36
"""A frame must have this many pixels per labelled object, so that each can be seen in frame 0."""


@dataclass(frozen=True)
class SyntheticOptions:
    """What a synthetic video holds.

    Attributes:
        size: (H, W) in pixels, each at least 16.
        length: frames.
        objects: labelled objects, ids 1..objects; at most 254.
        distractors: look-alikes of the objects, not labelled.
        occluders: things that pass in front of the objects, not labelled.
        motion: scale of all speeds; 0 is a still.
        deformation: strength of bending and articulation; 0 is rigid, 1 ordinary, at most 2.
        leave: probability that an object leaves the frame once and returns (videos of 12 frames on).
        blur: shutter time as a share of the frame time, which smears along the motion; 0 is none.
        noise: sensor noise; 1 is about 5 gray levels; 0 is none.
        exposure: drift of brightness, contrast and white balance; 1 is about +-20 %; 0 is none.
        same_still: probability that an object is cut from the background's own photograph.
        stills: folder with images/NAME.jpg and regions/NAME.png; None draws everything.
    """

    size: tuple[int, int] = (480, 854)
    length: int = 60
    objects: int = 2
    distractors: int = 1
    occluders: int = 1
    motion: float = 1.0
    deformation: float = 1.0
    leave: float = 0.25
    blur: float = 0.4
    noise: float = 0.5
    exposure: float = 0.5
    same_still: float = 0.3
    stills: Path | None = None


@dataclass(frozen=True)
class SyntheticFrame:
    """One frame and everything that is known about it.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        label_map: (H, W) uint8, ids of the visible objects; 0 is background, distractors, occluders.
        layer: (H, W) uint8, the visible layer: 0 is the background, object k is k, others follow.
        region: (H, W) int32, region of the surface, carried by its motion; no two layers share one.
        coordinates: (H, W, 2) float32, x and y of the surface point that is seen, in pixels of the
            layer's own surface. Pixels of any two frames with the same layer and the same coordinates
            show the same point.
    """

    image: Array
    label_map: Array
    layer: Array
    region: Array
    coordinates: Array


@dataclass(frozen=True)
class _Layer:
    """A surface in motion, with the numbers that it has in the frames."""

    number: int
    surface: Surface
    path: Trajectory
    deformation: Deformation
    region_offset: int = 0

    def box(self, t: int, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
        """Left, top, right, bottom of where it can be seen at frame `t`; None if nowhere."""
        center, _, scale = self.path.at(t)
        radius = self.surface.radius
        reach = (radius + self.deformation.reach(radius)) * scale + 1
        left, top = max(0, int(center[0] - reach)), max(0, int(center[1] - reach))
        right, bottom = min(size[1], ceil(center[0] + reach) + 1), min(size[0], ceil(center[1] + reach) + 1)
        return (left, top, right, bottom) if left < right and top < bottom else None

    def map(self, t: int, box: tuple[int, int, int, int]) -> Array:
        """Surface coordinates of the box's pixels, (h, w, 2) float32."""
        step = 16 if self.number == 0 else 8 if self.surface.radius > 24 else 4
        return surface_map(self.path, self.deformation, self.surface.anchor, t, box, step)


def _validate(seed: int, options: SyntheticOptions) -> None:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed: expected an integer >= 0, got {seed!r}")
    size = options.size
    if not (isinstance(size, tuple) and len(size) == 2 and all(isinstance(n, (int, np.integer)) for n in size)):
        raise InputError(f"size: expected a pair of integers (H, W), got {size!r}")
    if min(size) < SMALLEST_SIDE or max(size) > 16384:
        raise InputError(f"size: expected {SMALLEST_SIDE}..16384 pixels on each side, got {size!r}")
    for name, least in (("length", 1), ("objects", 1), ("distractors", 0), ("occluders", 0)):
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise InputError(f"{name}: expected an integer >= {least}, got {value!r}")
    if options.objects > MAX_OBJECT_ID or options.objects + options.distractors + options.occluders > 255:
        raise InputError(
            f"expected at most {MAX_OBJECT_ID} objects and 255 layers, got {options.objects} objects, "
            f"{options.distractors} distractors and {options.occluders} occluders"
        )
    if size[0] * size[1] < PIXELS_PER_OBJECT * options.objects:
        raise InputError(
            f"{options.objects} objects do not fit into {size[0]}x{size[1]}; "
            f"use a larger size or at most {size[0] * size[1] // PIXELS_PER_OBJECT} objects"
        )
    limits = {"motion": 20, "deformation": 2, "leave": 1, "blur": 4, "noise": 10, "exposure": 2, "same_still": 1}
    for name, largest in limits.items():
        value = getattr(options, name)
        if not isinstance(value, (int, float, np.number)) or not isfinite(value) or not 0 <= value <= largest:
            raise InputError(f"{name}: expected a number in 0..{largest}, got {value!r}")
    if options.stills is not None:
        list_stills(Path(options.stills))


class SyntheticVideo(Sequence[SyntheticFrame]):
    """A video that is rendered frame by frame when asked, in any order.

    The same seed and options give the same video, whatever was asked before.

    Args:
        seed: integer >= 0.
        options: what it holds.

    Raises:
        InputError: an option is out of range, or the stills cannot be used.
    """

    def __init__(self, seed: int, options: SyntheticOptions | None = None) -> None:
        options = SyntheticOptions() if options is None else options
        _validate(seed, options)
        self.seed = int(seed)
        self.options = options
        self._size = int(options.size[0]), int(options.size[1])
        self._times = np.arange(-1, options.length + 1, dtype=np.float64)
        rng = np.random.default_rng(self.seed)
        scene = _Scene(rng, options, self._size, self._times)
        layers = scene.build()
        offset, numbered = 0, []
        for layer in sorted(layers, key=lambda layer: layer.number):
            numbered.append(replace(layer, region_offset=offset))
            offset += layer.surface.region_count
        by_number = {layer.number: layer for layer in numbered}
        self._layers = [by_number[layer.number] for layer in layers]
        labels = np.arange(len(layers), dtype=np.uint8)
        labels[options.objects + 1 :] = 0
        self._labels = labels
        self._exposure = _exposure_tables(rng, options, self._times[1:-1])
        self._noise_level = options.noise * rng.uniform(0.4, 1.6) * 5.0
        self._noise_grain = bool(rng.random() < 0.5)

    def __len__(self) -> int:
        return self.options.length

    @overload
    def __getitem__(self, index: int) -> SyntheticFrame: ...

    @overload
    def __getitem__(self, index: slice) -> list[SyntheticFrame]: ...

    def __getitem__(self, index: int | slice) -> SyntheticFrame | list[SyntheticFrame]:
        if isinstance(index, slice):
            return [self[t] for t in range(*index.indices(len(self)))]
        t = index + len(self) if index < 0 else index
        if not 0 <= t < len(self):
            raise IndexError(f"frame {index} of a video of {len(self)} frames")
        return self._render(int(t))

    def _render(self, t: int) -> SyntheticFrame:
        height, width = self._size
        background = self._layers[0]
        coordinates = background.map(t, (0, 0, width, height))
        picture = cv2.remap(
            background.surface.texture, coordinates, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        region = cv2.remap(
            background.surface.regions, coordinates, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101
        ).astype(np.int32)
        picture = self._smear(picture, background, t, cv2.BORDER_REFLECT_101)
        layer_map = np.zeros((height, width), np.uint8)
        for layer in self._layers[1:]:
            box = layer.box(t, self._size)
            if box is None:
                continue
            left, top, right, bottom = box
            window = np.s_[top:bottom, left:right]
            points = layer.map(t, box)
            patch = cv2.remap(layer.surface.texture, points, None, cv2.INTER_LINEAR)
            inside = patch[..., 3] >= 128
            surface_regions = cv2.remap(
                layer.surface.regions, points, None, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
            )
            layer_map[window][inside] = layer.number
            region[window][inside] = surface_regions[inside].astype(np.int32) + layer.region_offset
            np.copyto(coordinates[window], points, where=inside[..., None])
            patch = self._smear(patch, layer, t, cv2.BORDER_CONSTANT)
            rest = cv2.bitwise_not(cv2.extractChannel(patch, 3))
            under = cv2.multiply(picture[window], cv2.merge([rest, rest, rest, rest]), scale=1 / 255)
            picture[window] = cv2.add(under, patch)
        image = self._sense(cv2.cvtColor(picture, cv2.COLOR_RGBA2RGB), t)
        return SyntheticFrame(image, self._labels[layer_map], layer_map, region, coordinates)

    def _smear(self, patch: Array, layer: _Layer, t: int, border: int) -> Array:
        """Motion blur: the average along the way that the layer goes while the shutter is open."""
        way = layer.path.velocity(t) * self.options.blur
        length = hypot(*way)
        if length < 1.2:
            return patch
        way = way * min(1.0, 40 / length)
        half = int(ceil(np.abs(way).max() / 2))
        kernel = np.zeros((2 * half + 1, 2 * half + 1), np.float32)
        for share in np.linspace(-0.5, 0.5, 4 * half + 1):
            x, y = way * share + half
            x0, y0 = min(int(x), 2 * half), min(int(y), 2 * half)
            for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
                weight = (1 - abs(x - x0 - dx)) * (1 - abs(y - y0 - dy))
                if weight > 0:
                    kernel[y0 + dy, x0 + dx] += weight
        return cv2.filter2D(patch, -1, kernel / kernel.sum(), borderType=border)

    def _sense(self, image: Array, t: int) -> Array:
        """What the camera's sensor makes of the light: exposure, then noise."""
        if self._exposure is not None:
            image = cv2.LUT(image, self._exposure[t])
        if self._noise_level > 0:
            height, width = self._size
            bank = _noise_bank(self._noise_grain)
            side = bank.shape[0]
            top, left = np.random.default_rng((self.seed, t)).integers(0, side, 2)
            rows, columns = (np.arange(height) + top) % side, (np.arange(width) + left) % side
            noise = bank[rows[:, None], columns] if max(height, width) > side // 2 else None
            if noise is None:
                top, left = top // 2, left // 2
                noise = bank[top : top + height, left : left + width]
            image = cv2.addWeighted(image, 1.0, noise, self._noise_level / 32, 0, dtype=cv2.CV_8U)
        return image


@lru_cache(maxsize=2)
def _noise_bank(grain: bool) -> Array:
    """(768, 768, 3) int16 normal noise with standard deviation 32; `grain` makes it coarser than a pixel."""
    noise = np.random.default_rng(20).standard_normal((768, 768, 3), np.float32)
    if grain:
        noise = cv2.GaussianBlur(noise, (0, 0), 0.7, borderType=cv2.BORDER_REFLECT)
        noise /= noise.std()
    return np.round(noise * 32).astype(np.int16)


def _exposure_tables(rng: np.random.Generator, options: SyntheticOptions, times: Array) -> Array | None:
    """(T, 1, 256, 3) uint8 lookup tables, or None when there is no drift."""
    if options.exposure == 0:
        return None
    strength = options.exposure
    gain = np.exp(sinusoids(rng, times, 0.012 * strength, limit=0.25 * strength) + rng.normal(0, 0.08 * strength))
    gamma = np.exp(sinusoids(rng, times, 0.008 * strength, limit=0.18 * strength) + rng.normal(0, 0.08 * strength))
    tint = np.stack([sinusoids(rng, times, 0.004 * strength, limit=0.08 * strength) for _ in range(3)], 1)
    tint = np.exp(tint + rng.normal(0, 0.04 * strength, 3))
    levels = np.linspace(0, 1, 256)
    curves = gain[:, None] * levels ** gamma[:, None]
    tables = np.clip(curves[:, :, None] * tint[:, None] * 255, 0, 255)
    return tables.round().astype(np.uint8)[:, None]


class _Scene:
    """Chooses what is in a video and where; the layers come out in the order from back to front."""

    def __init__(
        self, rng: np.random.Generator, options: SyntheticOptions, size: tuple[int, int], times: Array
    ) -> None:
        self.rng, self.options, self.size, self.times = rng, options, size, times
        self.side = float(min(size))
        # Speeds follow the size of the frame, up to that of the usual video.
        self.pace = min(self.side, 480.0) * options.motion
        self.drifts: dict[int, Array] = {}

    def build(self) -> list[_Layer]:
        options = self.options
        stills = self._choose_stills()
        background = self._background(stills)
        objects = self._objects(stills)
        distractors = []
        for k in range(options.distractors):
            model = objects[k % len(objects)]
            number = 1 + options.objects + k
            distractors.append(self._layer(number, look_alike(self.rng, model.surface), self._start(number)))
        occluders = [self._occluder(1 + options.objects + options.distractors + k, stills) for k in range(options.occluders)]
        middle = [*objects, *distractors]
        middle = [middle[k] for k in self.rng.permutation(len(middle))]
        layers = self._settle([background, *middle, *occluders])
        return [self._excursion(layer) if 1 <= layer.number <= options.objects else layer for layer in layers]

    def _choose_stills(self) -> list[Still]:
        folder = self.options.stills
        if folder is None:
            return []
        names = list_stills(Path(folder))
        picks = self.rng.choice(len(names), size=3 + min(self.options.objects, 8), replace=True)
        return [read_still(Path(folder), names[int(k)]) for k in picks]

    def _objects(self, stills: list[Still]) -> list[_Layer]:
        rng, layers = self.rng, []
        total = self.options.objects + 0.5 * self.options.distractors
        room = float(np.sqrt(self.size[0] * self.size[1] / total))
        smallest, largest = min(0.17 * self.side, 0.6 * room), min(0.72 * self.side, 1.15 * room)
        for k in range(self.options.objects):
            diameter = float(np.exp(rng.uniform(np.log(smallest), np.log(largest))))
            own = stills[1 + k % (len(stills) - 1) :] if stills else []
            if stills and rng.random() < self.options.same_still:
                own = [stills[0], *own]
            surface = object_surface(rng, own, max(diameter, 6.0))
            # Enough pixels for the promise about frame 0, with a reserve for overlaps.
            least = 2.5 * self._least_area()
            if surface.area < least:
                surface = drawn_surface(rng, diameter) if not own else object_surface(rng, own[::-1], largest)
            layers.append(self._layer(k + 1, surface, self._start(k + 1)))
        return layers

    def _least_area(self) -> float:
        """Visible pixels that every object must have in frame 0."""
        return min(0.003, 0.2 / self.options.objects) * self.size[0] * self.size[1]

    def _cells(self, count: int) -> Array:
        """(count, 2) x, y: middles of a grid of cells over the frame."""
        height, width = self.size
        rows = int(np.clip(round(np.sqrt(count * height / width)), 1, count))
        columns = ceil(count / rows)
        rows = ceil(count / columns)
        ys, xs = np.meshgrid((np.arange(rows) + 0.5) / rows, (np.arange(columns) + 0.5) / columns, indexing="ij")
        return np.stack([xs.ravel() * width, ys.ravel() * height], 1)[:count]

    def _start(self, number: int) -> Array:
        """A place for the middle of an object or distractor in frame 0: its own cell, jittered."""
        count = self.options.objects + self.options.distractors
        cells = self._cells(count)
        if not hasattr(self, "_order"):
            self._order = self.rng.permutation(count)
        cell = cells[self._order[number - 1]]
        room = np.array([self.size[1], self.size[0]]) / np.sqrt(count)
        place = cell + self.rng.uniform(-0.3, 0.3, 2) * room
        margin = 0.12 * self.side
        return np.clip(place, margin, np.array([self.size[1], self.size[0]]) - margin)

    def _layer(self, number: int, surface: Surface, start: Array) -> _Layer:
        """An object or distractor that wanders about from `start`."""
        rng, motion = self.rng, self.options.motion
        speed = self.pace * float(np.exp(rng.uniform(np.log(0.002), np.log(0.022))))
        heading = rng.dirichlet([2.0, 1.2])
        drift = np.stack([sinusoids(rng, self.times, speed * np.sqrt(share)) for share in heading], 1)
        drift -= drift[1]
        self.drifts[number] = drift
        angles = sinusoids(rng, self.times, 0.02 * motion * rng.random(), limit=rng.uniform(0.05, 0.8))
        if rng.random() < 0.08:
            angles = angles + self.times * rng.uniform(-0.08, 0.08) * motion
        scales = np.exp(sinusoids(rng, self.times, 0.012 * motion * rng.random(), limit=rng.uniform(0.05, 0.35)))
        diameter = 2 * surface.radius
        strength = self.options.deformation * float(rng.uniform(0.05, 0.3))
        joints = int(rng.integers(0, 3)) if self.options.deformation > 0 else 0
        deformation = random_deformation(rng, diameter, strength, motion, joints) if strength > 0 else STIFF
        return _Layer(number, surface, Trajectory(self._wander(number, start), angles, scales), deformation)

    def _wander(self, number: int, start: Array) -> Array:
        half = np.array([self.size[1], self.size[0]]) / 2
        free = inverse_keep_inside(start, self.size) + self.drifts[number] / half
        return keep_inside(free, self.size)

    def _occluder(self, number: int, stills: list[Still]) -> _Layer:
        """Something that goes to and fro across the frame on a straight line, from outside to outside."""
        rng = self.rng
        diameter = self.side * float(rng.uniform(0.2, 0.55))
        surface = occluder_surface(rng, stills[1:][::-1], diameter, self.size)
        height, width = self.size
        reach = 0.5 * max(width, height) + surface.radius
        middle = np.array([width, height]) / 2 + rng.uniform(-0.3, 0.3, 2) * [width, height]
        tilt = rng.normal(0, 0.25) + (np.pi if rng.random() < 0.5 else 0)
        direction = np.array([np.cos(tilt), np.sin(tilt)])
        speed = max(self.pace * float(rng.uniform(0.008, 0.03)), 1e-6)
        reach = reach + float(np.abs(middle - np.array([width, height]) / 2).max())
        phase = self.times * speed / reach
        along = -reach * np.cos(phase + (rng.uniform(0.3, 0.9) if rng.random() < 0.7 else rng.uniform(0.9, 2.2)))
        centers = middle + along[:, None] * direction
        motion = self.options.motion
        angles = rng.normal(0, 0.1) + sinusoids(rng, self.times, 0.01 * motion, limit=0.2)
        scales = np.exp(sinusoids(rng, self.times, 0.004 * motion, limit=0.15))
        return _Layer(number, surface, Trajectory(centers, angles, scales), STIFF)

    def _background(self, stills: list[Still]) -> _Layer:
        rng, motion = self.rng, self.options.motion
        height, width = self.size
        speed = self.pace * float(np.exp(rng.uniform(np.log(0.0005), np.log(0.012))))
        limit = 0.3 * self.side
        pan = np.stack([sinusoids(rng, self.times, speed * share, limit=limit) for share in (1.0, 0.5)], 1)
        angles = sinusoids(rng, self.times, 0.003 * motion * rng.random(), limit=0.12)
        zoom = np.exp(sinusoids(rng, self.times, 0.004 * motion * rng.random(), limit=0.12))
        centers = pan + np.array([width - 1, height - 1]) / 2
        deformation = STIFF
        if self.options.deformation > 0:
            strength = float(rng.uniform(0.0, 0.1)) * self.options.deformation
            deformation = random_deformation(rng, 0.8 * max(height, width), strength, motion)
        path = Trajectory(centers, angles, zoom)
        # How much of the background is ever seen, on one side of its middle.
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) - centers[:, None]
        cosine, sine = (np.cos(angles) / zoom)[:, None], (np.sin(angles) / zoom)[:, None]
        xs = np.abs(cosine * corners[..., 0] + sine * corners[..., 1]).max()
        ys = np.abs(-sine * corners[..., 0] + cosine * corners[..., 1]).max()
        spare = deformation.reach(0.0) + 2
        h, w = ceil(2 * (ys + spare)), ceil(2 * (xs + spare))
        if stills:
            mirror = bool(rng.random() < 0.5) or self.options.same_still > 0
            surface = photograph_background(rng, stills[0], h, w, mirror)
        else:
            surface = drawn_background(rng, h, w)
        return _Layer(0, surface, path, deformation)

    def _areas(self, layers: list[_Layer]) -> Array:
        """Visible pixels per layer number in frame 0."""
        seen = np.zeros(self.size, np.uint8)
        for layer in layers[1:]:
            box = layer.box(0, self.size)
            if box is not None:
                alpha = cv2.remap(
                    np.ascontiguousarray(layer.surface.texture[..., 3]), layer.map(0, box), None, cv2.INTER_LINEAR
                )
                seen[box[1] : box[3], box[0] : box[2]][alpha >= 128] = layer.number
        return np.bincount(seen.ravel(), minlength=len(layers))

    def _settle(self, layers: list[_Layer]) -> list[_Layer]:
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
                        start = self.rng.uniform(0.15, 0.85, 2) * [self.size[1], self.size[0]]
                    path = replace(layer.path, centers=self._wander(layer.number, start))
                    layers[place] = replace(layer, path=path)
            if attempt >= 2:
                # In front of the other objects, and no occluder in the frame at the beginning.
                behind = [layer for layer in layers if layer.number not in hidden]
                layers = behind + [layer for layer in layers if layer.number in hidden]
                layers = self._occluders_aside(layers)
        return self._settle_on_grid(self._occluders_aside(layers))

    def _occluders_aside(self, layers: list[_Layer]) -> list[_Layer]:
        """The occluders in front again, and shifted along their way to begin outside the frame."""
        first = 1 + self.options.objects + self.options.distractors
        rest = [layer for layer in layers if layer.number < first]
        for layer in (layer for layer in layers if layer.number >= first):
            centers = layer.path.centers
            away = centers[1] - np.array([self.size[1], self.size[0]]) / 2
            axis = int(np.argmax(np.abs(away)))
            gone = 0.5 * self.size[1 - axis] + layer.surface.radius * layer.path.scales[1] + 2
            shift = np.zeros(2)
            shift[axis] = np.copysign(max(0.0, gone - abs(away[axis])), away[axis])
            rest.append(replace(layer, path=replace(layer.path, centers=centers + shift)))
        return rest

    def _settle_on_grid(self, layers: list[_Layer]) -> list[_Layer]:
        """The last resort for crowded or tiny frames: a disc per object, each in a cell of its own."""
        cells = self._cells(self.options.objects)
        gaps = [self.size[0], self.size[1]]
        if len(cells) > 1:
            near = np.abs(cells[:, None] - cells[None])
            gaps += [float(values[values > 0].min()) for values in (near[..., 0], near[..., 1]) if values.any()]
        side = max(5, int(min(gaps)))
        first = 1 + self.options.objects + self.options.distractors
        objects = []
        for layer in layers:
            if 1 <= layer.number <= self.options.objects:
                surface = drawn_surface(self.rng, side, ellipse_outline(side))
                path = replace(layer.path, centers=self._wander(layer.number, cells[layer.number - 1]))
                objects.append(replace(layer, surface=surface, path=path, deformation=STIFF))
        others = [layer for layer in layers if layer.number > self.options.objects]
        under = [layer for layer in others if layer.number < first]
        return [layers[0], *under, *objects, *(layer for layer in others if layer.number >= first)]

    def _excursion(self, layer: _Layer) -> _Layer:
        """Perhaps let an object leave through the nearest side and come back the same way."""
        length = self.options.length
        if self.rng.random() >= self.options.leave or length < 12:
            return layer
        ramp = max(4.0, min(0.3 * length, 1.5 * self.side / max(self.pace * 0.03, 1e-6)))
        away = self.rng.uniform(0.08, 0.3) * length
        begin = self.rng.uniform(1, max(1.5, length - 2 - away - 2 * ramp))
        times = self.times
        rise = np.clip((times - begin) / ramp, 0, 1)
        fall = np.clip((begin + 2 * ramp + away - times) / ramp, 0, 1)
        share = np.minimum(rise, fall)
        share = share * share * (3 - 2 * share)
        centers = layer.path.centers
        height, width = self.size
        radius = layer.surface.radius
        reach = (radius + layer.deformation.reach(radius)) * float(layer.path.scales.max()) + 2
        x, y = centers[np.argmax(share)]
        distances = np.array([x, width - x, y, height - y])
        side = int(np.argmin(distances))
        target = centers.copy()
        target[:, side // 2] = (-reach, width + reach, -reach, height + reach)[side]
        return replace(layer, path=replace(layer.path, centers=centers + share[:, None] * (target - centers)))
