"""Between host and device, without waiting.

What is on its way to a GPU or back need not hold the host up: the operations queue behind it. But
`torch.tensor(values, device="cuda")` waits until all that is queued is done, and so does reading a value.

    ratio = send((480, 832), torch.float32, scores.device)
    seen = Arrival(masks.any(-1))                 # starts the copy
    ...                                           # a frame later it is long there
    seen.values().tolist()
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def send(values: Sequence[object] | float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A small table as a tensor on `device`.

    It is not pinned: the driver takes a few kilobytes along with the command.
    """
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def take(values: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """`values[rows]`, whose list would be waited for on its way to a device."""
    return values.index_select(0, send(rows, torch.int64, values.device))


class Arrival:
    """Values of a device on their way to the host.

    Args:
        values: on any device; on the CPU they are there at once.
    """

    def __init__(self, values: torch.Tensor):
        self._values = values.to("cpu", non_blocking=True)  # torch pins what it copies to
        self._event = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None

    def ready(self) -> bool:
        """Whether asking for the values would not wait."""
        return self._event is None or self._event.query()

    def values(self) -> torch.Tensor:
        """On the CPU; waits for what was queued before this arrival was made."""
        if self._event is not None:
            self._event.synchronize()
        return self._values
