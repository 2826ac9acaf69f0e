"""`bench recovery`: how long a live stream is gone when a part of its pipeline is killed.

    streamvos bench recovery                                    # 50 deaths, about 8 minutes
    streamvos bench recovery --kills 10 --placement split

One stream, policy "latest" at the pace of the clip's clock. Workers are killed in turn (SIGKILL): compute,
source and sinks of `fused`, each of the five stages of `split`. A time is from the kill to the moment when
the first mask of a new incarnation is with a subscriber.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from streamvos.cli.options import examples
from streamvos.cli.output import remark
from streamvos.types import InputError

from . import options
from .results import CaseResult, Settings, measured
from .runner import Run

PAUSE = (2.0, 5.0)
"""Seconds between a recovery and the next kill, at random."""

PATIENCE = 60.0
EXPECTED = 1.5  # seconds that a recovery takes, for the estimate

EXAMPLES = examples("streamvos bench recovery", "streamvos bench recovery --kills 10 --placement split")


def command(
    method: Annotated[str, typer.Option("--method", "-m", metavar="NAME", help="The method.")] = "tvos",
    kills: Annotated[int, typer.Option(min=1, metavar="N", help="In all placements together.")] = 50,
    placement: options.Placement = "fused,split",
    size: options.Sizes = "240",
    threads: options.Threads = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the pauses between kills.")] = 1,
    json_target: options.JsonTarget = None,
    html: options.HtmlTarget = None,
) -> None:
    """How long a live stream is gone when a part of its pipeline is killed.

    Exit code 1 if objects were lost.
    """
    (name,), (one_size, *others) = options.methods_in(method), options.sizes_in(size)
    if others or one_size[0] % 2 or one_size[1] % 2:
        raise InputError(f"--size {size!r} cannot be used: expected one size of even height and width")
    placed, threads = options.placements_in(placement), options.threads_of(threads)
    total = kills * (EXPECTED + sum(PAUSE) / 2) + 20.0 * len(placed)
    kept: list[bool] = []
    with Run("recovery", json_target, total, columns=["p50", "p99", "max", "details.kept"], html=html) as run:
        from .pipelines import make_clip, make_mask, scratch

        with scratch() as folder:
            # killed sources read from the beginning again: long enough for everything that follows
            make_clip(folder / "clip.mp4", round(30 * (total + PATIENCE) * 1.5), one_size)
            make_mask(folder / "first.png", one_size)
            for number, one in enumerate(placed):
                share = kills // len(placed) + (number < kills % len(placed))
                kept.append(_measure(run, folder, name, one, one_size, share, threads, seed))
    if not all(kept):
        raise typer.Exit(1)


def _measure(
    run: Run,
    folder: Path,
    method: str,
    placement: str,
    size: tuple[int, int],
    kills: int,
    threads: int | None,
    seed: int,
) -> bool:
    """Kill workers of one pipeline in turn; a row for each, also when this is interrupted."""
    from .pipelines import one_stream, running
    from .serving import ServingError

    rng, rows = random.Random(seed), []
    config = one_stream(
        folder / "clip.mp4",
        folder / "first.png",
        {"name": method, "device": "cpu", "threads": threads},
        policy="latest",
        realtime=True,
    )
    config |= {"placement": placement, "supervision": {"max_restarts": 1000}}
    try:
        with running(config, folder / placement, threads) as pipeline, _Watch(pipeline) as watch:
            if watch.next(PATIENCE) is None:
                raise ServingError(f"no mask came within {PATIENCE:g} seconds")
            workers = sorted(pipeline.pids())
            if placement == "fused":
                pipeline.wait_for(lambda: pipeline.events("standby_ready"))
            for number in range(kills):
                rows.append(_one_kill(pipeline, watch, workers[number % len(workers)]))
                remark(f"{number + 1:4} {placement} {rows[-1]['worker']:14}{rows[-1]['s']:8.2f} s")
                time.sleep(rng.uniform(*PAUSE))
    finally:
        cases: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            cases[row["worker"]].append(row)
        if len(cases) > 1:
            cases["all"] = rows
        for worker, found in cases.items():
            settings = Settings(method=method, placement=placement, height=size[0], width=size[1])
            settings.threads, settings.objects, settings.streams = threads, 2, 1
            seconds = [row["s"] for row in found]
            run.add(
                CaseResult(
                    bench="recovery",
                    name=f"{placement} {worker}",
                    case=settings,
                    unit="s",
                    repetitions=seconds,
                    details={"kept": "all" if all(row["kept"] for row in found) else "NOT all"},
                    **measured(seconds),
                )
            )
    return all(row["kept"] for row in rows)


class _Watch:
    """A subscriber that stays whatever dies."""

    def __init__(self, pipeline: Any) -> None:
        import zmq

        from streamvos.pipeline.clients.subscribing import Subscription

        from .pipelines import runtime_of

        pipeline.wait_for(lambda: pipeline.events("incarnation"))
        self._context: Any = zmq.Context()
        address = f"ipc://{runtime_of(pipeline)}/masks-cam.sock"
        self._masks = Subscription(self._context, [address], "cam", "rle")

    def next(self, seconds: float) -> Any:
        """The next mask; None if there is none in that time."""
        return self._masks.receive(timeout=seconds)

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._masks.close()
        self._context.term()


def _one_kill(pipeline: Any, watch: _Watch, worker: str) -> dict[str, Any]:
    """Kill a worker; how long until masks of a new incarnation come, and whether its objects are there."""
    from .serving import ServingError

    before = None
    while (mask := watch.next(0.0)) is not None:
        before = mask
    before = before or watch.next(PATIENCE)
    if before is None:
        raise ServingError(f"no mask came within {PATIENCE:g} seconds")
    at = pipeline.wait_for(lambda: _killed(pipeline, worker))
    while (mask := watch.next(PATIENCE)) is not None:
        if mask.incarnation > before.incarnation:
            kept = sorted(mask.objects) == sorted(before.objects)
            return {"worker": worker, "s": mask.received_ns / 1e9 - at, "kept": kept}
    raise ServingError(f"killed {worker}, and no mask came for {PATIENCE:g} seconds")


def _killed(pipeline: Any, worker: str) -> float | None:
    """When it was killed; None while it is being restarted."""
    try:
        return float(pipeline.kill_worker(worker))
    except (KeyError, ProcessLookupError):
        return None
