"""What a fleet does next: which stream is started and stopped where. No sockets, threads or clocks.

    controller = Controller(reserve=Fraction(1, 10))
    controller.add("front", {"": Fraction(1, 12)}, epoch=0)
    controller.sees({"node1-0": Report("life", asked_at=0.0)}, now=0.0)
    controller.decide(now=0.0)                            # [Start("front", "node1-0", epoch=1)]
    controller.began("front", 1, now=2.5)

Each stream is in one phase:

    waiting --Start--> starting --began--> running --Stop--> stopping --ended--> waiting, or forgotten
       ^------ its share is gone, or the start failed ------'

Every Start has a new epoch. What a share reports of an older one is stopped, so a stream that two shares
have, because one of them was cut off for a while, ends up on the newer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from streamvos.fleet.placement import Board, Loads, in_order
from streamvos.types import InputError

Phase = Literal["waiting", "starting", "running", "stopping"]

LONGEST_RETRY = 30.0
"""Seconds between two starts of a stream that cannot be started, at most; the first retry comes after 1 s."""


@dataclass(frozen=True)
class Start:
    """A stream is to begin on a share, from its last state if it has one."""

    stream: str
    share: str
    epoch: int


@dataclass(frozen=True)
class Stop:
    """A stream is to end on a share; `keep`: its state is saved, since it goes on elsewhere."""

    stream: str
    share: str
    epoch: int
    keep: bool


@dataclass(frozen=True)
class Report:
    """What a share says.

    Attributes:
        life: of its supervisor; another one has no streams of the one before.
        asked_at: when it was asked; what happened later is not in it.
        streams: stream -> its epoch, and how many masks it has given since then.
        kind: of the share; see `placement.Loads`.
    """

    life: str
    asked_at: float
    streams: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    kind: str = ""


@dataclass
class Stream:
    """What is known of a stream. Times are seconds of the caller's clock."""

    name: str
    loads: Loads
    epoch: int
    phase: Phase = "waiting"
    has_run: bool = False  # it may use the reserve
    share: str = ""
    target: str = ""  # where it goes once it has stopped
    since: float = 0.0  # the last change of phase
    lost_at: float | None = None  # until it gives masks again
    failures: int = 0
    retry_at: float = 0.0
    failed_on: str = ""  # the share of the last start, if that failed
    problem: str = ""  # why it does not run
    removed: bool = False
    told: bool = False  # its Stop has been given out


class Controller:
    """The decisions of one fleet.

    Args:
        reserve: see `Board`.

    Attributes:
        streams: by name.
        draining: shares that are being emptied.
        returns: (stream, seconds) from the loss of its share to its first mask elsewhere; whoever reads them
            clears them.
    """

    def __init__(self, reserve: Fraction = Fraction(0)):
        self._board = Board(reserve)
        self._lives: dict[str, str] = {}
        self._strays: set[Stop] = set()
        self.streams: dict[str, Stream] = {}
        self.draining: set[str] = set()
        self.returns: list[tuple[str, float]] = []

    @property
    def used(self) -> Mapping[str, Fraction]:
        """Share -> the part of it that is used."""
        return self._board.shares

    # ---- what users want

    def add(self, name: str, loads: Loads, epoch: int = 0) -> None:
        """A stream is wanted.

        Args:
            name: its name.
            loads: the parts of shares that it takes.
            epoch: of its last placement; 0 = it is new.

        Raises:
            InputError: there is one of this name.
        """
        if name in self.streams:
            raise InputError(f"there is a stream {name!r} already; choose another name, or remove it first")
        self.streams[name] = Stream(name, loads, epoch, has_run=epoch > 0)

    def remove(self, name: str) -> None:
        """A stream is not wanted any more; it is forgotten once it has stopped.

        Raises:
            InputError: there is no such stream.
        """
        stream = self.known(name)
        stream.removed = True
        if stream.phase == "waiting":
            del self.streams[name]

    def known(self, name: str) -> Stream:
        """A stream; InputError if there is none."""
        if name not in self.streams or self.streams[name].removed:
            there = ", ".join(sorted(n for n, one in self.streams.items() if not one.removed)) or "none"
            raise InputError(f"there is no stream {name!r:.100}; there are: {there:.500}")
        return self.streams[name]

    def drain(self, share: str) -> None:
        """Move the streams of a share elsewhere, as far as there is room, and place none on it."""
        self.draining.add(share)
        self._board.close(share)

    def undrain(self, share: str) -> None:
        """A share takes streams again."""
        self.draining.discard(share)
        if share in self._lives:
            self._board.open(share)
            for name in self._board.on(share):
                if name in self.streams:
                    self.streams[name].problem = ""

    # ---- what happens

    def sees(self, reports: Mapping[str, Report], now: float) -> None:
        """Take the reports of all shares that are there; those that are missing are gone."""
        for share in [one for one in self._lives if one not in reports]:
            self._lose(share, now)
        for share, report in reports.items():
            if self._lives.get(share, report.life) != report.life:
                self._lose(share, now)
            if share not in self._lives:
                self._lives[share] = report.life
                self._board.open(share, report.kind)
                if share in self.draining:  # its supervisor has died, and is back
                    self._board.close(share)
            self._compare(share, report, now)

    def began(self, name: str, epoch: int, now: float) -> None:
        """A start has succeeded."""
        stream = self._current(name, epoch, "starting")
        if stream is not None:
            self._runs(stream, now)

    def failed(self, name: str, epoch: int, problem: str, now: float) -> bool:
        """A start has failed; it is tried again later, on another share if one has room.

        Returns:
            Whether the stream waits for that now; not if things have changed since.
        """
        stream = self._current(name, epoch, "starting")
        if stream is None:
            return False
        self._board.take(name)
        stream.problem, stream.failed_on = problem, stream.share
        self._wait(stream, now)
        return name in self.streams

    def ended(self, name: str, epoch: int, now: float) -> None:
        """A stop has succeeded."""
        stream = self._current(name, epoch, "stopping")
        if stream is None:
            return
        self._board.take(name)
        self._board.take(_reserved(name))
        target, stream.target = stream.target, ""
        self._wait(stream, now, retry=False)
        if target and name in self.streams:
            self._board.keep(name, stream.loads, target)
            self._assign(stream, target, now)

    def still_there(self, name: str, epoch: int, now: float) -> None:
        """A stop has failed; it is tried again."""
        stream = self._current(name, epoch, "stopping")
        if stream is not None:
            stream.told, stream.retry_at = False, now + 1.0

    # ---- what follows

    def decide(self, now: float) -> list[Start | Stop]:
        """What is to be done; each action is given out once."""
        actions: list[Start | Stop] = [*sorted(self._strays, key=lambda one: (one.share, one.stream))]
        self._strays.clear()
        for share in sorted(self.draining & self._lives.keys()):
            for name in self._board.on(share):
                self._move(self.streams.get(name), share, now)
        for stream in self.streams.values():
            if stream.removed and stream.phase == "running":
                self._stop(stream, now)
        waiting = {n: max(one.loads.values()) for n, one in self.streams.items() if one.phase == "waiting"}
        lost = [name for name in waiting if self.streams[name].lost_at is not None]
        for name in in_order(waiting, first=lost):
            stream = self.streams[name]
            if now < stream.retry_at:
                continue
            where = self._board.put(name, stream.loads, urgent=stream.has_run, avoid=stream.failed_on)
            if where is not None:
                self._assign(stream, where, now)
            elif not stream.failures:
                stream.problem = _no_room(stream.loads) if self._lives else "there is no machine"
        for stream in self.streams.values():
            if stream.told or now < stream.retry_at:
                continue
            if stream.phase == "starting":
                actions.append(Start(stream.name, stream.share, stream.epoch))
                stream.told = True
            elif stream.phase == "stopping":
                actions.append(Stop(stream.name, stream.share, stream.epoch, keep=not stream.removed))
                stream.told = True
        return actions

    def _runs(self, stream: Stream, now: float) -> None:
        stream.phase, stream.since, stream.has_run = "running", now, True
        stream.failures, stream.failed_on, stream.problem = 0, "", ""

    def _assign(self, stream: Stream, share: str, now: float) -> None:
        stream.epoch += 1
        stream.share, stream.phase, stream.since, stream.told = share, "starting", now, False

    def _stop(self, stream: Stream, now: float) -> None:
        stream.phase, stream.since, stream.told, stream.retry_at = "stopping", now, False, 0.0

    def _move(self, stream: Stream | None, share: str, now: float) -> None:
        """Stop a stream of a share that is drained, if there is room elsewhere, which is then its own."""
        if stream is None or stream.phase != "running" or stream.removed:
            return
        target = self._board.put(_reserved(stream.name), stream.loads, urgent=True)
        if target is None:
            stream.problem = f"stays on {share}, which is drained: no other share has room"
            return
        stream.target = target
        self._stop(stream, now)

    def _wait(self, stream: Stream, now: float, retry: bool = True) -> None:
        """A stream is on no share now."""
        if stream.removed:
            self._board.take(_reserved(stream.name))
            del self.streams[stream.name]
            return
        stream.failures += retry
        stream.retry_at = now + min(LONGEST_RETRY, 2.0 ** (stream.failures - 1)) if retry else 0.0
        stream.phase, stream.share, stream.since = "waiting", "", now

    def _lose(self, share: str, now: float) -> None:
        del self._lives[share]
        for name in self._board.lose(share):
            if name.endswith(_RESERVED):
                self.streams[name.removesuffix(_RESERVED)].target = ""
            else:
                self._lost(self.streams[name], now)

    def _lost(self, stream: Stream, now: float) -> None:
        """A stream's share is gone, or has forgotten it."""
        self._board.take(stream.name)
        self._board.take(_reserved(stream.name))
        stream.target = ""
        if stream.lost_at is None:
            stream.lost_at = now
        self._wait(stream, now, retry=False)

    def _compare(self, share: str, report: Report, now: float) -> None:
        """What a share has, against what it should have."""
        for name, stream in list(self.streams.items()):
            settled = stream.phase == "running" and stream.since < report.asked_at
            if stream.share != share or not settled:
                continue
            epoch, masks = report.streams.get(name, (-1, 0))
            if epoch != stream.epoch:
                self._lost(stream, now)
            elif masks and stream.lost_at is not None:
                self.returns.append((name, now - stream.lost_at))
                stream.lost_at = None
        for name, (epoch, _) in report.streams.items():
            known = self.streams.get(name)
            if known is not None and known.phase == "waiting" and known.epoch == epoch and epoch > 0:
                self._board.keep(name, known.loads, share)  # it was there before this controller was
                known.share = share
                self._runs(known, now)
                continue
            elsewhere = known is None or known.share != share or known.epoch > epoch
            if elsewhere and (known is None or known.since < report.asked_at):
                self._strays.add(Stop(name, share, epoch, keep=False))

    def _current(self, name: str, epoch: int, phase: Phase) -> Stream | None:
        """The stream that an outcome belongs to; None if things have changed since."""
        stream = self.streams.get(name)
        return stream if stream is not None and (stream.epoch, stream.phase) == (epoch, phase) else None


def _no_room(loads: Loads) -> str:
    parts = " or ".join(f"{load} of a share{f' of {kind}' if kind else ''}" for kind, load in loads.items())
    return f"no share has room: it takes {parts}"


_RESERVED = ">"  # no name ends with it


def _reserved(name: str) -> str:
    """The name under which the board keeps room for a stream that moves."""
    return name + _RESERVED
