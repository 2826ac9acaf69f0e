"""Consoles and browsers for tests."""

from __future__ import annotations

import os
import shutil

import pytest
from console.scene import scene_console

CHROMIUM = next(
    (one for one in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if one), None
)


@pytest.fixture(scope="module")
def scene():
    """A console of the scene that the tests of a file share."""
    with scene_console(fps=25) as console:
        yield console


@pytest.fixture(scope="module")  # its event loop must not outlive the file, as other tests run their own
def browser():
    """A real browser; skips where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--disable-gpu"] + ["--no-sandbox"] * (os.getuid() == 0)
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(autouse=True)
def nothing_followed(request):
    if "scene" in request.fixturenames:
        backend = request.getfixturevalue("scene").backend
        for objects in backend.objects.values():
            objects.clear()
        backend.states.update(dict.fromkeys(backend.states, "running"))
