"""When a worker that died is started again, and when no more: exponential back-off, and a circuit breaker.

>>> restarts = Restarts(maximum=2, window=60.0)
>>> [(restarts.died(at), restarts.delay) for at in (0.0, 1.0, 2.0)]
[(True, 0.0), (True, 0.5), (False, 0.5)]
"""

from __future__ import annotations

from collections import deque

FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0


class Restarts:
    """The deaths of one worker.

    Args:
        maximum: restarts within the window; None = no limit, as for cameras, which come back some time.
        window: seconds.

    Attributes:
        count: restarts so far.
        delay: seconds to wait before the next life.
    """

    def __init__(self, maximum: int | None, window: float):
        self._maximum, self._window = maximum, window
        self._deaths: deque[float] = deque()
        self.count = 0
        self.delay = 0.0

    def died(self, at: float) -> bool:
        """A death, in seconds of any clock: whether there shall be another life; False = it is enough.

        The first death within the window is followed by a restart at once, the next by later and later ones.
        """
        while self._deaths and at - self._deaths[0] > self._window:
            self._deaths.popleft()
        if self._maximum is not None and len(self._deaths) >= self._maximum:
            return False
        self._deaths.append(at)
        self.count += 1
        recent = len(self._deaths)
        self.delay = 0.0 if recent == 1 else min(FIRST_DELAY * 2 ** min(recent - 2, 10), LONGEST_DELAY)
        return True
