"""Bad input ends with one line on the standard error and exit code 2; nothing else is printed or made."""

from __future__ import annotations

import os
import resource

import numpy as np
import pytest

from streamvos.masks.labelmap import write_label_map

MASK = ["--mask", "first.png"]

CASES = {
    # what is wrong: (arguments after `run`, a part of the line)
    "no such source": (["none.mp4", *MASK], "there is no none.mp4"),
    "an empty source": (["", *MASK], "empty string"),
    "an unknown scheme": (["ftp://me:secret@host/x", *MASK], "ftp://***@host/x"),
    "no such camera": (["camera:97", *MASK], "/dev/video97"),
    "an unknown synthetic option": (["synthetic:nope=1"], "nope"),
    "a cut-off video": (["cut.mp4", *MASK], "cut.mp4"),
    "a text for a video": (["text.mp4", *MASK], "text.mp4"),
    "no way to begin": (["clip.mp4"], "--mask FILE.png"),
    "no such mask": (["clip.mp4", "--mask", "none.png"], "none.png"),
    "a folder for a mask": (["clip.mp4", "--mask", "frames"], "frames is a folder"),
    "a text for a mask": (["clip.mp4", "--mask", "text.png"], "text.png"),
    "a mask of another size": (["clip.mp4", "--mask", "small.png"], "is 32 x 24, the frames are 64 x 48"),
    "a mask of no size": (["clip.mp4", "--mask", "odd.png", "--height", "24"], "64 x 48 before"),
    "an empty mask": (["clip.mp4", "--mask", "empty.png"], "empty.png names no object"),
    "a mask of void alone": (["clip.mp4", "--mask", "void.png"], "void.png names no object"),
    "a box that cannot be read": (["clip.mp4", "--box", "1:2,3"], "1:2,3"),
    "a box with a wrong id": (["clip.mp4", "--box", "255:2,3,20,30"], "ids are 1..254"),
    "an empty box": (["clip.mp4", "--box", "1:20,3,2,30"], "LEFT < RIGHT"),
    "a box outside": (["clip.mp4", "--box", "1:200,3,220,30"], "64 x 48"),
    "a box twice": (["clip.mp4", "--box", "1:2,3,20,30", "--box", "1:2,3,20,30"], "already"),
    "a first frame as JPEG": (["clip.mp4", "--save-first", "first.jpg"], "ends in .png"),
    "an unknown method": (["clip.mp4", *MASK, "--method", "sam"], "unknown method 'sam'"),
    "an unknown method option": (["clip.mp4", *MASK, "--set", "nope=1"], "nope"),
    "a method option out of range": (["clip.mp4", *MASK, "--set", "top_k=0"], "top_k"),
    "a method option that is none": (["clip.mp4", *MASK, "--set", "top_k"], "NAME=VALUE"),
    "a method option twice": (["clip.mp4", *MASK, "--set", "top_k=1", "--set", "top_k=2"], "once"),
    "a method option that is infinite": (["clip.mp4", *MASK, "--set", "temperature=Infinity"], "finite"),
    "an option by another door": (["clip.mp4", *MASK, "--set", "device=cpu"], "--device"),
    "an unknown device": (["clip.mp4", *MASK, "--device", "nope"], "'nope'"),
    "an unknown backend": (["clip.mp4", *MASK, "--backend", "nope"], "'nope'"),
    "no such weights": (["clip.mp4", *MASK, "--weights", "none.pth"], "none.pth"),
    "a picture for weights": (["clip.mp4", *MASK, "--weights", "first.png"], "first.png"),
    "an output that is a file": (["clip.mp4", *MASK, "--out", "text.png"], "text.png is a file"),
    "an output within a file": (["clip.mp4", *MASK, "--out", "text.png/out"], "text.png is a file"),
    "JSON into a folder": (["clip.mp4", *MASK, "--json", "frames"], "frames is a folder"),
    "JSON within a file": (["clip.mp4", *MASK, "--json", "text.png/x.json"], "text.png is a file"),
    "a first frame within a file": (["clip.mp4", *MASK, "--save-first", "text.png/x.png"], "is a file"),
    "a rate for a video": (["clip.mp4", *MASK, "--fps", "30"], "own clock"),
    "a stride of nothing": (["clip.mp4", *MASK, "--stride", "0"], "--stride"),
    "a stride that is no number": (["clip.mp4", *MASK, "--stride", "x"], "--stride"),
    "a height of nothing": (["clip.mp4", *MASK, "--height", "3"], "--height"),
    "no frames": (["clip.mp4", *MASK, "--max-frames", "0"], "--max-frames"),
    "an unknown option": (["clip.mp4", *MASK, "--nope"], "--nope"),
    "no source": ([], "SOURCE"),
    "a glob without quotes": (["frames/shot_1.png", "frames/shot_2.png", *MASK], "needs quotes"),
    "a source that --json took": (["--json", "clip.mp4", *MASK], "--json took 'clip.mp4'"),
}  # fmt: skip


@pytest.fixture
def spoiled(inputs):
    """The inputs, and files that look like inputs."""
    (inputs / "cut.mp4").write_bytes((inputs / "clip.mp4").read_bytes()[:1500])
    for name in ("text.mp4", "text.png"):
        (inputs / name).write_text("neither a video nor a picture")
    write_label_map("empty.png", np.zeros((48, 64), np.uint8))
    write_label_map("void.png", np.full((48, 64), 255, np.uint8))
    write_label_map("small.png", np.ones((24, 32), np.uint8))
    write_label_map("odd.png", np.ones((30, 30), np.uint8))
    return inputs


@pytest.mark.parametrize("case", CASES)
def test_run_says_what_is_wrong_in_one_line(call, spoiled, weights, case):
    arguments, part = CASES[case]
    own = [] if "--weights" in arguments else ["--weights", weights]
    before = sorted(spoiled.rglob("*"))
    assert part in call("run", *arguments, *own).error
    assert sorted(spoiled.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nope"], "no such command 'nope'"),
        (["rnu"], "no such command 'rnu'"),
        (["train", "nope"], "see streamvos train --help"),
        (["run", "--nope"], "see streamvos run --help"),
        (["doctor", "surplus"], "surplus"),
        (["doctor", "--json", "."], "is a folder"),
        (["demo", "--source", "none.mp4"], "none.mp4"),
        (["demo", "--source", "clip.mp4"], "--box ID:LEFT,TOP,RIGHT,BOTTOM"),
    ],
)
def test_other_commands_do_so_too(call, spoiled, arguments, part):
    before = sorted(spoiled.rglob("*"))
    assert part.lower() in call(*arguments).error.lower()
    assert sorted(spoiled.rglob("*")) == before


def test_a_damaged_picture_ends_the_run_and_keeps_what_is_whole(call, spoiled, weights):
    # its header is sound, so it is met only when its turn comes
    picture = spoiled / "frames/shot_4.png"
    picture.write_bytes(picture.read_bytes()[:-400])
    error = call("run", "frames", *MASK, "--weights", weights, "--out", "out").error
    assert "shot_4.png" in error
    (lines,), (video,) = (list((spoiled / "out").glob(f"*.partial.{kind}")) for kind in ("jsonl", "mp4"))
    assert f"the first 3 frames are in out/labels, out/{video.name}, out/{lines.name}" in error
    assert sorted(path.name for path in (spoiled / "out/labels").iterdir()) == [
        f"shot_{k}.png" for k in (1, 2, 3)
    ]
    assert len(lines.read_text().splitlines()) == 3
    assert not (spoiled / "out/results.jsonl").exists()
    assert not (spoiled / "out/overlay.mp4").exists()


def test_a_full_disk_is_told_with_the_file(call, inputs, weights):
    # no file may grow beyond this, so writing fails as it does on a full disk, early in the run
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, hard))
    try:
        error = call("run", "clip.mp4", *MASK, "--weights", weights, "--out", "out").error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot write" in error
    assert "out/" in error
    for name in ("results.jsonl", "overlay.mp4"):
        assert not (inputs / "out" / name).exists()
    for line in next((inputs / "out").glob("*.partial.jsonl")).read_text().splitlines():
        assert line.startswith("{")
        assert line.endswith("}")


def test_json_onto_a_full_disk_leaves_no_half_of_it(call, inputs, weights):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        answer = call("doctor", "--json", "report.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert answer.code == 2
    assert "cannot write report.json" in answer.err
    assert not any("report" in name for name in os.listdir(inputs))
