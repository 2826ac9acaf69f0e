"""Objects that stages of one process hand to each other without copying: what "reference" edges do.

    key = references.put(edge, tensor)           # the producer; the message carries the key alone
    tensor = references.take(edge, key)          # the consumer, once

A key is only good on the edge that the object was put on, so that no message from outside can reach one.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from typing import Any

from streamvos.pipeline.wire.messages import Refused


class References:
    """Objects handed over within one process: by number, and only on the edge that they were put on."""

    def __init__(self) -> None:
        self._objects: dict[int, tuple[Any, Any]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def put(self, edge: Any, value: Any) -> int:
        with self._lock:
            number = next(self._numbers)
            self._objects[number] = edge, value
            return number

    def take(self, edge: Any, number: int) -> Any:
        """The object, which is then gone from here.

        Raises:
            Refused: there is none of that number on this edge.
        """
        with self._lock:
            if self._objects.get(number, (None,))[0] != edge:
                raise Refused("reference", f"nothing of number {number}")
            return self._objects.pop(number)[1]

    def forget(self, edge: Any) -> None:
        """Let go of what was put on an edge and never taken."""
        with self._lock:
            for number in [one for one, (put_on, _) in self._objects.items() if put_on == edge]:
                del self._objects[number]


@dataclass(frozen=True, slots=True)
class Held:
    """An object that came by reference."""

    value: Any


references = References()
"""Of this process."""
