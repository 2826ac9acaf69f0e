"""The published methods, by name.

method = build("tvos", {"top_k": 10})
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from pydantic import ValidationError

from streamvos.methods.base import Decoder, Method, MethodOptions, Target
from streamvos.methods.feelvos import FEELVOS, FEELVOSOptions
from streamvos.methods.frtm import FRTM, FRTM_FAST, FRTMOptions
from streamvos.methods.joint import JOINT, JOINTOptions
from streamvos.methods.rgmp import RGMP, RGMPOptions
from streamvos.methods.tvos import TVOS, TVOSOptions
from streamvos.types import InputError


class Entry(NamedTuple):
    """What a name in `METHODS` stands for.

    Attributes:
        method: the class.
        options: the class of its options.
        preset: options that this name sets, where the caller does not.
    """

    method: type[Method]
    options: type[MethodOptions]
    preset: Mapping[str, Any] = MappingProxyType({})


METHODS: dict[str, Entry] = {
    "tvos": Entry(TVOS, TVOSOptions),
    "rgmp": Entry(RGMP, RGMPOptions),
    "frtm": Entry(FRTM, FRTMOptions),
    "frtm-fast": Entry(FRTM, FRTMOptions, FRTM_FAST),
    "joint": Entry(JOINT, JOINTOptions),
    "feelvos": Entry(FEELVOS, FEELVOSOptions),
}
"""Name -> method; several names may stand for presets of one method."""


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
    method, options_class, preset = METHODS[name]
    try:
        return method(options_class(**{**preset, **(options or {})}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "options"
        known = ", ".join(options_class.model_fields)
        raise InputError(
            f"{name} option {where}: {first['msg']} (got {first['input']!r}); options are: {known}"
        ) from None


__all__ = ["METHODS", "Decoder", "Entry", "Method", "MethodOptions", "Target", "build"]
