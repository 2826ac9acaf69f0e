"""Definitions of the messages and services that rosbags does not bring, in ROS's own notation.

Our own services are a package that ROS users can build: the folder `streamvos_msgs`. The others are those of
vision_msgs 4 (ROS 2 Humble and later), foxglove_msgs, lifecycle_msgs, rcl_interfaces and std_srvs.
"""

from __future__ import annotations

from pathlib import Path

from streamvos.files import read_text

OWN = "streamvos_msgs"
"""The ROS package of our services; its folder lies beside this file."""

MESSAGES = {
    "vision_msgs/msg/Point2D": "float64 x\nfloat64 y",
    "vision_msgs/msg/Pose2D": "vision_msgs/Point2D position\nfloat64 theta",
    "vision_msgs/msg/BoundingBox2D": "vision_msgs/Pose2D center\nfloat64 size_x\nfloat64 size_y",
    "vision_msgs/msg/ObjectHypothesis": "string class_id\nfloat64 score",
    "vision_msgs/msg/ObjectHypothesisWithPose": """
        vision_msgs/ObjectHypothesis hypothesis
        geometry_msgs/PoseWithCovariance pose""",
    "vision_msgs/msg/Detection2D": """
        std_msgs/Header header
        vision_msgs/ObjectHypothesisWithPose[] results
        vision_msgs/BoundingBox2D bbox
        string id""",
    "vision_msgs/msg/Detection2DArray": "std_msgs/Header header\nvision_msgs/Detection2D[] detections",
    "vision_msgs/msg/VisionClass": "uint16 class_id\nstring class_name",
    "vision_msgs/msg/LabelInfo": """
        std_msgs/Header header
        vision_msgs/VisionClass[] class_map
        float32 threshold""",
    "foxglove_msgs/msg/CompressedImage": """
        builtin_interfaces/Time timestamp
        string frame_id
        uint8[] data
        string format""",
    "foxglove_msgs/msg/RawImage": """
        builtin_interfaces/Time timestamp
        string frame_id
        uint32 width
        uint32 height
        string encoding
        uint32 step
        uint8[] data""",
}

SERVICES = {
    "std_srvs/srv/Trigger": "---\nbool success\nstring message",
    "lifecycle_msgs/srv/GetState": "---\nlifecycle_msgs/State current_state",
    "lifecycle_msgs/srv/ChangeState": "lifecycle_msgs/Transition transition\n---\nbool success",
    "lifecycle_msgs/srv/GetAvailableStates": "---\nlifecycle_msgs/State[] available_states",
    "lifecycle_msgs/srv/GetAvailableTransitions": """---
        lifecycle_msgs/TransitionDescription[] available_transitions""",
    "rcl_interfaces/srv/ListParameters": """string[] prefixes\nuint64 depth
        ---
        rcl_interfaces/ListParametersResult result""",
    "rcl_interfaces/srv/GetParameters": "string[] names\n---\nrcl_interfaces/ParameterValue[] values",
    "rcl_interfaces/srv/GetParameterTypes": "string[] names\n---\nuint8[] types",
    "rcl_interfaces/srv/DescribeParameters": """string[] names
        ---
        rcl_interfaces/ParameterDescriptor[] descriptors""",
    "rcl_interfaces/srv/SetParameters": """rcl_interfaces/Parameter[] parameters
        ---
        rcl_interfaces/SetParametersResult[] results""",
    "rcl_interfaces/srv/SetParametersAtomically": """rcl_interfaces/Parameter[] parameters
        ---
        rcl_interfaces/SetParametersResult result""",
}

_EMPTY = "uint8 structure_needs_at_least_one_member"  # IDL has no empty structures, so ROS adds this


def texts() -> dict[str, str]:
    """Name of a message type -> its definition; of a service, NAME_Request and NAME_Response."""
    found = {name: _stripped(text) for name, text in MESSAGES.items()}
    services = dict(SERVICES)
    for path in sorted(Path(__file__).with_name(OWN).glob("srv/*.srv")):
        services[f"{OWN}/srv/{path.stem}"] = read_text(path, "the definition")
    for name, text in services.items():
        request, _, response = text.partition("---")
        found[f"{name}_Request"] = _stripped(request) or _EMPTY
        found[f"{name}_Response"] = _stripped(response) or _EMPTY
    return found


def _stripped(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())
