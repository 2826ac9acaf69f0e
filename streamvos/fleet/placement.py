"""Which share of a machine runs which stream.

A share is what one supervisor has: a GPU, a part of one, or some cores. A stream takes the part of a share
that measuring has shown: 1/12 where a share holds 12 of its kind. Both are exact fractions, so a share that
holds 12 holds 12. Where machines differ, shares are of kinds, and a stream takes another part of each kind.

    board = Board(reserve=Fraction(1, 10))
    board.open("node1-0", "H200")
    board.put("front", {"": Fraction(1, 12), "H200": Fraction(1, 40)})      # "node1-0"; None = no room
    board.close("node1-0")                        # it takes no further ones

A stream goes to the share that is then used least, so that a machine that dies takes few streams with it, and
it stays there: moving costs frames. The fleet and its simulation use this same class.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from fractions import Fraction

FULL = Fraction(1)

Loads = Mapping[str, Fraction]
"""Kind of a share ("" = none in particular) -> the part of one that a stream takes; others cannot hold it."""


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
        self._kinds: dict[str, str] = {}
        self._where: dict[str, str] = {}
        self.busy = 0
        # kind -> (used, share); an entry whose `used` is not the share's any more is dropped when it comes up
        self._emptiest: dict[str, list[tuple[Fraction, str]]] = {}

    @property
    def shares(self) -> Mapping[str, Fraction]:
        """Share -> how much of it is used, closed ones too."""
        return self._used

    def open(self, share: str, kind: str = "") -> None:
        """A share takes streams, from now on or again; its kind is that of the first time."""
        self._closed.discard(share)
        self._kinds.setdefault(share, kind)
        self._shares.setdefault(share, {})
        self._set_used(share, self._used.get(share, Fraction(0)))

    def close(self, share: str) -> None:
        """A share takes no further streams; those on it stay."""
        self._closed.add(share)

    def lose(self, share: str) -> list[str]:
        """Forget a share; returns the streams that were on it, the largest first."""
        self._closed.discard(share)
        self._kinds.pop(share, None)
        self.busy -= bool(self._used.pop(share, None))
        streams = self._shares.pop(share, {})
        for name in streams:
            del self._where[name]
        return _largest_first(streams)

    def put(self, stream: str, loads: Loads, urgent: bool = False, avoid: str = "") -> str | None:
        """Place a stream on the open share that is then used least, the first by name of several.

        Args:
            stream: its name; it is on no share.
            loads: the parts of shares that it takes.
            urgent: whether the reserve may be used.
            avoid: a share that is taken only if no other has room.

        Returns:
            The share; None if there is no room.
        """
        limit = FULL if urgent else self._new_until
        fitting = [
            (share == avoid, used + load, share)
            for kind, load in loads.items()
            for used, share in self._emptiest_of(kind, avoid)
            if used + load <= limit
        ]
        if not fitting:
            return None
        share = min(fitting)[2]
        self.keep(stream, loads, share)
        return share

    def keep(self, stream: str, loads: Loads, share: str) -> None:
        """Note that a stream is on a share, whether it fits or not."""
        load = loads.get(self._kinds[share], FULL)
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

    def _emptiest_of(self, kind: str, avoid: str) -> list[tuple[Fraction, str]]:
        """The open share of a kind that is used least; and before it `avoid`, if it is used less."""
        heap = self._emptiest.get(kind, [])
        found: dict[str, Fraction] = {}
        while heap:
            used, share = heap[0]
            valid = self._used.get(share) == used and share not in self._closed
            if valid:
                found[share] = used
                if share != avoid:
                    break
            heapq.heappop(heap)
        if avoid in found:
            heapq.heappush(heap, (found[avoid], avoid))
        return [(used, share) for share, used in found.items()]

    def _set_used(self, share: str, used: Fraction) -> None:
        self.busy += bool(used) - bool(self._used.get(share))
        self._used[share] = used
        if share not in self._closed:
            heapq.heappush(self._emptiest.setdefault(self._kinds[share], []), (used, share))


def in_order(streams: Mapping[str, Fraction], first: Iterable[str] = ()) -> list[str]:
    """In which order streams are placed: some before the others, the largest before smaller ones."""
    urgent = set(first)
    return sorted(streams, key=lambda name: (name not in urgent, -streams[name], name))


def _largest_first(streams: Mapping[str, Fraction]) -> list[str]:
    return in_order(streams)
