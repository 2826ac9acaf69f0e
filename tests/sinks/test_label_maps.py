"""Label-map PNGs: one whole file per frame, under the names that were asked for."""

import logging
import os
from dataclasses import replace
from itertools import count, islice

import numpy as np
import pytest
from growth import growth

from streamvos.masks.labelmap import read_label_map
from streamvos.sinks import LabelMapSink
from streamvos.types import Frame, InputError, SinkError


def test_each_frame_gets_its_map(tmp_path, make_pair):
    pairs = [make_pair(index) for index in range(3)]
    with LabelMapSink(tmp_path / "deep/labels") as sink:
        for frame, result in pairs:
            sink.write(frame, result)
    assert sink.path == tmp_path / "deep/labels"
    assert sorted(path.name for path in sink.path.iterdir()) == ["00000.png", "00001.png", "00002.png"]
    for frame, result in pairs:
        np.testing.assert_array_equal(read_label_map(sink.path / f"{frame.index:05d}.png"), result.mask)


def test_maps_have_the_names_of_their_source(tmp_path, make_pair):
    with LabelMapSink(tmp_path, stems=lambda index: f"IMG_{index + 7}") as sink:
        sink.write(*make_pair(0))
        sink.write(*make_pair(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["IMG_7.png", "IMG_8.png"]


@pytest.mark.parametrize("stem", ["", "../escape", "a/b", ".hidden", "/tmp/x"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, make_pair, stem):
    sink = LabelMapSink(tmp_path / "labels", stems=lambda _: stem)
    with pytest.raises(InputError, match="name"):
        sink.write(*make_pair(0))
    assert [path.name for path in tmp_path.rglob("*")] == ["labels"]


def test_a_name_is_not_used_twice(tmp_path, make_pair):
    with LabelMapSink(tmp_path, stems=lambda _: "same") as sink:
        sink.write(*make_pair(0))
        before = (tmp_path / "same.png").read_bytes()
        with pytest.raises(InputError, match=r"same\.png"):
            sink.write(*make_pair(5))
    assert (tmp_path / "same.png").read_bytes() == before


def test_a_mask_of_another_size_or_kind_is_refused(tmp_path, make_pair, make_result):
    frame, _ = make_pair(0)
    with LabelMapSink(tmp_path) as sink:
        with pytest.raises(InputError, match="size"):
            sink.write(frame, make_result(np.zeros((5, 5), np.uint8)))
        with pytest.raises(InputError, match="uint8"):
            sink.write(frame, make_result(np.zeros(frame.size, np.int64)))
    assert list(tmp_path.iterdir()) == []


def test_a_closed_sink_takes_nothing(tmp_path, make_pair):
    sink = LabelMapSink(tmp_path)
    sink.close()
    sink.close()
    with pytest.raises(InputError, match="closed"):
        sink.write(*make_pair(0))


def test_leftovers_of_an_earlier_run_are_logged(tmp_path, make_pair, caplog):
    with LabelMapSink(tmp_path) as sink:
        for index in range(3):
            sink.write(*make_pair(index))
    with caplog.at_level(logging.WARNING), LabelMapSink(tmp_path) as sink:
        sink.write(*make_pair(0))
    assert "2 PNG files" in caplog.text


def test_a_full_disk_leaves_whole_maps_only(tmp_path, make_result, file_size_limit):
    noise = np.random.default_rng(0).integers(0, 250, (200, 200)).astype(np.uint8)
    frames = [Frame(np.zeros((200, 200, 3), np.uint8), index, 0, 0.0) for index in range(2)]
    sink = LabelMapSink(tmp_path)
    sink.write(frames[0], make_result(np.zeros((200, 200), np.uint8)))
    with file_size_limit(4096), pytest.raises(SinkError, match=r"00001\.png"):
        sink.write(frames[1], make_result(noise))
    assert [path.name for path in tmp_path.iterdir()] == ["00000.png"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SinkError, match="file"):
        LabelMapSink(tmp_path / "file" / "labels")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path, make_pair):
    sink = LabelMapSink(tmp_path / "labels")
    sink.path.chmod(0o500)
    with pytest.raises(SinkError, match="labels"):
        sink.write(*make_pair(0))


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path, make_pair):
    frame, result = make_pair(0)
    frames = (replace(frame, index=index) for index in count())
    with LabelMapSink(tmp_path) as sink:

        def write(number: int) -> None:
            for each in islice(frames, number):
                sink.write(each, result)

        write(100)
        assert growth(lambda: write(300)) < 5_000  # the 300 names alone would take 16 kB
