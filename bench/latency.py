"""`bench latency`: what a frame costs in `Segmenter.step`, from the picture to its mask.

    streamvos bench latency                                        # every bundled method, 480p, one object
    streamvos bench latency --methods tvos,frtm-fast --size 240,480 --objects 1,5 --json latency.jsonl
    streamvos bench latency --methods tvos --explain --seconds 5
    streamvos bench latency --methods tvos --profile trace.json    # ui.perfetto.dev shows it

Methods and backends take turns on the same frames, each in a process of its own. The frames are moving
ellipses (`scenes`). With `--weights none` the authors' networks follow nothing, so that true masks are given
back to them as predictions: memories fill and target models learn as they do on a real stream.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from streamvos.cli.options import examples
from streamvos.cli.output import check_replaceable, check_writable, write_output
from streamvos.types import InputError

from . import options
from .results import CaseResult, Settings
from .runner import START_SECONDS, Case, Run, take_turns

EXAMPLES = examples(
    "streamvos bench latency",
    "streamvos bench latency --methods tvos,frtm-fast --size 240,480 --objects 1,5 --json latency.jsonl",
    "streamvos bench latency --methods tvos --explain --seconds 5",
    "streamvos bench latency --methods tvos --profile trace.json",
)


def command(
    methods: options.Methods = None,
    weights: options.Weights = "default",
    backends: options.Backends = "eager",
    size: options.Sizes = "480x854",
    objects: options.Objects = "1",
    history: Annotated[
        str, typer.Option(metavar="N,...", help="Frames that are remembered before any counts.")
    ] = "8",
    seconds: options.Seconds = 10.0,
    turns: options.Turns = 5,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    precision: options.Precision = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="The ten most expensive operators, and how much of the machine's peak they reach.",
        ),
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a Chrome trace of some frames of one case, for Perfetto."),
    ] = None,
    json_target: options.JsonTarget = None,
    html: options.HtmlTarget = None,
) -> None:
    """What a frame costs, from the picture to its mask: p50 to p99.9, stages, memory.

    A case is a method, a backend, a size, a number of objects and a length of history. Ratios are to the
    first method and backend on the same frames, turn by turn.
    """
    names, ways = options.methods_in(methods, weights), options.backends_in(backends)
    sizes, counts = options.sizes_in(size), options.numbers_in(objects, "--objects")
    lengths = options.numbers_in(history, "--history", 1, 100_000)
    device = options.check_device(device)
    groups = [
        [
            _case(name, weights, way, one_size, count, length, device, precision, threads)
            for name, way in product(names, ways)
        ]
        for one_size, count, length in product(sizes, counts, lengths)
    ]
    cases = [case for group in groups for case in group]
    if len({case.name for case in cases}) < len(cases):
        many = len(lengths) > 1
        for case in cases if many else []:
            case.name += f" after {case.begin['history']}"
    if profile is not None:
        if len(cases) != 1:
            raise InputError(f"--profile takes one case, these options make {len(cases)}; give one method")
        check_replaceable(profile, "--profile")
        check_writable(profile.absolute().parent)
        cases[0].begin["profile"] = str(profile.absolute())
    for case in cases:
        case.begin["explain"] = explain
    more = (15.0 if explain else 0.0) + (5.0 if profile else 0.0)
    total = len(cases) * (seconds + START_SECONDS + more)
    with Run("latency", json_target, total, device, html=html) as run:
        for group in groups:
            take_turns(run, "latency", group, turns, seconds)
    if json_target != "-":
        for row in run.rows if explain else []:
            write_output(explained(row))
        if profile is not None:
            write_output(f"{profile}: open it in https://ui.perfetto.dev or chrome://tracing\n")


def _case(
    method: str,
    weights: str,
    backend: str,
    size: tuple[int, int],
    objects: int,
    history: int,
    device: str,
    precision: str | None,
    threads: int | None,
) -> Case:
    kind = "bundled" if options.weights_of(weights) else "random"
    word = "object" if objects == 1 else "objects"
    name = f"{method} {kind} {options.size_named(size)} {objects} {word} {backend}"
    if precision is not None:
        name += f" {precision}"
    settings = Settings(
        method=method,
        weights=kind,
        backend=backend,
        device=device,
        precision=precision,
        height=size[0],
        width=size[1],
        objects=objects,
        history=history,
    )
    begin: dict[str, Any] = {
        "method": method,
        "weights": options.weights_of(weights),
        "backend": backend,
        "device": device,
        "options": {} if precision is None else {"precision": precision},
        "size": list(size),
        "objects": objects,
        "history": history,
    }
    return Case(name, settings, "latency_work", begin, options.thread_environment(threads))


def explained(row: CaseResult) -> str:
    """The operators of a row as text."""
    told = row.details.get("explained")
    if told is None:
        return ""
    lines = [f"\n{row.name}: {told['about']}"]
    lines.append(f"{'operator':34}{'calls':>7}{'ms a frame':>12}{'share':>8}{'of GEMM':>9}{'of memory':>11}")
    for one in told["operators"]:
        shares = (one["share"], one["of_gemm"], one["of_bandwidth"])
        cells = ["" if share is None else f"{share:.0%}" for share in shares]
        lines.append(
            f"{one['name'][:33]:34}{one['calls']:>7.4g}{one['ms']:>12.2f}{cells[0]:>8}{cells[1]:>9}{cells[2]:>11}"
        )
    return "\n".join(lines) + "\n"
