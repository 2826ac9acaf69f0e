"""A client of a running fleet: what `streamvos.Client` can do, and draining machines.

with FleetClient("site") as client:
    client.annotate("front", mask)              # wherever the stream runs
    client.drain("camera-host-2")
"""

from __future__ import annotations

from typing import Any

from streamvos.pipeline.clients.client import Client
from streamvos.types import InputError


class FleetClient(Client):
    """As `streamvos.Client`, for the machine on which `streamvos fleet up` runs.

    Raises:
        InputError: there is nothing of this name, or it is a pipeline.
    """

    def __init__(self, name: str = "fleet", **more: Any):
        super().__init__(name, **more)
        try:
            if "shares" not in self.status():
                raise InputError(f"{name!r} is a pipeline, and no fleet; `streamvos ctl` is for it")
        except BaseException:
            self.close()
            raise

    def drain(self, machine: str, undo: bool = False) -> list[str]:
        """Move the streams of a machine elsewhere, as far as there is room; returns when that has begun.

        Args:
            machine: the name of a machine, or one share of it.
            undo: take streams there again instead.

        Returns:
            The shares.

        Raises:
            InputError: there is no such machine.
        """
        return list(self._ask("undrain" if undo else "drain", machine)["shares"])
