"""Follow an object through a camera: pictures with its mask go to a folder, rates to the terminal.

    python examples/camera_to_files.py camera:0 1:60,40,180,150 out/camera

The source may also be a video file, a folder of pictures, "rtsp://..." or "synthetic:". The box says where
the object is in the first frame: ID:LEFT,TOP,RIGHT,BOTTOM in pixels. Ctrl-C ends it.
"""

import sys
import time
from pathlib import Path

from PIL import Image

import streamvos
from streamvos.masks.pointing import Pointing
from streamvos.selection.objects import make_selector, select_objects
from streamvos.sinks import Overlay


def main(address: str, box: str, folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    pointing, selector = Pointing.parse([box], []), make_selector()
    vos = streamvos.load()
    draw = Overlay()
    with streamvos.open_source(address) as source:
        started = time.monotonic()
        for frame in source:
            mask = select_objects(selector, frame.image, pointing) if frame.index == 0 else None
            result = vos.step(frame.image, mask)
            Image.fromarray(draw(frame.image, result)).save(f"{folder}/{frame.index:06d}.jpg")
            rate = (frame.index + 1) / (time.monotonic() - started)
            states = {object_id: one.state for object_id, one in result.objects.items()}
            print(f"frame {frame.index}: {rate:.1f} frames/s, {states}")


if __name__ == "__main__":
    main(*sys.argv[1:])
