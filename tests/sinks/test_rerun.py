"""What Rerun is given; needs the extra rerun, which is large."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from streamvos.sinks.rerun import RerunSink, check_target
from streamvos.types import Frame, InputError, ObjectResult, Result


def frame(number: int) -> Frame:
    return Frame(np.full((48, 64, 3), number, np.uint8), number, 0, pts=number * 0.02)


def result(number: int) -> Result:
    mask = np.zeros((48, 64), np.uint8)
    mask[8:20, 10:30] = 3
    objects = {3: ObjectResult(3, 0.75, "uncertain", (10, 8, 30, 20), 240)}
    return Result(mask, number, (3,), lambda: np.zeros((2, 48, 64), np.float32), lambda: objects)


def test_a_file_gets_its_name_when_it_is_whole(tmp_path):
    pytest.importorskip("rerun", reason="needs rerun-sdk, of the extra rerun")
    with RerunSink(str(tmp_path / "a.rrd")) as sink:
        for number in range(11):
            sink.write(frame(number), result(number))
        assert not (tmp_path / "a.rrd").exists()
    content = (tmp_path / "a.rrd").read_bytes()
    assert content.startswith(b"RRF")
    for said in (b"SegmentationImage", b"Boxes2D", b"latency_ms", b"/objects/3/score"):
        assert said in content
    assert not list(tmp_path.glob("*.partial.*"))


def test_the_rate_is_bounded(tmp_path, monkeypatch):
    pytest.importorskip("rerun", reason="needs rerun-sdk, of the extra rerun")
    logged = []
    log = RerunSink._log
    monkeypatch.setattr(
        RerunSink, "_log", lambda self, path, *a, **k: (logged.append(path), log(self, path, *a, **k))[1]
    )
    with RerunSink(str(tmp_path / "a.rrd"), rate=10) as sink:
        for number in range(51):  # one second at 50 frames/s
            sink.write(frame(number), result(number))
    assert 10 <= logged.count("frame") <= 11
    assert logged.count("states") == 1


@pytest.mark.parametrize("target", ["viewer", "host:port", "host:99999"])
def test_what_is_no_address(target):
    pytest.importorskip("rerun", reason="needs rerun-sdk, of the extra rerun")
    with pytest.raises(InputError, match=r"expected FILE.rrd or HOST:PORT"):
        check_target(target)


def test_no_viewer_is_one_line():
    pytest.importorskip("rerun", reason="needs rerun-sdk, of the extra rerun")
    with socket.socket() as taken:  # bound, but it does not listen
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match="no Rerun viewer listens at"):
            check_target(f"127.0.0.1:{taken.getsockname()[1]}")
