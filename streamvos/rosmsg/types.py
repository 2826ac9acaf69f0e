"""Types of ROS 2 messages: values, their bytes (CDR), and their names and hashes in DDS.

rosbags serializes; nothing here needs ROS.

    stamp = make("builtin_interfaces/msg/Time", sec=1, nanosec=0)
    type_hash("sensor_msgs/msg/Image")      # 'RIHS01_d31d41a9...'
    dds_name("sensor_msgs/msg/Image")       # 'sensor_msgs::msg::dds_::Image_'
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from streamvos.rosmsg.definitions import texts
from streamvos.types import InputError

if TYPE_CHECKING:
    from rosbags.typesys.store import Typestore

HOW_TO_INSTALL = (
    "rosbags is not installed: pip install 'streamvos[ros2]', or 'streamvos[bags]' for bags alone"
)

_DEFAULTS = {("geometry_msgs/msg/Quaternion", "w"): 1.0}
"""Defaults that ROS's definitions give, which rosbags leaves out, for the types that we send."""


@cache
def typestore() -> Typestore:
    """The types of ROS 2 Jazzy, and those of `definitions`.

    Raises:
        InputError: rosbags is not installed.
    """
    try:
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    except ImportError:
        raise InputError(HOW_TO_INSTALL) from None
    store, found = get_typestore(Stores.ROS2_JAZZY), {}
    for name, text in texts().items():
        (found[name],) = get_types_from_msg(text, name).values()  # its own key lacks "srv"
    store.register(found)
    return store


def make(name: str, /, **fields: Any) -> Any:
    """A message; fields that are not given are zero, empty or false, and a rotation is none.

    Args:
        name: such as "sensor_msgs/msg/Image".
        **fields: values by the names of the fields. Sequences of numbers are NumPy arrays.
    """
    known = dict(typestore().fielddefs[name][1])
    assert fields.keys() <= known.keys(), f"{name} has no {sorted(fields.keys() - known.keys())}"
    given = {field: fields[field] if field in fields else _default(name, field, known) for field in known}
    return typestore().types[name](**given)


def _default(name: str, field: str, known: dict[str, Any]) -> Any:
    return _DEFAULTS[name, field] if (name, field) in _DEFAULTS else _zero(known[field])


def encode(message: Any) -> bytes:
    """A message in CDR, little-endian, with its header of 4 bytes."""
    return bytes(typestore().serialize_cdr(message, message.__msgtype__, little_endian=True))


def decode(content: bytes | memoryview, name: str) -> Any:
    """A message from CDR of either byte order.

    Raises:
        InputError: these are no bytes of such a message.
    """
    from rosbags.serde import SerdeError

    try:
        return typestore().deserialize_cdr(content, name)
    except (SerdeError, AssertionError, IndexError, MemoryError, OverflowError) as error:
        raise InputError(f"{len(content)} bytes are no {name}: {error}") from None


def type_hash(name: str) -> str:
    """The hash of a type's definition that ROS 2 compares since Iron: REP 2011, version 1."""
    return typestore().hash_rihs01(name)


def dds_name(name: str) -> str:
    """The name of a type in DDS."""
    package, kind, type_name = name.split("/")
    return f"{package}::{kind}::dds_::{type_name}_"


def ros_name(name: str) -> str:
    """The full name of a type that may lack its middle part: "sensor_msgs/Image" too."""
    parts = name.split("/")
    return f"{parts[0]}/msg/{parts[1]}" if len(parts) == 2 else name


def stamp_ns(header: Any) -> int:
    """The time of a std_msgs/Header, in ns."""
    return time_ns(header.stamp)


def time_ns(stamp: Any) -> int:
    """A builtin_interfaces/Time in ns."""
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def time_of(nanoseconds: int) -> Any:
    """A builtin_interfaces/Time."""
    seconds, rest = divmod(int(nanoseconds), 1_000_000_000)
    return make("builtin_interfaces/msg/Time", sec=seconds, nanosec=rest)


def _zero(field: Any) -> Any:
    """The default value of a field, as ROS has it."""
    import numpy as np
    from rosbags.interfaces import Nodetype

    kind, what = field
    if kind == Nodetype.NAME:
        return make(what)
    if kind == Nodetype.BASE:
        return {"string": "", "bool": False}.get(what[0], 0.0 if what[0].startswith("float") else 0)
    (inner, inner_what), count = what
    length = count if kind == Nodetype.ARRAY else 0
    if inner == Nodetype.BASE and inner_what[0] != "string":
        dtype = {"byte": "uint8", "char": "uint8"}.get(inner_what[0], inner_what[0])
        return np.zeros(length, dtype)
    return [_zero((inner, inner_what)) for _ in range(length)]
