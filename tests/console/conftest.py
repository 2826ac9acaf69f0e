"""Consoles for tests."""

from __future__ import annotations

import pytest
from console.scene import scene_console


@pytest.fixture(scope="module")
def scene():
    """A console of the scene that the tests of a file share."""
    with scene_console(fps=25) as console:
        yield console


@pytest.fixture(autouse=True)
def nothing_followed(request):
    if "scene" in request.fixturenames:
        backend = request.getfixturevalue("scene").backend
        for objects in backend.objects.values():
            objects.clear()
        backend.states.update(dict.fromkeys(backend.states, "running"))
