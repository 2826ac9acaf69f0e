"""Keys, other hosts, and who may reach an address: [security] and [remote]."""

from __future__ import annotations

import ipaddress
import os
import re

from streamvos.addresses import redact
from streamvos.pipeline.config.tables import ConfigPath, Table

LONGEST_SOCKET = 107
"""Bytes of the path of a socket, at most: Linux, unix(7)."""

_TCP = re.compile(r"tcp://(?P<host>\[[^\]]+\]|[^:/\s\[\]]+):(?P<port>\*|\d{1,5})")


class SecurityConfig(Table):
    """CURVE keys, as `streamvos keys new` makes them.

    Attributes:
        secret: file with our secret key.
        clients: folder with the public keys of those who may connect.
    """

    secret: ConfigPath | None = None
    clients: ConfigPath | None = None


class RemoteConfig(Table):
    """A stage that somebody starts by hand with `streamvos stage`, perhaps on another host.

    Attributes:
        host: address under which the other stages reach it, without a port.
    """

    host: str


def check_address(address: str) -> None:
    """It is one that a socket can bind."""
    if address.startswith("ipc://"):
        path = address.removeprefix("ipc://")
        if not path or len(os.fsencode(path)) > LONGEST_SOCKET:
            raise ValueError(f'"{address}": the path of a socket has 1 to {LONGEST_SOCKET} bytes')
        if path.startswith("@"):
            raise ValueError(
                f'"{address}" has no place in the file system, so everybody could connect; give a path'
            )
        return
    check_tcp(address)


def check_tcp(address: str) -> None:
    """It is a tcp:// address with a port."""
    match = _TCP.fullmatch(address)
    if match is None or (match["port"] != "*" and not 0 < int(match["port"]) < 65536):
        raise ValueError(f'expected an address such as "tcp://127.0.0.1:5555", got "{redact(address)}"')


def is_open(address: str) -> bool:
    """Whether an address can be reached from other hosts: tcp:// beyond the loopback."""
    match = _TCP.fullmatch(address)
    if match is None:
        return not address.startswith(("ipc://", "inproc://"))
    host = match["host"].strip("[]")
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, an interface, or "*"
        return True
