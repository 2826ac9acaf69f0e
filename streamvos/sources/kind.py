"""Finding out, in a process of its own, which addresses name a video with an end, and which a live stream.

A pipeline has to know before it starts, because policies depend on it. The supervisor imports no PyAV and
opens nothing itself.

    python -m streamvos.sources.kind < question.json      # {"http://10.0.0.5/clip.mp4": 10.0}
    {"http://10.0.0.5/clip.mp4": true}
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from streamvos.types import StreamvosError

_START_SECONDS = 20.0
"""Longest time that the process may take beside the opening."""


def ask(addresses: Mapping[str, float]) -> dict[str, bool | None]:
    """Whether each address names a video with an end; None = it cannot be opened, so nobody knows.

    Args:
        addresses: address -> seconds within which it must open.
    """
    unknown: dict[str, bool | None] = dict.fromkeys(addresses)
    if not addresses:
        return unknown
    try:
        answer = subprocess.run(
            [sys.executable, "-m", "streamvos.sources.kind"],
            input=json.dumps(dict(addresses)).encode(),
            capture_output=True,
            timeout=_START_SECONDS + max(addresses.values()),
            check=True,
        )
        found = json.loads(answer.stdout)
        return {one: found.get(one) for one in addresses}
    except (OSError, subprocess.SubprocessError, ValueError):
        return unknown


def _look(question: tuple[str, float]) -> bool | None:
    from streamvos.sources.opening import look_if_finite

    try:
        return look_if_finite(*question)
    except StreamvosError:
        return None


def main() -> int:
    """Answer the question on the standard input."""
    question = json.loads(sys.stdin.read())
    with ThreadPoolExecutor(len(question)) as pool:
        answers = list(pool.map(_look, question.items()))
    print(json.dumps(dict(zip(question, answers, strict=True))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
