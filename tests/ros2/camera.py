"""A camera that publishes a synthetic scene, in a process of its own.

    python camera.py TYPE RATE LENGTH RELIABLE

The stamp of a picture is its number, in ns since 1 s, so that who gets a mask knows the true one.
"""

from __future__ import annotations

import io
import sys
import time
from functools import cache

import numpy as np
from PIL import Image

from streamvos.ros2.dds import DdsTransport
from streamvos.ros2.transport import Qos
from streamvos.rosmsg.pictures import COMPRESSED, IMAGE, rgb_image
from streamvos.rosmsg.types import make, time_of
from streamvos.synthetic.options import SyntheticOptions
from streamvos.synthetic.synthetic import SyntheticVideo

SIZE = (192, 256)
START_NS = 1_000_000_000
TOPIC = "/camera/image_raw"


@cache
def scene(length: int = 30) -> SyntheticVideo:
    options = SyntheticOptions(
        SIZE, length, objects=2, distractors=0, occluders=0, motion=0.4, leave=0.0, deformation=0.4
    )
    return SyntheticVideo(3, options)


def header(number: int):
    return make("std_msgs/msg/Header", stamp=time_of(START_NS + number), frame_id="camera_optical")


def message(image: np.ndarray, number: int, kind: str):
    if kind == IMAGE:
        return rgb_image(image, header(number))
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return make(
        COMPRESSED, header=header(number), format="jpeg", data=np.frombuffer(file.getvalue(), np.uint8)
    )


def main() -> None:
    kind, rate, length, reliable = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "1"
    video, transport = scene(), DdsTransport("camera")
    publish = transport.publisher(TOPIC, kind, Qos(reliable, depth=5))
    for number in range(length):
        turn, place = divmod(number, len(video))
        place = len(video) - 1 - place if turn % 2 else place  # there and back
        publish(message(video[place].image, place, kind))
        time.sleep(1 / rate)
    transport.close()


if __name__ == "__main__":
    main()
