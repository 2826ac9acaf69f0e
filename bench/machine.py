"""What figures mean nothing without: the machine, the versions, and whether anything else was running.

    load = Load()
    ...                                   # measure
    machine = describe("cpu") | load.told()
    warning = load.warning()              # "other programs used 1.2 of 2 cores ..."

Nothing here imports torch: a machine is described also where it is not installed or does not work.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "numpy",
    "triton",
    "torch-tensorrt",
    "onnxruntime",
    "av",
    "pyzmq",
    "opencv-python-headless",
)

BUSY = 0.1
"""Part of the cores; figures of a machine on which other programs used more are doubtful."""

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@cache
def describe(device: str = "cpu") -> dict[str, Any]:
    """Processor, memory and, for a device "cuda...", the GPU with its driver and clocks; None = unknown."""
    about: dict[str, Any] = {
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": cores(),
        "governor": _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        "memory_mib": _memory_mib(),
    }
    return about | (_gpu() if device.startswith("cuda") else {})


@cache
def versions() -> dict[str, str | None]:
    """Of Python, streamvos, its commit (None outside a checkout) and the packages that decide about speed."""
    found = {"python": platform.python_version(), "streamvos": _version("streamvos"), "commit": _commit()}
    return found | {name: _version(name) for name in PACKAGES if _version(name) is not None}


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Load:
    """What runs beside us, from now on."""

    def __init__(self) -> None:
        self.before = _load_average()
        self._began = _clock()
        self._busy, self._own = busy_seconds(), own_seconds()

    def others(self) -> float | None:
        """Cores that other programs used in the mean; None where the system does not tell."""
        seconds, busy, own = _clock() - self._began, busy_seconds(), own_seconds()
        if None in (busy, self._busy, own, self._own) or seconds <= 0:
            return None
        used = (busy - self._busy) - (own - self._own)  # type: ignore[operator]
        return max(used / seconds, 0.0)

    def told(self) -> dict[str, Any]:
        """load_before and load_after (the system's load averages of a minute), other_cores."""
        others = self.others()
        other_cores = None if others is None else round(others, 2)
        return {"load_before": self.before, "load_after": _load_average(), "other_cores": other_cores}

    def warning(self) -> str | None:
        """A line for people if other programs took part of the machine."""
        others = self.others()
        if others is None or others <= BUSY * cores():
            return None
        return (
            f"the machine was busy: other programs used {others:.1f} of {cores()} cores in the mean, so that "
            "times are too long and vary; measure again on an idle machine"
        )


def busy_seconds() -> float | None:
    """Processor seconds that all programs together have used on our cores; None where unknown."""
    try:
        lines = (_PROC / "stat").read_text().splitlines()
        ours = os.sched_getaffinity(0)
    except (OSError, AttributeError):
        return None
    total = 0
    for words in (line.split() for line in lines):
        if words and words[0].startswith("cpu") and words[0][3:].isdigit() and int(words[0][3:]) in ours:
            user, nice, system, _, _, irq, softirq, steal = map(int, words[1:9])
            total += user + nice + system + irq + softirq + steal
    return total / _TICKS


def own_seconds() -> float | None:
    """Processor seconds of this process and everything that it started; None where unknown."""
    ticks: dict[int, int] = {}
    parents: dict[int, int] = {}
    try:
        entries = [one for one in os.listdir(_PROC) if one.isdigit()]
    except OSError:
        return None
    for entry in entries:
        try:
            words = (_PROC / entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        parents[int(entry)] = int(words[1])
        ticks[int(entry)] = sum(map(int, words[11:15]))  # its own, and those of children that have ended
    ours, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in ours} - ours
        ours |= more
        grown = bool(more)
    return sum(ticks.get(pid, 0) for pid in ours) / _TICKS


def memory_mib(pid: int | str = "self", peak: bool = False) -> float | None:
    """Resident memory of a process, now or the most that it ever had; None where unknown."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(wanted)), None)


def said_by(*command: str, folder: Path | None = None) -> str | None:
    """The first line of what a program says; None where there is no such program, or it fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines and done.returncode == 0 else None


def _clock() -> float:
    return os.times().elapsed


def _load_average() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def _cpu_model() -> str:
    try:
        lines = (_PROC / "cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _memory_mib() -> int | None:
    line = _first_line(_PROC / "meminfo")
    return int(line.split()[1]) // 1024 if line else None


def _gpu() -> dict[str, Any]:
    names = ("gpu", "driver", "gpu_memory_mib", "clock_mhz", "highest_clock_mhz", "power_limit_w")
    fields = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit"
    line = said_by("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    values = [one.strip() for one in (line or "").split(",")]
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else dict.fromkeys(names)


def _commit() -> str | None:
    here = Path(__file__).resolve().parent
    if not (here.parent / "setup.py").is_file():
        return None  # installed: a repository around it is another one
    return said_by("git", "describe", "--always", "--dirty", "--abbrev=10", folder=here)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text().splitlines()[0].strip()
    except (OSError, IndexError):
        return None
