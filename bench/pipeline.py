"""What the pipeline costs: against the bare loop, through all stages, and on top of a frame that is free.

    python bench/pipeline.py                                  # all three parts
    python bench/pipeline.py --parts loop --heights 240 --threads 1 2 --runs 5
    python bench/pipeline.py --parts stub overhead --out docs/results/pipeline.json

loop: TVOS with its bundled weights on the processor, one stream, `fused`, against a loop of `Segmenter.step`
over the same source, in turns, each in processes of its own, from frame `WARM_UP` to the last.
stub: a method that sleeps a millisecond a frame (half of it in the extractor), 720p, one object, lossless;
frames/s through all stages.
overhead: a method that does nothing, at the pace of a clock. What is added to a frame is the time from the
moment when the source has it until the sinks have its mask, less the work of extractor, target and decoder
(from `started` to `done` of their stamps); copies, messages, waiting and waking are in it.

All sinks are a `publish` sink, without subscribers but for "overhead", where the stamps come that way.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines import Serving, about, make_clip, make_mask, percentiles, serving, tell

from streamvos.types import StreamvosError

WARM_UP = 5
PARTS = ("loop", "stub", "overhead")
NOBODY = {"name": "stub_methods:drift", "device": "cpu", "threads": 1, "options": {"pixels": 0}}


def configuration(folder: Path, clip: str, method: dict[str, Any], **stream: Any) -> dict[str, Any]:
    """One lossless stream that nobody has to wait for."""
    return {
        "name": "bench",
        "method": method,
        "streams": [
            {
                "name": "cam",
                "source": str(folder / clip),
                "mask": str(folder / "first.png"),
                "policy": "lossless",
                "sinks": [{"kind": "publish"}],
                **stream,
            }
        ],
        "supervision": {"standby": False},
    }


def client_of(pipeline: Serving) -> Any:
    """A client, once the pipeline answers."""
    from streamvos.pipeline.clients.client import Client

    path = Path(pipeline.runtime) / "streamvos" / "bench" / "control.sock"
    pipeline.wait_for(path.exists)
    return Client(f"ipc://{path}", timeout=2.0)


def rate_of(pipeline: Serving, frames: int, warm_up: int) -> dict[str, float]:
    """Frames/s from frame `warm_up` to the last, and processor seconds of all workers."""
    marks: list[tuple[float, int]] = []
    cpu = 0.0
    with client_of(pipeline) as client:
        while not marks or marks[-1][1] < frames - 1:
            try:
                status = client.status()
            except StreamvosError:
                break  # it has ended
            seq = status["streams"]["cam"]["seq"]
            if seq is not None and seq >= warm_up and (not marks or seq > marks[-1][1]):
                marks.append((time.monotonic(), seq))
                cpu = sum(one["beat"].get("cpu", 0.0) for one in status["workers"].values())
            time.sleep(0.02)
    (began, first), (ended, last) = marks[0], marks[-1]
    return {"fps": (last - first) / (ended - began), "frames": last - first, "cpu_s": cpu}


# ---- against the bare loop


def bare_loop(clip: str, mask: str, threads: int | None, warm_up: int) -> dict[str, float]:
    """In a process of its own: the same frames, one after the other."""
    import torch

    import streamvos
    from streamvos.masks.labelmap import read_label_map
    from streamvos.sources import open_source

    if threads is not None:
        torch.set_num_threads(threads)
    vos, count, began = streamvos.load("tvos", device="cpu"), 0, 0.0
    with open_source(clip) as source:
        for frame in source:
            vos.step(frame.image, read_label_map(mask) if not count else None).objects  # noqa: B018
            if count == warm_up:
                began = time.monotonic()
            count += 1
    return {"fps": (count - 1 - warm_up) / (time.monotonic() - began), "threads": torch.get_num_threads()}


def run_bare(folder: Path, clip: str, threads: int | None) -> float:
    told = [str(folder / clip), str(folder / "first.png"), threads, WARM_UP]
    command = [sys.executable, __file__, "--bare", json.dumps(told)]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(json.loads(answer.stdout.splitlines()[-1])["fps"])


def run_fused(folder: Path, clip: str, threads: int | None, frames: int, where: str) -> float:
    config = configuration(folder, clip, {"name": "tvos", "device": "cpu", "threads": threads})
    with serving(config, folder / where, threads=None) as pipeline:
        return rate_of(pipeline, frames, WARM_UP)["fps"]


def measure_loop(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    print(f"\n{'TVOS, one stream, CPU':34}{'bare loop':>12}{'fused':>12}{'ratio':>9}")
    for height in given.heights:
        size = (height, round(height * 16 / 9 / 2) * 2)
        clip = f"{height}.mp4"
        frames = max(20, round(given.frames * (240 / height) ** 2))
        make_clip(folder / clip, frames, size)
        make_mask(folder / "first.png", size)
        for threads in given.threads:
            count = None if threads == "default" else int(threads)
            bare, fused = [], []
            for run in range(given.runs):
                bare.append(run_bare(folder, clip, count))
                fused.append(run_fused(folder, clip, count, frames, f"run{height}-{threads}-{run}"))
            ratio = statistics.median(f / b for f, b in zip(fused, bare, strict=True))
            row = {"size": size, "threads": threads, "frames": frames, "bare_fps": bare, "fused_fps": fused}
            rows.append({**row, "ratio": ratio})
            cells = f"{statistics.median(bare):>10.2f}/s{statistics.median(fused):>10.2f}/s{ratio:>8.2f}x"
            print(f"{size[0]}x{size[1]}, threads {threads!s:14}{cells}", flush=True)
    return rows


# ---- through all stages


def measure_stub(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    size, frames = (720, 1280), given.stub_frames
    make_clip(folder / "720.mov", frames, size, cheap=True)
    make_mask(folder / "first.png", size, objects=1)
    method = {**NOBODY, "options": {"pixels": 0, "extract_ms": 0.5, "read_ms": 0.5}}
    rows = []
    for run in range(given.runs):
        with serving(configuration(folder, "720.mov", method), folder / f"stub{run}") as pipeline:
            rows.append(rate_of(pipeline, frames, 50))
    rates = [row["fps"] for row in rows]
    told = ", ".join(f"{one:.0f}" for one in rates)
    cost = 1e3 * min(row["cpu_s"] / row["frames"] for row in rows)
    print(f"\n1 ms stub at 720p through all stages: median {statistics.median(rates):.0f} frames/s ({told}),")
    print(f"{cost:.1f} ms of processor time a frame over all workers, start-up included")
    return {"size": size, "frames": frames, "fps": statistics.median(rates), "runs": rows}


# ---- on top of nothing


def added(stamps: dict[str, list[int]]) -> float:
    """Milliseconds from the source's having a frame to the sinks' having its mask, less the stages' work."""
    work = sum(stamps[stage][2] - stamps[stage][1] for stage in ("extractor", "memory", "decoder"))
    return (stamps["sinks"][0] - stamps["source"][0] - work) / 1e6


STEPS: dict[str, Callable[[dict[str, list[int]]], int]] = {
    "source": lambda s: s["source"][2] - s["source"][0],
    "to extractor": lambda s: s["extractor"][0] - s["source"][2],
    "extractor waits": lambda s: s["extractor"][1] - s["extractor"][0],
    "to memory": lambda s: s["memory"][0] - s["extractor"][2],
    "to decoder": lambda s: s["decoder"][0] - s["memory"][2],
    "decoder waits": lambda s: s["decoder"][1] - s["decoder"][0],
    "to sinks": lambda s: s["sinks"][0] - s["decoder"][2],
}


def measure_overhead(folder: Path, given: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    print(f"\n{'added to a frame at ' + str(given.fps) + '/s':26}{'p50':>9}{'p95':>9}{'p99':>9}{'max':>9}")
    for height in given.overhead_heights:
        width = round(height * 16 / 9 / 2) * 2
        frames = round(given.seconds * given.fps)
        make_clip(folder / f"{height}.mov", frames, (height, width), given.fps, cheap=True)
        make_mask(folder / "first.png", (height, width), objects=1)
        config = configuration(folder, f"{height}.mov", NOBODY, realtime=True)
        with serving(config, folder / f"overhead{height}") as pipeline, client_of(pipeline) as client:
            pipeline.wait_for(lambda client=client: client.status()["streams"]["cam"]["seq"] is not None)
            found = [mask.stamps for mask in client.masks("cam", "raw")]
        told = percentiles(added(stamps) for stamps in found[WARM_UP:])
        steps = {n: percentiles(one(s) / 1e6 for s in found[WARM_UP:])["p50"] for n, one in STEPS.items()}
        rows.append({"size": [height, width], "frames": len(found), "added_ms": told, "steps_p50_ms": steps})
        print(f"{height}x{width:<20}" + "".join(f"{value:>7.3f}ms" for value in told.values()))
        print(
            "   p50 of each: " + ", ".join(f"{name} {value:.3f}" for name, value in steps.items()), flush=True
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--runs", type=int, default=3, help="of each case; the median counts")
    parser.add_argument("--heights", nargs="+", type=int, default=[240], help="of loop, in pixels")
    parser.add_argument("--threads", nargs="+", default=["default"], help="of loop: [method].threads")
    parser.add_argument("--frames", type=int, default=100, help="of loop at 240 rows; fewer where larger")
    parser.add_argument("--stub-frames", type=int, default=1500)
    parser.add_argument("--overhead-heights", nargs="+", type=int, default=[180, 720], help="in pixels")
    parser.add_argument("--fps", type=int, default=60, help="of overhead")
    parser.add_argument("--seconds", type=float, default=20.0, help="of overhead, for each size")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    parser.add_argument("--bare", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bare is not None:
        print(json.dumps(bare_loop(*given.bare)))
        return
    answer: dict[str, Any] = {"benchmark": "pipeline", **about()}
    folder = Path(tempfile.mkdtemp(prefix="bench"))
    measures = {"loop": measure_loop, "stub": measure_stub, "overhead": measure_overhead}
    try:
        for part in given.parts:
            answer[part] = measures[part](folder, given)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    tell({**answer, "load_after": os.getloadavg()}, given.out)


if __name__ == "__main__":
    main()
