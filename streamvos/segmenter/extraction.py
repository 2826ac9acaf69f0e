"""From frames to features: upload, scaling, and the method's extractor on a backend.

extraction = Extraction(method, "auto", "eager")
features = extraction([frame])                  # frames (H, W, 3) uint8 of one size
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from streamvos.engines.cache import EngineCache
from streamvos.engines.eager import choose_device, eager_run
from streamvos.engines.engines import Engines
from streamvos.methods import Method
from streamvos.methods.parts import ExtractorPart, Layout, assemble
from streamvos.types import Features

Extractor = Callable[[torch.Tensor], Features]


class Extraction:
    """A method's extractor, ready to run; stateless, shared by streams.

    Args:
        method: it is moved to the device; engines of its inner parts serve everyone who shares the method.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        backend: see `streamvos.engines`.
        cache: the cache of engines; None = the default one.

    Attributes:
        method: the method.
        device: the torch device in use.
        engines: what runs instead of eager; see `streamvos.engines.engines.Engines.describe`.

    Raises:
        InputError: no such device or backend.
    """

    def __init__(
        self,
        method: Method,
        device: str | torch.device = "auto",
        backend: str = "eager",
        cache: EngineCache | None = None,
    ):
        self.device = choose_device(device)
        self.method = method.eval().to(self.device)
        self.engines = Engines(self.method, self.device, backend, cache)
        self._run: Extractor = eager_run(method.extractor, self.device)
        if backend != "eager":
            self._run = self._compiled(self._run)
            for part in self.method.inner_parts().values():
                part.replace(self.engines.switch(part, part.plain))

    @torch.inference_mode()
    def __call__(self, frames: Sequence[torch.Tensor]) -> Features:
        """Features of B frames, each (H, W, 3) uint8, of one size."""
        images = [self._upload(frame) for frame in frames]
        batch = images[0][None] if len(images) == 1 else torch.stack(images)
        return self._run(batch.permute(0, 3, 1, 2).float().div_(255))

    def use(self, run: Extractor) -> None:
        """Replace the extractor by `run`: frames (B, 3, H, W) float32 in channels_last to features."""
        self._run = run

    def _compiled(self, eager: Extractor) -> Extractor:
        """The extractor's engines, and eager where there is none."""
        part = ExtractorPart(self.method.extractor)
        switch = self.engines.switch(part, part.plain)
        layout: Layout = ()

        def run(frames: torch.Tensor) -> Features:
            nonlocal layout
            frames = frames.contiguous(memory_format=torch.channels_last)
            engine = switch.choose(frames)
            if engine is None:
                return eager(frames)
            layout = layout or part.layout(frames)
            return assemble(layout, frames, engine(frames))

        return run

    def _upload(self, frame: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda" and frame.device.type == "cpu":
            # torch reuses pinned memory for a later frame, but not before this copy is done
            frame = frame.pin_memory()
        return frame.to(self.device, non_blocking=True)
