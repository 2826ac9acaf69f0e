"""pipeline.toml: what it means, and what is said about one that is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from streamvos.files import tomllib
from streamvos.pipeline.config.pipeline import LIVE_SLOTS, PipelineConfig
from streamvos.pipeline.config.reading import config_from_options, make_config, read_config
from streamvos.pipeline.config.streams import SinkConfig, StreamConfig
from streamvos.pipeline.config.tables import (
    ExtractorConfig,
    MethodConfig,
    ObserveConfig,
    RemoteConfig,
    SecurityConfig,
    SelectionConfig,
    SupervisionConfig,
)
from streamvos.types import InputError

ROOT = Path(__file__).resolve().parents[3]
GUIDE = ROOT / "docs" / "pipeline.md"
CAMERA = {"name": "front", "source": "camera:0"}
CLIP = {"name": "front", "source": "clip.mp4", "mask": "first.png"}


def pipeline(stream=None, **more):
    return {"streams": [{**CAMERA, **(stream or {})}], **more}


def error(values):
    with pytest.raises(InputError) as caught:
        make_config(values, "pipeline.toml")
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("pipeline.toml: ")
    assert "(docs/pipeline.md" in text
    return text


def test_a_camera_and_a_file_get_what_suits_them():
    config = make_config({"streams": [CAMERA, {**CLIP, "name": "clip"}]})
    camera, clip = config.streams
    assert (camera.live, camera.effective_policy) == (True, "latest")
    assert (clip.live, clip.effective_policy) == (False, "lossless")
    assert (config.name, config.placement, config.method.name) == ("default", "fused", "tvos")
    assert config.standby
    publish, labels = SinkConfig(kind="publish"), SinkConfig(kind="labels", path=Path("x"))
    assert [camera.overflow_of(one) for one in (publish, labels)] == ["drop", "drop"]
    assert [clip.overflow_of(one) for one in (publish, labels)] == ["drop", "wait"]
    assert config.frame_slots("front", 10**6) == LIVE_SLOTS
    assert config.frame_slots("clip", 10**6) > 2 * config.snapshot_frames("clip", 10**6)
    assert config.frame_slots("clip", 10**9) == LIVE_SLOTS
    assert "source.clip" in config.stage_names


@pytest.mark.parametrize(
    ("source", "live"),
    [("rtsp://a:b@h/x", True), ("RTSP://h/x", True), ("camera:clip.mp4", True), ("a/*.png", False)],
)
def test_what_is_live(source, live):
    assert make_config(pipeline({"source": source, "mask": "m.png"})).streams[0].live is live


def test_paths_start_from_the_file(tmp_path, monkeypatch):
    path = tmp_path / "there" / "pipeline.toml"
    path.parent.mkdir()
    path.write_text(
        """
        [method]
        weights = "tvos.safetensors"
        [[streams]]
        name = "a"
        source = "clip.mp4"
        mask = "/masks/first.png"
        sinks = [{ kind = "json", path = "out/a.jsonl" }]
        [[streams]]
        name = "b"
        source = "camera:clip.mp4"
        [[streams]]
        name = "c"
        source = "camera:1"
        [[streams]]
        name = "d"
        source = "~/clip.mp4"
        boxes = ["1:2,3,40,50"]
        [observe]
        trace = "trace.json"
        """
    )
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    config, there = read_config("there/pipeline.toml"), Path("there")
    a, b, c, d = config.streams
    assert (a.source, a.mask, a.sinks[0].path) == (
        "there/clip.mp4",
        Path("/masks/first.png"),
        there / "out/a.jsonl",
    )
    assert (b.source, c.source) == ("camera:there/clip.mp4", "camera:1")
    assert d.source == str(tmp_path / "home/clip.mp4")
    assert config.method.weights == "there/tvos.safetensors"
    assert config.observe.trace == there / "trace.json"
    # what a worker is told is what the supervisor knows
    assert make_config(config.model_dump(mode="json")) == config


def test_passwords_do_not_show():
    config = make_config(pipeline({"source": "rtsp://admin:hunter2@10.0.0.5/x"}))
    assert "hunter2" not in repr(config)


def test_weights_may_be_none():
    assert make_config(pipeline(method={"weights": "none"})).method.weights is None
    assert make_config(pipeline(method={"weights": "default"})).method.weights == "default"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, "there is no stream; add a [[streams]] table"),
        ({"streams": []}, "there is no stream"),
        ({"streams": CAMERA}, "write [[streams]] with two brackets"),
        ({"streams": "camera:0"}, 'streams: expected an array, got "camera:0"'),
        ({"streams": [{"source": "camera:0"}]}, '[[streams]] no. 1: the key "name" is missing'),
        (pipeline({"sorce": "x"}), '[[streams]] "front": unknown key "sorce"; did you mean "source"?'),
        (pipeline({"trace": "x"}), 'unknown key "trace" here; it belongs in [observe]'),
        (pipeline(hang_timeout=3), 'unknown key "hang_timeout" here; it belongs in [supervision]'),
        (pipeline(xyzzy=3), 'unknown key "xyzzy"; expected one of name, placement, method, streams'),
        (
            pipeline(placement="Fused"),
            'placement: expected "fused" or "split", got "Fused"; did you mean "fused"?',
        ),
        (
            pipeline({"policy": "newest"}),
            '[[streams]] "front" policy: expected "latest" or "lossless", got "newest"',
        ),
        (pipeline({"height": "480"}), 'height: expected a whole number, got "480"'),
        (pipeline({"height": True}), "height: expected a whole number, got true"),
        (pipeline({"height": 5}), "height: expected at least 16, got 5"),
        (
            pipeline({"source": "clip.mp4", "mask": "m.png", "reopen": True}),
            "reopen: only cameras and network streams",
        ),
        (pipeline({"realtime": "yes"}), 'realtime: expected true or false, got "yes"'),
        (pipeline({"name": 5}), "name: expected a text, got 5"),
        (pipeline({"name": "../x"}), "name: expected a name of 1 to 64 letters"),
        (pipeline({"mask": 5}), "mask: "),
        (pipeline(name="a b"), "name: expected a name of 1 to 64 letters, digits, '_', '.' or '-'"),
        (
            pipeline(supervision={"hang_timeout": float("inf")}),
            "[supervision] hang_timeout: expected a finite number",
        ),
        (pipeline(supervision={"hang_timeout": 0}), "hang_timeout: expected more than 0, got 0"),
        (pipeline(supervision={"max_restarts": -1}), "max_restarts: expected at least 0, got -1"),
        (pipeline(method="tvos"), '[method]: expected a table, got "tvos"'),
        (pipeline(method={"wieghts": "x"}), '[method]: unknown key "wieghts"; did you mean "weights"?'),
        (
            pipeline(extractor={"batches": [2, 4]}),
            "batches: expected sizes that ascend from 1 to at most 64, got [2, 4]",
        ),
        (pipeline(extractor={"batches": [1, "2"]}), 'batches: expected a whole number, got "2"'),
        (pipeline(observe={"prometheus": "host"}), "[observe] prometheus: the metrics' address is 'host'"),
        (pipeline({"sinks": ["json"]}), '[[streams]] "front", sink 1: expected a table, got "json"'),
        (
            pipeline({"sinks": [{"kind": "jsn", "path": "x"}]}),
            'kind: expected "labels", "overlay", "json" or "publish", got "jsn"; did you mean "json"?',
        ),
        (
            pipeline({"sinks": [{"kind": "json"}]}),
            'sink 1 ("json"): a json sink needs path = "...", the file',
        ),
        (pipeline({"sinks": [{"kind": "overlay", "path": "x.avi"}]}), 'ends in .mp4, got "x.avi"'),
        (
            pipeline({"sinks": [{"kind": "publish", "path": "x"}]}),
            "a publish sink has an address and no path",
        ),
        (
            pipeline({"sinks": [{"kind": "json", "path": "x", "address": "ipc://y"}]}),
            "a json sink has a path and no address",
        ),
        (pipeline({"source": ""}), "source: it is an empty text"),
        (pipeline({"source": "camera:"}), '"camera:" lacks its number or path'),
        (pipeline({"source": "ftp://u:p@h/x"}), "cannot read ftp://***@h/x; expected one of rtsp"),
        (pipeline({"source": "synthetic:sed=3"}), "cannot use 'sed=3'"),
        (pipeline({"boxes": ["1:2"]}), "cannot read the box '1:2'; expected ID:LEFT,TOP,RIGHT,BOTTOM"),
        (pipeline({"boxes": ["1:2,3,9,9", "1:2,3,9,9"]}), "object 1 has a box already"),
        (pipeline({"fps": 25.0}), "a live source has its own clock; leave it out"),
        ({"streams": [CAMERA, CAMERA]}, "every stream has a name of its own; twice: front"),
    ],
)
def test_what_is_wrong_is_named(values, told):
    assert told in error(values)


def test_credentials_are_in_no_error():
    url = "rtsp://admin:hunter2@10.0.0.5/x"
    for values in (
        pipeline({"name": url}),
        pipeline({"source": url, "fps": 3.0}),
        pipeline({"source": f"x{url}"}),
        pipeline({"height": url}),
        pipeline({"source": url, "policy": url}),
        pipeline(control=url),
        pipeline(placement=url),
        pipeline({"source": url, "policy": "lossless"}),
    ):
        assert "hunter2" not in error(values)


def test_latest_is_for_what_is_live():
    told = error({"streams": [{**CLIP, "policy": "latest"}]})
    assert 'use "lossless", or add realtime = true' in told
    assert make_config({"streams": [{**CLIP, "policy": "latest", "realtime": True}]})
    assert make_config({"streams": [{**CLIP, "realtime": True}]}).streams[0].effective_policy == "latest"


def test_nothing_to_follow_is_refused_where_nothing_may_be_dropped():
    clip = {"name": "a", "source": "clip.mp4"}
    for stream in (clip, {**CAMERA, "policy": "lossless"}):
        assert "needs objects to follow" in error({"streams": [stream]})
    make_config({"streams": [{**clip, "boxes": ["1:2,3,40,50"]}]})
    make_config({"streams": [{**clip, "realtime": True}]})
    make_config({"streams": [{**clip, "source": "synthetic:seed=3"}]})  # its truth is known


def sinks(*ones):
    return {"sinks": [dict(zip(("kind", "path"), one, strict=True)) for one in ones]}


def test_two_sinks_never_write_to_one_place(tmp_path):
    same = sinks(("json", "out/x"), ("labels", f"{Path.cwd()}/out/../out/x"))
    assert 'the labels sink of "front" and the json sink of "front" write to the same place' in error(
        pipeline(same)
    )
    two = {"streams": [{**CAMERA, **sinks(("json", "x"))}, {**CAMERA, "name": "b", **sinks(("json", "x"))}]}
    assert 'the json sink of "b" and the json sink of "front"' in error(two)
    assert "the trace and the json sink" in error(pipeline(sinks(("json", "x")), observe={"trace": "x"}))
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    linked = sinks(("labels", f"{tmp_path}/real"), ("json", f"{tmp_path}/link"))
    assert "the same place" in error(pipeline(linked))


@pytest.mark.parametrize(
    ("source", "mask", "sink"),
    [
        ("clip.mp4", "first.png", ("overlay", "clip.mp4")),
        ("frames", "first.png", ("labels", "frames")),
        ("frames/*.png", "first.png", ("labels", "frames")),
        ("clip.mp4", "masks/first.png", ("labels", "masks")),
        ("clip.mp4", "masks/first.png", ("json", "masks/first.png")),
    ],
)
def test_what_is_read_is_never_written(source, mask, sink):
    assert "write elsewhere" in error(pipeline({"source": source, "mask": mask, **sinks(sink)}))


def test_two_streams_never_publish_at_one_address():
    def stream(name, *addresses):
        made = [{"kind": "publish", **({"address": one} if one else {})} for one in addresses]
        return {**CAMERA, "name": name, "sinks": made}

    address = "tcp://127.0.0.1:5555"
    told = error({"streams": [stream("a", address), stream("b", address)]})
    assert (
        f'the publish sink of "b" and the publish sink of "a" publish at the same address, "{address}"'
        in told
    )
    assert "same address" in error({"streams": [stream("a", None, None)]})
    assert "same address" in error({"streams": [stream("a", address)], "control": address})
    make_config({"streams": [stream("a", None, address), stream("b", None, "ipc:///tmp/b.sock")]})


@pytest.mark.parametrize(
    "address", ["tcp://0.0.0.0:5555", "tcp://*:5555", "tcp://10.0.0.1:1", "tcp://[::]:1", "tcp://eth0:9"]
)
def test_an_open_door_needs_keys(address):
    keys = {"secret": "server.key_secret", "clients": "clients"}
    published = {"sinks": [{"kind": "publish", "address": address}]}
    assert "can be reached from other hosts; that needs keys" in error(pipeline(control=address))
    assert "can be reached from other hosts" in error(pipeline(published))
    make_config(pipeline(published, security=keys))
    make_config(pipeline(control=address, security=keys))
    for one in keys:
        assert "[security] lacks" in error(pipeline(security={one: keys[one]}))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:5555", "tcp://localhost:5555", "tcp://[::1]:5555"])
def test_the_loopback_needs_none(address):
    assert make_config(pipeline(control=address)).control == address


@pytest.mark.parametrize(
    "address", ["127.0.0.1:5555", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "udp://1.2.3.4:5", "x"]
)
def test_addresses_that_are_none(address):
    assert "expected an address such as" in error(pipeline(control=address))


def test_remote_stages():
    far = {"remote": {"extractor": {"host": "10.0.0.2"}}, "placement": "split", "host": "10.0.0.1"}
    keys = {"secret": "server.key_secret", "clients": "clients"}
    assert make_config(pipeline(security=keys, **far)).remote["extractor"].host == "10.0.0.2"
    assert "remote.extractor.host" in error(pipeline(**far))
    assert "no stage memory.fron; there are extractor" in error(
        pipeline(remote={"memory.fron": {"host": "x"}})
    )
    assert 'need placement = "split"' in error(pipeline(remote={"extractor": {"host": "x"}}))
    near = {"remote": {"extractor": {"host": "127.0.0.1"}}, "placement": "split", "host": "127.0.0.1"}
    make_config(pipeline(**near))
    assert '[remote.extractor]: unknown key "hst"; did you mean "host"?' in error(
        pipeline(remote={"extractor": {"hst": "x"}})
    )


def test_a_pipeline_without_streams_and_one_whose_clients_may_name_files():
    assert make_config({"keep": True}).streams == ()
    assert "there is no stream" in error({"keep": False})
    keys = {"secret": "server.key_secret", "clients": "clients"}
    assert make_config(pipeline(security={**keys, "remote_files": True})).security.remote_files
    assert "security.remote_files: without keys" in error(pipeline(security={"remote_files": True}))


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*none\.toml: No such file"):
        read_config(tmp_path / "none.toml")
    path = tmp_path / "pipeline.toml"
    path.write_text("name = \n")
    with pytest.raises(InputError, match=r"is no TOML: .*line 1"):
        read_config(path)
    path.write_bytes(b"\x00\x00\xff\xfevideo")
    with pytest.raises(InputError, match=r"--source"):
        read_config(path)


def test_changes_override_the_file(tmp_path):
    path = tmp_path / "pipeline.toml"
    path.write_text(
        '[method]\nname = "frtm-fast"\ndevice = "cpu"\n[[streams]]\nname = "a"\nsource = "camera:0"\n'
    )
    config = read_config(
        path, {"placement": "split", "method": {"device": "cuda"}, "observe": {"log": "json"}}
    )
    assert (config.placement, config.observe.log) == ("split", "json")
    assert (config.method.name, config.method.device) == ("frtm-fast", "cuda")


def test_a_pipeline_without_a_file():
    config = config_from_options(
        "clip.mp4",
        mask=Path("first.png"),
        out=Path("out"),
        stream={"height": 240, "policy": None},
        changes={"name": "door", "placement": "split"},
    )
    (stream,) = config.streams
    assert (config.name, stream.name, stream.height, config.placement) == ("door", "door", 240, "split")
    assert [(one.kind, str(one.path)) for one in stream.sinks] == [
        ("labels", "out/labels"),
        ("overlay", "out/overlay.mp4"),
        ("json", "out/results.jsonl"),
        ("publish", "None"),
    ]
    assert config_from_options("camera:0", publish=False).streams[0].sinks == ()
    with pytest.raises(InputError, match=r"^the options: "):
        config_from_options("clip.mp4")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_the_examples_are_right(path):
    config = read_config(path)
    assert config.streams[0].sinks
    if path.name == "two_cameras.toml":
        assert [one.name for one in config.streams] == ["door", "garden"]


def blocks():
    return re.findall(r"^```toml\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)


def test_every_block_of_the_guide_is_right():
    assert len(blocks()) >= 2
    for number, block in enumerate(blocks(), start=1):
        make_config(tomllib.loads(block), f"docs/pipeline.md, block {number}")


SECTIONS = {
    "Top level": PipelineConfig,
    "[method]": MethodConfig,
    "[selection]": SelectionConfig,
    "[[streams]]": StreamConfig,
    "Sinks": SinkConfig,
    "[supervision]": SupervisionConfig,
    "[extractor]": ExtractorConfig,
    "[observe]": ObserveConfig,
    "[security]": SecurityConfig,
    "[remote]": RemoteConfig,
}


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_guide_has_every_key_with_its_default(heading):
    text = GUIDE.read_text().partition(f"\n### {heading}\n")[2]
    section = re.split(r"^##", text, maxsplit=1, flags=re.MULTILINE)[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, re.MULTILINE))
    fields = SECTIONS[heading].model_fields
    assert rows.keys() == fields.keys()
    for key, field in fields.items():
        if isinstance(field.default, (bool, str, int, float)):
            told = tomllib.loads(f"value = {rows[key].strip('`')}")["value"]
            assert told == field.default, key


def test_importing_it_does_not_import_torch():
    code = "import sys, streamvos.pipeline.config.reading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
