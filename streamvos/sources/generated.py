"""A synthetic video as a source: a stream for which the true label maps are known.

>>> with GeneratedSource("seed=3,objects=2,size=480x854,length=60") as source:
...     mask = source.label_map(0)
...     first = next(source)
"""

from __future__ import annotations

import time

import numpy as np

from streamvos.sources.source import NOMINAL_FPS, Picture, Selection, Source
from streamvos.synthetic.options import PhotographOptions, SyntheticOptions, parse_parameters
from streamvos.synthetic.photograph_video import PhotographFrame, PhotographVideo
from streamvos.synthetic.synthetic import SyntheticFrame, SyntheticVideo
from streamvos.types import InputError


class GeneratedSource(Source):
    """Frames of a `SyntheticVideo` or a `PhotographVideo`, with their ground truth.

    Args:
        parameters: the string that `parse_parameters` reads.
        name: name of the stream; "synthetic-SEED" if None.
        fps: frames per second, from which `pts` follows; 24 if None.
        selection: which frames, and how large.

    Raises:
        InputError: the parameters cannot be used.
    """

    def __init__(
        self,
        parameters: str = "",
        *,
        name: str | None = None,
        fps: float | None = None,
        selection: Selection | None = None,
    ) -> None:
        seed, options = parse_parameters(parameters)
        self.video = _make(seed, options)
        self._next = 0
        self._latest: tuple[int, SyntheticFrame | PhotographFrame] | None = None
        self._period = 1.0 / (fps or NOMINAL_FPS)
        super().__init__(
            name=name or f"synthetic-{seed}",
            native_size=(int(options.size[0]), int(options.size[1])),
            fps=fps or NOMINAL_FPS,
            native_length=len(self.video),
            selection=selection or Selection(),
        )

    def label_map(self, index: int) -> np.ndarray:
        """The true label map of frame `index` of this source, (H, W) uint8 at the frame's own size.

        Raises:
            InputError: the source has no frame `index`.
        """
        assert self.length is not None
        if not 0 <= index < self.length:
            raise InputError(f"{self.name} has the frames 0..{self.length - 1}, got {index}")
        labels = self._render(self._selection.number(index)).label_map
        if self.size == self.native_size:
            return labels.copy()
        import cv2

        size = (self.size[1], self.size[0])
        return np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT))

    def _read(self) -> Picture | None:
        if self._next >= len(self.video):
            return None
        place, self._next = self._next, self._next + 1
        image = self._render(place).image.copy()
        return Picture(image, time.monotonic_ns(), place * self._period)

    def _skip(self, count: int) -> None:
        self._next += count

    def _render(self, place: int) -> SyntheticFrame | PhotographFrame:
        # The truth is usually requested for the latest frame; rendering it twice would double the cost.
        if self._latest is None or self._latest[0] != place:
            self._latest = (place, self.video[place])
        return self._latest[1]


def _make(seed: int, options: SyntheticOptions | PhotographOptions) -> SyntheticVideo | PhotographVideo:
    if isinstance(options, PhotographOptions):
        return PhotographVideo(seed, options)
    return SyntheticVideo(seed, options)
