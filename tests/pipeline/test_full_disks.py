"""A disk that is full for a while: a small file system, with all sinks that write files on it."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from pipeline.test_failures import check_drift, configuration, synthetic, written
from pipeline.test_hung_sources import metric, status_of
from serving import Serving, label_maps, serving

from streamvos.pipeline.clients.client import Client
from streamvos.sinks.record import RECORD

SIZE = 4 * 2**20
KINDS = ["labels", "json", "overlay"]
FULL = "no space left on device ("


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of SIZE bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={SIZE},nr_inodes=0", "streamvos", str(folder)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"NO FULL DISK TESTED: a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def stream(folder: Path, name: str, source: str, *kinds: str, **more: Any) -> dict[str, Any]:
    places = {"labels": name, "json": f"{name}.jsonl", "overlay": f"{name}.mp4"}
    sinks = [{"kind": kind, "path": str(folder / places[kind])} for kind in kinds]
    return {"name": name, "source": source, "policy": "lossless", "sinks": sinks, **more}


def fill(disk: Path) -> Path:
    """Take all the room that is left."""
    ballast = disk / "ballast"
    with open(ballast, "ab", buffering=0) as file:
        for block in (65536, 4096, 1):
            try:
                while file.write(b"x" * block):
                    pass
            except OSError:
                continue
    return ballast


def wait_until_full(pipeline: Serving, name: str = "s") -> dict[str, Any]:
    def waits() -> list[dict[str, Any]]:
        return [one for one in pipeline.events("waiting") if one["stream"] == name]

    event: dict[str, Any] = pipeline.wait_for(waits)[0]
    assert event["reason"].startswith(FULL)
    assert (event["stage"], event["level"]) == (f"sinks.{name}", "warning")
    return event


def waiting_seconds(pipeline: Serving, name: str = "s") -> float:
    return metric(pipeline, f'streamvos_stream_waiting_seconds{{stream="{name}"}}')


def check_whole(disk: Path, *names: str) -> None:
    """What is there under a final name, or whose form says so, is whole."""
    for name in names:
        for path in disk.glob(f"{name}*.jsonl"):
            text = path.read_text()
            assert not text or text.endswith("\n")
            assert all(json.loads(line)["stream"] == name for line in text.splitlines())
        label_maps(disk / name)  # which raises for a picture that is cut off
        assert not (disk / f"{name}.mp4").exists()


def test_under_lossless_streams_wait_for_room_and_lose_nothing(tmp_path, disk):
    """Three streams, each with a sink of another kind."""
    config = configuration(
        *(stream(disk, kind, synthetic(120), kind) for kind in KINDS),
        options={"read_ms": 5.0},
        supervision={"hang_timeout": 3.0},
        observe={"prometheus": "0"},
    )
    with serving(config, tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: len(pipeline.events("incarnation")) == 3)
        ballast = fill(disk)
        events = {kind: wait_until_full(pipeline, kind) for kind in KINDS}
        for kind, event in events.items():
            assert f"{kind} sink: {disk}" in event["reason"]
            state = f'streamvos_stream_state{{state="waiting",stream="{kind}"}}'
            pipeline.wait_for(lambda state=state: metric(pipeline, state) == 1)
            # so long that a stage that was busy, or a stream that was stuck, would have been begun anew
            pipeline.wait_for(lambda kind=kind: waiting_seconds(pipeline, kind) > 6.0)
            told = status_of(pipeline, kind)
            assert (told["state"], told["waiting_for"]) == ("waiting", event["reason"])
        check_whole(disk, *KINDS)
        assert len(pipeline.events("waiting")) == 3
        ballast.unlink()
        assert pipeline.wait() == 0, pipeline.log.read_text()[-3000:]
    assert not pipeline.events("died")
    assert not pipeline.events("sink_failed")
    assert sorted(one["stage"] for one in pipeline.events("goes_on")) == [
        f"sinks.{one}" for one in sorted(KINDS)
    ]
    assert all(one["frames"] == 120 for one in pipeline.summary()["streams"].values())
    assert [line["index"] for line in written(disk, "json")] == list(range(120))
    assert len(label_maps(disk / "labels")) == 120
    assert [one.name for one in (disk / "labels").glob(".*")] in ([], [RECORD])
    with av.open(str(disk / "overlay.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 120


def test_all_sinks_on_one_disk(tmp_path, disk):
    """Filled twice, at moments of its own choice; every sink has every frame once."""
    source = synthetic(400)
    config = configuration(stream(disk, "s", source, *KINDS), options={"read_ms": 10.0})
    with serving(config, tmp_path / "run") as pipeline:
        for already in (0, 40):
            pipeline.wait_for(lambda already=already: len(written(disk, "s")) > already)
            before = {name: len(pipeline.events(name)) for name in ("waiting", "goes_on")}
            ballast = fill(disk)
            for name, count in before.items():  # the reason may change while it waits, and is told of anew
                pipeline.wait_for(lambda name=name, count=count: len(pipeline.events(name)) > count)
                ballast.unlink(missing_ok=True)
        assert pipeline.wait() == 0, pipeline.log.read_text()[-3000:]
    assert not pipeline.events("died")
    check_drift(disk, "s", source, 400)
    with av.open(str(disk / "s.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 400


def test_under_latest_the_stream_goes_on_and_what_does_not_fit_is_dropped(tmp_path, disk):
    sinks = [
        {"kind": "json", "path": str(disk / "s.jsonl"), "queue": 4},
        {"kind": "labels", "path": str(tmp_path / "elsewhere")},
    ]
    live = {"policy": "latest", "realtime": True, "fps": 30.0}
    config = configuration({"name": "s", "source": synthetic(100_000), "sinks": sinks, **live})
    with serving(config, tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: written(disk, "s"))
        ballast = fill(disk)
        wait_until_full(pipeline)
        seen = len(list((tmp_path / "elsewhere").glob("*.png")))
        pipeline.wait_for(lambda: len(list((tmp_path / "elsewhere").glob("*.png"))) > seen + 30)
        assert status_of(pipeline, "s")["state"] == "waiting"
        check_whole(disk, "s")
        last = written(disk, "s")[-1]["index"]
        ballast.unlink()
        pipeline.wait_for(lambda: written(disk, "s")[-1]["index"] > last + 40)
        pipeline.wait_for(lambda: status_of(pipeline, "s")["state"] == "running")
        pipeline.signal()
        assert pipeline.wait(20) == 0
    assert not pipeline.events("died")
    assert not pipeline.events("sink_failed")
    indices = [line["index"] for line in written(disk, "s")]
    assert indices == sorted(set(indices))
    assert len(indices) <= indices[-1]  # some were dropped for it, and none for the other
    shown = [int(name.removesuffix(".png")) for name in label_maps(tmp_path / "elsewhere")]
    assert set(indices) <= set(shown)


def test_a_stream_that_is_told_to_stop_still_waits_for_room(tmp_path, disk):
    source = synthetic(3000)
    config = configuration(
        stream(disk, "s", source, "labels", "json"),
        options={"read_ms": 5.0},
        supervision={"hang_timeout": 2.0},
        observe={"prometheus": "0"},
    )
    with serving(config, tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: pipeline.events("incarnation"))
        ballast = fill(disk)
        wait_until_full(pipeline)
        place = f"ipc://{pipeline.runtime}/streamvos/failures/control.sock"
        stopping = threading.Thread(target=lambda: Client(place, timeout=100.0).stop("s"))
        stopping.start()
        began = waiting_seconds(pipeline)
        pipeline.wait_for(lambda: waiting_seconds(pipeline) > began + 5.0)
        ballast.unlink()
        assert pipeline.wait() == 0, pipeline.log.read_text()[-3000:]
        stopping.join(100)
    assert not pipeline.events("died")
    frames = pipeline.summary()["streams"]["s"]["frames"]
    assert frames < 3000
    check_drift(disk, "s", source, frames)


def test_a_signal_is_obeyed_on_a_full_disk(tmp_path, disk):
    config = configuration(
        *(stream(disk, kind, synthetic(3000), kind) for kind in KINDS), options={"read_ms": 5.0}
    )
    with serving(config, tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: len(pipeline.events("incarnation")) == 3)
        for kind in KINDS:
            pipeline.wait_for(lambda kind=kind: status_of(pipeline, kind)["frames"] > 20)
        fill(disk)
        for kind in KINDS:
            wait_until_full(pipeline, kind)
        pipeline.signal()
        # the overlay is not whole
        assert pipeline.wait(20) == 1, pipeline.log.read_text()[-3000:]
        assert not pipeline.children()
    check_whole(disk, *KINDS)
    (partial,) = disk.glob("overlay.*.partial.mp4")
    with av.open(str(partial)) as video:  # not completed, it plays as far as it has come
        assert sum(1 for _ in video.decode(video=0)) > 0
