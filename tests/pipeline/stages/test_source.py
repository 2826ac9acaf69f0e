"""The source stage: what it sends, what it drops, and what it sends again."""

from __future__ import annotations

import http.server
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import zmq
from PIL import Image
from single_stage import Bench, Process, bench, descriptors, until
from small_videos import write_video

from streamvos.masks.labelmap import write_label_map
from streamvos.pipeline.stages.source import SourceStage, label_of
from streamvos.pipeline.stages.stage import now
from streamvos.pipeline.wire.messages import Message
from streamvos.sources import open_source
from streamvos.types import InputError, SourceError

SIZE = (48, 64)
FPS = 10


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """A video file, a folder of pictures and a mask, of 30 frames that differ."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (30, *SIZE, 3)).astype(np.uint8)
    with av.open(str(folder / "clip.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    (folder / "shots").mkdir()
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"shots/shot{index}.png")
    mask = np.zeros(SIZE, np.uint8)
    mask[10:30, 10:40] = 3
    write_label_map(folder / "mask.png", mask)
    return folder


def given(source: str, **options) -> list[np.ndarray]:
    with open_source(source, **options) as opened:
        return [frame.image for frame in opened]


class Extractor:
    """The consumer: copies frames, and gives credit when the test says so."""

    def __init__(self, made: Bench):
        self.inbox = made.inbox("s/frames")
        self.endpoint = self.inbox.bind()
        self.frames: list[tuple[Message, np.ndarray]] = []
        self.end: Message | None = None
        self.ages: list[int] = []

    @property
    def connect(self) -> dict[str, str]:
        return {"s/frames": self.endpoint}

    def begin(self, stage, incarnation: int, number: int = 0, fresh: bool = False) -> None:
        self.inbox.reset(incarnation)
        stage.order(Message("start", "s", incarnation, 0, {"next": number, "fresh": fresh}))

    def take(self, grant: bool = True) -> Message | None:
        """The next message, if it is there."""
        message = self.inbox.receive()
        if message is None:
            return None
        if message.kind == "end":
            self.end = message
            return message
        self.ages.append(now() - message["captured"])
        self.frames.append((message, self.inbox.array(message, "image")))
        if grant:
            self.inbox.grant(message)
        return message

    def wait(self, grant: bool = True) -> Message:
        def arrived() -> Message | None:
            self.inbox.socket.poll(20, zmq.POLLIN)
            return self.take(grant)

        return until(arrived, "a frame")

    def nothing(self, seconds: float = 0.15) -> bool:
        time.sleep(seconds)
        return self.take() is None


def begun(made: Bench, fresh: bool = False) -> tuple[object, Extractor]:
    extractor, stage = Extractor(made), made.run(SourceStage, "source.s")
    stage.order(extractor.connect)
    extractor.begin(stage, 1, fresh=fresh)
    return stage, extractor


SOURCES = {
    "a video": ("{}/clip.mp4", {}),
    "a resized video": ("{}/clip.mp4", {"height": 24, "stride": 2, "max_frames": 11}),
    "pictures": ("{}/shots", {"fps": 12.0}),
    "a synthetic video": ("synthetic:seed=2,size=48x64,length=20", {}),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_frame_comes_once_in_order_and_as_it_was_read(videos, kind):
    source, options = SOURCES[kind]
    source = source.format(videos)
    expected = given(source, **options)
    with bench({"source": source, **options}) as made:
        stage, extractor = begun(made)
        released = 0
        while extractor.end is None:
            message = extractor.wait()
            released += 1
            stage.order(Message("release", "s", 1, message.seq))
        assert [message.seq for message, _ in extractor.frames] == list(range(len(expected)))
        for (_, image), truth in zip(extractor.frames, expected, strict=True):
            np.testing.assert_array_equal(image, truth)
        assert extractor.end.seq == len(expected)
        assert stage.facts["size"] == list(expected[0].shape[:2])
        assert stage.facts["live"] is False
        for message, _ in extractor.frames:
            received, started, done = message["stamps"]["source"]
            assert message["captured"] <= received <= started <= done
            assert message["dropped"] == {}
        assert not made.failures


def test_pictures_tell_their_names(videos):
    with bench({"source": f"{videos}/shots"}) as made:
        assert made.run(SourceStage, "source.s").facts["stems"].split("\0") == [f"shot{n}" for n in range(30)]


def test_frames_travel_in_the_message_to_another_host(videos):
    remote = {"placement": "split", "host": "127.0.0.1", "remote": {"extractor": {"host": "127.0.0.1"}}}
    expected = given(f"{videos}/clip.mp4")
    with bench({"source": f"{videos}/clip.mp4", "mask": f"{videos}/mask.png"}, **remote) as made:
        stage, extractor = begun(made, fresh=True)
        first = extractor.wait()
        assert isinstance(first.arrays["image"].data, bytes)
        assert extractor.inbox.array(first, "mask").max() == 3
        while extractor.end is None:
            message = extractor.wait()
            if message.seq == 20 and message.incarnation == 1:
                extractor.begin(stage, 2, 7)
        seen = {message.seq: image for message, image in extractor.frames}
        assert sorted(seen) == list(range(30))
        assert all((seen[seq] == expected[seq]).all() for seq in seen)


def test_at_most_the_window_is_under_way(videos):
    with bench({"source": f"{videos}/clip.mp4"}) as made:
        _, extractor = begun(made)
        first, second = extractor.wait(grant=False), extractor.wait(grant=False)
        assert extractor.nothing()
        extractor.inbox.grant(first)
        assert extractor.wait().seq == 2
        extractor.inbox.grant(second)
        assert extractor.wait().seq == 3


def test_lossless_waits_for_a_free_slot(videos):
    with bench({"source": f"{videos}/clip.mp4"}, supervision={"snapshot_frames": 1}) as made:
        stage, extractor = begun(made)
        slots = made.config.frame_slots("s", 48 * 64 * 3)
        for seq in range(slots):
            assert extractor.wait().seq == seq
        assert extractor.nothing()
        stage.order(Message("release", "s", 1, 4))
        for seq in range(slots, slots + 5):
            assert extractor.wait().seq == seq
        assert extractor.nothing()
        for seq, (message, image) in enumerate(extractor.frames[5:], 5):  # nothing was written over
            np.testing.assert_array_equal(extractor.inbox.array(message, "image"), image, err_msg=f"{seq}")


@pytest.mark.parametrize("seed", range(4))
def test_rebegun_at_any_moment_it_sends_the_same_frames_again(videos, seed):
    chance = random.Random(seed)
    expected = given(f"{videos}/clip.mp4")
    with bench({"source": f"{videos}/clip.mp4"}) as made:
        stage, extractor = begun(made)
        committed, incarnation, seen = -1, 1, {}
        while extractor.end is None or len(seen) < len(expected):
            message = extractor.wait(grant=chance.random() < 0.97)
            if message.kind == "frame":
                image = extractor.frames[-1][1]
                np.testing.assert_array_equal(image, expected[message.seq])
                seen[message.seq] = image
            if chance.random() < 0.4 and message.kind == "frame":
                committed = chance.randint(committed, message.seq)
                if committed >= 0:
                    stage.order(Message("release", "s", incarnation, committed))
            complete = extractor.end is not None and len(seen) == len(expected)
            if not complete and (chance.random() < 0.1 or not extractor.inbox.socket.poll(60)):
                incarnation += 1
                extractor.end = None
                extractor.begin(stage, incarnation, committed + 1)
        assert sorted(seen) == list(range(len(expected)))
        assert extractor.end.seq == len(expected)


def test_the_end_is_said_again_to_a_new_incarnation(videos):
    with bench({"source": f"{videos}/clip.mp4", "max_frames": 4}) as made:
        stage, extractor = begun(made)
        while extractor.end is None:
            extractor.wait()
        for incarnation, number in ((2, 2), (3, 4)):
            extractor.end, extractor.frames = None, []
            extractor.begin(stage, incarnation, number)
            while extractor.end is None:
                extractor.wait()
            assert [message.seq for message, _ in extractor.frames] == list(range(number, 4))
            assert extractor.end.seq == 4


def test_killed_at_any_moment_it_reads_again_what_it_lost(videos):
    chance = random.Random(5)
    expected = given(f"{videos}/shots")
    with bench({"source": f"{videos}/shots"}) as made:
        extractor = Extractor(made)
        seen: dict[int, np.ndarray] = {}
        committed = -1
        for life in range(4):
            process = Process(made, "source.s", life)
            process.order(extractor.connect)
            extractor.end = None
            extractor.begin(process, life + 1, committed + 1)
            for _ in range(chance.randint(3, 9) if life < 3 else 1000):
                message = extractor.wait()
                if extractor.end is not None:
                    break
                np.testing.assert_array_equal(extractor.frames[-1][1], expected[message.seq])
                seen[message.seq] = extractor.frames[-1][1]
                if chance.random() < 0.3:
                    committed = message.seq
                    process.order(Message("release", "s", life + 1, committed))
            process.kill()
        assert sorted(seen) == list(range(30))


# ---- the first label map


def test_the_mask_rides_with_the_first_frame_and_again_when_nothing_was_remembered(videos):
    with bench({"source": f"{videos}/clip.mp4", "mask": f"{videos}/mask.png"}) as made:
        stage, extractor = begun(made, fresh=True)
        first = extractor.wait()
        assert set(np.unique(extractor.inbox.array(first, "mask"))) == {0, 3}
        assert "mask" not in extractor.wait().arrays
        for _ in range(20):  # the slots of frames do not touch the mask's
            extractor.wait()
        extractor.begin(stage, 2, 0, fresh=True)
        again = extractor.wait()
        assert again.seq == 0
        np.testing.assert_array_equal(
            extractor.inbox.array(again, "mask"), np.array(Image.open(videos / "mask.png"))
        )
        extractor.begin(stage, 3, 1)
        assert "mask" not in extractor.wait().arrays


def test_boxes_become_a_label_map_of_the_first_frame(videos):
    with bench({"source": f"{videos}/clip.mp4", "boxes": ["7:10,10,40,30"]}) as made:
        _, extractor = begun(made, fresh=True)
        first = extractor.wait()
        mask = extractor.inbox.array(first, "mask")
        assert mask.shape == SIZE
        assert set(np.unique(mask)) == {0, 7}


def test_a_synthetic_video_knows_its_own_mask():
    with bench({"source": "synthetic:size=48x64,length=4"}) as made:
        _, extractor = begun(made, fresh=True)
        assert extractor.inbox.array(extractor.wait(), "mask").any()


def test_a_mask_of_another_size_is_the_inputs_fault(videos, tmp_path):
    write_label_map(tmp_path / "odd.png", np.ones((20, 30), np.uint8))
    with (
        bench({"source": f"{videos}/clip.mp4", "mask": str(tmp_path / "odd.png")}) as made,
        pytest.raises(InputError, match="30 x 20, the frames are 64 x 48"),
    ):
        made.run(SourceStage, "source.s")


# ---- policy "latest"


@pytest.mark.parametrize(
    "stream", [{"source": "camera:{}/clip.mp4"}, {"source": "{}/clip.mp4", "realtime": True}]
)
def test_under_latest_no_frame_is_older_than_two_periods_and_every_drop_is_counted(videos, stream):
    stream = {**stream, "source": stream["source"].format(videos)}
    with bench(stream) as made:
        stage, extractor = begun(made)
        while extractor.end is None:
            message = extractor.wait(grant=False)
            time.sleep(0.33)  # an extractor that takes more than three periods
            extractor.inbox.grant(message)
            stage.order(Message("release", "s", 1, message.seq))
        assert 3 <= len(extractor.frames) <= 15
        assert max(extractor.ages) < 2e9 / FPS
        assert [message.seq for message, _ in extractor.frames] == list(range(len(extractor.frames)))
        told = sum(sum(message["dropped"].values()) for message, _ in extractor.frames)
        drops = stage.stage.beat()["drops"]
        assert set(drops) == {"newer frame"}
        assert 0 <= sum(drops.values()) - told <= 4  # the rest came behind the last frame that was sent
        assert len(extractor.frames) + sum(drops.values()) == 30
        assert stage.facts["live"] is stream["source"].startswith("camera:")


def test_a_frame_without_a_slot_is_dropped_and_counted(videos):
    with bench({"source": "synthetic:size=48x64,length=400", "realtime": True, "fps": 200.0}) as made:
        stage, extractor = begun(made)
        for seq in range(16):
            assert extractor.wait().seq == seq
        until(lambda: stage.stage.beat()["drops"].get("no slot", 0) > 3, "drops")
        assert extractor.take() is None
        stage.order(Message("release", "s", 1, 15))
        message = extractor.wait()
        assert message.seq == 16
        assert message["dropped"]["no slot"] > 3


def test_what_was_under_way_is_counted_when_a_live_stream_is_rebegun(videos):
    with bench({"source": "synthetic:size=48x64,length=600", "realtime": True, "fps": 100.0}) as made:
        stage, extractor = begun(made)
        for _ in range(6):
            extractor.wait()
        lost = [message for message, _ in extractor.frames if message.seq >= 2]
        extractor.begin(stage, 2, 2)
        message = extractor.wait()
        assert (message.seq, message.incarnation) == (2, 2)
        under_way = message["dropped"]["recovery"]
        assert under_way >= 4
        assert message["dropped"].get("newer frame", 0) >= sum(
            one["dropped"].get("newer frame", 0) for one in lost
        )
        for seq in range(3, 19):  # all slots are free again
            assert extractor.wait().seq == seq


# ---- pause, resume, stop


def test_under_latest_a_pause_drops(videos):
    with bench({"source": "synthetic:size=48x64,length=2000", "realtime": True, "fps": 100.0}) as made:
        stage, extractor = begun(made)
        extractor.wait()
        stage.order(Message("pause", "s"))
        until(lambda: stage.stage.beat()["drops"].get("paused", 0) > 5, "drops")
        while extractor.take() is not None:
            pass
        last = extractor.frames[-1][0].seq
        assert extractor.nothing()
        stage.order(Message("resume", "s"))
        message = extractor.wait()
        assert message.seq == last + 1
        assert message["dropped"]["paused"] > 5
        assert extractor.ages[-1] < 2e9  # not one from before the pause


@pytest.mark.parametrize("realtime", [False, True])
def test_under_lossless_a_pause_waits(videos, realtime):
    stream = {"source": f"{videos}/clip.mp4", "policy": "lossless", "realtime": realtime}
    with bench(stream) as made:
        stage, extractor = begun(made)
        extractor.wait()
        stage.order(Message("pause", "s"))
        time.sleep(0.3)
        while extractor.take() is not None:
            pass
        assert extractor.nothing(0.3)
        extractor.begin(stage, 2, 0)  # what was sent is sent again, though paused
        assert extractor.wait().seq == 0
        stage.order(Message("resume", "s"))
        while extractor.end is None:
            message = extractor.wait()
            stage.order(Message("release", "s", 2, message.seq))
        assert {message.seq for message, _ in extractor.frames} == set(range(30))
        assert all(message["dropped"] == {} for message, _ in extractor.frames)


@pytest.mark.parametrize("policy", ["lossless", "latest"])
def test_stopped_it_ends_behind_the_last_frame(videos, policy):
    stream = {"source": f"{videos}/clip.mp4", "policy": policy, "realtime": policy == "latest"}
    with bench(stream) as made:
        stage, extractor = begun(made)
        for _ in range(3):
            extractor.wait()
        stage.order(Message("stop", "s"))
        while extractor.end is None:
            extractor.wait()
        assert extractor.end.seq == extractor.frames[-1][0].seq + 1 < 30
        assert extractor.nothing()
        extractor.end = None
        extractor.begin(stage, 2, extractor.frames[-1][0].seq)  # a death while it was drained
        while extractor.end is None:
            extractor.wait()


def test_realtime_is_paced_by_the_time_stamps(videos):
    with bench(
        {"source": f"{videos}/clip.mp4", "policy": "lossless", "realtime": True, "max_frames": 6}
    ) as made:
        _, extractor = begun(made)
        while extractor.end is None:
            extractor.wait()
        captured = [message["captured"] for message, _ in extractor.frames]
        assert [message["pts"] for message, _ in extractor.frames] == pytest.approx(
            [n / FPS for n in range(6)]
        )
        assert captured[-1] - captured[0] >= 0.49e9  # never before its time


# ---- what goes wrong


def _delete(folder: Path) -> None:
    (folder / "shot2.png").unlink()


def _become_a_pipe(folder: Path) -> None:
    (folder / "shot2.png").unlink()
    os.mkfifo(folder / "shot2.png")


def _add(folder: Path) -> None:
    shutil.copy(folder / "shot2.png", folder / "shot1b.png")


def _rename(folder: Path) -> None:
    (folder / "shot2.png").rename(folder / "shot2b.png")


def _write_anew(folder: Path) -> None:
    os.utime(folder / "shot2.png", ns=(1, 1))


def _write_a_later_one_anew(folder: Path) -> None:
    os.utime(folder / "shot20.png", ns=(1, 1))


def _nothing(folder: Path) -> None:
    pass


CHANGES = {
    _delete: "number of pictures was 30 and is 29",
    _become_a_pipe: "number of pictures was 30 and is 29",
    _add: "number of pictures was 30 and is 31",
    _rename: "names of the pictures differ",
    _write_anew: "shot2.png was written anew",
    _write_a_later_one_anew: "",
    _nothing: "",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_changed_while_its_worker_was_dead(videos, tmp_path, change):
    folder = tmp_path / "shots"
    shutil.copytree(videos / "shots", folder)
    _check_resumed(folder, change, CHANGES[change])


@pytest.mark.parametrize("shorter", [True, False])
def test_a_video_that_changed_while_its_worker_was_dead(videos, tmp_path, shorter):
    path = tmp_path / "clip.mp4"
    shutil.copy2(videos / "clip.mp4", path)
    frames = given(str(path))[:20]

    def change(path: Path) -> None:
        if shorter:
            write_video(path, frames, FPS)

    _check_resumed(path, change, "size of the file was" if shorter else "")


def _check_resumed(source: Path, change: Callable[[Path], None], error: str) -> None:
    """A second worker goes on at frame 5, after the source was changed."""
    with open_source(str(source)) as opened:
        identity = dict(opened.identity())
    change(source)
    with bench({"source": str(source)}) as made:
        extractor, stage = Extractor(made), made.run(SourceStage, "source.s")
        stage.order(extractor.connect)
        extractor.inbox.reset(2)
        stage.order(Message("start", "s", 2, 0, {"next": 5, "fresh": False, "identity": identity}))
        if not error:
            assert extractor.wait().seq == 5
            return
        (failure,) = until(lambda: made.failures, "the failure")
        assert isinstance(failure, InputError)
        assert error in str(failure)
        assert not extractor.frames


def test_a_damaged_picture_ends_the_stream_behind_the_frames_before_it(videos, tmp_path):
    for index in range(6):
        data = (videos / f"shots/shot{index}.png").read_bytes()
        (tmp_path / f"shot{index}.png").write_bytes(data[:200] if index == 4 else data)
    with bench({"source": str(tmp_path)}) as made:
        _, extractor = begun(made)
        while extractor.end is None:
            extractor.wait()
        assert [message.seq for message, _ in extractor.frames] == [0, 1, 2, 3]
        (error,) = until(lambda: made.failures, "the failure")
        assert isinstance(error, InputError)
        assert "shot4.png" in str(error)


def transport_stream(path: Path) -> bytes:
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", format="mpegts") as output:
        stream = output.add_stream("mpeg2video", rate=25)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for index in range(40):
            picture = rng.integers(0, 256, (*SIZE, 3)).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path.read_bytes()


def test_a_camera_that_stalls_is_an_error_of_the_stage(tmp_path):
    data, released = transport_stream(tmp_path / "clip.ts"), threading.Event()

    class Stalls(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()
            released.wait(30)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalls)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address = f"http://user:secret@127.0.0.1:{server.server_port}/live?key=secret"
    try:
        with bench({"source": address, "stall_timeout": 0.5}) as made:
            stage, extractor = begun(made)
            until(lambda: (extractor.take() or True) and made.failures, "the failure")
            (error,) = made.failures
            assert isinstance(error, SourceError)
            assert "stall" in str(error)
            assert "secret" not in f"{error} {error!r} {stage.facts} {error.__cause__}"
            assert extractor.frames
    finally:
        released.set()
        server.shutdown()
        server.server_close()


def test_credentials_are_in_no_text():
    with (
        bench({"source": "rtsp://user:secret@127.0.0.1:9/live", "open_timeout": 0.5}) as made,
        pytest.raises(SourceError) as caught,
    ):
        made.run(SourceStage, "source.s")
    assert "secret" not in str(caught.value)
    assert "secret" not in label_of("camera:rtsp://user:secret@10.0.0.5/live")


def test_nothing_is_left_open(videos):
    def once() -> None:
        with bench({"source": f"{videos}/clip.mp4"}) as made:
            stage, extractor = begun(made)
            extractor.wait()
            extractor.begin(stage, 2, 20)  # reads anew
            extractor.wait()

    once()
    before = descriptors()
    for _ in range(4):
        once()
    assert descriptors() <= before
