"""FEELVOS: distances of embeddings to the first and the previous frame guide a small head.

`method` holds the extractor, the target, the decoder and the method; `memory` the state of a stream;
`embedding_layer` and `dynamic_head` its own networks.
"""

from streamvos.methods.feelvos.method import FEELVOS
from streamvos.methods.feelvos.options import FEELVOSNetwork, FEELVOSOptions

__all__ = ["FEELVOS", "FEELVOSNetwork", "FEELVOSOptions"]
