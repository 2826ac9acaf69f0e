"""`streamvos bench`: the benchmarks, which lie in bench/ of a checkout, and in streamvos/bench of a wheel.

streamvos bench latency --methods tvos,frtm-fast
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import streamvos
from streamvos.types import InputError


def _door() -> Any:
    """The module with the command line of the benchmarks."""
    if "bench.door" in sys.modules:  # python -m bench
        return sys.modules["bench.door"]
    root = Path(streamvos.__file__).resolve().parents[1]
    if (root / "setup.py").is_file() and (root / "bench/door.py").is_file():
        sys.path.insert(0, str(root))
        return import_module("bench.door")
    try:
        return import_module("streamvos.bench.door")
    except ModuleNotFoundError as error:
        if error.name not in ("streamvos.bench", "streamvos.bench.door"):
            raise
        raise InputError(
            "this installation has no benchmarks; reinstall streamvos, or use a checkout"
        ) from None


app = _door().app
