"""The gatekeeper of a ZeroMQ context: says which clients' keys are admitted, and counts whom it turned away.

ZeroMQ asks about every client that proved to hold its key at `inproc://zeromq.zap.01` of its own context
(ZAP, RFC 27), so there is one gatekeeper per context, in a thread of its own. Clients that do not even get
that far (no CURVE, another server's key) are known from the sockets' monitors. The thread ends when its
context does.

    allowed = AllowList(Path("clients"), always=(own_key,))
    Gatekeeper.of(context).guard(socket, allowed)       # before the socket is bound
    allowed.denied                                      # RejectionCounter: {"unknown key": 2, "no CURVE": 1}
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import zmq
import zmq.auth
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from streamvos.pipeline.wire.rejections import RejectionCounter
from streamvos.types import InputError

_ADDRESS = "inproc://zeromq.zap.01"
_PERIOD_MS = 200  # after which the thread looks whether it got more sockets to watch
_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_MONITOR_STOPPED
)
_CAUSES = {
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): "no CURVE",
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): "wrong server key",
}


class AllowList:
    """The public keys in a folder of NAME.key files, read again when something in it changes.

    Args:
        folder: None = nobody but those in `always`.
        always: keys that need no file.

    Attributes:
        denied: cause -> clients turned away.
    """

    def __init__(self, folder: Path | None, always: Iterable[bytes] = ()):
        self.folder = folder
        self.denied = RejectionCounter(f"clients of {folder}")
        self._always = dict.fromkeys(always, "self")
        self._keys: dict[bytes, str] = {}
        self._signature: object = None

    def name_of(self, key: bytes) -> str | None:
        """Whose key it is: the name of its file; None if it is not listed.

        Args:
            key: Z85, 40 characters.
        """
        if self.folder is not None:
            with suppress(OSError):  # between two looks a file may vanish; the next one is right
                self._read_again(self.folder)
        return self._keys.get(key) or self._always.get(key)

    def _read_again(self, folder: Path) -> None:
        try:
            with os.scandir(folder) as entries:
                found = sorted(
                    (one.name, one.stat().st_mtime_ns, one.stat().st_size, one.stat().st_ino)
                    for one in entries
                    if one.name.endswith(".key") and one.is_file()
                )
        except OSError:
            self._keys, self._signature = {}, None  # no folder, no friends
            raise
        if found == self._signature:
            return
        keys = {}
        for name, *_ in found:
            try:
                public, _ = zmq.auth.load_certificate(folder / name)
                keys[public] = name.removesuffix(".key")
            except (OSError, ValueError) as error:
                self.denied.count("unreadable key file", f"{name}: {error}")
        self._keys, self._signature = keys, found


class Gatekeeper:
    """Answers ZAP requests of one context."""

    _all: ClassVar[weakref.WeakKeyDictionary[zmq.Context[Any], Gatekeeper]] = weakref.WeakKeyDictionary()
    _lock = threading.Lock()
    _numbers = itertools.count(1)

    @classmethod
    def of(cls, context: zmq.Context[Any]) -> Gatekeeper:
        """The gatekeeper of a context, made when it is first asked for.

        Raises:
            InputError: somebody else answers there already.
        """
        with cls._lock:
            if context not in cls._all:
                cls._all[context] = cls(context)
            return cls._all[context]

    def __init__(self, context: zmq.Context[Any]):
        # a shadow, so that `context.destroy()` in another thread does not close the sockets of this one
        self._context: zmq.Context[Any] = zmq.Context.shadow(context.underlying)
        self._lists: dict[str, AllowList] = {}
        self._monitors: dict[zmq.Socket[bytes], AllowList] = {}
        self._zap: zmq.Socket[bytes] = self._context.socket(zmq.REP)
        self._zap.linger = 0
        try:
            self._zap.bind(_ADDRESS)
        except zmq.ZMQError as error:
            self._zap.close()
            raise InputError(
                f"this ZeroMQ context has another authenticator already ({error.strerror})"
            ) from None
        threading.Thread(target=self._run, name="gatekeeper", daemon=True).start()

    def guard(self, socket: zmq.Socket[bytes], allowed: AllowList) -> None:
        """Admit to a CURVE server those on a list alone; to be called before it is bound."""
        with self._lock:
            number = next(self._numbers)
        domain, place = f"streamvos-{number}", f"inproc://streamvos-monitor-{number}"
        self._lists[domain] = allowed
        socket.setsockopt_string(zmq.ZAP_DOMAIN, domain)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody gets in if there is no gatekeeper
        socket.monitor(place, _FAILURES)
        monitor: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        monitor.linger = 0
        monitor.rcvhwm = 0  # ZeroMQ's own thread writes there, and must never wait
        monitor.connect(place)
        with self._lock:  # from here on it belongs to the gatekeeper's thread
            self._monitors[monitor] = allowed

    def _run(self) -> None:
        try:
            while True:
                with self._lock:
                    monitors = dict(self._monitors)
                poller = zmq.Poller()
                for socket in (self._zap, *monitors):
                    poller.register(socket, zmq.POLLIN)
                ready = [socket for socket, _ in poller.poll(_PERIOD_MS)]
                for socket in ready:
                    if socket is self._zap:
                        self._answer()
                    elif self._note(socket, monitors[socket]):
                        with self._lock:
                            del self._monitors[socket]
                        socket.close()
        except zmq.ZMQError:  # the context ends
            pass
        finally:
            with self._lock:
                for socket in (self._zap, *self._monitors):
                    socket.close()
                self._monitors.clear()

    def _answer(self) -> None:
        request = self._zap.recv_multipart()
        number = request[1] if len(request) > 1 else b""
        code, text, user = b"400", b"not admitted", b""
        if len(request) == 7 and request[0] == b"1.0" and request[5] == b"CURVE" and len(request[6]) == 32:
            allowed = self._lists.get(request[2].decode(errors="replace"))
            name = allowed.name_of(z85.encode(request[6])) if allowed is not None else None
            if name is not None:
                code, text, user = b"200", b"OK", name.encode(errors="replace")[:255]
            elif allowed is not None:
                allowed.denied.count("unknown key", f"from {request[3].decode(errors='replace')}")
        self._zap.send_multipart([b"1.0", number, code, text, user, b""])

    @staticmethod
    def _note(monitor: zmq.Socket[bytes], allowed: AllowList) -> bool:
        """Count what happened; whether the socket has been closed."""
        event = recv_monitor_message(monitor)
        if event["event"] == zmq.EVENT_MONITOR_STOPPED:
            return True
        if event["event"] != zmq.EVENT_HANDSHAKE_FAILED_AUTH:  # that one was counted when we said no
            allowed.denied.count(_CAUSES.get(int(event["value"]), "bad handshake"))
        return False
