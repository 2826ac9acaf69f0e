"""`bench ros2`: from the camera's stamp to the mask at a subscriber, over Cyclone DDS on this machine.

    streamvos bench ros2
    streamvos bench ros2 --kinds raw --size 480x854 --fps 30 --methods tvos,frtm-fast

This process is the camera and the subscriber, `streamvos ros2` the node. A picture's stamp is the time of its
publication; a mask has its picture's. `in the node` is what the node measures, from the stamp to the moment
when it has published.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from streamvos.cli.options import examples
from streamvos.types import InputError

from . import options
from .results import CaseResult, Settings, measured
from .runner import Run

PATIENCE = 120.0
EXPECTED = 20.0  # seconds until a node is active, for the estimate
WARM_UP = 10  # masks that do not count
TOPIC, NAME = "/bench/image", "bench_node"

EXAMPLES = examples("streamvos bench ros2", "streamvos bench ros2 --kinds raw --size 240 --fps 30")


def command(
    methods: options.Methods = "tvos",
    size: options.Sizes = "480x854",
    kinds: Annotated[str, typer.Option(metavar="raw,jpeg", help="Image, CompressedImage.")] = "raw,jpeg",
    fps: Annotated[float, typer.Option(min=0.1, metavar="RATE", help="Of the camera.")] = 10.0,
    seconds: options.Seconds = 20.0,
    threads: options.Threads = None,
    json_target: options.JsonTarget = None,
    html: options.HtmlTarget = None,
) -> None:
    """From the camera's stamp to the mask at a subscriber, and how many pictures are dropped."""
    names, sizes = options.methods_in(methods), options.sizes_in(size)
    wanted = [one.strip() for one in kinds.split(",")]
    if not wanted or not set(wanted) <= {"raw", "jpeg"}:
        raise InputError(f"--kinds {kinds!r} cannot be used; expected raw, jpeg or both")
    from streamvos.ros2.opening import open_transport

    cases = [(name, one, kind) for name in names for one in sizes for kind in wanted]
    columns = ["p50", "p99", "max", "details.dropped", "details.in_the_node_p50"]
    # a domain of its own: nobody's robot gets these pictures
    os.environ["ROS_DOMAIN_ID"] = str(100 + os.getpid() % 100)
    with Run("ros2", json_target, len(cases) * (seconds + EXPECTED), columns=columns, html=html) as run:
        for name, one, kind in cases:
            transport = open_transport("dds", "bench_camera")
            try:
                run.add(_measure(transport, name, one, kind, fps, seconds, options.threads_of(threads)))
            finally:
                transport.close()


def _measure(
    transport: Any,
    method: str,
    size: tuple[int, int],
    kind: str,
    fps: float,
    seconds: float,
    threads: int | None,
) -> CaseResult:
    from streamvos.masks.labelmap import write_label_map
    from streamvos.ros2.transport import Qos
    from streamvos.rosmsg.pictures import COMPRESSED, IMAGE
    from streamvos.rosmsg.types import decode, stamp_ns
    from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo

    video = SyntheticVideo(3, SyntheticOptions(size, 16, objects=1, occluders=0, leave=0.0))
    pictures = [video[number].image for number in range(len(video))]
    pictures += pictures[::-1]  # there and back
    ages: list[float] = []
    health: list[bytes] = []

    def take(content: bytes) -> None:
        ages.append((time.time_ns() - stamp_ns(decode(content, IMAGE).header)) / 1e6)

    transport.subscribe(f"/{NAME}/label_map", IMAGE, Qos(depth=8), take)
    transport.subscribe("/diagnostics", "diagnostic_msgs/msg/DiagnosticArray", Qos(depth=8), health.append)
    publish = transport.publisher(TOPIC, IMAGE if kind == "raw" else COMPRESSED, Qos(reliable=False))
    with tempfile.TemporaryDirectory() as folder:
        write_label_map(Path(folder, "first.png"), video[0].label_map, Path(folder, "temporary"))
        command = [sys.executable, "-m", "streamvos", "ros2", "--transport", "dds", "--image", TOPIC]
        command += ["--name", NAME, "--method", method, "--mask", str(Path(folder, "first.png"))]
        command += ["--compressed"] if kind == "jpeg" else []
        environment = {**os.environ, **options.thread_environment(threads)}
        node = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        number, dropped = 0, 0
        try:
            begin = deadline = time.monotonic() + PATIENCE
            while time.monotonic() < min(deadline, begin + seconds):
                publish(_message(pictures[number % len(pictures)], kind))
                number += 1
                if begin == deadline and len(ages) > WARM_UP:
                    begin, number = time.monotonic(), 0
                    ages.clear()
                time.sleep(1 / fps)
                if node.poll() is not None:
                    break
            time.sleep(0.5)
            dropped = max(number - len(ages), 0)  # of the warm-up, one may have come late
        finally:
            node.terminate()
            node.wait()
    settings = Settings(method=method, height=size[0], width=size[1], objects=1, threads=threads, fps=fps)
    name = f"{method} {options.size_named(size)} {kind}"
    if begin == deadline or not ages:
        return CaseResult(bench="ros2", name=name, case=settings, failed="the node gave no masks in time")
    details = {"dropped": dropped, "in_the_node_p50": _told(health)}
    return CaseResult(bench="ros2", name=name, case=settings, details=details, **measured(ages))


def _message(image: Any, kind: str) -> Any:
    import numpy as np
    from PIL import Image

    from streamvos.rosmsg.pictures import COMPRESSED, rgb_image
    from streamvos.rosmsg.types import make, time_of

    header = make("std_msgs/msg/Header", stamp=time_of(time.time_ns()), frame_id="camera")
    if kind == "raw":
        return rgb_image(image, header)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=85)
    return make(COMPRESSED, header=header, format="jpeg", data=np.frombuffer(file.getvalue(), np.uint8))


def _told(health: list[bytes]) -> float | None:
    """The median that the node says last, ms."""
    from streamvos.rosmsg.types import decode

    for content in reversed(health):
        for status in decode(content, "diagnostic_msgs/msg/DiagnosticArray").status:
            values = {one.key: one.value for one in status.values}
            if status.name.startswith(NAME) and values["latency from stamp p50 (ms)"]:
                return float(values["latency from stamp p50 (ms)"])
    return None
