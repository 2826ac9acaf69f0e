"""MCAP files: what they hold is what was written, other readers read them, and they are sources again."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mcap", reason="needs mcap, of the extra bags")
pytest.importorskip("rosbags", reason="needs rosbags, of the extra bags")

from mcap.reader import make_reader

from streamvos.sinks import open_sinks
from streamvos.sinks.mcap import McapSink
from streamvos.sources import open_source
from streamvos.types import Frame, ObjectResult, Result

EPOCH_NS = 1_700_000_000 * 10**9


def frame(number: int) -> Frame:
    y, x = np.mgrid[:48, :64]
    image = np.stack([x * 3, y * 4, x + y + number], axis=-1).astype(np.uint8)
    return Frame(image, index=number, captured_ns=0, pts=number * 0.04, stream="door")


def result(number: int) -> Result:
    mask = np.zeros((48, 64), np.uint8)
    mask[8:20, 10 + number : 30 + number] = 3
    objects = {
        3: ObjectResult(3, 0.75, "uncertain", (10 + number, 8, 30 + number, 20), 240),
        5: ObjectResult(5, 0.0, "lost", None, 0),
    }
    return Result(mask, number, (3, 5), lambda: np.zeros((3, 48, 64), np.float32), lambda: objects)


def test_foxglove_finds_frames_label_maps_boxes_and_objects(tmp_path):
    with McapSink(tmp_path / "a.mcap", epoch_ns=EPOCH_NS) as sink:
        for number in range(3):
            sink.write(frame(number), result(number))
    with open(tmp_path / "a.mcap", "rb") as file:
        reader = make_reader(file, validate_crcs=True)
        found = [
            (schema, channel.topic, message, json.loads(message.data))
            for schema, channel, message in reader.iter_messages()
        ]
        statistics = reader.get_summary().statistics
    assert statistics.message_count == len(found) == 12
    for schema, _, message, value in found:
        described = json.loads(schema.data)
        assert described["title"] == schema.name
        if schema.name != "foxglove.ImageAnnotations":
            assert value.keys() == described["properties"].keys()
            assert value["timestamp"]["sec"] * 10**9 + value["timestamp"]["nsec"] == message.log_time
        assert message.log_time == EPOCH_NS + message.sequence * 40_000_000
    by_topic = {topic: value for _, topic, message, value in found if message.sequence == 1}
    label_map = Image.open(io.BytesIO(base64.b64decode(by_topic["/label_map"]["data"])))
    assert np.array_equal(np.array(label_map), result(1).mask)  # a palette PNG: its indices are the ids
    (box,), (text,) = by_topic["/annotations"]["points"], by_topic["/annotations"]["texts"]
    assert [(one["x"], one["y"]) for one in box["points"]] == [(11, 8), (31, 8), (31, 20), (11, 20)]
    assert (box["type"], text["text"]) == (2, "3 0.75 uncertain")
    assert [one["state"] for one in by_topic["/objects"]["objects"]] == ["uncertain", "lost"]


def test_it_is_a_source_again_with_its_times(tmp_path):
    with open_sinks(
        tmp_path, overlay=False, labels=False, results=False, mcap=True, epoch_ns=EPOCH_NS
    ) as sinks:
        for number in range(4):
            sinks.write(frame(number), result(number))
    assert sinks.paths == {"mcap": tmp_path / "results.mcap"}
    with open_source(str(tmp_path / "results.mcap"), topic="/frames") as source:
        frames = list(source)
        assert source.epoch_ns == EPOCH_NS
    assert np.allclose([one.pts for one in frames], np.arange(4) * 0.04)
    difference = np.abs(frames[2].image.astype(int) - frame(2).image)
    assert difference.mean() < 3  # JPEG


def test_after_an_exception_the_partial_file_is_whole(tmp_path):
    sink = McapSink(tmp_path / "a.mcap")
    sink.write(frame(0), result(0))
    sink.abort()
    assert not (tmp_path / "a.mcap").exists()
    with open(sink.partial, "rb") as file:
        assert make_reader(file).get_summary().statistics.message_count == 4
