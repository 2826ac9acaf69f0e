"""Many streams for a long time, lossless, at the pace of their clocks, while one worker after the other dies.

    python bench/soak.py --minutes 30 --out docs/results/soak.json
    python bench/soak.py --minutes 2 --kill-every 20

Four streams of 30 frames/s at 180p, of a method that costs nothing and whose masks tell at which frame they
are (`tests/stub_methods.py`). Every minute a random worker is killed (SIGKILL). At the end every line of
every stream has to be there once, in order, with the mask that it would have without any death. Told besides:
the memory of every process over time, its slope (least squares) in every life of a worker from `--settle`
seconds after it got to work, descriptors, and latencies as the supervisor counts them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from pipelines import IDS, Serving, about, make_clip, make_mask, serving, tell

from streamvos.masks.rle import encode_rles

SAMPLE_SECONDS = 2.0
PATIENCE = 1.5
"""How many times its length a run may take: every death costs a stream the time until it is back."""

MIB = 2**20


def configuration(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": "soak",
        "placement": given.placement,
        "method": {"name": "stub_methods:drift", "device": "cpu", "threads": 1},
        "streams": [
            {
                "name": f"s{k}",
                "source": str(folder / "clip.mp4"),
                "mask": str(folder / "first.png"),
                "policy": "lossless",
                "realtime": True,
                "sinks": [{"kind": "json", "path": str(folder / f"s{k}.jsonl")}, {"kind": "publish"}],
            }
            for k in range(given.streams)
        ],
        "supervision": {"max_restarts": 1000},
    }


# ---- while it runs


class Watch:
    """Memory and descriptors of every process of a pipeline, over time."""

    def __init__(self, pipeline: Serving):
        self.pipeline, self.began = pipeline, time.monotonic()
        self.names: dict[int, str] = {pipeline.process.pid: "supervisor"}
        self.samples: dict[int, list[dict[str, float]]] = defaultdict(list)
        self.at_work: dict[str, float] = {"supervisor": 0.0}  # since which minute; a spare one waits before

    def look(self) -> None:
        at = (time.monotonic() - self.began) / 60
        for event in self.pipeline.events("started"):
            self.names[event["pid"]] = f"{event['worker']} {event['life']}"
        for event in self.pipeline.events("ready"):
            self.at_work.setdefault(f"{event['worker']} {event['life']}", at)
        # the number of a dead one may be a stranger's by now
        alive = {self.pipeline.process.pid, *self.pipeline.children()}
        for pid in alive & self.names.keys():
            with suppress(OSError, ValueError, StopIteration):
                self.samples[pid].append({"minutes": at, **self._one(Path(f"/proc/{pid}"))})

    def _one(self, entry: Path) -> dict[str, float]:
        lines = (line.split() for line in (entry / "status").read_text().splitlines())
        values = {words[0]: words[1] for words in lines if len(words) > 1}
        return {
            # pages of files are shared with every other process of this Python, and come and go
            "anonymous": int(values["RssAnon:"]) / 1024,
            "shared": int(values["RssShmem:"]) / 1024,
            "descriptors": len(os.listdir(entry / "fd")),
            "threads": int(values["Threads:"]),
        }


def lines_of(folder: Path, stream: str) -> Iterator[dict[str, Any]]:
    path = folder / f"{stream}.jsonl"
    path = path if path.exists() else next(folder.glob(f"{stream}.*.partial.jsonl"), None)
    if path is not None:
        with path.open() as file:
            yield from (json.loads(line) for line in file if line.endswith("}\n"))


def progress(folder: Path, stream: str) -> int:
    """Index of the last whole line; -1 before the first."""
    path = next(folder.glob(f"{stream}.*.partial.jsonl"), folder)
    with suppress(OSError, ValueError, LookupError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = file.read().split(b"\n")
        return int(json.loads(lines[-2])["index"])
    return -1


def run(pipeline: Serving, folder: Path, given: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Kill, watch and wait until all streams have ended."""
    rng, watch = random.Random(given.seed), Watch(pipeline)
    streams = [f"s{k}" for k in range(given.streams)]
    pipeline.wait_for(lambda: all(progress(folder, name) > 5 for name in streams))
    watch.look()
    began = time.monotonic()
    kill_at, look_at, kills = began + given.kill_every, began, []
    while pipeline.process.poll() is None and time.monotonic() - began < PATIENCE * seconds + 120:
        now = time.monotonic()
        if now >= look_at:
            watch.look()
            look_at = now + SAMPLE_SECONDS
        if now >= kill_at and now - began < seconds - 5:
            worker = rng.choice(sorted(pipeline.pids()))
            with suppress(ProcessLookupError):
                pipeline.kill_worker(worker)
                kills.append({"minutes": round((now - watch.began) / 60, 3), "worker": worker})
                show = ", ".join(str(progress(folder, name)) for name in streams)
                print(f"{(now - began) / 60:6.1f} min  kill {worker:12} frames {show}", flush=True)
            kill_at += given.kill_every
        time.sleep(0.1)
    ended = pipeline.process.poll()
    return {"kills": kills, "exit_code": ended, "watch": watch, "seconds": time.monotonic() - began}


# ---- afterwards


def slope(samples: list[dict[str, float]], key: str) -> float:
    """Least squares, in units per hour."""
    minutes = np.array([one["minutes"] for one in samples])
    return float(np.polyfit(minutes / 60, [one[key] for one in samples], 1)[0])


def memory_of(watch: Watch, settle: float) -> dict[str, Any]:
    """Per life: how long, how much, and how much more an hour once it has settled."""
    told = {}
    for pid, name in sorted(watch.names.items(), key=lambda item: item[1]):
        samples = watch.samples[pid]
        if not samples:
            continue
        steady_from = max(samples[0]["minutes"], watch.at_work.get(name, 1e9)) + settle / 60
        settled = [one for one in samples if one["minutes"] > steady_from]
        minutes = samples[-1]["minutes"] - samples[0]["minutes"]
        about_it: dict[str, Any] = {"minutes": round(minutes, 2)}
        for key in ("anonymous", "shared"):
            about_it[f"{key}_mib"] = round(samples[-1][key], 2)
            long_enough = len(settled) > 2 and settled[-1]["minutes"] - settled[0]["minutes"] > settle / 60
            about_it[f"{key}_mib_per_h"] = round(slope(settled, key), 3) if long_enough else None
        for key in ("descriptors", "threads"):
            about_it[key] = [
                int(samples[0][key]),
                int(max(one[key] for one in samples)),
                int(samples[-1][key]),
            ]
        every = max(1, len(samples) // 40)
        series = [[round(s["minutes"], 2), round(s["anonymous"], 2)] for s in samples[::every]]
        told[name] = {**about_it, "minutes_and_mib": series}
    return told


def total_slopes(memory: dict[str, Any]) -> dict[str, float]:
    """Kind of worker -> MiB an hour of anonymous memory, the mean over lives, weighted by their length."""
    kinds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for name, one in memory.items():
        if one["anonymous_mib_per_h"] is not None:
            kinds[name.split(".")[0].split()[0]].append((one["minutes"], one["anonymous_mib_per_h"]))
    return {
        kind: round(sum(length * value for length, value in lives) / sum(length for length, _ in lives), 3)
        for kind, lives in kinds.items()
    }


def check(folder: Path, stream: str, frames: int, mask: np.ndarray) -> dict[str, Any]:
    """Whether every frame is there once, in order, with the right mask."""
    expected = [
        {key: rle["counts"] for key, rle in encode_rles(np.roll(mask, t, 1), IDS).items()}
        for t in range(mask.shape[1])
    ]
    indices, wrong = [], 0
    for line in lines_of(folder, stream):
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


def told_of(pipeline: Serving) -> dict[str, Any]:
    summary = pipeline.summary()
    streams = {}
    for name, one in summary["streams"].items():
        kept = {k: one[k] for k in ("state", "reason", "incarnation", "recoveries", "recovery_ms", "dropped")}
        wanted = ("glass to mask", "glass to written")
        latencies = {k: v for k, v in one["latencies"].items() if k in wanted}
        streams[name] = {**kept, "latencies_ms": latencies}
    return {"streams": streams, "restarts": summary["restarts"], "refused": summary["refused"]}


def print_table(answer: dict[str, Any]) -> None:
    print(f"\n{'process':16}{'lives':>6}{'MiB':>9}{'MiB/h':>9}{'descriptors':>14}   (first, most, last)")
    kinds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for name, one in answer["memory"].items():
        kinds[name.split()[0]].append(one)
    for kind, lives in kinds.items():
        longest = max(lives, key=lambda one: one["minutes"])
        rise = longest["anonymous_mib_per_h"]
        print(
            f"{kind:16}{len(lives):>6}{longest['anonymous_mib']:>9.1f}"
            f"{'-' if rise is None else format(rise, '.2f'):>9}{longest['descriptors']!s:>14}"
        )
    print(f"MiB/h over all lives: {answer['slopes_mib_per_h']}")
    print(f"\n{'stream':8}{'frames':>8}{'lost':>6}{'twice':>6}{'wrong':>6}{'p50':>9}{'p99':>9}{'max':>9}")
    for name, one in answer["checked"].items():
        late = answer["pipeline"]["streams"][name]["latencies_ms"]["glass to mask"]
        row = f"{one['frames']:>8}{one['lost']:>6}{one['twice']:>6}{one['wrong_masks']:>6}"
        print(f"{name:8}{row}" + "".join(f"{late[key]:>7.2f}ms" for key in ("p50", "p99", "max")))
    print(f"\n{len(answer['kills'])} kills in {answer['seconds'] / 60:.1f} minutes: ", end="")
    print("all well" if answer["ok"] else f"NOT AS IT SHOULD BE (exit code {answer['exit_code']})")


def soak(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    size = (given.height, round(given.height * 16 / 9 / 2) * 2)
    frames = round(given.minutes * 60 * given.fps)
    make_clip(folder / "clip.mp4", frames, size, given.fps)
    mask = make_mask(folder / "first.png", size)
    before = len(os.listdir("/dev/shm"))
    with serving(configuration(folder, given), folder / "run") as pipeline:
        answer = run(pipeline, folder, given, given.minutes * 60)
    watch = answer.pop("watch")
    memory = memory_of(watch, given.settle)
    checked = {f"s{k}": check(folder, f"s{k}", frames, mask) for k in range(given.streams)}
    whole = {"frames": frames, "lost": 0, "twice": 0, "in_order": True, "wrong_masks": 0}
    answer |= {"checked": checked, "shm_files": [before, len(os.listdir("/dev/shm"))]}
    answer["ok"] = answer["exit_code"] == 0 and all(one == whole for one in checked.values())
    if answer["exit_code"] is not None:
        answer["pipeline"] = told_of(pipeline)
    return {**answer, "slopes_mib_per_h": total_slopes(memory), "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--fps", type=int, default=30)
    parser.add_argument("--height", type=int, default=180)
    parser.add_argument("--kill-every", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--settle", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--placement", choices=("fused", "split"), default="fused")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="a folder for everything, which is left there")
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    given = parser.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="soak"))
    folder.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()
    try:
        answer = soak(given, folder)
    finally:
        if given.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    options = {k: v for k, v in vars(given).items() if k not in ("keep", "out")}
    answer = {"benchmark": "soak", **about(), "load_before": load, "options": options, **answer}
    if "pipeline" in answer:
        print_table(answer)
    tell(answer, given.out)
    sys.exit(0 if answer["ok"] else 1)


if __name__ == "__main__":
    main()
