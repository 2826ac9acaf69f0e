"""`streamvos ctl`: orders arrive, answers are printed, and errors are one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pipeline.small_server import SIZE, Recorder, serving, short_folder

from streamvos.masks.labelmap import write_label_map
from streamvos.pipeline.wire import runtime
from streamvos.pipeline.wire.runtime import Runtime
from streamvos.pipeline.wire.security import Curve, make_keys


@pytest.fixture
def door(monkeypatch):
    """What a running pipeline "door" was told; no other pipeline of this machine is seen."""
    with short_folder() as folder:
        monkeypatch.setattr(runtime, "_bases", lambda: [folder / "streamvos"])
        recorder = Recorder({"front": "tcp://127.0.0.1:5601"})
        with Runtime.claim("door") as claimed, serving(claimed.control, recorder):
            yield recorder


def test_status_as_a_table_and_as_json(call, door):
    answer = call("ctl", "status")
    assert answer.code == 0, answer
    line = next(line for line in answer.out.splitlines() if "front" in line)
    for word in ("running", "7", "24.9", "3.0", "4.0", "5.5"):
        assert word in line
    assert "worker compute: ready" in answer.out
    assert "masks of front: tcp://127.0.0.1:5601" in answer.out
    report = json.loads(call("ctl", "status", "--at", "door", "--json").out)
    assert report["streams"]["front"]["dropped"] == {"newer frame": 3}


def test_status_says_what_a_stream_waits_for(call, door):
    assert "waiting" not in call("ctl", "status").out
    reason = "no space left on device (json sink: out/front.jsonl)"
    door.state, door.waiting = "waiting", {"waiting_for": reason, "waiting_seconds": 12.3}
    answer = call("ctl", "status")
    assert f"front: waiting for 12 s: {reason}" in answer.out
    assert json.loads(call("ctl", "status", "--json").out)["streams"]["front"]["waiting_seconds"] == 12.3


def test_orders_arrive(call, door, tmp_path):
    mask = np.zeros(SIZE, np.uint8)
    mask[2:5, 3:9] = 4
    write_label_map(tmp_path / "mask.png", mask)
    assert call("ctl", "annotate", "front", tmp_path / "mask.png").out == "front: applied to frame 7\n"
    assert call("ctl", "forget", "front", 4).out == "front: without object 4 from frame 7 on\n"
    assert call("ctl", "pause", "front").out == "front: paused\n"
    assert call("ctl", "resume", "front", "--at", "door").out == "front: goes on\n"
    assert call("ctl", "stop", "front").out == "front: ended\n"
    assert json.loads(call("ctl", "stop", "--json").out) == {"stream": "", "state": "ended"}
    assert np.array_equal(door.calls[0][2], mask)
    assert [call[:2] for call in door.calls] == [
        ("annotate", "front"),
        ("forget", "front"),
        ("pause", "front"),
        ("resume", "front"),
        ("stop", "front"),
        ("stop", ""),
    ]


def test_errors_are_one_line(call, door, tmp_path):
    assert "no stream 'back'; there are front" in call("ctl", "pause", "back").error
    assert "no pipeline 'gate'" in call("ctl", "status", "--at", "gate").error
    assert "no label map at" in call("ctl", "annotate", "front", tmp_path / "absent.png").error
    assert "does not answer" in call("ctl", "status", "--at", "tcp://127.0.0.1:1", "--timeout", "0.2").error
    assert "needs both" in call("ctl", "status", "--secret", tmp_path / "x").error
    assert "254" in call("ctl", "forget", "front", 255).error
    assert door.calls == []


def test_which_of_several_is_asked(call, door):
    with Runtime.claim("gate") as claimed, serving(claimed.control, Recorder()):
        assert "one of door, gate" in call("ctl", "status").error
        with Runtime.claim("default") as third, serving(third.control, Recorder()):
            assert "default" in call("ctl", "status").out


def test_nothing_runs(call, monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "_bases", lambda: [tmp_path])
    assert "none runs; start one with `streamvos serve`" in call("ctl", "status").error


def test_over_tcp_with_keys(call, tmp_path):
    for name in ("server", "friend"):
        make_keys(tmp_path, name)
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "friend.key").write_bytes((tmp_path / "friend.key").read_bytes())
    curve = Curve(tmp_path / "server.key_secret", tmp_path / "clients")
    with (
        short_folder() as folder,
        serving(f"ipc://{folder}/c", Recorder(), "tcp://127.0.0.1:*", curve) as loop,
    ):
        at = ("--at", loop.server.endpoints[1])
        keys = ("--secret", tmp_path / "friend.key_secret", "--server-key", tmp_path / "server.key")
        assert call("ctl", "resume", "front", *at, *keys).out == "front: goes on\n"
        answer = call("ctl", "resume", "front", *at)
        assert answer.code == 2
        assert (
            "give secret and server_key" in answer.err.splitlines()[-1]
        )  # the server's warning is before it


def test_a_stream_is_added_by_options(call, door, tmp_path):
    answer = call(
        "ctl", "add", "side", "--source", "clip.mp4", "--mask", tmp_path / "m.png", "--height", "240",
        "--box", "1:1,2,30,40", "--method", "frtm-fast", "--set", "threads=2", "--weights", "None",
        "--out", tmp_path / "out", "--no-publish",
    )  # fmt: skip
    assert (answer.code, answer.out) == (0, "side: added, running\n"), answer
    ((_, table, method, files),) = door.calls
    assert files
    assert method == {"name": "frtm-fast", "weights": None, "options": {"threads": 2}}
    assert table.pop("source") == f"{Path.cwd()}/clip.mp4"
    assert [sink["path"] for sink in table.pop("sinks")] == [
        f"{tmp_path}/out/{name}" for name in ("labels", "overlay.mp4", "results.jsonl")
    ]
    expected = {"name": "side", "mask": f"{tmp_path}/m.png", "height": 240, "boxes": ["1:1,2,30,40"]}
    assert {key: value for key, value in table.items() if value != []} == expected


def test_a_stream_is_added_by_a_file(call, door, tmp_path):
    file = tmp_path / "side.toml"
    file.write_text(
        '[method]\nweights = "w.pt"\n[[streams]]\nname = "side"\nsource = "camera:clip.mp4"\n'
        'sinks = [{ kind = "json", path = "out/side.jsonl" }]\n'
    )
    assert call("ctl", "add", "--config", file).out == "side: added, running\n"
    answer = json.loads(call("ctl", "add", "other", "--config", file, "--json").out)
    assert answer == {"stream": "other", "state": "running"}
    (_, table, method, _), (_, other, *_) = door.calls
    assert method == {"weights": f"{tmp_path}/w.pt"}
    sinks = [{"kind": "json", "path": f"{tmp_path}/out/side.jsonl"}]
    assert table == {"name": "side", "source": f"camera:{tmp_path}/clip.mp4", "sinks": sinks}
    assert other == {**table, "name": "other"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "got 0 [[streams]]"),
        ('[[streams]]\nname = "a"\nsource = "x"\n' * 2, "got 2 [[streams]]"),
        ('name = "door"\n[[streams]]\nname = "a"\nsource = "x"\n', "got 1 [[streams]], name"),
        ('[[streams]]\nname = "a"\n', '[[streams]] "a": the key "source" is missing'),
        ('[[streams]]\nname = "a"\nsource = "camera:0"\n[method]\nnam = "y"\n', 'did you mean "name"'),
        ('method = 3\n[[streams]]\nname = "a"\nsource = "x"\n', "method: expected a table"),
        ("streams = 3", "got 0 [[streams]]"),
        ("sorry", "is no TOML"),
    ],
    ids=range(8),
)
def test_files_that_are_no_stream(call, door, tmp_path, text, words):
    (tmp_path / "side.toml").write_text(text)
    answer = call("ctl", "add", "--config", tmp_path / "side.toml")
    assert (answer.code, words in answer.err) == (2, True), answer
    assert door.calls == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "which stream?"),
        (["side"], "which stream?"),
        (
            ["side", "--config", "x.toml", "--height", "240", "--box", "1:1,1,9,9"],
            "--box, --height: --config",
        ),
        (["side", "--config", "x.toml"], "x.toml"),
        (["side", "--source", "camera:0", "--policy", "fast"], 'side" policy: expected'),
        (["front", "--source", "camera:0"], "'front' already"),
    ],
    ids=str,
)
def test_additions_that_cannot_be(call, door, arguments, words):
    answer = call("ctl", "add", *arguments)
    assert (answer.code, words in answer.err) == (2, True), answer
    assert door.calls == []


def test_a_stream_is_removed(call, door):
    assert call("ctl", "remove", "front").out == "front: removed after 12 frames\n"
    assert json.loads(call("ctl", "remove", "front", "--now", "--json").out)["state"] == "ended"
    assert door.calls == [("remove_stream", "front", False), ("remove_stream", "front", True)]
    assert call("ctl", "remove", "back").code == 2
    door.last = {"state": "failed", "reason": "its disk is full", "frames": 3}
    answer = call("ctl", "remove", "front")
    assert answer.code == 1
    assert "front: removed; it had failed: its disk is full" in answer.err
