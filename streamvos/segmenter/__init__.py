"""One stream in one process: a frame in, its label map out.

    vos = Segmenter(method)
    vos.step(frame, mask)        # the first frame, with its label map
    vos.step(frame).mask         # every later frame

A step has four parts, of which a pipeline makes stages: `Extraction`, `StreamState.ask`, `decide`,
`StreamState.learn`.
"""

from streamvos.segmenter.checks import SMALLEST_SIDE, check_frame, check_mask
from streamvos.segmenter.extraction import Extraction
from streamvos.segmenter.following import follow
from streamvos.segmenter.segmenter import Segmenter
from streamvos.segmenter.state import (
    UNCERTAIN_BELOW,
    Decision,
    Question,
    StreamState,
    decide,
    label_map_of,
    make_result,
)

__all__ = [
    "SMALLEST_SIDE",
    "UNCERTAIN_BELOW",
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
