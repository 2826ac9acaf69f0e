"""The trace opens in Perfetto, even if it is cut off: JSON, slices that nest, arrows between them."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import textwrap
import time
from collections import defaultdict
from itertools import pairwise

import pytest

from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.pipeline.telemetry.observation import Observation
from streamvos.pipeline.telemetry.statistics import STAGES
from streamvos.pipeline.telemetry.trace import PIPELINE, TraceWriter
from streamvos.types import SinkError

MS = 1_000_000
WORKERS = {
    "source.front": "source.front",
    "extractor": "compute",
    "memory.front": "compute",
    "decoder.front": "compute",
    "sinks.front": "sinks.front",
}


def frame(seq, captured, dropped=None, recovered=False, sinks=4):
    stamps, at = {}, captured
    for stage in STAGES:
        work = sinks if stage == "sinks" else 2
        stamps[stage] = [at, at + MS // 2, at + work * MS]
        at += work * MS
    return [seq, captured, stamps, dropped or {}, recovered]


def read_trace(path):
    """The events of a trace that may have been cut off in the middle of a line, as Perfetto reads it."""
    first, *lines = path.read_text().splitlines()
    assert first == "["
    whole = [line.removesuffix(",") for line in lines if line.removesuffix(",").endswith("}")]
    return [event for line in whole if (event := parsed(line)) is not None]


def parsed(line):
    try:
        return json.loads(line)
    except ValueError:
        return None


def slices(events):
    """(process, thread) -> [(start, end, event)] in the order of starts."""
    rows = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            rows[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"], event))
    return {row: sorted(ones, key=lambda one: (one[0], -one[1])) for row, ones in rows.items()}


def names(events, what):
    return {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == what}


@pytest.fixture
def events(tmp_path):
    path = tmp_path / "deep" / "trace.json"
    with TraceWriter(path, WORKERS, name="door") as trace:
        # frames overlap in the pipeline, and in the sinks, which take longer than a frame's period
        for seq in range(20):
            dropped = {"newer frame": 3} if seq == 5 else {}
            trace.frames("front", 1, [frame(seq, 10**12 + seq * 3 * MS, dropped, seq == 7, sinks=7)])
        trace.instant("restart", stream="front", stage="memory.front", reason="signal 9")
        trace.instant("annotation", "front")
    return json.loads(path.read_text())


def test_rows_are_workers_and_stages(events):
    processes = {pid: name for (pid, _), name in names(events, "process_name").items()}
    assert list(processes.values()) == ["pipeline door", "source.front", "compute", "sinks.front"]
    threads = defaultdict(set)
    for (pid, _), name in names(events, "thread_name").items():
        threads[processes[pid]].add(name)
    assert threads["compute"] == {"extractor front", "memory.front", "decoder.front"}
    assert threads["source.front"] == {"source.front"}
    assert "sinks.front" in threads["sinks.front"]
    named = set(names(events, "thread_name"))
    assert set(slices(events)) <= named


def test_slices_of_a_row_never_cross(events):
    rows = slices(events)
    assert sum(map(len, rows.values())) == 20 * len(STAGES)
    for row in rows.values():
        for (_, end, _), (start, _, _) in pairwise(row):
            assert end <= start  # overlapping slices have rows of their own
    assert any(name.endswith("(2)") for name in names(events, "thread_name").values())  # the slow sinks


def test_arrows_follow_each_frame_from_slice_to_slice(events):
    starts = {(e["pid"], e["tid"], e["ts"]): e for ones in slices(events).values() for _, _, e in ones}
    arrows = defaultdict(list)
    for event in events:
        if event["ph"] in "stf":
            arrows[event["id"]].append(event)
    assert len(arrows) == 20
    for chain in arrows.values():
        assert [one["ph"] for one in chain] == ["s", "t", "t", "t", "f"]
        bound = [starts[one["pid"], one["tid"], one["ts"]] for one in chain]  # each begins where a slice does
        assert [one["name"] for one in bound] == list(STAGES)
        assert len({one["args"]["seq"] for one in bound}) == 1
        assert [one["ts"] for one in chain] == sorted(one["ts"] for one in chain)


def test_a_frame_lasts_from_glass_to_mask_in_microseconds(events):
    begins = {e["id"]: e for e in events if e["ph"] == "b"}
    ends = {e["id"]: e for e in events if e["ph"] == "e"}
    assert begins.keys() == ends.keys()
    assert len(begins) == 20
    for key, begin in begins.items():
        assert ends[key]["cat"] == begin["cat"]
        assert ends[key]["ts"] - begin["ts"] == pytest.approx(8000)  # four stages of 2 ms
    assert begins["front/1/0"]["ts"] == 10**9


def test_moments_are_marked(events):
    marks = {e["name"]: e for e in events if e["ph"] == "i"}
    assert marks.keys() == {"dropped: newer frame", "recovered", "restart", "annotation"}
    assert marks["dropped: newer frame"]["args"] == {
        "stream": "front",
        "seq": 5,
        "incarnation": 1,
        "frames": 3,
    }
    assert marks["recovered"]["args"]["seq"] == 7
    assert marks["restart"]["args"] == {"stream": "front", "stage": "memory.front", "reason": "signal 9"}
    assert marks["restart"]["pid"] == marks["annotation"]["pid"] == PIPELINE


def test_a_stage_that_waits_is_marked(tmp_path):
    path = tmp_path / "trace.json"
    with TraceWriter(path) as trace:
        observation = Observation(["front"], EventLog("json", io.StringIO()), trace)
        observation.beat({"sinks.front": {"waiting_for": "no space left", "waiting_since": 1}})
        observation.beat({"sinks.front": {}})
    marks = [e for e in json.loads(path.read_text()) if e["ph"] == "i"]
    assert [e["name"] for e in marks] == ["waiting", "goes on"]
    assert all(e["args"] == {"stream": "front", "stage": "sinks.front"} for e in marks)


def test_streams_share_the_extractor_without_sharing_a_row(tmp_path):
    path = tmp_path / "trace.json"
    with TraceWriter(path) as trace:
        for stream in ("a", "b"):
            trace.frames(stream, 1, [frame(0, 10**12)])
    threads = names(json.loads(path.read_text()), "thread_name").values()
    assert {"extractor a", "extractor b", "memory.a", "memory.b"} <= set(threads)


def test_a_killed_writer_leaves_a_trace_that_opens(tmp_path):
    path = tmp_path / "trace.json"
    code = f"""
        import time
        from streamvos.pipeline.telemetry.trace import TraceWriter
        trace = TraceWriter({str(path)!r})
        seq = 0
        while True:
            times = [time.monotonic_ns() for _ in range(3)]
            trace.frames("front", 1, [[seq, times[0], {{"source": times, "sinks": times}}, {{}}, False]])
            seq += 1
            time.sleep(0.001)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    try:
        deadline = time.monotonic() + 60
        while not (path.exists() and path.stat().st_size > 50_000):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with pytest.raises(json.JSONDecodeError):
        json.loads(path.read_text())
    found = read_trace(path)
    assert sum(e["ph"] == "X" for e in found) > 50
    assert not path.read_text().rstrip().endswith("]")


def test_any_cut_of_a_trace_opens(tmp_path):
    path = tmp_path / "trace.json"
    with TraceWriter(path, WORKERS) as trace:
        trace.frames("front", 1, [frame(seq, 10**12 + seq * MS) for seq in range(4)])
    whole, cut = path.read_bytes(), tmp_path / "cut.json"
    count = len(json.loads(whole))
    last = 0
    for length in range(2, len(whole), 7):
        cut.write_bytes(whole[:length])
        found = len(read_trace(cut))
        assert last <= found <= count
        last = found
    assert last >= count - 1


def test_size_is_bounded_and_says_so(tmp_path):
    path, limit = tmp_path / "trace.json", 40_000
    with TraceWriter(path, WORKERS, limit=limit) as trace:
        for seq in range(500):
            trace.frames("front", 1, [frame(seq, 10**12 + seq * 20 * MS)])
        assert trace.left_out > 100
    assert path.stat().st_size <= limit
    events = json.loads(path.read_text())
    marks = [e for e in events if e["ph"] == "i"]
    assert [e["name"] for e in marks] == ["trace full", "left out"]
    assert marks[1]["args"]["left out"] == trace.left_out


def test_nonsense_and_other_clocks_are_left_out(tmp_path):
    path = tmp_path / "trace.json"
    elsewhere = frame(1, 10**12)
    elsewhere[2]["memory"] = [5, 6, 7]
    turned = frame(2, 10**12)
    turned[2]["decoder"] = [10**12, 10**12 + 9, 10**12 + 1]
    with TraceWriter(path, WORKERS) as trace:
        trace.frames("front", 1, [frame(0, 10**12), elsewhere, turned, None, [], [1, 2, 3, 4, 5], ["x"] * 5])
        trace.instant("odd", why=float("nan"), what=b"\xff", url="rtsp://user:secret@host/x")
        assert trace.left_out == 6
    events = json.loads(path.read_text())
    assert sum(e["ph"] == "X" for e in events) == 5 + 4 + 4
    assert min(e["ts"] for e in events if e["ph"] == "X") >= 10**9
    assert "secret" not in path.read_text()


def test_a_full_disk_ends_the_trace_with_one_warning_and_nothing_else(caplog):
    with TraceWriter("/dev/full") as trace:
        for seq in range(200):
            trace.frames("front", 1, [frame(seq, 10**12)])
    (record,) = caplog.records
    assert "/dev/full" in record.getMessage()


def test_a_trace_that_cannot_be_made_says_why(tmp_path):
    with pytest.raises(SinkError, match="directory"):
        TraceWriter(tmp_path)
