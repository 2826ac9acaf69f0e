"""Who may connect: CURVE keys, the list of clients, and what may be bound (docs/protocol.md, 11).

CURVE alone admits everybody who knows the server's public key. So a server of ours asks its gatekeeper about
the key of each client; if no gatekeeper answers, nobody is admitted.

    make_keys("keys", "server")
    make_keys("clients", "laptop")
    curve = Curve("keys/server.key_secret", clients="clients")
    bind(socket, "tcp://0.0.0.0:5599", curve)            # without curve: InputError

    Curve("clients/laptop.key_secret", server_key="keys/server.key").connect(socket)
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket as sockets
import stat
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import zmq

from streamvos.pipeline.wire.gatekeeper import AllowList, Gatekeeper
from streamvos.pipeline.wire.rejections import RejectionCounter
from streamvos.pipeline.wire.runtime import answers, check_name, ipc_address
from streamvos.types import InputError, SinkError

TRANSPORTS = ("ipc", "tcp", "inproc")

_Z85 = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")  # ZeroMQ RFC 32
_KEY_FILE_BYTES = 2**16
_CLOSING_SECONDS = 1.0  # ZeroMQ closes in the background; one that we have just closed may still answer
_HEAD = """\
#   {what}, made {when} by streamvos
#   {advice}

"""


class Curve:
    """Our keys, as server and as client.

    Args:
        secret: our file NAME.key_secret, which nobody else may read.
        clients: folder with the public keys (NAME.key) of those who may connect to us; without it nothing of
            ours is served to other hosts. Our own key is always admitted: a pipeline's stages share one.
        server_key: public key of the server to connect to, a file or the key's 40 characters; None = our own.
        serves_own: without `clients`, serve those who hold our own key, as stages serve each other.

    Attributes:
        public: our public key, Z85.
        denied: cause -> clients that were turned away.

    Raises:
        InputError: a file is missing, no key, or a secret that others can read.
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
        self._allowed: AllowList | None = None
        if clients is not None:
            if not Path(clients).is_dir():
                raise InputError(f"there is no folder {clients} with the public keys of clients")
            self._allowed = AllowList(Path(clients), always=(self.public,))
        elif serves_own:
            self._allowed = AllowList(None, always=(self.public,))

    @property
    def admits(self) -> bool:
        """Whether there is a list of clients, so that something can be served."""
        return self._allowed is not None

    @property
    def denied(self) -> RejectionCounter:
        """Cause -> clients that were turned away."""
        return self._allowed.denied if self._allowed is not None else RejectionCounter("no clients")

    def serve(self, socket: zmq.Socket[Any]) -> None:
        """Make a socket a CURVE server that admits those on the list alone; before it is bound.

        Raises:
            InputError: there is no list.
        """
        if self._allowed is None:
            raise InputError("CURVE needs the folder with the public keys of clients (security.clients)")
        Gatekeeper.of(socket.context).guard(socket, self._allowed)
        socket.curve_server = True
        socket.curve_secretkey = self._secret
        socket.curve_publickey = self.public

    def connect(self, socket: zmq.Socket[Any]) -> None:
        """Make a socket a CURVE client; before it is connected."""
        socket.curve_serverkey = self._server
        socket.curve_secretkey = self._secret
        socket.curve_publickey = self.public


def make_keys(folder: str | Path, name: str) -> tuple[Path, Path]:
    """Make a pair of keys, in the certificates' form of ZeroMQ that pyzmq and czmq read too.

    Args:
        folder: made if missing, for its owner alone.
        name: of the two files: NAME.key (public) and NAME.key_secret (mode 0600).

    Returns:
        Paths of the public and the secret file.

    Raises:
        InputError: the name is none, or there are such files already.
        SinkError: they cannot be written.
    """
    check_name(name)
    folder = Path(folder)
    public_path, secret_path = folder / f"{name}.key", folder / f"{name}.key_secret"
    for path in (public_path, secret_path):
        if path.exists() or path.is_symlink():
            raise InputError(f"{path} is there already; choose another name, keys are never replaced")
    public, secret = (key.decode() for key in zmq.curve_keypair())
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    open_head = _HEAD.format(what="ZeroMQ CURVE public key", when=when, advice="May be given to anybody.")
    closed_head = _HEAD.format(
        what="ZeroMQ CURVE SECRET key", when=when, advice="Stays with its owner; never copy it."
    )
    body = f'metadata\ncurve\n    public-key = "{public}"\n'
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_new(secret_path, f'{closed_head}{body}    secret-key = "{secret}"\n', 0o600)
        _write_new(public_path, open_head + body, 0o644)
    except OSError as error:
        raise SinkError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    return public_path, secret_path


def read_secret_key(path: str | Path) -> tuple[bytes, bytes]:
    """Our own pair of keys from NAME.key_secret.

    Returns:
        The public and the secret key, Z85.

    Raises:
        InputError: no such file, not a pair of keys, or others can read it.
    """
    values = _read_key_file(Path(path))
    public, secret = values.get("public-key"), values.get("secret-key")
    if public is None or secret is None:
        raise InputError(f"{path} holds no secret key; give the file NAME.key_secret of `streamvos keys new`")
    if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        raise InputError(f"others can read the secret key {path}; `chmod 600 {path}`, or make new keys")
    if zmq.curve_public(secret.encode()) != public.encode():
        raise InputError(f"the public and the secret key in {path} do not belong together; make new keys")
    return public.encode(), secret.encode()


def read_public_key(key: str | Path) -> bytes:
    """A public key, Z85, from a file (NAME.key or NAME.key_secret) or from its 40 characters.

    Raises:
        InputError: it is neither.
    """
    if isinstance(key, str) and _Z85.fullmatch(key) and not Path(key).exists():
        return key.encode()
    public = _read_key_file(Path(key)).get("public-key")
    if public is None:
        raise InputError(f"{key} holds no public key; give the file NAME.key of `streamvos keys new`")
    return public.encode()


def check_bind(address: str, curve: Curve | None = None) -> None:
    """Refuse to serve where somebody might come who must not.

    Allowed are inproc://, ipc:// with a path, tcp:// at the loopback, and other tcp:// with keys and a list
    of clients.

    Raises:
        InputError: everything else.
    """
    transport, separator, place = address.partition("://")
    if not separator or transport not in TRANSPORTS or not place:
        raise InputError(
            f"cannot serve at {_shown(address)}; expected ipc://PATH, tcp://HOST:PORT or inproc://NAME"
        )
    if transport == "ipc":
        if place.startswith("@"):
            raise InputError(
                f"{address} has no place in the file system, so everybody could connect; give a path"
            )
        ipc_address(Path(place))
    if transport == "tcp" and not is_loopback(address) and (curve is None or not curve.admits):
        raise InputError(
            f"{_shown(address)} can be reached from other hosts, so it needs CURVE keys and a list of "
            "clients (security.secret and security.clients; `streamvos keys new` makes keys); or serve at "
            "tcp://127.0.0.1:PORT"
        )


def is_loopback(address: str) -> bool:
    """Whether a tcp:// address is this host's alone, whatever its name stands for.

    Raises:
        InputError: it is no tcp://HOST:PORT.
    """
    host, colon, port = address.removeprefix("tcp://").rpartition(":")
    if not address.startswith("tcp://") or not colon or not (port == "*" or _is_port(port)):
        raise InputError(f"{_shown(address)} is no address; expected tcp://HOST:PORT, PORT 1 to 65535 or *")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if host in ("*", ""):
        return False
    try:
        found = {str(one[4][0]) for one in sockets.getaddrinfo(host, None, type=sockets.SOCK_STREAM)}
        return bool(found) and all(ipaddress.ip_address(one).is_loopback for one in found)
    except (OSError, ValueError, UnicodeError):  # an interface's name, for instance; rather too careful
        return False


def bind(socket: zmq.Socket[Any], address: str, curve: Curve | None = None) -> str:
    """Serve at an address, if that is safe: with CURVE on tcp:// where keys are given, and for us alone on ipc://.

    Returns:
        The address with its port, where the system chose one.

    Raises:
        InputError: as `check_bind`; or somebody serves there already, or a file is in the way.
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
        raise InputError(f"cannot serve at {_shown(address)}: {error.strerror}") from None
    if path is not None:
        with suppress(OSError):  # its folder keeps others out as well
            path.chmod(0o600)
    return socket.getsockopt_string(zmq.LAST_ENDPOINT)


def _check_free(path: Path) -> None:
    """ZeroMQ removes whatever is at the path of a socket that it binds; so look before."""
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
    while answers(path) and time.monotonic() < deadline:
        time.sleep(0.02)
    if answers(path):
        raise InputError(f"somebody serves at ipc://{path} already; choose another address")


def _read_key_file(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            text = file.read(_KEY_FILE_BYTES).decode("utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"cannot read the key {path}: {error.strerror}") from None
    values = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        value = value.strip().strip("\"'")
        if equals and name.strip() in ("public-key", "secret-key") and _Z85.fullmatch(value):
            values[name.strip()] = value
    return values


def _write_new(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536


def _shown(address: str) -> str:
    if "@" not in address and "?" not in address:
        return address[:200]
    from streamvos.addresses import redact  # brings much with it that nobody else here needs

    return redact(address)[:200]
