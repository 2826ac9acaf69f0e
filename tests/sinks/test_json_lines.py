"""Lines of JSON: whole lines only, readable while they are written, renamed at the end."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from streamvos.masks.rle import decode_rle
from streamvos.sinks import JsonLinesSink
from streamvos.sinks.record import OutputRecord
from streamvos.types import Frame, InputError, SinkError


def lines(path: Path) -> list[dict]:
    text = path.read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_a_line_says_all_about_its_frame(tmp_path, make_pair, make_result):
    frame, result = make_pair(4)
    result = make_result(result.mask, ids=(3,), states={7: "uncertain"})
    with JsonLinesSink(tmp_path / "deep/results.jsonl") as sink:
        sink.write(frame, result)
    (record,) = lines(sink.path)
    objects = record.pop("objects")
    assert record == {
        "stream": "clip", "index": 4, "pts": round(4 / 24, 6), "captured_ns": 1_000_004, "size": [48, 64],
    }  # fmt: skip
    assert [item["id"] for item in objects] == [1, 3, 7]
    assert [item["state"] for item in objects] == ["tracking", "lost", "uncertain"]
    assert [item["box"] for item in objects] == [[7, 5, 22, 20], None, [30, 25, 50, 40]]
    assert [item["area"] for item in objects] == [225, 0, 300]
    assert [item["score"] for item in objects] == [0.875, 0.0, 0.875]
    for item in objects:
        np.testing.assert_array_equal(decode_rle(item["rle"]), result.mask == item["id"])


def test_lines_can_be_followed_and_the_file_gets_its_name_at_the_end(tmp_path, make_pair):
    with JsonLinesSink(tmp_path / "results.jsonl") as sink:
        for index in range(3):
            sink.write(*make_pair(index))
            (partial,) = tmp_path.glob("results.*.partial.jsonl")
            assert [record["index"] for record in lines(partial)] == list(range(index + 1))
            assert not sink.path.exists()
    assert len(lines(sink.path)) == 3
    assert not partial.exists()


def test_an_exception_leaves_the_final_name_alone(tmp_path, make_pair):
    (tmp_path / "results.jsonl").write_text("of an earlier run\n")
    with pytest.raises(KeyError), JsonLinesSink(tmp_path / "results.jsonl") as sink:  # noqa: PT012
        sink.write(*make_pair(0))
        raise KeyError
    assert (tmp_path / "results.jsonl").read_text() == "of an earlier run\n"
    assert len(lines(sink.partial)) == 1


def test_a_line_that_does_not_fit_is_taken_back(tmp_path, make_pair, file_size_limit):
    sink = JsonLinesSink(tmp_path / "results.jsonl")
    sink.write(*make_pair(0))
    size = sink.partial.stat().st_size
    with file_size_limit(size + 50), pytest.raises(SinkError, match=r"results\..*partial\.jsonl.*large"):
        sink.write(*make_pair(1))
    assert [record["index"] for record in lines(sink.partial)] == [0]
    sink.write(*make_pair(2))  # once there is room again
    sink.close()
    assert [record["index"] for record in lines(sink.path)] == [0, 2]


def test_times_that_are_no_numbers_are_refused(tmp_path, make_pair):
    frame, result = make_pair(0)
    sick = Frame(frame.image, 1, 0, float("nan"))
    with JsonLinesSink(tmp_path / "results.jsonl") as sink:
        sink.write(frame, result)
        with pytest.raises(InputError, match="frame 1"):
            sink.write(sick, result)
    assert len(lines(sink.path)) == 1


def test_a_folder_in_the_way(tmp_path, make_pair):
    (tmp_path / "results.jsonl").mkdir()
    sink = JsonLinesSink(tmp_path / "results.jsonl")
    sink.write(*make_pair(0))
    with pytest.raises(SinkError, match=r"results\.jsonl: Is a directory; a folder is in the way"):
        sink.close()
    assert len(lines(sink.partial)) == 1


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_file_that_is_removed_while_it_is_written_is_an_error(tmp_path, make_pair, how):
    sink = JsonLinesSink(tmp_path / "results.jsonl")
    sink.write(*make_pair(0))
    sink.partial.unlink()
    if how == "replaced":
        sink.partial.write_text("mine")
    for finish in (lambda: sink.write(*make_pair(1)), sink.close):
        with pytest.raises(SinkError, match=r"partial\.jsonl was removed"):
            finish()
    assert not sink.path.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(SinkError, match="results"):
        JsonLinesSink(tmp_path / "results.jsonl")


@pytest.mark.parametrize("torn", [b"", b'{"index": 3, "pt', b"\0\0\0\n", b'{"no index": 1}\n[]\n'])
def test_a_killed_writers_file_is_continued_behind_its_last_whole_line(tmp_path, make_pair, torn):
    record = OutputRecord(tmp_path, "results.jsonl")
    killed = JsonLinesSink(tmp_path / "results.jsonl", record=record)
    for index in range(3):
        killed.write(*make_pair(index))
    whole = killed.partial.read_bytes()
    killed.partial.write_bytes(whole + torn)
    (tmp_path / "results.mine.partial.jsonl").write_text("a file of the user")
    with JsonLinesSink(tmp_path / "results.jsonl", resume=True, record=record) as sink:
        assert sink.last_index == 2
        assert sink.partial.read_bytes() == whole
        sink.write(*make_pair(3))
    assert [record["index"] for record in lines(sink.path)] == [0, 1, 2, 3]
    assert [path.name for path in tmp_path.glob("*partial*")] == ["results.mine.partial.jsonl"]


@pytest.mark.parametrize("is_recorded", [False, True])
def test_a_finished_file_is_continued_and_a_missing_one_begun(tmp_path, make_pair, is_recorded):
    record = OutputRecord(tmp_path, "results.jsonl") if is_recorded else None
    with JsonLinesSink(tmp_path / "results.jsonl", resume=True, record=record) as sink:
        assert sink.last_index is None
        sink.write(*make_pair(0))
    with JsonLinesSink(tmp_path / "results.jsonl", resume=True, record=record) as sink:
        assert sink.last_index == 0
        sink.write(*make_pair(1))
    assert [record["index"] for record in lines(sink.path)] == [0, 1]


def test_a_file_that_is_gone_is_not_begun_anew(tmp_path, make_pair):
    record = OutputRecord(tmp_path, "results.jsonl")
    killed = JsonLinesSink(tmp_path / "results.jsonl", record=record)
    killed.write(*make_pair(0))
    killed.partial.unlink()
    with pytest.raises(SinkError, match=r"results\.jsonl was removed"):
        JsonLinesSink(tmp_path / "results.jsonl", resume=True, record=record)


def test_lines_longer_than_what_is_read_at_once_are_found(tmp_path, make_result):
    rng = np.random.default_rng(0)
    with JsonLinesSink(tmp_path / "results.jsonl") as sink:
        for index in range(2):
            mask = rng.integers(0, 2, (400, 600)).astype(np.uint8)
            sink.write(Frame(np.zeros((400, 600, 3), np.uint8), index, 0, 0.0), make_result(mask))
    data = sink.path.read_bytes()
    assert len(data) > 2 * 65536
    sink.path.write_bytes(data[:-5])
    with JsonLinesSink(tmp_path / "results.jsonl", resume=True) as sink:
        assert sink.last_index == 0
    assert sink.path.read_bytes() == data.splitlines(keepends=True)[0]
