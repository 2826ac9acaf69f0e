"""The command that a lent GPU runs goes through from end to end, here on the CPU and tiny."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_bench_of_gpus_runs_through(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "bench/gpu.py", "--device", "cpu", "--quick", "--sweep", "--out", str(out)]
    command += ["--methods", "tvos bundled,frtm-fast", "--backends", "eager,no-such-backend"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr[-3000:]
    answer = json.loads(ran.stdout.splitlines()[-1])
    assert answer == json.loads(out.read_text())
    rows = {(row["case"], row["objects"]): row for row in answer["rows"]}
    assert set(rows) == {(name, n) for name in ("tvos bundled", "frtm-fast") for n in (1, 3, 10)}
    for row in rows.values():
        assert "failed" not in row, row
        assert row["backend"] == "eager"
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["extractor_gflop"] > 0
        assert row["share_of_peak"] is None  # of a processor nobody asks
    assert {goal["case"]: goal["goal_fps"] for goal in answer["goals"]} == {
        "tvos bundled": 300,
        "frtm-fast": 250,
    }
    tiles = [row for row in answer["kernels"] if row["how"] == "tiles"]
    assert len(tiles) == 7
    assert [row["how"] for row in answer["kernels"] if row["what"] == "no prior bfloat16"][-1] == "sdpa"
    # bfloat16 rounds similarities of up to 14 to 8 bits
    assert all(row["off"] < (0.15 if "bfloat16" in row["what"] else 1e-5) for row in tiles)
