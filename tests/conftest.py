"""What all tests share: where the goldens and real frames lie, and small inputs made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import SHARED


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
