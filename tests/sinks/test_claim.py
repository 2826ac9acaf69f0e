"""Outputs are claimed: the user's files stay, other runs are kept out, and our own leftovers are found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from streamvos.masks.labelmap import write_label_map
from streamvos.sinks import JsonLinesSink, open_sinks
from streamvos.sinks.claim import Claim
from streamvos.sinks.record import RECORD, OutputRecord, new_partial, read_record
from streamvos.types import InputError, SinkError

USUAL = ["labels/00000.png", "overlay.mp4", "results.jsonl"]


def write(folder: Path, pair, **options) -> None:
    with open_sinks(folder, **options) as sinks:
        sinks.write(*pair)


def put(path: Path) -> bytes:
    """A file of the user; returns what is in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        write_label_map(path, np.full((3, 3), 9, np.uint8))
    else:
        path.write_text("the user's")
    return path.read_bytes()


@pytest.mark.parametrize("name", USUAL)
def test_a_file_of_the_user_is_refused_by_name_and_replaced_only_on_demand(tmp_path, make_pair, name):
    before = put(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} is there already.*overwrite=True"):
        open_sinks(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]
    write(tmp_path, make_pair(0), overwrite=True)
    assert (tmp_path / name).read_bytes() != before


@pytest.mark.parametrize("name", USUAL)
def test_our_own_files_are_replaced_but_not_once_the_user_has_changed_them(tmp_path, make_pair, name):
    write(tmp_path, make_pair(0))
    write(tmp_path, make_pair(0))
    before = put(tmp_path / name)
    with pytest.raises(InputError, match=rf"{name} is there already"):
        write(tmp_path, make_pair(0))
    assert (tmp_path / name).read_bytes() == before


def test_removed_and_drawn_anew_a_file_is_the_users(tmp_path, make_pair):
    write(tmp_path, make_pair(0))
    for name in USUAL:  # `rm -r out/*` leaves the record
        (tmp_path / name).unlink()
        put(tmp_path / name)
    with pytest.raises(InputError, match=r"labels/00000\.png"):
        write(tmp_path, make_pair(0))


def test_what_a_run_would_not_replace_is_left_alone(tmp_path, make_pair):
    before = {name: put(tmp_path / name) for name in ("labels/mine.png", "notes.txt", "o.1.partial.mp4")}
    write(tmp_path, make_pair(0))
    write(tmp_path, make_pair(1))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert not (tmp_path / "labels/00000.png").exists()  # of the earlier run


def test_names_of_frames_count_as_far_as_they_are_known(tmp_path, make_pair):
    put(tmp_path / "labels/IMG_7.png")
    write(tmp_path, make_pair(0))
    with pytest.raises(InputError, match="IMG_7"):
        write(tmp_path, make_pair(0), stems=lambda index: f"IMG_{index + 7}")


def test_a_name_that_comes_as_a_surprise_is_refused_when_it_comes(tmp_path, make_pair):
    before = put(tmp_path / "labels/late.png")
    with open_sinks(tmp_path, stems=lambda index: "late" if index == 20_000 else f"f{index}") as sinks:
        sinks.write(*make_pair(0))
        with pytest.raises(InputError, match=r"late\.png is there already"):
            sinks.write(*make_pair(20_000))
    assert (tmp_path / "labels/late.png").read_bytes() == before


def test_what_appears_meanwhile_is_not_replaced(tmp_path, make_pair):
    sinks = open_sinks(tmp_path, labels=False, overlay=False)
    sinks.write(*make_pair(0))
    before = put(tmp_path / "results.jsonl")
    with pytest.raises(SinkError, match=r"put there by somebody else.*partial\.jsonl"):
        sinks.close()
    assert (tmp_path / "results.jsonl").read_bytes() == before
    assert len(list(tmp_path.glob("results.*.partial.jsonl"))) == 1


def test_a_folder_takes_one_writer_at_a_time(tmp_path, make_pair):
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with open_sinks(tmp_path / "out") as sinks:
        for path in ("out", "link", "out/../out"):
            with pytest.raises(InputError, match=r"another run is writing to .*out"):
                open_sinks(tmp_path / path)
            with pytest.raises(InputError, match="another run"):
                Claim([tmp_path / path / "other.jsonl"]).check()
        sinks.write(*make_pair(0))
    write(tmp_path / "link", make_pair(0))


WRITER = """
import sys, time
import numpy as np
from streamvos.sinks import open_sinks
from streamvos.types import Frame, Result

sinks = open_sinks(sys.argv[1])
for index in range(10):
    result = Result(np.ones((48, 64), np.uint8), 0, (1,), lambda: np.zeros(0), dict)
    sinks.write(Frame(np.zeros((48, 64, 3), np.uint8), index, 0, index / 24, "clip"), result)
print("written", flush=True)
time.sleep(600)
"""


def test_a_killed_writer_holds_nothing_and_its_leftovers_go(tmp_path, make_pair):
    before = {name: put(tmp_path / name) for name in ("results.1.partial.jsonl", "labels/mine.png")}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"written\n"
        with pytest.raises(InputError, match="another run"):
            open_sinks(tmp_path)
        os.kill(writer.pid, signal.SIGKILL)
    assert len(list(tmp_path.glob("*partial*"))) == 3
    write(tmp_path, make_pair(0))
    assert sorted(path.name for path in tmp_path.glob("*partial*")) == ["results.1.partial.jsonl"]
    assert sorted(path.name for path in (tmp_path / "labels").iterdir()) == ["00000.png", "mine.png"]
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_link_at_an_output_is_neither_followed_nor_replaced(tmp_path, make_pair):
    before = put(tmp_path / "mine.jsonl")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/results.jsonl").symlink_to(tmp_path / "mine.jsonl")
    with pytest.raises(InputError, match=r"results\.jsonl is there already"):
        write(tmp_path / "out", make_pair(0))
    write(tmp_path / "out", make_pair(0), overwrite=True)
    assert (tmp_path / "mine.jsonl").read_bytes() == before
    assert not (tmp_path / "out/results.jsonl").is_symlink()


def test_a_folder_behind_a_link_is_not_cleared(tmp_path, make_pair):
    write(tmp_path / "out", make_pair(0))
    before = put(tmp_path / "mine/00000.png")
    (tmp_path / "out/labels/00000.png").rename(tmp_path / "away.png")
    (tmp_path / "out/labels").rmdir()
    (tmp_path / "out/labels").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match=r"00000\.png"):
        write(tmp_path / "out", make_pair(0))
    assert (tmp_path / "mine/00000.png").read_bytes() == before


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_refused_even_on_demand(tmp_path, make_pair, kind):
    path = tmp_path / "results.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null")
    for overwrite in (False, True) if kind == "pipe" else (False,):
        with pytest.raises(InputError, match=r"results\.jsonl"):
            write(tmp_path, make_pair(0), overwrite=overwrite)


RECORDS = {
    "leads out of the folder": '{"name": "../mine.txt", "of": "labels"}',
    "leads out by a folder": '{"name": "labels/../../mine.txt", "of": "labels"}',
    "is absolute": '{"name": "MINE", "of": "labels"}',
    "has other types": '{"name": ["mine.txt"], "of": 7, "size": "x"}',
    "is nested": "[" * 100_000,
    "is no JSON": "mine.txt",
    "is binary": "\udcff\udc80",
    "has a zero": '{"name": "a\\u0000b", "of": "labels"}',
}


@pytest.mark.parametrize("line", RECORDS.values(), ids=RECORDS)
def test_an_edited_record_leads_nowhere(tmp_path, make_pair, line):
    before = put(tmp_path / "mine.txt")
    (tmp_path / "out").mkdir()
    text = line.replace("MINE", str(tmp_path / "mine.txt")) + "\n"
    (tmp_path / "out" / RECORD).write_bytes(text.encode(errors="surrogateescape"))
    write(tmp_path / "out", make_pair(0))
    assert (tmp_path / "mine.txt").read_bytes() == before


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_record_that_is_no_file_is_refused(tmp_path, make_pair, kind):
    before, record = put(tmp_path / "mine.txt"), tmp_path / "out" / RECORD
    record.parent.mkdir()
    if kind == "link":
        record.symlink_to(tmp_path / "mine.txt")
    elif kind == "pipe":
        os.mkfifo(record)
    else:
        record.mkdir()
    with pytest.raises((InputError, SinkError), match=r"\.streamvos-files"):
        write(tmp_path / "out", make_pair(0))
    assert (tmp_path / "mine.txt").read_bytes() == before


def test_outputs_of_others_in_one_folder_are_kept(tmp_path, make_pair):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        claim = Claim([path])
        with claim, JsonLinesSink(path, record=claim.record(path)) as sink:
            sink.write(*make_pair(0))
    assert all(path.exists() for path in paths)
    assert read_record(tmp_path).keys() >= {"a.jsonl", "b.jsonl"}
    with Claim(paths):
        pass


def test_an_unfinished_file_is_new_whatever_its_name(tmp_path):
    record = OutputRecord(tmp_path, "x.jsonl")
    made = [record.new_partial(tmp_path / "x.jsonl") for _ in range(3)]
    assert len({path for path, _ in made}) == 3
    long = tmp_path / ("é" * 125 + ".mp4")  # 254 bytes
    path, descriptor = new_partial(long)
    assert path.exists()
    for _, one in [*made, (path, descriptor)]:
        os.close(one)
    assert [number for number, _ in record.partials()] == [1, 1, 1]


def test_a_torn_line_spoils_no_other(tmp_path):
    record = OutputRecord(tmp_path, "labels")
    record.expect(tmp_path / "labels/a.png")
    with (tmp_path / RECORD).open("ab") as file:
        file.write(b'{"name": "labels/to')
    record.expect(tmp_path / "labels/b.png")
    record.close()
    assert read_record(tmp_path).keys() == {"labels/a.png", "labels/b.png"}
