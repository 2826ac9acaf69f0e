"""The state of one stream: the half of a step that remembers.

    question = state.ask(features, annotation)
    decision = decide(method, question)
    state.learn(features, question, decision)

A segmenter does it in one process; in a pipeline it is the memory stage.
"""

from __future__ import annotations

import json
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from streamvos.methods import Method
from streamvos.methods.base import Target
from streamvos.segmenter.decisions import Decision, Question
from streamvos.types import Annotation, Features, InputError

SNAPSHOT = "streamvos-snapshot-1"


class StreamState:
    """What is remembered of one stream.

    Args:
        method: on its device; its options and its targets are used, it is not changed.
        device: where snapshots are loaded to.
        defer: training is put off, to be done beside the stream (`streamvos.methods.base.Lesson`).

    Attributes:
        target: of the method.
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

    @property
    def object_ids(self) -> tuple[int, ...]:
        """The ids being followed, ascending."""
        return self.target.object_ids

    @torch.inference_mode()
    def ask(self, features: Features, annotation: Annotation | None) -> Question:
        """What has to be decided about a frame.

        Args:
            features: of the frame.
            annotation: what the user says about it.

        Raises:
            InputError: there was never a mask, and this frame has none either.
        """
        if not self.started and annotation is None:
            raise InputError(
                "step(frame) came before any mask; begin with step(frame, mask), mask an (H, W) label map"
            )
        evidence = self.target.read(features) if self.object_ids else None
        return Question(features.size, evidence, annotation, not self.started)

    @torch.inference_mode()
    def learn(self, features: Features, question: Question, decision: Decision) -> None:
        """Remember what was decided.

        Args:
            features: of the frame.
            question: as asked.
            decision: the answer to it.
        """
        if question.annotation is None:
            if self.object_ids:
                self.target.write(features, decision.predicted)
        else:
            assert decision.label_map is not None
            soft = decision.predicted if self.object_ids else None
            named = question.annotation.object_ids
            self.target.annotate(features, decision.label_map, decision.object_ids, named, soft)
        self.size, self.started = features.size, True
        self.count += 1

    def forget(self, object_id: int) -> None:
        """Follow an object no longer.

        Raises:
            InputError: it is not followed.
        """
        if object_id not in self.object_ids:
            raise InputError(f"object {object_id} is not followed; known objects: {list(self.object_ids)}")
        self.target.forget(object_id)

    @torch.inference_mode()
    def snapshot(self) -> bytes:
        """Everything, to continue from elsewhere, bit-identically: safetensors, without weights."""
        state = {name: value.cpu().contiguous() for name, value in self.target.state_dict().items()}
        description = {
            "method": self.method.name,
            "options": self._options(),
            "size": self.size,
            "count": self.count,
            "started": self.started,
        }
        # one entry only: safetensors writes several in an order that changes from call to call
        return save_tensors(state, metadata={SNAPSHOT: json.dumps(description)})

    @torch.inference_mode()
    def restore(self, blob: bytes) -> None:
        """Continue from what `snapshot` gave.

        Raises:
            InputError: no snapshot, or that of another method or of other options; nothing is changed.
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
        target = self._new_target()
        target.load_state_dict({name: value.to(self.device) for name, value in tensors.items()})
        size = description["size"]
        self.target = target
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.count, self.started = int(description["count"]), bool(description["started"])

    def _new_target(self) -> Target:
        target = self.method.target()
        target.defer = self._defer
        return target

    def _options(self) -> dict[str, Any]:
        return self.method.options.model_dump(mode="json")


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
