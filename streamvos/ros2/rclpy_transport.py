"""The node on a ROS installation, by rclpy: whatever middleware it uses, with what its user has sourced.

Messages go as bytes between rosbags' types and rclpy's. The node's services and parameters are our own, as
without ROS, so both behave alike.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any

from streamvos.ros2.transport import Qos
from streamvos.rosmsg.types import decode, encode
from streamvos.types import InputError, SourceError

_THREADS = 3  # messages, requests, and rclpy's own


class RclpyTransport:
    """See `Transport`.

    Args:
        name: the node's name.
        domain: number of the domain; None = as ROS_DOMAIN_ID says.

    Raises:
        InputError: rclpy cannot be imported.
        SourceError: it cannot start.
    """

    def __init__(self, name: str, domain: int | None = None) -> None:
        try:
            import rclpy
            from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
            from rclpy.context import Context
            from rclpy.executors import MultiThreadedExecutor
            from rclpy.signals import SignalHandlerOptions
        except ImportError as error:
            raise InputError(f"rclpy cannot be imported ({error}); source a ROS installation") from None
        try:
            self._context = Context()
            rclpy.init(
                context=self._context, domain_id=domain, signal_handler_options=SignalHandlerOptions.NO
            )
            namespace, _, node_name = f"/{name}".rpartition("/")
            self._node = rclpy.create_node(
                node_name,
                namespace=namespace or "/",
                context=self._context,
                start_parameter_services=False,
            )
        except Exception as error:  # rclpy's errors have no common base
            raise SourceError(f"rclpy cannot start: {error}") from None
        self._messages, self._requests = MutuallyExclusiveCallbackGroup(), MutuallyExclusiveCallbackGroup()
        self._executor = MultiThreadedExecutor(_THREADS, context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, name=f"{name} rclpy", daemon=True)
        self._thread.start()

    def publisher(self, topic: str, message_type: str, qos: Qos) -> Callable[[Any], None]:
        made = self._node.create_publisher(_interface(message_type), topic, _profile(qos))
        return lambda message: made.publish(encode(message))

    def subscribe(self, topic: str, message_type: str, qos: Qos, take: Callable[[bytes], None]) -> None:
        self._node.create_subscription(
            _interface(message_type), topic, take, _profile(qos), callback_group=self._messages, raw=True
        )

    def serve(self, name: str, service_type: str, answer: Callable[[Any], Any]) -> None:
        from rclpy.serialization import deserialize_message, serialize_message

        kind = _interface(service_type)

        def reply(request: Any, _: Any) -> Any:
            ours = answer(decode(serialize_message(request), f"{service_type}_Request"))
            return deserialize_message(encode(ours), kind.Response)

        self._node.create_service(kind, name, reply, callback_group=self._requests)

    def close(self) -> None:
        self._executor.shutdown(2)
        self._node.destroy_node()
        self._context.try_shutdown()


def _interface(name: str) -> Any:
    """The class of a message or service that the ROS installation has."""
    package, kind, type_name = name.split("/")
    try:
        return getattr(import_module(f"{package}.{kind}"), type_name)
    except (ImportError, AttributeError):
        raise InputError(
            f"this ROS installation has no {name}: install ros-DISTRO-{package.replace('_', '-')}, or build "
            "the package streamvos_msgs that lies in streamvos/rosmsg; or --transport dds"
        ) from None


def _profile(qos: Qos) -> Any:
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=qos.depth,
        reliability=ReliabilityPolicy.RELIABLE if qos.reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if qos.latched else DurabilityPolicy.VOLATILE,
    )
