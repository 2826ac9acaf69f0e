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
from math import ceil, hypot
from operator import index as as_index
from typing import overload

import cv2
import numpy as np

from streamvos.synthetic.camera import Light, sensor_noise
from streamvos.synthetic.motion import sample
from streamvos.synthetic.options import SyntheticOptions, validate, validate_seed
from streamvos.synthetic.scene import Layer, Scene

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
        validate_seed(seed)
        options = SyntheticOptions() if options is None else options
        validate(options)
        self.seed = int(seed)
        self.options = options
        self._size = int(options.size[0]), int(options.size[1])
        rng = np.random.default_rng(self.seed)
        self._layers = Scene(rng, options).build()
        self._labels = np.arange(256, dtype=np.uint8)
        self._labels[options.objects + 1 :] = 0
        self._light = Light(rng, options.length, options.exposure) if options.exposure > 0 else None
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
            noise = sensor_noise(self.seed, t, self._size, self._coarse_noise)
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
