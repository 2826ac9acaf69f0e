"""The micro-benchmarks still start, under the names by which earlier runs are compared with them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {
    "test_handover": 7,
    "test_joint": 5,
    "test_matching": 18,
    "test_propagation": 7,
    "test_rgmp": 5,
    "test_target_model": 4,
}
"""File -> its benchmarks."""


def test_their_names_are_those_of_before():
    command = [sys.executable, "-m", "pytest", "bench", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout[-3000:]
    names = re.findall(r"^bench/(\w+)\.py::(\S.*)$", done.stdout, re.MULTILINE)
    found = {file: [name for other, name in names if other == file] for file, _ in names}
    assert {file: len(some) for file, some in found.items()} == COUNTS
    assert found["test_propagation"] == [
        f"test_propagation[{form}]"
        for form in ("dense", "dense rows", "float32", "bfloat16", "top10", "top10 half", "shipped")
    ]
    assert found["test_target_model"] == [
        f"test_target_model[{form}]" for form in ("double backward", "convolutions", "update", "a sample")
    ]
