"""What can fail in a pipeline: how it recovers, what it reports, and that other streams do not suffer."""

from __future__ import annotations

import http.server
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pipeline.raw_client import RawSubscriber
from pipeline.test_recovery import make_mask, make_video
from serving import Serving, label_maps, serving

from streamvos.sources import open_source

STREAMVOS = str(Path(sys.executable).with_name("streamvos"))


def synthetic(length: int, size: str = "48x64", seed: int = 1) -> str:
    return f"synthetic:seed={seed},objects=2,size={size},leave=0,length={length}"


def stream(folder: Path, name: str, source: str, **more: Any) -> dict[str, Any]:
    sinks = [
        {"kind": "labels", "path": str(folder / name)},
        {"kind": "json", "path": str(folder / f"{name}.jsonl")},
    ]
    return {"name": name, "source": source, "policy": "lossless", "sinks": sinks, **more}


def configuration(
    *streams: dict[str, Any], supervision: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    options = more.pop("options", {})
    return {
        "name": "failures",
        "method": {"name": "stub_methods:drift", "device": "cpu", "threads": 1, "options": options},
        "streams": list(streams),
        "supervision": {"standby": False, **(supervision or {})},
        **more,
    }


def written(folder: Path, name: str) -> list[dict[str, Any]]:
    for path in (folder / f"{name}.jsonl", *folder.glob(f"{name}.*.partial.jsonl")):
        if path.exists():
            return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return []


def check_drift(folder: Path, name: str, source: str, frames: int) -> None:
    """All frames are there, and none was lost or came twice."""
    with open_source(source) as opened:
        first = opened.label_map(0)
    found = list(label_maps(folder / name).values())
    assert len(found) == frames
    for t, mask in enumerate(found):
        assert np.array_equal(mask, np.roll(first, t, 1)), f"{name}, frame {t}"
    assert [line["index"] for line in written(folder, name)] == list(range(frames))


def over(pipeline: Serving, name: str) -> dict[str, Any]:
    (event,) = [one for one in pipeline.events("over") if one["stream"] == name]
    return event


def over_streams(pipeline: Serving) -> list[str]:
    return [one["stream"] for one in pipeline.events("over")]


def deaths(pipeline: Serving, name: str) -> int:
    return sum(one["worker"] == f"source.{name}" for one in pipeline.events("died"))


def test_a_stage_that_raises_is_restarted_and_only_its_stream_given_up(tmp_path):
    bad, good = "synthetic:seed=1,objects=3,size=48x64,leave=0,length=60", synthetic(100_000)
    config = configuration(
        stream(tmp_path, "bad", bad),
        stream(tmp_path, "good", good, realtime=True, fps=10.0),
        placement="split",
        options={"fail_at": 20, "fail_objects": 3},
        supervision={"max_restarts": 1},
    )
    with serving(config, tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: over_streams(pipeline) == ["bad"])
        seen = len(written(tmp_path, "good"))
        pipeline.wait_for(lambda: len(written(tmp_path, "good")) > seen + 5)  # it goes on
        pipeline.signal()
        assert pipeline.wait() == 1, pipeline.log.read_text()[-3000:]
    reasons = [one["reason"] for one in pipeline.events("died")]
    assert len(reasons) == 2
    assert all("memory.bad" in one and "told to fail" in one for one in reasons)
    assert "told to fail" in over(pipeline, "bad")["reason"]
    assert "max_restarts" in over(pipeline, "bad")["reason"]
    check_drift(tmp_path, "good", good, len(written(tmp_path, "good")))
    check_drift(tmp_path, "bad", bad, len(written(tmp_path, "bad")))  # closed, with what there is
    assert (tmp_path / "bad.jsonl").exists()
    summary = pipeline.summary()["streams"]
    assert (summary["bad"]["state"], summary["good"]["state"]) == ("failed", "ended")


def test_a_stage_that_hangs_is_killed(tmp_path):
    config = configuration(
        stream(tmp_path, "s", synthetic(40)),
        options={"hang_at": 8},
        supervision={"hang_timeout": 1.0, "max_restarts": 1},
    )
    with serving(config, tmp_path / "run") as pipeline:
        assert pipeline.wait() == 1, pipeline.log.read_text()[-3000:]
    assert [one["reason"] for one in pipeline.events("died")] == ["hung for 1 s in memory.s"] * 2
    assert "hung for 1 s in memory.s" in over(pipeline, "s")["reason"]


def test_a_frozen_process_is_killed_whichever_it_is(tmp_path):
    source, workers = synthetic(300), ["source.s", "compute", "sinks.s"]
    config = configuration(
        stream(tmp_path, "s", source), options={"read_ms": 8.0}, supervision={"heartbeat_timeout": 1.0}
    )
    with serving(config, tmp_path / "run") as pipeline:
        for k, worker in enumerate(workers):
            pipeline.wait_for(lambda k=k: len(pipeline.events("incarnation")) > k)
            seen = len(written(tmp_path, "s"))
            pipeline.wait_for(lambda seen=seen: len(written(tmp_path, "s")) > seen + 10)
            os.kill(pipeline.pids()[worker], signal.SIGSTOP)
            pipeline.wait_for(lambda k=k: len(pipeline.events("died")) > k)
        assert pipeline.wait() == 0, pipeline.log.read_text()[-3000:]
    died = [(one["worker"], one["reason"]) for one in pipeline.events("died")]
    assert died == [(worker, "no heartbeat for 1 s") for worker in workers]
    check_drift(tmp_path, "s", source, 300)


def test_a_worker_that_does_not_get_ready_ends_its_streams(tmp_path, monkeypatch):
    (tmp_path / "slow_start.py").write_text("import time\n\ndef make():\n    time.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    config = configuration(
        stream(tmp_path, "s", synthetic(5)), supervision={"start_timeout": 6.0, "max_restarts": 0}
    )
    config["method"] = {"name": "slow_start:make", "device": "cpu"}
    with serving(config, tmp_path / "run") as pipeline:
        assert pipeline.wait() == 1, pipeline.log.read_text()[-3000:]
    assert "no READY within 6 s" in over(pipeline, "s")["reason"]


def test_missing_weights_are_an_input_error_and_not_retried(tmp_path):
    """In the placement split, where three workers find that out at once."""
    config = configuration(stream(tmp_path, "s", synthetic(5)), placement="split")
    config["method"] = {"name": "tvos", "weights": str(tmp_path / "none.pth"), "device": "cpu"}
    with serving(config, tmp_path / "run") as pipeline:
        assert pipeline.wait() == 2, pipeline.log.read_text()[-3000:]
    assert "none.pth" in over(pipeline, "s")["reason"]
    assert len(pipeline.events("started")) == len(pipeline.summary()["workers"])


def test_a_source_that_is_damaged_in_the_middle_ends_there(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for t in range(30):
        Image.fromarray(np.full((48, 64, 3), t, np.uint8)).save(folder / f"{t:05d}.png")
    whole = (folder / "00020.png").read_bytes()
    (folder / "00020.png").write_bytes(whole[: len(whole) // 2])
    make_mask(tmp_path / "first.png", (48, 64))
    config = configuration(
        stream(tmp_path, "s", str(folder), mask=str(tmp_path / "first.png")),
        stream(tmp_path, "other", synthetic(25)),
    )
    with serving(config, tmp_path / "run") as pipeline:
        assert pipeline.wait() == 2, pipeline.log.read_text()[-3000:]
    assert "00020.png" in over(pipeline, "s")["reason"]
    assert [line["index"] for line in written(tmp_path, "s")] == list(range(20))
    assert (tmp_path / "s.jsonl").exists()
    assert len(pipeline.events("died")) == 0
    check_drift(tmp_path, "other", synthetic(25), 25)


def test_an_unreachable_camera_is_retried_and_holds_up_no_other_stream(tmp_path):
    camera = "rtsp://admin:hunter2@127.0.0.1:9/door?token=hunter2"
    config = configuration(
        stream(tmp_path, "cam", camera, policy="latest", open_timeout=1.0),
        stream(tmp_path, "s", synthetic(60)),
    )
    with serving(config, tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: [one for one in pipeline.events("over") if one["stream"] == "s"])
        check_drift(tmp_path, "s", synthetic(60), 60)
        tries = pipeline.wait_for(
            lambda: len(times := pipeline.events("died")) >= 4 and [one["time"] for one in times]
        )
        seconds = [float(one[17:23]) + 60 * float(one[14:16]) for one in tries]
        gaps = np.diff(seconds) % 3600
        assert gaps[1] > 0.5  # beside what opening takes
        assert gaps[2] > 1.0
        pipeline.signal(signal.SIGTERM)
        assert pipeline.wait(20) == 0
    assert "hunter2" not in pipeline.log.read_text()
    assert "hunter2" not in json.dumps(pipeline.summary())
    assert {one["worker"] for one in pipeline.events("died")} == {"source.cam"}


def test_a_network_stream_that_ends_is_reopened_unless_reopen_is_false(tmp_path):
    """A camera that is switched off looks like this: its server closes the connection in order."""
    make_video(tmp_path / "clip.ts", 40, (48, 64))
    make_mask(tmp_path / "first.png", (48, 64))
    data = (tmp_path / "clip.ts").read_bytes()

    class Ends(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ends)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    address = f"http://user:hunter2@127.0.0.1:{server.server_port}/live"
    first = {"policy": "latest", "mask": str(tmp_path / "first.png")}
    config = configuration(
        stream(tmp_path, "again", address, **first), stream(tmp_path, "once", address, reopen=False, **first)
    )
    try:
        with serving(config, tmp_path / "run") as pipeline:
            pipeline.wait_for(lambda: over_streams(pipeline) == ["once"] and deaths(pipeline, "again") >= 3)
            pipeline.signal(signal.SIGTERM)
            assert pipeline.wait(20) == 0
    finally:
        server.shutdown()
        server.server_close()
    assert "hunter2" not in pipeline.log.read_text()
    for name in ("again", "once"):
        lines = written(tmp_path, name)
        assert all([one["id"] for one in line["objects"]] == [3, 7] for line in lines)
        indices = [line["index"] for line in lines]
        assert indices == sorted(set(indices))
    assert deaths(pipeline, "once") == 0
    assert all("ended" in one["reason"] for one in pipeline.events("died"))
    begun = [one["incarnation"] for one in pipeline.events("incarnation") if one["stream"] == "again"]
    assert len(begun) >= 3


def test_a_camera_whose_process_is_killed_is_opened_again(tmp_path):
    make_video(tmp_path / "clip.mp4", 600, (48, 64))
    make_mask(tmp_path / "first.png", (48, 64))
    source = f"camera:{tmp_path / 'clip.mp4'}"
    config = configuration(
        stream(tmp_path, "s", source, policy="latest", mask=str(tmp_path / "first.png"), open_timeout=5.0)
    )
    with serving(config, tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: written(tmp_path, "s"))
        began = time.monotonic()
        for _ in range(2):
            pipeline.wait_for(lambda: len(written(tmp_path, "s")) > 3)
            last = written(tmp_path, "s")[-1]["index"]
            pipeline.kill_worker("source.s")
            pipeline.wait_for(lambda last=last: written(tmp_path, "s")[-1]["index"] > last + 5)
            assert [one["id"] for one in written(tmp_path, "s")[-1]["objects"]] == [3, 7]
        times = [line["pts"] for line in written(tmp_path, "s")]
        assert times == sorted(times)  # they go on where the camera would be by now
        assert times[-1] > 0.5 * (time.monotonic() - began)
        pipeline.signal(signal.SIGINT)
        assert pipeline.wait(20) == 0
    indices = [line["index"] for line in written(tmp_path, "s")]
    assert indices == sorted(set(indices))


def test_a_sink_whose_file_cannot_grow_fails_alone_if_live_and_restarts_if_lossless(tmp_path):
    """Live, the other sinks go on without the one that failed; lossless, the stream is begun anew."""
    source = synthetic(150)
    live, safe = (
        stream(tmp_path, name, source, policy=name, realtime=True, fps=30.0)
        for name in ("latest", "lossless")
    )
    config = configuration(live, safe, options={"read_ms": 2.0})
    with serving(config, tmp_path / "run") as pipeline:
        for name in ("latest", "lossless"):
            pipeline.wait_for(lambda name=name: len(written(tmp_path, name)) > 20)
            size = next(tmp_path.glob(f"{name}.*.partial.jsonl")).stat().st_size
            limit = (size + 1000, resource.RLIM_INFINITY)  # no file of this process grows beyond it
            resource.prlimit(pipeline.pids()[f"sinks.{name}"], resource.RLIMIT_FSIZE, limit)
        assert pipeline.wait() == 1, pipeline.log.read_text()[-3000:]  # one file is not whole
    (died,) = pipeline.events("died")
    assert died["worker"] == "sinks.lossless"
    assert "File too large" in died["reason"]
    check_drift(tmp_path, "lossless", source, 150)
    (failed,) = pipeline.events("sink_failed")
    assert (failed["stream"], failed["sink"]) == ("latest", "json")
    assert "File too large" in failed["error"]
    assert len(label_maps(tmp_path / "latest")) > len(written(tmp_path, "latest")) + 50


def test_a_second_pipeline_of_the_same_name_is_refused(tmp_path):
    with serving(configuration(stream(tmp_path, "s", synthetic(3000))), tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: pipeline.events("serving"))
        done = subprocess.run(
            [STREAMVOS, "serve", "--source", synthetic(5), "--name", "failures", "--device", "cpu"],
            env={**os.environ, "XDG_RUNTIME_DIR": pipeline.runtime},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert "'failures' runs already" in done.stderr
        assert "Traceback" not in done.stderr
        pipeline.wait_for(lambda: len(written(tmp_path, "s")) > 5)  # the first does not mind
        pipeline.signal()
        assert pipeline.wait(20) == 0


def test_a_second_signal_ends_it_at_once(tmp_path):
    config = configuration(
        stream(tmp_path, "s", synthetic(3000)), options={"hang_at": 5}, supervision={"drain_timeout": 60.0}
    )
    with serving(config, tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: len(written(tmp_path, "s")) >= 4)
        pipeline.signal(signal.SIGTERM)
        pipeline.wait_for(lambda: pipeline.events("stopping"))
        assert pipeline.process.poll() is None
        pipeline.signal(signal.SIGINT)  # the last one names the exit code
        assert pipeline.wait(10) == 128 + signal.SIGINT
        assert not pipeline.children()


@pytest.mark.parametrize("moment", ["serving", "started", "ready"])
def test_a_signal_during_the_start_ends_it_in_order(tmp_path, moment):
    with serving(configuration(stream(tmp_path, "s", synthetic(3000))), tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: pipeline.events(moment))
        pipeline.signal(signal.SIGTERM)
        assert pipeline.wait(15) == 0, pipeline.log.read_text()[-3000:]
        assert not pipeline.children()
    assert not pipeline.events("died")


def test_streams_of_several_sizes_do_not_wait_for_a_slow_one(tmp_path):
    sizes = {"a": "48x64", "b": "48x64", "c": "64x96", "d": "33x47"}
    sources = {name: synthetic(100, size, ord(name)) for name, size in sizes.items()}
    streams = [stream(tmp_path, name, source) for name, source in sources.items()]
    slow = stream(tmp_path, "slow", synthetic(30), realtime=True, fps=1.0)
    config = configuration(*streams, slow, extractor={"measured": False}, options={"extract_ms": 2.0})
    with serving(config, tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: written(tmp_path, "slow"))
        at = time.monotonic()
        pipeline.wait_for(lambda: len(pipeline.events("over")) == 4)
        assert time.monotonic() - at < 15  # at the slow one's pace they would take 100 s
        os.kill(pipeline.pids()["source.slow"], signal.SIGSTOP)
        pipeline.signal(signal.SIGTERM)
        assert pipeline.wait(20) == 0, pipeline.log.read_text()[-3000:]
    for name, source in sources.items():
        check_drift(tmp_path, name, source, 100)


def test_a_frame_is_young_at_the_extractor_however_slow_the_rest_and_every_drop_is_counted(tmp_path):
    frames, fps, headers = 150, 30, []
    config = configuration(
        stream(tmp_path, "s", synthetic(frames), policy="latest", realtime=True),
        options={"decode_ms": 150.0},
    )
    config["streams"][0]["sinks"].append({"kind": "publish"})
    with serving(config, tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: pipeline.events("incarnation"))
        place = f"ipc://{pipeline.runtime}/streamvos/failures/masks-s.sock"

        def follow() -> None:
            with RawSubscriber(place, "rle", "s", seconds=60) as masks:
                while (received := masks.receive())[1] is not None:
                    headers.append(received[0])

        thread = threading.Thread(target=follow)
        thread.start()
        assert pipeline.wait() == 0, pipeline.log.read_text()[-3000:]
        thread.join(30)
    ages = [one["stamps"]["extractor"][1] - one["captured"] for one in headers[3:]]
    period = 1e9 / fps
    assert len(ages) > 20
    assert statistics.median(ages) < 1.5 * period
    assert sum(age < 2 * period for age in ages) >= 0.9 * len(ages), sorted(ages)[-10:]
    told = pipeline.summary()["streams"]["s"]
    assert set(told["dropped"]) == {"newer frame"}
    assert told["frames"] + sum(told["dropped"].values()) == frames
    assert told["frames"] == len(written(tmp_path, "s"))
