"""The choice between Triton kernels and tiles, and the fallback where a kernel cannot run.

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
    except Exception as error:  # an incomplete installation raises anything
        return (
            f"triton cannot be imported ({type(error).__name__}: {error}); it comes with CUDA builds of torch"
        )
    if device_type == "cuda" or triton.knobs.runtime.interpret:
        return None
    return f"triton needs a GPU, the tensors are on {device_type!r}; TRITON_INTERPRET=1 runs its interpreter"


def wants_kernels(choice: Kernel, tensor: Tensor, possible: bool) -> bool:
    """Whether to try kernels.

    Args:
        choice: "auto" means kernels on a GPU where they can run.
        tensor: one of the tensors to work on.
        possible: whether the kernels can handle these arguments.

    Raises:
        InputError: "triton" was chosen and cannot run.
    """
    if choice == "tiles":
        return False
    # fake and traced tensors have no storage that a kernel could read
    real = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type != "meta"
    if choice == "auto":
        return possible and real and tensor.device.type == "cuda" and why_not("cuda") is None
    reason = why_not(tensor.device.type)
    if reason is None and not (possible and real):
        reason = "these values are beyond the limits of the kernels"
    if reason is not None:
        raise InputError(f'kernel="triton" cannot be used: {reason}; choose "auto" or "tiles"')
    return True


def attempt(name: str, choice: Kernel, run: Callable[[], Answer]) -> Answer | None:
    """The answer of `run`; None where it fails, or has failed before, under "auto". "triton" raises.

    Args:
        name: name of the kernels, for the warning.
        choice: "auto" or "triton".
        run: launches the kernels.
    """
    if choice == "auto" and name in _broken:
        return None
    try:
        return run()
    except torch.OutOfMemoryError:  # tiles would run out of memory too
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
