"""Transfers between host and device that do not block the host.

Operations can queue behind a transfer to or from a GPU. But `torch.tensor(values, device="cuda")` waits until
all queued work is done, and so does reading a value.

    ratio = send((480, 832), torch.float32, scores.device)
    seen = Arrival(masks.any(-1))                 # starts the copy
    ...                                           # a frame later it has long arrived
    seen.values().tolist()
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def send(values: Sequence[object] | float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A small table as a tensor on `device`, not pinned: the driver sends a few kilobytes inline."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def take(values: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """`values[rows]`, without the wait that indexing with a list causes."""
    return values.index_select(0, send(rows, torch.int64, values.device))


class Arrival:
    """Values of a device on their way to the host; on the CPU they are ready at once."""

    def __init__(self, values: torch.Tensor):
        self._values = values.to("cpu", non_blocking=True)  # torch pins what it copies to
        self._event = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    def ready(self) -> bool:
        """Whether `values` would return without waiting."""
        return self._event is None or self._event.query()

    def values(self) -> torch.Tensor:
        """The values on the CPU; waits for the work queued before this object was made."""
        if self._event is not None:
            self._event.synchronize()
        return self._values
