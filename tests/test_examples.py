"""Every file of examples/ runs: scripts on small videos, clients on a pipeline, configurations are valid."""

from __future__ import annotations

import ast
import os
import runpy
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import serving

import streamvos
from streamvos.masks.labelmap import write_label_map
from streamvos.pipeline.config.reading import read_config
from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo
from streamvos.types import ObjectResult

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FORMAT = "seed=7,size=192x256,length={},objects=2,leave=0"
VIDEO = "synthetic:" + FORMAT.format(4)


def video(length: int = 4) -> SyntheticVideo:
    return SyntheticVideo(7, SyntheticOptions(size=(192, 256), length=length, objects=2, leave=0.0))


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs an example as a program; its lines on the standard output."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *arguments: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return call


@pytest.fixture
def first(tmp_path):
    """The label map of the first frame."""
    write_label_map(tmp_path / "first.png", video()[0].label_map)
    return tmp_path / "first.png"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_it_has_a_head_and_at_most_40_lines_of_code(path):
    tree = ast.parse(path.read_text())
    head = tree.body[0]
    assert ast.get_docstring(tree)
    lines = path.read_text().splitlines()[head.end_lineno :]
    assert len([line for line in lines if line.strip()]) <= 40
    assert path.name in (EXAMPLES / "README.md").read_text()


def test_camera_to_files(run, tmp_path):
    lines = run("camera_to_files.py", VIDEO, "1:10,10,60,50", "out")
    assert len(lines) == 4
    assert all("frames/s" in line for line in lines)
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [f"{i:06d}.jpg" for i in range(4)]


def test_add_object_midstream(run, tmp_path, first):
    more = np.zeros((192, 256), np.uint8)
    more[5:25, 5:25] = 9
    write_label_map(tmp_path / "more.png", more)
    lines = run("add_object_midstream.py", VIDEO, first, 1, "more.png", 3)
    assert ["9: " in line for line in lines] == [False, True, True, False]
    assert all("1: " in line and "2: " in line for line in lines)


def test_own_sink(run, tmp_path, first):
    run("own_sink.py", VIDEO, first, "boxes.csv")
    head, *lines = (tmp_path / "boxes.csv").read_text().splitlines()
    assert head.startswith("seconds,object")
    assert len(lines) == 4 * 2
    assert not list(tmp_path.glob("boxes.*.partial.csv"))


def test_evaluate_folder(run, tmp_path):
    for kind in ("JPEGImages", "Annotations"):
        (tmp_path / kind / "480p/walk").mkdir(parents=True)
    for index, frame in enumerate(islice(video(), 4)):
        Image.fromarray(frame.image).save(tmp_path / f"JPEGImages/480p/walk/{index:05d}.jpg")
        write_label_map(tmp_path / f"Annotations/480p/walk/{index:05d}.png", frame.label_map)
    lines = run("evaluate_folder.py", tmp_path)
    assert lines[0].startswith("walk: J&F")
    assert float(lines[-1].split()[-1]) > 30


def test_own_method_with_a_segmenter():
    module = runpy.run_path(str(EXAMPLES / "own_method.py"))
    image = np.zeros((32, 48, 3), np.uint8)
    image[:, :24] = (255, 0, 0)
    image[8:16, 30:40] = (0, 255, 0)
    mask = np.zeros((32, 48), np.uint8)
    mask[:, :24], mask[8:16, 30:40] = 1, 5
    vos = streamvos.Segmenter(module["MeanColor"](), "cpu")
    vos.step(image, mask)
    np.testing.assert_array_equal(vos.step(image[:, ::-1]).mask, mask[:, ::-1])
    other = streamvos.Segmenter(module["MeanColor"](), "cpu")
    other.restore(vos.snapshot())
    np.testing.assert_array_equal(other.step(image).mask, mask)
    other.forget(5)
    assert set(np.unique(other.step(image).mask)) == {0, 1}


def test_clients_of_a_pipeline_that_runs_a_method_of_ones_own(run, tmp_path, first, monkeypatch):
    paths = [str(EXAMPLES), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    stream = {
        "name": "cam",
        "source": "synthetic:" + FORMAT.format(100_000),
        "realtime": True,
        "policy": "latest",
        "sinks": [{"kind": "publish"}],
    }
    config = {
        "name": "examples",
        "method": {"name": "own_method:MeanColor"},
        "supervision": {"standby": False},
        "streams": [stream],
    }
    with serving(config, tmp_path / "serve") as pipeline:
        monkeypatch.setenv("XDG_RUNTIME_DIR", pipeline.runtime)
        control = Path(pipeline.runtime, "streamvos/examples/control.sock")
        pipeline.wait_for(control.exists)
        with streamvos.Client("examples") as client:
            pipeline.wait_for(lambda: client.status()["streams"]["cam"]["objects"] == [1, 2])
        lines = run("client.py", "examples", "cam", first)
        assert lines[0].startswith("cam: running, objects [1, 2]")
        assert len(lines) == 12
        assert "label map of (192, 256)" in lines[-1]
        lines = run("client_bare_zmq.py", f"ipc://{control}", "cam")
        assert len(lines) == 20
        assert {line.split(": ")[1].split(",")[0] for line in lines} == {"object 1", "object 2"}
        pipeline.signal()
        assert pipeline.wait() == 0


def test_the_bare_client_needs_two_packages():
    imports = ast.parse((EXAMPLES / "client_bare_zmq.py").read_text()).body
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    assert names == {"msgpack", "sys", "zmq"}
    assert not any(isinstance(node, ast.ImportFrom) for node in imports)


@pytest.mark.parametrize("name", ["pipeline.toml", "two_cameras.toml"])
def test_configurations_are_valid(name, tmp_path, first):
    folder = tmp_path / "examples"
    folder.mkdir()
    (folder / name).write_text((EXAMPLES / name).read_text())
    for mask in ("first.png", "door.png"):
        (folder / mask).write_bytes(first.read_bytes())
    config = read_config(folder / name)
    assert config.method.name == "tvos"
    assert all(stream.sinks for stream in config.streams)


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_ros2_follow():
    pytest.importorskip("rosbags", reason="needs rosbags, of the extra ros2")
    from streamvos.rosmsg.results import detections
    from streamvos.rosmsg.types import make

    velocity, header = example("ros2_follow")["velocity"], make("std_msgs/msg/Header")
    seen = {1: ObjectResult(1, 0.9, "tracking", (400, 100, 500, 220), 900)}
    twist = velocity(detections(seen, {1: "cup"}, header), "cup", 640, 480)
    assert twist.angular.z < 0 < twist.linear.x  # it is on the right, and far
    lost = {1: ObjectResult(1, 0.0, "lost", None, 0)}
    twist = velocity(detections(lost, {1: "cup"}, header), "cup", 640, 480)
    assert (twist.angular.z, twist.linear.x) == (0, 0)


def test_ros2_cut_cloud():
    pytest.importorskip("rosbags", reason="needs rosbags, of the extra ros2")
    from streamvos.rosmsg.pictures import label_map_image
    from streamvos.rosmsg.types import decode, encode, make

    xyz = np.arange(4 * 5 * 3, dtype=np.float32).reshape(4, 5, 3)
    header = make("std_msgs/msg/Header", frame_id="depth")
    data = np.frombuffer(xyz.tobytes(), np.uint8)
    name = "sensor_msgs/msg/PointCloud2"
    cloud = make(name, header=header, height=4, width=5, point_step=12, row_step=60, data=data)
    label_map = np.zeros((4, 5), np.uint8)
    label_map[1, 2:4] = 7
    cut = example("ros2_cut_cloud")["cut"]
    found = decode(encode(cut(cloud, label_map_image(label_map, header), 7)), name)
    assert np.array_equal(np.frombuffer(found.data.tobytes(), np.float32).reshape(-1, 3), xyz[1, 2:4])
    assert (found.height, found.width, found.header.frame_id) == (1, 2, "depth")
    with pytest.raises(ValueError, match="5 x 4 points, 4 x 4 pixels"):
        cut(cloud, label_map_image(label_map[:, :4].copy(), header), 7)
