"""FEELVOS: distances of embeddings to the first and the previous frame guide a small head.

`method` holds the extractor, the decoder and the method; `target` and `memory` the state of a stream;
`xception` the backbone, `networks` what follows it. `light` is a small form on EfficientNet-Lite0.
"""

from streamvos.methods.feelvos.method import FEELVOS
from streamvos.methods.feelvos.options import FEELVOSNetwork, FEELVOSOptions

__all__ = ["FEELVOS", "FEELVOSNetwork", "FEELVOSOptions"]
