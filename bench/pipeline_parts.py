"""The parts of `bench pipeline`: each adds its rows to a run."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from streamvos.types import StreamvosError

from .options import size_named, thread_environment
from .pipelines import ROOT, client_of, make_clip, make_mask, one_stream, running, scratch
from .results import CaseResult, Settings, measured
from .runner import Run, ratio_of
from .serving import Serving, ServingError
from .stub_method import NAME as STUB
from .worker import JobError, Worker

Size = tuple[int, int]
Stamps = dict[str, list[int]]

WARM_UP = 5
PATIENCE = 60.0
"""Seconds beyond its own that a pipeline gets for what it has to do."""

STILL = {"name": STUB, "device": "cpu", "threads": 1, "options": {"pixels": 0}}
"""A method that does nothing, with objects that stand."""


def loop(run: Run, method: str, size: Size, seconds: float, turns: int, threads: int | None) -> None:
    """The fused pipeline against a bare loop."""
    bare: list[float] = []
    fused: list[float] = []
    names = {kind: f"loop {kind} {method} {size_named(size)}" for kind in ("bare", "fused")}
    settings = Settings(method=method, height=size[0], width=size[1], objects=2, streams=1, threads=threads)
    try:
        with scratch() as folder:
            clip, mask = folder / "clip.mp4", folder / "first.png"
            make_clip(clip, 500 + round(500 * seconds), size)
            make_mask(mask, size)
            config = one_stream(clip, mask, {"name": method, "device": "cpu", "threads": threads})
            for turn in range(turns):
                with Worker("pipeline_work", thread_environment(threads)) as worker:
                    given: dict[str, Any] = {"clip": str(clip), "mask": str(mask), "method": method}
                    given |= {"warm_up": WARM_UP, "seconds": seconds}
                    bare.append(_asked(worker, "loop", given, seconds)["ms"])
                with running(config, folder / str(turn), threads) as pipeline:
                    fused.append(rate_of(pipeline, WARM_UP, seconds)["ms"])
    finally:
        for kind, values in (("bare", bare), ("fused", fused)):
            if values:
                placed = settings.model_copy(update={"placement": "fused" if kind == "fused" else None})
                row = _row(names[kind], placed, values, values)
                row.ratio = ratio_of(names["bare"], fused, bare) if kind == "fused" else None
                run.add(row)


def stub(run: Run, seconds: float, turns: int) -> None:
    """A millisecond a frame through all stages."""
    size: Size = (720, 1280)
    found: list[dict[str, float]] = []
    method = {**STILL, "options": {"pixels": 0, "extract_ms": 0.5, "read_ms": 0.5}}
    try:
        with scratch() as folder:
            make_clip(folder / "clip.mov", 500 + round(500 * seconds), size, cheap=True)
            make_mask(folder / "first.png", size, objects=1)
            config = one_stream(folder / "clip.mov", folder / "first.png", method)
            for turn in range(turns):
                with running(config, folder / str(turn), 1) as pipeline:
                    found.append(rate_of(pipeline, 50, seconds))
    finally:
        if found:
            values = [one["ms"] for one in found]
            settings = Settings(method="stub", height=size[0], width=size[1], objects=1, streams=1)
            settings.placement = "fused"
            row = _row(f"stub of 1 ms {size_named(size)}", settings, values, values)
            row.details["cpu_ms"] = min(one["cpu_ms"] for one in found)
            run.add(row)


def rate_of(pipeline: Serving, warm_up: int, seconds: float) -> dict[str, float]:
    """Milliseconds a frame after `warm_up` frames, for so many seconds, and of the processor in all workers.

    Raises:
        ServingError: the frames do not come.
    """
    marks: list[tuple[float, int, float]] = []
    limit = time.monotonic() + seconds + PATIENCE
    with client_of(pipeline, timeout=2.0) as client:
        while not marks or marks[-1][0] - marks[0][0] < seconds or len(marks) < 2:
            if time.monotonic() > limit:
                raise ServingError(f"{len(marks)} frames came in {seconds + PATIENCE:.0f} seconds")
            try:
                status = client.status()
            except StreamvosError:
                break  # it has ended
            seq = status["streams"]["cam"]["seq"]
            if seq is not None and seq >= warm_up and (not marks or seq > marks[-1][1]):
                cpu = sum(one["beat"].get("cpu", 0.0) for one in status["workers"].values())
                marks.append((time.monotonic(), seq, cpu))
            time.sleep(0.02)
    if len(marks) < 2:
        raise ServingError("the pipeline ended before it could be measured")
    (began, first, earlier), (ended, last, later) = marks[0], marks[-1]
    return {"ms": 1e3 * (ended - began) / (last - first), "cpu_ms": 1e3 * (later - earlier) / (last - first)}


def added(stamps: Stamps) -> float:
    """Milliseconds from the source's having a frame to the sinks' having its mask, less the stages' work."""
    work = sum(stamps[stage][2] - stamps[stage][1] for stage in ("extractor", "memory", "decoder"))
    return (stamps["sinks"][0] - stamps["source"][0] - work) / 1e6


STEPS: dict[str, Callable[[Stamps], int]] = {
    "source": lambda s: s["source"][2] - s["source"][0],
    "to extractor": lambda s: s["extractor"][0] - s["source"][2],
    "extractor waits": lambda s: s["extractor"][1] - s["extractor"][0],
    "to memory": lambda s: s["memory"][0] - s["extractor"][2],
    "to decoder": lambda s: s["decoder"][0] - s["memory"][2],
    "decoder waits": lambda s: s["decoder"][1] - s["decoder"][0],
    "to sinks": lambda s: s["sinks"][0] - s["decoder"][2],
}


def overhead(run: Run, size: Size, fps: float, seconds: float) -> None:
    """What is added to a frame of a method that does nothing."""
    with scratch() as folder:
        clip, mask = folder / "clip.mov", folder / "first.png"
        make_clip(clip, WARM_UP + max(round(seconds * fps), 2), size, fps, cheap=True)
        make_mask(mask, size, objects=1)
        config = one_stream(clip, mask, STILL, realtime=True)
        with running(config, folder / "run", 1) as pipeline:
            stamps = stamps_of(pipeline)
    settings = Settings(method="stub", height=size[0], width=size[1], objects=1, streams=1, fps=fps)
    settings.placement = "fused"
    row = _row(f"overhead {size_named(size)} at {fps:g}/s", settings, [added(one) for one in stamps], [])
    for name, step in STEPS.items():
        told = measured(max(step(one), 0) / 1e6 for one in stamps)["quantiles"]
        row.stages[name] = {"p50": told["p50"], "p99": told["p99"]}
    run.add(row)


def placements(run: Run, method: str, size: Size, seconds: float, turns: int, threads: int) -> None:
    """Evidence from the memory to a decoder in another process, through shared memory and over TCP."""
    values: dict[str, list[list[float]]] = {"split": [], "tcp": []}
    rates: dict[str, list[float]] = {"split": [], "tcp": []}
    evidence = None
    try:
        with scratch() as folder:
            with Worker("pipeline_work", thread_environment(threads)) as worker:
                told = _asked(worker, "evidence", {"method": method, "size": list(size)}, 0)
                evidence = told["bytes"] / 1e6
            for turn in range(turns):
                for placement in values:
                    stamps = _placed(method, placement, size, seconds, folder / f"{placement}{turn}", threads)
                    values[placement].append([(s["decoder"][1] - s["memory"][2]) / 1e6 for s in stamps])
                    took = (stamps[-1]["sinks"][0] - stamps[0]["sinks"][0]) / 1e9
                    rates[placement].append((len(stamps) - 1) / took)
    finally:
        for placement, found in values.items():
            if found:
                settings = Settings(method=method, height=size[0], width=size[1], objects=2, streams=1)
                settings.placement, settings.threads = placement, threads
                medians = [statistics.median(one) for one in found]
                flat = [value for one in found for value in one]
                row = _row(f"to decoder {placement} {method} {size_named(size)}", settings, flat, medians)
                row.throughput = statistics.median(rates[placement])
                row.details["evidence_mb"] = evidence
                run.add(row)


def _placed(
    method: str, placement: str, size: Size, seconds: float, folder: Path, threads: int
) -> list[Stamps]:
    """The stamps of a synthetic video's frames."""
    source = f"synthetic:seed=4,objects=2,size={size[0]}x{size[1]},length=100000,leave=0"
    config = one_stream(source, None, {"name": method, "device": "cpu", "threads": threads})
    config["placement"] = "split"
    remote = None
    if placement == "tcp":
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        config |= {"host": "127.0.0.1", "port": port, "remote": {"decoder.cam": {"host": "127.0.0.1"}}}
        command = [sys.executable, "-m", "streamvos.cli", "stage", "decoder.cam"]
        command += ["--connect", f"tcp://127.0.0.1:{port}"]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        remote = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL)
    try:
        with running(config, folder, threads) as pipeline:
            return stamps_of(pipeline, seconds)
    finally:
        if remote is not None:
            remote.kill()
            remote.wait()


def stamps_of(pipeline: Serving, seconds: float | None = None) -> list[Stamps]:
    """Stamps of the frames after the first `WARM_UP`, to the end of the stream or for so many seconds."""
    found: list[Stamps] = []
    with client_of(pipeline) as client:
        pipeline.wait_for(lambda: client.status()["streams"]["cam"]["seq"] is not None)
        count, end = 0, None
        for mask in client.masks("cam", "raw"):
            count += 1
            if count <= WARM_UP:
                continue
            found.append(dict(mask.stamps))
            if seconds is not None:
                end = end or time.monotonic() + seconds
                if time.monotonic() > end and len(found) > 1:
                    break
    if len(found) < 2:
        raise ServingError(f"{len(found)} frames came after the first {WARM_UP}; give more --seconds")
    return found


def _row(name: str, settings: Settings, values: Sequence[float], turns: Sequence[float]) -> CaseResult:
    told = measured(values)
    rate = 1e3 / told["mean"] if turns and told["mean"] else None
    return CaseResult(
        bench="pipeline", name=name, case=settings, repetitions=list(turns), throughput=rate, **told
    )


def _asked(worker: Worker, job: str, given: dict[str, Any], seconds: float) -> Any:
    try:
        return worker.ask(job, given, seconds + 2 * PATIENCE)
    except JobError as error:
        raise ServingError(f"{job}: {error}") from None
