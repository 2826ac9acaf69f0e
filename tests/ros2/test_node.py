"""The node in a process of its own, between a camera and a subscriber in others, over Cyclone DDS."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs rosbags, of the extra ros2")
pytest.importorskip("cyclonedds", reason="needs cyclonedds, of the extra ros2")

sys.path.insert(0, str(Path(__file__).parent))

import camera
import loopback
from camera import SIZE, START_NS, TOPIC

from streamvos.ros2.dds import DdsTransport
from streamvos.ros2.transport import Qos
from streamvos.rosmsg.pictures import COMPRESSED, IMAGE, label_map_image
from streamvos.rosmsg.types import decode, make, stamp_ns, time_of
from streamvos.types import SourceError

SELECT = "streamvos_msgs/srv/SelectObject"
DETECTIONS, LABELS = "vision_msgs/msg/Detection2DArray", "vision_msgs/msg/LabelInfo"
PATIENCE = 120.0  # seconds; the machine may be busy


@pytest.fixture(autouse=True, scope="module")
def _loopback_alone():
    before = dict(os.environ)
    os.environ.update(loopback.environment())
    yield
    os.environ.clear()
    os.environ.update(before)


class Peer:
    """The other side: subscribes, and calls the node's services."""

    def __init__(self):
        self.transport = DdsTransport("peer")
        self._clients = {}

    def collect(self, topic, kind, latched=False):
        found = []
        qos = Qos(latched=latched, depth=50)
        self.transport.subscribe(topic, kind, qos, lambda content: found.append(decode(content, kind)))
        return found

    def call(self, name, kind, **fields):
        if name not in self._clients:
            self._clients[name] = self.transport.client(f"/streamvos/{name}", kind)
        return self._clients[name](make(f"{kind}_Request", **fields), timeout=PATIENCE)

    def state(self):
        """The node's state; "" while there is none, or one that was killed is not gone yet."""
        kind = "lifecycle_msgs/srv/GetState"
        client = self._clients.setdefault("get_state", self.transport.client("/streamvos/get_state", kind))
        try:
            return client(make(f"{kind}_Request"), timeout=2).current_state.label
        except SourceError:
            return ""

    def await_state(self, name):
        await_that(lambda: self.state() == name)


@pytest.fixture
def peer():
    made = Peer()
    yield made
    made.transport.close()


@pytest.fixture
def start():
    """Starts processes, and ends those that are left."""
    started = []

    def begin(*arguments):
        started.append(
            subprocess.Popen([sys.executable, *map(str, arguments)], stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield begin
    for one in started:
        one.kill()
        one.wait()
        one.stderr.close()


def start_node(start, *options):
    return start("-m", "streamvos", "ros2", "--image", TOPIC, "--device", "cpu", *options)


def start_camera(start, kind=IMAGE, rate=8, length=4000, reliable=0):
    return start(Path(camera.__file__), kind, rate, length, reliable)


def await_that(is_so, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def truth(number):
    return camera.scene()[number].label_map


def ious(message, names=(1, 2)):
    """IoU of each object of a published label map with the truth, by the picture's stamp."""
    found = message.data.reshape(message.height, message.width)
    true = truth(stamp_ns(message.header) - START_NS)
    return [np.sum((found == k) & (true == k)) / max(np.sum((found == k) | (true == k)), 1) for k in names]


def lower_left(box):
    center = box.center.position
    return (center.x - box.size_x / 2, center.y + box.size_y / 2)


def mask_message(label, number):
    return label_map_image((truth(number) == label).astype(np.uint8), camera.header(number))


def test_masks_detections_services_and_a_restart(start, peer):
    node = start_node(start)
    maps = peer.collect("/streamvos/label_map", IMAGE)
    detections = peer.collect("/streamvos/detections", DETECTIONS)
    health = peer.collect("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray")
    peer.await_state("active")
    start_camera(start)
    await_that(lambda: maps)  # empty ones, since nothing is selected yet
    assert not maps[0].data.any()
    assert maps[0].header.frame_id == "camera_optical"

    # objects that are selected in a picture that has passed
    for name, label in (("cup", 1), ("2", 2)):
        number = stamp_ns(maps[-1].header) - START_NS
        answer = peer.call(
            "add", SELECT, id=name, stamp=time_of(START_NS + number), mask=mask_message(label, number)
        )
        assert answer.success, answer.message
        assert answer.message == f"'{name}' has the value {label} in the label map"
    begin = len(maps)
    await_that(lambda: len(maps) >= begin + 12)
    scores = np.array([ious(one) for one in maps[begin : begin + 12]])
    assert scores.mean() > 0.8
    shown = maps[begin + 5]
    await_that(lambda: len(detections) > begin + 8)
    # some stamps come twice in a row, where the scene turns round
    same = [one.detections for one in detections[begin - 1 : begin + 9] if one.header == shown.header]
    assert all([one.id for one in found] == ["cup", "2"] for found in same)
    for label in (1, 2):
        rows, columns = np.nonzero(shown.data.reshape(SIZE) == label)
        corner = (columns.min(), rows.max() + 1)
        assert corner in [lower_left(found[label - 1].bbox) for found in same]
        for found in same:
            classes = [one.hypothesis.class_id for one in found[label - 1].results]
            assert classes == [str(label), "tracking"]
            assert found[label - 1].results[0].hypothesis.score > 0.5

    # who comes late gets the names
    late = Peer()
    labels = late.collect("/streamvos/labels", LABELS, latched=True)
    await_that(lambda: labels and len(labels[-1].class_map) == 3)
    assert [(one.class_id, one.class_name) for one in labels[-1].class_map] == [
        (0, "background"),
        (1, "cup"),
        (2, "2"),
    ]
    late.transport.close()

    # refusals say why, and change nothing
    point = make("vision_msgs/msg/Point2D", x=5000.0, y=2.0)
    for kind, fields, said in (
        ("add", {"id": "cup", "points": [point]}, "'cup' is followed already"),
        ("add", {"id": "new", "points": [point]}, "outside of the frame"),
        ("add", {"id": "new"}, "nothing is selected"),
        ("add", {"id": "", "points": [point]}, "the id is ''"),
        ("add", {"id": "300", "points": [point]}, "numbers are 1 to 254"),
        ("add", {"id": "new", "stamp": time_of(5), "points": [point]}, "no picture with the stamp"),
        ("add", {"id": "n", "points": [point], "signs": np.array([1, 1], np.int8)}, "1 points have 2 signs"),
        ("correct", {"id": "new", "points": [point]}, "'new' is not followed; these are: 'cup', '2'"),
    ):
        answer = peer.call(kind, SELECT, **fields)
        assert not answer.success
        assert said in answer.message
    listed = peer.call("list", "streamvos_msgs/srv/ListObjects")
    assert (listed.ids, listed.labels.tolist()) == (["cup", "2"], [1, 2])
    assert set(listed.states) == {"tracking"}

    # corrected by a click, and forgotten
    number = stamp_ns(maps[-1].header) - START_NS
    rows, columns = np.nonzero(truth(number) == 1)
    middle = len(rows) // 2
    on_it = make("vision_msgs/msg/Point2D", x=float(columns[middle]), y=float(rows[middle]))
    assert peer.call("correct", SELECT, id="cup", points=[on_it]).success
    assert peer.call("forget", "streamvos_msgs/srv/ForgetObject", id="cup").success
    assert not peer.call("forget", "streamvos_msgs/srv/ForgetObject", id="cup").success
    begin = len(maps)
    await_that(lambda: len(maps) > begin + 1)
    assert set(np.unique(maps[-1].data)) <= {0, 2}

    def reported():
        return {one.key: one.value for one in health[-1].status[0].values}

    await_that(lambda: len(health) > 2 and reported()["objects"] == "1")
    values = reported()
    assert values["state"] == "active"
    assert float(values["latency from arrival p50 (ms)"]) <= float(values["latency from arrival p99 (ms)"])
    assert int(values["pictures"]) >= int(values["frames"])
    periods = np.diff([stamp_ns(one.header) for one in health]) / 1e9
    assert 0.9 < np.median(periods) < 2  # at 1 Hz

    # killed, and started again: it forgets, and can be told anew
    node.send_signal(signal.SIGKILL)
    node.wait()
    node = start_node(start)
    peer = Peer()  # its answers come from the new node alone
    peer.await_state("active")
    assert peer.call("list", "streamvos_msgs/srv/ListObjects").ids == []
    maps = peer.collect("/streamvos/label_map", IMAGE)
    await_that(lambda: maps)
    number = stamp_ns(maps[-1].header) - START_NS
    stamp = time_of(START_NS + number)
    assert peer.call("add", SELECT, id="cup", stamp=stamp, mask=mask_message(1, number)).success
    begin = len(maps)
    await_that(lambda: len(maps) >= begin + 3)
    assert np.mean([ious(one, (1,)) for one in maps[begin : begin + 3]]) > 0.8
    peer.transport.close()
    node.send_signal(signal.SIGINT)
    assert node.wait(PATIENCE) == 0
    said = node.stderr.read()
    assert "Traceback" not in said


def test_compressed_pictures_lifecycle_and_parameters(start, peer, tmp_path):
    from streamvos.masks.labelmap import write_label_map

    write_label_map(tmp_path / "first.png", truth(0), tmp_path / "temporary")
    node = start_node(start, "--compressed", "--reliable", "--no-autostart", "--mask", tmp_path / "first.png")
    maps = peer.collect("/streamvos/label_map", IMAGE)
    events = peer.collect("/streamvos/transition_event", "lifecycle_msgs/msg/TransitionEvent")

    def change(name):
        wanted = make("lifecycle_msgs/msg/Transition", label=name)
        return peer.call("change_state", "lifecycle_msgs/srv/ChangeState", transition=wanted).success

    peer.await_state("unconfigured")
    assert not change("activate")
    assert change("configure")
    possible = peer.call("get_available_transitions", "lifecycle_msgs/srv/GetAvailableTransitions")
    assert [one.transition.label for one in possible.available_transitions] == [
        "cleanup",
        "activate",
        "shutdown",
    ]
    answer = peer.call("add", SELECT, id="7", points=[make("vision_msgs/msg/Point2D", x=1.0)])
    assert "the node is inactive" in answer.message
    assert change("activate")
    start_camera(start, COMPRESSED, reliable=1)
    await_that(lambda: len(maps) >= 10)
    assert stamp_ns(maps[0].header) == START_NS  # reliable: the first picture, for which the mask is
    assert np.mean([ious(one) for one in maps[:10]]) > 0.8

    def set_parameter(name, **value):
        given = make(
            "rcl_interfaces/msg/Parameter",
            name=name,
            value=make("rcl_interfaces/msg/ParameterValue", **value),
        )
        answer = peer.call("set_parameters", "rcl_interfaces/srv/SetParameters", parameters=[given])
        return answer.results[0].reason

    assert peer.call("list_parameters", "rcl_interfaces/srv/ListParameters").result.names[:2] == [
        "max_rate",
        "label_map",
    ]
    assert set_parameter("max_rate", type=3, double_value=2.0) == ""
    assert "max_rate must lie within 0..1000" in set_parameter("max_rate", type=3, double_value=-1.0)
    assert "max_rate is a float" in set_parameter("max_rate", type=4, string_value="2")
    assert "only be set when the node is started" in set_parameter("image", type=4, string_value="/other")
    assert "there is no parameter 'rate'" in set_parameter("rate", type=3)
    values = peer.call(
        "get_parameters", "rcl_interfaces/srv/GetParameters", names=["max_rate", "none"]
    ).values
    assert [(one.type, one.double_value) for one in values] == [(3, 2.0), (0, 0.0)]
    time.sleep(0.6)
    begin, started = len(maps), time.monotonic()
    await_that(lambda: len(maps) >= begin + 4)
    assert time.monotonic() - started > 1.0  # 3 frames at 2 Hz take 1.5 s

    assert change("deactivate")
    time.sleep(0.3)
    begin = len(maps)
    time.sleep(0.7)
    assert len(maps) == begin
    assert change("shutdown")
    assert node.wait(PATIENCE) == 0
    names = [one.transition.label for one in events]
    assert names == ["configure", "activate", "deactivate", "shutdown"]


def test_a_mask_of_another_size_ends_the_node_with_one_line(start, tmp_path):
    from streamvos.masks.labelmap import write_label_map

    write_label_map(tmp_path / "first.png", np.ones((40, 50), np.uint8), tmp_path / "temporary")
    node = start_node(start, "--mask", tmp_path / "first.png")
    start_camera(start)
    assert node.wait(PATIENCE) == 2
    lines = [one for one in node.stderr.read().splitlines() if "error" in one]
    assert lines == [
        "streamvos: error: the mask is 50 x 40, the pictures are 256 x 192 (W x H); both must agree"
    ]
