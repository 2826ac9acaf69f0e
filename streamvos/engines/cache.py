"""Engines on disk: found by the digest of their plan, trusted only when everything matches.

    cache = EngineCache()                       # `default_folder()`
    manifest = cache.find(plan.digest)          # None: there is no such engine
    path = cache.artefact(manifest)             # after its digest was compared with the manifest

    <digest of the plan>/manifest.json, engine.pt2      one engine
    work/<digest>/, work/<digest>.lock                  an engine being built, locked by its process
    compiler/                                           what compilers keep from one build to the next

An engine is code. The folder has mode 0700 and must belong to the user and be writable by nobody else; its
contents are as trusted as the installation. An engine is written in `work` and appears by a rename.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

import streamvos.engines
from streamvos.engines.manifest import FILE, Manifest
from streamvos.types import InputError

FOLDER_VARIABLE = "STREAMVOS_ENGINES"
"""Environment variable that names the folder of the cache."""


class BuiltElsewhereError(InputError):
    """Another process is building this engine."""


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
        folder: None = `default_folder()`. It is created when something is stored.
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

    def manifests(self) -> list[Manifest]:
        """All engines, those that were refused too; damaged manifests are passed over."""
        if self.problem() is not None or not self.folder.is_dir():
            return []
        found = (self._read(path.name) for path in sorted(self.folder.iterdir()) if len(path.name) == 64)
        return [manifest for manifest in found if manifest is not None]

    def find(self, plan: str) -> Manifest | None:
        """The engine of a plan (its digest), or the manifest of one that was refused."""
        manifest = None if self.problem() is not None else self._read(plan)
        is_late = manifest is not None and self._as_of is not None and manifest.built_at > self._as_of
        return None if is_late else manifest

    def artefact(self, manifest: Manifest) -> Path:
        """The file of an engine, after comparing it with the manifest.

        Raises:
            InputError: the engine was refused, or its file is missing or not the one that was stored.
        """
        if manifest.artefact is None:
            raise InputError(f"{manifest.title} was {manifest.parity}")
        path = self.folder / manifest.name / Path(manifest.artefact).name
        try:
            same = path.stat().st_size == manifest.size and digest_of(path) == manifest.sha256
        except OSError as error:
            raise InputError(f"the engine {manifest.title} cannot be read: {error}") from None
        if not same:
            raise InputError(
                f"the engine {manifest.title} is damaged: its file is not the one that was stored; "
                "`streamvos engines prune` deletes it"
            )
        return path

    @contextmanager
    def building(self, plan: str) -> Iterator[Path]:
        """A folder in which to build the engine of a plan; it is deleted afterwards.

        Raises:
            BuiltElsewhereError: another process is building this engine.
        """
        work = self.subfolder("work")
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
            raise BuiltElsewhereError(
                f"another process is building this engine ({plan[:12]}); wait for it"
            ) from None

    def store(self, manifest: Manifest, folder: Path) -> None:
        """Store an engine in place of the one of the same plan.

        Args:
            manifest: its description.
            folder: in `building`; the file that the manifest names is in it.
        """
        new, old = folder / "new", folder / "old"
        new.mkdir(mode=0o700)
        if manifest.artefact is not None:
            os.replace(folder / manifest.artefact, new / manifest.artefact)
        (new / FILE).write_text(manifest.model_dump_json(indent=2))
        target = self.folder / manifest.name
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)

    def prune(self, outdated: list[Manifest], everything: bool = False) -> tuple[int, int]:
        """Delete engines, damaged ones too, and what interrupted builds have left.

        Args:
            outdated: engines to delete.
            everything: also what compilers keep.

        Returns:
            Engines that were deleted, and bytes that became free.
        """
        names = {manifest.name for manifest in outdated}
        doomed = [
            path for path in self.folder.glob("?" * 64) if path.name in names or self._is_damaged(path.name)
        ]
        freed = sum(map(_delete, doomed))
        for path in (self.folder / "work").glob("?" * 64):
            try:
                with FileLock(f"{path}.lock", timeout=0):
                    freed += _delete(path)
            except Timeout:  # it is being built
                continue
        if everything:
            freed += _delete(self.folder / "compiler")
        return len(doomed), freed

    def subfolder(self, name: str) -> Path:
        """A folder in the cache, created where it is missing.

        Raises:
            InputError: the cache cannot be trusted.
        """
        problem = self.problem()
        if problem is not None:
            raise InputError(f"the engine cache cannot be used: {problem}")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = self.folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def _is_damaged(self, plan: str) -> bool:
        manifest = self._read(plan)
        try:
            return manifest is None or (manifest.artefact is not None and not self.artefact(manifest))
        except InputError:
            return True

    def _read(self, plan: str) -> Manifest | None:
        try:
            manifest = Manifest.read(self.folder / plan / FILE)
        except InputError:
            return None
        return manifest if manifest.name == plan else None


def _delete(folder: Path) -> int:
    """Delete a folder; the bytes that became free."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    shutil.rmtree(folder, ignore_errors=True)
    return size


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
