"""The eager backend: the plain module in channels_last; the reference that every engine is compared with.

device = choose_device("auto")
run = eager_run(method.extractor, device)
features = run(frames)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from streamvos.types import InputError


def choose_device(device: str | torch.device) -> torch.device:
    """The device by its name; "auto" is the first NVIDIA GPU, or the CPU where there is none.

    Raises:
        InputError: there is no such device.
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


def prepare(module: nn.Module, device: torch.device) -> nn.Module:
    """The module itself, on the device, for inference, its kernels in channels_last."""
    module = module.eval().requires_grad_(False).to(device)
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def eager_run(module: nn.Module, device: torch.device) -> Callable[..., Any]:
    """`prepare` a module; the result takes frames (B, 3, H, W) float32."""
    module = prepare(module, device)

    def run(frames: torch.Tensor) -> Any:
        with torch.inference_mode():
            return module(frames.contiguous(memory_format=torch.channels_last))

    return run
