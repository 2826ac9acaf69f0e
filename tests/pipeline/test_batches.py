"""Streams share the extractor: frames of one size go together, and nobody waits long for anybody."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving import label_maps, serving
from small_videos import make_mask, make_video

FRAMES = 90


def configuration(folder: Path, streams: int, **more) -> dict:
    return {
        "name": "batches",
        "method": {"name": "stub_methods:drift", "device": "cpu", "threads": 1, "options": {"extract_ms": 8}},
        "streams": [
            {
                "name": f"s{k}",
                "source": str(folder / "clip.mp4"),
                "mask": str(folder / "first.png"),
                "policy": "lossless",
                "realtime": True,
                "sinks": [{"kind": "labels", "path": str(folder / f"s{k}")}],
            }
            for k in range(streams)
        ],
        "supervision": {"standby": False},
        **more,
    }


@pytest.mark.parametrize("streams", [2, 5])
def test_frames_of_several_streams_go_together_where_that_is_faster(tmp_path, streams):
    # the stub sleeps as long for a batch as for one frame
    make_video(tmp_path / "clip.mp4", FRAMES)
    make_mask(tmp_path / "first.png")
    with serving(configuration(tmp_path, streams), tmp_path / "run") as pipeline:
        assert pipeline.wait() == 0, pipeline.log.read_text()[-3000:]
    for k in range(streams):
        assert len(label_maps(tmp_path / f"s{k}")) == FRAMES
    batches = pipeline.summary()["workers"]["compute"]["beat"]["stages"]["extractor"]["batches"]
    assert {int(size) for size in batches} <= {1, 2, 4}
    together = sum(int(size) * count for size, count in batches.items() if int(size) > 1)
    assert together > 0.2 * streams * FRAMES, batches


def test_a_batch_size_that_is_not_configured_does_not_run(tmp_path):
    make_video(tmp_path / "clip.mp4", 30)
    make_mask(tmp_path / "first.png")
    config = configuration(tmp_path, 2, extractor={"batches": [1]})
    with serving(config, tmp_path / "run") as pipeline:
        assert pipeline.wait() == 0
    assert set(pipeline.summary()["workers"]["compute"]["beat"]["stages"]["extractor"]["batches"]) == {"1"}
