"""All tests, in two lanes at once: half of them compute, the other half waits for processes and clocks.

    python tests/lanes.py         # what `make test` does; pytest alone runs the same one after the other

The lane of those who compute runs at the lowest priority, so that it takes the time that the others leave and
does not disturb their clocks. Its output comes behind theirs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

WAITING = ("tests/pipeline", "tests/cli", "tests/sources", "tests/sinks", "tests/test_readme.py")
"""Tests of processes, sockets, cameras and commands."""


def main(arguments: list[str]) -> int:
    """Run both.

    Args:
        arguments: for pytest, of both lanes.

    Returns:
        0 if both passed.
    """
    pytest = [sys.executable, "-m", "pytest", *arguments]
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        computing = subprocess.Popen(
            [
                "nice",
                "-n",
                "19",
                *pytest,
                *(f"--ignore={place}" for place in WAITING),
                "-p",
                "no:cacheprovider",
            ],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            # threads that wait for each other must not burn the time that the other lane needs
            env={**os.environ, "OMP_WAIT_POLICY": "passive"},
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
