"""One stream in one process: a frame in, its label map out.

    vos = Segmenter(method)
    vos.step(frame, mask)        # the first frame, with its label map
    vos.step(frame).mask         # every later frame

This is the reference that the pipeline has to equal bit for bit.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from streamvos.backends import choose_device, compile_module
from streamvos.methods import Method
from streamvos.nn.aggregation import all_ids, insert_given
from streamvos.nn.labels import winners
from streamvos.types import MAX_OBJECT_ID, VOID, Annotation, InputError, ObjectResult, Result, State

UNCERTAIN_BELOW = 0.6
"""An object whose own pixels are believed less than this, on average, is "uncertain"."""

SMALLEST_SIDE = 16
"""Frames narrower or lower than this have too few cells to follow anything in."""

SNAPSHOT = "streamvos-snapshot-1"


class Segmenter:
    """Follows the objects of one stream.

    Args:
        method: with its weights; it is moved to the device and not changed otherwise. Several
            segmenters may share one.
        device: "auto", "cpu", "cuda", "cuda:1", ...
        backend: how the extractor runs, see `streamvos.backends`.

    Attributes:
        method: the method.
        device: the torch device in use.
    """

    def __init__(self, method: Method, device: str | torch.device = "auto", backend: str = "eager"):
        self.device = choose_device(device)
        self.method = method.eval().to(self.device)
        self._extract = compile_module(method.extractor, backend, self.device)
        self._target = method.target()
        self._size: tuple[int, int] | None = None
        self._count = 0
        self._started = False

    @property
    def object_ids(self) -> tuple[int, ...]:
        """The ids being followed, ascending."""
        return self._target.object_ids

    @torch.inference_mode()
    def step(self, frame: np.ndarray | torch.Tensor, mask: np.ndarray | torch.Tensor | None = None) -> Result:
        """The label map of the next frame.

        Args:
            frame: (H, W, 3) uint8 RGB, NumPy or torch, on the CPU or a GPU.
            mask: (H, W) integer label map, when objects start, are added or corrected: the pixels of an
                id are that object, all of it. Where the mask is 0, objects that it does not name keep
                their predicted pixels; where it is 255 (void) the prediction stands.

        Returns:
            The result, at the frame's own size.

        Raises:
            InputError: a frame or a mask that cannot be used, or a frame before any mask. The state is
                unchanged and the stream can go on.
        """
        image = _check_frame(frame, self._size)
        given = None if mask is None else _check_mask(mask, (image.shape[0], image.shape[1]))
        if not self._started and given is None:
            raise InputError(
                "step(frame) came before any mask; begin with step(frame, mask), mask an (H, W) label map"
            )
        annotation = None if given is None else _annotation(given.to(self.device))
        ids = all_ids(self.object_ids, annotation)
        features = self._extract(self._to_device(image))
        probabilities = self._predict(features, annotation)
        if annotation is None:
            if self.object_ids:
                self._target.write(features, probabilities)
        else:
            label_map = self._combine(annotation, probabilities, ids)
            soft = probabilities if self.object_ids else None
            self._target.annotate(features, label_map, ids, annotation.object_ids, soft)
            probabilities = _as_probabilities(label_map, ids)
        self._size, self._started = (image.shape[0], image.shape[1]), True
        self._count += 1
        return make_result(probabilities, ids, self._count - 1)

    def forget(self, object_id: int) -> None:
        """Follow an object no longer; its pixels count as background from here on.

        Raises:
            InputError: it is not followed.
        """
        if object_id not in self.object_ids:
            raise InputError(f"object {object_id} is not followed; known objects: {list(self.object_ids)}")
        self._target.forget(object_id)

    def reset(self) -> None:
        """Forget everything; the next step needs a mask, and may have another size."""
        self._target = self.method.target()
        self._size, self._count, self._started = None, 0, False

    @torch.inference_mode()
    def snapshot(self) -> bytes:
        """The whole state of the stream, to continue from elsewhere, bit-identically.

        Tensors in safetensors form; weights are not in it.
        """
        state = {name: value.cpu().contiguous() for name, value in self._target.state_dict().items()}
        description = {
            "method": self.method.name,
            "options": self._options(),
            "size": self._size,
            "count": self._count,
            "started": self._started,
        }
        # one entry only: safetensors writes several in an order that changes from call to call
        return save_tensors(state, metadata={SNAPSHOT: json.dumps(description)})

    @torch.inference_mode()
    def restore(self, blob: bytes) -> None:
        """Continue from what `snapshot` gave.

        Raises:
            InputError: no snapshot, or that of another method or of other options; the state is unchanged.
        """
        description, tensors = _read_snapshot(blob)
        if description["method"] != self.method.name:
            raise InputError(
                f"the snapshot is of method {description['method']!r}, this one is {self.method.name!r}"
            )
        if description["options"] != self._options():
            raise InputError(
                "the snapshot is of other options than this segmenter's; load the method with the same"
            )
        target = self.method.target()
        target.load_state_dict({name: value.to(self.device) for name, value in tensors.items()})
        size = description["size"]
        self._target = target
        self._size = None if size is None else (int(size[0]), int(size[1]))
        self._count, self._started = int(description["count"]), bool(description["started"])

    def _options(self) -> dict[str, Any]:
        return self.method.options.model_dump(mode="json")

    def _to_device(self, image: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda" and image.device.type == "cpu":
            image = image.pin_memory()
        return image.to(self.device, non_blocking=True).permute(2, 0, 1)[None].float().div_(255)

    def _predict(self, features: Any, annotation: Annotation | None) -> torch.Tensor:
        """(1 + K, H, W); all background while nothing is followed."""
        if self.object_ids:
            return self.method.decoder(features, self._target.read(features), annotation)
        background = torch.ones((1, *features.size), device=self.device)
        return background if annotation is None else insert_given(background, (), annotation)

    def _combine(
        self, annotation: Annotation, probabilities: torch.Tensor, ids: tuple[int, ...]
    ) -> torch.Tensor:
        """(H, W) int64: the given pixels, and elsewhere the prediction, of which the named objects are gone.

        On the first frame there is no prediction and void stays void.
        """
        given = annotation.label_map
        if not self._started:
            return given
        return torch.where((given == 0) | (given == VOID), _label_map(probabilities, ids).long(), given)


@torch.inference_mode()
def make_result(probabilities: torch.Tensor, object_ids: tuple[int, ...], index: int) -> Result:
    """A `Result` whose mask is made now and whose other parts are made when asked.

    Args:
        probabilities: (1 + K, H, W) float32 on any device; must not be written to afterwards.
        object_ids: the K ids.
        index: of the frame.
    """
    mask = _label_map(probabilities, object_ids).cpu().numpy()

    @lru_cache(maxsize=1)
    def on_host() -> np.ndarray:
        return probabilities.float().cpu().numpy()

    @lru_cache(maxsize=1)
    def objects() -> dict[int, ObjectResult]:
        channels = on_host()
        return {i: _describe(i, mask == i, channels[k]) for k, i in enumerate(object_ids, start=1)}

    return Result(mask, index, object_ids, on_host, objects)


def _describe(object_id: int, pixels: np.ndarray, probability: np.ndarray) -> ObjectResult:
    rows = np.flatnonzero(pixels.any(1))
    if not len(rows):
        return ObjectResult(object_id, 0.0, "lost", None, 0)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(pixels[top:bottom].any(0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    window = pixels[top:bottom, left:right]
    area = int(window.sum())
    score = float(probability[top:bottom, left:right][window].mean(dtype=np.float64))
    state: State = "tracking" if score >= UNCERTAIN_BELOW else "uncertain"
    return ObjectResult(object_id, score, state, (left, top, right, bottom), area)


def _label_map(probabilities: torch.Tensor, object_ids: tuple[int, ...]) -> torch.Tensor:
    """(H, W) uint8: the id of the most probable channel; the lowest id wins a tie."""
    ids = torch.tensor((0, *object_ids), dtype=torch.uint8, device=probabilities.device)
    return ids[winners(probabilities).int()]


def _as_probabilities(label_map: torch.Tensor, object_ids: tuple[int, ...]) -> torch.Tensor:
    """A given label map as certainty; void, which is no object, counts as background."""
    ids = torch.tensor(object_ids, device=label_map.device)
    objects = (label_map[None] == ids[:, None, None]).float()
    return torch.cat([1 - objects.sum(0, keepdim=True), objects])


def _annotation(given: torch.Tensor) -> Annotation:
    """What a mask names.

    Raises:
        InputError: nothing.
    """
    named = tuple(int(i) for i in torch.unique(given) if int(i) not in (0, VOID))
    if not named:
        raise InputError("the mask names no object: every pixel is 0 (background) or 255 (void)")
    return Annotation(given, named)


def _check_frame(frame: np.ndarray | torch.Tensor, size: tuple[int, int] | None) -> torch.Tensor:
    tensor = _as_tensor(frame, "frame", "(H, W, 3) uint8 RGB")
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[2] != 3:
        raise InputError(
            f"frame must be (H, W, 3) uint8 RGB, got {tuple(tensor.shape)} {_dtype_name(tensor)}"
        )
    height, width = int(tensor.shape[0]), int(tensor.shape[1])
    if min(height, width) < SMALLEST_SIDE:
        raise InputError(
            f"frame must be at least {SMALLEST_SIDE} pixels high and wide, got {height} x {width} (H x W)"
        )
    if size is not None and (height, width) != size:
        raise InputError(
            f"the frame size changed mid-stream: expected {size[0]} x {size[1]} (H x W), "
            f"got {height} x {width}; resize the frame, or call reset() and begin with a mask of the new size"
        )
    return tensor


def _check_mask(mask: np.ndarray | torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    expected = f"an integer label map ({size[0]}, {size[1]})"
    tensor = _as_tensor(mask, "mask", expected)
    if tensor.dtype == torch.bool:
        tensor = tensor.long()
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise InputError(f"mask must be {expected}, got NaN or infinity in it")
    if tensor.is_floating_point() or tensor.is_complex() or tuple(tensor.shape) != size:
        raise InputError(f"mask must be {expected}, got {tuple(tensor.shape)} {_dtype_name(tensor)}")
    tensor = tensor.long()
    lowest, highest = int(tensor.min()), int(tensor.max())
    if lowest < 0 or highest > VOID:
        raise InputError(
            f"mask values must be 0 (background), 1..{MAX_OBJECT_ID} (objects) or {VOID} (void), "
            f"got values from {lowest} to {highest}"
        )
    return tensor


def _as_tensor(value: Any, name: str, expected: str) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if not isinstance(value, np.ndarray):
        raise InputError(
            f"{name} must be {expected}, a NumPy array or torch tensor, got {type(value).__name__}"
        )
    try:
        # torch refuses negative strides and read-only memory; a copy settles both
        safe = value if value.flags.writeable and value.flags.c_contiguous else value.copy()
        return torch.from_numpy(safe)
    except TypeError:
        raise InputError(f"{name} must be {expected}, got dtype {value.dtype}") from None


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _read_snapshot(blob: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        length = int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8 : 8 + length])
        description = cast("dict[str, Any]", json.loads(header["__metadata__"][SNAPSHOT]))
        if not {"method", "options", "size", "count", "started"} <= description.keys():
            raise ValueError("description is incomplete")
        return description, load_tensors(bytes(blob))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"this is no snapshot of a segmenter ({error})") from None
