"""Stages on "another host": started by hand, over tcp, with and without keys, killed and begun again.

That masks are the same whichever stages are remote is held with the stages in this process, over tcp.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zmq
from serving import TESTS, Serving, label_maps, serving
from small_methods import SMALL
from stages_in_process import run_stages

from streamvos.cli import main
from streamvos.pipeline.config.tables import MethodConfig
from streamvos.pipeline.stages.method import make_method
from streamvos.pipeline.wire.messages import Message, decode, encode
from streamvos.segmenter import Segmenter
from streamvos.sources import open_source

STREAMVOS = str(Path(sys.executable).with_name("streamvos"))
FRAMES = 10
SOURCE = f"synthetic:seed=4,objects=2,size=64x96,length={FRAMES},leave=0"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


IMPATIENT = """
import sys
from streamvos.cli import main
from streamvos.pipeline.stages import worker
worker.GONE_SECONDS = {}
sys.exit(main())
"""


class Remote:
    """`streamvos stage`, as somebody types it."""

    def __init__(self, stage: str, port: int, *options: str, gone_seconds: float | None = None):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment["PYTHONPATH"] = f"{TESTS}{os.pathsep}{environment.get('PYTHONPATH', '')}"
        command = [STREAMVOS]
        if gone_seconds is not None:  # the same command, which waits less long for a silent supervisor
            command = [sys.executable, "-c", IMPATIENT.format(gone_seconds)]
        command += ["stage", stage, "--connect", f"tcp://127.0.0.1:{port}", *options]
        self.process = subprocess.Popen(
            command, env=environment, stderr=subprocess.PIPE, start_new_session=True
        )

    def wait(self, seconds: float = 20) -> tuple[int, str]:
        _, error = self.process.communicate(timeout=seconds)
        return self.process.returncode, error.decode()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextlib.contextmanager
def remotes(
    stages: list[str], port: int, *options: str, gone_seconds: float | None = None
) -> Iterator[dict[str, Remote]]:
    started = {stage: Remote(stage, port, *options, gone_seconds=gone_seconds) for stage in stages}
    try:
        yield started
    finally:
        for one in started.values():
            if one.process.poll() is None:
                one.kill()


def configuration(
    folder: Path, stages: list[str], method: dict[str, Any], port: int, **stream: Any
) -> dict[str, Any]:
    sinks = [
        {"kind": "labels", "path": str(folder / "labels")},
        {"kind": "json", "path": str(folder / "out.jsonl")},
    ]
    return {
        "name": "remote",
        "placement": "split",
        "host": "127.0.0.1",
        "port": port,
        "method": {"device": "cpu", "threads": 1, **method},
        "streams": [{"name": "s", "source": SOURCE, "policy": "lossless", "sinks": sinks, **stream}],
        "remote": {stage: {"host": "127.0.0.1"} for stage in stages},
    }


def small(name: str) -> dict[str, Any]:
    return {"name": name, "weights": None, "options": json.loads(json.dumps(SMALL[name]))}


def drift(**options: Any) -> dict[str, Any]:
    return {"name": "stub_methods:drift", "options": options}


def expected(name: str) -> list[np.ndarray]:
    vos = Segmenter(make_method(MethodConfig(name=name, weights=None, options=SMALL[name])), "cpu")
    with open_source(SOURCE) as source:
        truth = source.label_map(0)
        return [vos.step(frame.image, truth if frame.index == 0 else None).mask for frame in source]


def check_masks(folder: Path, masks: list[np.ndarray]) -> None:
    found = label_maps(folder)
    assert list(found) == [f"{t:05d}.png" for t in range(len(masks))]
    for t, mask in enumerate(masks):
        assert np.array_equal(found[f"{t:05d}.png"], mask), f"frame {t}"


def written(folder: Path) -> list[dict[str, Any]]:
    for path in (folder / "out.jsonl", *folder.glob("out.*.partial.jsonl")):
        if path.exists():
            return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return []


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ("tvos", ["extractor"]),
        ("frtm-fast", ["memory.s"]),
        ("tvos", ["decoder.s"]),
        ("frtm-fast", ["extractor", "memory.s", "decoder.s"]),
        ("tvos", ["source.s", "sinks.s"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_masks_over_tcp_are_those_of_a_segmenter(tmp_path, method, stages):
    config = configuration(tmp_path, stages, small(method), free_port())
    config["streams"][0]["sinks"].append({"kind": "overlay", "path": str(tmp_path / "overlay.mp4")})
    before = torch.get_num_threads()
    try:
        run_stages(config)
    finally:
        torch.set_num_threads(before)  # which the stages set
    check_masks(tmp_path / "labels", expected(method))
    assert (tmp_path / "overlay.mp4").stat().st_size > 0


def test_remote_stages_as_they_are_typed_end_with_the_pipeline(tmp_path):
    stages, port = ["source.s", "memory.s", "sinks.s"], free_port()
    config = configuration(tmp_path, stages, small("frtm-fast"), port)
    config["streams"][0]["sinks"].append({"kind": "overlay", "path": str(tmp_path / "overlay.mp4")})
    with remotes(stages, port) as hosts, serving(config, tmp_path / "run") as pipeline:
        assert pipeline.wait(60) == 0, pipeline.log.read_text()[-3000:]
        for one in hosts.values():
            assert one.wait() == (0, "")
    check_masks(tmp_path / "labels", expected("frtm-fast"))
    assert not pipeline.events("died")
    assert (tmp_path / "overlay.mp4").stat().st_size > 0


def test_stages_started_again_by_hand_go_on(tmp_path):
    stages, port, frames = ["memory.s", "sinks.s"], free_port(), 200
    source = f"synthetic:seed=4,objects=2,size=48x64,length={frames},leave=0"
    config = configuration(tmp_path, stages, drift(read_ms=8.0), port, source=source)
    with contextlib.ExitStack() as stack:
        hosts = stack.enter_context(remotes(stages, port))
        pipeline = stack.enter_context(serving(config, tmp_path / "run"))
        for count, stage in enumerate(stages, 1):
            seen = len(written(tmp_path))
            pipeline.wait_for(lambda seen=seen: len(written(tmp_path)) > seen + 40)
            hosts[stage].kill()
            stack.enter_context(remotes([stage], port))
            pipeline.wait_for(lambda count=count: len(pipeline.events("joined")) == len(stages) + count)
        assert pipeline.wait(60) == 0, pipeline.log.read_text()[-3000:]
    assert [line["index"] for line in written(tmp_path)] == list(range(frames))
    with open_source(source) as opened:
        first = opened.label_map(0)
    check_masks(tmp_path / "labels", [np.roll(first, t, 1) for t in range(frames)])


def test_a_remote_stage_that_fails_is_told_to_go_and_its_reason_is_logged(tmp_path):
    port = free_port()
    config = configuration(tmp_path, ["memory.s"], drift(fail_at=5), port)
    with remotes(["memory.s"], port) as hosts, serving(config, tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: pipeline.events("died"))
        assert "told to fail" in pipeline.events("failed")[0]["error"]
        assert "told to fail" in pipeline.events("died")[0]["reason"]
        code, _ = hosts["memory.s"].wait()
        assert code == 0  # the supervisor has said exit
        assert pipeline.process.poll() is None  # it waits for the next one
        pipeline.signal(signal.SIGTERM)
        assert pipeline.wait(20) == 0


def test_remote_stages_end_some_time_after_their_supervisor(tmp_path):
    port = free_port()
    source = "synthetic:seed=4,objects=2,size=48x64,length=5000,leave=0"
    config = configuration(tmp_path, ["sinks.s"], drift(read_ms=10.0), port, source=source)
    with remotes(["sinks.s"], port, gone_seconds=3.0) as hosts:
        with serving(config, tmp_path / "run") as pipeline:
            pipeline.wait_for(lambda: len(written(tmp_path)) > 5)
            pipeline.process.kill()
        code, error = hosts["sinks.s"].wait(3 + 15)
        assert code == 3
        assert "silent" in error


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """Folder with the keys of the pipeline, of a client, and of a stranger."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("pipeline", "clients/laptop", "stranger"):
        assert main(["keys", "new", str(folder / name)]) == 0
    return folder


def test_with_the_pipelines_key_it_works(tmp_path, keys):
    stages, port = ["extractor", "memory.s", "decoder.s"], free_port()
    config = configuration(tmp_path, stages, small("tvos"), port)
    config["security"] = {"secret": str(keys / "pipeline.key_secret"), "clients": str(keys / "clients")}
    secret = ("--secret", str(keys / "pipeline.key_secret"))
    with remotes(stages, port, *secret), serving(config, tmp_path / "run") as pipeline:
        assert pipeline.wait(60) == 0, pipeline.log.read_text()[-3000:]
    check_masks(tmp_path / "labels", expected("tvos"))


def test_only_the_pipelines_key_admits_a_stage(tmp_path, keys):
    port = free_port()
    config = configuration(tmp_path, ["sinks.s"], drift(), port)
    config["security"] = {"secret": str(keys / "pipeline.key_secret"), "clients": str(keys / "clients")}
    good, other, client = (
        ("--secret", str(keys / f"{name}.key_secret")) for name in ("pipeline", "stranger", "clients/laptop")
    )
    with contextlib.ExitStack() as stack:
        for secret in ((), other, client):
            stack.enter_context(remotes(["sinks.s"], port, *secret))
        pipeline = stack.enter_context(serving(config, tmp_path / "run"))

        def turned_away() -> bool:
            causes = set(told_of(pipeline)["refused"].get("remote workers", ()))
            # who has no key at all is counted by one of two names, depending on who hangs up first
            return "wrong server key" in causes and bool(causes & {"no CURVE", "bad handshake"})

        pipeline.wait_for(turned_away)
        assert not pipeline.events("joined")
        with remotes(["sinks.s"], port, *good):  # whose place is still free
            assert pipeline.wait(60) == 0
    assert len(written(tmp_path)) == FRAMES


def test_a_user_of_the_pipeline_cannot_pose_as_a_stage(tmp_path, keys):
    """Somebody with a key of the list of clients, who knows the pipeline's public key."""
    port = free_port()
    config = configuration(tmp_path, ["memory.s"], drift(), port)
    config["security"] = {"secret": str(keys / "pipeline.key_secret"), "clients": str(keys / "clients")}
    with serving(config, tmp_path / "run") as pipeline:
        public, secret = zmq.auth.load_certificate(keys / "clients" / "laptop.key_secret")
        context = zmq.Context()
        poser = context.socket(zmq.DEALER)
        try:
            poser.linger = 0
            poser.curve_publickey, poser.curve_secretkey = public, secret
            poser.curve_serverkey = zmq.auth.load_certificate(keys / "pipeline.key")[0]
            poser.routing_id = b"remote memory.s#0"
            poser.connect(f"tcp://127.0.0.1:{port}")
            poser.send_multipart(encode(Message("hello", fields={"worker": "memory.s", "pid": 1}), b""))
            refused = pipeline.wait_for(lambda: told_of(pipeline)["refused"].get("remote workers"))
            assert refused["unknown key"] > 0
            assert not poser.poll(0)  # no INIT, which tells where the cameras are
            assert not pipeline.events("joined")
        finally:
            poser.close()
            context.term()


def test_a_remote_stage_gets_no_secrets_and_its_messages_cannot_harm_other_stages(tmp_path):
    """On the loopback without keys, whoever lives here may be a remote stage; but no more than that."""
    port = free_port()
    door = "rtsp://admin:hunter2@127.0.0.1:9/door"
    config = configuration(tmp_path, ["memory.s"], drift(), port)
    config["streams"].append({"name": "door", "source": door, "policy": "latest", "sinks": []})
    context: zmq.Context[Any] = zmq.Context()

    def say(socket: zmq.Socket[bytes], kind: str, session: bytes = b"", **fields: Any) -> None:
        socket.send_multipart([b"", *encode(Message(kind, fields=fields), session)[1:]])

    def first(socket: zmq.Socket[bytes], kind: str) -> Message:
        while socket.poll(20_000):
            if (message := decode(socket.recv_multipart(), None)).kind == kind:
                return message
        raise AssertionError(f"no {kind} came within 20 s")

    def called(name: str) -> zmq.Socket[bytes]:
        socket = context.socket(zmq.DEALER)
        socket.linger, socket.routing_id = 0, name.encode()
        socket.connect(f"tcp://127.0.0.1:{port}")
        return socket

    try:
        with serving(config, tmp_path / "run") as pipeline:
            pipeline.wait_for(lambda: len(pipeline.events("died")) > 1)  # the camera is not there
            stage = called("remote memory.s#1")
            say(stage, "hello", worker="memory.s", pid=1)
            init = first(stage, "init")  # a ping may come before it
            assert "hunter2" not in str(init.fields)
            assert [one["name"] for one in init["config"]["streams"]] == ["s"]
            session = init.fields["pipeline_session"]
            for kind, fields in (
                ("beat", {"stages": 5}),
                ("beat", {"stages": {"memory.s": {"busy_since": "long"}}}),
                ("beat", {"stages": {"memory.s": {"waiting_for": 5}}}),
                ("beat", {"stages": {"memory.s": {"waiting_for": "x", "waiting_since": 1.5}}}),
                ("beat", {"stages": {"memory.s": {"refused": {"x": "y"}}}, "clock": "late"}),
                ("event", {"event": "x", "worker": "y", "level": []}),
                ("ready", {"endpoints": 7, "facts": []}),
                ("failed", {"stage": 5, "error": None, "fatal": 0}),
                ("applied", {}),
            ):
                say(stage, kind, session, **fields)
            impostor = called("source.s#0")
            for kind in ("ended", "failed", "dying"):
                say(impostor, kind, session, stage="source.s", error="x", fatal=True)
            pipeline.wait_for(
                lambda: {one.get("cause") for one in pipeline.events("message_refused")} >= {"field", "peer"}
            )
            assert pipeline.process.poll() is None
            assert not [one for one in pipeline.events("over") if one["stream"] == "s"]
            assert not [one for one in pipeline.events("died") if one["worker"] == "source.s"]
            pipeline.signal(signal.SIGTERM)
            assert pipeline.wait(20) == 0
    finally:
        context.destroy(linger=0)
    assert "hunter2" not in pipeline.log.read_text()


def told_of(pipeline: Serving) -> dict[str, Any]:
    """What `status` says, once the pipeline can be asked."""
    from streamvos import Client

    path = Path(pipeline.runtime) / "streamvos" / "remote" / "control.sock"
    if not path.exists():
        return {"refused": {}}
    with Client(f"ipc://{path}") as client:
        return client.status()


def test_an_open_place_needs_keys(tmp_path):
    port = free_port()
    config = configuration(tmp_path, ["memory.s"], drift(), port)
    config["host"] = "0.0.0.0"
    with serving(config, tmp_path / "run") as pipeline:
        assert pipeline.process.wait(30) != 0
    assert "keys" in pipeline.log.read_text()
    command = [STREAMVOS, "stage", "memory.s", "--connect", "tcp://10.0.0.1:5600"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--secret" in done.stderr


def test_a_stage_that_is_interrupted_ends_and_the_pipeline_waits_for_the_next(tmp_path):
    port = free_port()
    remote = Remote("sinks.s", port)  # nobody serves
    try:
        time.sleep(1.5)
        assert remote.process.poll() is None
        remote.process.send_signal(signal.SIGINT)
        code, error = remote.wait()
        assert code == 130
        assert "Traceback" not in error
    finally:
        if remote.process.poll() is None:
            remote.kill()
