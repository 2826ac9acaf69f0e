"""Runs the tests of the kernels in a process of their own: Triton decides at import whether it interprets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]
FILES = sorted(ROOT.glob("tests/nn/*/kernels/test_*.py"))


def numbers_can_be_read() -> bool:
    """Triton's interpreter before 3.7 takes loop bounds from arrays in a way that numpy 2.4 ended."""
    import triton

    if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7):
        return True
    try:
        return int(np.zeros(1)) == 0
    except TypeError:
        return False


def test_kernels_in_the_interpreter():
    triton = pytest.importorskip(
        "triton", reason="NO TRITON: pip install triton, to test the kernels of GPUs on a CPU"
    )
    if not numbers_can_be_read():
        pytest.skip(
            f"THE INTERPRETER OF TRITON {triton.__version__} CANNOT LOOP WITH NUMPY {np.__version__}: "
            "pip install 'triton>=3.7' or 'numpy<2.4', to test the kernels of GPUs on a CPU"
        )
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, FILES)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert FILES
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout, ran.stdout[-2000:]
