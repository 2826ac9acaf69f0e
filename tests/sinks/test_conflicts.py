"""No output is an input, whatever links and names lead to it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streamvos.sinks.conflicts import Place, refuse_conflicts, tree
from streamvos.sources.places import files_of, may_name
from streamvos.types import InputError


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder: clip.mp4, masks/first.png, frames/ with pictures, links to some of them."""
    monkeypatch.chdir(tmp_path)
    for name in ("clip.mp4", "masks/first.png", "frames/1.jpg", "frames/2.jpg", "data/JPEGImages/a/0.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "link.mp4").symlink_to("clip.mp4")
    os.link(tmp_path / "clip.mp4", tmp_path / "hard.mp4")
    (tmp_path / "pictures").symlink_to("frames")
    return tmp_path


def read(source, mask="masks/first.png"):
    return [
        *(Place(path, "the source", reads=reads) for path, reads in files_of(source)),
        Place(Path(mask), "--mask"),
    ]


FILES = [
    ("clip.mp4", "clip.mp4"),
    ("clip.mp4", "link.mp4"),
    ("link.mp4", "clip.mp4"),
    ("clip.mp4", "hard.mp4"),
    ("clip.mp4", "frames/../clip.mp4"),
    ("clip.mp4", "pictures/../clip.mp4"),
    ("clip.mp4", "./masks/first.png"),
    ("camera:clip.mp4", "clip.mp4"),
    ("file:HERE/clip.mp4", "clip.mp4"),
    ("frames", "frames/1.jpg"),
    ("frames", "frames/new.png"),
    ("pictures", "frames/1.jpg"),
    ("frames", "pictures/2.jpg"),
    ("frames/*.jpg", "frames/3.jpg"),
    ("pictures/?.jpg", "frames/1.jpg"),
    ("**/*.jpg", "frames/deep/3.jpg"),
    ("frames/1.jpg", "frames/1.jpg"),
    ("not/there/yet.mp4", "not/there/yet.mp4"),
]


@pytest.mark.parametrize(("source", "output"), FILES)
def test_a_file_over_an_input_is_refused(here, source, output):
    source = source.replace("HERE", str(here))
    with pytest.raises(InputError, match=r"the trace: .* would replace what is read"):
        refuse_conflicts([Place(Path(output), "the trace")], read(source))


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("clip.mp4", "masks"),
        ("frames", "frames"),
        ("frames", "pictures"),
        ("frames/*.png", "frames"),
        ("masks/first.png", "masks"),
        ("clip.mp4", "clip.mp4"),
    ],
)
def test_label_maps_among_what_is_read_are_refused(here, source, folder):
    with pytest.raises(InputError, match="would replace what is read"):
        refuse_conflicts([Place(Path(folder), "labels", is_folder=True)], read(source))


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("clip.mp4", "out.mp4"),
        ("frames", "frames/overlay.mp4"),
        ("frames", "frames/results.json"),
        ("frames", "frames/deeper/1.jpg"),
        ("frames/*.jpg", "frames/1.png"),
        ("rtsp://10.0.0.1/clip.mp4", "clip.mp4"),
        ("camera:0", "0"),
        ("synthetic:seed=3", "synthetic:seed=3"),
    ],
)
def test_other_places_are_not(here, source, output):
    refuse_conflicts([Place(Path(output), "the trace")], read(source))


def test_outputs_are_kept_apart_from_each_other(here):
    one, other = Place(here / "x.json", "--json"), Place(here / "frames/../x.json", "--trace")
    with pytest.raises(InputError, match=r"--trace and --json write to the same place"):
        refuse_conflicts([one, other], [])
    with pytest.raises(InputError, match=r"would write into .*x\.json, which is the file of --json"):
        refuse_conflicts([one, Place(here / "x.json/deep/o.mp4", "--out")], [])
    refuse_conflicts([Place(here / "out", "--out", is_folder=True), Place(here / "out/o.mp4", "o")], [])


def test_everything_in_a_data_set_is_read(here):
    data = tree(here / "data", "the data set")
    for output in ("data/JPEGImages/a/new.json", "data/new", "data"):
        with pytest.raises(InputError, match="the data set"):
            refuse_conflicts([Place(here / output, "--json")], [data])
    refuse_conflicts([Place(here / "data2/x.json", "--json")], [data])


@pytest.mark.parametrize(
    ("source", "stem", "expected"),
    [
        ("clip.mp4", "00012", True),
        ("clip.mp4", "123456", True),
        ("clip.mp4", "mine", False),
        ("frames", "1", True),
        ("frames", "00012", False),
        ("frames/*.jpg", "2", True),
        ("*/1.jpg", "anything", True),
        ("camera:0", "00012", True),
    ],
)
@pytest.mark.usefixtures("here")
def test_names_that_label_maps_may_get(source, stem, expected):
    assert may_name(source)(stem) is expected
