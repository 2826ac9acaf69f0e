"""Engines on disk: found by their plan, believed only when everything matches.

    cache = EngineCache()                       # `default_folder()`
    manifest = cache.find(plan)                 # None: build it, beside the stream
    run = load(cache.artefact(manifest), ...)   # the file's digest has been compared

    engines/cache/<key>/manifest.json, engine.pt2       one engine
                 locks/<plan>                           held while it is built
                 choices/<question>.json                what `auto` measured
                 quarantine/                            what did not match its manifest
                 work/                                  half-built things, of processes that live
                 compiler/                              what compilers keep from one build to the next

An engine is code. The folder is made with mode 0700, must belong to whoever uses it and be writable for
nobody else; its contents are as trusted as the installation. An engine appears under its name only when it is
whole: written in `work`, flushed to the disk, renamed. Nothing in here is ever read with Python's serializer.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import streamvos.engines
from streamvos.engines import manifest as manifests
from streamvos.engines.keys import FORMAT
from streamvos.engines.manifest import Choice, Manifest
from streamvos.types import InputError

log = logging.getLogger(__name__)

FOLDER_VARIABLE = "STREAMVOS_ENGINES"
"""Environment variable that names the folder of the cache."""

AS_OF_VARIABLE = "STREAMVOS_ENGINES_AS_OF"
"""Environment variable, nanoseconds since 1970: engines that were built later are not seen.

A pipeline sets it for its workers, so that one that is started anew goes on with what the others run.
"""

COMPILER = "compiler"

_compiling: dict[Path, int] = {}
"""Locks that this process holds until it ends."""

CHUNK = 1 << 20


def default_folder() -> Path:
    """`$STREAMVOS_ENGINES`; else engines/cache of a checkout, if this is one; else in the user's cache."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named).expanduser()
    checkout = Path(streamvos.engines.__path__[0]).parents[1]
    if (checkout / "setup.py").is_file() and os.access(checkout, os.W_OK):
        return checkout / "engines" / "cache"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "streamvos" / "engines"


class EngineCache:
    """A folder of engines, used by any number of processes at once.

    Args:
        folder: None = `default_folder()`. It is made when something is stored.

    Attributes:
        folder: as given.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = default_folder() if folder is None else folder

    def problem(self) -> str | None:
        """Why what lies in the folder cannot be trusted; None if it can, or if there is none yet."""
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
        """Of all engines that are whole, refused ones too; damaged ones go to quarantine."""
        found = []
        for folder in self._entries():
            try:
                manifest = Manifest.read(folder / manifests.FILE)
                if manifest.key != folder.name:
                    raise InputError(f"{folder} holds the manifest of {manifest.key}")
            except InputError as error:
                # nobody has removed it meanwhile, and it is not of another version of this package
                if folder.is_dir() and not _is_of_another_format(folder / manifests.FILE):
                    self.quarantine(folder.name, str(error))
                continue
            found.append(manifest)
        return found

    def find(self, plan: str) -> Manifest | None:
        """The engine of a plan, or what is known of one that was refused.

        Args:
            plan: digest, see `streamvos.engines.keys`.
        """
        return self.by_plan().get(plan)

    def by_plan(self) -> dict[str, Manifest]:
        """Plan -> its newest engine, refused ones too."""
        limit = _as_of()
        known = sorted(self.manifests(), key=lambda one: one.built_at)
        return {one.plan: one for one in known if one.built_at <= limit}

    def knows(self, name: str) -> bool:
        """Whether an engine is there for a plan, or a question decided, however late (`AS_OF_VARIABLE`)."""
        decided = (self.folder / "choices" / f"{name}.json").exists()
        return decided or any(one.plan == name for one in self.manifests())

    def artefact(self, manifest: Manifest) -> Path:
        """The file of an engine, after it has been compared with its manifest.

        Raises:
            InputError: it was refused, is gone, or is another file than was stored; then it is in quarantine.
        """
        if manifest.artefact is None:
            raise InputError(f"{manifest.title} was {manifest.parity}")
        path = self.folder / manifest.key / Path(manifest.artefact).name
        try:
            same = path.stat().st_size == manifest.size and digest_of(path) == manifest.sha256
        except OSError as error:
            if not self._is_replaced(manifest):
                self.quarantine(manifest.key, str(error))
            raise InputError(f"the engine {manifest.title} is gone: {error}") from None
        if not same and self._is_replaced(manifest):
            raise InputError(f"the engine {manifest.title} was built anew at this moment; start again")
        if not same:
            self.quarantine(manifest.key, "the file is not the one that was stored")
            raise InputError(
                f"the engine {manifest.title} is damaged and was put into quarantine; build it anew"
            )
        return path

    @contextmanager
    def workshop(self) -> Iterator[Path]:
        """A folder for building; gone afterwards."""
        self._make()
        with tempfile.TemporaryDirectory(prefix=f"{os.getpid()}-", dir=self.folder / "work") as name:
            yield Path(name)

    @contextmanager
    def building(self, name: str) -> Iterator[bool]:
        """Hold the lock of one plan or question.

        Yields:
            Whether it was free; if not, somebody else builds that engine.
        """
        self._make()
        # the file stays: whoever removed it might remove the lock of a third one
        with open(self.folder / "locks" / name, "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def compiler(self) -> Path:
        """A folder for what compilers keep from one build to the next.

        They remember in a process what lies there, so `clean` leaves it alone as long as that lives.

        Raises:
            InputError: the cache cannot be trusted.
        """
        folder = self.subfolder(COMPILER)
        if folder not in _compiling:
            _compiling[folder] = os.open(self.folder / "locks" / COMPILER, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(_compiling[folder], fcntl.LOCK_SH)
        return folder

    def subfolder(self, name: str) -> Path:
        """A folder of the cache for something else, made if need be.

        Raises:
            InputError: the cache cannot be trusted.
        """
        self._make()
        folder = self.folder / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def store(self, manifest: Manifest, built: Path | None) -> None:
        """Take an engine in, in place of one of its name.

        Args:
            manifest: of it.
            built: the file, in a `workshop`; None if it was refused.
        """
        self._make()
        new, old = (
            Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=self.folder / "work")) for _ in range(2)
        )
        try:
            if built is not None:
                assert manifest.artefact is not None
                os.replace(built, new / manifest.artefact)
            (new / manifests.FILE).write_text(manifest.model_dump_json(indent=2))
            for path in (*new.iterdir(), new):
                _flush(path)
            target = self.folder / manifest.key
            if target.exists():
                os.rename(target, old / "replaced")
            os.rename(new, target)
            _flush(self.folder)
        finally:
            for folder in (new, old):
                shutil.rmtree(folder, ignore_errors=True)

    def quarantine(self, key: str, reason: str) -> None:
        """Put an engine aside, to be looked at; it is not found any more."""
        log.warning("engine %s goes to quarantine: %s", key[:12], reason)
        with suppress(OSError):  # another process was faster, or the folder is not ours to write
            self._make()
            os.rename(self.folder / key, self.folder / "quarantine" / f"{key}-{time.time_ns()}")

    def remove(self, key: str) -> None:
        """Delete an engine."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def clean(self) -> int:
        """Delete what is in quarantine, what dead processes left, what compilers kept; bytes freed."""
        freed = sum(map(_delete, self._inside("quarantine")))
        freed += sum(_delete(one) for one in self._inside("work") if not _lives(one.name.partition("-")[0]))
        if kept := self._inside(COMPILER):
            with self.building(COMPILER) as alone:
                freed += sum(map(_delete, kept)) if alone else 0
        return freed

    def choice(self, question: str) -> Choice | None:
        """What `auto` has decided before."""
        try:
            choice = Choice.model_validate_json((self.folder / "choices" / f"{question}.json").read_bytes())
        except (OSError, ValueError):
            return None
        return choice if choice.question == question and choice.decided_at <= _as_of() else None

    def decide(self, choice: Choice) -> None:
        """Remember a choice."""
        self._make()
        with self.workshop() as folder:
            path = folder / "choice.json"
            path.write_text(choice.model_dump_json(indent=2))
            _flush(path)
            os.replace(path, self.folder / "choices" / f"{choice.question}.json")

    def _is_replaced(self, manifest: Manifest) -> bool:
        """Whether another process has meanwhile stored another engine under this name."""
        try:
            return Manifest.read(self.folder / manifest.key / manifests.FILE).sha256 != manifest.sha256
        except InputError:
            return False

    def _entries(self) -> list[Path]:
        if self.problem() is not None or not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.is_dir() and len(path.name) == 40)

    def _inside(self, name: str) -> list[Path]:
        folder = self.folder / name
        return list(folder.iterdir()) if folder.is_dir() else []

    def _make(self) -> None:
        problem = self.problem()
        if problem is not None:
            raise InputError(f"the engine cache cannot be used: {problem}")
        for name in ("", "work", "locks", "choices", "quarantine"):
            (self.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)


def _delete(path: Path) -> int:
    """Bytes freed."""
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    shutil.rmtree(path, ignore_errors=True)
    return size


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _is_of_another_format(path: Path) -> bool:
    try:
        written = json.loads(path.read_bytes())["format"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return isinstance(written, int) and written != FORMAT


def _as_of() -> int:
    try:
        return int(os.environ[AS_OF_VARIABLE])
    except (KeyError, ValueError):
        return time.time_ns()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lives(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
