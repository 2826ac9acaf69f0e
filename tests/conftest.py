"""What all tests share: where the goldens and real frames lie, and small inputs made on the spot."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from browsers import INSTALL, find_browser
from goldens import shared_path

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # as in `make test &` of a script: commands that tests start and interrupt would never hear of it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with goldens and real frames, beside the checkout."""
    return shared_path()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _engines_apart(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the user's engines."""
    monkeypatch.setenv("STREAMVOS_ENGINES", str(tmp_path_factory.getbasetemp() / "engines"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(0))


@pytest.fixture(scope="module")  # its event loop must not outlive the file, as other tests run their own
def browser():
    """A real browser; skips where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = find_browser()
    if path is None:
        pytest.skip(f"there is no browser: {INSTALL}")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--disable-gpu"] + ["--no-sandbox"] * (os.getuid() == 0)
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()
