"""Parts of the node without a network: names, what waits for the loop, history, rclpy's side."""

from __future__ import annotations

import sys
import threading
import time
import types as modules

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="needs rosbags, of the extra ros2")

from streamvos.ros2.followed import Followed, merged
from streamvos.ros2.history import KEPT_BYTES, History
from streamvos.ros2.inbox import Inbox, carry_out
from streamvos.ros2.lifecycle import ACTIVE
from streamvos.ros2.node import Node, NodeOptions
from streamvos.ros2.transport import Qos
from streamvos.rosmsg.pictures import label_map_image, rgb_image
from streamvos.rosmsg.results import detections, label_info
from streamvos.rosmsg.types import decode, encode, make
from streamvos.types import InputError, ObjectResult, SourceError


def test_names_get_values_and_numbers_are_their_own():
    followed = Followed()
    for name, label in (("cup", 1), ("3", 3), ("hat", 2), ("dog", 4)):
        assert followed.label_for(name) == label
        followed.labels[name] = label
    for name, said in (
        ("cup", "followed already"),
        ("2", "2 is the value of object 'hat'"),
        ("0", "numbers are 1 to 254"),
        ("007", "numbers are 1 to 254"),
        (" ", "printable"),
        ("a\nb", "printable"),
    ):
        with pytest.raises(InputError, match=said):
            followed.label_for(name)
    followed.labels = {str(k): k for k in range(1, 255)}
    with pytest.raises(InputError, match="254 objects are followed"):
        followed.label_for("one more")


def test_a_small_mask_lies_before_a_large_one_and_none_vanishes():
    large, small = np.ones((8, 8), bool), np.zeros((8, 8), bool)
    small[2:4, 2:4] = True
    label_map = merged({1: small, 2: large}, (8, 8))
    assert (label_map[2:4, 2:4] == 1).all()
    assert np.count_nonzero(label_map == 2) == 60
    assert merged({}, (8, 8)) is None
    with pytest.raises(InputError, match="others cover it"):
        merged({1: small, 2: small}, (8, 8))


def test_the_newest_picture_wins_and_drops_are_counted():
    inbox = Inbox()
    for number in range(5):
        inbox.put_picture(bytes([number]))
    (content, _), orders = inbox.wait(0, pictures=True)
    assert (content, orders, inbox.arrived, inbox.dropped) == (b"\4", [], 5, 4)
    assert inbox.wait(0, pictures=True) == (None, [])


def test_a_request_waits_for_a_picture_and_gives_up_with_one_line():
    inbox, answers = Inbox(), []

    def ask(timeout):
        try:
            answers.append(inbox.ask(lambda: 7, timeout, with_frame=True))
        except InputError as error:
            answers.append(str(error))

    ask(0.05)
    assert answers == ["no picture came for 0.05 s"]
    inbox.put_picture(b"")
    assert inbox.wait(0, pictures=True)[1] == []  # who asked is gone
    thread = threading.Thread(target=ask, args=(20,))
    thread.start()
    deadline = time.monotonic() + 20
    orders = []
    while not orders and time.monotonic() < deadline:
        inbox.put_picture(b"")
        _, orders = inbox.wait(0.01, pictures=True)
    carry_out(orders[0])
    thread.join()
    assert answers[-1] == 7


def test_what_has_begun_is_answered_with_what_came_of_it_however_long_it_takes():
    inbox, answers = Inbox(), []

    def slow():
        time.sleep(0.3)  # longer than who asks would wait for its beginning
        return "done"

    thread = threading.Thread(target=lambda: answers.append(inbox.ask(slow, 0.2)))
    thread.start()
    _, orders = inbox.wait(20, pictures=False)
    carry_out(orders[0])
    thread.join()
    assert answers == ["done"]


class Services:
    """A transport without a network: its subscriptions and services can be called."""

    def __init__(self):
        self.takers, self.services = {}, {}

    def publisher(self, topic, kind, qos):
        return lambda message: None

    def subscribe(self, topic, kind, qos, take):
        self.takers[topic] = take

    def serve(self, name, kind, answer):
        self.services[name] = answer


def test_who_asked_gets_an_answer_when_the_node_fails():
    class Failing:
        object_ids = ()
        method = modules.SimpleNamespace(options=modules.SimpleNamespace(uncertain_below=0.5))

        def step(self, image, mask=None):
            raise SourceError("the device is gone")

    transport, errors, answers = Services(), [], []
    node = Node(transport, Failing, NodeOptions("/camera"), lambda: None)

    def run():
        try:
            node.run()
        except SourceError as error:
            errors.append(str(error))

    request = make(
        "streamvos_msgs/srv/SelectObject_Request",
        id="cup",
        mask=label_map_image(np.ones((8, 8), np.uint8), make("std_msgs/msg/Header")),
    )
    loop = threading.Thread(target=run, daemon=True)
    loop.start()
    deadline = time.monotonic() + 20
    while node.lifecycle.state != ACTIVE and time.monotonic() < deadline:
        time.sleep(0.01)
    asking = threading.Thread(
        target=lambda: answers.append(transport.services["/streamvos/add"](request)), daemon=True
    )
    asking.start()
    while not node._inbox._orders and time.monotonic() < deadline:
        time.sleep(0.01)
    picture = rgb_image(np.zeros((8, 8, 3), np.uint8), make("std_msgs/msg/Header"))
    transport.takers["/camera"](encode(picture))
    asking.join(20)
    loop.join(20)
    assert [one.success for one in answers] == [False]
    assert errors == ["the device is gone"]


def test_history_is_bounded_and_says_what_it_keeps():
    history, image = History(), np.zeros((2048, 2048, 3), np.uint8)
    most = KEPT_BYTES // image.nbytes
    for number in range(1, most + 4):
        history.add(number * 10**9, image)
    assert history.picture(4 * 10**9) is image
    with pytest.raises(InputError, match=f"kept are {most}: from 4.000 to {most + 3}.000 s"):
        history.picture(10**9)
    history.clear()
    with pytest.raises(InputError, match="kept are 0: none"):
        history.picture(4 * 10**9)


def test_a_lost_object_has_a_box_of_size_0():
    objects = {
        2: ObjectResult(2, 0.0, "lost", None, 0),
        1: ObjectResult(1, 0.9, "tracking", (2, 4, 6, 10), 20),
    }
    header = make("std_msgs/msg/Header", frame_id="camera")
    message = detections(objects, {1: "cup", 2: "2"}, header)
    first, second = decode(encode(message), message.__msgtype__).detections
    center = first.bbox.center.position
    assert (center.x, center.y, first.bbox.size_x, first.bbox.size_y) == (4, 7, 4, 6)
    rotation = first.results[0].pose.pose.orientation
    assert (rotation.x, rotation.y, rotation.z, rotation.w) == (0, 0, 0, 1)  # as by default in ROS
    assert (second.id, second.bbox.size_x, second.results[1].hypothesis.class_id) == ("2", 0, "lost")
    info = label_info({1: "cup"}, header, 0.5)
    assert [one.class_name for one in info.class_map] == ["background", "cup"]


@pytest.fixture
def rclpy(monkeypatch):
    """A stand-in for rclpy: a node whose connections are called directly."""
    node = modules.SimpleNamespace(published=[], subscriptions={}, services={}, options={})

    class Held:
        """A message of rclpy: nothing but its bytes."""

        def __init__(self, content=b""):
            self.content = content

    def create_publisher(kind, topic, profile):
        return modules.SimpleNamespace(
            publish=lambda content: node.published.append((topic, content, profile))
        )

    def create_subscription(kind, topic, take, profile, callback_group, raw):
        assert raw
        node.subscriptions[topic] = take

    def create_service(kind, name, answer, callback_group):
        node.services[name] = answer

    node.create_publisher, node.create_subscription = create_publisher, create_subscription
    node.create_service, node.destroy_node = create_service, lambda: None

    class Executor:
        def __init__(self, threads, context):
            pass

        def add_node(self, node):
            pass

        def spin(self):
            pass

        def shutdown(self, seconds):
            pass

    def create_node(name, **options):
        node.options = {"name": name, **options}
        return node

    class Service:
        Response = Held

    enum = modules.SimpleNamespace
    found = {
        "rclpy": {"init": lambda **_: None, "create_node": create_node},
        "rclpy.callback_groups": {"MutuallyExclusiveCallbackGroup": object},
        "rclpy.context": {"Context": type("Context", (), {"try_shutdown": lambda self: None})},
        "rclpy.executors": {"MultiThreadedExecutor": Executor},
        "rclpy.signals": {"SignalHandlerOptions": enum(NO=0)},
        "rclpy.serialization": {
            "serialize_message": lambda held: held.content,
            "deserialize_message": lambda content, kind: kind(content),
        },
        "rclpy.qos": {
            "QoSProfile": lambda **policies: policies,
            "HistoryPolicy": enum(KEEP_LAST="last"),
            "ReliabilityPolicy": enum(RELIABLE="reliable", BEST_EFFORT="best"),
            "DurabilityPolicy": enum(TRANSIENT_LOCAL="latched", VOLATILE="volatile"),
        },
        "std_msgs": {},
        "std_msgs.msg": {"Header": Held},
        "std_srvs": {},
        "std_srvs.srv": {"Trigger": Service},
    }
    for name, members in found.items():
        module = modules.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return modules.SimpleNamespace(node=node, Held=Held)


def test_on_rclpy_messages_are_the_same_bytes(rclpy):
    from streamvos.ros2.rclpy_transport import RclpyTransport

    transport = RclpyTransport("robot1/eyes", 7)
    assert (rclpy.node.options["name"], rclpy.node.options["namespace"]) == ("eyes", "/robot1")
    header = make("std_msgs/msg/Header", frame_id="camera")
    transport.publisher("/t", "std_msgs/msg/Header", Qos(latched=True))(header)
    assert rclpy.node.published == [
        (
            "/t",
            encode(header),
            {"history": "last", "depth": 1, "reliability": "reliable", "durability": "latched"},
        )
    ]
    taken = []
    transport.subscribe("/t", "std_msgs/msg/Header", Qos(reliable=False), taken.append)
    rclpy.node.subscriptions["/t"](b"bytes")
    assert taken == [b"bytes"]
    response = "std_srvs/srv/Trigger_Response"
    transport.serve("/s", "std_srvs/srv/Trigger", lambda _: make(response, success=True, message="done"))
    request = rclpy.Held(encode(make("std_srvs/srv/Trigger_Request")))
    answer = rclpy.node.services["/s"](request, None)
    assert decode(answer.content, response).message == "done"
    with pytest.raises(InputError, match=r"no vision_msgs/msg/LabelInfo: install ros-DISTRO-vision-msgs"):
        transport.publisher("/l", "vision_msgs/msg/LabelInfo", Qos())
    transport.close()


def test_what_is_not_there_is_one_line(monkeypatch):
    from streamvos.ros2 import opening

    with pytest.raises(InputError, match="unknown transport 'udp'; choose auto, dds or rclpy"):
        opening.open_transport("udp", "streamvos")
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install 'streamvos\\[ros2\\]'"):
        opening.open_transport("auto", "streamvos")
    monkeypatch.setitem(sys.modules, "rclpy", None)
    with pytest.raises(InputError, match="source a ROS installation"):
        opening.open_transport("rclpy", "streamvos")


@pytest.mark.parametrize("domain", ["x", "233", "-1"])
def test_a_domain_that_is_none(monkeypatch, domain):
    pytest.importorskip("cyclonedds", reason="needs cyclonedds, of the extra ros2")
    from streamvos.ros2.dds import DdsTransport

    monkeypatch.setenv("ROS_DOMAIN_ID", domain)
    with pytest.raises(InputError, match="expected a number of 0 to 232"):
        DdsTransport("streamvos")
