"""`bench engines`: what compiling a network is worth: eager and engines in turns, in the same process.

    streamvos bench engines                                       # every case, 480x854, one frame
    streamvos bench engines --cases tvos,frtm-fast --batch 4
    streamvos bench engines --cases joint/decoder --batch 3       # three objects
    streamvos bench engines --device cuda --backends aoti,cuda-graph,tensorrt

Weights are the bundled ones where there are some, else random, on which time does not depend. "error" is the
relative difference to eager's features. Memory is kept between calls, as in a stream (`--fresh`: it is not).
Every case runs in a process of its own and builds what it measures, which takes up to some minutes.
"""

from __future__ import annotations

import statistics
from itertools import pairwise
from typing import Annotated

import typer

from streamvos.cli.options import examples, names_in
from streamvos.cli.output import remark
from streamvos.types import InputError

from . import options
from .engine_cases import CASES
from .results import CaseResult, Settings, measured
from .runner import Run, ratio_of
from .worker import JobError, Worker

BUILD_SECONDS, LONGEST_BUILD = 60.0, 900.0
"""What a case takes to build on two cores, and when it hangs."""

KEEP = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
"""glibc keeps memory that is freed, as it does by itself after some frames of a stream."""

TURNS = 5

COLUMNS = ["p50", "p95", "max", "turns", "ratio", "details.error", "details.build_s", "details.load_ms"]

EXAMPLES = examples(
    "streamvos bench engines --cases tvos,frtm-fast --batch 4",
    "streamvos bench engines --device cuda --backends aoti,cuda-graph,tensorrt",
)


def command(
    cases: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="By default all; a wrong name lists them.", show_default=False),
    ] = None,
    backends: options.Backends = "aoti",
    size: options.Sizes = "480x854",
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Frames, or objects of an inner part.")] = 1,
    seconds: options.Seconds = 5.0,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Memory is given back and zeroed each call.")
    ] = False,
    json_target: options.JsonTarget = None,
    html: options.HtmlTarget = None,
) -> None:
    """What compiling a network is worth: eager and engines in turns, in the same process."""
    chosen = list(CASES) if cases is None else cases_in(cases)
    ways = [way for way in options.backends_in(backends) if way not in ("eager", "auto")]
    sizes = options.sizes_in(size)
    place = options.check_device(device)
    if not ways:
        raise InputError("--backends names no engine; choose of: aoti, cuda-graph, tensorrt")
    import torch

    from streamvos.engines.engines import COMPILED

    for way in ways:
        reason = COMPILED[way].missing(torch.device(place))
        if reason is not None:
            raise InputError(f"backend {way!r} cannot be used here: {reason}")
    total = len(chosen) * len(sizes) * len(ways) * (BUILD_SECONDS + 2 * seconds)
    environment = {**options.thread_environment(threads), **({} if fresh else KEEP)}
    with Run("engines", json_target, total, place, COLUMNS, html=html) as run:
        for name in chosen:
            for one in sizes:
                given = {"name": name, "size": list(one), "batch": batch, "device": place}
                with Worker("engines_work", environment) as worker:
                    try:
                        limit = LONGEST_BUILD * len(ways) + 10 * seconds
                        told = worker.ask("case", {**given, "backends": ways, "seconds": seconds}, limit)
                    except JobError as error:
                        told = {"failed": str(error)}
                for row in _rows(name, one, batch, place, told):
                    run.add(row)
                    remark(f"{row.name}: {row.failed or format(row.quantiles['p50'], '.3g') + ' ms'}")


def cases_in(text: str) -> list[str]:
    """The cases that are meant."""
    names = names_in(text) or []
    unknown = [name for name in names if name not in CASES]
    if unknown or not names:
        raise InputError(f"unknown cases {unknown}; choose of: {', '.join(CASES)}")
    return names


def _rows(name: str, size: tuple[int, int], batch: int, device: str, told: dict) -> list[CaseResult]:
    """A row for each backend, eager first, to which the others' ratios are."""
    title = f"{name} {options.size_named(size)} x{batch}"
    settings = Settings(method=CASES[name][0], device=device, height=size[0], width=size[1], batch=batch)
    if "failed" in told:
        return [CaseResult(bench="engines", name=title, case=settings, failed=told["failed"])]
    settings.precision, settings.threads = told["precision"], told["threads"]
    rows: list[CaseResult] = []
    medians: dict[str, list[float]] = {}
    for backend, values in told["values"].items():
        placed = settings.model_copy(update={"backend": backend})
        row = CaseResult(bench="engines", name=f"{title} {backend}", case=placed, **measured(values))
        row.repetitions = medians[backend] = in_turns(values)
        row.details = {key: told[key].get(backend) for key in ("error", "build_s", "load_ms")}
        if backend != "eager":
            row.ratio = ratio_of(rows[0].name, row.repetitions, medians["eager"])
        rows.append(row)
    return rows


def in_turns(values: list[float]) -> list[float]:
    """Medians of about equal parts of a series, in its order."""
    count = min(TURNS, len(values))
    edges = [round(k * len(values) / count) for k in range(count + 1)]
    return [statistics.median(values[a:b]) for a, b in pairwise(edges)]
