"""What all tests share: where the goldens and real frames lie, and small inputs made on the spot."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

SHARED = Path(os.environ.get("STREAMVOS_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with goldens and real frames, beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"NO GOLDENS OR REAL FRAMES: {SHARED} is absent; set STREAMVOS_SHARED to run this test")
    return SHARED


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(0))


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
