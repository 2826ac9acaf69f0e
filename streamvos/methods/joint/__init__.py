"""JOINT: filters learned on the spot and attention to remembered windows, decoded together.

`method` holds the extractor, the decoder and the method; `target` and `memory` the state of a stream;
`network`, `few_shot` and `transformer` the networks; `crops` the windows and how they move.
"""

from streamvos.methods.joint.method import JOINT
from streamvos.methods.joint.options import EFFICIENTNET, JOINTNetworkOptions, JOINTOptions

__all__ = ["EFFICIENTNET", "JOINT", "JOINTNetworkOptions", "JOINTOptions"]
