"""What `bench soak` does: kill, watch, and check every line afterwards."""

from __future__ import annotations

import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from streamvos.cli.output import remark
from streamvos.masks.rle import encode_rles

from .pipelines import IDS, NAME, make_clip, make_mask, running, scratch
from .results import CaseResult, Memory, Settings
from .runner import Run, thinned
from .serving import Serving
from .stub_method import NAME as STUB

SAMPLE_SECONDS = 2.0
PATIENCE = 1.5
"""How many times its length a run may take: every death costs a stream the time until it is back."""

WHOLE = {"lost": 0, "twice": 0, "in_order": True, "wrong_masks": 0}


def soak(
    run: Run,
    seconds: float,
    streams: int,
    fps: float,
    size: tuple[int, int],
    kill_every: float,
    settle: float,
    placement: str,
    seed: int,
) -> bool:
    """Rows for every stream and every kind of process; whether all is as it should be."""
    names = [f"s{k}" for k in range(streams)]
    settings = Settings(method="stub", height=size[0], width=size[1], streams=streams, fps=fps, objects=2)
    settings.placement = placement
    with scratch() as folder:
        frames = round(seconds * fps)
        make_clip(folder / "clip.mp4", frames, size, fps)
        mask = make_mask(folder / "first.png", size)
        with running(_configuration(folder, names, placement), folder / "run", 1) as pipeline:
            watch = Watch(pipeline)
            try:
                kills = _kill(pipeline, watch, folder, names, seconds, kill_every, seed)
            finally:
                for kind, details in watch.memory(settle).items():
                    told = Memory(peak=details.pop("peak"), samples=details.pop("samples"))
                    row = CaseResult(bench="soak", name=f"process {kind}", case=settings, details=details)
                    row.memory_mib = told
                    run.add(row)
            code = pipeline.process.poll()
        summary = pipeline.summary()["streams"] if code is not None else {}
        for name in names:
            checked = _check(folder, name, frames, mask)
            row = CaseResult(bench="soak", name=f"stream {name}", case=settings)
            row.details = {**checked, "kills": kills, "dropped": summary.get(name, {}).get("dropped")}
            late = summary.get(name, {}).get("latencies", {}).get("glass to mask", {})
            row.quantiles = {
                key: late[key] for key in ("p50", "p95", "p99", "max") if late.get(key) is not None
            }
            wrong = {key: checked[key] for key in WHOLE if checked[key] != WHOLE[key]}
            if wrong or code != 0:
                row.failed = f"NOT AS IT SHOULD BE: {wrong or f'the pipeline ended with code {code}'}"
            run.add(row)
    return all(row.failed is None for row in run.rows)


def _configuration(folder: Path, names: list[str], placement: str) -> dict[str, Any]:
    return {
        "name": NAME,
        "placement": placement,
        "method": {"name": STUB, "device": "cpu", "threads": 1},
        "streams": [
            {
                "name": name,
                "source": str(folder / "clip.mp4"),
                "mask": str(folder / "first.png"),
                "policy": "lossless",
                "realtime": True,
                "sinks": [{"kind": "json", "path": str(folder / f"{name}.jsonl")}, {"kind": "publish"}],
            }
            for name in names
        ],
        "supervision": {"max_restarts": 1000},
    }


def _kill(
    pipeline: Serving,
    watch: Watch,
    folder: Path,
    names: list[str],
    seconds: float,
    kill_every: float,
    seed: int,
) -> int:
    """Kill and watch until all streams have ended; how often."""
    rng, kills = random.Random(seed), 0
    pipeline.wait_for(lambda: all(_progress(folder, name) > 5 for name in names))
    watch.look()
    began = time.monotonic()
    kill_at, look_at = began + kill_every, began
    while pipeline.process.poll() is None and time.monotonic() - began < PATIENCE * seconds + 120:
        now = time.monotonic()
        if now >= look_at:
            watch.look()
            look_at = now + SAMPLE_SECONDS
        if now >= kill_at and now - began < seconds - 5:
            worker = rng.choice(sorted(pipeline.pids()))
            with suppress(ProcessLookupError):
                pipeline.kill_worker(worker)
                kills += 1
                shown = ", ".join(str(_progress(folder, name)) for name in names)
                remark(f"{(now - began) / 60:6.1f} min  kill {worker:12} frames {shown}")
            kill_at += kill_every
        time.sleep(0.1)
    return kills


class Watch:
    """Memory and descriptors of every process of a pipeline, over time."""

    def __init__(self, pipeline: Serving) -> None:
        self.pipeline, self.began = pipeline, time.monotonic()
        self.names: dict[int, str] = {pipeline.process.pid: "supervisor"}
        self.samples: dict[int, list[dict[str, float]]] = defaultdict(list)
        self.at_work: dict[str, float] = {"supervisor": 0.0}  # since when; a spare one waits before

    def look(self) -> None:
        """Take a sample of all."""
        at = time.monotonic() - self.began
        for event in self.pipeline.events("started"):
            self.names[event["pid"]] = f"{event['worker']} {event['life']}"
        for event in self.pipeline.events("ready"):
            self.at_work.setdefault(f"{event['worker']} {event['life']}", at)
        # the number of a dead one may be a stranger's by now
        alive = {self.pipeline.process.pid, *self.pipeline.children()}
        for pid in alive & self.names.keys():
            with suppress(OSError, ValueError, StopIteration):
                self.samples[pid].append({"seconds": at, **self._one(Path(f"/proc/{pid}"))})

    def memory(self, settle: float) -> dict[str, dict[str, Any]]:
        """Kind of worker -> its longest life: peak, samples, MiB an hour once settled, descriptors."""
        lives: dict[str, list[int]] = defaultdict(list)
        for pid, name in self.names.items():
            if self.samples[pid]:
                lives[name.split()[0]].append(pid)
        told = {}
        for kind, pids in sorted(lives.items()):
            pid = max(
                pids, key=lambda one: self.samples[one][-1]["seconds"] - self.samples[one][0]["seconds"]
            )
            samples = self.samples[pid]
            start = max(samples[0]["seconds"], self.at_work.get(self.names[pid], 1e9)) + settle
            settled = [one for one in samples if one["seconds"] > start]
            enough = len(settled) > 2 and settled[-1]["seconds"] - settled[0]["seconds"] > settle
            descriptors = [one["descriptors"] for one in samples]
            told[kind] = {
                "peak": max(one["mib"] for one in samples),
                "samples": thinned([(round(one["seconds"], 1), round(one["mib"], 2)) for one in samples]),
                "mib_per_hour": round(_slope(settled), 3) if enough else None,
                "lives": len(pids),
                "descriptors": f"{descriptors[0]:.0f}-{max(descriptors):.0f}",
                "shared_mib": round(samples[-1]["shared"], 2),
            }
        return told

    def _one(self, entry: Path) -> dict[str, float]:
        lines = (line.split() for line in (entry / "status").read_text().splitlines())
        values = {words[0]: words[1] for words in lines if len(words) > 1}
        return {
            # pages of files are shared with every other process of this Python, and come and go
            "mib": int(values["RssAnon:"]) / 1024,
            "shared": int(values["RssShmem:"]) / 1024,
            "descriptors": len(os.listdir(entry / "fd")),
        }


def _slope(samples: list[dict[str, float]]) -> float:
    """Least squares, in MiB per hour."""
    hours = np.array([one["seconds"] for one in samples]) / 3600
    return float(np.polyfit(hours, [one["mib"] for one in samples], 1)[0])


def _lines_of(folder: Path, stream: str) -> Iterator[dict[str, Any]]:
    path = folder / f"{stream}.jsonl"
    found = path if path.exists() else next(folder.glob(f"{stream}.*.partial.jsonl"), None)
    if found is not None:
        with found.open() as file:
            yield from (json.loads(line) for line in file if line.endswith("}\n"))


def _progress(folder: Path, stream: str) -> int:
    """Index of the last whole line; -1 before the first."""
    path = next(folder.glob(f"{stream}.*.partial.jsonl"), folder)
    with suppress(OSError, ValueError, LookupError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = file.read().split(b"\n")
        return int(json.loads(lines[-2])["index"])
    return -1


def _check(folder: Path, stream: str, frames: int, mask: np.ndarray) -> dict[str, Any]:
    """Whether every frame is there once, in order, with the right mask."""
    expected = [
        {key: rle["counts"] for key, rle in encode_rles(np.roll(mask, t, 1), IDS).items()}
        for t in range(mask.shape[1])
    ]
    indices, wrong = [], 0
    for line in _lines_of(folder, stream):
        indices.append(line["index"])
        found = {one["id"]: one["rle"]["counts"] for one in line["objects"]}
        wrong += found != expected[line["index"] % len(expected)]
    return {
        "frames": len(indices),
        "lost": len(set(range(frames)) - set(indices)),
        "twice": len(indices) - len(set(indices)),
        "in_order": indices == sorted(indices),
        "wrong_masks": wrong,
    }
