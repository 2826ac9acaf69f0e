"""Tells systemd how the service is: ready, alive, stopping, and a line for `systemctl status`.

    with Notifier.from_environment() as notifier:
        notifier.ready()
        notifier.alive(now, "2 streams: 1 running, 1 waiting")     # many times a second
        notifier.stopping()

The protocol of sd_notify(3) and sd_watchdog_enabled(3): datagrams to the socket that $NOTIFY_SOCKET names,
with `WATCHDOG=1` at least every $WATCHDOG_USEC. Without a service manager nothing is sent. A datagram that
cannot be sent is left out: a service must not depend on who watches it.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from streamvos.types import InputError


class Notifier:
    """Sends the states of one service.

    Args:
        address: a path, or the name of an abstract socket with "@" for its zero byte; "" sends nothing.
        watchdog_seconds: the service counts as hung after so long without a sign of life; 0 = no watchdog.

    Raises:
        InputError: the address is no unix socket's.
    """

    def __init__(self, address: str = "", watchdog_seconds: float = 0.0):
        if address and address[0] not in "/@":
            raise InputError(
                f"NOTIFY_SOCKET is {address!r}; expected an absolute path, or @NAME of an abstract socket"
            )
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._interval = watchdog_seconds / 2  # as sd_watchdog_enabled(3) recommends
        self._alive_at = float("-inf")
        self._text = ""
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)  # a full queue must not hold up the caller

    @classmethod
    def from_environment(cls) -> Notifier:
        """For the service manager that started this process; the variables are removed for its children.

        Raises:
            InputError: NOTIFY_SOCKET is no unix socket's address.
        """
        address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        ours = pid in ("", str(os.getpid())) and microseconds.isdecimal()
        return cls(address, int(microseconds) / 1e6 if ours else 0.0)

    def ready(self) -> None:
        """The service does its work now."""
        self._send("READY=1")

    def alive(self, now: float, text: str) -> None:
        """The service is alive.

        Args:
            now: monotonic seconds.
            text: what it does, in a line; sent when it changes.
        """
        lines = []
        if self._interval and now >= self._alive_at + self._interval:
            self._alive_at = now
            lines.append("WATCHDOG=1")
        if text != self._text:
            self._text = text
            lines.append(f"STATUS={text}")
        if lines:
            self._send("\n".join(lines))

    def stopping(self) -> None:
        """The service ends."""
        self._send("STOPPING=1")

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Notifier:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _send(self, text: str) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto(text.encode(), self._address)


def count_states(states: Iterable[str]) -> str:
    """Streams by state in a line, such as "3 streams: 2 running, 1 waiting"."""
    counts = Counter(states)
    total = counts.total()
    each = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    return f"{total} stream{'' if total == 1 else 's'}{': ' if each else ''}{each}"
