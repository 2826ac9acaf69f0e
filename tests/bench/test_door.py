"""The benchmarks from the command line, end to end and tiny: in a checkout and as `streamvos bench`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import streamvos
from bench.latency_work import Stages, Stream
from bench.results import read
from bench.scenes import Scene
from streamvos.cli import main

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TINY = ("--methods", "frtm-fast", "--size", "64x96", "--seconds", "0", "--turns", "2", "--history", "1")


def call(*arguments: str, program: tuple[str, ...] = ("-m", "bench"), code: int = 0) -> tuple[str, str]:
    """What a command says on the standard output and on the standard error."""
    done = subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout, done.stderr


def test_latency_in_a_checkout(tmp_path):
    path, trace = tmp_path / "rows.jsonl", tmp_path / "trace.json"
    out, err = call("latency", *TINY, "--explain", "--profile", str(trace), "--json", str(path))
    (row,) = read(path)
    assert row.failed is None, row.failed
    assert row.name == "frtm-fast bundled 64x96 1 object eager"
    assert (row.count, len(row.repetitions)) == (2, 2)
    assert set(row.stages) == set(Stages.NAMES)
    stages = sum(one["p50"] for one in row.stages.values())
    assert 0 < stages <= 1.02 * row.quantiles["max"] + 0.1
    assert row.first_frame_ms > 0
    assert row.memory_mib.peak > 100
    assert row.memory_mib.state > 0
    assert row.case.model_dump(exclude_none=True).items() >= {
        "method": "frtm-fast", "weights": "bundled", "backend": "eager", "device": "cpu",
        "height": 64, "width": 96, "objects": 1, "history": 1, "threads": 1,
    }.items()  # fmt: skip
    assert (
        row.command == f"streamvos bench latency {' '.join(TINY)} --explain --profile {trace} --json {path}"
    )
    assert "frtm-fast bundled 64x96" in out
    assert "about" in err
    told = row.details["explained"]
    assert 0 < len(told["operators"]) <= 10
    assert told["gemm_gflops"] > 0
    assert told["gigabytes_per_second"] > 0
    costs = [one["ms"] for one in told["operators"]]
    assert costs == sorted(costs, reverse=True)
    assert any("convolution" in one["name"] for one in told["operators"])
    assert "convolution" in out
    events = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"extract", "read", "decode", "remember"} <= events


def test_latency_of_random_weights_as_streamvos_bench():
    options = [*TINY[2:], "--methods", "tvos", "--weights", "none", "--objects", "2", "--json"]
    out, _ = call("bench", "latency", *options, program=("-m", "streamvos.cli"))
    row = json.loads(out)
    assert row["case"]["weights"] == "random"
    assert row["name"] == "tvos random 64x96 2 objects eager"


def test_clocks_around_a_step_change_no_mask(monkeypatch):
    scene, plain = Scene((64, 96), 2), streamvos.load("frtm-fast", device="cpu")
    expected = [plain.step(image, labels if t == 0 else None).mask for t, (image, labels) in frames(scene, 4)]
    import streamvos.segmenter.segmenter as module

    for name in ("decide", "make_result"):  # the stream puts clocks around them
        monkeypatch.setattr(module, name, getattr(module, name))
    stream = Stream("frtm-fast", "default", "eager", "cpu", {}, (64, 96), 2)
    found, step = [], stream.segmenter.step
    stream.segmenter.step = lambda image, mask: found.append(step(image, mask).mask)
    for _ in range(4):
        _, stages = stream.frame()
    assert stages.keys() <= set(Stages.NAMES)
    assert np.array_equal(found, expected)


def frames(scene: Scene, count: int):
    return [(t, scene.frame(t)) for t in range(count)]


def test_scenes_have_the_objects_that_they_say():
    scene = Scene((96, 128), 3, seed=1)
    image, labels = scene.frame(0)
    assert (image.shape, image.dtype, labels.dtype) == ((96, 128, 3), np.uint8, np.uint8)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert not np.array_equal(labels, scene.frame(10)[1])
    assert np.array_equal(image, Scene((96, 128), 3, seed=1).frame(0)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("latency", "--methods", "nosuch"), "unknown method 'nosuch'; choose of: tvos"),
        (("latency", "--backends", "nosuch"), "unknown backend 'nosuch'"),
        (("latency", "--device", "nosuch"), "nosuch"),
        (("latency", "--profile", "trace.json"), "--profile takes one case, these options make 5"),
        (("latency", *TINY, "--json", "/dev/full"), "/dev/full"),
        (("pipeline", "--parts", "nosuch"), "choose of: loop, stub, overhead, placements"),
        (("pipeline", "--size", "33x65"), "videos need even heights and widths"),
        (("engines", "--cases", "nosuch"), "unknown cases ['nosuch']"),
        (("gpu", "--methods", "nosuch"), "unknown cases ['nosuch']"),
        (("lost", "/nowhere"), "/nowhere has no folder davis2016-train"),
        (("selection", "/nowhere"), "there is no folder /nowhere"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, capfd):
    assert main(["bench", *arguments]) == 2
    err = capfd.readouterr().err
    assert message in err
    lines = [line for line in err.splitlines() if not line.startswith(("bench ", "streamvos: warning"))]
    assert len(lines) == 1, err


def test_ctrl_c_keeps_the_rows_that_are_done(tmp_path):
    path = tmp_path / "rows.jsonl"
    with subprocess.Popen(
        [sys.executable, "-m", "bench", "latency", *TINY, "--objects", "1,2,3", "--json", str(path)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            deadline = time.monotonic() + 100
            while not path.exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)  # the next case is starting
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "interrupted; 1 rows are done" in err
    (row,) = read(path)
    assert row.name in out


def test_the_help_needs_no_torch():
    code = "import sys; import bench.door; sys.exit(bool({'torch', 'cv2', 'av'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, check=True)


def test_what_the_pipeline_adds_to_a_frame(tmp_path):
    path = tmp_path / "rows.jsonl"
    options = ("--parts", "overhead", "--size", "64x96", "--fps", "30", "--seconds", "0.5")
    call("pipeline", *options, "--json", str(path))
    (row,) = read(path)
    assert row.name == "overhead 64x96 at 30/s"
    assert 1 < row.count <= 15  # the client may come after the first
    assert 0 < row.quantiles["p50"] <= row.quantiles["max"]
    assert {"source", "to memory", "to decoder", "to sinks"} <= row.stages.keys()
    assert (row.case.placement, row.case.fps, row.case.streams) == ("fused", 30.0, 1)
