"""Names and addresses that a pipeline may use, checked before anything is bound (docs/protocol.md, 11).

check_name("door")                               # pipelines and streams; also names of folders
check_address("tcp://127.0.0.1:5599")            # what users write: ipc://PATH or tcp://HOST:PORT
is_loopback("tcp://0.0.0.0:5599")                # False: needs CURVE keys
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from pathlib import Path
from zlib import crc32

from streamvos.addresses import redact
from streamvos.types import InputError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Names of pipelines and streams; as a path, a name stays inside its folder."""

_IPC_BYTES = 107  # of the longest path of a unix socket: `sun_path` has 108, one of them the final zero

_TCP = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:/\s\[\]]*):(?P<port>\*|[0-9]{1,5})")


def check_name(name: str) -> str:
    """Check the name of a pipeline or a stream, and return it.

    Raises:
        InputError: it would not fit into topics, logs and names of files.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            "expected a name of 1 to 64 letters, digits, '_', '.' or '-' that begins with a letter or digit, "
            f"got {redact(name)[:80]!r}"
        )
    return name


def check_address(address: str) -> None:
    """Check an address to bind: ipc:// with a path, or tcp:// with a host and a port.

    Raises:
        InputError: it is neither, or the path is abstract or too long.
    """
    transport, _, place = address.partition("://")
    if transport != "ipc":
        split_tcp(address)
    elif not place:
        raise InputError(f'"{address}" has no path; expected ipc:///PATH')
    elif place.startswith("@"):
        raise InputError(
            f'"{address}" is not in the file system, so every user could connect; expected ipc:///PATH'
        )
    else:
        ipc_address(Path(place))


def split_tcp(address: str) -> tuple[str, str]:
    """Host, without brackets, and port of a tcp:// address; the port may be "*".

    Raises:
        InputError: it is no tcp://HOST:PORT.
    """
    match = _TCP.fullmatch(address)
    if match is None or (match["port"] != "*" and not 0 < int(match["port"]) < 65536):
        raise InputError(
            f'"{redact(address)[:200]}" is no address; expected an address such as "tcp://127.0.0.1:5555"'
        )
    return match["host"].strip("[]"), match["port"]


def is_loopback(address: str) -> bool:
    """Whether only this host can reach a tcp:// address: all addresses of its host are loopback ones.

    Raises:
        InputError: it is no tcp://HOST:PORT.
    """
    host, _ = split_tcp(address)
    if host in ("*", ""):
        return False
    try:
        found = {str(one[4][0]) for one in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        return bool(found) and all(ipaddress.ip_address(one).is_loopback for one in found)
    except (OSError, ValueError):  # for example an interface's name: assume the worst
        return False


def frames_address(folder: Path, stream: str) -> str:
    """The address at which a source publishes its frames, in the pipeline's folder.

    A checksum of the name is part of it, since names of streams may be long.
    """
    return ipc_address(folder / f"f{crc32(stream.encode()):08x}")


def ipc_address(path: Path) -> str:
    """The ZeroMQ address of a unix socket.

    Raises:
        InputError: the path is longer than the system allows.
    """
    length = len(os.fsencode(path))
    if length > _IPC_BYTES:
        raise InputError(
            f"the socket {path} has a path of {length} bytes, and the system allows {_IPC_BYTES}; use "
            "shorter names for the pipeline and its streams, or a shorter XDG_RUNTIME_DIR"
        )
    return f"ipc://{path}"
