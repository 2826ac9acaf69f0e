"""`bench capacity`: how many streams a machine holds at a rate, with a bound on the p99 and no drops.

    streamvos bench capacity --methods frtm-fast --size 240 --fps 30
    streamvos bench capacity --methods frtm-fast,tvos --size 240,480 --fps 15 --p99 200 --json capacity.jsonl

Every try runs `streamvos serve` with so many streams, each a video file that is decoded at a camera's pace
(policy "latest"), and a client that receives all masks. A try fits if, for so many seconds after everything
has started, every frame of every stream arrived, and the p99 of each stream from the frame's capture to the
client is below the bound. The number is found by bisection, three times over. Where not even one stream
fits, the highest rate is searched at which one does.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer

from streamvos.cli.options import examples
from streamvos.cli.output import remark
from streamvos.types import StreamvosError

from . import machine, options
from .results import CaseResult, Histogram, Memory, Settings, measured
from .runner import Run, for_people
from .searching import highest

EXAMPLES = examples(
    "streamvos bench capacity --methods frtm-fast --size 240",
    "streamvos bench capacity --methods frtm-fast,tvos --size 240,480 --fps 15 --p99 200",
    "streamvos bench capacity --methods frtm-fast --size 240 --placement split --json capacity.jsonl",
)

COLUMNS = ("p50", "p99", "max", "fps", "peak MiB", "details.tries", "details.fit", "details.dropped")

START_SECONDS, SETTLE_SECONDS, STREAM_SECONDS = 10.0, 2.0, 1.0
"""What a try takes besides its measured seconds: processes, then time in which they catch up; per stream."""

LONGEST_START = 120.0

GRACE_SECONDS = 1.0  # for frames that are still on their way in the end

TYPICAL_TRIES = 5  # of the first run: 1, 2, 4 and two between; each further run takes two


def command(
    methods: options.Methods = None,
    weights: options.Weights = "default",
    backends: options.Backends = "eager",
    size: options.Sizes = "240x428",
    objects: options.Objects = "1",
    placement: options.Placement = "fused",
    fps: options.Fps = 30.0,
    p99: Annotated[
        float,
        typer.Option("--p99", min=1.0, metavar="MS", help="Bound, from a frame's capture to the client."),
    ] = 100.0,
    most: Annotated[
        int, typer.Option("--most", min=1, max=256, metavar="N", help="Streams, at which the search ends.")
    ] = 16,
    runs: Annotated[int, typer.Option("--runs", min=1, max=20, metavar="N", help="Of the search.")] = 3,
    seconds: Annotated[
        float,
        typer.Option("--seconds", min=1.0, metavar="N", help="Measured per try, start-up not included."),
    ] = 10.0,
    threads: options.Threads = None,
    device: options.Device = "cpu",
    json_target: options.JsonTarget = None,
    html: options.HtmlTarget = None,
) -> None:
    """How many streams this machine holds at a rate, with a bound on the p99 and no drops.

    If not even one stream fits: the highest rate at which one does. Every number of streams that was tried
    has a row; "fit" says in how many of the tries it held.
    """
    from .pipelines import scratch

    names, ways = options.methods_in(methods, weights), options.backends_in(backends)
    sizes, counts = options.sizes_in(size), options.numbers_in(objects, "--objects")
    where, kind = options.placement_of(placement), options.weights_of(weights)
    device = options.check_device(device)
    shapes = [
        Shape(name, kind, way, (one[0] // 2 * 2, one[1] // 2 * 2), count, where, threads, device)
        for name, way, one, count in product(names, ways, sizes, counts)
    ]
    a_try = START_SECONDS + SETTLE_SECONDS + STREAM_SECONDS + seconds
    longest = len(shapes) * runs * 2 * most.bit_length() * (a_try + most * STREAM_SECONDS)
    typical = len(shapes) * (TYPICAL_TRIES + 2 * (runs - 1)) * a_try
    with Run("capacity", json_target, typical, device, COLUMNS, html=html) as run, scratch() as folder:
        remark(f"at most {for_people(longest)}, where up to {most} streams fit or nothing does")
        for shape in shapes:
            search = Search(shape, fps, p99, seconds, folder)
            try:
                search.run(most, runs)
            finally:  # also after Ctrl-C
                for row in search.rows():
                    run.add(row)
    if json_target != "-":
        from streamvos.cli.output import write_output

        lines = [row.details["sizing"] for row in run.rows if "sizing" in row.details]
        write_output("".join(f"{line}\n" for line in lines))


@dataclass(frozen=True, slots=True)
class Shape:
    """What every stream is like."""

    method: str
    weights: str | None
    backend: str
    size: tuple[int, int]
    objects: int
    placement: str
    threads: int | None
    device: str

    def settings(self, streams: int, fps: float) -> Settings:
        """What a row says of it."""
        return Settings(
            method=self.method,
            weights="bundled" if self.weights else "random",
            backend=self.backend,
            device=self.device,
            height=self.size[0],
            width=self.size[1],
            objects=self.objects,
            streams=streams,
            placement=self.placement,
            threads=self.threads,
            fps=fps,
        )

    def config(self, clip: Path, mask: Path, streams: int) -> dict[str, Any]:
        """As pipeline.toml says it."""
        from .pipelines import NAME

        method = {"name": self.method, "device": self.device, "backend": self.backend}
        method |= {"weights": self.weights or "none"}
        stream = {"source": str(clip), "mask": str(mask), "realtime": True, "sinks": [{"kind": "publish"}]}
        return {
            "name": NAME,
            "placement": self.placement,
            "method": method | ({} if self.threads is None else {"threads": self.threads}),
            "streams": [{"name": f"s{k}", **stream} for k in range(streams)],
            "supervision": {"standby": False},
        }


@dataclass
class Try:
    """What a pipeline gave within the measured seconds.

    Attributes:
        latencies: stream -> milliseconds from the capture of a frame to the client.
        dropped: cause -> frames.
        expected: frames that each stream should have given.
        memory_mib: of all processes, in the end; pages that they share count several times.
        failed: why there are no figures.
    """

    latencies: dict[str, list[float]] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    expected: int = 0
    memory_mib: float = 0.0
    seconds: float = 1.0
    failed: str | None = None

    @property
    def p99(self) -> float:
        """Of the slowest stream."""
        return max((p99_of(values) for values in self.latencies.values()), default=float("inf"))

    def reason(self, bound: float) -> str | None:
        """Why it does not fit; None = it does."""
        if self.failed is not None:
            return self.failed
        if self.dropped:
            return "dropped " + ", ".join(f"{count} ({cause})" for cause, count in self.dropped.items())
        missing = [name for name, values in self.latencies.items() if len(values) < self.expected]
        if missing or not self.latencies:
            return f"frames of {', '.join(missing) or 'every stream'} came too late to be counted"
        return f"p99 {self.p99:.0f} ms" if self.p99 > bound else None


class Search:
    """The search for one shape, and everything that was tried."""

    def __init__(self, shape: Shape, fps: float, bound: float, seconds: float, folder: Path):
        self.shape, self._fps, self._bound, self._seconds, self._folder = shape, fps, bound, seconds, folder
        self.tries: defaultdict[tuple[int, float], list[Try]] = defaultdict(list)
        self.found: list[tuple[int, float]] = []  # of every run: streams and rate; (0, 0): not even 1 frame/s

    def run(self, most: int, runs: int) -> None:
        """Search `runs` times."""
        for _ in range(runs):
            guess, rate = self.found[-1] if self.found else (1, self._fps)
            at_full_rate = rate == self._fps
            streams = highest(lambda n: self._fits(n, self._fps), most, guess) if at_full_rate else 0
            if streams:
                self.found.append((streams, self._fps))
                continue
            below = max(int(self._fps - 1e-9), 1)  # the full rate does not fit
            rate = highest(lambda fps: self._fits(1, float(fps)), below, round(rate) or 1)
            self.found.append((1 if rate else 0, float(rate)))

    def _fits(self, streams: int, fps: float) -> bool:
        name = f"{self.shape.method} {self.shape.size[0]}p, {streams} at {fps:g} fps"
        done = try_streams(self.shape, streams, fps, self._seconds, self._folder)
        self.tries[streams, fps].append(done)
        reason = done.reason(self._bound)
        remark(
            f"{name}: " + (f"fits, p99 {done.p99:.0f} ms" if reason is None else f"does not fit: {reason}")
        )
        return reason is None

    def rows(self) -> list[CaseResult]:
        """One for every number of streams and rate that was tried."""
        found = statistics.median_low(self.found) if self.found else None
        rows = [self._row(streams, fps, tries) for (streams, fps), tries in sorted(self.tries.items())]
        for row in rows:
            if (row.case.streams, row.case.fps) == found:
                row.details["sizing"] = self.sizing()
        if found == (0, 0.0) and rows:
            rows[0].details["sizing"] = self.sizing()
        return rows

    def sizing(self) -> str:
        """The line that one would quote."""
        shape, (streams, fps) = self.shape, statistics.median_low(self.found)
        cores = machine.cores()
        where = f"{cores} core{'s' * (cores != 1)}" if shape.device == "cpu" else shape.device
        what = f"{shape.size[0]}p" + (f" with {shape.objects} objects" if shape.objects > 1 else "")
        what += "" if shape.placement == "fused" else f", {shape.placement}"
        if not streams:
            return f"{where}: not even 1 stream {what} at 1 fps, {shape.method}, p99 below {self._bound:g} ms"
        tails = [one.p99 for one in self.tries[streams, fps] if one.reason(self._bound) is None]
        line = f"{where}: {streams} stream{'s' * (streams != 1)} {what} at {fps:g} fps, {shape.method}, "
        line += f"p99 {statistics.median(tails):.0f} ms"
        several = sorted(set(self.found))
        if len(self.found) > 1:
            ends = [_end(one, several) for one in (several[0], several[-1])]
            held = ends[0] if len(several) == 1 else " to ".join(ends)
            line += f" ({len(self.found)} runs: {held}, p99 {min(tails):.0f} to {max(tails):.0f} ms)"
        return line

    def _row(self, streams: int, fps: float, tries: Sequence[Try]) -> CaseResult:
        shape = self.shape
        settings = shape.settings(streams, fps)
        name = f"{shape.method} {settings.weights} {options.size_named(shape.size)} {shape.objects} "
        name += f"object{'s' * (shape.objects != 1)} {shape.backend} {shape.placement}, "
        name += f"{streams} stream{'s' * (streams != 1)} at {fps:g} fps"
        row = CaseResult(bench="capacity", name=name, case=settings)
        reasons = [one.reason(self._bound) for one in tries]
        row.details = {
            "tries": len(tries),
            "fit": reasons.count(None),
            "bound_ms": self._bound,
            "p99_ms": [one.p99 for one in tries if one.latencies],
            "dropped": sum(one.dropped.total() for one in tries),
            "reasons": [one for one in reasons if one is not None],
        }
        done = [one for one in tries if any(one.latencies.values())]
        if not done:
            row.failed = "; ".join(dict.fromkeys(row.details["reasons"]))
            return row
        every = [[value for values in one.latencies.values() for value in values] for one in done]
        for key, value in measured(value for values in every for value in values).items():
            setattr(row, key, value)
        row.repetitions = [statistics.median(values) for values in every]
        row.throughput = statistics.median(
            len(values) / one.seconds for values, one in zip(every, done, strict=True)
        )
        row.memory_mib = Memory(peak=max(one.memory_mib for one in done))
        return row


def try_streams(shape: Shape, streams: int, fps: float, seconds: float, folder: Path) -> Try:
    """Serve so many streams, and measure what a client gets."""
    from .pipelines import client_of, make_clip, running

    longest = LONGEST_START + streams * STREAM_SECONDS + SETTLE_SECONDS + seconds
    clip = folder / f"{options.size_named(shape.size)}-{fps:g}-{longest:.0f}.mp4"
    mask = folder / f"{options.size_named(shape.size)}-{shape.objects}.png"
    make_mask(mask, shape.size, shape.objects)
    if not clip.exists():
        make_clip(clip, round(longest * fps), shape.size, fps)
    try:
        with (
            running(shape.config(clip, mask, streams), folder / "serve") as pipeline,
            client_of(pipeline) as client,
        ):
            pipeline.wait_for(lambda: _all_run(client.status()), LONGEST_START)
            with Listener(client) as listener:
                pipeline.wait_for(lambda: len(listener.seen) == streams, LONGEST_START)
                time.sleep(SETTLE_SECONDS)
                begin = time.monotonic_ns()
                time.sleep(seconds)
                end = time.monotonic_ns()
                memory = sum(machine.memory_mib(pid) or 0.0 for pid in pipeline.children())
                time.sleep(GRACE_SECONDS)
                return listener.between(begin, end, fps, memory)
    except StreamvosError as error:
        return Try(failed=" ".join(str(error).split())[-300:])


def make_mask(path: Path, size: tuple[int, int], objects: int) -> None:
    """A label map of rectangles in rows, a quarter of the picture in all."""
    import numpy as np

    from streamvos.masks.labelmap import write_label_map

    side = math.ceil(math.sqrt(objects))
    mask, (height, width) = np.zeros(size, np.uint8), (one // side for one in size)
    for k in range(objects):
        top, left = k // side * height + height // 4, k % side * width + width // 4
        mask[top : top + max(height // 2, 1), left : left + max(width // 2, 1)] = k + 1
    write_label_map(path, mask)


class Listener(threading.Thread):
    """Receives the masks of all streams within a `with` block, in which the client does nothing else."""

    def __init__(self, client: Any) -> None:
        super().__init__(daemon=True)
        self._masks = client.masks()
        self._ended = False
        self._got: list[tuple[str, int, int, dict[str, int], int]] = []
        self.seen: set[str] = set()

    def __enter__(self) -> Listener:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended = True
        self.join(LONGEST_START)

    def run(self) -> None:
        """Until the end."""
        try:
            for one in self._masks:
                if self._ended:
                    return
                if not one.repeated:
                    self._got.append(
                        (one.stream, one.captured_ns, one.received_ns, dict(one.dropped), one.seq)
                    )
                    self.seen.add(one.stream)
        except StreamvosError:
            return  # the pipeline has ended

    def between(self, begin: int, end: int, fps: float, memory_mib: float) -> Try:
        """What was captured in between, in monotonic ns."""
        seconds = (end - begin) / 1e9
        # a frame may lie on either border
        done = Try(expected=int(seconds * fps) - 1, memory_mib=memory_mib, seconds=seconds)
        last: dict[str, int] = {}
        for name in self.seen:
            done.latencies[name] = []
        for name, captured, received, dropped, seq in list(self._got):
            if begin <= captured < end:
                done.latencies[name].append((received - captured) / 1e6)
                done.dropped += Counter(dropped)
                lost = seq - last.get(name, seq - 1) - 1
                if lost > 0:
                    done.dropped["on the way to the client"] += lost
            last[name] = seq
        return done


def p99_of(values: Sequence[float]) -> float:
    """In the unit of the values; of fewer than 100 the maximum; of none infinite."""
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    return histogram.quantile(0.99) if values else float("inf")


def _all_run(status: dict[str, Any]) -> bool:
    return all(one["seq"] is not None for one in status["streams"].values())


def _end(one: tuple[int, float], several: Sequence[tuple[int, float]]) -> str:
    """One end of what the runs found, in words."""
    streams, fps = one
    same_rate = len({rate for _, rate in several}) == 1
    return f"{streams}" if same_rate else f"{streams} at {fps:g} fps"
