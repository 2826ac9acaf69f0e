"""Jobs for tests of the runner: a worker that counts, fails, hangs or dies when told to."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

_told: dict[str, Any] = {}


def _begin(
    name: str, log: str, milliseconds: float = 2.0, fails: str = "", slow: float = 0.0
) -> dict[str, Any]:
    _told.update(name=name, log=log, milliseconds=milliseconds, fails=fails, slow=slow)
    _note("begin")
    return {"first_frame_ms": 9.0, "threads": 3}


def _turn(seconds: float) -> dict[str, Any]:
    _note("turn")
    time.sleep(_told["slow"])
    values = [_told["milliseconds"]] * 4
    return {"values": values, "stages": {"read": values}, "samples": [[0.5, 100.0]]}


def _end() -> dict[str, Any]:
    _note("end")
    return {"peak_mib": 120.0, "state_mib": 1.5, "remark": "seen"}


def _note(job: str) -> None:
    print("libraries print what they like")
    with Path(_told["log"]).open("a") as file:
        file.write(f"{job} {_told['name']}\n")
    fails, _, at = _told["fails"].partition(" ")
    if at != job:
        return
    if fails == "raise":
        raise ValueError("told to fail\nsecond line")
    if fails == "die":
        os._exit(7)
    if fails == "hang":
        time.sleep(3600)


JOBS = {"begin": _begin, "turn": _turn, "end": _end}
