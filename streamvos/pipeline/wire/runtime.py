"""The folder of a pipeline's sockets, whose lock lets only one pipeline of a name run (docs/protocol.md, 11).

Any process that can open a pipeline's ipc:// socket can send commands to it. The sockets are therefore in a
folder that only its owner can enter: streamvos/NAME in the user's runtime folder ($XDG_RUNTIME_DIR,
/run/user/UID, or /tmp/runtime-UID). A file lock in it, which the kernel releases when its holder ends, shows
that the pipeline runs.

    with Runtime.claim("door") as runtime:
        server = ControlServer(context, runtime.control, session, commands)
        ...
"""

from __future__ import annotations

import os
import socket
import stat
import warnings
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from streamvos.pipeline.wire.endpoints import check_name, frames_address, ipc_address
from streamvos.types import InputError


class Runtime:
    """A pipeline's folder (mode 0700), locked by the one process that may serve there."""

    def __init__(self, name: str, folder: Path, lock: FileLock | None = None):
        self.name, self.folder = name, folder
        self._lock = lock

    @classmethod
    def claim(cls, name: str) -> Runtime:
        """Make the folder, lock it, and remove the sockets that a killed pipeline left.

        The lock ends with this process; the programs that it starts do not inherit it.

        Raises:
            InputError: another pipeline of this name runs, or as `runtime_folder`.
        """
        folder = runtime_folder(name)
        # one lock object per claim, since a second claim by the same process must fail too
        lock = FileLock(folder / "lock", mode=0o600, is_singleton=False, thread_local=False)
        path = Path(lock.lock_file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            holder = path.read_bytes()[:32].decode(errors="replace").strip() or "unknown"
            raise InputError(
                f"a pipeline {name!r} runs already (process {holder}); end it with `streamvos ctl stop --at "
                f"{name}`, or give yours another name"
            ) from None
        path.write_text(f"{os.getpid()}\n")
        runtime = cls(name, folder, lock)
        runtime._remove_sockets()
        return runtime

    @property
    def control(self) -> str:
        """Address of the socket for users."""
        return ipc_address(self.folder / "control.sock")

    @property
    def workers(self) -> str:
        """Address of the socket that the pipeline's own workers report to."""
        return ipc_address(self.folder / "workers.sock")

    def masks(self, stream: str) -> str:
        """Address of the socket for subscribers of a stream."""
        return ipc_address(self.folder / f"masks-{stream}.sock")

    def edge(self, number: int) -> str:
        """Address of the socket of an edge; by number, since names of streams may be long."""
        return ipc_address(self.folder / f"e{number}")

    def forget(self, stream: str, endpoints: Collection[str]) -> None:
        """Remove the files of a stream that has ended: sockets of processes that were killed, and its note.

        Args:
            stream: the stream's name.
            endpoints: of its edges.
        """
        addresses = [*endpoints, frames_address(self.folder, stream)]
        local = [Path(one.removeprefix("ipc://")) for one in addresses if one.startswith("ipc://")]
        masks = self.folder / f"masks-{stream}.sock"  # whose path may be too long for an address
        for path in (*local, masks, sinks_note(self.folder, stream)):
            with suppress(OSError):
                path.unlink()

    def close(self) -> None:
        """Remove the sockets and release the name; the folder and its lock file stay."""
        if self._lock is not None:
            self._remove_sockets()
            self._lock.release()
            self._lock = None

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _remove_sockets(self) -> None:
        for entry in self.folder.iterdir():
            with suppress(FileNotFoundError):
                if stat.S_ISSOCK(entry.lstat().st_mode):
                    entry.unlink()


def sinks_note(folder: Path, stream: str) -> Path:
    """The file in which the sinks of a stream note that they have begun their outputs."""
    return folder / f"sinks-{stream}.begun"


def runtime_folder(name: str) -> Path:
    """The folder of a pipeline's sockets, which only this user can enter; made if missing.

    Raises:
        InputError: the name is not valid; or the folder, or one above it up to the user's runtime folder,
            belongs to another user, is a link or a file, or is open to others and cannot be closed to them.
    """
    check_name(name)
    base = _bases()[0]
    parent = base.parent.resolve()
    for folder in (parent, parent / base.name, parent / base.name / name):
        _make_private(folder)
    return base / name


def find_control(name: str) -> str:
    """Address of the socket for users of a running pipeline.

    Raises:
        InputError: no pipeline of this name runs; the message lists those that do.
    """
    check_name(name)
    for base in _bases():
        path = base / name / "control.sock"
        if answers(path):
            return ipc_address(path)
    others = live_pipelines()
    hint = f"there are: {', '.join(others)}" if others else "none runs; start one with `streamvos serve`"
    raise InputError(f"there is no pipeline {name!r} of yours on this machine; {hint}")


def live_pipelines() -> list[str]:
    """Names of this user's pipelines that run on this machine."""
    names = set()
    for base in _bases():
        with suppress(OSError):
            names |= {folder.name for folder in base.iterdir() if answers(folder / "control.sock")}
    return sorted(names)


def answers(path: Path) -> bool:
    """Whether a process listens on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:  # the queue of connections is full
            return True
        except (OSError, ValueError):  # ValueError: a path with a zero in it
            return False
        return True


def _bases() -> list[Path]:
    """Parent folders of the pipelines' folders, the one for new pipelines first.

    A pipeline started by a service manager may see other environment variables than the user's shell.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs warns if XDG_RUNTIME_DIR is not set
        try:
            own = platformdirs.user_runtime_path("streamvos")
        except PermissionError as error:
            raise InputError(f"cannot use the runtime folder: {error}") from None
    return list(dict.fromkeys((own, Path(f"/tmp/runtime-{os.getuid()}/streamvos"))))


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:  # a file or a link, which is refused below
        pass
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None
    # checked through a descriptor, so that the folder cannot be replaced between the checks
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(
            f"{folder} cannot hold the pipeline's sockets: it is a link, a file, or belongs to another user "
            f"({error.strerror}); remove it, or set XDG_RUNTIME_DIR to a folder of your own"
        ) from None
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.getuid():
            raise InputError(
                f"{folder} belongs to user {found.st_uid}, who could send commands to the pipeline; remove "
                "it, or set XDG_RUNTIME_DIR to a folder of your own"
            )
        if stat.S_IMODE(found.st_mode) != 0o700:
            os.fchmod(descriptor, 0o700)
            if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:  # file systems without modes, such as FAT
                raise InputError(f"{folder} is open to other users, and its mode cannot be changed")
    except OSError as error:
        raise InputError(f"cannot use the folder {folder}: {error.strerror}") from None
    finally:
        os.close(descriptor)
