"""Cyclone DDS without a ROS installation, with the names and headers of ROS's rmw_cyclonedds.

    topic /camera/image_raw     -> rt/camera/image_raw
    service /streamvos/add      -> rq/streamvos/addRequest and rr/streamvos/addReply

USER_DATA of readers and writers holds the type's hash (since ROS 2 Iron), and for services an id. Requests
and replies begin with 16 bytes: the client's writer and the request's number. All of that is as in
rmw_cyclonedds_cpp/src/rmw_node.cpp and serdata.hpp.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
from cyclonedds.core import (
    DDSException,
    GuardCondition,
    InstanceState,
    Policy,
    Qos,
    ReadCondition,
    SampleState,
    ViewState,
    WaitSet,
)
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic

from streamvos.ros2 import transport
from streamvos.ros2.idl import idl_type
from streamvos.rosmsg.types import decode, encode, make, type_hash
from streamvos.types import InputError, SourceError

logger = logging.getLogger(__name__)

_MOST_WAITED_NS = 100_000_000
"""Longest time that a reliable writer waits for a slow reader before it drops the message."""

_BEFORE_REPLY_SECONDS = 0.1
"""Longest wait until a client can hear the reply, as in rmw_cyclonedds."""

_TAKEN = 16
_SERVICE_DEPTH = 10  # rmw_qos_profile_services_default
_LOCAL_ONLY = """<CycloneDDS><Domain><General><Interfaces><NetworkInterface address="127.0.0.1"/></Interfaces>
</General></Domain></CycloneDDS>"""


class DdsTransport:
    """See `Transport`; also calls services.

    Args:
        name: the node's name.
        domain: number of the domain; None = as ROS_DOMAIN_ID says, or 0.

    Raises:
        InputError: no such domain.
        SourceError: Cyclone DDS cannot start (CYCLONEDDS_URI, no network).
    """

    def __init__(self, name: str, domain: int | None = None) -> None:
        number = _domain_number(domain)
        self._domain: Domain | None = None
        try:
            if os.environ.get("ROS_LOCALHOST_ONLY") == "1" and "CYCLONEDDS_URI" not in os.environ:
                self._domain = Domain(number, _LOCAL_ONLY)
            self._participant = DomainParticipant(number, Qos(Policy.Userdata(b"enclave=/;")))
        except DDSException as error:
            raise SourceError(
                f"Cyclone DDS cannot join domain {number}: {error}; check CYCLONEDDS_URI and the network"
            ) from None
        self._topics: dict[tuple[str, str], Topic] = {}
        self._messages = _Loop(self._participant, f"{name} messages")
        self._requests = _Loop(self._participant, f"{name} requests")
        self._graph = _Graph(self._participant, name)

    def publisher(self, topic: str, message_type: str, qos: transport.Qos) -> Callable[[Any], None]:
        kind = idl_type(message_type)
        writer = DataWriter(
            self._participant, self._topic(f"rt{topic}", kind), _qos(qos, _hash(message_type))
        )
        self._graph.add(writer)

        def publish(message: Any) -> None:
            try:
                writer.write(kind(encode(message)))  # type: ignore[call-arg]
            except DDSException as error:
                if error.code != DDSException.DDS_RETCODE_TIMEOUT:
                    raise SourceError(f"cannot publish {topic}: {error}") from None
                logger.warning("a message of %s was dropped: its readers are too slow", topic)

        return publish

    def subscribe(
        self, topic: str, message_type: str, qos: transport.Qos, take: Callable[[bytes], None]
    ) -> None:
        dds_topic = self._topic(f"rt{topic}", idl_type(message_type))
        reader = DataReader(self._participant, dds_topic, _qos(qos, _hash(message_type)))
        self._graph.add(reader)
        self._messages.add(reader, lambda sample: take(sample.content))

    def serve(self, name: str, service_type: str, answer: Callable[[Any], Any]) -> None:
        request_type, reply_type = f"{service_type}_Request", f"{service_type}_Response"
        own_id = f"serviceid={_new_id()};"
        reader = DataReader(
            self._participant,
            self._topic(f"rq{name}Request", idl_type(request_type, header=True)),
            _qos(transport.Qos(depth=_SERVICE_DEPTH), own_id + _hash(request_type)),
        )
        kind = idl_type(reply_type, header=True)
        writer = DataWriter(
            self._participant,
            self._topic(f"rr{name}Reply", kind),
            _qos(transport.Qos(depth=_SERVICE_DEPTH), own_id + _hash(reply_type)),
        )

        self._graph.add(reader, writer)

        def reply(sample: Any) -> None:
            header, request = _apart(sample.content, request_type)
            content = encode(answer(request))
            _await_client(reader, writer, sample.sample_info.publication_handle)
            writer.write(kind(content[:4] + header + content[4:]))  # type: ignore[call-arg]

        self._requests.add(reader, reply)

    def client(self, name: str, service_type: str) -> Callable[..., Any]:
        """A function that calls a service: request -> response; SourceError if there is no answer in time.

        It takes `timeout`, in seconds, 10 by default.
        """
        request_type, reply_type = f"{service_type}_Request", f"{service_type}_Response"
        own_id, numbers, lock = f"clientid={_new_id()};", count(1), threading.Lock()
        kind = idl_type(request_type, header=True)
        writer = DataWriter(
            self._participant,
            self._topic(f"rq{name}Request", kind),
            _qos(transport.Qos(depth=_SERVICE_DEPTH), own_id + _hash(request_type)),
        )
        reader = DataReader(
            self._participant,
            self._topic(f"rr{name}Reply", idl_type(reply_type, header=True)),
            _qos(transport.Qos(depth=_SERVICE_DEPTH), own_id + _hash(reply_type)),
        )
        guid = (writer.instance_handle % 2**64).to_bytes(8, "little")

        def call(request: Any, timeout: float = 10.0) -> Any:
            deadline = time.monotonic() + timeout
            with lock:
                header = guid + next(numbers).to_bytes(8, "little", signed=True)
                while not (writer.get_matched_subscriptions() and reader.get_matched_publications()):
                    if time.monotonic() > deadline:
                        raise SourceError(f"nobody serves {name}: no such node, domain or network")
                    time.sleep(0.005)
                content = encode(request)
                writer.write(kind(content[:4] + header + content[4:]))  # type: ignore[call-arg]
                while time.monotonic() < deadline:
                    for sample in reader.take(_TAKEN):
                        if hasattr(sample, "content") and sample.content[4:20] == header:
                            return _apart(sample.content, reply_type)[1]
                    time.sleep(0.002)
            raise SourceError(f"{name} did not answer within {timeout:g} s")

        return call

    def close(self) -> None:
        self._messages.close()
        self._requests.close()

    def _topic(self, name: str, kind: Any) -> Topic:
        key = (name, kind.__idl_typename__)
        if key not in self._topics:
            self._topics[key] = Topic(self._participant, name, kind)
        return self._topics[key]


class _Graph:
    """Tells `ros2 node list` and its like which endpoints are the node's, as rmw_dds_common does."""

    def __init__(self, participant: DomainParticipant, name: str) -> None:
        self._type = idl_type("rmw_dds_common/msg/ParticipantEntitiesInfo")
        topic = Topic(participant, "ros_discovery_info", self._type)
        self._writer = DataWriter(participant, topic, _qos(transport.Qos(latched=True), ""))
        self._gid = _gid(participant)
        namespace, _, node_name = f"/{name}".rpartition("/")
        self._node = make(
            "rmw_dds_common/msg/NodeEntitiesInfo", node_namespace=namespace or "/", node_name=node_name
        )

    def add(self, *entities: DataReader | DataWriter) -> None:
        for one in entities:
            gids = self._node.reader_gid_seq if isinstance(one, DataReader) else self._node.writer_gid_seq
            gids.append(_gid(one))
        name = "rmw_dds_common/msg/ParticipantEntitiesInfo"
        message = make(name, gid=self._gid, node_entities_info_seq=[self._node])
        self._writer.write(self._type(encode(message)))  # type: ignore[call-arg]


class _Loop(threading.Thread):
    """Takes what arrives at readers, and calls a function with each sample."""

    def __init__(self, participant: DomainParticipant, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._participant = participant
        self._guard, self._waitset = GuardCondition(participant), WaitSet(participant)
        self._waitset.attach(self._guard)
        self._readers: list[tuple[DataReader, ReadCondition, Callable[[Any], None]]] = []
        self._stopped = False

    def add(self, reader: DataReader, function: Callable[[Any], None]) -> None:
        condition = ReadCondition(reader, SampleState.Any | ViewState.Any | InstanceState.Any)
        self._readers.append((reader, condition, function))
        self._waitset.attach(condition)
        if not self.is_alive():
            self.start()

    def run(self) -> None:
        while not self._stopped:
            self._waitset.wait(1_000_000_000)
            for reader, _, function in list(self._readers):
                for sample in reader.take(_TAKEN):
                    if self._stopped:
                        return
                    if hasattr(sample, "content"):  # else it says that a writer is gone
                        self._call(function, sample)

    def _call(self, function: Callable[[Any], None], sample: Any) -> None:
        try:
            function(sample)
        except Exception as error:  # the next message may be a good one
            text = " ".join(str(error).split())
            logger.warning("%s: a message was ignored: %s: %s", self.name, type(error).__name__, text)

    def close(self) -> None:
        self._stopped = True
        self._guard.set(True)
        if self.is_alive() and self is not threading.current_thread():
            self.join(2)


def _domain_number(domain: int | None) -> int:
    text = os.environ.get("ROS_DOMAIN_ID", "") if domain is None else str(domain)
    if not (text or "0").isdecimal() or int(text or 0) > 232:
        raise InputError(f"the domain is {text!r}; expected a number of 0 to 232 (--domain, ROS_DOMAIN_ID)")
    return int(text or 0)


def _qos(qos: transport.Qos, user_data: str) -> Qos:
    policies: list[Any] = [
        Policy.Reliability.Reliable(_MOST_WAITED_NS) if qos.reliable else Policy.Reliability.BestEffort,
        Policy.Durability.TransientLocal if qos.latched else Policy.Durability.Volatile,
        Policy.History.KeepLast(qos.depth),
        Policy.DataRepresentation(use_cdrv0_representation=True),
        Policy.WriterDataLifecycle(autodispose=False),
        Policy.Userdata(user_data.encode()),
    ]
    if qos.latched:
        policies.append(Policy.DurabilityService(0, Policy.History.KeepLast(qos.depth), -1, -1, -1))
    return Qos(*policies)


def _gid(entity: Any) -> Any:
    return make("rmw_dds_common/msg/Gid", data=np.frombuffer(entity.guid.bytes, np.uint8))


def _hash(message_type: str) -> str:
    return f"typehash={type_hash(message_type)};"


def _new_id() -> str:
    """An id in rmw_cyclonedds's form: 16 bytes in hexadecimal digits, with dots."""
    return ".".join(f"{byte:x}" for byte in uuid.uuid4().bytes)


def _apart(content: bytes, name: str) -> tuple[bytes, Any]:
    """Header and message of a request or reply; 16 bytes change nobody's alignment."""
    return content[4:20], decode(content[:4] + content[20:], name)


def _await_client(reader: DataReader, writer: DataWriter, client: int) -> None:
    """Wait until a client's reader is connected, so that it hears the reply."""
    asking = reader.get_matched_publication_data(client)
    wanted = _client_id(asking)
    deadline = time.monotonic() + _BEFORE_REPLY_SECONDS
    while wanted is not None and time.monotonic() < deadline:
        handles = writer.get_matched_subscriptions()
        if any(_client_id(writer.get_matched_subscription_data(one)) == wanted for one in handles):
            return
        time.sleep(0.002)


def _client_id(endpoint: Any) -> str | None:
    if endpoint is None or Policy.Userdata not in endpoint.qos:
        return None
    data = bytes(endpoint.qos[Policy.Userdata].data).decode("ascii", "replace")
    found = dict(one.partition("=")[::2] for one in data.split(";") if one)
    return found.get("clientid")
