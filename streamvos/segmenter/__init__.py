"""One stream in one process: a frame in, its label map out.

    vos = Segmenter(method)
    vos.step(frame, mask)        # the first frame, with its label map
    vos.step(frame).mask         # every later frame

A step has four parts, which are stages in a pipeline: `Extraction`, `StreamState.ask`, `decide` and
`StreamState.learn`.
"""

from streamvos.segmenter.checks import check_frame, check_mask
from streamvos.segmenter.extraction import Extraction
from streamvos.segmenter.segmenter import Segmenter, follow
from streamvos.segmenter.state import (
    Decision,
    Question,
    StreamState,
    decide,
    label_map_of,
    make_result,
)

__all__ = [
    "Decision",
    "Extraction",
    "Question",
    "Segmenter",
    "StreamState",
    "check_frame",
    "check_mask",
    "decide",
    "follow",
    "label_map_of",
    "make_result",
]
