"""Access control: CURVE keys, the list of clients, and which addresses may be bound (docs/protocol.md, 11).

CURVE alone admits every client that knows the server's public key. Our servers therefore ask pyzmq's
authenticator about the key of each client; without an authenticator, no client is admitted.

    make_keys("keys", "server")
    make_keys("clients", "laptop")
    curve = Curve("keys/server.key_secret", clients="clients")
    bind(socket, "tcp://0.0.0.0:5599", curve)            # without curve: InputError
    curve.denied                                         # RejectionCounter: {"unknown key": 2, "no CURVE": 1}

    Curve("clients/laptop.key_secret", server_key="keys/server.key").connect(socket)

pyzmq writes the key files; `admission` runs its authenticator.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import struct
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import zmq
import zmq.auth
from zmq.utils import z85

from streamvos.addresses import redact
from streamvos.pipeline.wire.admission import HANDSHAKE_FAILURES, guard
from streamvos.pipeline.wire.endpoints import check_address, check_name, is_loopback
from streamvos.pipeline.wire.messages import RejectionCounter
from streamvos.pipeline.wire.runtime import answers
from streamvos.types import InputError, SinkError

_logger = logging.getLogger("streamvos.pipeline")

_Z85 = rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}"  # a key, ZeroMQ RFC 32
_KEY_LINE = re.compile(
    rb"^[ \t]*(public|secret)-key[ \t]*=[ \t]*[\"']?(" + _Z85 + rb")[\"']?[ \t\r]*$", re.MULTILINE
)
_CLOSING_SECONDS = 1.0  # ZeroMQ closes in the background; a socket that was just closed may still answer
_KEY_FILE_BYTES = 2**16


class Curve:
    """Our keys, as server and as client.

    Args:
        secret: our file NAME.key_secret, which no other user may read.
        clients: folder with the public keys (NAME.key) of the clients to admit; without it, nothing is served
            to other hosts. Our own key is always admitted: a pipeline's stages share one.
        server_key: public key of the server to connect to, a file or the key's 40 characters; None = our own.
        serves_own: without `clients`, admit clients with our own key, as stages serve each other.
        warns: whether to warn of files in `clients` that hold no key now; of later ones it does always.

    Attributes:
        public: our public key, Z85.
        admits: whether any client may be admitted, so that sockets can be served.
        denied: cause -> number of clients that were rejected.

    Raises:
        InputError: a file is missing, holds no key, or holds a secret that others can read.
    """

    def __init__(
        self,
        secret: str | Path,
        clients: str | Path | None = None,
        server_key: str | Path | None = None,
        serves_own: bool = False,
        warns: bool = True,
    ):
        self.public, self._secret = read_secret_key(secret)
        self._server = self.public if server_key is None else read_public_key(server_key)
        self._clients = None if clients is None else Path(clients)
        if self._clients is not None and not self._clients.is_dir():
            raise InputError(f"there is no folder {clients} with the public keys of clients")
        self.admits = serves_own or clients is not None
        self.denied = RejectionCounter(f"clients of {clients}")
        self._unreadable: dict[Path, str] = {}
        self._listed(warn=warns)

    def serve(self, socket: zmq.Socket[Any]) -> None:
        """Make a socket a CURVE server that admits listed clients only; before it is bound.

        Raises:
            InputError: there is no list, or the context has another authenticator.
        """
        if not self.admits:
            raise InputError("CURVE needs the folder with the public keys of clients (security.clients)")
        guard(socket, self.denied, self)
        socket.curve_server = True
        socket.curve_secretkey = self._secret
        socket.curve_publickey = self.public

    def connect(self, socket: zmq.Socket[Any]) -> None:
        """Make a socket a CURVE client; before it is connected."""
        socket.curve_serverkey = self._server
        socket.curve_secretkey = self._secret
        socket.curve_publickey = self.public

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether to admit a client with this public key (Z85); called by the authenticator.

        The key files are read each time, since they may change.
        """
        admitted = key == self.public or key in self._listed()
        if not admitted:
            self.denied.count("unknown key")
        return admitted

    def _listed(self, warn: bool = True) -> set[bytes]:
        """The keys in the folder; a file that holds none is warned of once, until it is readable again."""
        keys, unreadable = set(), dict[Path, str]()
        with suppress(OSError):  # without the folder, only our own key is admitted
            for path in () if self._clients is None else sorted(self._clients.glob("*.key")):
                try:
                    keys.add(read_public_key(path))
                except InputError as error:
                    unreadable[path] = str(error)
        for path, reason in unreadable.items():
            if warn and self._unreadable.get(path) != reason:
                _logger.warning("a client is left out: %s", reason)
        self._unreadable = unreadable
        return keys


class NoKeys:
    """Stands for a `Curve` at the loopback, where everybody is admitted, but not too many at a time."""

    admits = False

    def __init__(self) -> None:
        self.denied = RejectionCounter("connections without keys")

    def serve(self, socket: zmq.Socket[Any]) -> None:
        """As `Curve.serve`."""
        guard(socket, self.denied)

    def connect(self, socket: zmq.Socket[Any]) -> None:
        """As `Curve.connect`."""


def is_refusal(event: int, broken: int) -> bool:
    """Whether a monitor's event means that the peer refuses our keys, given `broken` handshakes so far.

    A connection that closes during the handshake means a refusal only the third time; the peer may have died.
    """
    return bool(event & HANDSHAKE_FAILURES) and (event != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL or broken >= 3)


def make_keys(folder: str | Path, name: str) -> tuple[Path, Path]:
    """Make a pair of keys, as ZeroMQ certificates, which pyzmq and czmq read too.

    Args:
        folder: made if missing, with mode 0700.
        name: the files are NAME.key (public) and NAME.key_secret (mode 0600).

    Returns:
        Paths of the public and the secret file.

    Raises:
        InputError: the name is not valid, or one of the files exists already.
        SinkError: they cannot be written.
    """
    check_name(name)
    folder = Path(folder)
    public_path, secret_path = folder / f"{name}.key", folder / f"{name}.key_secret"
    for path in (public_path, secret_path):
        if os.path.lexists(path):
            raise InputError(f"{path} is there already; choose another name, keys are never replaced")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # pyzmq would overwrite files, and let others read the secret for a moment; a link does neither
        with tempfile.TemporaryDirectory(dir=folder) as private:
            public_made, secret_made = zmq.auth.create_certificates(private, name)
            os.chmod(secret_made, 0o600)
            os.link(secret_made, secret_path)
            os.link(public_made, public_path)
    except OSError as error:
        raise SinkError(f"cannot write keys to {folder}: {error.strerror}") from None
    return public_path, secret_path


def read_secret_key(path: str | Path) -> tuple[bytes, bytes]:
    """The public and the secret key (Z85) from NAME.key_secret.

    Raises:
        InputError: no such file, not a pair of keys, or others can read it.
    """
    public, secret = _load(path)
    if public is None or secret is None:
        raise InputError(f"{path} holds no secret key; give the file NAME.key_secret of `streamvos keys new`")
    if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        raise InputError(f"others can read the secret key {path}; `chmod 600 {path}`, or make new keys")
    if zmq.curve_public(secret) != public:
        raise InputError(f"the public and the secret key in {path} do not belong together; make new keys")
    return public, secret


def read_public_key(key: str | Path) -> bytes:
    """A public key, Z85, from a file (NAME.key or NAME.key_secret) or from its 40 characters.

    Raises:
        InputError: it is neither.
    """
    if isinstance(key, str) and _is_key(text := os.fsencode(key)) and not Path(key).exists():
        return text
    public, _ = _load(key)
    if public is None:
        raise InputError(f"{key} holds no public key; give the file NAME.key of `streamvos keys new`")
    return public


def _load(path: str | Path) -> list[bytes | None]:
    """The public and the secret key in a file, each None if missing."""
    try:
        # neither a pipe nor a device may hold up whoever reads the keys
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a zero in the path
        reason = getattr(error, "strerror", None) or "no such file"
        raise InputError(f"cannot read the key {redact(str(path))[:200]}: {reason}") from None
    try:
        regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        text = os.read(descriptor, _KEY_FILE_BYTES) if regular else b""
    except OSError as error:
        raise InputError(f"cannot read the key {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)
    found = {match[1]: match[2] for match in _KEY_LINE.finditer(text) if _is_key(match[2])}
    return [found.get(b"public"), found.get(b"secret")]


def _is_key(text: bytes) -> bool:
    """Whether this is 40 characters of Z85, of which each five are a number below 2**32."""
    try:
        return re.fullmatch(_Z85, text) is not None and len(z85.decode(text)) == 32
    except struct.error:
        return False


def check_bind(address: str, curve: Curve | NoKeys | None = None) -> None:
    """Refuse addresses that other hosts can reach without keys.

    Allowed are inproc://, ipc:// with a path, tcp:// at the loopback, and other tcp:// with keys and a list
    of clients.

    Raises:
        InputError: everything else.
    """
    if address.startswith("inproc://"):
        return
    check_address(address)
    if address.startswith("tcp://") and not is_loopback(address) and (curve is None or not curve.admits):
        raise InputError(
            f"{address} can be reached from other hosts, so it needs CURVE keys and a list of "
            "clients (security.secret and security.clients; `streamvos keys new` makes keys); or serve at "
            "tcp://127.0.0.1:PORT"
        )


def bind(
    socket: zmq.Socket[Any],
    address: str,
    curve: Curve | None = None,
    refused: RejectionCounter | None = None,
) -> str:
    """Bind a socket if that is safe: tcp:// with CURVE if keys are given, ipc:// for this user only.

    Args:
        socket: the socket.
        address: where.
        curve: keys, used for tcp://.
        refused: counts connections that are refused for want of room; None allows any number of them. With
            keys, `curve.denied` does.

    Returns:
        The address, with the port that the system chose for tcp://HOST:*.

    Raises:
        InputError: as `check_bind`; or another process serves there, or a file is in the way.
    """
    check_bind(address, curve)
    path = Path(address.removeprefix("ipc://")) if address.startswith("ipc://") else None
    if path is not None:
        _check_free(path)
    if curve is not None and curve.admits and address.startswith("tcp://"):
        curve.serve(socket)
    elif refused is not None:
        guard(socket, refused)
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        raise InputError(f"cannot serve at {redact(address)[:200]}: {error.strerror}") from None
    if path is not None:
        with suppress(OSError):  # the folder's mode excludes other users as well
            path.chmod(0o600)
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


def _check_free(path: Path) -> None:
    """Refuse a path that is in use, since ZeroMQ would delete any file there."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise InputError(f"there is no folder {path.parent} for the socket {path.name}") from None
        return
    except OSError as error:
        raise InputError(f"cannot use {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(found.st_mode):
        raise InputError(f"{path} is in the way: it is no socket; choose another address, or move it")
    deadline = time.monotonic() + _CLOSING_SECONDS
    while answers(path):
        if time.monotonic() > deadline:
            raise InputError(f"another process serves at ipc://{path} already; choose another address")
        time.sleep(0.02)
