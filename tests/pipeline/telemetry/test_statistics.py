"""Latencies, rate and counts of a stream, from what the sinks acknowledge."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise

import pytest

from streamvos.pipeline.telemetry.statistics import STAGES, WARM_UP, WINDOW, StreamStatistics

MS = 1_000_000


class Clock:
    """Monotonic nanoseconds that stand still unless they are moved."""

    def __init__(self) -> None:
        self.now = 10**12

    def __call__(self) -> int:
        return self.now


def frame(seq, captured, work=None, wait=1, transport=2, dropped=None, recovered=False):
    """An acknowledged frame; all durations in ms, `work` by stage."""
    stamps, at = {}, captured
    for stage in STAGES:
        received = at + (transport * MS if stage != "source" else 0)
        started = received + wait * MS
        at = started + (work or {}).get(stage, 3) * MS
        stamps[stage] = [received, started, at]
    return [seq, captured, stamps, dropped or {}, recovered]


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def statistics(clock):
    return StreamStatistics(warm_up=0, clock=clock)


def test_every_difference_goes_where_it_belongs(statistics):
    work = {"source": 1, "extractor": 10, "memory": 20, "decoder": 5, "sinks": 7}
    statistics.add([frame(seq, 10**12 + seq, work, wait=2, transport=3) for seq in range(50)])
    told = statistics.summary()["latencies"]
    for stage in STAGES:
        assert told[stage]["p50"] == told[stage]["max"] == work[stage]
        assert told[f"{stage} wait"]["p99"] == 2
    for before, after in pairwise(STAGES):
        assert told[f"{before} to {after}"]["p50"] == 3
    # everything before the sinks' `received`: four stages with their waits, four transports
    assert told["glass to mask"]["p50"] == 1 + 10 + 20 + 5 + 4 * 2 + 4 * 3
    assert told["glass to written"]["p50"] == told["glass to mask"]["p50"] + 2 + 7
    assert all(one["count"] == 50 for one in told.values())
    assert statistics.left_out == statistics.nonsense == 0


def test_percentiles_are_those_of_the_sorted_values(statistics):
    random.seed(3)
    values = [random.randint(1, 500) for _ in range(2000)]
    statistics.add([frame(seq, 10**12, {"memory": value}) for seq, value in enumerate(values)])
    told, ordered = statistics.summary()["latencies"]["memory"], sorted(values)
    for name, rank in (("p50", 1000), ("p95", 1900), ("p99", 1980)):
        assert told[name] == pytest.approx(ordered[rank - 1], rel=0.011)  # the histogram's bound is 1 percent
    assert told["mean"] == pytest.approx(sum(values) / 2000)


def test_the_first_frames_of_every_beginning_are_in_no_percentile(clock):
    statistics = StreamStatistics(clock=clock)
    slow, fast = {"extractor": 900}, {"extractor": 4}
    for beginning in range(3):
        first = beginning * 100
        for seq in range(first, first + 100):
            work = slow if seq < first + WARM_UP else fast
            statistics.add(
                [frame(seq, 10**12, work, recovered=beginning > 0 and seq == first)], beginning + 1
            )
    told = statistics.summary()
    assert told["latencies"]["extractor"]["max"] == 4
    assert told["latencies"]["extractor"]["count"] == 3 * (100 - WARM_UP)
    assert told["frames"] == 300  # counted all the same
    assert told["recoveries"] == 2


def test_a_recovery_is_timed_from_the_death_to_the_first_mask(statistics, clock):
    statistics.add([frame(0, clock.now)], 1)
    statistics.interrupted()
    death = clock.now
    clock.now += 5 * MS
    statistics.interrupted()  # a second death meanwhile is the same interruption
    statistics.add([frame(1, death - 30 * MS)], 1)  # it was on its way; the stream is still interrupted
    assert statistics.summary()["recoveries"] == 0
    back = frame(2, death + 400 * MS, recovered=True)
    statistics.add([back, frame(3, death + 500 * MS, recovered=True)], 2)
    told = statistics.summary()
    assert told["recoveries"] == 1
    assert told["recovery_ms"]["last"] == (back[2]["sinks"][0] - death) / MS
    statistics.add([frame(9, death + 900 * MS)], 3)  # a new incarnation is one even if its mark was lost
    assert statistics.summary()["recoveries"] == 2
    assert statistics.summary()["recovery_ms"]["count"] == 1  # the beginning of that one is unknown


def test_each_frame_counts_once_and_drops_add_up(statistics):
    statistics.add([frame(seq, 10**12, dropped={"newer frame": 2}) for seq in range(10)])
    statistics.add([frame(seq, 10**12, dropped={"newer frame": 2, "paused": 1}) for seq in range(5, 12)])
    told = statistics.summary()
    assert (told["frames"], told["repeated"], told["seq"]) == (12, 5, 11)
    assert told["dropped"] == {"newer frame": 24, "paused": 2}


@pytest.mark.parametrize("fps", [4, 25, 120])
def test_the_rate_is_that_of_the_last_seconds(statistics, clock, fps):
    seq = 0
    for rate, seconds in ((10 * fps, 20), (fps, 30)):  # the faster time before is forgotten
        for _ in range(rate * seconds):
            clock.now += 1_000_000_000 // rate
            statistics.add([frame(seq, clock.now)])
            seq += 1
    assert statistics.fps == pytest.approx(fps, rel=0.1)  # a quarter of a second of bins in five
    clock.now += round((WINDOW + 1) * 1e9)
    assert statistics.fps == 0  # no more frames come


def test_there_is_no_rate_before_a_second_has_passed(statistics, clock):
    assert statistics.fps is None
    for seq in range(31):
        statistics.add([frame(seq, clock.now)])
        clock.now += 33_333_333 if seq < 30 else 0
    assert statistics.fps is None  # a hair less than a second
    clock.now += MS
    assert statistics.fps == pytest.approx(30, rel=0.01)


def test_times_of_another_clock_are_left_out_and_counted(statistics):
    good = frame(0, 10**12)
    elsewhere = frame(1, 10**12)
    elsewhere[2]["memory"] = [5, 6, 7]  # another host, which started its clock a moment ago
    statistics.add([good, elsewhere])
    told = statistics.summary()
    assert told["latencies"]["extractor to memory"]["count"] == 1
    assert told["latencies"]["memory"]["count"] == 2  # within the host its differences are right
    # a positive impossible time cannot be distinguished from a slow stage
    assert told["latencies"]["memory to decoder"]["max"] > 10**5
    assert told["left_out"] == 1
    assert told["latencies"]["glass to mask"]["count"] == 2


def test_nonsense_is_counted_and_changes_nothing_else(statistics):
    seed = random.Random(5)
    pool = [None, -1, 3, 2**70, 1.5, float("nan"), "x", b"\xff", [], {}, [1, 2], {"source": 4}, True]
    for _ in range(3000):
        entry = [seed.choice(pool) for _ in range(seed.randint(0, 6))]
        statistics.add([seed.choice([entry, seed.choice(pool)])])
    told = statistics.summary()
    assert told["nonsense"] > 1000
    assert told["latencies"] == {}
    statistics.add([frame(2**40, 10**12)])
    assert statistics.summary()["latencies"]["glass to mask"]["count"] == 1


def test_memory_is_bounded_whatever_is_sent(statistics):
    def size() -> int:
        return sum(len(vars(one).get("_buckets", ())) for one in statistics._latencies.values()) + len(
            statistics._latencies
        )

    statistics.add([frame(0, 10**12)])
    before = size()
    for seq in range(1, 3000):
        one = frame(seq, 10**12 + seq * MS, dropped={f"cause {seq}": 1})
        one[2][f"stage {seq}"] = [1, 2, 3]
        statistics.add([one])
    assert size() == before
    told = statistics.summary()
    assert len(told["dropped"]) <= 33
    assert sum(told["dropped"].values()) == 2999


def test_importing_it_does_not_import_torch():
    code = "import sys, streamvos.pipeline.telemetry.statistics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
