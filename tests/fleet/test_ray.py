"""A fleet on Ray: several nodes on this machine, real pipelines, and everything killed.

The first test runs in the gate. The others take minutes: STREAMVOS_SLOW=1 pytest -s tests/fleet/test_ray.py
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fleet.fleets import camera, square, until, values

from streamvos.fleet.client import FleetClient
from streamvos.fleet.store import Store
from streamvos.types import InputError, StreamvosError

pytest.importorskip("ray", reason="needs Ray: pip install 'streamvos[fleet]'")

slow = pytest.mark.skipif(
    not os.environ.get("STREAMVOS_SLOW"),
    reason="takes minutes: STREAMVOS_SLOW=1 pytest tests/fleet/test_ray.py",
)
pytestmark = pytest.mark.timeout(900)

TESTS = Path(__file__).parents[1]


class Nodes:
    """A Ray cluster whose nodes are processes of this machine; the head has no shares."""

    def __init__(self, count: int):
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80 * 2**20}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [self.add() for _ in range(count)]

    def add(self) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)

    def kill(self, share: str) -> float:
        """Kill the node of a share without warning; when, in monotonic seconds."""
        (node,) = [one for one in self.nodes if one.node_id[:8] == share[:8]]
        self.nodes.remove(node)
        killed = time.monotonic()
        self.cluster.remove_node(node, allow_graceful=False)
        return killed

    def kill_the_head(self) -> float:
        """Kill the node that knows all others; they live on. When, in monotonic seconds."""
        killed = time.monotonic()
        self.cluster.remove_node(self.cluster.head_node, allow_graceful=False)
        return killed

    def close(self) -> None:
        self.cluster.shutdown()


class Up:
    """`streamvos fleet up` as a process."""

    def __init__(self, folder: Path, runtime: str, **more: Any):
        self.file = folder / "fleet.toml"
        self.file.write_text(to_toml(values(folder, **more)))
        self.log = folder / "log.jsonl"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "streamvos", "fleet", "up", str(self.file), "--log", "json"],
                stdout=log,
                stderr=log,
                env={**os.environ, "XDG_RUNTIME_DIR": runtime, "PYTHONPATH": python_path()},
                start_new_session=True,
            )

    def events(self, name: str) -> list[dict[str, Any]]:
        found = []
        for line in self.log.read_text().splitlines():
            if line.startswith("{"):
                event = json.loads(line)
                if event["event"] == name:
                    found.append(event)
        return found

    def client(self) -> FleetClient:
        def look() -> FleetClient | None:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                return FleetClient("site", timeout=90)
            except InputError:
                return None

        return until(look, 90)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


def python_path() -> str:
    return os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])


def to_toml(table: dict[str, Any]) -> str:
    """Only what these tests need: values, inline tables, and arrays of tables."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{key} = {text(one)}" for key, one in value.items()) + " }"
        if isinstance(value, list):
            return "[" + ", ".join(map(text, value)) + "]"
        return json.dumps(value)

    return "".join(f"{key} = {text(value)}\n" for key, value in table.items())


@pytest.fixture
def runtime(monkeypatch) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="svos", dir="/tmp", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        monkeypatch.setenv("PYTHONPATH", python_path())
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield folder


@contextmanager
def nodes_of(count: int) -> Iterator[Nodes]:
    nodes = Nodes(count)
    try:
        yield nodes
    finally:
        nodes.close()


@contextmanager
def up(folder: Path, runtime: str, **more: Any) -> Iterator[Up]:
    one = Up(folder, runtime, **more)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.end(signal.SIGKILL)


def running(client: FleetClient, name: str, **also: Any) -> dict[str, Any] | None:
    """The state of a stream, if it gives masks and the rest is as wanted."""
    try:
        one = client.status()["streams"].get(name, {})
    except StreamvosError:
        return None
    wanted = {"state": "running", **also}
    return one if one.get("frames") and all(one.get(key) == value for key, value in wanted.items()) else None


def add(client: FleetClient, name: str) -> None:
    """Add a stream; on a busy machine it may give masks only after the longest wait for an answer."""
    try:
        assert client.add_stream(**camera(name))["state"] == "running"
    except InputError as error:
        if "not done within" not in str(error):
            raise
    until(lambda: running(client, name), 180)


def test_a_stream_of_a_killed_node_goes_on_elsewhere(runtime, tmp_path):
    """With its objects, under a new fleet too, from the command line."""
    with nodes_of(2) as nodes, up(tmp_path, runtime, cluster=nodes.cluster.address) as fleet:
        with fleet.client() as client:
            add(client, "front")
            client.annotate("front", square(7))
            place = until(lambda: running(client, "front"), 90)
            nodes.kill(place["share"])
            back = until(lambda: running(client, "front", epoch=2), 120)
            assert back["share"] != place["share"]
            assert 7 in until(lambda: running(client, "front")["objects"], 30)
            assert back["seq"] > place["seq"]
        done = subprocess.run(
            [sys.executable, "-m", "streamvos", "fleet", "status", "--json"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert json.loads(done.stdout)["streams"]["front"]["state"] == "running", done.stderr
        assert fleet.end() == 0
    assert Store(str(tmp_path / "store")).states("front")[0].epoch == 2


class Losses:
    """What a series of losses has cost.

    Attributes:
        given: stream -> the objects that users gave it.
        gaps: seconds from the death of a node until each of its streams gave masks elsewhere.
    """

    def __init__(self, names: list[str]):
        self.given: dict[str, set[int]] = {name: set() for name in names}
        self.gaps: list[float] = []

    def annotate(self, client: FleetClient, number: int) -> None:
        for name in self.given:
            until(lambda name=name: running(client, name), 120)
            client.annotate(name, square(number))
            self.given[name].add(number)

    def kill_a_node(self, client: FleetClient, nodes: Nodes, name: str) -> None:
        victim = until(lambda: running(client, name), 60)["share"]
        before = client.status()["streams"]
        killed = nodes.kill(victim)
        nodes.nodes.append(nodes.add())
        for lost in [one for one, was in before.items() if was["share"] == victim]:
            until(lambda lost=lost: running(client, lost, epoch=before[lost]["epoch"] + 1), 180)
            self.gaps.append(time.monotonic() - killed)

    def check(self, client: FleetClient) -> None:
        for name, objects in self.given.items():
            until(lambda name=name: running(client, name), 180)
            until(
                lambda name=name, objects=objects: (
                    objects <= set(client.status()["streams"][name]["objects"])
                ),
                30,
            )


@slow
def test_every_kind_of_loss(runtime, tmp_path, capsys):
    """Nodes, the fleet's own process, the head and the store go away: no annotation does."""
    generator, losses = random.Random(1), Losses(["a", "b", "c"])
    with nodes_of(3) as nodes:
        more = {"cluster": nodes.cluster.address, "streams": [camera(name) for name in losses.given]}
        fleet = Up(tmp_path, runtime, **more)
        client = fleet.client()
        for number in range(3, 7):
            losses.annotate(client, number)
            losses.kill_a_node(client, nodes, generator.choice("abc"))
        # the process that decides: streams go on without it, and its successor takes them over
        before = client.status()["streams"]
        fleet.end(signal.SIGKILL)
        fleet = Up(tmp_path, runtime, **more)
        client = fleet.client()
        for name, was in before.items():
            assert until(lambda name=name: running(client, name), 60)["epoch"] == was["epoch"]
        # the store: what is asked for is refused, streams go on, and later everything is as before
        (tmp_path / "store").rename(tmp_path / "away")
        with pytest.raises(InputError, match="cannot be stored"):
            client.annotate("a", square(200))
        until(lambda: "folder is gone" in client.status()["store"], 30)
        assert all(running(client, name) for name in losses.given)
        (tmp_path / "away").rename(tmp_path / "store")
        losses.annotate(client, 7)
        until(lambda: not client.status()["store"], 30)
        losses.kill_a_node(client, nodes, "a")
        losses.check(client)
        shown = client.status()["streams"]
        fleet.end()
    # the head, and with it every node: a new cluster goes on from the store
    with nodes_of(3) as nodes, up(tmp_path, runtime, **{**more, "cluster": nodes.cluster.address}) as fleet:
        client = fleet.client()
        losses.check(client)
        assert 200 not in client.status()["streams"]["a"]["objects"]
    with capsys.disabled():
        gaps = losses.gaps
        median = statistics.median(gaps)
        print(f"\n{len(gaps)} returns: p50 {median:.1f} s, max {max(gaps):.1f} s; lost annotations: 0")
        for name, one in shown.items():
            print(f"{name}: {one['frames']} frames, dropped {one['dropped']}; before: {one['gone']}")


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@slow
def test_the_head_alone(runtime, tmp_path, capsys):
    """The other machines live on: masks are still taken, and in the end a new cluster has them all."""
    losses = Losses(["a", "b"])
    with nodes_of(2) as nodes:
        more = {"cluster": nodes.cluster.address, "streams": [camera(name) for name in losses.given]}
        fleet = Up(tmp_path, runtime, **more)
        with fleet.client() as client:
            losses.annotate(client, 3)
            pids = [one["pid"] for one in client.status()["shares"].values()]
            killed, taken = nodes.kill_the_head(), [0.0]
            number = 4
            while fleet.process.poll() is None and time.monotonic() < killed + 240:
                try:
                    client.annotate("ab"[number % 2], square(number, number))
                except StreamvosError:
                    time.sleep(1)
                    continue
                losses.given["ab"[number % 2]].add(number)
                taken.append(time.monotonic() - killed)
                number += 1
                time.sleep(2)
        code, ended = fleet.process.wait(60), time.monotonic() - killed
        until(lambda: not any(map(is_alive, pids)), 120)
        over = time.monotonic() - killed
        last = fleet.log.read_text().strip().splitlines()[-1]
    assert code == 1, fleet.log.read_text()[-3000:]
    begun = time.monotonic()
    with nodes_of(2) as nodes, up(tmp_path, runtime, **{**more, "cluster": nodes.cluster.address}) as fleet:
        client = fleet.client()
        losses.check(client)
        back = time.monotonic() - begun
        shown = client.status()["streams"]
        assert fleet.end() == 0
    assert all(one["seq"] > 0 for one in shown.values())
    with capsys.disabled():
        print(
            f"\nhead killed: {len(taken) - 1} masks taken until {taken[-1]:.0f} s, `fleet up` ended after "
            f"{ended:.0f} s ({last:.200}), the last stream after {over:.0f} s; all objects back {back:.0f} s "
            f"after a new cluster was begun; lost annotations: 0 of {number - 2}"
        )


@slow
def test_another_file_is_taken_over_by_shares_that_live_on(runtime, tmp_path):
    """`fleet up` is killed, its file changed, and begun again: what runs by the old one begins anew."""
    with nodes_of(1) as nodes:
        more = {"cluster": nodes.cluster.address, "streams": [camera("a")]}
        fleet = Up(tmp_path, runtime, **more)
        with fleet.client() as client:
            until(lambda: running(client, "a"), 120)
            client.annotate("a", square(9))
            before = [one["pid"] for one in client.status()["shares"].values()]
        fleet.end(signal.SIGKILL)
        with up(tmp_path, runtime, **more, snapshot_seconds=1.0) as fleet, fleet.client() as client:
            until(lambda: running(client, "a", epoch=2), 120)
            assert 9 in until(lambda: running(client, "a")["objects"], 30)
            after = [one["pid"] for one in client.status()["shares"].values()]
            assert before != after
            assert fleet.end() == 0
        until(lambda: not any(map(is_alive, after)), 30)  # nothing is left on the machine


@slow
def test_draining_and_new_nodes(runtime, tmp_path):
    with nodes_of(1) as nodes:
        more = {"cluster": nodes.cluster.address, "streams": [camera("a")]}
        with up(tmp_path, runtime, **more) as fleet, fleet.client() as client:
            place = until(lambda: running(client, "a"), 120)
            client.annotate("a", square(9))
            client.drain(place["share"])
            until(lambda: "no other share has room" in client.status()["streams"]["a"]["problem"], 30)
            nodes.nodes.append(nodes.add())
            moved = until(lambda: running(client, "a", epoch=2), 120)
            assert moved["share"] != place["share"]
            assert 9 in until(lambda: running(client, "a")["objects"], 30)
            client.remove_stream("a")
            assert client.status()["streams"] == {}


def test_a_local_fleet_needs_no_cluster_and_names_what_is_wrong(runtime, tmp_path):
    """Bad input ends before Ray begins: one line, exit code 2."""
    (tmp_path / "fleet.toml").write_text(to_toml(values(tmp_path, streams=[camera("a"), camera("a")])))
    for more, said in [("", "twice: a"), ("\nsorce = 1\n", "sorce"), ("[", "fleet.toml")]:
        (tmp_path / "fleet.toml").write_text((tmp_path / "fleet.toml").read_text() + more)
        done = subprocess.run(
            [sys.executable, "-m", "streamvos", "fleet", "up", str(tmp_path / "fleet.toml")],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
