"""Commands to a running pipeline and their results: through `Client`, a raw client and the command line."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pipeline.raw_client import RawClient, RawSubscriber
from serving import TESTS, Serving, label_maps, serving
from small_methods import SMALL

from streamvos import Client, InputError
from streamvos.pipeline.config.tables import MethodConfig
from streamvos.pipeline.stages.method import make_method
from streamvos.segmenter import Segmenter
from streamvos.sources import open_source

SIZE = (48, 64)
SOURCE = "synthetic:seed=2,objects=2,size=48x64,leave=0,length=5000"
STREAMVOS = str(Path(sys.executable).with_name("streamvos"))

DRIFT = {"name": "stub_methods:drift", "options": {"read_ms": 10.0}}
TVOS = {"name": "tvos", "weights": None, "options": json.loads(json.dumps(SMALL["tvos"]))}


def stream(folder: Path, name: str = "s", **more: Any) -> dict[str, Any]:
    """A stream that ends when it is told to, with its masks in folder/name."""
    sinks = [{"kind": "labels", "path": str(folder / name)}, {"kind": "publish"}]
    return {"name": name, "source": SOURCE, "policy": "lossless", "sinks": sinks, **more}


def configuration(method: dict[str, Any], *streams: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "users",
        "method": {"device": "cpu", "threads": 1, **method},
        "streams": list(streams),
        "supervision": {"standby": False, "snapshot_frames": 10, "max_restarts": 50},
    }


def address(pipeline: Serving) -> str:
    return f"ipc://{pipeline.runtime}/streamvos/users/control.sock"


def client_of(pipeline: Serving) -> Client:
    """A client, once the stream runs."""
    pipeline.wait_for(lambda: pipeline.events("incarnation"))
    return Client(address(pipeline), timeout=30)


def square(key: int, top: int, left: int, side: int = 10) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[top : top + side, left : left + side] = key
    return mask


def check(folder: Path, method: dict[str, Any], said: dict[int, list[Callable[[Segmenter], Any]]]) -> None:
    """The masks are those of a `Segmenter` to which, at these frames, the same is said.

    A mask is returned, not said.
    """
    found = list(label_maps(folder).values())
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        vos = Segmenter(make_method(MethodConfig(**{"device": "cpu", **method})), "cpu")
        with open_source(SOURCE) as source:
            truth = source.label_map(0)
            for frame in islice(source, len(found)):
                mask = truth if frame.index == 0 else None
                for one in said.get(frame.index, []):
                    given = one(vos)
                    mask = mask if given is None else given
                expected = vos.step(frame.image, mask).mask
                assert np.array_equal(found[frame.index], expected), f"frame {frame.index}"
    finally:
        torch.set_num_threads(before)
    assert not said or max(said) < len(found)


def talk(client: Client, wait: Callable[[int], None]) -> dict[int, list[Callable[[Segmenter], Any]]]:
    """Add, correct, forget, and add under an id used before; when each was obeyed."""
    said: dict[int, list[Callable[[Segmenter], Any]]] = {}
    for mask in (square(9, 4, 4), square(9, 20, 30, 14)):
        wait(5)
        said.setdefault(client.annotate("s", mask), []).append(lambda _, mask=mask: mask)
    wait(5)
    said.setdefault(client.forget("s", 1), []).append(lambda vos: vos.forget(1))
    wait(5)
    again = square(1, 30, 8)
    said.setdefault(client.annotate("s", again), []).append(lambda _: again)
    return said


def test_commands_are_applied_at_the_frame_that_the_answer_names(tmp_path):
    with serving(configuration(TVOS, stream(tmp_path)), tmp_path / "run") as pipeline:
        with client_of(pipeline) as client:

            def wait(frames: int) -> None:
                goal = client.status()["streams"]["s"]["frames"] + frames
                pipeline.wait_for(lambda: client.status()["streams"]["s"]["frames"] >= goal)

            said = talk(client, wait)
            wait(5)
            client.stop("s")
        assert pipeline.wait() == 0, pipeline.log.read_text()[-3000:]
    assert len(said) == 4
    check(tmp_path / "s", TVOS, said)


def test_a_command_is_neither_lost_nor_applied_twice_when_compute_is_killed(tmp_path):
    """Killed before: the process is dead while the command is sent. After: when the answer has come."""
    said: dict[int, list[Callable[[Segmenter], Any]]] = {}
    with serving(configuration(DRIFT, stream(tmp_path)), tmp_path / "run") as pipeline:
        with client_of(pipeline) as client:
            for key, moment in enumerate(("before", "after", "before", "after"), start=20):
                lives = len(pipeline.events("incarnation"))
                frames = len(label_maps_of(tmp_path))
                pipeline.wait_for(lambda frames=frames: len(label_maps_of(tmp_path)) > frames + 3)
                if moment == "before":
                    pipeline.kill_worker("compute")
                if key < 22:
                    mask = square(key, key, 2 * key - 30)
                    said.setdefault(client.annotate("s", mask), []).append(lambda _, mask=mask: mask)
                else:
                    said.setdefault(client.forget("s", key - 2), []).append(
                        lambda vos, key=key: vos.forget(key - 2)
                    )
                if moment == "after":
                    pipeline.kill_worker("compute")
                pipeline.wait_for(lambda lives=lives: len(pipeline.events("incarnation")) > lives)
            frames = len(label_maps_of(tmp_path))
            pipeline.wait_for(lambda: len(label_maps_of(tmp_path)) > frames + 10)
            client.stop("s")
        assert pipeline.wait() == 0, pipeline.log.read_text()[-3000:]
    assert len(pipeline.events("died")) == 4
    check(tmp_path / "s", DRIFT, said)


def test_commands_apply_in_the_order_in_which_they_were_accepted(tmp_path):
    """Masks and objects to forget, in any order: sent together, in a pause, and while compute is killed."""
    chance = random.Random(4)
    said: dict[int, list[Callable[[Segmenter], Any]]] = {}
    followed = {1, 2}

    def send(client: RawClient, count: int) -> dict[int, tuple[bool, int, np.ndarray | None]]:
        """Request -> whether it can be done, its object and its mask; the first two belong together."""
        sent = {}
        for k in range(count):
            key = 30 if k < 2 else chance.choice((1, 30, 31))
            mask = None
            if k == 0 or (k > 1 and chance.random() < 0.5):
                mask = square(key, chance.randint(0, 30), chance.randint(0, 50))
                number = client.send("annotate", "s", mask)
            else:
                number = client.send("forget", "s", object=key)
            sent[number] = (mask is not None or key in followed, key, mask)
            (followed.discard if mask is None else followed.add)(key)
        return sent

    def receive(client: RawClient, sent: dict[int, tuple[bool, int, np.ndarray | None]]) -> None:
        answers = {reply["id"]: reply for reply in (client.receive() for _ in sent)}
        for number, (possible, key, mask) in sent.items():
            reply = answers[number]
            assert reply["ok"] is possible, reply
            if possible:
                step = (lambda vos, key=key: vos.forget(key)) if mask is None else (lambda _, m=mask: m)
                said.setdefault(reply["seq"], []).append(step)

    with serving(configuration(DRIFT, stream(tmp_path)), tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: len(label_maps_of(tmp_path)) > 3)
        with RawClient(address(pipeline), seconds=55) as client:
            receive(client, send(client, 8))
            client.request("pause", "s")
            sent = send(client, 8)
            pipeline.kill_worker("compute")
            client.request("resume", "s")
            receive(client, sent)
            sent = send(client, 12)
            time.sleep(0.03)  # some are applied, and not yet in a snapshot
            pipeline.kill_worker("compute")
            receive(client, sent)
            client.request("stop", "s")
        assert pipeline.wait() == 0, pipeline.log.read_text()[-3000:]
    assert len(pipeline.events("died")) == 2
    check(tmp_path / "s", DRIFT, said)


def label_maps_of(folder: Path, name: str = "s") -> list[Path]:
    return sorted((folder / name).glob("*.png"))


def test_pause_holds_a_lossless_stream_and_stop_ends_it_in_order(tmp_path):
    with serving(configuration(DRIFT, stream(tmp_path)), tmp_path / "run") as pipeline:
        with client_of(pipeline) as client:
            pipeline.wait_for(lambda: len(label_maps_of(tmp_path)) > 5)
            client.pause("s")
            time.sleep(0.7)  # what is in flight gets through
            frames = len(label_maps_of(tmp_path))
            assert client.status()["streams"]["s"]["state"] == "paused"
            pipeline.kill_worker("compute")  # paused it stays, whoever dies
            pipeline.wait_for(lambda: len(pipeline.events("incarnation")) == 2)
            time.sleep(0.7)
            assert len(label_maps_of(tmp_path)) == frames
            client.resume("s")
            pipeline.wait_for(lambda: len(label_maps_of(tmp_path)) > frames + 5)
            client.stop("s")
        assert pipeline.wait(20) == 0
    maps = label_maps(tmp_path / "s")
    assert list(maps) == [f"{t:05d}.png" for t in range(len(maps))]


def test_a_stream_without_a_mask_waits_for_one(tmp_path):
    source = tmp_path / "frames"
    source.mkdir()
    for t in range(200):
        Image.fromarray(np.full((*SIZE, 3), t, np.uint8)).save(source / f"{t:05d}.png")
    live = stream(tmp_path, source=str(source), policy="latest", realtime=True)
    with serving(configuration(DRIFT, live), tmp_path / "run") as pipeline:
        with client_of(pipeline) as client:
            pipeline.wait_for(lambda: client.status()["streams"]["s"]["dropped"].get("no mask", 0) > 5)
            seq = client.annotate("s", square(5, 3, 3))
            first = next(client.masks("s", "raw"))
            assert first.seq >= seq
            assert list(first.objects) == [5]
            pipeline.wait_for(lambda: label_maps_of(tmp_path))
            client.stop()
        assert pipeline.wait(20) == 0
    assert label_maps_of(tmp_path)[0].stem == f"{seq:05d}"


def command(*arguments: str, runtime: str, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "XDG_RUNTIME_DIR": runtime, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [STREAMVOS, *arguments],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **options,
    )


def test_ctl_and_watch_as_they_are_typed(tmp_path):
    Image.fromarray(square(6, 5, 5)).save(tmp_path / "more.png")
    with serving(configuration(DRIFT, stream(tmp_path)), tmp_path / "run") as pipeline:
        client_of(pipeline).close()

        def ctl(*arguments: str, expect: int = 0) -> str:
            done = command("ctl", *arguments, runtime=pipeline.runtime)
            out, error = done.communicate(timeout=60)
            assert done.returncode == expect, (arguments, out, error)
            assert "Traceback" not in error
            return out + error

        watching = command(
            "watch", "users", "--json", "--save", str(tmp_path / "seen"), runtime=pipeline.runtime
        )
        pipeline.wait_for(lambda: list((tmp_path / "seen").glob("s/*.png")))
        assert "s" in ctl("status")
        assert json.loads(ctl("status", "--json"))["streams"]["s"]["size"] == list(SIZE)
        ctl("annotate", "s", str(tmp_path / "more.png"))
        ctl("forget", "s", "6")
        assert "no stream 'x'" in ctl("forget", "x", "6", expect=2)
        ctl("pause", "s")
        ctl("resume", "s")
        ctl("stop", "s")
        assert pipeline.wait(20) == 0
        out, error = watching.communicate(timeout=30)
        assert watching.returncode == 0, error
        report = json.loads(out)["streams"]["s"]
        assert report["ended"]
        assert report["lost_on_the_way"] == 0
    files = label_maps(tmp_path / "s")
    for name, mask in label_maps(tmp_path / "seen" / "s").items():
        assert np.array_equal(mask, files[name])


def test_serve_with_a_source_and_ctrl_c(tmp_path):
    source = tmp_path / "frames"
    source.mkdir()
    for t in range(600):
        Image.fromarray(np.full((*SIZE, 3), t % 250, np.uint8)).save(
            source / f"{t:05d}.png", compress_level=0
        )
    Image.fromarray(square(4, 9, 9)).save(tmp_path / "first.png")
    arguments = [
        "--source",
        str(source),
        "--mask",
        str(tmp_path / "first.png"),
        "--out",
        str(tmp_path / "out"),
    ]
    options = [
        "--method",
        "stub_methods:drift",
        "--set",
        "read_ms=15",
        "--device",
        "cpu",
        "--json",
        "--log",
        "json",
    ]
    serve = command("serve", *arguments, *options, runtime=str(tmp_path / "r"))
    try:
        limit = time.monotonic() + 60
        while len(list((tmp_path / "out" / "labels").glob("*.png"))) < 10:
            assert time.monotonic() < limit
            assert serve.poll() is None, serve.communicate()
            time.sleep(0.05)
        serve.send_signal(signal.SIGINT)
        out, error = serve.communicate(timeout=20)
    finally:
        if serve.poll() is None:
            serve.kill()
            serve.communicate()
    assert serve.returncode == 0, error
    assert "Traceback" not in error
    frames = json.loads(out)["streams"]["default"]["frames"]
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert frames == len(lines) == len(list((tmp_path / "out" / "labels").glob("*.png"))) < 600
    assert (tmp_path / "out" / "overlay.mp4").stat().st_size > 0


# ---- one pipeline for the tests that each need only a stream


class Served:
    """The pipeline that tests share, whose streams they begin and end."""

    def __init__(self, pipeline: Serving, folder: Path):
        self.pipeline, self.folder = pipeline, folder

    @contextmanager
    def client(self, name: str) -> Iterator[Client]:
        """A client, while a stream runs; afterwards the stream has ended in order."""
        with Client(address(self.pipeline), timeout=30) as client:
            client.resume(name)
            self.pipeline.wait_for(lambda: len(label_maps_of(self.folder, name)) > 5)
            yield client
            client.stop(name)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    """One pipeline with a stream for each test that asks for one; paused until then."""
    folder = tmp_path_factory.mktemp("users")
    names = ["followed", "refused", "resized", "crowded", "raw"]
    streams = [
        stream(folder, name, **({"height": SIZE[0] // 2} if name == "resized" else {})) for name in names
    ]
    with serving(configuration(DRIFT, *streams), folder / "run") as pipeline:
        pipeline.wait_for(lambda: len(pipeline.events("incarnation")) == len(names))
        with Client(address(pipeline), timeout=30) as client:
            for name in names:
                client.pause(name)
        yield Served(pipeline, folder)
        assert not pipeline.events("died")
        if len(pipeline.events("over")) < len(names):  # some tests were not run
            pipeline.signal()
        assert pipeline.wait(20) == 0, pipeline.log.read_text()[-3000:]


def test_masks_that_subscribers_get_are_those_in_the_files(served):
    got: dict[str, dict[int, np.ndarray]] = {"rle": {}, "png": {}, "raw": {}}
    raw: dict[int, np.ndarray] = {}

    def follow(form: str, at: str) -> None:
        with Client(at, timeout=30) as client:
            for one in client.masks("followed", form):
                got[form][one.seq] = one.label_map

    def follow_raw(at: str) -> None:
        with RawSubscriber(at, "rle", "followed", seconds=30) as subscriber:
            while (received := subscriber.receive())[1] is not None:
                raw[received[0]["seq"]] = received[1]

    at = address(served.pipeline)
    with served.client("followed") as client:
        masks = client.status()["publish"]["followed"]
        threads = [threading.Thread(target=follow, args=(form, at)) for form in got]
        threads.append(threading.Thread(target=follow_raw, args=(masks,)))
        for one in threads:
            one.start()
        served.pipeline.wait_for(lambda: all(len(form) > 20 for form in (*got.values(), raw)))
    for one in threads:
        one.join(40)
        assert not one.is_alive()  # they heard of the end
    files = list(label_maps(served.folder / "followed").values())
    for form in (*got.values(), raw):
        assert len(form) > 20
        assert list(form) == list(range(min(form), len(files)))  # none is missing since it began
        for seq, mask in form.items():
            assert np.array_equal(mask, files[seq])


def test_a_wrong_command_is_answered_and_changes_nothing(served):
    with served.client("refused") as client:
        for call, words in (
            (lambda: client.annotate("refused", np.ones((9, 9), np.uint8)), "9 x 9, the frames are 64 x 48"),
            (lambda: client.annotate("refused", np.zeros(SIZE, np.uint8)), "no object"),
            (lambda: client.annotate("nobody", square(3, 1, 1)), "no stream 'nobody'"),
            (lambda: client.forget("refused", 77), "77"),
            (lambda: client.forget("refused", 300), "300"),
            (lambda: client.pause("nobody"), "no stream 'nobody'"),
            (lambda: client.stop("nobody"), "no stream 'nobody'"),
        ):
            with pytest.raises(InputError) as info:
                call()
            assert words in str(info.value), str(info.value)
    check(served.folder / "refused", DRIFT, {})


def test_a_mask_of_the_camera_s_own_size_fits_frames_that_are_resized(served):
    large = square(9, 4, 6, 20)
    with served.client("resized") as client:
        seq = client.annotate("resized", large)
        served.pipeline.wait_for(lambda: len(label_maps_of(served.folder, "resized")) > seq + 1)
        with pytest.raises(InputError, match="object 8 of the mask has no pixel left"):
            client.annotate("resized", square(8, 0, 0, 1))  # between the pixels that are kept
        with pytest.raises(InputError, match="before they are resized"):
            client.annotate("resized", np.ones((5, 5), np.uint8))
    found = label_maps(served.folder / "resized")[f"{seq:05d}.png"]
    expected = cv2.resize(large, (SIZE[1] // 2, SIZE[0] // 2), interpolation=cv2.INTER_NEAREST_EXACT)
    assert np.array_equal(found == 9, expected == 9)


def test_commands_do_not_pile_up_before_a_stream_that_is_paused(served):
    with served.client("crowded") as client:
        client.pause("crowded")
        time.sleep(0.7)  # what is in flight gets through
        told = []
        for _ in range(6):  # of each client, 16 may wait for their answers
            with RawClient(address(served.pipeline)) as one:
                for _ in range(15):
                    one.send("forget", "crowded", object=100)
                while one.socket.poll(500):
                    told.append(one.receive()["error"])
        assert len(told) == 6 * 15 - 64
        assert all("64 commands wait already" in error and "paused" in error for error in told)


def test_a_client_that_knows_only_the_protocol(served):
    with served.client("raw"), RawClient(address(served.pipeline), 30) as client:
        status = client.request("status")
        assert status["streams"]["raw"]["size"] == list(SIZE)
        mask = square(8, 8, 8)
        added = client.request("annotate", "raw", mask)
        assert added["ok"], added
        assert client.request("annotate", "raw", mask[:5])["ok"] is False
        assert "explode" in client.request("explode", "raw")["error"]
        assert client.request("pause", "raw")["ok"]
        assert client.request("resume", "raw")["ok"]
    check(served.folder / "raw", DRIFT, {added["seq"]: [lambda _: mask]})
