"""A step in four parts: a segmenter takes them in one process, a pipeline in its stages.

question = state.ask(features, annotation)              # memory: what the target says about the frame
decision = decide(method, question)                     # decoder: stateless
state.learn(features, question, decision)               # memory
make_result(decision.shown(), decision.object_ids, 0, 0.6)   # label map, and scores when asked
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from streamvos.methods import Method
from streamvos.methods.base import Target
from streamvos.nn.aggregation import all_ids, insert_given
from streamvos.nn.labels import winners
from streamvos.segmenter.presence import ExtentHistory, extents_of, without_unbelieved
from streamvos.types import VOID, Annotation, Evidence, Features, InputError, ObjectResult, Result, State

SNAPSHOT = "streamvos-snapshot-4"  # 1 had no checksum, 2 no areas, 3 no boxes

_EXTENTS = "extents of the objects: "  # begin of the names of an extent history's tensors

_MALFORMED = (
    SafetensorError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RuntimeError,  # torch's, for wrong shapes; and the parser's, for deep nesting
)


@dataclass(frozen=True, slots=True)
class Question:
    """What is known about a frame before it is decoded.

    Attributes:
        size: (H, W) of the frame in pixels.
        evidence: of the objects that are followed; None while there are none.
        annotation: what the user says about the frame.
        first: whether no object was ever followed before; void then stays void, as there is no prediction.
        limits: (K, 5) float32, what is believed of the masks of the evidence's objects, as
            `ExtentHistory.limits` says; None: everything.
    """

    size: tuple[int, int]
    evidence: Evidence | None
    annotation: Annotation | None
    first: bool
    limits: torch.Tensor | None = None

    @property
    def object_ids(self) -> tuple[int, ...]:
        """Those followed and those annotated, ascending."""
        followed = () if self.evidence is None else self.evidence.object_ids
        return all_ids(followed, self.annotation)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a frame shows.

    Attributes:
        object_ids: K.
        predicted: (1 + K, H, W) float32, as decoded with the annotation, without what is not believed.
        label_map: (H, W) int64, given pixels and elsewhere the prediction; None without annotation.
        extents: (K, 5) float32, pixels and box of each object; None if the method does not ask for them.
    """

    object_ids: tuple[int, ...]
    predicted: torch.Tensor
    label_map: torch.Tensor | None
    extents: torch.Tensor | None = None

    def shown(self) -> torch.Tensor:
        """(1 + K, H, W) float32 of the result: a given label map is certain."""
        if self.label_map is None:
            return self.predicted
        ids = torch.tensor(self.object_ids, device=self.label_map.device)
        objects = (self.label_map[None] == ids[:, None, None]).float()  # void counts as background
        return torch.cat([1 - objects.sum(0, keepdim=True), objects])


class StreamState:
    """What is remembered of one stream.

    Args:
        method: a method, on its device.
        device: the device that snapshots are loaded to.
        defer: whether targets train in the background (`streamvos.methods.background`).

    Attributes:
        target: the method's state of this stream.
        size: (H, W) of the frames; None before the first.
        count: frames learned.
        started: whether there ever was a mask.
    """

    def __init__(self, method: Method, device: torch.device, defer: bool = False):
        self.method, self.device, self._defer = method, device, defer
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.target = self._new_target()
        self.size: tuple[int, int] | None = None
        self.count, self.started = 0, False
        self._extents = ExtentHistory()

    @property
    def object_ids(self) -> tuple[int, ...]:
        """The ids being followed, ascending."""
        return self.target.object_ids

    @torch.inference_mode()
    def ask(self, features: Features, annotation: Annotation | None) -> Question:
        """What has to be decided about a frame with these features, B = 1, and this annotation.

        Raises:
            InputError: there was never a mask, and this frame has none either.
        """
        if not self.started and annotation is None:
            raise InputError(
                "step(frame) came before any mask; begin with step(frame, mask), mask an (H, W) label map"
            )
        evidence = self.target.read(features) if self.object_ids else None
        options, limits = self.method.options, None
        if evidence is not None and options.limits_extents:
            limits = self._extents.limits(options.largest_growth, options.search_margin, features.size)
        return Question(features.size, evidence, annotation, not self.started, limits)

    @torch.inference_mode()
    def learn(self, features: Features, question: Question, decision: Decision) -> None:
        """Remember what was decided about a frame with these features, B = 1."""
        named: tuple[int, ...] = ()
        if question.annotation is None:
            if self.object_ids:
                self.target.write(features, decision.predicted)
        else:
            assert decision.label_map is not None
            soft = decision.predicted if self.object_ids else None
            named = question.annotation.object_ids
            self.target.annotate(features, decision.label_map, decision.object_ids, named, soft)
        if decision.extents is not None:
            self._extents.add(decision.extents, decision.object_ids, named)
        self.size, self.started = features.size, True
        self.count += 1

    def forget(self, object_id: int) -> None:
        """Follow an object no longer.

        Raises:
            InputError: it is not followed.
        """
        self.target.check_followed(object_id)
        self.target.forget(object_id)
        self._extents.forget(object_id)

    @torch.inference_mode()
    def snapshot(self) -> bytes:
        """The whole state without weights, to continue elsewhere bit-identically (safetensors)."""
        state: dict[str, torch.Tensor] = {}
        written: set[int] = set()
        extents = {_EXTENTS + name: value for name, value in self._extents.state_dict().items()}
        for name, value in {**self.target.state_dict(), **extents}.items():
            value = value.cpu().contiguous()
            place = value.untyped_storage().data_ptr()
            # safetensors refuses memory that two names share, as a target's may after its first frame
            state[name] = value.clone() if place in written else value
            written.add(place)
        description = {
            "method": self.method.name,
            "options": self._options(),
            "size": self.size,
            "count": self.count,
            "started": self.started,
            "measured": self._extents.object_ids,
        }
        description["checksum"] = _checksum(description, state)
        # one entry only: safetensors writes several in an order that changes from call to call
        return save_tensors(state, metadata={SNAPSHOT: json.dumps(description)})

    @torch.inference_mode()
    def restore(self, blob: bytes) -> None:
        """Continue from a snapshot.

        Raises:
            InputError: this is no snapshot, a damaged one, or one of another method or other options; nothing
                is changed.
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
        target, extents = self._new_target(), ExtentHistory()
        state = {name: value.to(self.device) for name, value in tensors.items()}
        try:
            measured = {name: state.pop(_EXTENTS + name) for name in extents.state_dict()}
            extents.load_state_dict(measured, tuple(map(int, description["measured"])))
            target.load_state_dict(state)
            size = None
            if description["size"] is not None:
                height, width = description["size"]
                size = int(height), int(width)
            count, started = int(description["count"]), bool(description["started"])
        except (InputError, torch.OutOfMemoryError):
            raise
        except _MALFORMED as error:
            raise InputError(f"the snapshot holds no state of {self.method.name} ({error!r:.200})") from None
        self.target, self.size, self.count, self.started = target, size, count, started
        self._extents = extents

    def _new_target(self) -> Target:
        target = self.method.target()
        target.defer = self._defer
        return target

    def _options(self) -> dict[str, Any]:
        return self.method.options.model_dump(mode="json")


@torch.inference_mode()
def decide(method: Method, question: Question) -> Decision:
    """Decode one frame."""
    annotation, ids, options = question.annotation, question.object_ids, method.options
    predicted, extents = _predict(method, question), None
    if annotation is None:
        if ids and (question.limits is not None or options.lost_below):
            predicted, extents = without_unbelieved(predicted, question.limits, options.lost_below)
        return Decision(ids, predicted, None, extents)
    shown = given = annotation.label_map
    if not question.first:
        open_pixels = (given == 0) | (given == VOID)
        shown = torch.where(open_pixels, label_map_of(predicted, ids).long(), given)
    if options.limits_extents:
        extents = extents_of(shown, ids)
    return Decision(ids, predicted, shown, extents)


def _predict(method: Method, question: Question) -> torch.Tensor:
    """(1 + K, H, W) float32; all background while no object is followed."""
    annotation = question.annotation
    if question.evidence is not None:
        return method.decoder(question.evidence, question.size, annotation)
    if annotation is None:
        return torch.ones((1, *question.size))
    background = torch.ones((1, *question.size), device=annotation.label_map.device)
    return insert_given(background, (), annotation)


@torch.inference_mode()
def make_result(
    probabilities: torch.Tensor, object_ids: tuple[int, ...], index: int, uncertain_below: float
) -> Result:
    """A `Result` whose mask is made now and whose other parts are made on demand.

    Args:
        probabilities: (1 + K, H, W) float32 on any device; must not be written to afterwards.
        object_ids: the K ids.
        index: the frame's number.
        uncertain_below: the method's option.
    """
    mask = label_map_of(probabilities, object_ids).cpu().numpy()

    @lru_cache(maxsize=1)
    def on_host() -> np.ndarray:
        return probabilities.float().cpu().numpy()

    @lru_cache(maxsize=1)
    def objects() -> dict[int, ObjectResult]:
        channels = on_host()
        return {
            i: _describe(i, mask == i, channels[k], uncertain_below)
            for k, i in enumerate(object_ids, start=1)
        }

    return Result(mask, index, object_ids, on_host, objects)


def _describe(
    object_id: int, pixels: np.ndarray, probability: np.ndarray, uncertain_below: float
) -> ObjectResult:
    rows = np.flatnonzero(pixels.any(1))
    if not len(rows):
        return ObjectResult(object_id, 0.0, "lost", None, 0)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(pixels[top:bottom].any(0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    window = pixels[top:bottom, left:right]
    area = int(window.sum())
    score = float(probability[top:bottom, left:right][window].mean(dtype=np.float64))
    state: State = "tracking" if score >= uncertain_below else "uncertain"
    return ObjectResult(object_id, score, state, (left, top, right, bottom), area)


def label_map_of(probabilities: torch.Tensor, object_ids: tuple[int, ...]) -> torch.Tensor:
    """(H, W) uint8: the id of the most probable channel; the lowest id wins a tie. Ids ascend."""
    return winners(probabilities, (0, *object_ids))


def _read_snapshot(blob: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    if not isinstance(blob, bytes | bytearray | memoryview):
        raise InputError(f"a snapshot is bytes, got {type(blob).__name__}")
    blob = bytes(blob)
    try:
        length = int.from_bytes(blob[:8], "little")
        header = json.loads(blob[8 : 8 + length])
        description = cast("dict[str, Any]", json.loads(header["__metadata__"][SNAPSHOT]))
        if (
            not {"method", "options", "size", "count", "started", "measured", "checksum"}
            <= description.keys()
        ):
            raise ValueError("description is incomplete")
        tensors = load_tensors(blob)
    except _MALFORMED as error:
        raise InputError(f"this is no snapshot of a segmenter, or a damaged one ({error!s:.200})") from None
    if description.pop("checksum") != _checksum(description, tensors):
        raise InputError("the snapshot is damaged: its checksum is another one")
    return description, tensors


def _checksum(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> int:
    """CRC-32 of a snapshot without its checksum: against damage, not against forgery, and fast."""
    checksum = zlib.crc32(json.dumps(description).encode())
    for name in sorted(tensors):
        value = tensors[name]
        checksum = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), checksum)
        checksum = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, checksum)
    return checksum
