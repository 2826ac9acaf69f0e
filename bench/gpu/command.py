"""`bench gpu`: how fast every method is on a GPU, end to end, and what the kernels are worth; some minutes.

    streamvos bench gpu --device cpu --quick                 # that all of it runs, in seconds; no figures
    streamvos bench gpu --build --build-seconds 300 --seconds 500 --json docs/results/gpu.jsonl
    streamvos bench gpu --only kernels --sweep               # which shape of the kernels is fastest here

A frame's latency is from the picture on the host to its mask on the host. Moving ellipses, whose true masks
are written back as predictions, so that memories fill and target models learn as on a real stream (random
weights follow nothing); their time does not depend on the weights. `--build` first builds the engines that
will be measured, in several processes; where one is missing eager runs, and the row says so. The most telling
comes first: three objects, eager and the backends that promise most, the methods with the highest goals. What
has no time left, or fails, is a row that says why. docs/gpu.md has the whole course.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from streamvos.cli.options import examples, names_in
from streamvos.cli.output import remark, write_output
from streamvos.types import InputError

from .. import options
from ..machine import cores
from ..results import CaseResult, Memory, Settings, measured
from ..runner import Run
from ..worker import OUT_OF_TIME, JobError, Worker
from .cases import CASES, GOALS, MATCHING, PROPAGATION, parts_of

SIZE, FRAMES, WARM_UP = (480, 854), 40, 8
QUICK_SIZE, QUICK_FRAMES, QUICK_WARM_UP = (48, 80), 2, 1

SOON = ("eager", "cuda-graph", "aoti")
"""Backends that come before the others."""

LOUD = {"STREAMVOS_TRACEBACK": "1"}
"""On a borrowed machine, one look at the messages has to be enough."""

CASE_SECONDS = 120.0
"""A case that takes longer on a GPU hangs."""

COLUMNS = ["p50", "p99", "fps", "first", "peak MiB", "details.extractor_ms", "details.share_of_peak"]
COLUMNS += ["details.off", "details.parity"]

EXAMPLES = examples(
    "streamvos bench gpu --device cpu --quick",
    "streamvos bench gpu --build --build-seconds 300 --seconds 500 --json gpu.jsonl",
    "streamvos bench gpu --only kernels --sweep",
)


@dataclass(frozen=True)
class Plan:
    """The options, checked."""

    device: str
    cuda: bool
    cases: list[tuple[int, str, str]]  # objects, case, backend, the most telling first
    size: tuple[int, int]
    frames: int
    warm: int
    quick: bool
    cache: str | None
    gate_frames: int
    jobs: int

    @property
    def limit(self) -> float | None:
        """Seconds for one job; a processor may take as long as it wants."""
        return CASE_SECONDS if self.cuda else None


class Clock:
    """A budget of seconds from now on; None = no end."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self, most: float | None = None) -> float | None:
        """Seconds until the end, or `most`."""
        left = None if self._end is None else max(self._end - time.monotonic(), 0.0)
        return min((value for value in (left, most) if value is not None), default=None)


def command(
    device: options.Device = "cuda",
    methods: Annotated[
        str, typer.Option("--methods", metavar="A,B,...", help=f"Of: {', '.join(CASES)}.")
    ] = ",".join(CASES),
    backends: options.Backends = "eager,cuda-graph,aoti,tensorrt",
    objects: options.Objects = "3,1,10",
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Of frames; by default 480x854.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, metavar="N", help=f"That count; by default {FRAMES}.")
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="methods|kernels", help="One half of it.")] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Shapes of the kernels too.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny sizes: that it runs, no figures.")] = False,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="N", help="For measuring; what is left then is not run."),
    ] = None,
    build: Annotated[bool, typer.Option("--build", help="Build the engines first.")] = False,
    build_seconds: Annotated[
        float | None, typer.Option(min=0.0, metavar="N", help="For building; what is left then is not built.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that build.")] = min(
        max(cores() // 2, 1), 6
    ),
    gate_frames: Annotated[
        int, typer.Option(min=2, metavar="N", help="Of the clip on which engines are compared with eager.")
    ] = 10,
    cache: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Of engines; by default the usual one.")
    ] = None,
    json_target: options.JsonTarget = None,
    html: options.HtmlTarget = None,
) -> None:
    """How fast every method is on a GPU, and what engines and kernels are worth; every row survives."""
    names = names_in(methods) or []
    unknown = sorted(set(names) - set(CASES))
    if unknown or not names:
        raise InputError(f"unknown cases {unknown}; choose of: {', '.join(CASES)}")
    if only not in (None, "methods", "kernels"):
        raise InputError(f"--only is methods or kernels, got {only!r}")
    sizes = options.sizes_in(size) if size else [QUICK_SIZE if quick else SIZE]
    if len(sizes) > 1:
        raise InputError(f"bench gpu takes one --size, got {size}")
    ways, counts = options.backends_in(backends), options.numbers_in(objects, "--objects")
    combined = [(n, name, way) for n in counts for name in CASES if name in names for way in ways]
    place = options.check_device(device)
    plan = Plan(
        device=place,
        cuda=place.startswith("cuda"),
        cases=sorted(combined, key=lambda case: (case[0] != 3, case[2] not in SOON)),
        size=sizes[0],
        frames=frames or (QUICK_FRAMES if quick else FRAMES),
        warm=QUICK_WARM_UP if quick else WARM_UP,
        quick=quick,
        cache=cache,
        gate_frames=gate_frames,
        jobs=jobs,
    )
    building = build_seconds if build else 0.0
    total = None if seconds is None or building is None else seconds + building
    with Run("gpu", json_target, total, place, COLUMNS, html=html) as run:
        if build and only != "kernels":
            _build(plan, run, Clock(build_seconds))
        _measure(plan, run, Clock(seconds), only, sweep)
    if json_target != "-" and not quick:  # goals are for the usual size
        write_output("".join(f"{line}\n" for line in goals(run.rows)))


def goals(rows: Sequence[CaseResult]) -> list[str]:
    """The best frame rate of every case with three objects beside what is wanted."""
    reached: dict[str, float] = {}
    for row in rows:
        if row.case.objects == 3 and row.throughput is not None and "case" in row.details:
            name = row.details["case"]
            reached[name] = max(reached.get(name, 0.0), row.throughput)
    return [
        f"{name:16} {fps:8.1f} of {GOALS[name]:.0f} frames/s {'yes' if fps >= GOALS[name] else 'NO'}"
        for name, fps in reached.items()
    ]


def _measure(plan: Plan, run: Run, clock: Clock, only: str | None, sweep: bool) -> None:
    telling = [case for case in plan.cases if case[0] == 3 and case[2] in SOON]
    common = {"device": plan.device, "quick": plan.quick}
    with Worker("gpu.work", LOUD) as worker:

        def kernels(kind: str, names: Sequence[str]) -> None:
            for name in names:
                about = {"what": name}
                for row in _asked(worker, kind, {**common, "name": name}, about, clock, plan.limit):
                    run.add(_kernel_row(kind, row))
                    remark(_line(run.rows[-1]))

        if only != "kernels":
            _streams(plan, run, worker, clock, telling)
        if only != "methods":
            kernels("propagation", PROPAGATION)
            kernels("matching", MATCHING)
        if only != "kernels":
            _streams(plan, run, worker, clock, [case for case in plan.cases if case not in telling])
        if only != "methods" and sweep:
            kernels("sweep", PROPAGATION)


def _streams(
    plan: Plan, run: Run, worker: Worker, clock: Clock, cases: Sequence[tuple[int, str, str]]
) -> None:
    for objects, name, backend in cases:
        about = {"case": name, "backend": backend, "objects": objects}
        job = {**about, "device": plan.device, "size": list(plan.size), "frames": plan.frames}
        job |= {"warm": plan.warm, "cache": plan.cache}
        reason = _missing(backend, plan.device)
        if reason is None:
            (row,) = _asked(worker, "follow", job, about, clock, plan.limit)
        else:
            row = {**about, "failed": reason[:300]}
        run.add(_stream_row(plan, row))
        remark(_line(run.rows[-1]))


def _build(plan: Plan, run: Run, clock: Clock) -> None:
    """The engines, several at a time."""
    wanted, lock = _wanted_engines(plan), threading.Lock()
    threads = str(max(cores() // plan.jobs, 1))
    environment = {**LOUD, "OMP_NUM_THREADS": threads, "TORCHINDUCTOR_COMPILE_THREADS": threads}
    common = {"device": plan.device, "size": list(plan.size), "gate_frames": plan.gate_frames}
    workers = [Worker("gpu.work", environment) for _ in range(plan.jobs)]

    def work(worker: Worker) -> None:
        while True:
            with lock:
                job = next(wanted, None)
            if job is None:
                break
            started = time.monotonic()
            given = {**common, **job, "cache": plan.cache}
            for row in _asked(worker, "build", given, job, clock, None):
                row["seconds"] = round(time.monotonic() - started, 1)
                done = _build_row(row)
                run.add(done)
                remark(_line(done))

    running = [threading.Thread(target=work, args=(one,), daemon=True) for one in workers]
    try:
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    finally:
        for one in workers:
            one.close()


def _wanted_engines(plan: Plan) -> Iterator[dict[str, Any]]:
    """Jobs that build what will be measured, in that order. One engine serves 1 to 8 frames or objects."""
    seen = set()
    for objects, name, backend in plan.cases:
        if backend in ("eager", "auto") or _missing(backend, plan.device) is not None:
            continue
        for part in parts_of(name):
            if (name, part, backend) not in seen:
                seen.add((name, part, backend))
                count = None if part == "extractor" else objects
                yield {"case": name, "part": part, "backend": backend, "objects": count}


def _missing(backend: str, device: str) -> str | None:
    """Why a backend cannot run here."""
    import torch

    from streamvos.engines.engines import COMPILED

    return COMPILED[backend].missing(torch.device(device)) if backend in COMPILED else None


def _asked(
    worker: Worker,
    kind: str,
    job: dict[str, Any],
    about: dict[str, Any],
    clock: Clock,
    most: float | None,
) -> list[dict[str, Any]]:
    """The rows of a job, or one that says why there are none."""
    left = clock.left()
    if left == 0:
        return [{**about, "failed": OUT_OF_TIME}]
    try:
        return [{**about, **row} for row in worker.ask(kind, job, clock.left(most))]
    except JobError as error:
        reason = str(error)
        if reason == OUT_OF_TIME and most is not None and (left is None or most < left):
            reason = f"it took more than {most:.0f} seconds"
        return [{**about, "failed": reason}]


def _stream_row(plan: Plan, row: dict[str, Any]) -> CaseResult:
    method, weights, given = CASES[row["case"]]
    settings = Settings(
        method=method,
        weights="random" if weights is None else "bundled",
        backend=row["backend"],
        device=plan.device,
        precision=given.get("precision"),
        height=plan.size[0],
        width=plan.size[1],
        objects=row["objects"],
    )
    name = f"{row['case']} {options.size_named(plan.size)} x{row['objects']} {row['backend']}"
    done = CaseResult(bench="gpu", name=name, case=settings, failed=row.get("failed"))
    done.details = {"case": row["case"], "goal_fps": GOALS[row["case"]] if row["objects"] == 3 else None}
    if done.failed is None:
        for key, value in measured(row["values"]).items():
            setattr(done, key, value)
        done.throughput, done.first_frame_ms = 1e3 / (done.mean or 1e-9), row["first_ms"]
        done.memory_mib = Memory(peak=row["peak_mib"], state=row["state_mib"])
        kept = ("engines", "extractor_ms", "extractor_gflop", "share_of_peak")
        done.details |= {key: row[key] for key in kept}
    return done


def _kernel_row(kind: str, row: dict[str, Any]) -> CaseResult:
    how = row.get("how", row.get("shape", ""))
    settings = Settings(kernel=how)
    done = CaseResult(bench="gpu", name=f"{kind} {row['what']} {how}".strip(), case=settings)
    done.failed, done.details = row.get("failed"), {"what": row["what"], "how": how}
    if done.failed is None:
        for key, value in measured([row["ms"]]).items():
            setattr(done, key, value)
        done.memory_mib = Memory(peak=row["peak_mib"]) if "peak_mib" in row else None
        done.details |= {"off": row["off"]} if "off" in row else {}
    return done


def _build_row(row: dict[str, Any]) -> CaseResult:
    inputs = row.get("inputs", "")
    name = f"engine {row['case']}/{row['part']} x{row['objects'] or 1} {inputs} {row['backend']}"
    settings = Settings(backend=row["backend"], objects=row["objects"])
    kept = {key: value for key, value in row.items() if key not in ("backend", "objects", "failed")}
    return CaseResult(
        bench="gpu", name=" ".join(name.split()), case=settings, details=kept, failed=row.get("failed")
    )


def _line(row: CaseResult) -> str:
    """What is said of a row while the others are still to come."""
    if row.failed is not None:
        return f"{row.name}: {row.failed}"
    if row.count:
        return f"{row.name}: p50 {row.quantiles['p50']:.3g} ms"
    return f"{row.name}: {row.details.get('parity', '')} in {row.details.get('seconds', 0):.0f} s"
