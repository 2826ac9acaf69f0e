"""The names that users give to objects, kept in a file.

names = Names(Path("/run/user/1000/streamvos/door/names.json"))
names.set("front", 3, "cup")
names.get("front", 3)                   # "cup"
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

LENGTH = 40
"""Longest name of an object."""


class Names:
    """Names of objects, by stream and id.

    Args:
        path: the file; None keeps them in memory only. One that cannot be read counts as empty.
    """

    def __init__(self, path: Path | None = None):
        self._path = path
        self._names = _read(path)

    def get(self, stream: str, object_id: int) -> str:
        """The name, or ""."""
        return self._names.get(stream, {}).get(str(object_id), "")

    def set(self, stream: str, object_id: int, name: str) -> None:
        """Name an object; "" takes its name away."""
        name = " ".join(name.split())[:LENGTH]
        before = self.get(stream, object_id)
        if name == before:
            return
        names = self._names.setdefault(stream, {})
        if name:
            names[str(object_id)] = name
        else:
            del names[str(object_id)]
        self._save()

    def drop_stream(self, stream: str) -> None:
        """Forget the names of a stream's objects."""
        if self._names.pop(stream, None):
            self._save()

    def _save(self) -> None:
        if self._path is None:
            return
        temporary = self._path.with_suffix(".tmp")
        with suppress(OSError):  # names are a comfort
            temporary.write_text(json.dumps(self._names))
            os.replace(temporary, self._path)


def _read(path: Path | None) -> dict[str, dict[str, str]]:
    with suppress(OSError, ValueError, AttributeError):
        found = json.loads(path.read_text()) if path is not None else {}
        return {
            str(stream): {str(key): str(name)[:LENGTH] for key, name in names.items()}
            for stream, names in found.items()
        }
    return {}
