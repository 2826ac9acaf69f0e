"""All tests, in two lanes at once: one computes, the other waits for processes and clocks.

    python tests/lanes.py         # what `make test` does; pytest alone runs them one after the other

The computing lane runs at the lowest priority: it takes the time that the other leaves and does not disturb
its clocks. Its output is printed when both have ended. Arguments go to pytest in both lanes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

WAITING = (
    "tests/pipeline",
    "tests/cli",
    "tests/deploy",
    "tests/fleet",
    "tests/sources",
    "tests/sinks",
    "tests/test_examples.py",
    "tests/test_package.py",
    "tests/test_readme.py",
)
"""Tests of processes, sockets, cameras and commands."""


def main(arguments: list[str]) -> int:
    """Run both lanes; 0 if both passed."""
    pytest = [sys.executable, "-m", "pytest", "--durations=10", *arguments]
    others = [f"--ignore={place}" for place in WAITING]
    # threads that wait for each other must not burn the time that the other lane needs
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        computing = subprocess.Popen(
            ["nice", "-n", "19", *pytest, *others, "-p", "no:cacheprovider"],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        try:
            waiting = subprocess.run([*pytest, *WAITING], cwd=ROOT).returncode
            code = computing.wait()
        except KeyboardInterrupt:
            computing.wait()
            return 130
        output.seek(0)
        print(output.read(), flush=True)
    return max(waiting, code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
