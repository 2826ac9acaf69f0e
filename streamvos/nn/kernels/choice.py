"""Whether kernels run or tiles, and what happens when a kernel cannot.

if wants_kernels("auto", query):
    answer = attempt("propagation", "auto", lambda: propagate_in_kernels(...))   # None: use the tiles
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, TypeVar

import torch
from torch import Tensor

from streamvos.types import InputError

Kernel = Literal["auto", "tiles", "triton"]
Answer = TypeVar("Answer")

_broken: set[str] = set()


@lru_cache
def why_not(device_type: str) -> str | None:
    """Why Triton cannot run on such a device, or None where it can."""
    try:
        import triton
    except Exception as error:  # a half-installed one raises whatever it likes
        return (
            f"triton cannot be imported ({type(error).__name__}: {error}); it comes with CUDA builds of torch"
        )
    if device_type == "cuda" or triton.knobs.runtime.interpret:
        return None
    return f"triton needs a GPU, the tensors are on {device_type!r}; TRITON_INTERPRET=1 runs its interpreter"


def wants_kernels(choice: Kernel, tensor: Tensor, possible: bool) -> bool:
    """Whether kernels are to be tried.

    Args:
        choice: "auto" is kernels on a GPU where they can be used.
        tensor: of those that are to be worked on.
        possible: the kernels know how to do what is asked.

    Raises:
        InputError: "triton" was asked for and cannot be had.
    """
    if choice == "tiles":
        return False
    # stand-ins without storage (a fake tensor, one that is traced) have nothing a kernel could read
    real = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type != "meta"
    if choice == "auto":
        return possible and real and tensor.device.type == "cuda" and why_not("cuda") is None
    reason = why_not(tensor.device.type)
    if reason is None and not (possible and real):
        reason = "these values are beyond what the kernels do"
    if reason is not None:
        raise InputError(f'kernel="triton" cannot be used: {reason}; choose "auto" or "tiles"')
    return True


def attempt(name: str, choice: Kernel, run: Callable[[], Answer]) -> Answer | None:
    """The answer of `run`; None, from then on at once, where it failed under "auto".

    Args:
        name: of the kernels, for the warning.
        choice: only "auto" falls back; what "triton" raises is for the caller to see.
        run: launches kernels.
    """
    if choice == "auto" and name in _broken:
        return None
    try:
        return run()
    except torch.OutOfMemoryError:  # tiles would fare no better
        raise
    except Exception as error:
        if choice == "triton":
            raise
        _broken.add(name)
        first = (str(error).strip().splitlines() or [""])[0]
        warnings.warn(
            f"the Triton kernels of {name} cannot be used here ({type(error).__name__}: {first}); "
            "tiles of torch's operations do the work, more slowly",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
