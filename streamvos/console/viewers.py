"""One open page: what is to be sent to it, of which the newest wins.

viewer = Viewer()
viewer.show(packed); viewer.say("status", streams=[])
async for message in viewer.messages(): ...

A viewer has one place for the newest picture and one for the newest message of each kind, so a slow one gets
fewer, and nobody waits for it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

IN_FLIGHT = 2
"""Pictures that a viewer may have been sent without having drawn them."""

EVENTS = 256
"""Events that are remembered, or wait for a viewer."""


class Viewer:
    """One open page.

    Attributes:
        stream: what it watches; "" for nothing.
        sent: pictures that were sent to it.
        skipped: pictures that newer ones have overtaken.
    """

    def __init__(self) -> None:
        self.stream = ""
        self.sent = self.skipped = 0
        self._view: bytes | None = None
        self._texts: dict[str, str] = {}
        self._events: list[dict[str, Any]] = []
        self._credit = IN_FLIGHT
        self._changed = asyncio.Event()

    def show(self, view: bytes) -> None:
        """Send a picture when the viewer has time; it replaces one that still waits."""
        self.skipped += self._view is not None
        self._view = view
        self._changed.set()

    def say(self, kind: str, /, **fields: Any) -> None:
        """Send a message; the newest of a kind wins."""
        self._texts[kind] = json.dumps({"type": kind, **fields}, allow_nan=False)
        self._changed.set()

    def tell(self, event: dict[str, Any]) -> None:
        """Send an event; they are collected."""
        self._events = [*self._events, event][-EVENTS:]
        self._changed.set()

    def drawn(self) -> None:
        """Note that the viewer has drawn a picture."""
        self._credit = min(IN_FLIGHT, self._credit + 1)
        self._changed.set()

    def forget_view(self) -> None:
        """Do not send the waiting picture."""
        self._view = None

    async def messages(self) -> AsyncIterator[str | bytes]:
        """What is to be sent, without end."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._texts:
                yield self._texts.pop(next(iter(self._texts)))
            if self._events:
                events, self._events = self._events, []
                yield json.dumps({"type": "events", "events": events}, allow_nan=False)
            if self._view is not None and self._credit > 0:
                view, self._view = self._view, None
                self._credit -= 1
                self.sent += 1
                yield view
                self._changed.set()
