"""The format of results: quantiles that can be trusted, rows that survive whatever ends a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.results import (
    GROWTH,
    QUANTILES,
    RELATIVE_ERROR,
    CaseResult,
    Histogram,
    Memory,
    Ratio,
    Settings,
    Writer,
    measured,
    read,
)
from streamvos.types import InputError, SinkError

ROOT = Path(__file__).resolve().parents[2]
VALUES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=300)


def full_row(name: str = "tvos 480x854 1 object eager") -> CaseResult:
    return CaseResult(
        bench="latency",
        name=name,
        case=Settings(method="tvos", weights="bundled", height=480, width=854, objects=1, threads=2),
        **measured([40.0, 41.5, 60.25]),
        repetitions=[40.5, 41.0],
        stages={"extract": {"p50": 20.0, "p99": 30.0}},
        first_frame_ms=90.0,
        throughput=24.1,
        memory_mib=Memory(peak=512.5, samples=[(0.0, 500.0), (1.0, 512.5)]),
        scores={"J&F": 71.2},
        ratio=Ratio(to="frtm-fast", median=2.0, low=1.9, high=2.2),
        machine={"cpu": "some", "cores": 2},
        versions={"torch": "2.13"},
        time="2026-11-30T14:00:00+00:00",
        command="bench latency",
    )


@given(VALUES)
@settings(deadline=None)
def test_quantiles_are_those_of_numpy_within_the_stated_error(values):
    told = measured(values)
    assert told["count"] == len(values) == sum(told["histogram"].values())
    assert told["mean"] == pytest.approx(np.mean(values))
    for name, q in QUANTILES.items():
        exact = np.quantile(values, q, method="inverted_cdf")
        assert told["quantiles"][name] == pytest.approx(exact, rel=RELATIVE_ERROR * (1 + 1e-9)), name
    assert (told["quantiles"]["min"], told["quantiles"]["max"]) == (min(values), max(values))


@given(VALUES, VALUES)
@settings(deadline=None)
def test_histograms_of_two_runs_can_be_merged(first, second):
    both = Histogram(measured(first)["histogram"])
    for value in second:
        both.add(value)
    exact = np.quantile(first + second, 0.95, method="inverted_cdf")
    # the edge buckets of the first run are known by their middles only
    assert both.quantile(0.95) == pytest.approx(exact, rel=2 * RELATIVE_ERROR)


def test_a_bucket_holds_what_the_schema_says():
    for bucket in (-300, -1, 0, 1, 200):
        low, high = GROWTH ** (bucket - 1), GROWTH**bucket
        histogram = Histogram()
        histogram.add((low + high) / 2)
        assert histogram.counts == {bucket: 1}


@pytest.mark.parametrize(("count", "tail"), [(99, "p99"), (999, "p99.9")])
def test_a_tail_of_few_values_is_their_maximum(count, tail):
    values = [float(one + 1) for one in range(count)]
    assert measured(values)["quantiles"][tail] == count
    assert measured([*values, float(count + 1)])["quantiles"][tail] == pytest.approx(count, rel=0.01)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_what_is_no_measurement_is_refused(value):
    with pytest.raises(InputError, match="expected a finite number"):
        measured([1.0, value])
    with pytest.raises(InputError, match="no value"):
        measured([])


def test_zero_is_a_measurement():
    assert measured([0.0, 0.0])["quantiles"] == dict.fromkeys(QUANTILES, 0.0)


def test_a_row_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    rows = [full_row("a"), CaseResult(bench="gpu", name="b", failed="out of time")]
    with Writer(path) as writer:
        for row in rows:
            writer.write(row)
    assert read(path) == rows
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    first = json.loads(lines[0])
    # the documented schema, name by name: a change needs a new number
    assert set(first) == {
        *("schema", "bench", "name", "case", "unit", "count", "quantiles", "mean", "histogram"),
        *("repetitions", "stages", "first_frame_ms", "throughput", "memory_mib", "scores", "ratio"),
        *("machine", "versions", "time", "command"),
    }
    assert first["schema"] == 1
    assert "failed" in json.loads(lines[1])


def test_an_earlier_file_is_replaced_when_the_first_row_comes(tmp_path):
    path = tmp_path / "rows.jsonl"
    with Writer(path) as writer:
        writer.write(full_row("old"))
    with Writer(path) as writer:
        assert [row.name for row in read(path)] == ["old"]
        writer.write(full_row("new"))
    assert [row.name for row in read(path)] == ["new"]


KILLED = """
import sys
from bench.results import CaseResult, Writer, measured
with Writer(sys.argv[1]) as writer:
    for k in range(10**6):
        writer.write(CaseResult(bench="latency", name=f"case {k}", **measured([1.0] * 50)))
        print(k, flush=True)
"""


def test_a_killed_run_keeps_every_whole_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    command = [sys.executable, "-c", KILLED, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        told = -1
        while told < 30:
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        told = max([told, *(int(line) for line in process.stdout.read().splitlines() if line)])
    names = [row.name for row in read(path)]
    assert names == [f"case {k}" for k in range(len(names))]
    assert len(names) > told
    with path.open("ab") as file:  # as if it had died within a write
        file.write(b'{"schema": 1, "bench": "lat')
    assert [row.name for row in read(path)] == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no results"),
        ("no JSON\n", "line 1: no result of schema 1"),
        ('{"benchmark": "methods", "rows": []}\n', "line 1: no result"),
        ('{"schema": 2, "bench": "a", "name": "b"}\n', "schema 2 is unknown"),
        (
            '{"schema": 1, "bench": "a", "name": "b", "count": 3, "histogram": {"1": 2}}\n',
            "histogram holds 2",
        ),
        ('{"schema": 1, "bench": "a", "name": "b", "colour": 1}\n', "colour"),
        ("[" * 100_000 + "\n", "line 1: no result"),
    ],
)
def test_what_is_no_file_of_results_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_said():
    with Writer("/dev/full") as writer, pytest.raises(SinkError, match="/dev/full"):
        writer.write(full_row())
