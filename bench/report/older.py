"""Tables of result files that are no JSON lines: scores, micro-benchmarks, earlier benchmarks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamvos.files import read_text
from streamvos.types import InputError

from .text import in_markdown, number

METHODS = ("feelvos", "rgmp", "tvos", "frtm-fast", "joint")

SUMMARY = {"mean J&F": "J&F", "mean J": "J", "mean F": "F", "J recall": "J_recall", "J decay": "J_decay"}

SELECTION = {"duts": "DUTS, held out", "voc": "VOC 2007, held out", "davis": "DAVIS, development"}

BETTER = {
    "propagation.json": {
        "dense": "dense, the authors' orientation (references x targets)",
        "dense rows": "dense, transposed, the faster one",
        "float32": "tiles, float32",
        "bfloat16": "tiles, bfloat16 similarities",
        "top10": "less work: top-k 10, radius 15, 10 references of 128 channels, float32",
        "top10 half": "the same, bfloat16",
        "shipped": "the same with radius 20 and 13 references, near the bundled setting",
    },
    "bench-target_model.json": {
        "double backward": "double backward, at full size",
        "convolutions": "convolutions on the grid, stencil, no kept matrix",
        "update": "update, kept normal matrix",
        "a sample": "one sample in and one out, on every frame",
        "amortized": "update and the eight samples before it",
    },
    "bench-joint_read.json": {
        "encode, read": "encode the memory and read, as the authors",
        "read": "read, memory encoded",
        "remember": "remember a window (one in, one out, by sums)",
        "remember, whole": "remember a window, encoding all anew",
        "learn": "learn (three steps on 20 windows; part of remembering)",
    },
    "bench-matching.json": {
        "both, 1 obj., dense": "one object, dense",
        "both, 1 obj., chunks": "one object, global in the authors' 500 portions",
        "both, 1 obj., ours": "one object, ours",
        "both, 5 obj., dense": "five objects, dense",
        "both, 5 obj., chunks": "five objects, in portions",
        "both, 5 obj., ours": "five objects, ours",
    },
    "bench-rgmp.json": {
        "authors": "the authors' arrangement, one after the other, float32",
        "single bfloat16": "ours, bfloat16, one after the other",
        "batch bfloat16": "ours, bfloat16, one batch",
    },
}
"""Micro-benchmarks: file -> case in it -> its name in the table. Other cases are left out."""


def loaded(path: Path) -> Any:
    """The content of a JSON file; InputError if it is none."""
    try:
        return json.loads(read_text(path, "the results"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from None


def grid(columns: Iterable[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    columns = list(columns)
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(in_markdown, line)) + " |" for line in lines)


def one(value: float | None) -> str:
    """With one digit after the point: percentages."""
    return "" if value is None else f"{value:.1f}"


def sequences(paths: Sequence[Path]) -> str:
    """J / F per sequence and method, of `streamvos eval --json`: {method} in the file's name."""
    (pattern,) = paths
    by_method = {name: loaded(Path(str(pattern).replace("METHOD", name))) for name in METHODS}
    named = list(dict.fromkeys(sequence for one_ in by_method.values() for sequence in one_["sequences"]))
    rows: list[list[str]] = []
    for name in named:
        told = [one_["sequences"][name] for one_ in by_method.values()]
        rows.append([name, *(f"{one(each['J'])} / {one(each['F'])}" for each in told)])
    for label, key in SUMMARY.items():
        rows.append([label, *(one(one_["mean"][key]) for one_ in by_method.values())])
    return grid(["J / F", *by_method], rows)


def lost(paths: Sequence[Path]) -> str:
    """Of bench/lost.py."""
    columns = ["", "J&F", "lost: precision, recall", "found again", "uncertain below", "precision, recall"]
    return grid(
        columns,
        (
            [name, one(told["J&F"]), f"{one(told['lost precision'])}, {one(told['lost recall'])}",
             one(told["found again"]), told["uncertain"]["below"],
             f"{one(told['uncertain']['precision'])}, {one(told['uncertain']['recall'])}"]
            for name, told in loaded(paths[0]).items()
        ),
    )  # fmt: skip


def selection(paths: Sequence[Path]) -> str:
    """Of bench/selection.py."""
    keys = {f"{k} click{'s' * (k > 1)}": f"IoU after {k}" for k in (1, 2, 3, 5)}
    keys |= {"NoC@85": "NoC@85", "NoC@90": "NoC@90", "noisy box": "box", "GrabCut": "box, GrabCut"}
    tables = loaded(paths[0])["tables"]
    rows = [
        [label, tables[name]["objects"], *(one(tables[name][key]) for key in keys.values())]
        for name, label in SELECTION.items()
    ]
    return grid(["", "objects", *keys], rows)


def cutie(paths: Sequence[Path]) -> str:
    """Of bench/against_cutie.py at two sizes."""
    large, small = (loaded(path) for path in paths)
    columns = [""]
    for told in (large, small):
        size = " x ".join(map(str, told["size"]))
        columns += [f"{size}: ms", "slowest", "faster than Cutie"]
    rows = []
    for name in sorted(large["median_seconds"], key=lambda name: name != "cutie-small"):
        row = [name]
        for told in (large, small):
            median = told["median_seconds"][name]
            gain = told["median_seconds"]["cutie-small"] / median
            row += [number(1e3 * median), number(1e3 * told["slowest_seconds"][name])]
            row.append("" if name == "cutie-small" else f"{gain:.1f}x")
        rows.append(row)
    return grid(columns, rows)


def phases(paths: Sequence[Path]) -> str:
    """Of bench/methods.py: every row of a file, or of its parts."""
    columns = {
        "extract": "extract_ms", "read": "read_ms", "decode": "decode_ms", "write": "write_ms",
        "mean frame": "mean_ms", "slowest": "slowest_ms",
    }  # fmt: skip
    rows = [
        [told["method"], " x ".join(map(str, told["size"])), told["objects"],
         *(f"{told[key]:,.0f}" for key in columns.values()),
         one(told["first_s"]), f"{told['state_mib']:,.0f}", f"{told['peak_mib']:,.0f}"]
        for told in loaded(paths[0])["rows"]
    ]  # fmt: skip
    return grid(["ms", "size", "objects", *columns, "first frame, s", "state, MiB", "peak, MiB"], rows)


def resolutions(paths: Sequence[Path]) -> str:
    """Of bench/methods.py --growth: mean milliseconds by size, precision and objects, of random weights."""
    told = loaded(paths[0])
    cells: dict[tuple[str, int], dict[str, str]] = {}
    for part in ("growth, bfloat16", "bfloat16", "float32"):
        for row in told[part]:
            key = " x ".join(map(str, row["size"])) + f", {row['options']['precision']}", row["objects"]
            cells.setdefault(key, {})[row["method"]] = f"{row['mean_ms']:,.0f}"
    methods = ("tvos", "frtm-fast", "frtm", "joint", "feelvos", "rgmp")
    ordered = sorted(cells, key=lambda key: (key[0].split(", ")[::-1], key[1]))
    return grid(
        ["mean ms", "objects", *methods],
        ([size, objects, *(cells[size, objects].get(m, "") for m in methods)] for size, objects in ordered),
    )


def engines(paths: Sequence[Path]) -> str:
    """Of bench/engines.py."""
    return grid(
        ["network", "eager, ms", "aoti, ms", "gain", "error", "build, s", "load, ms"],
        (
            [row["case"], one(row["ms"]["eager"]), one(row["ms"]["aoti"]),
             f"{row['ms']['eager'] / row['ms']['aoti']:.2f}x", f"{row['error']['aoti']:.1e}",
             f"{row['build_s']['aoti']:.0f}", f"{row['load_ms']['aoti']:.0f}"]
            for row in loaded(paths[0])["rows"]
            if "aoti" in row["ms"]
        ),
    )  # fmt: skip


def saved(paths: Sequence[Path]) -> str:
    """Of a micro-benchmark: best time, and gain over the plain form; several files are sizes of one."""
    names = BETTER[paths[0].name]
    several = [loaded(path)["rows"] for path in paths]
    sizes = [" x ".join(map(str, loaded(path).get("size", ()))) for path in paths]
    columns = ["ms"] if len(paths) == 1 else [f"{size}: ms" for size in sizes]
    cells = [
        [label, *(number(1e3 * rows[key]["best_s"]) for rows in several),
         f"{several[0][key]['speedup']:,.1f}x", number(several[0][key].get("peak_mib")),
         _error(several[0][key])]
        for key, label in names.items()
    ]  # fmt: skip
    head = ["", *columns, "gain", "peak memory, MiB", "largest error"]
    kept = [k for k in range(len(head)) if k == 0 or any(row[k] for row in cells)]
    return grid([head[k] for k in kept], ([row[k] for k in kept] for row in cells))


def _error(row: Mapping[str, Any]) -> str:
    value = next((row[key] for key in ("max_error", "max_difference", "error") if row.get(key)), None)
    return "" if value is None else f"{value:.0e}"


def loops(paths: Sequence[Path]) -> str:
    """Of bench/pipeline.py: a pipeline against a loop."""
    middle: Callable[[list[float]], float] = lambda values: sorted(values)[len(values) // 2]  # noqa: E731
    return grid(
        ["threads", "loop, frames/s", "fused, frames/s", "ratio"],
        (
            [row["threads"], *(f"{middle(row[key]):.2f}" for key in ("bare_fps", "fused_fps")),
             f"{row['ratio']:.2f}x"]
            for row in loaded(paths[0])["loop"]
        ),
    )  # fmt: skip


def added(paths: Sequence[Path]) -> str:
    """Of bench/pipeline.py: latency that a pipeline adds."""
    quantiles = ("p50", "p95", "p99", "max")
    return grid(
        ["ms", *quantiles],
        (
            [" x ".join(map(str, row["size"])), *(f"{row['added_ms'][q]:.2f}" for q in quantiles)]
            for row in loaded(paths[0])["overhead"]
        ),
    )


def recovery(paths: Sequence[Path]) -> str:
    """Of bench/recovery.py."""
    summary = loaded(paths[0])["summary"]
    ordered = sorted(summary, key=lambda name: (name == "all", name))
    return grid(
        ["killed", "times", "p50, s", "max, s"],
        (
            [name.removesuffix(".cam"), told["kills"], f"{told['p50']:.2f}", f"{told['max']:.2f}"]
            for name, told in ((name, summary[name]) for name in ordered)
        ),
    )


def soak(paths: Sequence[Path]) -> str:
    """Of bench/soak.py: memory by kind of process."""
    memory: dict[str, list[Any]] = {}
    for name, told in loaded(paths[0])["memory"].items():
        memory.setdefault(name.split(".")[0].split(" ")[0], []).append(told)
    rows = []
    for kind, lives in memory.items():
        ends = [told["anonymous_mib"] for told in lives]
        longest = max(lives, key=lambda told: told["minutes"])
        rows.append(
            [kind, len(lives), " to ".join(dict.fromkeys((f"{min(ends):.0f}", f"{max(ends):.0f}"))),
             f"{longest['minutes']:.0f}", one(longest["anonymous_mib_per_h"])]
        )  # fmt: skip
    return grid(["process", "lives", "memory at the end, MiB", "longest life, min", "its slope, MiB/h"], rows)


TABLES: dict[str, Callable[[Sequence[Path]], str]] = {
    "sequences": sequences, "lost": lost, "selection": selection, "cutie": cutie, "phases": phases,
    "resolutions": resolutions, "engines": engines, "saved": saved, "loops": loops, "added": added,
    "recovery": recovery, "soak": soak,
}  # fmt: skip
"""Kind -> what makes its table out of files."""
