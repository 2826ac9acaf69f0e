"""Access control: CURVE keys, the list of clients, and which addresses may be bound (docs/protocol.md, 11).

CURVE alone admits every client that knows the server's public key. Our servers therefore ask pyzmq's
authenticator about the key of each client; without an authenticator, no client is admitted.

    make_keys("keys", "server")
    make_keys("clients", "laptop")
    curve = Curve("keys/server.key_secret", clients="clients")
    bind(socket, "tcp://0.0.0.0:5599", curve)            # without curve: InputError
    curve.denied                                         # RejectionCounter: {"unknown key": 2, "no CURVE": 1}

    Curve("clients/laptop.key_secret", server_key="keys/server.key").connect(socket)

pyzmq reads and writes the key files and authenticates. Its `ThreadAuthenticator` is not used, for two
reasons: it does not see clients that fail before their key is known (no CURVE, another server's key), which
only the sockets' monitors report; and its sockets keep their context from ending. Instead, a thread of this
module runs pyzmq's `Authenticator`, reads the monitors, and ends with the context.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
import struct
import tempfile
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import zmq
import zmq.auth

from streamvos.addresses import redact
from streamvos.pipeline.wire.endpoints import check_address, check_name, is_loopback
from streamvos.pipeline.wire.messages import RejectionCounter
from streamvos.pipeline.wire.runtime import answers
from streamvos.types import InputError, SinkError

_Z85 = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")  # ZeroMQ RFC 32
_CLOSING_SECONDS = 1.0  # ZeroMQ closes in the background; a socket that was just closed may still answer
_PERIOD_MS = 200  # how often the authenticator's thread looks for new sockets to watch

HANDSHAKE_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
"""Events of a socket's monitor."""

_CAUSES = {
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): "no CURVE",
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): "wrong server key",
}


class Curve:
    """Our keys, as server and as client.

    Args:
        secret: our file NAME.key_secret, which no other user may read.
        clients: folder with the public keys (NAME.key) of the clients to admit; without it, nothing is served
            to other hosts. Our own key is always admitted: a pipeline's stages share one.
        server_key: public key of the server to connect to, a file or the key's 40 characters; None = our own.
        serves_own: without `clients`, admit clients with our own key, as stages serve each other.

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
    ):
        self.public, self._secret = read_secret_key(secret)
        self._server = self.public if server_key is None else read_public_key(server_key)
        self._clients = None if clients is None else Path(clients)
        if self._clients is not None and not self._clients.is_dir():
            raise InputError(f"there is no folder {clients} with the public keys of clients")
        self.admits = serves_own or clients is not None
        self.denied = RejectionCounter(f"clients of {clients}")

    def serve(self, socket: zmq.Socket[Any]) -> None:
        """Make a socket a CURVE server that admits listed clients only; before it is bound.

        Raises:
            InputError: there is no list, or the context has another authenticator.
        """
        if not self.admits:
            raise InputError("CURVE needs the folder with the public keys of clients (security.clients)")
        _Authentication.of(socket.context).guard(socket, self)
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

    def _listed(self) -> set[bytes]:
        keys = set()
        with suppress(OSError):  # without the folder, only our own key is admitted
            for path in () if self._clients is None else sorted(self._clients.glob("*.key")):
                try:
                    if path.is_file():  # reading anything else could block
                        keys.add(read_public_key(path))
                except InputError as error:
                    self.denied.count("unreadable key file", error)
        return keys


class _Authentication:
    """Runs the authenticator of one ZeroMQ context in a thread, which ends with the context."""

    _all: ClassVar[weakref.WeakKeyDictionary[zmq.Context[Any], _Authentication]] = weakref.WeakKeyDictionary()
    _lock = threading.Lock()
    _numbers = itertools.count(1)

    @classmethod
    def of(cls, context: zmq.Context[Any]) -> _Authentication:
        """The authenticator of a context, started on first use."""
        with cls._lock:
            if context not in cls._all:
                cls._all[context] = cls(context)
            return cls._all[context]

    def __init__(self, context: zmq.Context[Any]):
        # a shadow, so that `context.destroy()` in another thread does not close the sockets of this one
        self._context: zmq.Context[Any] = zmq.Context.shadow(context.underlying)
        self._authenticator = zmq.auth.Authenticator(self._context)
        self._monitors: dict[zmq.Socket[bytes], Curve] = {}
        try:
            self._authenticator.start()
        except zmq.ZMQError as error:
            self._authenticator.stop()
            raise InputError(
                f"this ZeroMQ context has another authenticator already ({error.strerror})"
            ) from None
        threading.Thread(target=self._run, name="authenticator", daemon=True).start()

    def guard(self, socket: zmq.Socket[bytes], curve: Curve) -> None:
        """Let `curve` decide who may connect to a socket that is not bound yet."""
        with self._lock:
            number = next(self._numbers)
        domain, place = f"streamvos-{number}", f"inproc://streamvos-monitor-{number}"
        self._authenticator.configure_curve_callback(domain, curve)
        socket.setsockopt_string(zmq.ZAP_DOMAIN, domain)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without an authenticator no client is admitted
        socket.monitor(place, HANDSHAKE_FAILURES | zmq.EVENT_MONITOR_STOPPED)
        monitor: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        monitor.linger = 0
        monitor.rcvhwm = 0  # ZeroMQ's own thread writes to it and must never wait
        monitor.connect(place)
        with self._lock:  # from here on the thread owns the monitor
            self._monitors[monitor] = curve

    def _run(self) -> None:
        import asyncio  # only pipelines with keys need it

        zap, loop = self._authenticator.zap_socket, asyncio.new_event_loop()
        try:
            while True:
                with self._lock:
                    monitors = dict(self._monitors)
                poller = zmq.Poller()
                for socket in (zap, *monitors):
                    poller.register(socket, zmq.POLLIN)
                for socket, _ in poller.poll(_PERIOD_MS):
                    if socket is zap:
                        loop.run_until_complete(self._authenticator.handle_zap_message(zap.recv_multipart()))
                    elif self._note(socket, monitors[socket]):
                        with self._lock:
                            del self._monitors[socket]
                        socket.close()
        except zmq.ZMQError:  # the context ends
            pass
        finally:
            loop.close()
            self._authenticator.stop()
            with self._lock:
                for socket in self._monitors:
                    socket.close()
                self._monitors.clear()

    @staticmethod
    def _note(monitor: zmq.Socket[bytes], curve: Curve) -> bool:
        """Count a failed handshake; returns whether the socket has been closed."""
        event, value = next_event(monitor)
        if event == zmq.EVENT_MONITOR_STOPPED:
            return True
        if event != zmq.EVENT_HANDSHAKE_FAILED_AUTH:  # `Curve.callback` counts these
            curve.denied.count(_CAUSES.get(value, "bad handshake"))
        return False


def next_event(monitor: zmq.Socket[bytes]) -> tuple[int, int]:
    """The next event of a socket's monitor, and its value; `zmq.utils.monitor` would import asyncio."""
    event, value = struct.unpack("=hi", monitor.recv_multipart()[0])
    return event, value


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
    if isinstance(key, str) and _Z85.fullmatch(key.encode()) and not Path(key).exists():
        return key.encode()
    public, _ = _load(key)
    if public is None:
        raise InputError(f"{key} holds no public key; give the file NAME.key of `streamvos keys new`")
    return public


def _load(path: str | Path) -> list[bytes | None]:
    """The public and the secret key in a file, each None if missing."""
    try:
        return [key if key and _Z85.fullmatch(key) else None for key in zmq.auth.load_certificate(path)]
    except OSError as error:
        raise InputError(f"cannot read the key {path}: {error.strerror or 'no such file'}") from None
    except (ValueError, IndexError):  # pyzmq raises both for files that hold no key
        return [None, None]


def check_bind(address: str, curve: Curve | None = None) -> None:
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


def bind(socket: zmq.Socket[Any], address: str, curve: Curve | None = None) -> str:
    """Bind a socket if that is safe: tcp:// with CURVE if keys are given, ipc:// for this user only.

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
