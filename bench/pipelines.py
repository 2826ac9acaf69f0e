"""What benchmarks of the pipeline share: clips, masks, configurations, clients.

size = make_clip(folder / "clip.mp4", 300, (240, 428))
make_mask(folder / "first.png", (240, 428))
with running(one_stream(folder / "clip.mp4", folder / "first.png", {"name": "tvos"}), folder) as pipeline:
    with client_of(pipeline) as client:
        ...
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from PIL import Image

from .serving import Serving, serving

if TYPE_CHECKING:
    from streamvos.pipeline.clients.client import Client

ROOT = Path(__file__).resolve().parents[len((__package__ or "bench").split("."))]
"""Where this package is found, so that a pipeline finds `stub_method`."""

NAME = "bench"
"""Of every pipeline here."""

LOOP = 240
"""Frames that a clip has of its own; a longer one repeats them."""

IDS = (3, 7)


def make_clip(path: Path, frames: int, size: tuple[int, int], fps: float = 30, cheap: bool = False) -> None:
    """A video file of a picture that wanders; the packets of its first frames are repeated.

    Args:
        path: .mp4, or .mov if it is cheap.
        frames: how many.
        size: (H, W), both even.
        fps: frames per second.
        cheap: to decode: it costs little more than copying a frame, and the picture stands still.
    """
    rng = np.random.Generator(np.random.PCG64(7))
    coarse = rng.integers(0, 255, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    picture = np.pad(picture, [(0, size[0] - len(picture)), (0, size[1] - picture.shape[1]), (0, 0)], "wrap")
    options = {"g": str(LOOP)} if cheap else {"preset": "ultrafast", "tune": "zerolatency", "g": str(LOOP)}
    rate = Fraction(fps).limit_denominator(1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("qtrle" if cheap else "libx264", rate=rate, options=options)
        stream.width, stream.height = size[1], size[0]
        stream.pix_fmt = "rgb24" if cheap else "yuv420p"
        stream.time_base = 1 / rate
        packets: list[Any] = []
        for t in range(min(frames, LOOP)):
            image = picture if cheap else np.ascontiguousarray(np.roll(picture, t, 1))
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            packets += stream.encode(frame)
        packets += stream.encode(None)
        coded = [(bytes(packet), packet.is_keyframe) for packet in packets]
        for t in range(frames):
            data, key = coded[t % len(coded)]
            packet = av.Packet(data)
            # the stream's own time base changes when the first packet is written
            packet.stream, packet.time_base = stream, 1 / rate
            packet.pts = packet.dts = t
            packet.duration = 1
            packet.is_keyframe = key
            container.mux(packet)


def make_mask(path: Path, size: tuple[int, int], objects: int = 2) -> np.ndarray:
    """A label map of one or two rectangles, also written as a PNG; (H, W) uint8."""
    height, width = size
    mask = np.zeros(size, np.uint8)
    mask[height // 6 : height // 2, width // 20 : width // 4] = IDS[0]
    if objects > 1:
        mask[height * 5 // 8 : height * 7 // 8, width // 2 : width * 3 // 4] = IDS[1]
    Image.fromarray(mask).save(path)
    return mask


def one_stream(
    clip: str | Path, mask: str | Path | None, method: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """The configuration of one lossless stream "cam" whose masks are published.

    Args:
        clip: its source.
        mask: its first mask; None for a source that has one.
        method: the table [method].
        **more: of the stream.
    """
    stream = {
        "name": "cam",
        "source": str(clip),
        "policy": "lossless",
        "sinks": [{"kind": "publish"}],
        **more,
    }
    if mask is not None:
        stream["mask"] = str(mask)
    return {"name": NAME, "method": dict(method), "streams": [stream], "supervision": {"standby": False}}


@contextmanager
def running(config: Mapping[str, Any], folder: Path, threads: int | None = None) -> Iterator[Serving]:
    """A pipeline within the block, which finds the methods of this package.

    It is ended rather than killed: only then does its time count as ours, and not as that of other programs.
    """
    with serving(config, folder, threads, [ROOT]) as pipeline:
        yield pipeline
        if pipeline.process.poll() is None:
            pipeline.signal()
            pipeline.wait(30.0)


def runtime_of(pipeline: Serving) -> Path:
    """The folder with its sockets."""
    return Path(pipeline.runtime) / "streamvos" / NAME


def client_of(pipeline: Serving, timeout: float = 10.0) -> Client:
    """A client, once the pipeline answers."""
    from streamvos.pipeline.clients.client import Client

    path = runtime_of(pipeline) / "control.sock"
    pipeline.wait_for(path.exists)
    return Client(f"ipc://{path}", timeout=timeout)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="bench"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
