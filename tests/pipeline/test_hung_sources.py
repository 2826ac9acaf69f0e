"""A source whose read does not return is reported and restarted; one that is only slow is left alone."""

from __future__ import annotations

import os
import time
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image
from pipeline.test_failures import check_drift, configuration, stream, synthetic, written
from serving import Serving, label_maps, serving
from small_videos import make_mask

from streamvos.pipeline.clients.client import Client

SIZE, FRAMES, AT = (48, 64), 24, 20
RATE = 5.0


def pictures(folder: Path) -> Path:
    folder.mkdir()
    for t in range(FRAMES):
        Image.fromarray(np.full((*SIZE, 3), t, np.uint8)).save(folder / f"{t:05d}.png")
    return folder


def status_of(pipeline: Serving, name: str) -> dict:
    place = f"ipc://{pipeline.runtime}/streamvos/failures/control.sock"
    with Client(place) as client:
        found: dict = client.status()["streams"][name]
    return found


def metric(pipeline: Serving, name: str) -> float:
    (event,) = pipeline.events("metrics")
    with urllib.request.urlopen(event["url"], timeout=20) as answer:
        told = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
    assert name in told, sorted(told)
    return float(told[name])


HANG = """
import os, pathlib, time

def hanging(path, *rest, open=os.open, **more):
    if str(path).endswith({name!r}) and pathlib.Path({mark!r}).exists():
        time.sleep(1e6)
    return open(path, *rest, **more)

os.open = hanging
"""
"""Of every process of a pipeline: opening one file never returns, as on a dead mount, if a mark exists."""


def test_a_read_that_does_not_return(tmp_path, monkeypatch):
    """Pipes are refused, and only root can make a mount die; so what hangs is `os.open` in the worker."""
    folder, mask = pictures(tmp_path / "frames"), make_mask(tmp_path / "first.png", SIZE)
    more = {"mask": str(tmp_path / "first.png"), "realtime": True, "fps": RATE, "stall_timeout": 8.0}
    config = configuration(stream(tmp_path, "s", str(folder), **more), observe={"prometheus": "0"})
    mark, startup = tmp_path / "dead", tmp_path / "startup"
    startup.mkdir()
    (startup / "sitecustomize.py").write_text(HANG.format(name=f"{AT:05d}.png", mark=str(mark)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(startup), os.environ.get("PYTHONPATH", "")]))
    with serving(config, tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: written(tmp_path, "s"))
        mark.touch()
        (event,) = pipeline.wait_for(lambda: pipeline.events("waiting"))
        assert (event["stream"], event["stage"]) == ("s", "source.s")
        assert (event["reason"], event["level"]) == ("the source gives no frame", "warning")
        assert event["seconds"] >= 4.0
        pipeline.wait_for(lambda: status_of(pipeline, "s")["state"] == "waiting")
        told = status_of(pipeline, "s")
        assert told["waiting_for"] == "the source gives no frame"
        assert told["waiting_seconds"] >= 4.0
        pipeline.wait_for(lambda: metric(pipeline, 'streamvos_stream_state{state="waiting",stream="s"}') == 1)
        assert metric(pipeline, 'streamvos_stream_waiting_seconds{stream="s"}') >= 4.0
        assert not pipeline.events("died")
        mark.unlink()
        assert pipeline.wait() == 0, pipeline.log.read_text()[-3000:]
    (died,) = pipeline.events("died")
    assert died["worker"] == "source.s"
    assert "gave no frame within 8 s (stall_timeout)" in died["reason"]
    assert len(pipeline.events("waiting")) == 1  # once for the change, however long it lasts
    assert [line["index"] for line in written(tmp_path, "s")] == list(range(FRAMES))
    for t, found in enumerate(label_maps(tmp_path / "s").values()):
        assert np.array_equal(found, np.roll(mask, t, 1))


def test_slow_paused_and_held_sources_are_not_hung(tmp_path):
    """All of them give nothing for longer than the time after which a read counts as hung."""
    short = {"stall_timeout": 1.0}
    slow, held, paused = synthetic(4, seed=1), synthetic(8, seed=2), synthetic(10, seed=3)
    config = configuration(
        stream(tmp_path, "slow", slow, realtime=True, fps=0.4, **short),
        stream(tmp_path, "held", held, **short),  # by the decoder, which is slower than that
        stream(tmp_path, "paused", paused, realtime=True, fps=6.0, **short),
        options={"decode_ms": 1300.0},
        extractor={"batches": [1]},
    )
    with serving(config, tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: written(tmp_path, "paused"))
        place = f"ipc://{pipeline.runtime}/streamvos/failures/control.sock"
        with Client(place) as client:
            client.pause("paused")
            time.sleep(3.0)  # what has to be waited through
            assert client.status()["streams"]["paused"]["state"] == "paused"
            client.resume("paused")
        assert pipeline.wait() == 0, pipeline.log.read_text()[-3000:]
    assert not pipeline.events("died")
    assert not pipeline.events("waiting")
    for name, source, frames in (("slow", slow, 4), ("held", held, 8), ("paused", paused, 10)):
        check_drift(tmp_path, name, source, frames)
