"""The losses of a run as a picture.

plot_losses(Path("runs/tvos/losses.jsonl"), Path("runs/tvos/losses.png"))
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from streamvos.types import InputError, SinkError

LONGEST_WINDOW = 50
"""The running mean covers a twentieth of the steps, and at most this many."""


def plot_losses(log: Path, picture: Path) -> None:
    """Draw each loss of a log as a running mean.

    Args:
        log: JSON lines, each with "step" and losses.
        picture: PNG to write, whole.

    Raises:
        InputError: matplotlib is not installed, or the log cannot be read or holds no losses.
        SinkError: the picture cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter
    except ImportError:
        raise InputError("the curves need matplotlib: pip install 'streamvos[train]'") from None
    curves = _read(log)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = curves.pop("step")
    window = min(LONGEST_WINDOW, max(1, len(steps) // 20))
    for name, values in curves.items():
        axes.plot(steps, running_mean(values, window), label=name)
    axes.set(xlabel="step", ylabel=f"loss, mean of {window} steps", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend()
    temporary = picture.with_name(f".{picture.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, dpi=110, format="png")
        os.replace(temporary, picture)
    except OSError as error:
        raise SinkError(f"cannot write {picture}: {error.strerror or error}; make room") from None
    finally:
        temporary.unlink(missing_ok=True)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each of the `values`, (N,) float64, and up to `window` - 1 before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - window)
    return (sums[ends] - sums[begins]) / (ends - begins)


def _read(log: Path) -> dict[str, np.ndarray]:
    """The log's columns; "step" and at least one loss."""
    try:
        rows = [dict(json.loads(line)) for line in log.read_text(encoding="utf-8").splitlines()]
        names = rows[0] if rows else ()
        columns = {name: np.array([row[name] for row in rows], np.float64) for name in names}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{log} is not a log of losses ({error})") from None
    if "step" not in columns or len(columns) < 2:
        raise InputError(f"{log} holds no losses of any step")
    return columns
