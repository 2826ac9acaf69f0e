"""FEELVOS: distances of embeddings to the first and the previous frame guide a small head.

`method` holds the extractor, the target, the decoder and the method; `memory` the state of a stream;
`xception` the backbone, `networks` what follows it.
"""

from streamvos.methods.feelvos.method import FEELVOS
from streamvos.methods.feelvos.options import FEELVOSNetwork, FEELVOSOptions

__all__ = ["FEELVOS", "FEELVOSNetwork", "FEELVOSOptions"]
