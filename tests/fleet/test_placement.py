"""Where streams are placed: what holds after any order of events."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streamvos.fleet.placement import Board, in_order

NAMES = st.sampled_from([f"s{n}" for n in range(30)])
SHARES = st.sampled_from([f"n{n}-0" for n in range(5)])
KINDS = {"n0-0": "", "n1-0": "", "n2-0": "", "n3-0": "big", "n4-0": "big"}
PARTS = [Fraction(1, n) for n in (1, 2, 3, 7, 12)]
LOADS = st.sampled_from(
    [{"": part, "big": part / 3} for part in PARTS] + [{"big": Fraction(1, 2)}, {"": Fraction(1, 5)}]
)


class AnyOrder(RuleBasedStateMachine):
    """A board beside the plainest bookkeeping of what it should say."""

    def __init__(self):
        super().__init__()
        self.reserve = Fraction(1, 4)
        self.board = Board(self.reserve)
        self.open: set[str] = set()
        self.known: set[str] = set()
        self.where: dict[str, tuple[str, Fraction]] = {}

    def used(self, share: str) -> Fraction:
        return sum((load for place, load in self.where.values() if place == share), Fraction(0))

    @rule(share=SHARES)
    def open_one(self, share):
        self.board.open(share, KINDS[share])
        self.open.add(share)
        self.known.add(share)

    @rule(share=SHARES)
    def close_one(self, share):
        if share in self.known:
            self.board.close(share)
            self.open.discard(share)

    @rule(share=SHARES)
    def lose_one(self, share):
        lost = self.board.lose(share)
        assert sorted(lost) == sorted(name for name, (place, _) in self.where.items() if place == share)
        self.where = {name: one for name, one in self.where.items() if one[0] != share}
        self.open.discard(share)
        self.known.discard(share)

    @rule(name=NAMES, loads=LOADS, urgent=st.booleans(), avoid=SHARES)
    def put(self, name, loads, urgent, avoid):
        if name in self.where:
            return
        share = self.board.put(name, loads, urgent, avoid)
        until = 1 if urgent else 1 - self.reserve
        after = {one: self.used(one) + loads[KINDS[one]] for one in self.open if KINDS[one] in loads}
        room = {one: used for one, used in after.items() if used <= until}
        if share is None:
            assert not room
        else:
            assert share == min(room, key=lambda one: (one == avoid, room[one], one))
            self.where[name] = share, loads[KINDS[share]]

    @rule(name=NAMES)
    def take(self, name):
        self.board.take(name)
        self.where.pop(name, None)

    @invariant()
    def it_says_what_is(self):
        assert dict(self.board.shares) == {share: self.used(share) for share in self.known}
        assert all(used <= 1 for used in self.board.shares.values())
        assert self.board.busy == sum(1 for share in self.known if self.used(share))
        for share in self.known:
            own = {name: load for name, (place, load) in self.where.items() if place == share}
            assert self.board.on(share) == in_order(own)


TestAnyOrder = AnyOrder.TestCase


def test_a_share_holds_exactly_what_was_measured():
    """Parts of a share are no floating-point numbers, whose sum would be 1.0000000000000002."""
    for count in range(1, 100):
        board = Board()
        board.open("one")
        places = [board.put(f"s{n}", {"": Fraction(1, count)}) for n in range(count + 1)]
        assert places == ["one"] * count + [None]


def test_streams_are_spread_and_stay():
    board = Board()
    for share in "abc":
        board.open(share)
    assert [board.put(f"s{n}", {"": Fraction(1, 4)}) for n in range(6)] == ["a", "b", "c", "a", "b", "c"]
    board.open("d")
    assert board.on("a") == ["s0", "s3"]
    assert board.put("s6", {"": Fraction(1, 4)}) == "d"


def test_a_fast_machine_takes_as_many_more_as_it_holds():
    board, loads = Board(), {"": Fraction(1, 2), "H200": Fraction(1, 6)}
    board.open("old-0")
    board.open("new-0", "H200")
    places = [board.put(f"s{n}", loads) for n in range(9)]
    assert (places.count("old-0"), places.count("new-0"), places[-1]) == (2, 6, None)
    assert board.put("tall", {"H200": Fraction(1, 6)}) is None  # others do not hold it


def test_a_share_that_was_lost_may_come_back_as_another_kind():
    board = Board()
    board.open("a-0")
    board.lose("a-0")
    board.open("a-0", "H200")
    assert board.put("s", {"H200": Fraction(1, 6)}) == "a-0"


def test_what_runs_where_it_was_not_measured_takes_all_of_it():
    """A stream that is found on such a share, since fleet.toml has changed."""
    board = Board()
    board.open("old-0")
    board.keep("s", {"H200": Fraction(1, 6)}, "old-0")
    assert board.shares == {"old-0": 1}


def test_the_reserve_is_for_streams_that_have_lost_their_machine():
    board = Board(Fraction(1, 2))
    board.open("one")
    assert board.put("a", {"": Fraction(1, 2)}) == "one"
    assert board.put("b", {"": Fraction(1, 2)}) is None
    assert board.put("b", {"": Fraction(1, 2)}, urgent=True) == "one"


def test_the_largest_and_the_lost_come_first():
    loads = {"a": Fraction(1, 12), "b": Fraction(1, 2), "c": Fraction(1, 2), "d": Fraction(1, 12)}
    assert in_order(loads) == ["b", "c", "a", "d"]
    assert in_order(loads, first=["d"]) == ["d", "b", "c", "a"]
