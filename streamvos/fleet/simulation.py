"""A fleet of any size, simulated: machines die and come back, cameras are wanted by day and by night.

    outcome = simulate(Plan(cameras=1000, shares=100, per_share=12, days=30, seed=1))
    outcome.availability, outcome.quantile("return_seconds", 0.99)

Discrete events in order of their times; between them nothing changes. Streams are placed by the `Board` that
the fleet itself uses. What is measured elsewhere goes in (how long a loss takes to be noticed, how long a
stream takes to begin); what comes out is how much that costs at a given size, reserve and rate of failures.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import defaultdict
from dataclasses import dataclass, field
from fractions import Fraction

from streamvos.fleet.placement import Board
from streamvos.types import InputError

DAY = 86400.0
HOUR = 3600.0


@dataclass(frozen=True)
class Plan:
    """What is simulated. Times are seconds, unless the name says otherwise.

    Attributes:
        cameras: how many there are.
        shares: how many shares of machines.
        per_share: streams that a share holds, as `bench capacity` measures.
        shares_per_machine: those of one machine fail together.
        days: simulated time.
        failures_per_year: of one machine.
        repair_hours: mean time until a machine is back.
        notice_seconds: from a machine's death until the fleet knows.
        begin_seconds: from the placement of a stream until its first mask.
        at_once: streams that one share begins at the same time.
        night: the part of the cameras that is wanted at night; by day all are.
        time_zones: over how many hours dawn is spread.
        reserve: the part of each share that only streams of lost machines may use.
        seed: of everything random.
    """

    cameras: int = 1000
    shares: int = 100
    per_share: int = 12
    shares_per_machine: int = 1
    days: float = 30.0
    failures_per_year: float = 12.0
    repair_hours: float = 4.0
    notice_seconds: float = 10.0
    begin_seconds: float = 10.0
    at_once: int = 4
    night: float = 0.3
    time_zones: float = 3.0
    reserve: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        whole = ("cameras", "shares", "per_share", "shares_per_machine", "at_once")
        for name in whole:
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("night", "reserve"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; expected a part, 0 to 1")
        for name in ("days", "repair_hours"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name in ("failures_per_year", "notice_seconds", "begin_seconds", "time_zones"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; expected at least 0")


@dataclass
class Outcome:
    """What has happened.

    Attributes:
        wanted_seconds: of all streams together.
        down_seconds: of these, without masks, by cause: a machine was lost, there was no room, it began.
        return_seconds: how long each stream that was lost with its machine gave no masks.
        failures: of machines.
        most_lost: streams that one failure took, at most.
        peak: the most streams that were wanted at once.
        share_hours: of shares with at least one stream on them; the others could be off.
    """

    wanted_seconds: float = 0.0
    down_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    return_seconds: list[float] = field(default_factory=list)
    failures: int = 0
    most_lost: int = 0
    peak: int = 0
    share_hours: float = 0.0

    @property
    def availability(self) -> float:
        """The part of the wanted time in which there were masks."""
        return 1.0 if not self.wanted_seconds else 1 - sum(self.down_seconds.values()) / self.wanted_seconds

    def quantile(self, part: float) -> float:
        """Of `return_seconds`; 0 if nothing was lost."""
        ordered = sorted(self.return_seconds)
        return ordered[min(len(ordered) - 1, math.ceil(part * len(ordered)) - 1)] if ordered else 0.0


def simulate(plan: Plan) -> Outcome:
    """Run a plan; the same plan gives the same outcome."""
    return _Simulation(plan).run()


class _Simulation:
    def __init__(self, plan: Plan):
        self._plan, self._outcome = plan, Outcome()
        self._random = random.Random(plan.seed)
        self._loads = {"": Fraction(1, plan.per_share)}
        self._board = Board(Fraction(plan.reserve).limit_denominator(1000))
        self._events: list[tuple[float, int, str, int]] = []  # time, order, what, of which
        self._order = itertools.count()
        self._now = 0.0
        self._end = plan.days * DAY
        self._machines = math.ceil(plan.shares / plan.shares_per_machine)
        self._up = [True] * self._machines
        self._streams: set[int] = set()  # those that are wanted
        self._down: dict[int, tuple[float, str]] = {}  # stream -> since when, why
        self._lost_at: dict[int, float] = {}  # stream -> when its machine died
        self._unplaced: dict[int, bool] = {}  # waiting for room -> whether it was lost with its machine
        # the same in the order of placement: (not lost, stream); old entries are dropped when they come up
        self._queue: list[tuple[bool, int]] = []
        self._arrived: list[int] = []  # into the queue, since something was placed last
        self._busy: dict[str, list[float]] = {}  # share -> when its places for beginning streams are free
        self._begins: dict[int, float] = {}  # stream -> when its first mask is due

    def run(self) -> Outcome:
        plan = self._plan
        for machine in range(self._machines):
            for share in self._shares_of(machine):
                self._open(share)
            self._plan_failure(machine)
        by_night = round(plan.cameras * plan.night)
        for camera in range(plan.cameras):
            if camera < by_night:
                self._at(0.0, "wanted", camera)
                continue
            for day in range(math.ceil(plan.days) + 1):
                dawn = day * DAY + 6 * HOUR + self._random.random() * plan.time_zones * HOUR
                self._at(dawn, "wanted", camera)
                self._at(dawn + 12 * HOUR, "unwanted", camera)
        while self._events and self._events[0][0] <= self._end:
            time, _, what, number = heapq.heappop(self._events)
            self._pass(time)
            getattr(self, f"_on_{what}")(number)
            if self._queue and what in ("back", "unwanted", "wanted", "noticed"):
                self._place()
        self._pass(self._end)
        for stream in list(self._down):
            self._masks(stream)
        return self._outcome

    # ---- events

    def _on_wanted(self, stream: int) -> None:
        self._streams.add(stream)
        self._outcome.peak = max(self._outcome.peak, len(self._streams))
        self._down[stream] = self._now, "began"
        self._wait(stream, lost=False)

    def _on_unwanted(self, stream: int) -> None:
        self._streams.discard(stream)
        self._unplaced.pop(stream, None)
        self._lost_at.pop(stream, None)
        self._begins.pop(stream, None)
        self._masks(stream)
        self._board.take(str(stream))

    def _on_begun(self, stream: int) -> None:
        if self._begins.get(stream) != self._now:  # its machine has died since, or nobody wanted it
            return
        if stream in self._lost_at and stream in self._down:
            self._outcome.return_seconds.append(self._now - self._lost_at.pop(stream))
        self._masks(stream)

    def _on_dies(self, machine: int) -> None:
        self._outcome.failures += 1
        self._up[machine] = False
        lost = [int(name) for share in self._shares_of(machine) for name in self._board.on(share)]
        self._outcome.most_lost = max(self._outcome.most_lost, len(lost))
        for stream in lost:
            self._lost_at.setdefault(stream, self._now)
            self._begins.pop(stream, None)
            self._masks(stream)
            self._down[stream] = self._now, "machine lost"
        for share in self._shares_of(machine):
            self._board.close(share)
        self._at(self._now + self._plan.notice_seconds, "noticed", machine)

    def _on_noticed(self, machine: int) -> None:
        for share in self._shares_of(machine):
            for name in self._board.lose(share):
                self._wait(int(name), lost=True)
        self._at(self._now + self._exponential(self._plan.repair_hours * HOUR), "back", machine)

    def _on_back(self, machine: int) -> None:
        self._up[machine] = True
        for share in self._shares_of(machine):
            self._open(share)
        self._plan_failure(machine)

    # ---- what follows from them

    def _wait(self, stream: int, lost: bool) -> None:
        self._unplaced[stream] = lost
        heapq.heappush(self._queue, (not lost, stream))
        self._arrived.append(stream)

    def _place(self) -> None:
        """Place what waits, lost streams first, as far as there is room."""
        while self._queue:
            stream = self._queue[0][1]
            if self._unplaced.get(stream) is (not self._queue[0][0]):
                share = self._board.put(str(stream), self._loads, self._unplaced[stream])
                if share is None:  # nor is there room for the others: all are of one size
                    break
                del self._unplaced[stream]
                self._begin(stream, share)
            heapq.heappop(self._queue)
        for stream in self._arrived:
            if stream in self._unplaced:
                since, cause = self._down[stream]
                self._outcome.down_seconds[cause] += self._now - since
                self._down[stream] = self._now, "no room"
        self._arrived.clear()

    def _begin(self, stream: int, share: str) -> None:
        places = self._busy[share]
        due = max(self._now, heapq.heappop(places)) + self._plan.begin_seconds
        heapq.heappush(places, due)
        self._begins[stream] = due
        self._at(due, "begun", stream)

    def _masks(self, stream: int) -> None:
        """A stream gives masks, or is not wanted any more."""
        since, cause = self._down.pop(stream, (self._now, ""))
        if self._now > since:
            self._outcome.down_seconds[cause] += self._now - since

    def _pass(self, time: float) -> None:
        seconds = time - self._now
        self._outcome.wanted_seconds += seconds * len(self._streams)
        if seconds:
            self._outcome.share_hours += seconds / HOUR * self._board.busy
        self._now = time

    def _open(self, share: str) -> None:
        self._board.open(share)
        self._busy[share] = [0.0] * self._plan.at_once

    def _plan_failure(self, machine: int) -> None:
        if self._plan.failures_per_year:
            mean = 365 * DAY / self._plan.failures_per_year
            self._at(self._now + self._exponential(mean), "dies", machine)

    def _shares_of(self, machine: int) -> list[str]:
        each = self._plan.shares_per_machine
        return [f"{n:06}" for n in range(machine * each, min((machine + 1) * each, self._plan.shares))]

    def _exponential(self, mean: float) -> float:
        return self._random.expovariate(1 / mean)

    def _at(self, time: float, what: str, number: int) -> None:
        heapq.heappush(self._events, (time, next(self._order), what, number))
