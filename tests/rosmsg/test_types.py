"""Bytes, names and hashes of messages against Cyclone DDS's encoder and ROS's generators."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("rosbags", reason="needs rosbags, of the extra ros2")

from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_typestore

from streamvos.rosmsg import types
from streamvos.rosmsg.definitions import texts
from streamvos.types import InputError

STANDARD = [
    "sensor_msgs/msg/Image",
    "sensor_msgs/msg/CompressedImage",
    "diagnostic_msgs/msg/DiagnosticArray",
    "lifecycle_msgs/msg/TransitionEvent",
    "geometry_msgs/msg/TwistStamped",
    "sensor_msgs/msg/PointCloud2",
    "rmw_dds_common/msg/ParticipantEntitiesInfo",
    "rcl_interfaces/msg/ParameterEvent",
]
QUICK = {"deadline": None, "derandomize": True, "database": None, "phases": [Phase.generate]}
NAMES = [*STANDARD, *texts()]
INTEGERS = {f"{sign}int{bits}": (sign, bits) for sign in ("", "u") for bits in (8, 16, 32, 64)}


def values(field):
    """What hypothesis may draw for a field."""
    kind, what = field
    if kind == Nodetype.NAME:
        return messages(what)
    if kind == Nodetype.BASE:
        name, bound = what
        if name == "string":
            text = st.characters(blacklist_characters="\0", blacklist_categories=("Cs",))
            return st.text(text, max_size=bound or 9)
        if name == "bool":
            return st.booleans()
        if name.startswith("float"):
            return st.floats(width=int(name[5:]), allow_nan=False)
        if name == "byte":
            return st.integers(0, 127)  # rosbags takes it for signed
        sign, bits = INTEGERS[{"char": "uint8"}.get(name, name)]
        low = 0 if sign else -(2 ** (bits - 1))
        return st.integers(low, low + 2**bits - 1)
    element, count = what
    size = {"min_size": count, "max_size": count} if kind == Nodetype.ARRAY else {"max_size": count or 3}
    drawn = st.lists(values(element), **size)
    if element[0] == Nodetype.BASE and element[1][0] != "string":
        dtype = {"byte": "int8", "char": "uint8"}.get(element[1][0], element[1][0])
        return drawn.map(lambda numbers: np.array(numbers, dtype))
    return drawn


def messages(name):
    fields = {field: values(what) for field, what in types.typestore().fielddefs[name][1]}
    return st.fixed_dictionaries(fields).map(lambda drawn: types.make(name, **drawn))


def as_idl(message, module):
    """The same message as a value of the type that cyclonedds serializes itself."""
    kind = module.idl_struct(message.__msgtype__)
    return kind(**{name: plain(getattr(message, name), module) for name in kind.__annotations__})


def plain(value, module):
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, list):
        return [plain(one, module) for one in value]
    return as_idl(value, module) if hasattr(value, "__msgtype__") else value


@pytest.mark.parametrize("name", NAMES)
def test_bytes_equal_those_of_cyclone_dds(name):
    pytest.importorskip("cyclonedds", reason="needs cyclonedds, of the extra ros2")
    from streamvos.ros2 import idl

    @settings(max_examples=6, **QUICK)
    @given(messages(name))
    def check(message):
        content = types.encode(message)
        assert content == as_idl(message, idl).serialize(use_version_2=False)
        assert types.encode(types.decode(content, name)) == content

    check()


@pytest.mark.parametrize("store", [Stores.ROS2_HUMBLE, Stores.ROS2_JAZZY], ids=lambda one: one.name)
@pytest.mark.parametrize("name", [one for one in STANDARD if not one.startswith("rmw_")])
def test_bytes_are_those_of_older_and_newer_ros(name, store):
    theirs = get_typestore(store)

    @settings(max_examples=3, **QUICK)
    @given(messages(name))
    def check(message):
        content = types.encode(message)
        assert bytes(theirs.serialize_cdr(theirs.deserialize_cdr(content, name), name)) == content

    check()


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # as rosidl generates them for ROS 2 Jazzy
        ("std_msgs/msg/String", "df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"),
        ("sensor_msgs/msg/Image", "d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47"),
        ("builtin_interfaces/msg/Time", "b106235e25a4c5ed35098aa0a61a3ee9c9b18d197f398b0e4206cea9acf9c197"),
        ("std_msgs/msg/Header", "f49fb3ae2cf070f793645ff749683ac6b06203e41c891e17701b1cb597ce6a01"),
        ("vision_msgs/msg/VisionClass", "1e4a11f0fed50b5623cb8ff26ca0e37952a48a9c074d16f804b44e9164c2037a"),
        ("vision_msgs/msg/LabelInfo", "3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783"),
        (
            "vision_msgs/msg/Detection2DArray",
            "214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968",
        ),
    ],
)
def test_hashes_are_those_of_rosidl(name, expected):
    assert types.type_hash(name) == f"RIHS01_{expected}"


def test_names_in_dds():
    assert types.dds_name("sensor_msgs/msg/Image") == "sensor_msgs::msg::dds_::Image_"
    name = "streamvos_msgs/srv/SelectObject_Request"
    assert types.dds_name(name) == "streamvos_msgs::srv::dds_::SelectObject_Request_"
    assert types.ros_name("sensor_msgs/Image") == "sensor_msgs/msg/Image"


def test_big_endian_messages_are_read():
    message = types.make("std_msgs/msg/Header", stamp=types.time_of(7 * 10**9 + 5), frame_id="camera")
    swapped = bytes(types.typestore().serialize_cdr(message, "std_msgs/msg/Header", little_endian=False))
    assert swapped != types.encode(message)
    found = types.decode(swapped, "std_msgs/msg/Header")
    assert found == message
    assert types.stamp_ns(found) == 7 * 10**9 + 5


@settings(max_examples=40, **QUICK)
@given(st.data())
def test_damaged_messages_are_one_line(data):
    """Whatever bytes come: a message or an InputError, and never an array larger than the bytes."""
    name = data.draw(st.sampled_from(["sensor_msgs/msg/Image", "vision_msgs/msg/Detection2DArray"]))
    content = bytearray(types.encode(data.draw(messages(name))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))]
    with contextlib.suppress(InputError):
        assert types.decode(bytes(content), name).__msgtype__ == name


def test_every_type_of_the_package_is_built_by_its_cmake_file():
    from pathlib import Path

    folder = Path(types.__file__).with_name("streamvos_msgs")
    listed = (folder / "CMakeLists.txt").read_text()
    for path in folder.glob("srv/*.srv"):
        assert f'"srv/{path.name}"' in listed
