"""What the tests of fleets share: a small method, cameras with known truth, and waiting."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from small_methods import SMALL

SIZE = (48, 64)
CAMERA = "synthetic:seed=2,objects=2,size=48x64,leave=0,length=1000000"


def values(folder: Path, **more: Any) -> dict[str, Any]:
    """A fleet.toml: shares of one core, which hold two streams each."""
    options = json.loads(json.dumps(SMALL["tvos"]))
    return {
        "name": "site",
        "store": str(folder / "store"),
        "http": "127.0.0.1:0",
        "reserve": 0.0,
        "snapshot_seconds": 0.5,
        "method": {"name": "tvos", "weights": "none", "options": options, "device": "cpu", "threads": 1},
        "supervision": {"standby": False, "snapshot_seconds": 0.2},
        "sizing": [{"method": "tvos", "height": 48, "streams": 2}],
        **more,
    }


def camera(name: str, **more: Any) -> dict[str, Any]:
    """The table of a live stream that is a synthetic video at 10 frames a second."""
    sinks = [{"kind": "publish"}]
    return {
        "name": name,
        "source": CAMERA,
        "height": 48,
        "realtime": True,
        "fps": 10.0,
        "sinks": sinks,
        **more,
    }


def square(number: int, size: int = 12) -> np.ndarray:
    """A mask of one object."""
    mask = np.zeros(SIZE, np.uint8)
    mask[4 : 4 + size, 4 : 4 + size] = number
    return mask


def until(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait until something is true; its value."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if value := what():
            return value
        time.sleep(0.05)
    raise AssertionError(f"it did not come true within {seconds:g} s")
