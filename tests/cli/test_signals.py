"""Ctrl-C, SIGTERM and closed pipes, in processes of their own: what is kept, and the exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest

from streamvos.cli.signals import Stopped, signals_caught, signals_held

ENDLESS = "synthetic:size=48x64,length=100000,motion=0.2"


def start(*arguments: object, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "streamvos.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]


def stop(process: subprocess.Popen, number: int, out: Path, lines: int = 4) -> tuple[str, str]:
    """Send a signal once so many frames are there."""
    deadline = time.monotonic() + 60
    while not any(path.read_bytes().count(b"\n") >= lines for path in out.glob("results.*.partial.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    return process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_keeps_what_is_whole_and_says_where(tmp_path, weights, number, code, word):
    out = tmp_path / "out"
    process = start("run", ENDLESS, "--weights", weights, "--out", out)
    printed, error = stop(process, number, out)
    assert process.returncode == code
    assert printed == ""
    (results,), (overlay,) = (list(out.glob(f"*.partial.{kind}")) for kind in ("jsonl", "mp4"))
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    count = len(lines)
    assert count >= 4
    assert error.splitlines() == [
        f"streamvos: stopped: {word}; the first {count} frames are in {out}/labels, {overlay}, {results}"
    ]
    # a frame is in every output or in none
    assert len(list((out / "labels").glob("*.png"))) == count
    with av.open(str(overlay)) as container:
        assert sum(1 for _ in container.decode(video=0)) == count
    assert not (out / "overlay.mp4").exists()
    assert not (out / "results.jsonl").exists()


def test_ctrl_c_is_how_a_live_stream_ends(inputs, weights, video, write_video):
    write_video(inputs / "long.mp4", [video[0].image] * 60, fps=2)  # half a minute, played as a camera
    out = inputs / "out"
    options = ("--mask", "first.png", "--weights", weights, "--out", out)
    process = start("run", "camera:long.mp4", *options, cwd=inputs)
    printed, error = stop(process, signal.SIGINT, out, lines=2)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "streamvos: stopped: interrupted"
    assert str(out / "overlay.mp4") in printed
    frames = len((out / "results.jsonl").read_text().splitlines())
    assert len(list((out / "labels").glob("*.png"))) == frames < 60
    assert not list(out.glob("*partial*"))


def test_a_closed_pipe_ends_quietly():
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen(
        [sys.executable, "-m", "streamvos.cli", "doctor"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 141


def test_a_held_signal_comes_when_the_block_ends():
    reached = []
    with signals_caught(), pytest.raises(Stopped) as stopped, signals_held():  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        reached.append("the end of the block")
    assert reached
    assert stopped.value.exit_code == 143


def test_the_second_signal_is_python_s_own_again():
    before = signal.getsignal(signal.SIGINT)
    with signals_caught():
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with signals_caught():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
