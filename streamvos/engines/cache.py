"""Engines on disk: found by the digest of their plan, trusted only when everything matches.

    cache = EngineCache()                       # `default_folder()`
    manifest = cache.find(plan.digest)          # None: there is no such engine
    path = cache.file(manifest)                 # after its digest was compared with the manifest

    <digest of the plan>/manifest.json, engine.pt2      one engine
    work/<digest>/, work/<digest>.lock                  an engine being built, locked by its process

An engine is code. The folder has mode 0700, must belong to the user, and must not be writable by others; its
contents are as trusted as the installation. An engine is written in `work` and appears by a rename.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path
from pydantic import ValidationError

import streamvos.engines
from streamvos.engines.manifest import Manifest
from streamvos.files import read_bytes
from streamvos.types import InputError

FILE, MANIFEST = "engine.pt2", "manifest.json"

FOLDER_VARIABLE = "STREAMVOS_ENGINES"
"""Environment variable that names the folder of the cache."""


def default_folder() -> Path:
    """`$STREAMVOS_ENGINES`; else engines/cache in a checkout; else the user's cache folder."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named).expanduser()
    checkout = Path(streamvos.engines.__path__[0]).parents[1]
    if (checkout / "setup.py").is_file() and os.access(checkout, os.W_OK):
        return checkout / "engines" / "cache"
    return user_cache_path("streamvos") / "engines"


class EngineCache:
    """A folder of engines, which any number of processes may use at once.

    Args:
        folder: None = `default_folder()`; it is created by the first build.
        as_of: nanoseconds since 1970; engines built later are not found. A pipeline gives its starting time,
            so that a restarted worker runs the same engines as before.
    """

    def __init__(self, folder: Path | None = None, as_of: int | None = None):
        self.folder = default_folder() if folder is None else folder
        self._as_of = as_of

    def problem(self) -> str | None:
        """Why the folder cannot be trusted; None if it can, or does not exist yet."""
        try:
            state = self.folder.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"{self.folder}: {error.strerror}"
        if not self.folder.is_dir():
            return f"{self.folder} is no folder"
        if state.st_uid not in (os.geteuid(), 0):
            return f"{self.folder} belongs to another user (uid {state.st_uid}); engines are code"
        if state.st_mode & 0o022:
            return f"{self.folder} can be written to by others; engines are code: chmod go-w {self.folder}"
        return None

    def check(self) -> None:
        """Raise InputError if there is a `problem`."""
        if (problem := self.problem()) is not None:
            raise InputError(f"the engine cache cannot be used: {problem}")

    def manifests(self) -> list[Manifest]:
        """All engines, also those that were refused; damaged manifests are skipped."""
        if self.problem() is not None or not self.folder.is_dir():
            return []
        found = (self._read(path.name) for path in sorted(self.folder.iterdir()) if len(path.name) == 64)
        return [manifest for manifest in found if manifest is not None]

    def find(self, plan: str) -> Manifest | None:
        """The engine of a plan (its digest), or the manifest of one that was refused."""
        manifest = None if self.problem() is not None else self._read(plan)
        is_late = manifest is not None and self._as_of is not None and manifest.built_at > self._as_of
        return None if is_late else manifest

    def file(self, manifest: Manifest) -> Path:
        """The file of an engine, after comparing it with the manifest.

        Raises:
            InputError: the engine was refused, or its file is missing or not the one that was stored.
        """
        if not manifest.parity.passed:
            raise InputError(f"{manifest.title} was {manifest.parity}")
        path = self.folder / manifest.name / FILE
        if not path.is_file() or digest_of(path) != manifest.sha256:
            raise InputError(
                f"the engine {manifest.title} is damaged: its file is missing or not the one that was stored;"
                " `streamvos engines prune` deletes it"
            )
        return path

    @contextmanager
    def building(self, plan: str) -> Iterator[Path]:
        """A folder in which to build the engine of a plan; it is deleted afterwards.

        Raises:
            InputError: another process is building this engine, or the cache cannot be trusted.
        """
        self.check()
        work = self.folder / "work"
        for parent in (self.folder, work):
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with FileLock(work / f"{plan}.lock", timeout=0, mode=0o600):
                folder = work / plan
                shutil.rmtree(folder, ignore_errors=True)  # left by a process that died
                folder.mkdir(mode=0o700)
                try:
                    yield folder
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
        except Timeout:
            raise InputError(f"another process is building this engine ({plan[:12]}); wait for it") from None

    def store(self, manifest: Manifest, folder: Path) -> None:
        """Store an engine in place of the one of the same plan; its file is in the folder of `building`."""
        new, old = folder / "new", folder / "old"
        new.mkdir(mode=0o700)
        if manifest.parity.passed:
            os.replace(folder / FILE, new / FILE)
        (new / MANIFEST).write_text(manifest.model_dump_json(indent=2))
        target = self.folder / manifest.name
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)

    def prune(self, outdated: list[Manifest]) -> int:
        """Delete these engines, damaged ones, and remains of interrupted builds; the number of engines."""
        names, engines = {one.name for one in outdated}, list(self.folder.glob("?" * 64))
        doomed = [path for path in engines if path.name in names or self._is_damaged(path.name)]
        for path in doomed:
            shutil.rmtree(path, ignore_errors=True)
        for path in (self.folder / "work").glob("?" * 64):
            with suppress(Timeout), FileLock(f"{path}.lock", timeout=0):  # Timeout: it is being built
                shutil.rmtree(path, ignore_errors=True)
        return len(doomed)

    def _is_damaged(self, plan: str) -> bool:
        manifest = self._read(plan)
        try:
            return manifest is None or (manifest.parity.passed and not self.file(manifest))
        except InputError:
            return True

    def _read(self, plan: str) -> Manifest | None:
        try:
            content = read_bytes(self.folder / plan / MANIFEST, "the manifest")
            manifest = Manifest.model_validate_json(content)
        except (InputError, ValidationError):
            return None
        return manifest if manifest.name == plan else None


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
