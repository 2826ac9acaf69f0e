"""Where results go: label-map pictures, an overlay video, lines of JSON.

with open_source("goat.mp4") as source, open_sinks("out", stems=source.stem) as sinks:
    for frame in source:
        sinks.write(frame, vos.step(frame.image, mask if frame.index == 0 else None))
"""

from typing import TYPE_CHECKING

from streamvos.lazy import import_on_use

if TYPE_CHECKING:
    from streamvos.sinks.json_lines import JsonLinesSink
    from streamvos.sinks.label_maps import LabelMapSink
    from streamvos.sinks.multi import MultiSink, open_sinks
    from streamvos.sinks.overlay import Overlay
    from streamvos.sinks.overlay_video import OverlayVideoSink
    from streamvos.sinks.sink import Sink

__all__ = [
    "JsonLinesSink",
    "LabelMapSink",
    "MultiSink",
    "Overlay",
    "OverlayVideoSink",
    "Sink",
    "open_sinks",
]

__getattr__ = import_on_use(
    __name__,
    {
        "streamvos.sinks.json_lines": ["JsonLinesSink"],
        "streamvos.sinks.label_maps": ["LabelMapSink"],
        "streamvos.sinks.multi": ["MultiSink", "open_sinks"],
        "streamvos.sinks.overlay": ["Overlay"],
        "streamvos.sinks.overlay_video": ["OverlayVideoSink"],
        "streamvos.sinks.sink": ["Sink"],
    },
)
