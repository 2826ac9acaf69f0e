"""What the state dicts of all targets share: ids, prefixes, and checks before use."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from streamvos.types import MAX_OBJECT_ID, InputError

State = Mapping[str, torch.Tensor]


def with_prefix(prefix: str, state: State) -> dict[str, torch.Tensor]:
    """The entries under `prefix` + their name."""
    return {prefix + name: value for name, value in state.items()}


def part_of(state: State, prefix: str) -> dict[str, torch.Tensor]:
    """The entries whose name begins with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def ids_of(state: State, method: str) -> tuple[int, ...]:
    """The object ids of a target's state.

    Raises:
        InputError: they are missing, or do not ascend within 1..254.
    """
    if "object_ids" not in state:
        raise InputError(f"this is no state of a {method} target: no object_ids among {sorted(state)[:8]}")
    ids = tuple(int(i) for i in state["object_ids"].flatten())
    if list(ids) != sorted(set(ids)) or any(not 1 <= i <= MAX_OBJECT_ID for i in ids):
        raise InputError(f"object ids must ascend within 1..{MAX_OBJECT_ID}, got {list(ids)}")
    return ids


def check_shapes(state: State, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError for the first tensor that is missing or has another shape."""
    for name, shape in shapes.items():
        got = tuple(state[name].shape) if name in state else "no such tensor"
        if got != shape:
            raise InputError(f"the state's {name} must have shape {shape}, got {got}")
