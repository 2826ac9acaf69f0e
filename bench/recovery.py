"""How long a live stream is gone when a part of its pipeline is killed: 50 deaths in turn.

    python bench/recovery.py --out docs/results/recovery.json
    python bench/recovery.py --kills 10 --placement split

TVOS with its bundled weights on the processor, 240p, policy "latest" at the pace of the clip's clock. Workers
are killed in turn (SIGKILL): compute, source and sinks of `fused`, each of the five stages of `split`. A time
is from the kill to the moment when the first mask of a new incarnation is with a subscriber.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from pipelines import Serving, about, make_clip, make_mask, percentiles, serving, tell

PAUSE = (2.0, 5.0)
"""Seconds between a recovery and the next kill, at random."""

PATIENCE = 60.0


def configuration(folder: Path, given: argparse.Namespace, placement: str) -> dict[str, Any]:
    return {
        "name": "recovery",
        "placement": placement,
        "method": {"name": "tvos", "device": "cpu", "threads": given.threads},
        "streams": [
            {
                "name": "cam",
                "source": str(folder / "clip.mp4"),
                "mask": str(folder / "first.png"),
                "policy": "latest",
                "realtime": True,
                "sinks": [{"kind": "publish"}],
            }
        ],
        "supervision": {"max_restarts": 1000},
    }


class Watch:
    """A subscriber that stays whatever dies."""

    def __init__(self, pipeline: Serving):
        import zmq

        from streamvos.pipeline.clients.subscribing import Subscription

        runtime = Path(pipeline.runtime) / "streamvos" / "recovery"
        self._context: Any = zmq.Context()
        self._masks = Subscription(self._context, [f"ipc://{runtime}/masks-cam.sock"], "cam", "rle")

    def next(self, seconds: float) -> Any:
        """The next mask; None if there is none in that time."""
        return self._masks.receive(timeout=seconds)

    def close(self) -> None:
        self._masks.close()
        self._context.term()


def one_kill(pipeline: Serving, watch: Watch, worker: str) -> dict[str, Any]:
    """Kill a worker; how long until masks of a new incarnation come, and whether its objects are there."""
    before = None
    while (mask := watch.next(0.0)) is not None:
        before = mask
    before = before or watch.next(PATIENCE)
    at = pipeline.kill_worker(worker)
    while (mask := watch.next(PATIENCE)) is not None:
        if mask.incarnation > before.incarnation:
            seconds = mask.received_ns / 1e9 - at
            kept = sorted(mask.objects) == sorted(before.objects)
            return {"worker": worker, "s": seconds, "kept": kept, "recovered": mask.recovered}
    raise SystemExit(f"killed {worker}, and no mask came for {PATIENCE:g} s; see {pipeline.log}")


def measure(folder: Path, given: argparse.Namespace, placement: str, kills: int) -> list[dict[str, Any]]:
    rng = random.Random(given.seed)
    rows: list[dict[str, Any]] = []
    with serving(configuration(folder, given, placement), folder / placement, threads=None) as pipeline:
        pipeline.wait_for(lambda: pipeline.events("incarnation"))
        watch = Watch(pipeline)
        try:
            if watch.next(PATIENCE) is None:
                raise SystemExit(f"no mask came; see {pipeline.log}")
            workers = sorted(pipeline.pids())
            if placement == "fused":
                pipeline.wait_for(lambda: pipeline.events("standby_ready"))
            for number in range(kills):
                rows.append(
                    {"placement": placement, **one_kill(pipeline, watch, workers[number % len(workers)])}
                )
                last = rows[-1]
                print(f"{number + 1:4} {placement} {last['worker']:14}{last['s']:8.2f} s", flush=True)
                time.sleep(rng.uniform(*PAUSE))
        finally:
            watch.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="in all placements together")
    parser.add_argument("--placement", nargs="+", choices=("fused", "split"), default=["fused", "split"])
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--threads", type=int, default=None, help="[method].threads")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the figures there as JSON")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="recovery"))
    size = (given.height, round(given.height * 16 / 9 / 2) * 2)
    told, load = about(), os.getloadavg()
    try:
        # killed sources read from the beginning again: long enough for everything that follows
        make_clip(folder / "clip.mp4", 30 * 60 * 30, size)
        make_mask(folder / "first.png", size)
        rows = []
        for placement in given.placement:
            rows += measure(folder, given, placement, given.kills // len(given.placement))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    cases: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        cases[f"{row['placement']} {row['worker']}"].append(row["s"])
        cases["all"].append(row["s"])
    summary = {name: {"kills": len(values), **percentiles(values)} for name, values in cases.items()}
    print(f"\n{'killed':24}{'times':>6}{'p50':>9}{'max':>9}")
    for name, one in summary.items():
        print(f"{name:24}{one['kills']:>6}{one['p50']:>7.2f} s{one['max']:>7.2f} s")
    kept = all(row["kept"] for row in rows)
    print(f"objects were {'always' if kept else 'NOT always'} kept")
    answer = {"benchmark": "recovery", **told, "load_before": load, "load_after": os.getloadavg()}
    tell({**answer, "size": size, "kept": kept, "summary": summary, "kills": rows}, given.out)


if __name__ == "__main__":
    main()
