"""The arithmetic in which networks run on a device.

>>> resolve_precision("auto", torch.device("cpu"))   # on a CPU with bfloat16 instructions
'bfloat16'
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]
PrecisionChoice = Literal["auto", "float32", "bfloat16"]


def resolve_precision(choice: PrecisionChoice, device: torch.device) -> Precision:
    """ "auto" is bfloat16 where the device has instructions for it, else float32, which is then faster."""
    if choice != "auto":
        return choice
    index = device.index if device.type == "cuda" else None
    return "bfloat16" if _has_bfloat16(device.type, index) else "float32"


def in_precision(choice: PrecisionChoice, device: torch.device) -> AbstractContextManager[object]:
    """A context in which networks run under bfloat16 autocast, or none; convert the results."""
    if resolve_precision(choice, device) == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """A context in which the caller's autocast does not round products."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


@lru_cache
def _has_bfloat16(kind: str, index: int | None) -> bool:
    if kind == "cuda":
        major, _ = torch.cuda.get_device_capability(index)
        return major >= 8
    if kind != "cpu":
        return False
    ask = getattr(torch.cpu, "get_capabilities", None)  # newer than the oldest torch that is accepted
    known = ask() if ask is not None else {"avx512_bf16": torch.cpu._is_avx512_bf16_supported()}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))
