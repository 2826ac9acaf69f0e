"""`streamvos run` from one recording into another, whose labels are those of the method that ran."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs rosbags, of the extra bags")
pytest.importorskip("mcap_protobuf", reason="needs mcap-protobuf-support, of the extra bags")

from rosbags.rosbag2 import Reader

import streamvos
from streamvos.masks.labelmap import read_label_map
from streamvos.rosmsg.types import decode

LENGTH = 6
PICTURES = ("--topic", "/streamvos/image/compressed")


def label_maps(folder):
    with Reader(folder) as reader:
        (wanted,) = [one for one in reader.connections if one.topic == "/streamvos/label_map"]
        found = [decode(content, one.msgtype) for one, _, content in reader.messages([wanted])]
    return [one.data.reshape(one.height, one.width) for one in found]


def test_from_recording_to_recording(call, inputs, weights):
    options = ("--mask", "first.png", "--weights", weights, "--no-overlay", "--rosbag", "--json")
    assert call("run", "clip.mp4", *options, "--out", "a").code == 0
    assert call("run", "a/rosbag", *PICTURES, *options, "--out", "b").code == 0
    for folder in (inputs / "a", inputs / "b"):
        maps = label_maps(folder / "rosbag")
        assert len(maps) == LENGTH
        for number, one in enumerate(maps):
            assert np.array_equal(one, read_label_map(folder / f"labels/{number:05d}.png"))
    with Reader(inputs / "a/rosbag") as first, Reader(inputs / "b/rosbag") as second:
        assert [one for _, one, _ in first.messages()] == [one for _, one, _ in second.messages()]
        (labels,) = [one for one in second.connections if one.topic == "/streamvos/labels"]
        ((_, _, content),) = second.messages([labels])
    threshold = streamvos.load("tvos", weights).method.options.uncertain_below
    assert decode(content, labels.msgtype).threshold == pytest.approx(threshold)


@pytest.mark.parametrize("source", ["out/rosbag", "out/rosbag/rosbag.mcap"])
def test_no_recording_is_written_over_itself(call, inputs, weights, source):
    options = ("--mask", "first.png", "--weights", weights, "--no-labels", "--no-overlay", "--out", "out")
    assert call("run", "clip.mp4", *options, "--rosbag").code == 0
    before = (inputs / "out/rosbag/rosbag.mcap").read_bytes()
    for more in ((), ("--rosbag",), ("--overwrite",)):
        answer = call("run", source, *PICTURES, *options, *more)
        assert "would replace what is read, the source out/rosbag" in answer.error
    assert (inputs / "out/rosbag/rosbag.mcap").read_bytes() == before
