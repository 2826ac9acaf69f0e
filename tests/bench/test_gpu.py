"""The command that a lent GPU runs goes through from end to end, here on the CPU and tiny."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bench.results import CaseResult, read
from bench.worker import OUT_OF_TIME, JobError, Worker

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children")
COMMAND = [sys.executable, "-m", "bench", "gpu", "--device", "cpu", "--quick"]


def ran(path: Path, *options: str) -> list[CaseResult]:
    """The rows that the command leaves."""
    command = [*COMMAND, *options, "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    return read(path)


def test_it_runs_through(tmp_path):
    options = ("--sweep", "--methods", "frtm-fast,tvos bundled", "--backends", "eager", "--objects", "1,3")
    rows = ran(tmp_path / "gpu.jsonl", *options)
    streams = [row for row in rows if row.case.method is not None]
    # the most telling comes first
    order = [(row.details["case"], row.case.objects) for row in streams]
    assert order == [(name, n) for n in (3, 1) for name in ("tvos bundled", "frtm-fast")]
    for row in streams:
        assert row.failed is None, row.failed
        assert row.case.backend == "eager"
        assert row.count == 2
        assert row.details["extractor_gflop"] > 0
        assert row.details["share_of_peak"] is None  # of a processor nobody asks
    assert [row.details["goal_fps"] for row in streams] == [300, 250, None, None]
    kernels = {row.name: row for row in rows if row.case.method is None}
    tiles = [row for row in kernels.values() if row.case.kernel == "tiles"]
    assert len(tiles) == 7
    # bfloat16 rounds similarities of up to 14 to 8 bits
    assert all(row.details["off"] < (0.15 if "bfloat16" in row.name else 1e-5) for row in tiles)
    assert kernels["propagation no prior bfloat16 sdpa"].failed is None
    assert "needs a GPU" in kernels["propagation best float32 triton"].failed


def test_what_has_no_time_left_is_said_and_not_run(tmp_path):
    options = ["--methods", "joint,tvos bundled", "--backends", "aoti,eager", "--objects", "10,3,1"]
    rows = ran(tmp_path / "gpu.jsonl", "--build", "--build-seconds", "0", "--seconds", "0", *options)
    assert all(row.failed == OUT_OF_TIME for row in rows)
    builds = [row.details for row in rows if "part" in row.details]
    assert [(one["case"], one["part"]) for one in builds] == [
        ("tvos bundled", "extractor"),
        ("tvos bundled", "refiner"),
        ("joint", "extractor"),
        ("joint", "backbone"),
        ("joint", "decoder"),
    ]
    streams = [row.case.objects for row in rows if row.case.method is not None]
    assert streams == [3] * 4 + [10] * 4 + [1] * 4


def test_a_run_that_is_cut_off_keeps_what_it_measured(tmp_path):
    path = tmp_path / "gpu.jsonl"
    options = ["--methods", "tvos bundled", "--frames", "20", "--backends", "eager", "--json", str(path)]
    with subprocess.Popen(
        [*COMMAND, *options], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 100
            while not path.exists() or not path.read_bytes().endswith(b"\n"):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            process.kill()
    assert read(path)[0].throughput > 0


@pytest.mark.skipif(not CHILDREN.exists(), reason="NO LIST OF CHILDREN: Linux has one")
def test_a_process_that_fails_hangs_or_dies_costs_its_job_only():
    good = {"device": "cpu", "name": "local matching", "quick": True}
    endless = {"device": "cpu", "case": "tvos bundled", "backend": "eager", "objects": 1, "cache": None}
    endless |= {"size": [48, 80], "frames": 10**6, "warm": 1}
    with Worker("gpu.work", {"OMP_NUM_THREADS": "1"}) as worker:
        with pytest.raises(JobError, match="KeyError"):
            worker.ask("no such kind", {})
        assert [row["how"] for row in worker.ask("matching", good)] == ["triton", "tiles"]
        threading.Timer(0.5, os.kill, (worker.pid, signal.SIGSEGV)).start()
        with pytest.raises(JobError, match="its process ended with code -11"):
            worker.ask("follow", endless)
        with pytest.raises(JobError, match=OUT_OF_TIME):
            worker.ask("follow", endless, seconds=0.5)
        assert [row["how"] for row in worker.ask("matching", good)] == ["triton", "tiles"]
