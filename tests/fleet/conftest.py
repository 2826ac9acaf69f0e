"""A store, and two machines, for a fleet."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest
from fleet.machines import Machines

from streamvos.fleet import running as running_module
from streamvos.fleet.store import Store


@pytest.fixture
def world(tmp_path, monkeypatch) -> Iterator[Store]:
    monkeypatch.setattr(running_module, "LOOK_SECONDS", 0.05)
    with tempfile.TemporaryDirectory(prefix="svos", dir="/tmp") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        yield Store(str(tmp_path / "store"), begin=True)


@pytest.fixture
def machines(world):
    found = Machines(world)
    found.begin("a-0")
    found.begin("b-0")
    return found
