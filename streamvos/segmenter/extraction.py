"""From frames to features: upload, scaling, and the method's extractor on a backend.

extraction = Extraction(method, "auto", "eager")
features = extraction([frame])                  # frames (H, W, 3) uint8 of one size
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from streamvos.backends import choose_device, compile_module
from streamvos.methods import Method
from streamvos.types import Features


class Extraction:
    """A method's extractor, ready to run; stateless, shared by streams.

    Args:
        method: it is moved to the device, and not changed otherwise.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        backend: see `streamvos.backends`.

    Attributes:
        method: the method.
        device: the torch device in use.

    Raises:
        InputError: no such device or backend.
    """

    def __init__(self, method: Method, device: str | torch.device = "auto", backend: str = "eager"):
        self.device = choose_device(device)
        self.method = method.eval().to(self.device)
        self._run = compile_module(method.extractor, backend, self.device)

    @torch.inference_mode()
    def __call__(self, frames: Sequence[torch.Tensor]) -> Features:
        """Features of some frames at once.

        Args:
            frames: B of them, each (H, W, 3) uint8, of one size.
        """
        images = [self._upload(frame) for frame in frames]
        batch = images[0][None] if len(images) == 1 else torch.stack(images)
        features: Features = self._run(batch.permute(0, 3, 1, 2).float().div_(255))
        return features

    def _upload(self, frame: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda" and frame.device.type == "cpu":
            frame = frame.pin_memory()
        return frame.to(self.device, non_blocking=True)
