"""A whole step in one process; the pipeline has to equal it bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from streamvos.methods import Method
from streamvos.segmenter.checks import check_frame, check_mask
from streamvos.segmenter.extraction import Extraction
from streamvos.segmenter.state import StreamState, decide, make_result
from streamvos.types import Features, Result


class Segmenter:
    """Follows the objects of one stream.

    Args:
        method: a method with its weights; it is moved to the device. Several segmenters may share one.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        backend: how the networks run, see `streamvos.engines`.

    Attributes:
        method: the method.
        device: the torch device in use.
        extraction: the extractor; `extraction.engines.describe()` says what runs where.
    """

    def __init__(self, method: Method, device: str | torch.device = "auto", backend: str = "eager"):
        self.extraction = Extraction(method, device, backend)
        self.method, self.device = self.extraction.method, self.extraction.device
        self._state = StreamState(method, self.device)

    @property
    def object_ids(self) -> tuple[int, ...]:
        """The ids being followed, ascending."""
        return self._state.object_ids

    @torch.inference_mode()
    def step(self, frame: np.ndarray | torch.Tensor, mask: np.ndarray | torch.Tensor | None = None) -> Result:
        """The label map of the next frame.

        Args:
            frame: (H, W, 3) uint8 RGB, NumPy or torch, on the CPU or a GPU.
            mask: (H, W) integer label map, when objects start, are added or corrected: the pixels of an
                id are all of that object. Where the mask is 0, objects that it does not name keep their
                predicted pixels; where it is 255 (void) the prediction stands.

        Returns:
            The result, at the frame's own size.

        Raises:
            InputError: an unusable frame or mask, or a frame before any mask. The state is unchanged and
                the stream can go on.
        """
        state = self._state
        image = check_frame(frame, state.size)
        size = image.shape[0], image.shape[1]
        annotation = None if mask is None else check_mask(mask, size, self.device)
        features = self.extraction([image])
        question = state.ask(features, annotation)
        decision = decide(self.method, question)
        state.learn(features, question, decision)
        sure = self.method.options.uncertain_below
        return make_result(decision.shown(), decision.object_ids, state.count - 1, sure)

    def forget(self, object_id: int) -> None:
        """Follow an object no longer; its pixels count as background from here on.

        Raises:
            InputError: it is not followed.
        """
        self._state.forget(object_id)

    def reset(self) -> None:
        """Forget everything; the next step needs a mask, and may have another size."""
        self._state.reset()

    def snapshot(self) -> bytes:
        """The whole state without weights, to continue elsewhere bit-identically (safetensors)."""
        return self._state.snapshot()

    def restore(self, blob: bytes) -> None:
        """Continue from a snapshot.

        Raises:
            InputError: this is no snapshot, a damaged one, or one of another method or other options; nothing
                is changed.
        """
        self._state.restore(blob)


def follow(
    method: Method,
    device: torch.device,
    frames: Sequence[np.ndarray],
    mask: np.ndarray,
    extract: Callable[[torch.Tensor], Features] | None = None,
) -> Iterator[np.ndarray]:
    """The masks of a clip, to compare engines with eager; see `streamvos.engines.gate.Follow`.

    Yields:
        (H, W) uint8 label map of every frame.
    """
    vos = Segmenter(method, device)
    if extract is not None:
        vos.extraction.use(extract)
    for index, frame in enumerate(frames):
        yield vos.step(frame, mask if index == 0 else None).mask
