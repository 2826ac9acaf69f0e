"""Streams that are added to a pipeline of real processes and removed from it, while another one runs."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pipeline.raw_client import RawClient
from pipeline.test_failures import check_drift, configuration, stream, synthetic, written
from serving import Serving, serving

from streamvos import Client, InputError

STREAMVOS = str(Path(sys.executable).with_name("streamvos"))
SOURCE = synthetic(100_000)


@contextmanager
def running(folder: Path, **more: Any) -> Iterator[tuple[Serving, Client]]:
    """A pipeline whose stream "front" runs at 20 frames a second, and a client of it."""
    front = stream(folder, "front", SOURCE, realtime=True, fps=20.0)
    with serving(configuration(front, **more), folder / "run") as pipeline:
        pipeline.wait_for(lambda: pipeline.events("incarnation"))
        with Client(f"ipc://{pipeline.runtime}/streamvos/failures/control.sock") as client:
            yield pipeline, client


def check_front(pipeline: Serving, client: Client, folder: Path) -> None:
    """It has lost no frame and was never interrupted; afterwards the pipeline has ended."""
    front = client.status()["streams"]["front"]
    assert (front["incarnation"], front["restarts"], front["dropped"]) == (1, 0, {})
    client.stop()
    assert pipeline.wait() == 0, pipeline.log.read_text()[-3000:]
    check_drift(folder, "front", SOURCE, len(written(folder, "front")))


def held(pipeline: Serving) -> dict[str, Any]:
    """What the supervisor holds of the system."""
    process = Path(f"/proc/{pipeline.process.pid}")
    status = (process / "status").read_text()
    number = dict(re.findall(r"^(\w+):\s+(\d+)", status, re.MULTILINE))
    folder = Path(pipeline.runtime) / "streamvos" / "failures"
    return {
        "descriptors": len(os.listdir(process / "fd")),
        "threads": int(number["Threads"]),
        "memory": int(number["VmRSS"]) / 1024,  # MiB
        "processes": len(pipeline.children()),
        "files": sorted(path.name for path in folder.iterdir()),
    }


def test_a_name_is_used_twenty_times_and_nothing_grows(tmp_path):
    own = stream(tmp_path, "side", SOURCE)  # its outputs lie beside those of "front"
    seen: list[dict[str, Any]] = []
    with running(tmp_path) as (pipeline, client), RawClient(client.address, 60) as raw:
        known = client.status()

        def side() -> dict[str, Any]:
            found: dict[str, Any] = client.status()["streams"].get("side", {})
            return found

        def complete(*kills: str) -> None:
            assert client.add_stream(**own)["state"] == "running"
            for worker in kills:
                incarnation = side()["incarnation"]
                pipeline.kill_worker(worker)
                pipeline.wait_for(lambda before=incarnation: side()["incarnation"] > before)
                pipeline.wait_for(lambda: side()["state"] == "running")
            frames = side()["frames"]
            pipeline.wait_for(lambda: side()["frames"] > frames + 5)
            last = client.remove_stream("side")
            assert (last["state"], last["reason"]) == ("ended", "")
            check_drift(tmp_path, "side", SOURCE, len(written(tmp_path, "side")))
            seen.append(held(pipeline))

        def hurried() -> None:
            """It is removed before it has begun."""
            adding = raw.send("add_stream", table=own)
            pipeline.wait_for(side)
            removing = raw.send("remove_stream", "side", at_once=True)
            replies = {one["id"]: one for one in (raw.receive(), raw.receive())}
            assert "ended before it had begun" in replies[adding]["error"]
            assert replies[removing]["ok"]
            seen.append(held(pipeline))

        complete()
        for _ in range(18):
            hurried()
        complete("compute.side", "source.side", "sinks.side")
        after = client.status()
        assert (set(after["streams"]), after["publish"], set(after["frames"])) == ({"front"}, {}, {"front"})
        assert after["workers"].keys() == known["workers"].keys()
        assert after["restarts"] == {}
        for what in ("descriptors", "threads", "processes", "files"):
            assert seen[-1][what] == seen[0][what], what
        assert seen[-1]["memory"] < seen[0]["memory"] + 8  # MiB; the counts of one stream are larger
        check_front(pipeline, client, tmp_path)


def test_what_cannot_be_added_leaves_nothing(tmp_path):
    with running(tmp_path) as (pipeline, client):
        labels = [{"kind": "labels", "path": str(tmp_path / "front")}]
        names = client.status()["workers"].keys()
        before = held(pipeline)
        for words, keys in {
            "'front' already": {"name": "front"},
            "write to the same place": {"sinks": labels},
            "there is no /nowhere.mp4": {"source": "/nowhere.mp4", "boxes": ["1:1,1,9,9"]},
            "unknown method .tvoss": {"method": "tvoss"},
        }.items():
            with pytest.raises(InputError, match=words):
                client.add_stream(**{"name": "side", "source": SOURCE, **keys})
        limits = resource.prlimit(pipeline.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pipeline.process.pid, resource.RLIMIT_FSIZE, (2**22, limits[1]))
        with pytest.raises(InputError, match=r"side/frames needs .* MiB of shared memory"):
            client.add_stream("side", synthetic(9, "480x640"))
        resource.prlimit(pipeline.process.pid, resource.RLIMIT_FSIZE, limits)
        assert set(client.status()["streams"]) == {"front"}
        assert client.status()["workers"].keys() == names
        after = held(pipeline)
        assert {**after, "memory": 0} == {**before, "memory": 0}
        check_front(pipeline, client, tmp_path)


def test_from_the_command_line_and_without_a_stream_at_first(tmp_path):
    environment = {
        **os.environ,
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "PYTHONPATH": f"{Path(__file__).parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
    }
    (tmp_path / "run").mkdir(mode=0o700)

    def ctl(*arguments: object) -> str:
        done = subprocess.run(
            [STREAMVOS, "ctl", *map(str, arguments)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    with open(tmp_path / "log", "w") as log:
        pipeline = subprocess.Popen(
            [STREAMVOS, "serve", "--keep", "--device", "cpu", "--prometheus", "0", "--log", "json"],
            env=environment,
            stderr=log,
        )
    try:
        while '"serving"' not in (tmp_path / "log").read_text():
            assert pipeline.poll() is None, (tmp_path / "log").read_text()
        events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
        (url,) = [one["url"] for one in events if one["event"] == "metrics"]
        added = ctl(
            *("add", "side", "--source", SOURCE, "--policy", "lossless", "--out", tmp_path / "out"),
            *("--method", "stub_methods:drift", "--realtime"),
        )
        assert added == "side: added, running\n"
        assert json.loads(ctl("status", "--json"))["streams"]["side"]["method"] == "stub_methods:drift"
        assert 'streamvos_stream_state{state="running",stream="side"}' in _wait_for_metrics(
            url, '"side"', True
        )
        frames = int(ctl("remove", "side").split()[-2])
        assert len(list((tmp_path / "out" / "labels").iterdir())) in (frames, frames + 1)  # and its record
        assert '"side"' not in _wait_for_metrics(url, '"side"', False)
        assert json.loads(ctl("status", "--json"))["streams"] == {}
        ctl("stop")
        assert pipeline.wait(20) == 0
    finally:
        if pipeline.poll() is None:
            pipeline.send_signal(signal.SIGINT)
            pipeline.wait(20)


def _wait_for_metrics(url: str, word: str, there: bool) -> str:
    """The metrics, once a word is in them, or no more."""
    while True:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        if (word in text) == there:
            return text
