"""Which transport a node gets: rclpy's where ROS is sourced, else Cyclone DDS."""

from __future__ import annotations

from importlib.util import find_spec

from streamvos.ros2.transport import Transport
from streamvos.types import InputError


def open_transport(wanted: str, name: str, domain: int | None = None) -> Transport:
    """Connect a node.

    Args:
        wanted: "dds", "rclpy", or "auto": rclpy where it can be imported.
        name: the node's name.
        domain: number of the ROS domain; None = as ROS_DOMAIN_ID says, or 0.

    Raises:
        InputError: an unknown transport, or what it needs is not installed.
    """
    if wanted not in ("auto", "dds", "rclpy"):
        raise InputError(f"unknown transport {wanted!r}; choose auto, dds or rclpy")
    if wanted == "rclpy" or (wanted == "auto" and find_spec("rclpy") is not None):
        from streamvos.ros2.rclpy_transport import RclpyTransport

        return RclpyTransport(name, domain)
    if find_spec("cyclonedds") is None:
        raise InputError(
            "neither rclpy nor cyclonedds is installed: source a ROS installation, or pip install "
            "'streamvos[ros2]'"
        )
    from streamvos.ros2.dds import DdsTransport

    return DdsTransport(name, domain)
