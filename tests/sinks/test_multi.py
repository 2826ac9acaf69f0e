"""The usual sinks together: all are written, all are closed, one's failure does not spoil the others."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from streamvos.masks.labelmap import read_label_map
from streamvos.sinks import LabelMapSink, MultiSink, Overlay, Sink, open_sinks
from streamvos.sources import VideoFileSource
from streamvos.types import Frame, InputError, SinkError


def shown(folder: Path) -> list[str]:
    """Names in a folder that are not hidden."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_the_usual_set(tmp_path, make_pair):
    with open_sinks(tmp_path / "out", stems=lambda index: f"f{index}", overlay=Overlay(boxes=True)) as sinks:
        for index in range(4):
            sinks.write(*make_pair(index))
    assert sinks.path == tmp_path / "out"
    assert sinks.paths == {
        "labels": tmp_path / "out/labels",
        "overlay": tmp_path / "out/overlay.mp4",
        "results": tmp_path / "out/results.jsonl",
    }
    assert sorted(path.name for path in sinks.paths["labels"].iterdir()) == [f"f{k}.png" for k in range(4)]
    np.testing.assert_array_equal(read_label_map(tmp_path / "out/labels/f3.png"), make_pair(3)[1].mask)
    with VideoFileSource(sinks.paths["overlay"]) as video:
        assert len(list(video)) == 4
    records = [json.loads(line) for line in sinks.paths["results"].read_text().splitlines()]
    assert [record["index"] for record in records] == [0, 1, 2, 3]
    assert shown(tmp_path / "out") == ["labels", "overlay.mp4", "results.jsonl"]


def test_each_can_be_left_out(tmp_path, make_pair):
    with open_sinks(tmp_path, labels=False, overlay=False) as sinks:
        sinks.write(*make_pair(0))
    assert shown(tmp_path) == ["results.jsonl"]


def test_an_exception_keeps_all_final_names_free(tmp_path, make_pair):
    with pytest.raises(KeyError), open_sinks(tmp_path) as sinks:  # noqa: PT012
        sinks.write(*make_pair(0))
        raise KeyError
    assert [re.sub(r"\.\w{8}\.", ".", name) for name in shown(tmp_path)] == [
        "labels", "overlay.partial.mp4", "results.partial.jsonl",
    ]  # fmt: skip


def test_when_one_cannot_be_opened_nothing_begun_is_left(tmp_path):
    (tmp_path / "results.jsonl").mkdir()
    with pytest.raises(InputError, match=r"results\.jsonl: it is a folder"):
        open_sinks(tmp_path)
    assert not list(tmp_path.glob("overlay*"))


class Failing(Sink):
    """A sink that cannot be finished."""

    def _write(self, frame, result):
        pass

    def _finish(self):
        raise SinkError(f"cannot finish {self.path}")

    def _abandon(self):
        pass


def test_all_are_closed_even_if_one_fails(tmp_path, make_pair):
    labels = LabelMapSink(tmp_path)
    sinks = MultiSink(tmp_path, {"failing": Failing("nowhere"), "labels": labels})
    with pytest.raises(SinkError, match="nowhere"):
        sinks.close()
    with pytest.raises(ValueError, match="closed"):
        labels.write(*make_pair(0))


@pytest.fixture
def tiny_disk(tmp_path: Path):
    """A file system of 256 KiB of its own; only root can have one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a tiny disk needs root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("cannot mount a tmpfs here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(tiny_disk, make_result):
    rng = np.random.default_rng(0)

    def write_much() -> None:
        with open_sinks(tiny_disk) as sinks:
            for index in range(200):
                mask = rng.integers(0, 3, (64, 64)).astype(np.uint8)
                image = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
                sinks.write(Frame(image, index, 0, index / 24), make_result(mask))

    with pytest.raises(SinkError, match="No space left"):
        write_much()
    assert not (tiny_disk / "overlay.mp4").exists()
    assert not (tiny_disk / "results.jsonl").exists()
    for line in next(tiny_disk.glob("results.*.partial.jsonl")).read_text().splitlines():
        json.loads(line)
    maps = sorted((tiny_disk / "labels").iterdir())
    assert maps
    for path in maps:
        assert read_label_map(path).shape == (64, 64)
