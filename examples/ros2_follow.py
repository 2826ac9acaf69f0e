"""A robot that turns towards an object and drives up to it: detections to velocities.

    streamvos ros2 --image /camera/image_raw --box 1:200,120,420,460
    python examples/ros2_follow.py 1 640 480

The object's id and the pictures' width and height are arguments. A lost object stops the robot.
"""

import sys
import time

from streamvos.ros2.opening import open_transport
from streamvos.ros2.transport import Qos
from streamvos.rosmsg.types import decode, make

DETECTIONS = "vision_msgs/msg/Detection2DArray"
TURN, DRIVE, NEAR = 1.2, 0.5, 0.5  # rad/s at the picture's edge, m/s from afar, height at which to stop


def velocity(detections, name: str, width: int, height: int):
    """A Twist: turn until the object is in the middle, drive until it fills `NEAR` of the height."""
    twist = make("geometry_msgs/msg/Twist")
    for one in detections.detections:
        if one.id == name and one.bbox.size_y > 0:
            twist.angular.z = TURN * (1 - 2 * one.bbox.center.position.x / width)
            twist.linear.x = DRIVE * max(0.0, 1 - one.bbox.size_y / height / NEAR)
    return twist


def main(name: str, width: str, height: str) -> None:
    transport = open_transport("auto", "follow")
    drive = transport.publisher("/cmd_vel", "geometry_msgs/msg/Twist", Qos())
    size = int(width), int(height)

    def take(content: bytes) -> None:
        drive(velocity(decode(content, DETECTIONS), name, *size))

    transport.subscribe("/streamvos/detections", DETECTIONS, Qos(reliable=False), take)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
