"""The decisions of a fleet against shares that die, forget, answer late and are cut off, in any order."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamvos.fleet.controller import Controller, Report, Start, Stop
from streamvos.types import InputError

STREAMS = st.sampled_from([f"s{n}" for n in range(8)])
SHARES = st.sampled_from(["a", "b", "c"])
HALF = {"": Fraction(1, 2), "big": Fraction(1, 4)}
KINDS = {"c": "big"}  # of shares; the others are of none


class Shares:
    """Shares as they really are, whatever the controller believes."""

    def __init__(self):
        self.lives: dict[str, int] = {}
        self.streams: dict[str, dict[str, int]] = {}  # share -> stream -> epoch
        self.births = 0

    def up(self, share: str) -> None:
        self.births += 1
        self.lives[share], self.streams[share] = self.births, {}

    def down(self, share: str) -> None:
        self.lives.pop(share, None)
        self.streams.pop(share, None)

    def reports(self, now: float, without: frozenset[str] = frozenset()) -> dict[str, Report]:
        return {
            share: Report(
                str(life),
                now,
                {n: (epoch, 1) for n, epoch in self.streams[share].items()},
                KINDS.get(share, ""),
            )
            for share, life in self.lives.items()
            if share not in without
        }


class AnyOrder(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.controller, self.shares, self.now = Controller(), Shares(), 0.0
        self.calls: list[Start | Stop] = []  # given out, and not done yet
        self.wanted: set[str] = set()

    # ---- the world

    @initialize()
    def a_fleet_that_runs(self):
        for share in ("a", "b"):
            self.shares.up(share)
        for name in ("s0", "s1", "s2"):
            self.add(name)
        self.a_calm_while()

    @rule(share=SHARES, what=st.sampled_from(["comes or is restarted", "dies", "forgets", "is cut off"]))
    def a_share(self, share, what):
        if what == "dies":
            self.shares.down(share)
        elif what == "forgets" and self.shares.streams.get(share):
            self.shares.streams[share].popitem()
        elif what == "is cut off":
            self.look(frozenset({share}))
        elif what == "comes or is restarted":
            self.shares.up(share)

    @rule(name=STREAMS)
    def add(self, name):
        if name in self.controller.streams:
            with pytest.raises(InputError, match="already"):
                self.controller.add(name, HALF)
        else:
            self.controller.add(name, HALF)
            self.wanted.add(name)

    @rule(name=STREAMS)
    def remove(self, name):
        if name in self.wanted:
            self.controller.remove(name)
            self.wanted.discard(name)

    @rule(share=SHARES, undo=st.booleans())
    def drain(self, share, undo):
        (self.controller.undrain if undo else self.controller.drain)(share)

    @rule()
    def a_calm_while(self):
        """Without which hardly anything would ever run."""
        for _ in range(2):
            self.look(frozenset())
            while self.calls:
                self.do(self.calls.pop(0))

    @rule()
    def a_look(self):
        self.look(frozenset())

    def look(self, without):
        self.now += 1
        self.controller.sees(self.shares.reports(self.now, without), self.now)
        self.now += 1
        self.calls += self.controller.decide(self.now)

    @precondition(lambda self: self.calls)
    @rule(number=st.integers(0, 99), fails=st.booleans())
    def a_call_is_done(self, number, fails):
        """In any order, since calls run beside each other."""
        self.do(self.calls.pop(number % len(self.calls)), fails)

    def do(self, call: Start | Stop, fails: bool = False) -> None:
        self.now += 1
        there = self.shares.streams.get(call.share)
        name, epoch = call.stream, call.epoch
        if isinstance(call, Start):
            if fails or there is None or there.get(name, 0) > epoch:
                self.controller.failed(name, epoch, "it cannot be opened", self.now)
            else:
                there[name] = epoch
                self.controller.began(name, epoch, self.now)
        elif fails and there is not None:
            self.controller.still_there(name, epoch, self.now)
        else:
            if there is not None and there.get(name, epoch) <= epoch:
                there.pop(name, None)
            self.controller.ended(name, epoch, self.now)

    # ---- what always holds

    @invariant()
    def no_share_is_overfull(self):
        believed = {share: Fraction(0) for share in self.controller.used}
        for one in self.controller.streams.values():
            if one.share:
                believed[one.share] += one.loads[KINDS.get(one.share, "")]
            if one.target:
                believed[one.target] += one.loads[KINDS.get(one.target, "")]
        assert believed == dict(self.controller.used)

    @invariant()
    def a_stream_is_somewhere_or_waits(self):
        for one in self.controller.streams.values():
            assert (one.phase == "waiting") == (one.share == "")
        assert self.wanted == {n for n, one in self.controller.streams.items() if not one.removed}

    def teardown(self):
        """When nothing more happens, every wanted stream runs once, and nothing else does."""
        for share in ("a", "b", "c"):
            self.controller.undrain(share)
        for share in ("d", "e", "f", "g"):
            self.shares.up(share)
        for _ in range(30):
            self.now += 40  # every retry is due
            self.look(frozenset())
            while self.calls:
                self.do(self.calls.pop(0))
        running = [name for streams in self.shares.streams.values() for name in streams]
        assert sorted(running) == sorted(self.wanted)
        assert all(one.phase == "running" for one in self.controller.streams.values())


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class Fleet:
    """A controller and its shares, where every call succeeds at once."""

    def __init__(self, *shares: str):
        self.controller, self.shares, self.now = Controller(), Shares(), 0.0
        for share in shares:
            self.shares.up(share)

    def turn(self, times: int = 3) -> list[Start | Stop]:
        done = []
        for _ in range(times):
            self.now += 1
            self.controller.sees(self.shares.reports(self.now), self.now)
            for call in self.controller.decide(self.now):
                done.append(call)
                AnyOrder.do(self, call)
        return done

    def where(self) -> dict[str, str]:
        return {name: share for share, streams in self.shares.streams.items() for name in streams}


def test_streams_of_a_lost_machine_start_elsewhere_with_a_new_epoch():
    fleet = Fleet("a", "b")
    for name in ("s", "t"):
        fleet.controller.add(name, HALF)
    fleet.turn()
    assert fleet.where() == {"s": "a", "t": "b"}
    fleet.shares.down("a")
    assert fleet.turn() == [Start("s", "b", 2)]
    assert [name for name, _ in fleet.controller.returns] == ["s"]


def test_draining_moves_streams_and_keeps_their_states():
    fleet = Fleet("a")
    fleet.controller.add("s", HALF)
    fleet.turn()
    fleet.shares.up("b")
    fleet.controller.drain("a")
    assert fleet.turn() == [Stop("s", "a", 1, keep=True), Start("s", "b", 2)]
    fleet.controller.undrain("a")
    assert fleet.turn() == []


def test_room_that_was_kept_for_a_move_is_given_back():
    fleet = Fleet("a")
    fleet.controller.add("s", HALF)
    fleet.turn()
    fleet.shares.up("b")
    fleet.controller.drain("a")
    fleet.turn()
    assert fleet.controller.used == {"a": 0, "b": HALF[""]}


def test_a_drained_share_stays_empty_when_its_supervisor_comes_back():
    fleet = Fleet("a", "b")
    fleet.turn()
    fleet.controller.drain("a")
    fleet.shares.down("a")
    fleet.turn()
    fleet.shares.up("a")
    fleet.turn()
    fleet.controller.add("s", HALF)
    fleet.turn()
    assert fleet.where() == {"s": "b"}
    fleet.controller.add("t", {"": Fraction(1)})
    fleet.turn()
    assert fleet.controller.streams["t"].problem == "no share has room: it takes 1 of a share"
    fleet.controller.undrain("a")
    fleet.turn()
    assert fleet.where() == {"s": "b", "t": "a"}


def test_a_share_that_starts_nothing_does_not_attract_what_it_fails():
    """Its disk is gone, say: it is always the emptiest."""
    fleet = Fleet("a", "b")
    fleet.controller.add("s", HALF)
    controller, starts = fleet.controller, []
    for now in range(100, 110):
        controller.sees(fleet.shares.reports(now), now)
        for call in controller.decide(now):
            starts.append(call.share)
            if call.share == "a":
                assert controller.failed("s", call.epoch, "no such disk", now)
            else:
                controller.began("s", call.epoch, now)
                fleet.shares.streams["b"]["s"] = call.epoch
    assert starts == ["a", "b"]
    assert not controller.failed("s", 1, "told late", 110)
    assert controller.streams["s"].phase == "running"


def test_the_reserve_is_for_what_has_run():
    """A new stream whose first start fails may not use it either."""
    controller = Controller(Fraction(1, 2))
    controller.add("s", {"": Fraction(3, 4)})
    controller.add("t", HALF)
    controller.add("u", {"": Fraction(3, 4)}, epoch=3)  # of the fleet before
    controller.sees({"a": Report("1", 0.0), "b": Report("2", 0.0)}, 0.0)
    assert controller.decide(0.0) == [Start("t", "b", 1), Start("u", "a", 4)]
    controller.failed("t", 1, "no such camera", 0.0)
    controller.began("u", 4, 0.0)
    controller.sees({"a": Report("1", 0.0, {"u": (4, 0)}), "b": Report("2", 0.0)}, 5.0)
    assert controller.decide(5.0) == [Start("t", "b", 2)]
    controller.began("t", 2, 5.0)
    controller.sees({"a": Report("1", 5.0, {"u": (4, 0)})}, 6.0)
    assert controller.streams["t"].phase == "waiting"
    assert controller.decide(6.0) == []
    controller.sees({share: Report(share, 6.0) for share in "cd"}, 7.0)
    assert [(one.stream, one.share) for one in controller.decide(7.0)] == [("t", "d"), ("u", "c")]
    assert "no share has room: it takes 3/4 of a share" in controller.streams["s"].problem


def test_machines_of_two_kinds_hold_what_was_measured_on_each():
    fleet = Fleet("a", "c")
    for number in range(7):
        fleet.controller.add(f"s{number}", HALF)
    fleet.turn()
    places = list(fleet.where().values())
    assert (places.count("a"), places.count("c")) == (2, 4)
    (waiting,) = [one for one in fleet.controller.streams.values() if one.phase == "waiting"]
    assert waiting.problem == "no share has room: it takes 1/2 of a share or 1/4 of a share of big"


def test_what_a_share_has_forgotten_begins_again():
    fleet = Fleet("a")
    fleet.controller.add("s", HALF)
    fleet.turn()
    fleet.shares.streams["a"].clear()
    assert fleet.turn() == [Start("s", "a", 2)]


def test_a_report_that_was_asked_for_before_a_start_does_not_count():
    fleet = Fleet("a")
    fleet.controller.add("s", HALF)
    early = fleet.shares.reports(0.5)
    fleet.turn()
    fleet.controller.sees(early, fleet.now)
    assert fleet.controller.streams["s"].phase == "running"


def test_draining_without_room_elsewhere_stops_nothing():
    fleet = Fleet("a")
    fleet.controller.add("s", HALF)
    fleet.turn()
    fleet.controller.drain("a")
    assert fleet.turn() == []
    assert "no other share has room" in fleet.controller.streams["s"].problem
    fleet.controller.undrain("a")
    assert fleet.controller.streams["s"].problem == ""


def test_a_new_controller_takes_over_what_runs():
    fleet = Fleet("a", "b")
    fleet.controller.add("s", HALF)
    fleet.turn()
    fleet.controller = Controller()
    fleet.controller.add("s", HALF, epoch=1)
    assert fleet.turn() == []
    assert fleet.controller.streams["s"].phase == "running"


def test_a_stream_that_nobody_wants_is_stopped():
    fleet = Fleet("a")
    fleet.shares.streams["a"]["old"] = 4
    assert fleet.turn() == [Stop("old", "a", 4, keep=False)]


def test_what_is_removed_is_not_moved_first():
    fleet = Fleet("a", "b")
    fleet.controller.add("s", HALF)
    fleet.turn()
    fleet.controller.drain("a")
    fleet.controller.remove("s")
    assert fleet.turn() == [Stop("s", "a", 1, keep=False)]


def test_a_return_counts_from_the_first_loss_and_the_lost_come_first():
    fleet = Fleet("a")
    for name in ("s", "z"):
        fleet.controller.add(name, HALF)
    fleet.turn()
    fleet.shares.streams["a"].pop("z")
    fleet.controller.add("r", HALF)
    fleet.controller.sees(fleet.shares.reports(fleet.now + 1), 10.0)
    assert fleet.controller.decide(10.0) == [Start("z", "a", 2)]  # and not r
    fleet.shares.down("a")
    fleet.controller.sees({}, 20.0)
    fleet.shares.up("a")
    fleet.now = 30.0
    fleet.turn()
    assert dict(fleet.controller.returns)["z"] > 20


def test_what_is_told_of_an_earlier_start_does_not_count():
    """A share is begun again while it begins a stream; what its first life says comes late."""
    controller = Controller()
    controller.add("s", HALF)
    controller.sees({"a": Report("first", 1.0)}, 1.0)
    assert controller.decide(1.0) == [Start("s", "a", 1)]
    controller.sees({"a": Report("second", 2.0)}, 2.0)
    assert controller.decide(2.0) == [Start("s", "a", 2)]
    controller.began("s", 1, 3.0)
    assert controller.streams["s"].phase == "starting"


def test_a_move_may_use_the_reserve():
    controller = Controller(Fraction(1, 2))
    controller.add("s", {"": Fraction(3, 4)}, epoch=1)
    controller.sees({"a": Report("1", 1.0, {"s": (1, 9)}), "b": Report("2", 1.0)}, 1.0)
    controller.drain("a")
    assert controller.decide(2.0) == [Stop("s", "a", 1, keep=True)]


def test_nobody_else_gets_the_room_that_a_stream_moves_to():
    fleet = Fleet("a")
    fleet.controller.add("s", {"": Fraction(1)})
    fleet.turn()
    fleet.shares.up("b")
    fleet.controller.drain("a")
    fleet.controller.sees(fleet.shares.reports(10), 10)
    assert fleet.controller.decide(11) == [Stop("s", "a", 1, keep=True)]
    fleet.controller.add("r", HALF)
    early = fleet.shares.reports(12)
    fleet.controller.ended("s", 1, 13)
    assert (fleet.controller.streams["s"].phase, fleet.controller.streams["s"].share) == ("starting", "b")
    fleet.controller.sees(early, 14)  # asked for before it had ended there
    assert fleet.controller.decide(14) == [Start("s", "b", 2)]


def test_an_older_placement_is_no_reason_to_wait_and_is_ended():
    controller = Controller()
    controller.add("s", HALF, epoch=5)
    controller.add("new", HALF)
    controller.sees({"a": Report("1", 1.0, {"s": (3, 9), "new": (0, 9)})}, 1.0)
    assert controller.decide(1.0) == [
        Stop("new", "a", 0, keep=False),
        Stop("s", "a", 3, keep=False),
        Start("s", "a", 6),
        Start("new", "a", 1),
    ]
    controller.sees({"a": Report("1", 2.0, {"s": (3, 9)})}, 2.0)  # the same share, which begins the new one
    assert controller.decide(2.0) == [Stop("s", "a", 3, keep=False)]
    controller.began("s", 6, 2.0)
    controller.sees(
        {"a": Report("1", 3.0, {"s": (3, 9)})}, 3.0
    )  # it has lost the new one, and not the old one
    assert Start("s", "a", 7) in controller.decide(3.0)


def test_what_cannot_be_started_is_tried_again_ever_later():
    controller, now = Controller(), 0.0
    controller.add("s", HALF)
    starts = []
    while len(starts) < 8:
        controller.sees({"a": Report("1", now)}, now)
        for call in controller.decide(now):
            starts.append(now)
            controller.failed("s", call.epoch, "no such camera", now)
        now += 0.5
    assert [later - earlier for earlier, later in pairwise(starts)] == [
        1, 2, 4, 8, 16, 30, 30,
    ]  # fmt: skip
    assert controller.streams["s"].problem == "no such camera"


def test_what_does_not_exist_is_named():
    controller = Controller()
    controller.add("front", HALF)
    with pytest.raises(InputError, match="no stream 'back'; there are: front"):
        controller.remove("back")
