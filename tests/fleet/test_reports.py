"""When a share counts as lost, and when it is ended."""

from __future__ import annotations

from contextlib import closing

import pytest

from streamvos.fleet.cluster import GoneError, Place, SilentError
from streamvos.fleet.reports import Reports
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.types import StreamvosError

GOOD = {"life": "1", "store": "ours", "streams": {}, "status": {"streams": {"s": {"frames": 3}}}}


class OneShare:
    """A share, and what becomes of it over the seconds."""

    def __init__(self, log: EventLog):
        self.forgotten: list[object] = []
        self.reports = Reports(None, "ours", log, self.forgotten.append)

    def says(self, said: object, now: float) -> bool:
        """Whether it is ended then."""
        return self.reports.take(({"a-0": Place("host")}, {"a-0": said}, now), now) == ["a-0"]


@pytest.fixture
def share():
    with closing(EventLog("json")) as log:
        one = OneShare(log)
        yield one
        one.reports.close()


def test_one_that_begins_is_given_a_minute(share):
    silent = SilentError("no answer")
    assert not any(share.says(silent, now) for now in range(60))
    assert not share.reports.all_began()
    assert share.says(silent, 60.0)
    assert share.reports.problems == {"a-0": "no answer"}
    assert not any(share.says(silent, now) for now in range(61, 121))


def test_one_that_falls_silent_counts_for_a_quarter_of_one(share):
    assert not share.says(GOOD, 0.0)
    silent = SilentError("no answer")
    assert not any(share.says(silent, now) for now in range(1, 16))
    assert list(share.reports.of_shares()) == ["a-0"]
    assert share.says(silent, 16.0)
    assert share.reports.of_shares() == {}
    assert share.forgotten == [{"s": {"frames": 3}}]


def test_one_whose_process_died_is_not_ended_while_it_begins_again(share):
    share.says(GOOD, 0.0)
    assert not any(share.says(GoneError("gone"), now) for now in range(1, 30))
    assert not any(share.says(SilentError("it begins"), now) for now in range(30, 80))
    share.says(GOOD, 80.0)
    assert share.reports.problems == {}


def test_one_whose_supervisor_has_ended_is_ended_at_once(share):
    share.says(GOOD, 0.0)
    assert share.says(StreamvosError("its supervisor has ended"), 1.0)


def test_one_that_cannot_begin_is_tried_again_now_and_then(share):
    ends = [now for now in range(60) if share.says(StreamvosError("no store"), now)]
    assert ends == [15, 31, 47]
    assert share.reports.all_began()


def test_one_with_another_store_is_let_alone(share):
    share.says(GOOD, 0.0)
    assert not any(share.says({**GOOD, "store": "theirs"}, now) for now in range(1, 100))
    assert share.reports.of_shares() == {}
