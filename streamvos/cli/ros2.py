"""`streamvos ros2`: a ROS 2 node that follows objects in the pictures of a topic.

streamvos ros2 --image /camera/image_raw --box 1:200,120,420,460
"""

from __future__ import annotations

import contextlib
import re
import time
from typing import Annotated

import typer

from streamvos.cli import options
from streamvos.cli.output import remark, show
from streamvos.cli.signals import Stopped
from streamvos.types import InputError

EXAMPLES = options.examples(
    "streamvos ros2 --image /camera/image_raw",
    "streamvos ros2 --image /camera/image_raw --box 1:200,120,420,460",
    "streamvos ros2 --image /camera/image_raw/compressed --mask first.png --name /robot1/eyes",
    "streamvos ros2 --image /camera/image_raw --reliable --method tvos --set top_k=5 --domain 7",
)

_NAME = re.compile(r"/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*", re.ASCII)


def ros2(
    image: Annotated[
        str, typer.Option(metavar="TOPIC", help="sensor_msgs/Image, or CompressedImage (see --compressed).")
    ],
    compressed: Annotated[
        bool,
        typer.Option(
            "--compressed", help="The topic is a CompressedImage, as all that end with /compressed."
        ),
    ] = False,
    reliable: Annotated[
        bool, typer.Option(help="Ask for lost pictures again; best effort suits cameras and all publishers.")
    ] = False,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Of the node, as /robot1/eyes; its topics begin with it.")
    ] = "streamvos",
    domain: Annotated[
        int | None, typer.Option(min=0, max=232, metavar="N", help="ROS domain; as ROS_DOMAIN_ID says, or 0.")
    ] = None,
    transport: Annotated[
        str, typer.Option(metavar="auto|dds|rclpy", help="auto: rclpy if ROS is sourced, else Cyclone DDS.")
    ] = "auto",
    autostart: Annotated[
        bool, typer.Option(help="Become active at once; otherwise wait for change_state.")
    ] = True,
    mask: options.MaskPath = None,
    boxes: options.Boxes = None,
    points: options.Points = None,
    select: options.Select = None,
    sam_encoder: options.SamEncoder = None,
    sam_decoder: options.SamDecoder = None,
    method: options.MethodName = None,
    weights: options.WeightsName = "default",
    device: options.DeviceName = "auto",
    backend: options.BackendName = "eager",
    settings: options.MethodSettings = None,
    json_target: options.JsonTarget = None,
) -> None:
    """Follow objects in the pictures of a ROS 2 topic.

    The node publishes label maps and detections. Objects come from --mask, --box and --point, for the first
    picture, and from the node's services; docs/ros2.md lists them. It needs no ROS installation: pip install
    'streamvos[ros2]'.
    """
    import streamvos
    from streamvos.masks.checks import named_objects
    from streamvos.masks.labelmap import read_label_map
    from streamvos.masks.pointing import Pointing
    from streamvos.ros2.node import Node, NodeOptions
    from streamvos.ros2.opening import open_transport
    from streamvos.rosmsg.types import typestore
    from streamvos.selection.objects import check_selection, make_selector

    topic, node_name = f"/{_checked(image, '--image').lstrip('/')}", _checked(name, "--name").lstrip("/")
    pointing, method_options = Pointing.parse(boxes, points), options.method_settings(settings)
    select = select or "learned"
    check_selection(select, sam_encoder, sam_decoder)
    label_map = None if mask is None else read_label_map(mask)
    if label_map is not None:
        twice = sorted(set(named_objects(label_map, f"the mask {mask}")) & set(pointing.ids))
        if twice:
            raise InputError(
                f"object {twice[0]} is in the mask {mask} and has a box or a point too; give it in one way"
            )
    typestore()  # says what is not installed
    chosen = NodeOptions(topic, node_name, compressed or topic.endswith("/compressed"), reliable, autostart)
    connected = open_transport(transport, node_name, domain)
    started = time.perf_counter()
    try:
        node = Node(
            connected,
            lambda: streamvos.load(
                method, options.weights_argument(weights), device, backend, **method_options
            ),
            chosen,
            lambda: make_selector(select, sam_encoder, sam_decoder, device),
            label_map,
            pointing,
        )
        remark(f"node /{node_name} takes pictures from {topic}; Ctrl-C ends it")
        with contextlib.suppress(Stopped):
            node.run()
        seconds = time.perf_counter() - started
        values = {
            "node": f"/{node_name}",
            "frames": node.frames,
            "dropped": node.dropped,
            "seconds": round(seconds, 3),
        }
        show(values, json_target, f"{node.frames} frames in {seconds:.0f} s, {node.dropped} dropped")
    finally:
        connected.close()


def _checked(text: str, option: str) -> str:
    if _NAME.fullmatch(text) is None:
        raise InputError(
            f"{option} is {text!r}; expected names of letters, digits and _, joined by /, such as "
            "/camera/image_raw"
        )
    return text
