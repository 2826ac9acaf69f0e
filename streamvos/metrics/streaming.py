"""Streaming accuracy: which mask counts at a frame when time does not stop.

Frames arrive at the video's rate. The method takes the newest frame whenever it is free; frames that arrive
while it works are skipped. At a frame counts the newest mask that is finished by its arrival (Li, Wang and
Ramanan, "Towards Streaming Perception", ECCV 2020). The clock is simulated: what a frame costs is given, so
that the same costs give the same masks on every machine.

The first frame's mask is given, hence it is known at once and counts until another is finished; but the
method is busy with it for as long as it takes to learn the objects.

    >>> list(newest_finished(6, fps=10, process=lambda frame: 0.0))   # offline
    [0, 1, 2, 3, 4, 5]
    >>> list(newest_finished(6, fps=10, process=lambda frame: 0.09))  # keeps up: one frame late
    [0, 0, 1, 2, 3, 4]
    >>> list(newest_finished(6, fps=10, process=lambda frame: 0.15))  # frame 2 is never looked at
    [0, 0, 0, 1, 1, 3]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from streamvos.types import InputError

_PERIOD = 10**6  # ticks of the clock from frame to frame: whole numbers, so that one period is exactly one


def newest_finished(count: int, fps: float, process: Callable[[int], float]) -> Iterator[int]:
    """For each frame in order, the processed frame whose mask counts there.

    A lower cost does not always give fresher masks. At 2 periods each frame is begun as it arrives, and masks
    are two or three frames old; at 1.9 periods most are begun late, and masks are three or four frames old.

    Args:
        count: frames of the video; frame i arrives i / fps seconds after frame 0.
        fps: frames per second.
        process: called with the number of each frame that the method takes, in ascending order and from 0
            on, before the first frame at which its mask may count; returns the seconds that it costs.

    Raises:
        InputError: `fps` is not positive and finite, or a cost is negative or not finite.
    """
    if not 0 < fps < math.inf:
        raise InputError(f"the frame rate is {fps:g}; expected a finite number above 0")
    taken, start, shown = 0, 0, 0
    finish: int | None = None  # of the taken frame; None while it has not begun
    for frame in range(count):
        now = frame * _PERIOD
        while taken < count and start <= now:
            if finish is None:
                finish = start + _ticks(process(taken), fps)
            if finish > now:
                break
            shown = taken
            taken = max(finish // _PERIOD, taken + 1)  # the newest, or wait for the next
            start, finish = max(finish, taken * _PERIOD), None
        yield shown


def _ticks(seconds: float, fps: float) -> int:
    if not 0 <= seconds * fps < math.inf:
        raise InputError(f"a frame costs {seconds} s; expected a finite number, not negative")
    return round(seconds * fps * _PERIOD)
