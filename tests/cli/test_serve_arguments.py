"""What the options of `serve` and `stage` mean; that a pipeline then runs is held by tests/pipeline."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from streamvos.cli import serve as serve_module
from streamvos.cli import stage as stage_module
from streamvos.cli.options import with_json_target
from streamvos.types import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def served(monkeypatch):
    """The configurations with which a pipeline would have been run, and where its summary would go."""
    seen: list = []
    monkeypatch.setattr(serve_module, "_supervise", lambda *given: seen.append(given) or 0)
    return seen


@pytest.fixture
def app():
    made = typer.Typer(
        add_completion=False, rich_markup_mode=None, context_settings={"max_content_width": 100}
    )
    made.command("serve", epilog=serve_module.EXAMPLES)(serve_module.serve)
    made.command("stage", epilog=stage_module.EXAMPLES)(stage_module.stage)
    return made


@pytest.fixture
def run(app, served):
    """run("--source", ...) -> the configuration of `serve` with these options."""

    def call(*arguments):
        app(with_json_target(["serve", *map(str, arguments)]), standalone_mode=False)
        return served[-1][0]

    return call


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with a mask, and a pipeline.toml one level below."""
    monkeypatch.chdir(tmp_path)
    Path("first.png").write_bytes(b"")
    Path("there").mkdir()
    Path("there/first.png").write_bytes(b"")
    Path("there/pipeline.toml").write_text(
        """
        name = "door"
        [method]
        name = "frtm-fast"
        device = "cpu"
        [[streams]]
        name = "front"
        source = "clip.mp4"
        mask = "first.png"
        """
    )
    return tmp_path


def test_a_camera_and_a_mask_are_enough(run, here):
    config = run("--source", "camera:0", "--mask", "first.png")
    (stream,) = config.streams
    assert (config.name, config.placement, config.method.name) == ("default", "fused", "tvos")
    assert (stream.name, stream.source, stream.mask) == ("default", "camera:0", Path("first.png"))
    assert stream.effective_policy == "latest"
    assert [one.kind for one in stream.sinks] == ["publish"]


def test_every_option_arrives(run, here, served):
    words = """--source clip.mp4 --box 1:2,3,40,50 --box 2:5,5,60,60 --name door --placement split
        -m frtm --weights w.safetensors --device cuda:1 --set top_k=5 --set a=x --policy latest --realtime
        --height 240 --out out --no-publish --trace t.json --prometheus 0.0.0.0:9464 --log json
        --max-frames 7 --json s.json"""
    config = run(*shlex.split(words))
    (stream,) = config.streams
    assert (config.name, stream.name, config.placement) == ("door", "door", "split")
    method = config.method
    assert (method.name, method.device, method.options) == ("frtm", "cuda:1", {"top_k": 5, "a": "x"})
    assert method.weights == str(here / "w.safetensors")
    assert stream.boxes == ("1:2,3,40,50", "2:5,5,60,60")
    assert (stream.policy, stream.realtime, stream.height, stream.max_frames) == ("latest", True, 240, 7)
    assert [one.kind for one in stream.sinks] == ["labels", "overlay", "json"]
    assert stream.sinks[2].path == Path("out/results.jsonl")
    assert (config.observe.trace, config.observe.log) == (here / "t.json", "json")
    assert config.observe.prometheus == "0.0.0.0:9464"
    assert served[-1][1] == "s.json"


def test_a_file_says_it_all_and_options_change_it(run, here):
    config = run("there/pipeline.toml")
    assert (config.name, config.streams[0].name, config.method.name) == ("door", "front", "frtm-fast")
    assert config.streams[0].sinks == ()
    changed = run(
        "there/pipeline.toml", "--name", "other", "--device", "cuda", "--trace", "t.json", "-w", "none"
    )
    assert (changed.name, changed.streams[0].name) == ("other", "front")
    assert (changed.method.name, changed.method.device, changed.method.weights) == ("frtm-fast", "cuda", None)
    assert changed.observe.trace == here / "t.json"  # of the current folder, not of the file's
    assert changed.streams[0].source == "there/clip.mp4"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", "there is nothing to serve; give a PIPELINE.toml, or --source"),
        ("there/pipeline.toml --source camera:0", "give one of them"),
        ("there/pipeline.toml --mask first.png --max-frames 3", "--mask, --max-frames belongs to --source"),
        ("there/pipeline.toml --no-publish", "--publish belongs to --source"),
        ("none.toml", "cannot read none.toml"),
        ("first.png", "first.png"),
        ("--source clip.mp4", "needs objects to follow"),
        ("--source camera:0 --mask none.png", "there is no mask none.png"),
        ("--source camera:0 --policy newest", 'expected "latest" or "lossless", got "newest"'),
        ("--source camera:0 --placement fuse", 'did you mean "fused"?'),
        ("--source camera:0 --log xml", 'log: expected "text" or "json", got "xml"'),
        ("--source camera:0 --name a/b", "expected a name of 1 to 64 letters"),
        ("--source camera:0 --prometheus x", "expected PORT or HOST:PORT"),
        ("--source camera:0 --set method=x", "give --method instead"),
        ("--source camera:0 --box 1:2", "cannot read the box"),
        ("--source rtsp://a:hunter2@h/x --policy lossless", "needs objects to follow"),
        ("--source ftp://a:hunter2@h/x", "cannot read ftp://***@h/x"),
        ("--source camera:0 --json there", "is a folder"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(app, served, here, arguments, told):
    with pytest.raises(InputError) as caught:
        app(["serve", *shlex.split(arguments)], standalone_mode=False)
    assert told in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert not served


def test_the_exit_code_is_the_pipeline_s(app, here, monkeypatch):
    for code in (0, 1, 130):
        monkeypatch.setattr(serve_module, "_supervise", lambda *_, code=code: code)
        # what main() returns: the code of typer.Exit, or None for a command that ended in order
        assert (app(["serve", "--source", "camera:0"], standalone_mode=False) or 0) == code


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("extractr --connect tcp://127.0.0.1:5600", "there is no stage 'extractr'"),
        ("memory --connect tcp://127.0.0.1:5600", "there is no stage 'memory'"),
        ("memory.a/b --connect tcp://127.0.0.1:5600", "there is no stage"),
        ("extractor --connect 127.0.0.1:5600", "expected an address such as"),
        ("extractor --connect tcp://127.0.0.1:*", "give the supervisor's port"),
        ("extractor --connect tcp://10.0.0.1:5600", "leaves this host, which needs the pipeline's key"),
        ("extractor --connect tcp://10.0.0.1:5600 --secret x", "--secret: there is no file x"),
    ],
)
def test_a_stage_that_cannot_be_is_refused(app, here, arguments, told):
    with pytest.raises(InputError) as caught:
        app(["stage", *shlex.split(arguments)], standalone_mode=False)
    assert told in str(caught.value)


@pytest.mark.parametrize("command", ["serve", "stage"])
def test_help_has_examples_that_use_options_that_exist(app, capsys, command):
    app([command, "--help"], standalone_mode=False)
    text = capsys.readouterr().out
    lines = re.findall(r"^ +(streamvos .*)$", text.partition("Examples:")[2], re.MULTILINE)
    assert lines
    for line in lines:
        words = shlex.split(line)
        assert words[1] == command
        for option in (word for word in words if word.startswith("-")):
            assert re.search(rf"(?<!\S){option}(?=[\s,/])", text), (line, option)


def test_the_example_of_the_help_is_there(run, monkeypatch, tmp_path):
    for line in ("examples/pipeline.toml", "examples/two_cameras.toml"):
        text = (ROOT / line).read_text()
        (tmp_path / "pipeline.toml").write_text(text)
        for mask in re.findall(r'"(\w+\.png)"', text):
            (tmp_path / mask).write_bytes(b"")
        assert json.loads(run(tmp_path / "pipeline.toml").model_dump_json())["streams"]
