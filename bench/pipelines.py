"""What the benches of the pipeline share: clips, masks, pipelines of real processes, how figures are told.

from pipelines import about, make_clip, make_mask, serving, tell
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from serving import Serving, serving  # noqa: E402

__all__ = ["Serving", "about", "make_clip", "make_mask", "percentiles", "serving", "tell"]

LOOP = 240
"""Frames that a clip has of its own; a longer one repeats them."""

IDS = (3, 7)


def make_clip(path: Path, frames: int, size: tuple[int, int], fps: int = 30, cheap: bool = False) -> None:
    """A video file of a picture that wanders; the packets of its first frames are repeated.

    Args:
        path: .mp4, or .mov if it is cheap.
        frames: how many.
        size: (H, W).
        fps: frames per second.
        cheap: to decode: it costs little more than copying a frame, and the picture stands still.
    """
    rng = np.random.Generator(np.random.PCG64(7))
    coarse = rng.integers(0, 255, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    picture = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    picture = np.pad(picture, [(0, size[0] - len(picture)), (0, size[1] - picture.shape[1]), (0, 0)], "wrap")
    options = {"g": str(LOOP)} if cheap else {"preset": "ultrafast", "tune": "zerolatency", "g": str(LOOP)}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("qtrle" if cheap else "libx264", rate=fps, options=options)
        stream.width, stream.height = size[1], size[0]
        stream.pix_fmt = "rgb24" if cheap else "yuv420p"
        stream.time_base = Fraction(1, fps)
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
            packet.stream, packet.time_base = stream, Fraction(1, fps)
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


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """p50, p95, p99 and max."""
    ordered = sorted(values)
    if not ordered:
        return {}
    cuts = statistics.quantiles(ordered, n=100, method="inclusive") if len(ordered) > 1 else ordered * 99
    return {"p50": cuts[49], "p95": cuts[94], "p99": cuts[98], "max": ordered[-1]}


def about() -> dict[str, Any]:
    """Machine, versions and command of this run."""
    import torch
    import zmq

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "zmq": zmq.zmq_version(),
        "commit": commit,
        "command": " ".join(["python", f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def tell(answer: Mapping[str, Any], out: Path | None) -> None:
    """The figures as a file, if one is wanted, and as one line of JSON last."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(answer, indent=1) + "\n")
    print(json.dumps(answer))
