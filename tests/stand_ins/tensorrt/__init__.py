"""Stands for TensorRT where only torch-tensorrt's lowering and partitioning run, which need its names."""

from __future__ import annotations

import sys
import types
from typing import Any

__version__ = "11.0.0"


class Anything(type):
    """A class of which every attribute is such a class, and which may stand wherever one is named."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = Anything(name, (), {})
        setattr(cls, name, made)
        return made

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return cls

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __or__

    def __int__(cls) -> int:
        return 0

    __index__ = __int__

    def __iter__(cls) -> Any:
        return iter(())


def __getattr__(name: str) -> Any:
    if name.startswith("__") or name == "tensorrt_rtx":
        raise AttributeError(name)
    made = Anything(name, (), {})
    globals()[name] = made
    return made


class _Plugin(types.ModuleType):
    __getattr__ = staticmethod(__getattr__)


plugin = _Plugin("tensorrt.plugin")
tensorrt = sys.modules[__name__]  # names are asked for here and there, and have to be the same
