"""Who gets in: keys, lists, folders and addresses."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import zmq
import zmq.auth
from pipeline.raw_client import RawClient, RawSubscriber
from pipeline.small_server import (
    SESSION,
    Recorder,
    make_frame,
    make_header,
    make_result,
    serving,
    short_folder,
)

from streamvos.pipeline.clients.publishing import Publisher
from streamvos.pipeline.wire import admission
from streamvos.pipeline.wire.endpoints import ipc_address, is_loopback
from streamvos.pipeline.wire.runtime import Runtime, _bases, find_control, live_pipelines, runtime_folder
from streamvos.pipeline.wire.security import (
    Curve,
    bind,
    check_bind,
    make_keys,
    read_public_key,
    read_secret_key,
)
from streamvos.types import InputError

BASES = "streamvos.pipeline.wire.runtime._bases"


@pytest.fixture
def keys(tmp_path):
    """Folder with server.key_secret, friend.key_secret and stranger.key_secret; clients/ lists the friend."""
    for name in ("server", "friend", "stranger"):
        make_keys(tmp_path, name)
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "friend.key").write_bytes((tmp_path / "friend.key").read_bytes())
    return tmp_path


@pytest.fixture
def home(monkeypatch):
    """A short XDG_RUNTIME_DIR."""
    with short_folder() as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
        yield folder


def server_curve(keys):
    return Curve(keys / "server.key_secret", clients=keys / "clients")


def as_client(keys, name):
    public, secret = read_secret_key(keys / f"{name}.key_secret")
    return public, secret, read_public_key(keys / "server.key")


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# keys


def test_keys_are_made_once_and_read_by_pyzmq(tmp_path):
    public_path, secret_path = make_keys(tmp_path / "keys", "laptop")
    assert stat.S_IMODE(secret_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(secret_path.parent.stat().st_mode) == 0o700
    public, secret = zmq.auth.load_certificate(secret_path)
    assert (public, secret) == read_secret_key(secret_path)
    assert zmq.auth.load_certificate(public_path) == (public, None)
    assert read_public_key(public_path) == read_public_key(public.decode()) == public
    assert secret not in public_path.read_bytes()
    before = secret_path.read_bytes()
    with pytest.raises(InputError, match="is there already"):
        make_keys(tmp_path / "keys", "laptop")
    assert secret_path.read_bytes() == before
    for name in ("", "../up", "a/b", "-x", "x" * 65):
        with pytest.raises(InputError, match="expected a name"):
            make_keys(tmp_path, name)


def test_keys_that_pyzmq_made_are_read(tmp_path):
    public_path, secret_path = zmq.auth.create_certificates(tmp_path, "other")
    os.chmod(secret_path, 0o600)
    assert read_secret_key(secret_path) == zmq.auth.load_certificate(secret_path)
    assert read_public_key(public_path) == zmq.auth.load_certificate(public_path)[0]


def test_files_that_hold_no_key_are_refused(keys):
    with pytest.raises(InputError, match="no secret key"):
        read_secret_key(keys / "server.key")
    with pytest.raises(InputError, match="cannot read"):
        read_secret_key(keys / "nobody.key_secret")
    (keys / "noise.key").write_bytes(np.random.default_rng(0).bytes(500))
    with pytest.raises(InputError, match="no public key"):
        read_public_key(keys / "noise.key")
    os.chmod(keys / "server.key_secret", 0o640)
    with pytest.raises(InputError, match="chmod 600"):
        read_secret_key(keys / "server.key_secret")
    text = (keys / "friend.key_secret").read_text()
    other = read_public_key(keys / "stranger.key").decode()
    mixed = keys / "mixed.key_secret"
    mixed.write_text(text.replace(read_public_key(keys / "friend.key").decode(), other))
    mixed.chmod(0o600)
    with pytest.raises(InputError, match="do not belong together"):
        read_secret_key(mixed)


# who is admitted


def test_a_listed_client_is_served_and_no_other(keys):
    curve, recorder = server_curve(keys), Recorder()
    with short_folder() as folder, serving(f"ipc://{folder}/c", recorder, "tcp://127.0.0.1:*", curve) as loop:
        address = loop.server.endpoints[1]
        with RawClient(address, curve=as_client(keys, "friend")) as friend:
            assert friend.request("status")["ok"] is True
        assert not curve.denied

        public, secret, _ = as_client(keys, "friend")
        wrong = public, secret, read_public_key(keys / "stranger.key")
        for credentials in (as_client(keys, "stranger"), None, wrong):
            before = sum(curve.denied.values())
            with RawClient(address, seconds=0.3, curve=credentials) as client:
                client.send("pause", "front")
                with pytest.raises(TimeoutError):
                    client.receive()
                until(lambda before=before: sum(curve.denied.values()) > before)
        # who hangs up first decides whether ZeroMQ tells why a handshake failed
        assert curve.denied["unknown key"] == 1
        assert set(curve.denied) <= {"unknown key", "no CURVE", "wrong server key", "bad handshake"}
        with RawClient(f"ipc://{folder}/c") as local:  # the socket in the folder needs no keys
            assert local.request("status")["ok"] is True
    assert ("pause", "front") not in recorder.calls


def test_the_list_is_read_again_when_it_changes(keys):
    curve = server_curve(keys)
    with (
        short_folder() as folder,
        serving(f"ipc://{folder}/c", Recorder(), "tcp://127.0.0.1:*", curve) as loop,
    ):

        def is_admitted(name):
            with RawClient(loop.server.endpoints[1], seconds=0.5, curve=as_client(keys, name)) as client:
                try:
                    return client.request("status")["ok"]
                except TimeoutError:
                    return False

        assert is_admitted("friend")
        assert not is_admitted("stranger")
        (keys / "clients" / "stranger.key").write_bytes((keys / "stranger.key").read_bytes())
        (keys / "clients" / "noise.key").write_bytes(b"\xff" * 100)
        os.mkfifo(keys / "clients" / "pipe.key")  # reading it would block
        assert is_admitted("stranger")
        (keys / "clients" / "friend.key").unlink()
        assert not is_admitted("friend")
        assert is_admitted("server")  # whoever has our own secret is us
        shutil.rmtree(keys / "clients")
        assert not is_admitted("stranger")
        assert is_admitted("server")


def test_masks_go_to_listed_subscribers_alone(keys):
    curve = server_curve(keys)
    context = zmq.Context()
    try:
        with Publisher(context, "tcp://127.0.0.1:*", "front", SESSION, curve) as publisher:
            stranger = RawSubscriber(
                publisher.endpoint, "raw", seconds=0.3, curve=as_client(keys, "stranger")
            )
            with (
                stranger,
                RawSubscriber(publisher.endpoint, "rle", curve=as_client(keys, "friend")) as friend,
            ):
                until(lambda: "rle" in publisher.forms and curve.denied["unknown key"] >= 1)
                mask = np.eye(24, 40, dtype=np.uint8)
                publisher.publish(make_frame(), make_result(mask), make_header(0))
                assert np.array_equal(friend.receive()[1], mask)
                with pytest.raises(TimeoutError):
                    stranger.receive()
                assert publisher.forms == ("rle",)
    finally:
        context.destroy(linger=0)


def test_without_an_authenticator_nobody_gets_in(keys):
    """Should its thread be gone, the server is closed rather than open."""
    curve = server_curve(keys)
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.linger = 0
    socket.setsockopt_string(zmq.ZAP_DOMAIN, "streamvos-1")
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    socket.curve_server = True
    socket.curve_publickey, socket.curve_secretkey = read_secret_key(keys / "server.key_secret")
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    with RawClient(f"tcp://127.0.0.1:{port}", seconds=0.5, curve=as_client(keys, "friend")) as client:
        client.send("status")
        assert not socket.poll(500)
    socket.close()
    context.term()
    assert curve.admits


def test_contexts_end_with_their_authenticators(keys):
    """Again and again, in one process: no thread and no descriptor is left."""
    import threading

    def once():
        context = zmq.Context()
        socket = context.socket(zmq.ROUTER)
        bind(socket, "tcp://127.0.0.1:*", server_curve(keys))
        socket.close(linger=0)
        context.term()

    def authenticators():
        return sum(one.name == "admission" for one in threading.enumerate())

    once()
    until(lambda: authenticators() == 0)
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for _ in range(10):
        once()
    until(lambda: authenticators() == 0)
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) <= before


def test_connections_may_come_and_go_by_the_hundred(keys):
    curve = server_curve(keys)
    with (
        short_folder() as folder,
        serving(f"ipc://{folder}/c", Recorder(), "tcp://127.0.0.1:*", curve) as loop,
    ):
        host, _, port = loop.server.endpoints[1].removeprefix("tcp://").rpartition(":")
        import socket

        rng = np.random.default_rng(0)
        for _ in range(200):
            with socket.create_connection((host, int(port))) as noise:
                noise.sendall(rng.bytes(int(rng.integers(1, 200))))
        with RawClient(loop.server.endpoints[1], curve=as_client(keys, "friend")) as friend:
            assert friend.request("status")["ok"] is True
        assert len(curve.denied) < 6


def test_a_file_that_holds_no_key_is_one_warning_and_one_client_less(keys, caplog):
    clients = keys / "clients"
    bad = {
        "short": b'public-key "abc"\n',
        "unquoted": b"public-key = abc\n",
        "noise": b"\xff" * 100,
        "too-large": b'public-key = "' + b"#" * 40 + b'"',  # groups of Z85 that are no 32 bits
        "empty": b"",
    }
    for name, content in bad.items():
        (clients / f"{name}.key").write_bytes(content)
    (clients / "loop.key").symlink_to("loop.key")
    (clients / "folder.key").mkdir()
    os.mkfifo(clients / "pipe.key")
    curve = server_curve(keys)
    warned = [one.getMessage() for one in caplog.records]
    for name, text in zip(sorted((*bad, "loop", "folder", "pipe")), warned, strict=True):
        assert f"{name}.key" in text
    with (
        short_folder() as folder,
        serving(f"ipc://{folder}/c", Recorder(), "tcp://127.0.0.1:*", curve) as loop,
    ):
        for _ in range(3):
            with RawClient(loop.server.endpoints[1], curve=as_client(keys, "friend")) as friend:
                assert friend.request("status")["ok"] is True
    assert len(caplog.records) == len(warned)


def test_an_error_of_the_authenticator_costs_one_client(keys, monkeypatch):
    curve = server_curve(keys)
    answers = iter([ZeroDivisionError(), zmq.ZMQError(zmq.EINVAL)])

    def listed(self, warn=True):
        for error in answers:
            raise error
        return {read_public_key(keys / "friend.key")}

    monkeypatch.setattr(Curve, "_listed", listed)
    with (
        short_folder() as folder,
        serving(f"ipc://{folder}/c", Recorder(), "tcp://127.0.0.1:*", curve) as loop,
    ):
        for answered in (False, False, True):
            with RawClient(loop.server.endpoints[1], seconds=0.5, curve=as_client(keys, "friend")) as friend:
                friend.send("status")
                assert bool(friend.socket.poll(15000 if answered else 300)) is answered
            with RawClient(f"ipc://{folder}/c") as local:  # everybody else goes on
                assert local.request("status")["ok"] is True


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_idle_connections_are_few_and_end(keys, monkeypatch, transport):
    """They need no key to be opened."""
    import socket

    monkeypatch.setattr(admission, "most_connections", lambda: 8)
    monkeypatch.setattr(admission, "HANDSHAKE_MS", 500)
    curve, recorder = server_curve(keys), Recorder()
    with short_folder() as folder, serving(f"ipc://{folder}/c", recorder, "tcp://127.0.0.1:*", curve) as loop:
        host, _, port = loop.server.endpoints[1].removeprefix("tcp://").rpartition(":")
        credentials = as_client(keys, "friend") if transport == "tcp" else None
        with RawClient(loop.server.endpoints[transport == "tcp"], 20, credentials) as before:
            assert before.request("status")["ok"] is True
            idle = []
            for _ in range(40):
                idle.append(socket.socket(socket.AF_INET if transport == "tcp" else socket.AF_UNIX))
                idle[-1].connect((host, int(port)) if transport == "tcp" else f"{folder}/c")
            refused = curve.denied if transport == "tcp" else loop.server.refused
            until(lambda: refused["too many connections"] >= 40 - 7)
            assert before.request("status")["ok"] is True  # who was there stays
        with RawClient(loop.server.endpoints[transport == "tcp"], 20, credentials) as after:
            assert after.request("status")["ok"] is True
        for one in idle:  # none is left open
            one.settimeout(20)
            with suppress(ConnectionError):
                while one.recv(100):
                    pass
            one.close()


SERVER = """
import sys, zmq
from streamvos.pipeline.wire import admission
from streamvos.pipeline.wire.messages import RejectionCounter
from streamvos.pipeline.wire.security import bind
admission.GROWTH_BYTES = 2**26
context, refused = zmq.Context(), RejectionCounter("test")
local, tcp = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
bind(local, sys.argv[1], None, refused)
print(bind(tcp, "tcp://127.0.0.1:*", None, refused), flush=True)
local.send_multipart(local.recv_multipart())
local.close(500)
"""


@contextmanager
def echo_once(descriptors):
    """A process that answers one message at an ipc address, then ends; yields it and both addresses."""
    import resource

    limits = (descriptors, descriptors)
    with short_folder() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVER, f"ipc://{folder}/local"],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits),
        )
        try:
            assert process.stdout is not None
            yield process, f"ipc://{folder}/local", process.stdout.readline().strip()
            context: zmq.Context = zmq.Context()
            with context.socket(zmq.DEALER) as client:
                client.linger = 0
                client.connect(f"ipc://{folder}/local")
                client.send(b"hello")
                assert client.poll(20000)
            context.term()
            assert process.wait(20) == 0
        finally:
            process.kill()
            process.wait()


def is_open(connection) -> bool:
    """Whether the other side has neither ended nor reset a connection; what it has sent is thrown away."""
    connection.setblocking(False)
    try:
        while connection.recv(1000):
            pass
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def test_a_process_with_few_descriptors_survives_a_crowd():
    """ZeroMQ would abort it at the next connection to a unix socket."""
    import socket

    with echo_once(128) as (_, _, address):
        port = int(address.rpartition(":")[2])
        crowd = [socket.socket() for _ in range(300)]
        for one in crowd:
            with suppress(ConnectionError):  # it was refused before this call returned
                one.connect(("127.0.0.1", port))
        until(lambda: sum(map(is_open, crowd)) <= 128 // 4)
    for one in crowd:
        one.close()


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_message_that_never_ends_does_not_take_the_memory(transport):
    """Of each part ZeroMQ bounds the size, but not their number."""
    import socket

    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
    ready = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
    part = b"\x03" + (2**20).to_bytes(8, "big") + bytes(2**20)  # one more comes
    with echo_once(1024) as (process, local, tcp):
        statm, largest, sent = Path(f"/proc/{process.pid}/statm"), 0, 0
        with socket.socket(socket.AF_UNIX if transport == "ipc" else socket.AF_INET) as sender:
            sender.settimeout(60)
            host, _, port = tcp.removeprefix("tcp://").rpartition(":")
            sender.connect(local.removeprefix("ipc://") if transport == "ipc" else (host, int(port)))
            sender.sendall(greeting + b"\x04" + bytes([len(ready)]) + ready)
            sender.recv(64 + 2 + 5 + 1, socket.MSG_WAITALL)  # its greeting and READY; no message before it
            with suppress(ConnectionError):
                while sent < 2000:
                    sender.sendall(part)
                    sent += 1
                    largest = max(largest, int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        assert 64 < sent < 2000
        assert largest < 1000 * 2**20


# what may be bound


@pytest.mark.parametrize(
    "address",
    [
        "tcp://0.0.0.0:5599",
        "tcp://*:5599",
        "tcp://[::]:5599",
        "tcp://*:*",
        "tcp://:5599",
        "tcp://192.0.2.7:5599",
        "tcp://eth0:5599",
        "tcp://no-such-host.invalid:5599",
        "tcp://[2001:db8::1]:5599",
        "tcp://8.8.8.8:*",
    ],
)
def test_open_addresses_need_keys_and_a_list(keys, address):
    with pytest.raises(InputError, match="CURVE keys"):
        check_bind(address)
    with pytest.raises(InputError, match="CURVE keys"):
        check_bind(address, Curve(keys / "server.key_secret"))  # without a list everybody would come in
    check_bind(address, server_curve(keys))


@pytest.mark.parametrize(
    "address",
    [
        "udp://127.0.0.1:5599",
        "ws://127.0.0.1:80",
        "epgm://eth0;239.0.0.1:5555",
        "vmci://*:1",
        "tipc://x",
        "file:///x",
        "",
        "x",
        "tcp://",
        "ipc://",
        "ipc://@abstract",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:99999",
        "tcp://127.0.0.1:x",
        "ipc:///" + "x" * 107,
    ],
)
def test_other_addresses_are_refused_with_keys_or_without(keys, address):
    for curve in (None, server_curve(keys)):
        with pytest.raises(InputError):
            check_bind(address, curve)


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:5599", "tcp://127.3.2.1:*", "tcp://localhost:80", "tcp://[::1]:80"]
)
def test_the_loopback_is_free(address):
    assert is_loopback(address)
    check_bind(address)


def test_passwords_in_addresses_are_not_repeated():
    with pytest.raises(InputError) as caught:
        check_bind("rtsp://admin:secret@10.0.0.5/stream")
    assert "secret" not in str(caught.value)


# the folder


def test_the_folder_is_for_its_owner_alone(home):
    folder = runtime_folder("door")
    assert folder == home / "streamvos" / "door"
    for one in (folder, folder.parent):
        assert stat.S_IMODE(one.stat().st_mode) == 0o700
    folder.chmod(0o777)
    folder.parent.chmod(0o755)
    assert runtime_folder("door") == folder
    for one in (folder, folder.parent):
        assert stat.S_IMODE(one.stat().st_mode) == 0o700


def test_a_pipeline_is_found_in_the_common_folder_too(home, monkeypatch):
    """As of a service that was started without the session's XDG_RUNTIME_DIR."""
    with short_folder() as elsewhere:
        assert _bases() == [home / "streamvos", Path(f"/tmp/runtime-{os.getuid()}/streamvos")]
        monkeypatch.setattr(BASES, lambda: [elsewhere / "streamvos"])
        with Runtime.claim("door") as served, serving(served.control, Recorder()):
            monkeypatch.setattr(BASES, lambda: [home / "streamvos", elsewhere / "streamvos"])
            assert find_control("door") == served.control
            assert live_pipelines() == ["door"]


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "/etc", "x" * 65, "a\0b"])
def test_names_do_not_lead_elsewhere(home, name):
    with pytest.raises(InputError, match="expected a name"):
        runtime_folder(name)


def test_links_files_and_folders_of_others_are_refused(home, tmp_path):
    (home / "streamvos").mkdir(mode=0o700)
    (home / "streamvos" / "door").symlink_to(tmp_path)
    with pytest.raises(InputError, match="is a link"):
        runtime_folder("door")
    (home / "streamvos" / "gate").write_text("")
    with pytest.raises(InputError, match="is a link, a file"):
        runtime_folder("gate")
    if os.getuid() == 0:
        (home / "streamvos" / "theirs").mkdir()
        os.chown(home / "streamvos" / "theirs", 12345, 12345)
        with pytest.raises(InputError, match="belongs to user 12345"):
            runtime_folder("theirs")


def test_paths_that_the_system_cannot_bind_are_told_before():
    assert ipc_address_of(107) == "ipc:///" + "x" * 106
    with pytest.raises(InputError, match="107"):
        ipc_address_of(108)


def ipc_address_of(length):
    return ipc_address(Path("/" + "x" * (length - 1)))


def test_one_pipeline_of_a_name(home):
    with Runtime.claim("door") as runtime:
        with pytest.raises(InputError, match=f"runs already .process {os.getpid()}"):
            Runtime.claim("door")
        with Runtime.claim("gate"), pytest.raises(InputError, match="no pipeline 'door'"):
            find_control("door")  # it has its lock, but does not listen yet
        with serving(runtime.control, Recorder()):
            assert find_control("door") == runtime.control
            assert "door" in live_pipelines()
            with pytest.raises(InputError, match=r"there are: .*door"):
                find_control("gate")
            path = runtime.folder / "control.sock"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "door" not in live_pipelines()
    Runtime.claim("door").close()


def test_what_a_killed_pipeline_left_is_cleaned(home):
    code = (
        "import os, signal, zmq; from streamvos.pipeline.wire.runtime import Runtime\n"
        "runtime = Runtime.claim('door'); socket = zmq.Context().socket(zmq.ROUTER)\n"
        "socket.bind(runtime.control); socket.bind(runtime.edge(3)); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == -9
    folder = home / "streamvos" / "door"
    assert (folder / "control.sock").is_socket()
    (folder / "notes.txt").write_text("not ours")
    with Runtime.claim("door") as runtime:
        assert sorted(one.name for one in folder.iterdir()) == ["lock", "notes.txt"]
        with serving(runtime.control, Recorder()):
            assert "door" in live_pipelines()
