"""FRTM: a small model of each object, learned on the spot, and a network that sharpens what it says.

`method` holds the extractor, the decoder and the method; `target` and `memory` the state of a stream;
`augmentation` makes the first frame's samples. How a target model learns is in `streamvos.nn.target_model`.
"""

from streamvos.methods.frtm.method import FRTM, FRTMExtractor
from streamvos.methods.frtm.options import EFFICIENTNET, FRTM_FAST, FRTMOptions

__all__ = ["EFFICIENTNET", "FRTM", "FRTM_FAST", "FRTMExtractor", "FRTMOptions"]
