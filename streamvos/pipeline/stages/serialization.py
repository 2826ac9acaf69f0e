"""Features, questions and decisions as arrays of messages, and back.

Within one process they go by reference, as they are. Between processes every tensor is an array of its own,
whose memory format travels along: the same numbers in another order would be summed in another order, and
masks would no longer equal those of a `Segmenter` bit for bit.

    arrays, fields = pack_question(question, by_reference=False)
    question = unpack_question(inbox, message, device)
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


def pack_features(features: Features, by_reference: bool) -> Packed:
    """Features of one frame (B = 1)."""
    if by_reference:
        return {"features": features}, {}
    arrays, strides = _pack_tensors("f.", features.maps)
    return arrays, {"size": list(features.size), "strides": strides}


def unpack_features(inbox: Inbox, message: Message, device: torch.device) -> Features:
    """What `pack_features` packed.

    Raises:
        Refused: it is not there.
    """
    if "features" in message.arrays:
        features: Features = inbox.tensor(message, "features")
        return features
    size = message["size"]
    return Features(_unpack_tensors(inbox, message, "f.", device), (int(size[0]), int(size[1])))


def pack_question(question: Question, by_reference: bool) -> Packed:
    """What has to be decided about a frame."""
    if by_reference:
        return {"question": question}, {}
    arrays: dict[str, Any] = {}
    fields: dict[str, Any] = {"size": list(question.size), "first": question.first}
    if question.evidence is not None:
        arrays, fields["strides"] = _pack_tensors("e.", question.evidence.maps)
        fields["evidence_ids"] = list(question.evidence.object_ids)
    if question.annotation is not None:
        arrays["given"] = question.annotation.label_map
        fields["given_ids"] = list(question.annotation.object_ids)
    return arrays, fields


def unpack_question(inbox: Inbox, message: Message, device: torch.device) -> Question:
    """What `pack_question` packed.

    Raises:
        Refused: it is not there.
    """
    if "question" in message.arrays:
        question: Question = inbox.tensor(message, "question")
        return question
    evidence = annotation = None
    if (ids := message.get("evidence_ids")) is not None:
        evidence = Evidence(_unpack_tensors(inbox, message, "e.", device), tuple(ids))
    if (ids := message.get("given_ids")) is not None:
        annotation = Annotation(inbox.tensor(message, "given").to(device), tuple(ids))
    height, width = message["size"]
    return Question((int(height), int(width)), evidence, annotation, bool(message["first"]))


def pack_decision(decision: Decision, by_reference: bool) -> Packed:
    """What was decided."""
    if by_reference:
        return {"decision": decision}, {}
    arrays: dict[str, Any] = {"predicted": decision.predicted}
    if decision.label_map is not None:
        arrays["label_map"] = decision.label_map
    return arrays, {"ids": list(decision.object_ids)}


def unpack_decision(inbox: Inbox, message: Message, device: torch.device) -> Decision:
    """What `pack_decision` packed.

    Raises:
        Refused: it is not there.
    """
    if "decision" in message.arrays:
        decision: Decision = inbox.tensor(message, "decision")
        return decision
    label_map = inbox.tensor(message, "label_map").to(device) if "label_map" in message.arrays else None
    return Decision(tuple(message["ids"]), inbox.tensor(message, "predicted").to(device), label_map)


def with_own_picture(inbox: Inbox, message: Message) -> Message:
    """The message with its picture in memory of its own, where the picture's slot goes back with the credit.

    So it is where pictures came in messages, from another host, and go on through shared memory here; in the
    arena of the source they stay until the sinks have seen them.

    Raises:
        Refused: its time is over.
    """
    image = message.arrays.get("image")
    if image is None or not isinstance(image.data, Place) or image.data.arena != inbox.spec.arena:
        return message
    return replace(message, arrays={**message.arrays, "image": Array.of(inbox.array(message, "image"))})


def array_sizes(arrays: Mapping[str, Any]) -> list[int]:
    """Bytes of every tensor of what was packed."""
    return [one.numel() * one.element_size() for one in arrays.values() if isinstance(one, torch.Tensor)]


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
    """Whether its elements fill their memory without gaps or overlaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True
