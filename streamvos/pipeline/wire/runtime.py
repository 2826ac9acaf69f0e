"""Where a pipeline's sockets lie, and that there is one pipeline of a name (docs/protocol.md, 8 and 11).

Whoever may open a socket of `ipc://` may give orders to the pipeline. So the sockets lie in a folder that
nobody else can enter, `$XDG_RUNTIME_DIR/streamvos/NAME` or `/tmp/streamvos-UID/NAME`, and a lock in it, which
the kernel lets go of however its holder dies, says whether the pipeline lives.

    with Runtime.claim("door") as runtime:
        server = ControlServer(context, runtime.control, session, commands)
        ...
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import stat
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from streamvos.types import InputError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Names of pipelines and streams; none of them leads out of a folder."""

IPC_BYTES = 107
"""The longest path of a unix socket: `sun_path` has 108 bytes, one of them the final zero."""

_LOCK = "lock"


class Runtime:
    """A pipeline's folder, held by the one process that may serve there.

    Attributes:
        name: of the pipeline.
        folder: of mode 0700.
    """

    def __init__(self, name: str, folder: Path, lock: int):
        self.name, self.folder = name, folder
        self._lock: int | None = lock

    @classmethod
    def claim(cls, name: str) -> Runtime:
        """Make the folder, lock it, and remove the sockets that a dead pipeline left.

        The lock ends with this process; its descriptor is not inherited by the programs that it starts.

        Raises:
            InputError: another pipeline of this name lives, or as `runtime_folder`.
        """
        folder = runtime_folder(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open(folder / _LOCK, flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise InputError(
                f"a pipeline {name!r} runs already (process {holder}); end it with `streamvos ctl stop --at "
                f"{name}`, or give yours another name"
            ) from None
        except OSError:
            os.close(lock)
            raise
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
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

    def close(self) -> None:
        """Remove the sockets and let the name go; the folder and its lock file stay."""
        if self._lock is None:
            return
        self._remove_sockets()
        os.close(self._lock)
        self._lock = None

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _remove_sockets(self) -> None:
        for entry in self.folder.iterdir():
            with suppress(FileNotFoundError):
                if stat.S_ISSOCK(entry.lstat().st_mode):
                    entry.unlink()


def runtime_folder(name: str) -> Path:
    """The folder of a pipeline's sockets, made if need be, which nobody else can enter.

    Raises:
        InputError: the name is none; or the folder, or the one that holds those of all pipelines, belongs to
            somebody else, is a link or a file, or is open to others and cannot be closed to them.
    """
    check_name(name)
    base = _bases()[0]
    return _private(_private(base) / name)


def find_control(name: str) -> str:
    """Address of the socket for users of a pipeline that lives.

    It is looked for in both places where it may be: who asks may have another environment than who serves.

    Raises:
        InputError: there is no such pipeline; the message names those that there are.
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
    """Names of this user's pipelines that live on this machine."""
    names = set()
    for base in _bases():
        with suppress(OSError):
            names |= {folder.name for folder in base.iterdir() if answers(folder / "control.sock")}
    return sorted(names)


def check_name(name: str) -> None:
    """Refuse what is no name of a pipeline or a stream.

    Raises:
        InputError: it is none.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            f"a name has 1 to 64 letters, digits, '_', '.' or '-', and begins with a letter or digit; "
            f"got {name[:80]!r}"
        )


def ipc_address(path: Path) -> str:
    """The ZeroMQ address of a unix socket.

    Raises:
        InputError: the path is longer than the system allows.
    """
    length = len(os.fsencode(path))
    if length > IPC_BYTES:
        raise InputError(
            f"the socket {path} has a path of {length} bytes, and the system allows {IPC_BYTES}; use shorter "
            "names for the pipeline and its streams, or a shorter XDG_RUNTIME_DIR"
        )
    return f"ipc://{path}"


def answers(path: Path) -> bool:
    """Whether somebody listens on a unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:  # so many wait there that the queue is full
            return True
        except (OSError, ValueError):  # ValueError: a path with a zero in it
            return False
        return True


def _bases() -> list[Path]:
    """Folders that hold those of the pipelines, the preferred one first."""
    common = Path(f"/tmp/streamvos-{os.getuid()}")
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    if own and os.path.isabs(own) and os.path.isdir(own) and os.access(own, os.W_OK | os.X_OK):
        return [Path(own) / "streamvos", common]
    return [common]


def _private(folder: Path) -> Path:
    with suppress(FileExistsError):
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            raise
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None
    # opened rather than looked at by name, so that nobody can put another one in its place meanwhile
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(
            f"{folder} cannot hold the pipeline's sockets: it is a link, a file, or belongs to somebody else "
            f"({error.strerror}); remove it, or set XDG_RUNTIME_DIR to a folder of your own"
        ) from None
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.getuid():
            raise InputError(
                f"{folder} belongs to user {found.st_uid}, who could give orders to the pipeline; remove it, "
                "or set XDG_RUNTIME_DIR to a folder of your own"
            )
        if stat.S_IMODE(found.st_mode) != 0o700:
            os.fchmod(descriptor, 0o700)
            if stat.S_IMODE(os.fstat(descriptor).st_mode) & 0o077:  # file systems without rights, such as FAT
                raise InputError(f"{folder} is open to other users, and its rights cannot be changed")
    except OSError as error:
        raise InputError(f"cannot use the folder {folder}: {error.strerror}") from None
    finally:
        os.close(descriptor)
    return folder
