"""Types of ROS 2 messages as cyclonedds knows them, made from the definitions that `rosmsg` has.

Cyclone DDS describes these types to others and checks what arrives. The bytes are made and read elsewhere:
its own serializer, in Python, takes 30 ms for a picture, rosbags' 0.1 ms; a test compares both.

    topic = Topic(participant, "rt/camera/image_raw", idl_type("sensor_msgs/msg/Image"))
    DataWriter(publisher, topic).write(topic.data_type(encode(message)))
"""

from __future__ import annotations

from functools import cache
from typing import Any

from cyclonedds.idl import IdlStruct, make_idl_struct, types
from rosbags.interfaces import Nodetype

from streamvos.rosmsg.types import dds_name, typestore

_TYPES: Any = types  # its classes are indexed, which type checkers do not know
_BASIC: dict[str, Any] = {
    "bool": bool,
    "byte": types.uint8,  # as rmw_cyclonedds has it
    "char": types.uint8,
    "uint8": types.uint8,
    "int8": types.int8,
    "uint16": types.uint16,
    "int16": types.int16,
    "uint32": types.uint32,
    "int32": types.int32,
    "uint64": types.uint64,
    "int64": types.int64,
    "float32": types.float32,
    "float64": types.float64,
}

HEADER = {"guid": types.uint64, "sequence": types.int64}
"""What rmw_cyclonedds puts in front of requests and replies: who asks, and which request it is."""


@cache
def idl_struct(name: str, header: bool = False) -> type[IdlStruct]:
    """A type that cyclonedds itself serializes.

    Args:
        name: such as "sensor_msgs/msg/Image".
        header: whether it is a request or reply, with `HEADER` in front.
    """
    fields = {field: _idl_of(what) for field, what in typestore().fielddefs[name][1]}
    return make_idl_struct(
        f"{name.split('/')[-1]}_", dds_name(name), {**(HEADER if header else {}), **fields}
    )


@cache
def idl_type(name: str, header: bool = False) -> type[IdlStruct]:
    """A type whose values hold bytes: `value.content`, with the 4 bytes of CDR's own header."""
    fields = {field: _idl_of(what) for field, what in typestore().fielddefs[name][1]}
    made: Any = make_idl_struct(
        f"{name.split('/')[-1]}_",
        dds_name(name),
        {**(HEADER if header else {}), **fields},
        dataclassify=False,
    )
    made.__init__ = _hold
    made.serialize = _content
    made.deserialize = classmethod(_from_content)
    made.deserialize_key = classmethod(_from_nothing)
    return made


def _hold(self: Any, content: bytes) -> None:
    self.content = content


def _content(self: Any, **_: Any) -> bytes:
    return self.content


def _from_content(cls: Any, data: bytes, **_: Any) -> Any:
    return cls(data)


def _from_nothing(cls: Any, data: bytes, **_: Any) -> None:
    """The value of a sample without content, which says that a writer is gone."""


def _idl_of(field: Any) -> Any:
    kind, what = field
    if kind == Nodetype.NAME:
        return idl_struct(what)
    if kind == Nodetype.BASE:
        if what[0] == "string":
            return _TYPES.bounded_str[what[1]] if what[1] else str
        return _BASIC[what[0]]
    element, count = what
    if kind == Nodetype.ARRAY:
        return _TYPES.array[_idl_of(element), count]
    return _TYPES.sequence[_idl_of(element), count] if count else _TYPES.sequence[_idl_of(element)]
