"""How fast every method is on a GPU, end to end, and what the kernels are worth; one command, some minutes.

    python bench/gpu.py --device cpu --quick                 # that all of it runs, in seconds; no figures
    python bench/gpu.py --build --build-seconds 300 --seconds 500 --out docs/results/gpu.json
    python bench/gpu.py --only kernels --sweep               # which shape of the kernels is fastest here

A frame's latency is from the picture on the host to its mask on the host. Moving ellipses, whose true masks
are written back as predictions, so that memories fill and target models learn as on a real stream (random
weights follow nothing); their time does not depend on the weights. `--build` first builds the engines that
will be measured, in several processes; where one is missing eager runs, and the row says so. The most telling
comes first: three objects, eager and the backends that promise most, the methods with the highest goals. What
has no time left, or fails, is a row that says why. `--out` is written after every row. After the table come
the goals, reached or not, and one line of JSON. docs/gpu.md has the whole course.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from gpu_cases import CASES, machine, parts_of
from gpu_kernels import MATCHING, PROPAGATION
from gpu_worker import OUT_OF_TIME, Worker

from streamvos.engines import BACKENDS
from streamvos.engines.eager import choose_device
from streamvos.engines.engines import COMPILED
from streamvos.engines.manifest import source_digest

SIZE, OBJECTS, FRAMES, WARM_UP = (480, 854), (3, 1, 10), 40, 8
QUICK_SIZE, QUICK_FRAMES, QUICK_WARM_UP = (48, 80), 2, 1

GOALS = dict.fromkeys(CASES, 30.0) | {"tvos bundled": 300.0, "frtm-fast": 250.0, "joint": 60.0}
"""Frames a second at 480 x 854 with three objects."""

SOON = ("eager", "cuda-graph", "aoti")
"""Backends that come before the others."""

CASE_SECONDS = 120.0
"""A case that takes longer on a GPU hangs."""

PACKAGES = ("triton", "torch-tensorrt", "numpy")


class Record:
    """What is known so far, and its file, which is whole at any time."""

    def __init__(self, about: dict[str, Any], path: Path | None):
        self.answer, self._path, self._lock = about, path, threading.Lock()
        self._write()

    def add(self, table: str, rows: list[dict[str, Any]]) -> None:
        """Rows to a table; from any thread."""
        with self._lock:
            self.answer[table] += rows
            self.answer["goals"] = goals(self.answer["rows"])
            self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        beside.write_text(json.dumps(self.answer, indent=1) + "\n")
        os.replace(beside, self._path)


class Clock:
    """A budget of seconds from now on; None = no end."""

    def __init__(self, seconds: float | None):
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self, most: float | None = None) -> float | None:
        """Seconds until the end, or `most`."""
        left = None if self._end is None else max(self._end - time.monotonic(), 0.0)
        return min((value for value in (left, most) if value is not None), default=None)


def goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best frame rate of every method with three objects beside what is wanted."""
    reached: dict[str, float] = {}
    for row in rows:
        if row["objects"] == 3 and "fps" in row:
            reached[row["case"]] = max(reached.get(row["case"], 0.0), row["fps"])
    return [
        {"case": name, "goal_fps": GOALS[name], "fps": fps, "reached": fps >= GOALS[name]}
        for name, fps in reached.items()
    ]


def asked(worker: Worker, about: dict[str, Any], job: dict[str, Any], clock: Clock) -> list[dict[str, Any]]:
    """The rows of a job, or one that says why there are none."""
    left, most = clock.left(), job.pop("most", None)
    if left == 0:
        return [{**about, "failed": OUT_OF_TIME}]
    answer = worker.ask(job, clock.left(most))
    if answer.get("failed") == OUT_OF_TIME and most is not None and (left is None or most < left):
        answer["failed"] = f"it took more than {most:.0f} seconds"
    return [{**about, **row} for row in answer.get("rows", [answer])]


def chosen_cases(given: argparse.Namespace) -> list[tuple[int, str, str]]:
    """Objects, method, backend, the most telling first."""
    names = [name for name in CASES if name in given.methods.split(",")]
    backends = [backend for backend in given.backends.split(",") if backend in BACKENDS]
    cases = [(n, name, backend) for n in given.objects for name in names for backend in backends]
    return sorted(cases, key=lambda case: (case[0] != 3, case[2] not in SOON))


def follow_job(
    given: argparse.Namespace, case: tuple[int, str, str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a row says of a case, and the job of a worker."""
    objects, name, backend = case
    about = {"case": name, "backend": backend, "objects": objects, "size": list(given.size)}
    job = {"kind": "follow", **about, "frames": given.frames, "warm": given.warm, "cache": given.cache}
    return about, job | {"most": given.most}


def measure(given: argparse.Namespace, device: torch.device, record: Record) -> None:
    """All tables but that of the builds."""
    clock, worker, cases = Clock(given.seconds), Worker(given.device), chosen_cases(given)
    telling = [case for case in cases if case[0] == 3 and case[2] in SOON]

    def streams(some: list[tuple[int, str, str]]) -> None:
        for case in some if given.only != "kernels" else []:
            about, job = follow_job(given, case)
            reason = COMPILED[case[2]].missing(device) if case[2] in COMPILED else None
            rows = asked(worker, about, job, clock) if reason is None else [{**about, "failed": reason[:300]}]
            record.add("rows", rows)
            print_row(rows[0])

    def kernels(kind: str, names: tuple[str, ...], table: str) -> None:
        for name in names:
            job = {"kind": kind, "name": name, "quick": given.quick, "most": given.most}
            rows = asked(worker, {"what": name}, job, clock)
            record.add(table, rows)
            for row in rows:
                shown = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values())
                print("  ".join(shown), flush=True)

    try:
        print(
            f"{'':29}{'fps':>8}{'p50 ms':>9}{'p99 ms':>9}{'first ms':>10}{'extract ms':>11}{'peak':>7}"
            f"{'MiB':>9}{'state':>8}"
        )
        streams(telling)
        if given.only != "methods":
            print("kernels: setting, how, ms, (MiB,) largest distance from the tiles in float32")
            kernels("propagation", tuple(PROPAGATION), "kernels")
            kernels("matching", MATCHING, "kernels")
        streams([case for case in cases if case not in telling])
        if given.only != "methods" and given.sweep:
            print("shapes: setting, shape, ms")
            kernels("sweep", tuple(PROPAGATION), "sweep")
    finally:
        worker.close()


def wanted_engines(given: argparse.Namespace, device: torch.device) -> Iterator[dict[str, Any]]:
    """Jobs that build what will be measured, in that order.

    One engine serves 1 to 8 frames or objects.
    """
    parts = {name: parts_of(name) for name in CASES if name in given.methods.split(",")}
    seen = set()
    for objects, name, backend in chosen_cases(given):
        if backend not in COMPILED or COMPILED[backend].missing(device) is not None:
            continue
        for part in parts[name]:
            job = {"case": name, "part": part, "backend": backend}
            job["objects"] = None if part == "extractor" else objects
            if (key := (name, part, backend)) not in seen:
                seen.add(key)
                yield job


def build(given: argparse.Namespace, device: torch.device, record: Record) -> None:
    """The engines, several at a time."""
    clock, jobs, lock = Clock(given.build_seconds), wanted_engines(given, device), threading.Lock()
    threads = str(max(_cores() // given.jobs, 1))
    environment = {"OMP_NUM_THREADS": threads, "TORCHINDUCTOR_COMPILE_THREADS": threads}
    common = {"kind": "build", "size": list(given.size), "gate_frames": given.gate_frames}

    def work() -> None:
        worker = Worker(given.device, environment)
        while True:
            with lock:
                job = next(jobs, None)
            if job is None:
                break
            started = time.monotonic()
            rows = asked(worker, job, {**common, **job, "cache": given.cache}, clock)
            record.add("builds", rows)
            for row in rows:
                title = f"{row['case']}/{row['part']} x{row['objects'] or 1} {row.get('inputs', '')}"
                took = f"{time.monotonic() - started:.0f} s"
                print(f"{title} {row['backend']} {took}: {row.get('failed') or row['parity']}", flush=True)
        worker.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(given.jobs)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


def print_row(row: dict[str, Any]) -> None:
    head = f"{row['case']:14} {row['backend']:10} x{row['objects']:<3}"
    if "failed" in row:
        print(f"{head} {row['failed']}", flush=True)
        return
    share = "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}"
    print(
        f"{head}{row['fps']:8.1f}{row['p50_ms']:9.2f}{row['p99_ms']:9.2f}{row['first_ms']:10.0f}"
        f"{row['extractor_ms']:11.2f}{share:>7}{row['peak_mib']:9.0f}{row['state_mib']:8.0f}",
        flush=True,
    )


def about(given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What figures mean nothing without."""
    return {
        "benchmark": "gpu",
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": given.commit or _said_by("git", "rev-parse", "HEAD"),
        "source": source_digest()[:12],
        "device": machine(device),
        "torch": torch.__version__,
        "driver": _said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "cores": _cores(),
        **{package.replace("-", "_"): _version(package) for package in PACKAGES},
        "quick": given.quick,
        "builds": [],
        "rows": [],
        "kernels": [],
        "sweep": [],
        "goals": [],
    }


def _said_by(*command: str) -> str | None:
    """The first line of what a program says; None where there is no such program, or it fails."""
    if shutil.which(command[0]) is None:
        return None
    ran = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return (ran.stdout.strip().splitlines() or [None])[0] if ran.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add: Callable[..., Any] = parser.add_argument
    add("--device", default="cuda")
    add("--methods", default=",".join(CASES), help="comma-separated")
    add(
        "--backends",
        default="eager,cuda-graph,aoti,tensorrt",
        help="comma-separated; unknown ones are left out",
    )
    add("--objects", nargs="+", type=int, default=list(OBJECTS))
    add("--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="default: 480 854")
    add("--frames", type=int, help=f"that count; default: {FRAMES}")
    add("--only", choices=("methods", "kernels"), help="one half of it")
    add("--sweep", action="store_true", help="shapes of the kernels too")
    add("--quick", action="store_true", help="tiny sizes: that it runs, no figures")
    add("--seconds", type=float, help="for measuring; what is left then is not run")
    add("--build", action="store_true", help="build the engines first")
    add("--build-seconds", type=float, help="for building; what is left then is not built")
    add("--jobs", type=int, default=min(max(_cores() // 2, 1), 6), help="processes that build")
    add("--gate-frames", type=int, default=10, help="of the clip on which engines are compared with eager")
    add("--commit", help="of the source, where git cannot say")
    add("--cache", help="folder of engines; else the usual one")
    add("--out", type=Path, help="a file for the JSON, written after every row")
    given = parser.parse_args()
    unknown = sorted(set(given.methods.split(",")) - set(CASES))
    if unknown:
        parser.error(f"unknown methods {unknown}; choose of: {', '.join(CASES)}")
    given.size = tuple(given.size or (QUICK_SIZE if given.quick else SIZE))
    given.frames = given.frames or (QUICK_FRAMES if given.quick else FRAMES)
    given.warm = QUICK_WARM_UP if given.quick else WARM_UP
    return given


def main() -> None:
    given = arguments()
    device = choose_device(given.device)
    given.most = CASE_SECONDS if device.type == "cuda" else None
    record = Record(about(given, device), given.out)
    if given.build and given.only != "kernels":
        build(given, device, record)
    measure(given, device, record)
    for goal in [] if given.quick else record.answer["goals"]:  # they are for the usual size
        verdict = "yes" if goal["reached"] else "NO"
        print(f"{goal['case']:14} {goal['fps']:8.1f} of {goal['goal_fps']:.0f} {verdict}")
    print(json.dumps(record.answer))


if __name__ == "__main__":
    main()
