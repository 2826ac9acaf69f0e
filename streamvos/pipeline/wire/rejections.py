"""Counting what is refused, by cause, without letting a flood of it fill the log.

refused = RejectionCounter("control socket")
refused.count("dtype", "complex64")
refused["dtype"]                    # 1
"""

from __future__ import annotations

import logging
import time
from collections import Counter

_logger = logging.getLogger("streamvos.pipeline")


class RejectionCounter(Counter[str]):
    """Cause -> how often; each cause is logged at most once a second.

    Causes are a few texts of our own, never something that a peer chose, so that nothing grows.

    Args:
        where: what the log calls the place.
    """

    def __init__(self, where: str):
        super().__init__()
        self._where = where
        self._logged: dict[str, float] = {}

    def count(self, cause: str, detail: object = "") -> None:
        """One more, for this cause; the detail goes to the log, cut short."""
        self[cause] += 1
        now = time.monotonic()
        if now - self._logged.get(cause, float("-inf")) >= 1.0:
            self._logged[cause] = now
            text = f" ({str(detail)[:120]!r})" if detail != "" else ""
            _logger.warning("%s: refused: %s%s, %d so far", self._where, cause, text, self[cause])
