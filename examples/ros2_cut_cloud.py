"""The points of an object: a point cloud of a depth camera, cut by the label map.

    streamvos ros2 --image /camera/color/image_raw --box 1:200,120,420,460
    python examples/ros2_cut_cloud.py 1 /camera/depth_registered/points /object/points

The cloud must be organized: one point for each pixel of the pictures, as depth cameras give it. Clouds and
label maps belong together by their stamps.
"""

import sys
import time

from streamvos.ros2.opening import open_transport
from streamvos.ros2.transport import Qos
from streamvos.rosmsg.types import decode, make, stamp_ns

CLOUD, IMAGE = "sensor_msgs/msg/PointCloud2", "sensor_msgs/msg/Image"


def cut(cloud, label_map, label: int):
    """The points whose pixels have a value in the label map, as an unordered cloud."""
    if (cloud.height, cloud.width) != (label_map.height, label_map.width):
        pixels = f"{label_map.width} x {label_map.height} pixels"
        raise ValueError(f"{cloud.width} x {cloud.height} points, {pixels}")
    points = cloud.data.reshape(cloud.height, cloud.row_step)[:, : cloud.width * cloud.point_step]
    points = points.reshape(cloud.height, cloud.width, cloud.point_step)
    chosen = points[label_map.data.reshape(label_map.height, label_map.step)[:, : cloud.width] == label]
    kept = {name: getattr(cloud, name) for name in ("header", "fields", "point_step", "is_dense")}
    return make(CLOUD, height=1, width=len(chosen), row_step=chosen.size, data=chosen.reshape(-1), **kept)


def main(label: str, source: str, target: str) -> None:
    transport, clouds = open_transport("auto", "cut_cloud"), {}
    publish = transport.publisher(target, CLOUD, Qos())

    def take_cloud(content: bytes) -> None:
        cloud = decode(content, CLOUD)
        clouds[stamp_ns(cloud.header)] = cloud
        while len(clouds) > 10:
            clouds.pop(next(iter(clouds)))

    def take_map(content: bytes) -> None:
        label_map = decode(content, IMAGE)
        if (cloud := clouds.pop(stamp_ns(label_map.header), None)) is not None:
            publish(cut(cloud, label_map, int(label)))

    transport.subscribe(source, CLOUD, Qos(reliable=False, depth=5), take_cloud)
    transport.subscribe("/streamvos/label_map", IMAGE, Qos(reliable=False), take_map)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
