"""`serve` when nobody reads its standard error, and when there is none."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from serving import TESTS

SOURCE = "synthetic:seed=2,objects=2,size=48x64,leave=0,length=5000"


def full_pipe() -> tuple[int, int]:
    """Reading and writing end of a pipe that has no room left."""
    reading, writing = os.pipe()
    flags = fcntl.fcntl(writing, fcntl.F_GETFL)
    fcntl.fcntl(writing, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        fcntl.fcntl(writing, fcntl.F_SETFL, flags)
    return reading, writing


@pytest.mark.parametrize("case", ["unread", "closed"])
def test_a_pipeline_runs_and_ends_without_a_reader_of_its_log(tmp_path, case):
    runtime = tempfile.mkdtemp(prefix="svos", dir="/tmp")
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "XDG_RUNTIME_DIR": runtime, "OMP_NUM_THREADS": "1"}
    arguments = ["serve", "--source", SOURCE, "--out", str(tmp_path / "out"), "--device", "cpu"]
    arguments += ["--method", "stub_methods:drift", "--set", "read_ms=15"]
    serve = [sys.executable, "-m", "streamvos.cli", *arguments]
    if case == "closed":
        serve = ["sh", "-c", 'exec "$@" 2>&-', "sh", *serve]
    reading, writing = full_pipe()
    process = subprocess.Popen(serve, env=environment, stdout=writing, stderr=writing)
    try:
        deadline = time.monotonic() + 60
        while len(list(Path(tmp_path / "out" / "labels").glob("*.png"))) < 10:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)
        shutil.rmtree(runtime, ignore_errors=True)
