"""Features, questions and decisions as arrays of messages, and back.

Every tensor is an array of its own and keeps its memory format: the same numbers in another order would be
summed in another order, and masks would no longer equal those of a `Segmenter` bit for bit. Within one
process the arrays are the tensors themselves.

    arrays, fields = pack_question(question)
    question = unpack_question(inbox, message, device)

Unpacking raises `Refused` where an array or a field is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from streamvos.pipeline.wire.inbox import Inbox
from streamvos.pipeline.wire.messages import Array, Message, Place, Refused
from streamvos.segmenter import Decision, Question
from streamvos.types import Annotation, Evidence, Features

Packed = tuple[dict[str, Any], dict[str, Any]]
"""Arrays and fields of a message."""


def pack_features(features: Features) -> Packed:
    """Features of one frame (B = 1)."""
    arrays, strides = _pack_tensors("f.", features.maps)
    return arrays, {"size": list(features.size), "strides": strides}


def unpack_features(inbox: Inbox, message: Message, device: torch.device) -> Features:
    """The inverse of `pack_features`."""
    height, width = message["size"]
    return Features(_unpack_tensors(inbox, message, "f.", device), (int(height), int(width)))


def pack_question(question: Question) -> Packed:
    """What the decoder needs of a frame."""
    arrays: dict[str, Any] = {}
    fields: dict[str, Any] = {"size": list(question.size), "first": question.first}
    if question.evidence is not None:
        arrays, fields["strides"] = _pack_tensors("e.", question.evidence.maps)
        fields["evidence_ids"] = list(question.evidence.object_ids)
    if question.annotation is not None:
        arrays["given"] = question.annotation.label_map
        fields["given_ids"] = list(question.annotation.object_ids)
    if question.limits is not None:
        arrays["limits"] = question.limits
    return arrays, fields


def unpack_question(inbox: Inbox, message: Message, device: torch.device) -> Question:
    """The inverse of `pack_question`."""
    evidence = annotation = None
    if (ids := message.get("evidence_ids")) is not None:
        evidence = Evidence(_unpack_tensors(inbox, message, "e.", device), tuple(ids))
    if (ids := message.get("given_ids")) is not None:
        annotation = Annotation(inbox.tensor(message, "given").to(device), tuple(ids))
    height, width = message["size"]
    limits = _optional(inbox, message, "limits", device)
    return Question((int(height), int(width)), evidence, annotation, bool(message["first"]), limits)


def pack_decision(decision: Decision) -> Packed:
    """What the memory learns from."""
    arrays: dict[str, Any] = {"predicted": decision.predicted}
    if decision.label_map is not None:
        arrays["label_map"] = decision.label_map
    if decision.extents is not None:
        arrays["extents"] = decision.extents
    return arrays, {"ids": list(decision.object_ids)}


def unpack_decision(inbox: Inbox, message: Message, device: torch.device) -> Decision:
    """The inverse of `pack_decision`."""
    predicted = inbox.tensor(message, "predicted").to(device)
    label_map, extents = (_optional(inbox, message, name, device) for name in ("label_map", "extents"))
    return Decision(tuple(message["ids"]), predicted, label_map, extents)


def with_own_picture(inbox: Inbox, message: Message) -> Message:
    """Copy the picture out of the edge's own arena, whose slot is reused once credit is granted.

    Pictures are there if they came from another host; those in the source's arena stay until the sinks have
    seen them.

    Raises:
        Refused: the slot has been used again.
    """
    image = message.arrays.get("image")
    if image is None or not isinstance(image.data, Place) or image.data.arena != inbox.spec.arena:
        return message
    return replace(message, arrays={**message.arrays, "image": Array.of(inbox.array(message, "image"))})


def array_sizes(arrays: Mapping[str, Any]) -> list[int]:
    """Bytes of every packed tensor."""
    return [one.numel() * one.element_size() for one in arrays.values() if isinstance(one, torch.Tensor)]


def _optional(inbox: Inbox, message: Message, name: str, device: torch.device) -> torch.Tensor | None:
    return inbox.tensor(message, name).to(device) if name in message.arrays else None


def _pack_tensors(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Packed:
    arrays, strides = {}, {}
    for name, tensor in tensors.items():
        if not tensor.is_contiguous() and _is_dense(tensor):
            strides[prefix + name] = [list(tensor.shape), list(tensor.stride())]
            tensor = tensor.as_strided((tensor.numel(),), (1,))
        arrays[prefix + name] = tensor
    return arrays, strides


def _unpack_tensors(
    inbox: Inbox, message: Message, prefix: str, device: torch.device
) -> dict[str, torch.Tensor]:
    strides = message.get("strides", {})
    tensors = {}
    for name in message.arrays:
        if name.startswith(prefix):
            tensor = inbox.tensor(message, name)
            if name in strides:
                shape, steps = strides[name]
                if torch.Size(shape).numel() != tensor.numel():
                    raise Refused("strides", name)
                tensor = tensor.as_strided(shape, steps)
            tensors[name.removeprefix(prefix)] = tensor.to(device)
    return tensors


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether its elements fill their memory without gaps or overlaps, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
