"""Where frames come from: cameras, network streams, video files, folders of pictures, synthetic videos.

with open_source("camera:0", height=480) as source:
    for frame in source:
        print(frame.index, frame.size)
"""

from typing import TYPE_CHECKING

from streamvos.lazy import import_on_use

if TYPE_CHECKING:
    from streamvos.sources.generated import GeneratedSource
    from streamvos.sources.images import ImagesSource
    from streamvos.sources.live import LiveSource
    from streamvos.sources.live_address import Policy
    from streamvos.sources.opening import open_source
    from streamvos.sources.source import Selection, Source
    from streamvos.sources.video_file import VideoFileSource

__all__ = [
    "GeneratedSource",
    "ImagesSource",
    "LiveSource",
    "Policy",
    "Selection",
    "Source",
    "VideoFileSource",
    "open_source",
]

__getattr__ = import_on_use(
    __name__,
    {
        "streamvos.sources.generated": ["GeneratedSource"],
        "streamvos.sources.images": ["ImagesSource"],
        "streamvos.sources.live": ["LiveSource"],
        "streamvos.sources.live_address": ["Policy"],
        "streamvos.sources.opening": ["open_source"],
        "streamvos.sources.source": ["Selection", "Source"],
        "streamvos.sources.video_file": ["VideoFileSource"],
    },
)
