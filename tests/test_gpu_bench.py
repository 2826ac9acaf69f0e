"""The command that a lent GPU runs goes through from end to end, here on the CPU and tiny."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children")
COMMAND = [sys.executable, "bench/gpu.py", "--device", "cpu", "--quick"]


def ran(out: Path, *options: str) -> dict:
    """What the command says, which its file says too."""
    command = [*COMMAND, "--out", str(out), *options]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer == json.loads(out.read_text())
    return answer


def test_the_bench_of_gpus_runs_through(tmp_path):
    methods, backends = "frtm-fast,tvos bundled", "eager,no-such-backend"
    answer = ran(tmp_path / "gpu.json", "--sweep", "--methods", methods, "--backends", backends)
    # the most telling comes first
    order = [(row["case"], row["objects"]) for row in answer["rows"]]
    assert order == [(name, n) for n in (3, 1, 10) for name in ("tvos bundled", "frtm-fast")]
    for row in answer["rows"]:
        assert "failed" not in row, row
        assert row["backend"] == "eager"
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["extractor_gflop"] > 0
        assert row["share_of_peak"] is None  # of a processor nobody asks
    assert {goal["case"]: goal["goal_fps"] for goal in answer["goals"]} == {
        "tvos bundled": 300,
        "frtm-fast": 250,
    }
    assert {"device", "torch", "triton", "cuda", "driver", "python", "date", "commit"} <= answer.keys()
    assert "--sweep" in answer["command"]
    tiles = [row for row in answer["kernels"] if row["how"] == "tiles"]
    assert len(tiles) == 7
    assert [row["how"] for row in answer["kernels"] if row["what"] == "no prior bfloat16"][-1] == "sdpa"
    # bfloat16 rounds similarities of up to 14 to 8 bits
    assert all(row["off"] < (0.15 if "bfloat16" in row["what"] else 1e-5) for row in tiles)


def test_what_has_no_time_left_is_said_and_not_run(tmp_path):
    options = ["--methods", "joint,tvos bundled", "--backends", "aoti,eager", "--objects", "10", "3", "1"]
    answer = ran(tmp_path / "gpu.json", "--build", "--build-seconds", "0", "--seconds", "0", *options)
    tables = [answer[name] for name in ("builds", "rows", "kernels")]
    assert all(row["failed"] == "out of time" for table in tables for row in table)
    assert [(row["case"], row["part"], row["objects"]) for row in answer["builds"]] == [
        ("tvos bundled", "extractor", None),
        ("tvos bundled", "refiner", 3),
        ("joint", "extractor", None),
        ("joint", "backbone", 3),
        ("joint", "decoder", 3),
    ]
    assert [row["objects"] for row in answer["rows"]] == [3] * 4 + [10] * 4 + [1] * 4
    assert answer["goals"] == []


def test_a_run_that_is_cut_off_keeps_what_it_measured(tmp_path):
    out = tmp_path / "gpu.json"
    command = [*COMMAND, "--methods", "tvos bundled", "--frames", "200", "--backends", "eager", "--out", out]
    with subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 100
            while not out.exists() or not json.loads(out.read_text())["rows"]:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            process.kill()
    answer = json.loads(out.read_text())
    assert answer["rows"][0]["fps"] > 0
    assert answer["goals"][0]["case"] == "tvos bundled"


@pytest.mark.skipif(not CHILDREN.exists(), reason="NO LIST OF CHILDREN: Linux has one")
def test_a_process_that_fails_hangs_or_dies_costs_its_job_only(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "bench")
    worker = importlib.import_module("gpu_worker").Worker("cpu", {"OMP_NUM_THREADS": "1"})
    good = {"kind": "matching", "name": "local matching", "quick": True}
    endless = {"kind": "follow", "case": "tvos bundled", "backend": "eager", "objects": 1, "cache": None}
    endless |= {"size": [48, 80], "frames": 10**6, "warm": 1}
    try:
        before = set(CHILDREN.read_text().split())
        assert worker.ask({"kind": "no such kind"})["failed"].startswith("KeyError")
        assert [row["how"] for row in worker.ask(good)["rows"]] == ["triton", "tiles"]
        (child,) = set(CHILDREN.read_text().split()) - before
        threading.Timer(0.5, os.kill, (int(child), signal.SIGSEGV)).start()
        assert worker.ask(endless) == {"failed": "its process ended with code -11"}
        assert worker.ask(endless, seconds=0.5) == {"failed": "out of time"}
        assert [row["how"] for row in worker.ask(good)["rows"]] == ["triton", "tiles"]
    finally:
        worker.close()
