"""Which share of a machine runs which stream.

A share is what one supervisor has: a GPU, a part of one, or some cores. A stream takes the part of a share
that measuring has shown: 1/12 where a share holds 12 of its kind. Both are exact fractions, so a share that
holds 12 holds 12.

    board = Board(reserve=Fraction(1, 10))
    board.open("node1-0")
    board.put("front", Fraction(1, 12))           # "node1-0"; None = there is no room
    board.close("node1-0")                        # the streams that must go elsewhere

A stream goes to the share with the most room, so that a machine that dies takes few streams with it, and it
stays there: moving costs frames. The fleet and its simulation use this same class.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from fractions import Fraction

FULL = Fraction(1)


class Board:
    """The shares, and the streams on them.

    Args:
        reserve: the part of each share that is kept free for streams of machines that are lost.

    Attributes:
        busy: how many shares have streams.
    """

    def __init__(self, reserve: Fraction = Fraction(0)):
        self._new_until = FULL - reserve
        self._shares: dict[str, dict[str, Fraction]] = {}
        self._used: dict[str, Fraction] = {}
        self._closed: set[str] = set()
        self._where: dict[str, str] = {}
        self.busy = 0
        # (used, share): an entry whose `used` is not the share's any more is dropped when it comes up
        self._emptiest: list[tuple[Fraction, str]] = []

    @property
    def shares(self) -> Mapping[str, Fraction]:
        """Share -> how much of it is used, closed ones too."""
        return self._used

    def open(self, share: str) -> None:
        """A share takes streams, from now on or again."""
        self._closed.discard(share)
        self._shares.setdefault(share, {})
        self._set_used(share, self._used.get(share, Fraction(0)))

    def close(self, share: str) -> None:
        """A share takes no further streams; those on it stay."""
        self._closed.add(share)

    def lose(self, share: str) -> list[str]:
        """Forget a share; returns the streams that were on it, the largest first."""
        self._closed.discard(share)
        self.busy -= bool(self._used.pop(share, None))
        streams = self._shares.pop(share, {})
        for name in streams:
            del self._where[name]
        return _largest_first(streams)

    def put(self, stream: str, load: Fraction, urgent: bool = False) -> str | None:
        """Place a stream on the open share with the most room, the first by name of several.

        Args:
            stream: its name; it is on no share.
            load: the part of a share that it takes.
            urgent: whether the reserve may be used.

        Returns:
            The share; None if there is no room.
        """
        share = self._find(load, FULL if urgent else self._new_until)
        if share is not None:
            self.keep(stream, load, share)
        return share

    def has_room(self, load: Fraction) -> bool:
        """Whether an urgent stream could be placed."""
        return self._find(load, FULL) is not None

    def keep(self, stream: str, load: Fraction, share: str) -> None:
        """Note that a stream is on a share, whether it fits or not."""
        self._shares[share][stream] = load
        self._where[stream] = share
        self._set_used(share, self._used[share] + load)

    def take(self, stream: str) -> None:
        """Take a stream off its share, if it is on one."""
        share = self._where.pop(stream, None)
        if share is not None:
            self._set_used(share, self._used[share] - self._shares[share].pop(stream))

    def on(self, share: str) -> list[str]:
        """The streams on a share, the largest first."""
        return _largest_first(self._shares.get(share, {}))

    def _find(self, load: Fraction, until: Fraction) -> str | None:
        while self._emptiest:
            used, share = self._emptiest[0]
            if self._used.get(share) == used and share not in self._closed:
                return share if used + load <= until else None
            heapq.heappop(self._emptiest)
        return None

    def _set_used(self, share: str, used: Fraction) -> None:
        self.busy += bool(used) - bool(self._used.get(share))
        self._used[share] = used
        if share not in self._closed:
            heapq.heappush(self._emptiest, (used, share))


def in_order(streams: Mapping[str, Fraction], first: Iterable[str] = ()) -> list[str]:
    """In which order streams are placed: some before the others, the largest before smaller ones."""
    urgent = set(first)
    return sorted(streams, key=lambda name: (name not in urgent, -streams[name], name))


def _largest_first(streams: Mapping[str, Fraction]) -> list[str]:
    return in_order(streams)
