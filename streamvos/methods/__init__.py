"""The published methods, by name.

method = build("tvos", {"top_k": 10})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from streamvos.methods.base import Decoder, Method, Target
from streamvos.methods.tvos import TVOS, TVOSNetwork, TVOSOptions
from streamvos.types import InputError

METHODS: dict[str, tuple[type[Method], type[BaseModel]]] = {"tvos": (TVOS, TVOSOptions)}
"""Name -> the method's class and the class of its options."""


def build(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """A method with random weights.

    Args:
        name: a key of `METHODS`.
        options: fields of the method's options that differ from their defaults.

    Raises:
        InputError: an unknown method, an unknown option, or a value out of range.
    """
    if name not in METHODS:
        raise InputError(f"unknown method {name!r}; choose one of: {', '.join(sorted(METHODS))}")
    method, options_class = METHODS[name]
    try:
        return method(options_class(**(options or {})))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "options"
        known = ", ".join(options_class.model_fields)
        raise InputError(
            f"{name} option {where}: {first['msg']} (got {first['input']!r}); options are: {known}"
        ) from None


__all__ = ["METHODS", "TVOS", "Decoder", "Method", "TVOSNetwork", "TVOSOptions", "Target", "build"]
