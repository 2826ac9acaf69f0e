"""A network part to a callable that runs it: how, and on what device.

    run = compile_module(method.extractor, backend="eager", device="cpu")
    features = run(frames)

`eager` is the reference that every other backend is compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from streamvos.types import InputError

BACKENDS = ("eager",)


def choose_device(device: str | torch.device) -> torch.device:
    """ "auto" is the first NVIDIA GPU, or the CPU where there is none.

    Raises:
        InputError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used: {reason}; try 'auto' or 'cpu'") from None
    return chosen


def compile_module(module: nn.Module, backend: str, device: torch.device) -> Callable[..., Any]:
    """Make `module` ready to run on `device`.

    Args:
        module: frames (B, 3, H, W) float32 -> anything; it is moved to the device and set to evaluation.
        backend: one of `BACKENDS`.
        device: where.

    Raises:
        InputError: an unknown backend.
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}; choose one of: {', '.join(BACKENDS)}")
    module = module.eval().requires_grad_(False).to(device)
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(frames: torch.Tensor) -> Any:
        with torch.inference_mode():
            return module(frames.contiguous(memory_format=torch.channels_last))

    return run
