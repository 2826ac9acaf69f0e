"""Who may connect to the sockets of a ZeroMQ context: clients with listed keys, and not too many at a time.

    guard(socket, refused)                 # before it is bound
    guard(socket, refused, curve)          # with CURVE: only clients that `curve` admits

ZeroMQ accepts every connection, and aborts the process when a unix socket finds no descriptor left. A thread
of each context therefore follows the connections of its guarded sockets by their monitors, and shuts those
beyond a number; ZeroMQ itself drops connections whose handshake takes too long. Nor does ZeroMQ bound the
parts of a message, which it keeps until the last one has come: if this process grows too fast, the thread
shuts the connections that are sending. The same thread runs pyzmq's
authenticator. pyzmq's own `ThreadAuthenticator` is not used, for two reasons: it does not see clients that
fail before their key is known (no CURVE, another server's key), which only monitors report; and its sockets
keep their context from ending. This thread ends with its context, and with nothing else.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import resource
import socket as sockets
import struct
import termios
import threading
import time
import weakref
from array import array
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import zmq
import zmq.auth

from streamvos.pipeline.wire.messages import RejectionCounter
from streamvos.types import InputError

HANDSHAKE_MS = 5000
"""Within so many milliseconds a new connection must have made itself known."""

HANDSHAKE_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
"""Events of a socket's monitor."""

_EVENTS = HANDSHAKE_FAILURES | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_MONITOR_STOPPED
_CAUSES = {
    int(zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH): "no CURVE",
    int(zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC): "wrong server key",
}
GROWTH_BYTES = 2**30
"""By so much this process may grow while clients are connected; they are to send far less."""

_WATCH_MS = 100
_SAMPLES = 5  # how often a connection is looked at, to find out whether it is sending
_WANTED_DESCRIPTORS = 65536
_AT_ONCE = 256  # events of one socket
_SHARE = 8  # one socket gets an eighth of this process's descriptors for its connections


class Admits(Protocol):
    """Decides about clients' keys; see `streamvos.pipeline.wire.security.Curve`."""

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether to admit a client with this public key (Z85)."""


def raise_descriptor_limit() -> None:
    """Let this process and its children open as many files and connections as the system allows them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _WANTED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections() -> int:
    """How many connections a guarded socket may have at a time: a share of this process's descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1024 if soft == resource.RLIM_INFINITY else min(max(soft // _SHARE, 8), 1024)


def guard(socket: zmq.Socket[Any], refused: RejectionCounter, curve: Admits | None = None) -> None:
    """Limit who connects to a socket that is not bound yet.

    Args:
        socket: it gets a ZAP domain if there is a `curve`, but its keys are set by the caller.
        refused: counts the connections that are refused, by cause.
        curve: decides about keys; without it everybody is admitted who reaches the socket.

    Raises:
        InputError: the context has another authenticator.
    """
    _Admission.of(socket.context).guard(socket, refused, curve)


def next_event(monitor: zmq.Socket[bytes]) -> tuple[int, int, str]:
    """The next event of a socket's monitor, its value and endpoint; `zmq.utils.monitor` imports asyncio."""
    packed, endpoint = monitor.recv_multipart()
    event, value = struct.unpack("=hi", packed)
    return event, value, endpoint.decode(errors="replace")


@dataclass(eq=False, slots=True)
class _Guarded:
    """A socket whose connections are followed."""

    refused: RejectionCounter
    has_keys: bool
    most: int
    connections: dict[int, str] = field(default_factory=dict)  # descriptor -> where it arrived; oldest first

    def note(self, event: int, value: int, endpoint: str) -> None:
        """Follow connections and count failures."""
        if event == zmq.EVENT_ACCEPTED:
            self.connections[value] = endpoint
        elif event == zmq.EVENT_DISCONNECTED:
            self.connections.pop(value, None)
        elif self.has_keys and event != zmq.EVENT_HANDSHAKE_FAILED_AUTH:  # the callback counts these
            self.refused.count(_CAUSES.get(value, "bad handshake"))

    def shut_senders(self, all_of_them: bool) -> int:
        """Refuse the connections that have sent more than was read, or all; returns their number."""
        found = [one for one in self.connections.items() if all_of_them or _is_sending(one[0])]
        for descriptor, endpoint in found:
            _shut(descriptor, endpoint)
            self.refused.count("too much memory")
        return len(found)

    def shut_surplus(self) -> None:
        """Refuse the newest connections of those that are too many."""
        while len(self.connections) > self.most:
            descriptor, endpoint = self.connections.popitem()
            _shut(descriptor, endpoint)
            self.refused.count("too many connections")


class _Admission:
    """The guarded sockets of one context, and the thread that follows them."""

    _all: ClassVar[weakref.WeakKeyDictionary[zmq.Context[Any], _Admission]] = weakref.WeakKeyDictionary()
    _lock = threading.Lock()
    _numbers = itertools.count(1)

    @classmethod
    def of(cls, context: zmq.Context[Any]) -> _Admission:
        """The one of a context, started on first use."""
        with cls._lock:
            if context not in cls._all:
                cls._all[context] = cls(context)
            return cls._all[context]

    def __init__(self, context: zmq.Context[Any]):
        # a shadow, so that `context.destroy()` in another thread does not close the sockets of this one
        self._context: zmq.Context[Any] = zmq.Context.shadow(context.underlying)
        self._authenticator: zmq.auth.Authenticator | None = None
        self._guarded: dict[zmq.Socket[bytes], _Guarded] = {}
        self._news = f"inproc://streamvos-admission-{next(self._numbers)}"
        self._failures = RejectionCounter("admission of clients")
        self._grown_from = 0  # bytes of this process when the first connection came
        listener = self._context.socket(zmq.PULL)
        listener.bind(self._news)
        threading.Thread(target=self._run, args=(listener,), name="admission", daemon=True).start()

    def guard(self, socket: zmq.Socket[Any], refused: RejectionCounter, curve: Admits | None) -> None:
        """See the function `guard`."""
        with self._lock:
            number = next(self._numbers)
            if curve is not None:
                self._authenticate(f"streamvos-{number}", curve)
        if curve is not None:
            socket.setsockopt_string(zmq.ZAP_DOMAIN, f"streamvos-{number}")
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without an authenticator no client is admitted
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        place = f"inproc://streamvos-monitor-{number}"
        socket.monitor(place, _EVENTS)
        monitor: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        monitor.linger = 0
        monitor.rcvhwm = 0  # ZeroMQ's own thread writes to it and must never wait
        monitor.connect(place)
        with self._lock:  # from here on the thread owns the monitor
            self._guarded[monitor] = _Guarded(refused, curve is not None, most_connections())
        self._tell()

    def _authenticate(self, domain: str, curve: Admits) -> None:
        """Let `curve` decide about the clients of a domain."""
        if self._authenticator is None:
            authenticator = zmq.auth.Authenticator(self._context)
            try:
                authenticator.start()
            except zmq.ZMQError as error:
                authenticator.stop()
                raise InputError(
                    f"this ZeroMQ context has another authenticator already ({error.strerror})"
                ) from None
            self._authenticator = authenticator
        self._authenticator.configure_curve_callback(domain, curve)

    def _tell(self) -> None:
        """Make the thread look at the guarded sockets again."""
        with self._context.socket(zmq.PUSH) as teller:
            teller.linger = 1000
            teller.connect(self._news)
            teller.send(b"")

    def _run(self, listener: zmq.Socket[bytes]) -> None:
        with listener:
            while True:
                try:
                    self._turn(listener)
                except zmq.ZMQError as error:
                    if error.errno in (zmq.ETERM, zmq.ENOTSOCK):  # the context ends
                        break
                    self._failures.count("ZeroMQ's error", error)
                except Exception as error:  # one client's, or one file's; the others still want in
                    self._failures.count("error", f"{type(error).__name__}: {error}")
        if self._authenticator is not None:
            self._authenticator.stop()
        with self._lock:
            for monitor in self._guarded:
                monitor.close()
            self._guarded.clear()

    def _turn(self, listener: zmq.Socket[bytes]) -> None:
        """Wait for something to happen, and handle it."""
        with self._lock:
            guarded: Mapping[zmq.Socket[bytes], _Guarded] = dict(self._guarded)
            zap = None if self._authenticator is None else self._authenticator.zap_socket
        poller = zmq.Poller()
        for one in (listener, *guarded, *(() if zap is None else (zap,))):
            poller.register(one, zmq.POLLIN)
        is_used = any(one.connections for one in guarded.values())
        ready = dict(poller.poll(_WATCH_MS if is_used else None))
        self._watch_memory(guarded.values() if is_used else ())
        if listener in ready:
            listener.recv()
        for monitor in guarded.keys() & ready.keys():
            self._follow(monitor, guarded[monitor])
        if zap is not None and zap in ready:
            self._admit(zap)

    def _watch_memory(self, guarded: Collection[_Guarded]) -> None:
        """Shut connections that make this process grow; it may have other reasons to grow, slowly."""
        if not guarded:
            self._grown_from = 0
            return
        size = _resident()
        self._grown_from = min(self._grown_from or size, size)
        if size - self._grown_from > GROWTH_BYTES:
            # unfinished messages may also come from clients that have paused
            if not sum(one.shut_senders(all_of_them=False) for one in guarded):
                sum(one.shut_senders(all_of_them=True) for one in guarded)
            time.sleep(_WATCH_MS * 1e-3)  # ZeroMQ frees what they have sent
            _give_memory_back()
            self._grown_from = _resident()

    def _admit(self, zap: zmq.Socket[bytes]) -> None:
        """Answer a question about a client (ZeroMQ RFC 27)."""
        assert self._authenticator is not None
        parts = zap.recv_multipart()
        handling = self._authenticator.handle_zap_message(parts)
        try:
            with suppress(StopIteration):  # it never waits, so it needs no event loop
                handling.send(None)
        except Exception:
            with suppress(zmq.ZMQError):  # without an answer, no further question would come
                zap.send_multipart([b"1.0", b"".join(parts[1:2]), b"500", b"error", b"", b""])
            raise

    def _follow(self, monitor: zmq.Socket[bytes], guarded: _Guarded) -> None:
        """Take the events of a socket's monitor."""
        for _ in range(_AT_ONCE):
            if not monitor.poll(0):
                break
            event, value, endpoint = next_event(monitor)
            if event == zmq.EVENT_MONITOR_STOPPED:  # the socket is closed
                with self._lock:
                    del self._guarded[monitor]
                monitor.close()
                return
            guarded.note(event, value, endpoint)
        guarded.shut_surplus()


def _shut(descriptor: int, endpoint: str) -> None:
    """End a connection that has arrived at an endpoint of this process; ZeroMQ then closes the descriptor."""
    with suppress(OSError):  # it has ended by itself
        connection = sockets.socket(fileno=descriptor)
        try:
            own = connection.getsockname()
            place = own if isinstance(own, str) else str(own[1])
            # the number may belong to something else by now
            if place and endpoint.endswith(place):
                # reset it when it is closed; a sender that waits for room would not notice the mere end
                connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(sockets.SHUT_RDWR)
        finally:
            connection.detach()


def _is_sending(descriptor: int) -> bool:
    """Whether bytes wait to be read from a connection whenever one looks."""
    for sample in range(_SAMPLES):
        time.sleep(0.005 if sample else 0)
        waiting = array("i", [0])
        try:
            fcntl.ioctl(descriptor, termios.FIONREAD, waiting)
        except OSError:
            return False
        if not waiting[0]:
            return False
    return True


def _resident() -> int:
    """Resident bytes of this process; 0 if no descriptor is left to read them with."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _give_memory_back() -> None:
    """Return freed memory to the system, or this process would seem to be as large as before."""
    with suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
