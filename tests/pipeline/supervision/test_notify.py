"""The protocol of sd_notify(3), against a socket of the test's own."""

from __future__ import annotations

import os
import secrets
import socket

import pytest

from streamvos.pipeline.supervision.notify import Notifier, count_states
from streamvos.types import InputError


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A service manager's socket, and what it calls its address."""
    address = f"@streamvos-{secrets.token_hex(4)}" if request.param == "abstract" else str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        one.setblocking(False)
        yield one, address


def received(manager: socket.socket) -> list[str]:
    found = []
    try:
        while True:
            found.append(manager.recv(4096).decode())
    except BlockingIOError:
        return found


def test_what_is_sent_and_when(manager):
    socket_, address = manager
    with Notifier(address, watchdog_seconds=10.0) as notifier:
        notifier.ready()
        notifier.alive(100.0, "1 stream: 1 starting")
        notifier.alive(104.9, "1 stream: 1 starting")
        assert received(socket_) == ["READY=1", "WATCHDOG=1\nSTATUS=1 stream: 1 starting"]
        notifier.alive(105.0, "1 stream: 1 starting")
        notifier.alive(106.0, "1 stream: 1 running")
        notifier.stopping()
        assert received(socket_) == ["WATCHDOG=1", "STATUS=1 stream: 1 running", "STOPPING=1"]


def test_the_environment_says_where_and_is_cleared_for_children(manager, monkeypatch):
    socket_, address = manager
    values = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": str(os.getpid())}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with Notifier.from_environment() as notifier:
        assert not values.keys() & os.environ.keys()
        for now in (0.0, 0.9, 1.0):
            notifier.alive(now, "")
    assert received(socket_) == ["WATCHDOG=1", "WATCHDOG=1"]


def test_a_watchdog_of_another_process_is_not_ours(manager, monkeypatch):
    socket_, address = manager
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    with Notifier.from_environment() as notifier:
        notifier.alive(0.0, "")
    assert received(socket_) == []


def test_nobody_waits_for_a_manager_that_is_gone_or_reads_nothing(manager):
    socket_, address = manager
    with Notifier(address) as notifier:
        for number in range(5000):  # more than a socket's queue holds
            notifier.alive(0.0, f"{number}")
        socket_.close()
        notifier.stopping()
    with Notifier("") as nobody:
        nobody.ready()


def test_an_address_that_is_no_unix_socket_is_refused():
    with pytest.raises(InputError, match="vsock:2:1234"):
        Notifier("vsock:2:1234")


def test_states_are_counted():
    assert count_states(["running", "waiting", "running"]) == "3 streams: 2 running, 1 waiting"
    assert count_states([]) == "0 streams"
