"""Where goldens and real frames lie, and the rule by which the goldens' weights were drawn."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(os.environ.get("STREAMVOS_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def shared_path(*parts: str) -> Path:
    """A file or folder of the goldens and real frames, which cannot be part of this repository.

    A test is skipped only where all of them are absent; one that is missing among the others is an error.
    """
    if not SHARED.is_dir():
        pytest.skip(f"NO GOLDENS OR REAL FRAMES: {SHARED} is absent; set STREAMVOS_SHARED to run this test")
    path = SHARED.joinpath(*parts)
    assert path.exists(), f"{SHARED} is there but {path} is missing; its copy is not complete"
    return path


def procedural(name: str, shape: tuple[int, ...], gain: float = 1.0) -> np.ndarray:
    """Weights as a pure function of their name, by the rule that the golden files were made with."""
    draws = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if len(shape) >= 2:
        value = draws.standard_normal(shape) * np.sqrt(2.0 / np.prod(shape[1:]))
    elif leaf in ("running_mean", "bias"):
        value = 0.1 * draws.standard_normal(shape)
    elif leaf == "running_var":
        value = 1 + 0.1 * draws.random(shape)
    else:
        value = 1 + 0.1 * draws.standard_normal(shape)
    return (value * gain).astype(np.float32)
