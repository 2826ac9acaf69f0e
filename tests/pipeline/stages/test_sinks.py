"""The sinks stage: everything written once, acknowledged, and continued after a death."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import msgpack
import numpy as np
import pytest
import zmq
from single_stage import Bench, Process, Running, bench, descriptors, until

from streamvos.masks.labelmap import read_label_map
from streamvos.pipeline.stages.sinks import SinksStage
from streamvos.pipeline.wire.messages import Array, Message, Place
from streamvos.sinks import JsonLinesSink
from streamvos.types import SinkError

SIZE = (48, 64)


def picture(seq: int) -> np.ndarray:
    """Eight upright bars, white for each bit of the number, the highest first; they survive coding."""
    bits = np.array([(seq >> (7 - place)) & 1 for place in range(8)], np.uint8)
    row = np.repeat(bits * 255, SIZE[1] // 8)
    return np.broadcast_to(row[None, :, None], (*SIZE, 3)).copy()


def number(image: np.ndarray) -> int:
    bars = image[40, SIZE[1] // 16 :: SIZE[1] // 8, 1] > 127
    return int("".join("1" if bar else "0" for bar in bars), 2)


def label_map(seq: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[2:12, seq % 40 : seq % 40 + 12] = 1 + seq % 3
    return mask


class Decoder:
    """The producer: results by number, as credit allows."""

    def __init__(self, made: Bench, noisy: bool = False):
        self._made, self._noisy = made, noisy
        self.outbox = made.outbox("s/results")
        self.outbox.allocate([SIZE[0] * SIZE[1]])
        self.incarnation = 0
        self._frames = made.arenas["s/frames"]
        self._frames.allocate(16, SIZE[0] * SIZE[1] * 3)

    def begin(self, stage: Running | Process, incarnation: int, endpoint: str) -> None:
        self.outbox.connect(endpoint)
        self.outbox.reset(incarnation)
        self.incarnation = incarnation
        stage.order(Message("reset", "s", incarnation))

    def send(self, seq: int, wait: bool = True) -> bool:
        if wait:
            until(lambda: self.outbox.credit or (self.outbox.socket.poll(20) and False), "credit")
        elif not self.outbox.credit:
            return False
        mask = label_map(seq)
        if self._noisy:  # a line of JSON of some 15 kB
            mask = np.random.default_rng(seq).integers(0, 2, SIZE).astype(np.uint8)
        arrays: dict[str, object] = {"mask": mask}
        if self._made.config.stream("s").shows_pictures:
            slot = seq % 16
            generation, _ = self._frames.write(slot, Array.of(picture(seq)).data)
            arrays["image"] = Array("uint8", (*SIZE, 3), Place("s/frames", slot, generation, 0))
        key = int(mask.max())
        fields = {
            "captured": 1000 + seq, "pts": seq / 24, "dropped": {"newer frame": seq % 2},
            "stamps": {"source": [1, 2, 3], "decoder": [4, 5, 6]},
            "ids": [key], "objects": [[key, 0.5, "tracking", [1, 2, 13, 12], 120]],
        }  # fmt: skip
        self.outbox.send("result", seq, fields, arrays)
        return True

    def end(self, seq: int) -> None:
        self.outbox.send("end", seq)


def stream(folder: Path, *kinds: str, policy: str = "lossless", **options) -> dict:
    paths = {"json": "results.jsonl", "labels": "labels", "overlay": "overlay.mp4"}
    sinks = [
        {"kind": kind, **({"path": str(folder / paths[kind])} if kind in paths else {}), **options}
        for kind in kinds
    ]
    return {"source": "synthetic:", "policy": policy, "realtime": policy == "latest", "sinks": sinks}


def begun(made: Bench, incarnation: int = 1, life: int = 0, **decoder) -> tuple[Running, Decoder]:
    stage, producer = made.run(SinksStage, "sinks.s", life), Decoder(made, **decoder)
    producer.begin(stage, incarnation, stage.endpoints["s/results"])
    until(lambda: made.heard("reset_done"), "reset_done")
    return stage, producer


def ended(made: Bench) -> Message:
    return until(lambda: made.failures or made.heard("ended"), "ended")[0]


def acknowledged(messages: list[Message]) -> list[list]:
    return [frame for message in messages for frame in message["frames"]]


def shown(folder: Path) -> list[str]:
    """Names in a folder that are not hidden."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def indices(path: Path) -> list[int]:
    text = path.read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line)["index"] for line in text.splitlines()]


def numbers(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [number(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_every_sink_gets_every_result_and_each_is_acknowledged_once(tmp_path):
    with bench(stream(tmp_path, "json", "labels", "overlay")) as made:
        _, decoder = begun(made)
        for seq in range(40):
            decoder.send(seq)
        decoder.end(40)
        assert ended(made).seq == 39
        frames = acknowledged(made.heard("ack"))
        assert [frame[0] for frame in frames] == list(range(40))
        assert [frame[1] for frame in frames] == [1000 + seq for seq in range(40)]
        assert [frame[3] for frame in frames] == [{"newer frame": seq % 2} for seq in range(40)]
        assert not any(frame[4] for frame in frames)
        received, started, done = frames[0][2]["sinks"]
        assert received <= started <= done
        assert frames[0][2]["decoder"] == [4, 5, 6]
        kinds = [message.kind for message in made.messages]
        assert kinds.index("ended") == len(kinds) - 1
    assert indices(tmp_path / "results.jsonl") == list(range(40))
    assert numbers(tmp_path / "overlay.mp4") == list(range(40))
    record = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[7])
    assert record["stream"] == "s"
    assert record["captured_ns"] == 1007
    assert record["objects"][0]["box"] == [1, 2, 13, 12]
    for seq in range(40):
        np.testing.assert_array_equal(read_label_map(tmp_path / f"labels/{seq:05d}.png"), label_map(seq))
    assert shown(tmp_path) == ["labels", "overlay.mp4", "results.jsonl"]


def test_a_stream_without_sinks_is_acknowledged_too(tmp_path):
    with bench(stream(tmp_path)) as made:
        _, decoder = begun(made)
        for seq in range(5):
            decoder.send(seq)
        decoder.end(5)
        assert ended(made).seq == 4
        assert len(acknowledged(made.heard("ack"))) == 5


def test_what_was_written_is_passed_over_and_the_first_new_result_is_recovered(tmp_path):
    with bench(stream(tmp_path, "json", "overlay")) as made:
        stage, decoder = begun(made)
        chance, sent, incarnation = random.Random(3), 0, 1
        begins = []
        while sent < 60:
            decoder.send(sent)
            sent += 1
            if chance.random() < 0.15:
                until(lambda: stage.stage.frames > sent - 3, "the results")  # noqa: B023
                incarnation += 1
                answers = len(made.heard("reset_done"))
                decoder.begin(stage, incarnation, stage.endpoints["s/results"])
                until(lambda: len(made.heard("reset_done")) > answers, "reset_done")  # noqa: B023
                begins.append(made.heard("reset_done")[-1]["next"])
                sent = max(0, min(begins[-1], sent - chance.randint(0, 9)))
        decoder.end(60)
        ended(made)
        frames = acknowledged(made.heard("ack"))
        assert [frame[0] for frame in frames] == list(range(60))
        assert {frame[0] for frame in frames if frame[4]} == {one for one in begins if one < 60}
        assert incarnation > 4
    assert indices(tmp_path / "results.jsonl") == list(range(60))
    assert numbers(tmp_path / "overlay.mp4") == list(range(60))


@pytest.fixture
def slow_json(monkeypatch):
    """Makes the file of a JSON sink a pipe, which takes lines only while somebody reads."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    os.set_blocking(writer, True)
    taken, stop = bytearray(), threading.Event()

    def drain() -> None:
        while not stop.is_set():
            try:
                data = os.read(reader, 65536)
            except BlockingIOError:
                data = b""
            taken.extend(data)
            if not data:
                time.sleep(0.005)

    replace_file(monkeypatch, lambda: writer)
    thread = threading.Thread(target=drain)
    yield thread, taken
    stop.set()
    if not thread.ident:
        thread.start()
    thread.join()
    os.close(reader)
    os.close(writer)


def replace_file(monkeypatch: pytest.MonkeyPatch, descriptor: Callable[[], int]) -> None:
    """Let JSON sinks write to a descriptor instead of their files."""
    opened = JsonLinesSink.__init__

    def init(self, *arguments, **options):
        opened(self, *arguments, **options)
        os.dup2(descriptor(), self._file.fileno())

    monkeypatch.setattr(JsonLinesSink, "__init__", init)


def test_under_lossless_a_slow_sink_holds_the_stream_and_nothing_is_lost(tmp_path, slow_json):
    thread, taken = slow_json
    with bench(stream(tmp_path, "json", "labels", queue=3)) as made:
        _, decoder = begun(made, noisy=True)
        sent = 0
        held = time.monotonic() + 1.0
        while time.monotonic() < held:
            if decoder.send(sent, wait=False):
                sent += 1
                held = time.monotonic() + 1.0
            assert sent < 200
            time.sleep(0.002)
        acked = acknowledged(made.heard("ack"))
        assert len(acked) < sent - 3  # nothing is said to be written that is not
        thread.start()
        for seq in range(sent, sent + 20):
            decoder.send(seq)
        decoder.end(sent + 20)
        assert ended(made).seq == sent + 19
        until(lambda: bytes(taken).count(b"\n") == sent + 20, "the lines")
        lines = bytes(taken).splitlines()
        assert [json.loads(line)["index"] for line in lines] == list(range(sent + 20))
        assert [frame[0] for frame in acknowledged(made.heard("ack"))] == list(range(sent + 20))


def test_under_latest_a_slow_sink_loses_its_oldest_and_holds_nobody(tmp_path, slow_json):
    thread, taken = slow_json
    with bench(stream(tmp_path, "json", "labels", policy="latest", queue=3)) as made:
        stage, decoder = begun(made, noisy=True)
        written = tmp_path / "labels"
        for seq in range(120):
            decoder.send(seq)
            until(lambda seq=seq: len(list(written.glob("*.png"))) >= seq, "the labels")
        until(lambda: len(acknowledged(made.heard("ack"))) == 120, "acknowledgements")
        dropped = stage.stage.beat()["drops"]["json queue full"]
        assert dropped > 20
        assert "labels queue full" not in stage.stage.beat()["drops"]
        thread.start()
        decoder.end(120)
        ended(made)
        until(lambda: bytes(taken).count(b"\n") == 120 - dropped, "the lines")
        kept = [json.loads(line)["index"] for line in bytes(taken).splitlines()]
        assert kept == sorted(set(kept))
        assert kept[-3:] == [117, 118, 119]
        assert len(list((tmp_path / "labels").glob("*.png"))) == 120


FULL = "no space left on device (json sink: "


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_makes_a_sink_wait_and_loses_it_no_frame_under_lossless(tmp_path, monkeypatch):
    replace_file(monkeypatch, lambda: os.open("/dev/full", os.O_RDWR))
    for policy in ("latest", "lossless"):
        folder = tmp_path / policy
        folder.mkdir()
        with bench(stream(folder, "json", "labels", policy=policy, queue=8)) as made:
            stage, decoder = begun(made)
            sent = 0
            while sent < 40 and (policy == "latest" or decoder.outbox.credit):
                decoder.send(sent)
                sent += 1
                if policy == "lossless":  # the credit for it, if it is given
                    decoder.outbox.socket.poll(300)
            beat = until(lambda stage=stage: (beat := stage.stage.beat())["waiting_for"] and beat, "the wait")
            assert beat["waiting_for"].startswith(FULL)
            assert 0 < beat["waiting_since"] <= time.monotonic_ns()
            labels = folder / "labels"
            if policy == "lossless":
                assert sent < 40  # it holds the stream
                assert not acknowledged(made.heard("ack"))
            else:  # it loses its oldest, but for the one in its hand, and holds nobody
                until(lambda labels=labels: len(list(labels.glob("*.png"))) == 40, "the other sink")
                assert stage.stage.drops["json queue full"] == 40 - 8 - 1
            assert not made.failures
            assert not made.heard("sink_failed")
            stage.order(Message("stop", "s", 1, 0, {"drain": False}))  # which it does not wait beyond
            ended(made)
            assert not made.failures
            assert stage.stage.beat()["waiting_for"] == ""


def test_another_error_ends_one_sink_of_a_live_stream_and_a_lossless_stream(tmp_path):
    for policy in ("latest", "lossless"):
        folder = tmp_path / policy
        with bench(stream(folder, "json", "labels", policy=policy)) as made:
            _, decoder = begun(made)
            shutil.rmtree(folder / "labels")
            decoder.send(0)
            if policy == "lossless":
                (error,) = until(lambda made=made: made.failures, "the failure")
                assert isinstance(error, SinkError)
                assert "No such file" in str(error)
                assert not acknowledged(made.heard("ack"))
                continue
            (failed,) = until(lambda made=made: made.heard("sink_failed"), "sink_failed")
            assert failed["sink"] == "labels"
            assert "No such file" in failed["error"]
            for seq in range(1, 10):
                decoder.send(seq)
            decoder.end(10)
            ended(made)
            assert indices(folder / "results.jsonl") == list(range(10))
            assert not made.failures


def test_a_stop_closes_it_with_what_is_there(tmp_path):
    with bench(stream(tmp_path, "json", "overlay", policy="latest")) as made:
        stage, decoder = begun(made)
        for seq in range(8):
            decoder.send(seq)
        until(lambda: stage.stage.frames == 8, "the results")
        stage.order(Message("stop", "s", 1, 0, {"drain": False}))
        assert ended(made).seq == 7
    assert indices(tmp_path / "results.jsonl") == list(range(8))
    assert numbers(tmp_path / "overlay.mp4") == list(range(8))


def test_a_stage_that_just_ends_leaves_partial_files(tmp_path):
    with bench(stream(tmp_path, "json", "overlay")) as made:
        stage, decoder = begun(made)
        for seq in range(8):
            decoder.send(seq)
        until(lambda: len(acknowledged(made.heard("ack"))) == 8, "acknowledgements")
        stage.end()
    assert indices(*tmp_path.glob("results.*.partial.jsonl")) == list(range(8))
    assert numbers(*tmp_path.glob("overlay.*.partial.mp4")) == list(range(8))


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_it_continues_its_files(tmp_path, seed):
    chance = random.Random(seed)
    lives, total = 4, 200
    with bench(stream(tmp_path, "json", "labels", "overlay")) as made:
        decoder, committed, acks = Decoder(made), -1, []
        for life in range(lives):
            process = Process(made, "sinks.s", life)
            decoder.begin(process, life + 1, process.ready["endpoints"]["s/results"])
            process.wait_for("reset_done")
            seq = committed + 1
            until_frame = total if life == lives - 1 else seq + chance.randint(25, 45)
            while seq < until_frame:
                decoder.send(seq)
                seq += 1
                if chance.random() < 0.1:
                    acks = process.heard("ack")  # a snapshot is committed up to what was acknowledged
                    committed = max(committed, acks[-1].seq - chance.randint(0, 6)) if acks else committed
            if life == lives - 1:
                decoder.end(total)
                process.wait_for("ended")
            else:
                time.sleep(chance.random() * 0.01)
            process.kill()
            acks.append(process.heard("ack"))
        assert acknowledged(acks[-1])[-1][0] == total - 1
    assert indices(tmp_path / "results.jsonl") == list(range(total))
    for seq in range(total):
        np.testing.assert_array_equal(read_label_map(tmp_path / f"labels/{seq:05d}.png"), label_map(seq))
    parts = [tmp_path / "overlay.mp4", *(tmp_path / f"overlay.{life + 1}.mp4" for life in range(1, lives))]
    shown = [one for part in parts if part.exists() for one in numbers(part)]
    assert shown == sorted(set(shown))
    # a kill may cost the last half second, and what the encoder held
    assert len(shown) >= total - (lives - 1) * 24
    assert shown[-1] == total - 1
    assert not list(tmp_path.rglob("*partial*")) + list(tmp_path.rglob("*.tmp"))


def test_files_of_an_earlier_run_are_not_continued(tmp_path):
    with bench(stream(tmp_path, "json", "overlay")) as made:  # which another session has begun
        stage, decoder = begun(made)
        decoder.send(0)
        until(lambda: len(acknowledged(made.heard("ack"))) == 1, "the acknowledgement")
        stage.end()
    assert len(list(tmp_path.glob("*partial*"))) == 2
    (tmp_path / "overlay.3.partial.mp4").write_bytes(b"the user's")
    with bench(stream(tmp_path, "json", "overlay")) as made:
        _, decoder = begun(made, life=1)  # the first life died before it began
        decoder.send(0)
        decoder.end(1)
        ended(made)
    assert indices(tmp_path / "results.jsonl") == [0]
    assert shown(tmp_path) == ["overlay.3.partial.mp4", "overlay.mp4", "results.jsonl"]


def test_subscribers_get_the_masks_and_the_end(tmp_path):
    with bench(stream(tmp_path, "publish")) as made:
        _, decoder = begun(made)
        with made.zmq.socket(zmq.SUB) as subscriber:
            subscriber.setsockopt(zmq.SUBSCRIBE, b"raw/s/")
            subscriber.connect(f"ipc://{made.folder}/masks-s.sock")
            seq = 0
            while not subscriber.poll(50):
                decoder.send(seq)
                seq += 1
            topic, header, mask = subscriber.recv_multipart()
            values = msgpack.unpackb(header)
            assert topic == b"raw/s/"
            assert values["kind"] == "mask"
            np.testing.assert_array_equal(
                np.frombuffer(mask, np.uint8).reshape(SIZE), label_map(values["seq"])
            )
            decoder.end(seq)
            ended(made)
            kinds = []
            while subscriber.poll(200):
                kinds.append(msgpack.unpackb(subscriber.recv_multipart()[1])["kind"])
            assert kinds[-1] == "end"


def test_results_that_make_no_sense_are_passed_over(tmp_path):
    with bench(stream(tmp_path, "json", policy="latest")) as made:
        stage, decoder = begun(made)
        good = {"captured": 1, "pts": 0.0, "dropped": {}, "stamps": {}, "ids": [], "objects": []}
        bad: list[tuple[dict, np.ndarray]] = [
            (good, np.zeros((3, 4, 5), np.uint8)),
            (good, np.zeros((3, 4), np.int32)),
            ({**good, "captured": "soon"}, label_map(0)),
            ({**good, "stamps": {"x": [1]}}, label_map(0)),
            ({**good, "objects": [[1, 2]]}, label_map(0)),
            ({**good, "objects": [[1, 0.5, "well", None, 3]]}, label_map(0)),
            ({**good, "ids": "ab"}, label_map(0)),
            ({**good, "dropped": {"a": "b"}}, label_map(0)),
        ]
        for fields, mask in bad:
            until(lambda: decoder.outbox.credit, "credit")
            decoder.outbox.send("result", 0, fields, {"mask": mask})
        decoder.send(0)
        decoder.end(1)
        ended(made)
        assert sum(stage.stage.beat()["refused"].values()) == len(bad)
    assert indices(tmp_path / "results.jsonl") == [0]


def test_a_gap_in_a_lossless_stream_is_never_written(tmp_path):
    with bench(stream(tmp_path, "json")) as made:
        _, decoder = begun(made)
        decoder.send(0)
        until(lambda: acknowledged(made.heard("ack")), "the acknowledgement")
        decoder.send(2)
        (error,) = until(lambda: made.failures, "the failure")
        assert "result 2 but expected 1" in str(error)
    assert indices(*tmp_path.glob("results.*.partial.jsonl")) == [0]


def test_nothing_is_left_open(tmp_path):
    def once(turn: int) -> None:
        with bench(stream(tmp_path / str(turn), "json", "labels", "overlay", "publish")) as made:
            _, decoder = begun(made)
            decoder.send(0)
            if turn % 2:
                decoder.end(1)
                ended(made)

    once(0)
    once(1)
    before = descriptors()
    threads = threading.active_count()
    for turn in range(2, 6):
        once(turn)
    assert descriptors() <= before
    assert threading.active_count() <= threads
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > before
