"""Where networks run.

>>> choose_device("auto")           # on a machine without a GPU
device(type='cpu')
"""

from __future__ import annotations

import torch

from streamvos.types import InputError


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
