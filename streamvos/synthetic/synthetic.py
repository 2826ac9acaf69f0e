"""Synthetic videos of moving objects with exact ground truth.

They serve the demo (nothing is downloaded), the tests (the truth is known) and training from scratch (for
every pixel it is known which point of which surface it shows). A video is a stack of layers:
streamvos/synthetic/scene.py chooses them, and streamvos/synthetic/motion.py explains why the truth is exact.

    >>> video = SyntheticVideo(seed=0, options=SyntheticOptions(size=(240, 320), length=8))
    >>> len(video), video[0].image.shape, sorted(set(video[0].label_map.ravel().tolist()))
    (8, (240, 320, 3), [0, 1, 2])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, hypot
from operator import index as as_index
from typing import overload

import cv2
import numpy as np

from streamvos.synthetic.motion import sample, sinusoids
from streamvos.synthetic.options import SyntheticOptions, validate
from streamvos.synthetic.scene import Layer, Scene
from streamvos.types import InputError

__all__ = ["SyntheticFrame", "SyntheticOptions", "SyntheticVideo"]

Array = np.ndarray

LONGEST_SMEAR = 40.0
"""Longest motion blur in pixels."""


@dataclass(frozen=True, eq=False)
class SyntheticFrame:
    """One frame and its ground truth.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        label_map: (H, W) uint8, ids of the visible objects; 0 is background, distractors, occluders.
        layer: (H, W) uint8, the visible layer: 0 is the background, k is object k, others follow.
        region: (H, W) int32, region of the surface; it moves with the surface, and no two layers share one.
        coordinates: (H, W, 2) float32, x and y of the visible surface point in pixels of the layer's
            surface. Pixels of any two frames with the same layer and coordinates show the same point.
    """

    image: Array
    label_map: Array
    layer: Array
    region: Array
    coordinates: Array


class SyntheticVideo(Sequence[SyntheticFrame]):
    """A video whose frames are rendered on request, in any order.

    The same seed and options give the same video. Frame 0 shows every labelled object.

    Raises:
        InputError: the seed is not an integer >= 0, an option is out of range, or the stills cannot be used.
    """

    def __init__(self, seed: int, options: SyntheticOptions | None = None) -> None:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise InputError(f"seed: expected an integer >= 0, got {seed!r}")
        options = SyntheticOptions() if options is None else options
        validate(options)
        self.seed = int(seed)
        self.options = options
        self._size = int(options.size[0]), int(options.size[1])
        rng = np.random.default_rng(self.seed)
        self._layers = Scene(rng, options).build()
        self._labels = np.arange(256, dtype=np.uint8)
        self._labels[options.objects + 1 :] = 0
        self._light = _Light(rng, options) if options.exposure > 0 else None
        self._noise_level = options.noise * float(rng.uniform(0.3, 1.7)) * 5.0
        self._coarse_noise = bool(rng.random() < 0.5)

    def __len__(self) -> int:
        return self.options.length

    @overload
    def __getitem__(self, index: int) -> SyntheticFrame: ...

    @overload
    def __getitem__(self, index: slice) -> list[SyntheticFrame]: ...

    def __getitem__(self, index: int | slice) -> SyntheticFrame | list[SyntheticFrame]:
        if isinstance(index, slice):
            return [self[t] for t in range(*index.indices(len(self)))]
        t = as_index(index)
        t = t + len(self) if t < 0 else t
        if not 0 <= t < len(self):
            raise IndexError(f"frame {index} of a video of {len(self)} frames")
        return self._render(t)

    def _render(self, t: int) -> SyntheticFrame:
        height, width = self._size
        background = self._layers[0]
        coordinates = background.map(t, (0, 0, width, height))
        reflect = cv2.BORDER_REFLECT_101
        picture = sample(background.surface.texture, coordinates, border=reflect)
        picture = self._smear(picture, background, t, reflect)
        region = sample(background.surface.regions, coordinates, nearest=True, border=reflect)
        region = region.astype(np.int32)
        visible = np.zeros((height, width), np.uint8)
        for layer in self._layers[1:]:
            box = layer.box(t, self._size)
            if box is None:
                continue
            window = np.s_[box[1] : box[3], box[0] : box[2]]
            points = layer.map(t, box)
            patch = sample(layer.surface.texture, points)
            inside = cv2.extractChannel(patch, 3) >= 128
            regions = sample(layer.surface.regions, points, nearest=True, border=cv2.BORDER_REPLICATE)
            visible[window][inside] = layer.number
            region[window][inside] = regions[inside].astype(np.int32) + layer.region_offset
            np.copyto(coordinates[window], points, where=inside[..., None])
            # The truth is the object's position in the middle of the exposure; only the picture is smeared.
            patch = self._smear(patch, layer, t, cv2.BORDER_CONSTANT)
            rest = cv2.bitwise_not(cv2.extractChannel(patch, 3))
            under = cv2.multiply(picture[window], cv2.merge([rest, rest, rest, rest]), scale=1 / 255)
            picture[window] = cv2.add(under, patch)
        image = cv2.cvtColor(picture, cv2.COLOR_RGBA2RGB)
        if self._light is not None:
            image = self._light.apply(image, t)
        if self._noise_level > 0:
            noise = _noise(self.seed, t, self._size, self._coarse_noise)
            image = cv2.addWeighted(image, 1.0, noise, self._noise_level / 32, 0, dtype=cv2.CV_8U)
        return SyntheticFrame(image, self._labels[visible], visible, region, coordinates)

    def _smear(self, patch: Array, layer: Layer, t: int, border: int) -> Array:
        """Motion blur: the average along the layer's path while the shutter is open."""
        way = layer.path.velocity(t) * self.options.blur
        length = hypot(*way)
        if length < 1.2:
            return patch
        way = way * min(1.0, LONGEST_SMEAR / length)
        half = ceil(float(np.abs(way).max()) / 2)
        kernel = np.zeros((2 * half + 2, 2 * half + 2), np.float32)
        for share in np.linspace(-0.5, 0.5, 4 * half + 1):
            x, y = way * share + half
            column, row = int(x), int(y)
            right, low = x - column, y - row
            kernel[row : row + 2, column : column + 2] += np.outer([1 - low, low], [1 - right, right])
        kernel = kernel[:-1, :-1]
        return cv2.filter2D(patch, -1, kernel / kernel.sum(), borderType=border)


class _Light:
    """Drift of exposure, contrast and white balance, and uneven light that moves over the frame."""

    def __init__(self, rng: np.random.Generator, options: SyntheticOptions) -> None:
        strength, times = options.exposure, np.arange(options.length, dtype=np.float64)

        def drift(speed: float, limit: float, offset: float) -> Array:
            start = rng.normal(0, offset * strength)
            return start + sinusoids(rng, times, speed * strength, limit=limit * strength)

        self.gain, self.gamma = np.exp(drift(0.012, 0.25, 0.08)), np.exp(drift(0.008, 0.18, 0.08))
        self.tint = np.exp(np.stack([drift(0.004, 0.08, 0.04) for _ in range(3)], 1))
        # Sampled at 6 x 6 points: a sum of two slow waves over the frame.
        self.waves = rng.normal(0, 2.2, (2, 3)) * [1, 1, 0.03]
        self.starts = rng.uniform(0, 2 * np.pi, 2)
        self.depth = strength * float(rng.uniform(0, 0.22))

    def apply(self, image: Array, t: int) -> Array:
        """The image, (H, W, 3) uint8, as the camera records it at frame `t`."""
        curve = self.gain[t] * np.linspace(0, 1, 256) ** self.gamma[t]
        table = np.clip(curve[:, None] * self.tint[t] * 255, 0, 255).round().astype(np.uint8)[None]
        image = cv2.LUT(image, table)
        ys, xs = np.mgrid[-1:1:6j, -1:1:6j]
        waves = zip(self.waves, self.starts, strict=True)
        field = np.sum([np.sin(a * xs + b * ys + c * t + start) for (a, b, c), start in waves], axis=0)
        coarse = (128 * np.exp(self.depth * field / 2)).astype(np.uint8)
        height, width = image.shape[:2]
        shade = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        return cv2.multiply(image, cv2.merge([shade, shade, shade]), scale=1 / 128)


@lru_cache(maxsize=2)
def _noise_bank(coarse: bool) -> Array:
    """(768, 768, 3) int16 normal noise of standard deviation 32; if `coarse`, neighbors are correlated."""
    noise = np.random.default_rng(20).standard_normal((768, 768, 3), np.float32)
    if coarse:
        noise = np.asarray(cv2.GaussianBlur(noise, (0, 0), 0.7, borderType=cv2.BORDER_REFLECT))
        noise /= noise.std()
    return np.round(noise * 32).astype(np.int16)


def _noise(seed: int, t: int, size: tuple[int, int], coarse: bool) -> Array:
    """(H, W, 3) int16, a piece of the bank that depends on seed and frame, repeated for larger frames."""
    bank = _noise_bank(coarse)
    height, width = size
    spare_y, spare_x = len(bank) - height, len(bank) - width
    rng = np.random.default_rng((seed, t))
    top, left = int(rng.integers(0, max(spare_y, 0) + 1)), int(rng.integers(0, max(spare_x, 0) + 1))
    if spare_y >= 0 and spare_x >= 0:
        return bank[top : top + height, left : left + width]
    bank = np.roll(bank, (int(rng.integers(0, len(bank))), int(rng.integers(0, len(bank)))), (0, 1))
    bank = cv2.copyMakeBorder(bank, 0, max(0, -spare_y), 0, max(0, -spare_x), cv2.BORDER_WRAP)
    return bank[:height, :width]
