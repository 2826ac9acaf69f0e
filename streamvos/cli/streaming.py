"""`streamvos eval --streaming`: what its options say, and its report.

clock = make_clock(True, fps=30.0, latencies=Path("latency.jsonl"), device_speed=None)
report_streaming(runs, "davis2016", clock, json_target=None)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamvos.cli import options, output
from streamvos.types import DEFAULT_METHOD, InputError

if TYPE_CHECKING:
    from streamvos.cli.evaluating import MethodRun
    from streamvos.cli.latencies import Clock

FPS = 30.0
"""Rate at which frames arrive, unless said otherwise."""

ALL = "all"
"""The value of `--method` that stands for every method with bundled weights."""


def make_clock(
    streaming: bool, fps: float | None, latencies: Path | None, device_speed: float | None
) -> Clock | None:
    """The clock that the options describe; None without `--streaming`.

    Raises:
        InputError: an option needs `--streaming`, is out of range, or its file cannot be used.
    """
    from streamvos.cli.latencies import Clock, read_latencies

    given = {"--fps": fps, "--latencies": latencies, "--device-speed": device_speed}
    if not streaming:
        lone = [name for name, value in given.items() if value is not None]
        if lone:
            raise InputError(f"{lone[0]} belongs to --streaming; give both")
        return None
    for name, value in (("--fps", fps), ("--device-speed", device_speed)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{name} is {value:g}; expected a finite number above 0")
    known = None if latencies is None else read_latencies(latencies)
    return Clock(fps or FPS, device_speed or 1.0, known, latencies)


def methods_in(method: str | None, out: Path | None) -> list[str | None]:
    """The methods that `--method` names: one, several separated by commas, or all.

    Raises:
        InputError: one is unknown or repeated, or `--out` would get the masks of several.
    """
    if method is None:
        return [None]  # that of the weight file, or the default
    names = list(options.BUNDLED_NAMES) if method == ALL else options.names_in(method) or []
    for name in names:
        if name not in options.METHOD_NAMES:
            raise InputError(
                f"unknown method {name!r}; choose of: {', '.join(options.METHOD_NAMES)}, separated by "
                f"commas, or {ALL}"
            )
    if not names or len(set(names)) < len(names):
        raise InputError(f"--method is {method!r}; expected each method once, such as {DEFAULT_METHOD}")
    if out is not None and len(names) > 1:
        raise InputError(f"--out takes the label maps of one method, --method names {len(names)}")
    return list(names)


def report_streaming(runs: Sequence[MethodRun], dataset: str, clock: Clock, json_target: str | None) -> None:
    """Show a row per method: scores offline and streaming, and the latencies behind them."""
    columns = ["method", "height", "ms/frame", "first ms", "processed", "frames behind"]
    table = output.make_table(
        f"{dataset} at {clock.fps:g} frames/s, offline and streaming (Li et al. 2020)",
        [
            *columns,
            *(f"{measure} {kind}" for kind in ("offline", "streaming") for measure in ("J", "F", "J&F")),
        ],
    )
    rows = []
    for run in runs:
        row = _row(run)
        rows.append(row)
        means = [
            row[kind]["mean"][measure] for kind in ("offline", "streaming") for measure in ("J", "F", "J&F")
        ]
        table.add_row(
            run.method,
            " ".join(map(str, run.heights)),
            f"{row['mean_ms']:.1f}",
            f"{row['first_frame_ms']:.1f}",
            f"{100 * row['processed']:.0f} %",
            f"{row['frames_behind']:.1f}",
            *(f"{value:.1f}" for value in means),
        )
    source = "measured here" if clock.path is None else f"from {clock.path}"
    faster = "" if clock.speed == 1 else f", divided by {clock.speed:g}"
    values = {
        "dataset": dataset,
        "fps": clock.fps,
        "device_speed": clock.speed,
        "latencies": None if clock.path is None else str(clock.path),
        "methods": rows,
    }
    output.show(values, json_target, table, f"latencies {source}{faster}")


def _row(run: MethodRun) -> dict[str, Any]:
    from statistics import fmean

    costs = [one.costs for one in run.evaluations]
    frames = sum(len(one.counted) for one in run.evaluations)
    return {
        "method": run.method,
        "heights": list(run.heights),
        "mean_ms": 1e3 * fmean(cost for of_one in costs for cost in of_one[1:] or of_one),
        "first_frame_ms": 1e3 * fmean(of_one[0] for of_one in costs),
        "processed": sum(map(len, costs)) / frames,
        "frames_behind": fmean(one.behind for one in run.evaluations),
        "offline": run.offline.to_json(),
        "streaming": run.in_time.to_json(),
    }
