"""A stream that opens late, or not at all, does not hold up the others of its worker."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import numpy as np
from pipeline.test_failures import check_drift, configuration, over, stream, synthetic, written
from serving import label_maps, serving
from small_videos import make_mask, make_video

LATE = (64, 96)


def calls(path: Path) -> list[tuple[int, ...]]:
    """Of the extractor: frames, height, width, whether they are the noise of a warm-up."""
    return [tuple(map(int, line.split())) for line in path.read_text().splitlines()]


def test_the_warm_up_of_a_late_stream_goes_between_the_frames_of_the_others(tmp_path):
    """It opens when the other runs, with frames of another size."""
    source, frames = synthetic(150), 40
    make_video(tmp_path / "ready.mp4", frames, LATE)
    mask = make_mask(tmp_path / "first.png", LATE)
    late = {"mask": str(tmp_path / "first.png"), "reopen": False}
    config = configuration(
        stream(tmp_path, "early", source),
        stream(tmp_path, "late", f"camera:{tmp_path / 'late.mp4'}", **late),
        options={"extract_ms": 60.0, "calls": str(tmp_path / "calls")},
    )
    with serving(config, tmp_path / "run") as pipeline:
        pipeline.wait_for(lambda: len(written(tmp_path, "early")) > 5)
        assert pipeline.events("died")  # its first tries have failed
        os.replace(tmp_path / "ready.mp4", tmp_path / "late.mp4")
        assert pipeline.wait() == 0, pipeline.log.read_text()[-3000:]
    check_drift(tmp_path, "early", source, 150)
    maps = list(label_maps(tmp_path / "late").values())
    assert len(maps) == frames
    assert all(np.array_equal(one, np.roll(mask, t, 1)) for t, one in enumerate(maps))
    made = calls(tmp_path / "calls")
    warming = [k for k, one in enumerate(made) if one[1:] == (*LATE, 1)]
    assert len(warming) >= 7  # two sizes of batches, each called and timed
    between = [one for one in made[warming[0] : warming[-1]] if one[1:] == (48, 64, 0)]
    # of a warm-up in one piece there would be none; one call may find the other stream without a frame
    assert len(between) >= len(warming) - 3, made


def test_a_camera_that_does_not_answer_holds_up_no_beginning(tmp_path):
    """It takes the connection and is silent; the other stream is through before it has failed."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        camera = f"rtsp://127.0.0.1:{silent.getsockname()[1]}/door"
        config = configuration(
            stream(tmp_path, "silent", camera, policy="latest", open_timeout=50.0),
            stream(tmp_path, "s", synthetic(40)),
        )
        with serving(config, tmp_path / "run") as pipeline:
            pipeline.wait_for(lambda: pipeline.events("over"), 45)
            assert over(pipeline, "s")["reason"] == ""
            check_drift(tmp_path, "s", synthetic(40), 40)
            assert not pipeline.events("died")
            pipeline.signal(signal.SIGTERM)
            assert pipeline.wait(20) == 0
