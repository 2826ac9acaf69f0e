"""Tables of result files that are no JSON lines: scores of `streamvos eval`, micro-benchmarks."""

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
    """J / F per sequence and method, of `streamvos eval --json`; METHOD stands for each."""
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


TABLES: dict[str, Callable[[Sequence[Path]], str]] = {"sequences": sequences, "saved": saved}
"""Kind -> what makes its table out of files."""
