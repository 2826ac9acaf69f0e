"""What the node publishes of a frame, and a recording holds: detections, and the names of the objects.

A Detection2D has the object's id as its `id`. Its first hypothesis is the object (`class_id` as in
LabelInfo, and the score), its second the state: "tracking", "uncertain" or "lost". A lost object has a box of
size 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamvos.rosmsg.types import make
from streamvos.types import ObjectResult


def detections(objects: Mapping[int, ObjectResult], names: Mapping[int, str], header: Any) -> Any:
    """A Detection2DArray.

    Args:
        objects: by value in the label map.
        names: value -> id.
        header: of the picture.
    """
    found = [_detection(one, names.get(key, str(key)), header) for key, one in sorted(objects.items())]
    return make("vision_msgs/msg/Detection2DArray", header=header, detections=found)


def label_info(names: Mapping[int, str], header: Any, threshold: float) -> Any:
    """A LabelInfo: which value of the label map is which object.

    Args:
        names: value -> id.
        header: of the picture since which it holds.
        threshold: scores below it make an object uncertain.
    """
    classes = [make("vision_msgs/msg/VisionClass", class_id=0, class_name="background")]
    classes += [
        make("vision_msgs/msg/VisionClass", class_id=key, class_name=names[key]) for key in sorted(names)
    ]
    return make("vision_msgs/msg/LabelInfo", header=header, class_map=classes, threshold=threshold)


def _detection(one: ObjectResult, name: str, header: Any) -> Any:
    left, top, right, bottom = one.box or (0, 0, 0, 0)
    center = make("vision_msgs/msg/Point2D", x=(left + right) / 2, y=(top + bottom) / 2)
    box = make(
        "vision_msgs/msg/BoundingBox2D",
        center=make("vision_msgs/msg/Pose2D", position=center),
        size_x=float(right - left),
        size_y=float(bottom - top),
    )
    hypotheses = [_hypothesis(str(one.id), one.score), _hypothesis(one.state, 1.0)]
    return make("vision_msgs/msg/Detection2D", header=header, results=hypotheses, bbox=box, id=name)


def _hypothesis(class_id: str, score: float) -> Any:
    hypothesis = make("vision_msgs/msg/ObjectHypothesis", class_id=class_id, score=float(score))
    return make("vision_msgs/msg/ObjectHypothesisWithPose", hypothesis=hypothesis)
