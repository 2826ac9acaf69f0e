"""Rows as a run would write them, made from a seed."""

from __future__ import annotations

import numpy as np

from bench.results import CaseResult, Memory, Ratio, Settings, measured

MACHINE = {"cpu": "Some CPU 9000", "cores": 2, "load_before": [0.1, 0.2, 0.3], "load_after": [1.8, 1.0, 0.5]}
VERSIONS = {"streamvos": "0.1.0", "torch": "2.13.0", "python": "3.11.7"}


def timed_row(
    name: str,
    milliseconds: float = 40.0,
    seed: int = 0,
    turns: int = 5,
    frames: int = 60,
    noise: float = 0.02,
    bursts: float = 0.003,
    **fields,
) -> CaseResult:
    """Frames of several turns: turns have levels, frames have noise, and slow frames come in bursts."""
    rng = np.random.default_rng(seed)
    levels = milliseconds * np.exp(rng.normal(0, noise, turns))
    values, medians = [], []
    for level in levels:
        turn = level * np.exp(rng.normal(0, 0.04, frames))
        for start in np.flatnonzero(rng.random(frames) < bursts):
            turn[start : start + rng.geometric(1 / 3)] *= rng.uniform(1.3, 3)
        values.extend(turn)
        medians.append(float(np.median(turn)))
    row = CaseResult(
        bench="latency",
        name=name,
        **measured(float(value) for value in values),
        repetitions=medians,
        machine=MACHINE,
        versions=VERSIONS,
        time="2026-11-30T14:00:00+00:00",
        command="python -m bench latency --methods tvos,frtm-fast",
    )
    return row.model_copy(update=fields)


def latency_rows() -> list[CaseResult]:
    """A run of three methods at two sizes with one to five objects, with everything a row can have."""
    rows = []
    costs = {"tvos": (51, 76, 16, 3), "frtm-fast": (29, 1, 26, 7), "joint": (46, 29, 32, 2)}
    for k, (method, parts) in enumerate(costs.items()):
        for height, width in ((240, 427), (480, 854)):
            for objects in (1, 3, 5):
                factor = (height / 480) ** 1.7 * (1 + (0.05 if method == "tvos" else 0.45) * (objects - 1))
                stages = dict(zip(("extract", "read", "decode", "write"), parts, strict=True))
                whole = sum(parts) * factor
                name = f"{method} {height}x{width} {objects} object{'s' * (objects > 1)} eager"
                samples = [(t / 4, 420 + 60 * k + 30 * (1 - np.exp(-t / 20))) for t in range(120)]
                rows.append(
                    timed_row(
                        name,
                        whole,
                        seed=len(rows),
                        case=Settings(method=method, weights="bundled", backend="eager", height=height,
                                      width=width, objects=objects, threads=2),
                        stages={s: {"p50": v * factor, "p99": v * factor * 1.3} for s, v in stages.items()},
                        first_frame_ms=whole * 4,
                        throughput=1000 / whole,
                        memory_mib=Memory(peak=460 + 60 * k, state=20, samples=samples),
                        ratio=Ratio(to="tvos 480x854 1 object eager", median=0.8, low=0.7, high=0.9),
                    )
                )  # fmt: skip
    return rows
