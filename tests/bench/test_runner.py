"""Cases take turns, failures cost themselves only, and what is done is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import machine, runner
from bench.options import methods_in, numbers_in, sizes_in
from bench.results import Settings, read
from bench.runner import Case, Run, take_turns
from bench.worker import OUT_OF_TIME, JobError, Worker
from streamvos.cli.signals import Stopped
from streamvos.types import InputError

HERE = Path(__file__).parent
MODULE = "counting_work"


@pytest.fixture(autouse=True)
def _jobs(monkeypatch):
    """Workers import their jobs from this folder."""
    monkeypatch.setattr("bench.worker.FOLDERS", [str(HERE)])


def cases(folder: Path, **fails: str) -> list[Case]:
    return [
        Case(
            name,
            Settings(method=name),
            MODULE,
            {"name": name, "log": str(folder / "log"), "milliseconds": ms, "fails": fails.get(name, "")},
        )
        for name, ms in (("a", 2.0), ("b", 4.0), ("c", 8.0))
    ]


def test_cases_take_turns(tmp_path, capsys):
    with Run("latency", str(tmp_path / "rows.jsonl"), 1.0) as run:
        take_turns(run, "latency", cases(tmp_path), turns=3, seconds=0.3)
    log = (tmp_path / "log").read_text().split("\n")[:-1]
    turns = [f"turn {name}" for _ in range(3) for name in "abc"]
    assert log == [*(f"begin {n}" for n in "abc"), *turns, *(f"end {n}" for n in "abc")]
    rows = read(tmp_path / "rows.jsonl")
    assert [row.name for row in rows] == ["a", "b", "c"]
    for row, ms in zip(rows, (2.0, 4.0, 8.0), strict=True):
        assert row.failed is None
        assert (row.count, row.repetitions, row.throughput) == (12, [ms] * 3, 1e3 / ms)
        assert (row.first_frame_ms, row.case.threads) == (9.0, 3)
        assert (row.memory_mib.peak, row.memory_mib.state) == (120.0, 1.5)
        assert row.stages["read"]["p99"] == ms
        assert row.details == {"remark": "seen"}
        assert {"cpu", "cores", "load_before", "load_after", "other_cores"} <= row.machine.keys()
        assert {"python", "torch", "streamvos"} <= row.versions.keys()
    assert rows[0].ratio is None
    assert (rows[2].ratio.to, rows[2].ratio.median) == ("a", 4.0)
    shown = capsys.readouterr()
    assert "4.00 (4.00-4.00)" in shown.out
    assert "about 1 seconds" in shown.err


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        ("raise begin", "ValueError: told to fail"),
        ("raise turn", "ValueError: told to fail"),
        ("die turn", "its process ended with code 7"),
        ("hang turn", "it took more than 2 seconds (turn)"),
    ],
)
def test_a_case_that_fails_costs_itself_only(tmp_path, monkeypatch, fails, reason):
    monkeypatch.setattr(runner, "LONGEST_TURN", 2.0)
    with Run("latency", str(tmp_path / "rows.jsonl")) as run:
        take_turns(run, "latency", cases(tmp_path, a=fails), turns=1, seconds=0.0)
    rows = {row.name: row for row in read(tmp_path / "rows.jsonl")}
    assert rows["a"].failed == reason
    assert [rows[name].count for name in "bc"] == [4, 4]
    assert rows["c"].ratio.to == "b"


def test_an_interrupted_run_keeps_the_turns_that_are_done(tmp_path, monkeypatch, capsys):
    ask, turns = Worker.ask, []

    def interrupted(self, job, given, seconds=None):
        turns.append(job)
        if turns.count("turn") == 6:  # the third of the second round
            raise Stopped(2)
        return ask(self, job, given, seconds)

    monkeypatch.setattr(Worker, "ask", interrupted)
    with pytest.raises(Stopped) as stopped, Run("latency", str(tmp_path / "rows.jsonl")) as run:
        take_turns(run, "latency", cases(tmp_path), turns=5, seconds=0.3)
    assert stopped.value.note == "3 rows are done"
    assert [row.count for row in read(tmp_path / "rows.jsonl")] == [8, 8, 4]
    assert "bench latency, ms" in capsys.readouterr().out


def test_rows_on_the_standard_output_are_all_that_is_there(tmp_path, capsys):
    with Run("latency", "-") as run:
        take_turns(run, "latency", cases(tmp_path)[:1], turns=1, seconds=0.0)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["name"] == "a"


def test_a_worker_that_was_killed_is_replaced(tmp_path):
    with Worker(MODULE) as worker:
        given = {"name": "a", "log": str(tmp_path / "log"), "fails": "hang begin"}
        with pytest.raises(JobError, match=OUT_OF_TIME):
            worker.ask("begin", given, seconds=1.0)
        assert worker.pid is None
        with pytest.raises(JobError, match="KeyError"):
            worker.ask("no such job", {}, seconds=60)
        assert worker.ask("begin", {**given, "fails": ""}, seconds=60)["threads"] == 3


def test_a_busy_machine_is_said(tmp_path, monkeypatch, capsys):
    clock = iter(range(0, 1000, 10))
    used = iter(range(0, 1000, 5))  # 5 seconds in 10, of which we use none
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(machine, "_clock", lambda: float(next(clock)))
    monkeypatch.setattr(machine, "busy_seconds", lambda: float(next(used)))
    monkeypatch.setattr(machine, "own_seconds", lambda: 0.0)
    with Run("latency", str(tmp_path / "rows.jsonl")) as run:
        take_turns(run, "latency", cases(tmp_path)[:1], turns=1, seconds=0.0)
    assert "the machine was busy: other programs used 0.5 of 2 cores" in capsys.readouterr().err
    (row,) = read(tmp_path / "rows.jsonl")
    assert row.machine["other_cores"] == 0.5
    monkeypatch.setattr(machine, "own_seconds", lambda: None)
    assert machine.Load().warning() is None  # where the system does not tell


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="NO /proc/stat: Linux has one")
def test_our_own_processes_are_no_other_programs():
    before = machine.own_seconds()
    end = before + 0.3
    while machine.own_seconds() < end:
        sum(range(10_000))
    assert machine.busy_seconds() >= machine.own_seconds() - before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: methods_in("tvos,nosuch"), "unknown method 'nosuch'; choose of: tvos"),
        (lambda: methods_in("frtm"), "no weights are bundled for 'frtm'; measure it with --weights none"),
        (lambda: methods_in(","), "names nothing"),
        (lambda: sizes_in("480x"), "expected HEIGHTxWIDTH"),
        (lambda: sizes_in("8x8"), "16 to 8192"),
        (lambda: numbers_in("1,two", "--objects"), "--objects '1,two' cannot be used"),
        (lambda: numbers_in("0", "--objects"), "numbers from 1 to 254"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(call, message):
    with pytest.raises(InputError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_height_alone_means_the_aspect_of_davis():
    assert sizes_in("480,240,720x1280,480x854") == [(480, 854), (240, 428), (720, 1280)]
    assert methods_in("tvos, tvos,rgmp") == ["tvos", "rgmp"]
    assert methods_in("frtm", "none") == ["frtm"]
