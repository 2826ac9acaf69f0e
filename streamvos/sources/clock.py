"""Presentation times that always rise, whatever the stream's own clock does.

clock = FileClock(period=1 / 25)
[clock(seconds) for seconds in (5.0, 5.04, 0.0, 0.04)]     # two joined files: 0.0, 0.04, 0.08, 0.12

clock = LiveClock()
clock(position, captured_ns)
"""

from __future__ import annotations

import math

_SMALLEST_STEP = 0.001
"""Seconds between frames that have arrived at once."""

_WINDOW = 1.5
"""Seconds of arrival over which the clock of a live stream is compared with it."""

_TOLERANCE = 1.5
"""How many times faster or slower than arrival a clock may run over a window."""


class FileClock:
    """Times of a file's frames, from 0. A stamp that does not rise is put one period after the last.

    After a step back, such as where two files were joined, all stamps move on by the same amount.

    Args:
        period: seconds between frames where the file says nothing.
    """

    def __init__(self, period: float) -> None:
        self._period = period
        self._start: float | None = None
        self._offset, self._last = 0.0, -math.inf

    def __call__(self, seconds: float | None) -> float:
        """Time of the next frame in seconds from the first; `seconds`: its stamp in the file, or None."""
        if seconds is None or not math.isfinite(seconds):
            seconds = math.nan
        elif self._start is None:
            self._start = seconds
        own = math.nan if self._start is None else seconds - self._start
        if own > self._last:  # the file's own time, also after frames whose stamps stood still
            self._offset = 0.0
            pts = own
        elif own + self._offset > self._last:
            pts = own + self._offset
        else:
            pts = 0.0 if self._last == -math.inf else self._last + self._period
            self._offset = 0.0 if math.isnan(own) else pts - own
        self._last = pts
        return pts


class LiveClock:
    """Times of a live stream's frames, from 0: its own stamps while they rise and keep pace with arrival.

    Streams without time stamps give NaN or zeros, clocks that wrap or restart go back, and FFmpeg numbers the
    frames of a stream without clock at a rate of its own. From the first such fault on, times of arrival
    count. A clock is too fast or too slow if it is so over two windows in a row: a burst at the beginning, or
    after a stall, is none.

    Args:
        trusted: False: the stream has no clock of its own.
        checked: False: arrival says little, as frames come in pieces of seconds or wait for the reader.
    """

    def __init__(self, trusted: bool = True, checked: bool = True) -> None:
        self._trusted, self._checked = trusted, checked
        self._last: tuple[float, int, float] | None = None  # position, arrival, pts
        self._window: tuple[float, int] | None = None  # position and arrival at its beginning
        self._strikes = 0  # windows in a row that were too fast (> 0) or too slow (< 0)

    def __call__(self, position: float, captured_ns: int) -> float:
        """Time of the next frame in seconds.

        Args:
            position: the stream's own time, seconds; NaN if it has none.
            captured_ns: monotonic ns at which the frame arrived.
        """
        if self._last is None:
            self._last, self._window = (position, captured_ns, 0.0), (position, captured_ns)
            return 0.0
        last_position, last_captured_ns, last_pts = self._last
        step = position - last_position
        self._trusted = self._trusted and step > 0 and self._keeps_pace(position, captured_ns)
        if not self._trusted:
            step = max((captured_ns - last_captured_ns) * 1e-9, _SMALLEST_STEP)
        pts = last_pts + step
        self._last = (position, captured_ns, pts)
        return pts

    def _keeps_pace(self, position: float, captured_ns: int) -> bool:
        assert self._window is not None
        arrived = (captured_ns - self._window[1]) * 1e-9
        if not self._checked or arrived < _WINDOW:
            return True
        played = position - self._window[0]
        self._window = (position, captured_ns)
        if played > arrived * _TOLERANCE:
            self._strikes = max(self._strikes, 0) + 1
        elif played < arrived / _TOLERANCE:
            self._strikes = min(self._strikes, 0) - 1
        else:
            self._strikes = 0
        return abs(self._strikes) < 2
