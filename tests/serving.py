"""A pipeline of real processes for tests, which finds the methods of this folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench import serving as processes
from bench.serving import Serving
from streamvos.masks.labelmap import read_label_map

__all__ = ["TESTS", "Serving", "label_maps", "serving"]

TESTS = Path(__file__).parent


@contextmanager
def serving(config: Mapping[str, Any], folder: Path, threads: int | None = 1) -> Iterator[Serving]:
    """Serve within the block; afterwards nothing of it is left."""
    with processes.serving(config, folder, threads, [TESTS]) as pipeline:
        yield pipeline


def label_maps(folder: Path) -> dict[str, np.ndarray]:
    """Name -> label map of every PNG in a folder."""
    return {path.name: read_label_map(path) for path in sorted(folder.glob("*.png"))}
