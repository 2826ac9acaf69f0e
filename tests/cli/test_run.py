"""`streamvos run`: what it writes, prints and scores, from every kind of source that fits in a test."""

from __future__ import annotations

import json
import math

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from streamvos.masks.labelmap import read_label_map, write_label_map
from streamvos.masks.rle import decode_rle
from streamvos.metrics.evaluation import evaluate_sequence
from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo

LENGTH = 6


@pytest.fixture
def run(call, inputs, weights):
    """run("clip.mp4", ...) into out/, with the small weights."""

    def run_it(*arguments):
        return call("run", *arguments, "--weights", weights, "--out", "out")

    return run_it


def pngs(folder):
    return sorted(path.name for path in folder.glob("*.png"))


def decoded(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("source", ["clip.mp4", "frames", "frames/*.png"])
def test_a_clip_gives_label_maps_a_video_and_lines(run, inputs, source):
    answer = run(source, "--mask", "first.png")
    assert answer.code == 0
    names = [f"{k:05d}.png" for k in range(LENGTH)]
    if source != "clip.mp4":  # label maps bear the names of their frames
        names = [f"shot_{k + 1}.png" for k in range(LENGTH)]
    assert pngs(inputs / "out/labels") == names
    first = read_label_map(inputs / "out/labels" / names[0])
    np.testing.assert_array_equal(first, read_label_map(inputs / "first.png"))
    assert len(decoded(inputs / "out/overlay.mp4")) == LENGTH
    lines = [json.loads(line) for line in (inputs / "out/results.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(LENGTH))
    for line, name in zip(lines, names, strict=True):
        label_map = read_label_map(inputs / "out/labels" / name)
        for one in line["objects"]:
            np.testing.assert_array_equal(decode_rle(one["rle"]), label_map == one["id"])
    for path in ("out/labels", "out/overlay.mp4", "out/results.jsonl"):
        assert path in answer.out
    assert "no ground truth" in answer.out
    assert "peak memory" in answer.out
    assert not list((inputs / "out").glob("*partial*"))


def test_a_synthetic_source_is_scored_by_its_own_truth(run):
    answer = run("synthetic:seed=13,size=48x64,length=6,leave=0,motion=0.5", "--json")
    values = json.loads(answer.out)
    assert values["frames"] == 6
    assert values["size"] == [48, 64]
    assert values["dropped"] is None
    assert 30 < values["scores"]["J"] < 100
    assert math.isclose(values["scores"]["J&F"], (values["scores"]["J"] + values["scores"]["F"]) / 2)
    assert values["fps"] > 0
    assert values["step_ms"]["p50"] <= values["step_ms"]["p99"]
    assert values["peak_memory_mib"] > 50


def test_json_goes_to_a_file_or_alone_to_the_standard_output(run, inputs):
    printed = run("clip.mp4", "--mask", "first.png", "--max-frames", 2, "--json")
    values = json.loads(printed.out)  # nothing but JSON
    filed = run("clip.mp4", "--mask", "first.png", "--max-frames", 2, "--json", "deep/er/result.json")
    assert "no ground truth" in filed.out
    again = json.loads((inputs / "deep/er/result.json").read_text())
    assert again.keys() == values.keys()
    assert again["frames"] == 2
    assert [path.name for path in (inputs / "deep/er").iterdir()] == ["result.json"]
    between = run("clip.mp4", "--json", "--mask", "first.png", "--max-frames", 2)
    assert json.loads(between.out)["paths"]["labels"] == "out/labels"


def test_what_is_not_known_is_null(run):
    answer = run("clip.mp4", "--mask", "first.png", "--max-frames", 1, "--json")
    values = json.loads(answer.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert values["frames"] == 1
    assert values["step_ms"] == {"p50": None, "p95": None, "p99": None}  # the first frame is not timed
    assert values["scores"] is None


def test_nothing_that_is_not_wanted_is_written(run, inputs):
    answer = run("clip.mp4", "--mask", "first.png", "--no-labels", "--no-overlay")
    assert answer.code == 0
    assert [path.name for path in (inputs / "out").iterdir() if path.name[0] != "."] == ["results.jsonl"]


def test_stride_and_max_frames_choose_frames(run, inputs):
    assert run("frames", "--mask", "first.png", "--stride", 2, "--max-frames", 2).code == 0
    assert pngs(inputs / "out/labels") == ["shot_1.png", "shot_3.png"]


def test_a_mask_of_the_source_s_size_is_resized_with_the_frames_and_masks_come_at_its_size(run, inputs):
    given = read_label_map(inputs / "first.png")
    expected = cv2.resize(given, (32, 24), interpolation=cv2.INTER_NEAREST_EXACT)
    write_label_map("resized.png", expected)
    for mask, option, first in (
        ("first.png", [], given),
        ("first.png", ["--mask-size", "frames"], expected),
        ("resized.png", [], expected),  # of the frames' size: taken as it is
        ("resized.png", ["--mask-size", "source"], None),
    ):
        assert run("frames", "--mask", mask, "--height", 24, *option).code == 0
        label_maps = [read_label_map(inputs / f"out/labels/shot_{k + 1}.png") for k in range(LENGTH)]
        assert {one.shape for one in label_maps} == {(48, 64) if first is None else first.shape}
        if first is not None:
            np.testing.assert_array_equal(label_maps[0], first)
        assert set(np.unique(label_maps[0])) == {0, 1, 2}
        assert decoded(inputs / "out/overlay.mp4")[0].shape == (24, 32, 3)
        lines = [json.loads(line) for line in (inputs / "out/results.jsonl").read_text().splitlines()]
        for line, label_map in zip(lines, label_maps, strict=True):
            assert line["size"] == list(label_map.shape)
            for one in line["objects"]:
                np.testing.assert_array_equal(decode_rle(one["rle"]), label_map == one["id"])
                assert one["area"] == (label_map == one["id"]).sum()
    assert "choose source or frames" in run("frames", "--mask", "first.png", "--mask-size", "big").error


def test_an_object_that_vanishes_by_resizing_is_an_error(run, inputs):
    label_map = np.zeros((48, 64), np.uint8)
    label_map[:20, :20] = 1
    label_map[32, 32] = 9  # no sample at a third of the size falls on it
    write_label_map("dot.png", label_map)
    assert "object 9" in run("frames", "--mask", "dot.png", "--height", 16).error
    assert not (inputs / "out").exists()


def test_void_in_the_mask_is_no_object(run, inputs):
    label_map = read_label_map(inputs / "first.png")
    label_map[:5] = 255
    write_label_map("void.png", label_map)
    assert run("clip.mp4", "--mask", "void.png").code == 0
    for name in pngs(inputs / "out/labels"):
        assert set(np.unique(read_label_map(inputs / "out/labels" / name))) <= {0, 1, 2}


@pytest.mark.parametrize("select", ["learned", "grabcut"])
def test_a_box_begins_where_there_is_no_mask(run, inputs, video, select):
    rows, columns = np.nonzero(video[0].label_map == 1)
    box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert run("clip.mp4", "--box", f"7:{','.join(map(str, box))}", "--select", select).code == 0
    first = read_label_map(inputs / "out/labels/00000.png")
    assert set(np.unique(first)) == {0, 7}
    inside = np.s_[box[1] : box[3], box[0] : box[2]]
    if select == "grabcut":  # which never leaves the box
        assert (first[inside] == 7).sum() == (first == 7).sum() > 0
    else:
        assert (first[video[0].label_map == 1] == 7).mean() > 0.5


def test_a_mask_and_a_box_together(run, inputs):
    one = read_label_map(inputs / "first.png")
    one[one != 1] = 0
    write_label_map("one.png", one)
    rows, columns = np.nonzero(one)
    assert run("clip.mp4", "--mask", "one.png", "--box", "2:0,0,64,48").code == 0
    first = read_label_map(inputs / "out/labels/00000.png")
    assert (first[rows, columns] == 1).all()  # the mask wins where it names something
    assert (first == 2).any()
    assert (
        "object 1 is in the mask one.png"
        in run("clip.mp4", "--mask", "one.png", "--box", "1:0,0,64,48").error
    )


def test_the_first_frame_is_stored_to_paint_on(call, inputs, video):
    answer = call("run", "frames", "--save-first", "new/first_frame.png")
    assert answer.code == 0
    assert "new/first_frame.png" in answer.out
    np.testing.assert_array_equal(np.array(Image.open("new/first_frame.png")), video[0].image)
    assert not (inputs / "out").exists()
    values = json.loads(call("run", "frames", "--height", 24, "--save-first", "small.png", "--json").out)
    assert values["size"] == [24, 32]
    assert values["first_frame"] == "small.png"
    assert Image.open("small.png").size == (32, 24)


def test_the_first_frame_is_stored_beside_a_run_too(run, inputs):
    assert run("frames", "--mask", "first.png", "--save-first", "f.png").code == 0
    assert (inputs / "f.png").is_file()
    assert (inputs / "out/overlay.mp4").is_file()


def test_a_live_source_counts_what_it_drops(run, inputs):
    # a file that plays the part of a camera: 6 frames at 12 per second
    values = json.loads(run("camera:clip.mp4", "--mask", "first.png", "--json").out)
    assert values["frames"] + values["dropped"] == LENGTH
    assert values["source"] == "clip"
    assert "dropped" in run("camera:clip.mp4", "--mask", "first.png").out


def test_a_later_run_replaces_an_earlier_longer_one(run, inputs):
    assert run("frames", "--mask", "first.png").code == 0
    assert run("clip.mp4", "--mask", "first.png", "--max-frames", 2, "--no-overlay").code == 0
    assert pngs(inputs / "out/labels") == ["00000.png", "00001.png"]
    assert not (inputs / "out/overlay.mp4").exists()


def test_label_maps_of_others_are_left_alone_and_told_of(run, inputs):
    (inputs / "out/labels").mkdir(parents=True)
    write_label_map("out/labels/mine.png", np.ones((4, 4), np.uint8))
    answer = run("clip.mp4", "--mask", "first.png")
    assert answer.code == 0
    assert (inputs / "out/labels/mine.png").is_file()
    warnings = [line for line in answer.err.splitlines() if "warning" in line]
    assert warnings == ["streamvos: warning: out/labels also holds 1 PNG files that this run did not write"]


def test_a_list_of_files_cannot_lead_out_of_its_folder(run, inputs):
    (inputs / "out").mkdir()
    (inputs / "out/.streamvos-files").write_text(
        "../first.png\nlabels/../../clip.mp4\n/etc/none\nnotes.txt\n"
    )
    (inputs / "out/notes.txt").write_text("mine")
    assert run("clip.mp4", "--mask", "first.png").code == 0
    assert (inputs / "first.png").is_file()
    assert (inputs / "out/notes.txt").is_file()


def test_bad_input_leaves_an_earlier_run_as_it_was(run, inputs, call, weights):
    assert run("clip.mp4", "--mask", "first.png").code == 0
    before = {path: path.read_bytes() for path in (inputs / "out").rglob("*") if path.is_file()}
    write_label_map("empty.png", np.zeros((48, 64), np.uint8))
    _ = run("clip.mp4", "--mask", "empty.png").error
    _ = run("clip.mp4", "--box", "1:900,900,950,950").error
    _ = call("run", "clip.mp4", "--mask", "first.png", "--weights", "first.png", "--out", "out").error
    assert {path: path.read_bytes() for path in (inputs / "out").rglob("*") if path.is_file()} == before


def test_a_run_does_not_overwrite_what_it_reads(run, inputs):
    assert run("clip.mp4", "--mask", "first.png").code == 0
    before = (inputs / "out/overlay.mp4").read_bytes()
    for source in ("out/overlay.mp4", "camera:out/overlay.mp4", "out/labels", "out/labels/00000.png"):
        assert "would replace" in run(source, "--mask", "first.png").error
    assert (inputs / "out/overlay.mp4").read_bytes() == before


def test_names_with_brackets_are_no_markup(call, inputs, weights):
    (inputs / "frames").rename(inputs / "a [bold]name")
    answer = call("run", "a [bold]name", "--mask", "first.png", "--weights", weights, "--out", "[red]out")
    assert "a [bold]name" in answer.out
    assert "[red]out/labels" in answer.out


def test_options_of_the_method_reach_it(run, call, inputs, weights):
    plain = ("clip.mp4", "--mask", "first.png", "--no-overlay")
    run(*plain)
    last = read_label_map("out/labels/00005.png")
    run(*plain, "--set", "radius=0", "--set", "history_labels=soft")
    blind = read_label_map("out/labels/00005.png")  # no cell sees beyond its own place
    assert (blind != last).any()


def test_the_bundled_weights_follow_a_clip(call, inputs):
    spec = "synthetic:seed=14,size=144x192,length=8,objects=2,leave=0,motion=2"
    values = json.loads(call("run", spec, "--out", "out", "--json").out)
    options = SyntheticOptions(size=(144, 192), length=8, objects=2, leave=0.0, motion=2.0)
    truths = [frame.label_map for frame in SyntheticVideo(14, options)]
    frozen = evaluate_sequence(truths, [truths[0]] * 8).percent()
    assert values["scores"]["J"] > frozen["J"] + 8  # not looking gives 64, so 72; looking gave 83
