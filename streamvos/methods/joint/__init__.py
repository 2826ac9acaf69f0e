"""JOINT: filters learned on the spot and attention to remembered windows, decoded together.

`method` holds options, extractor, decoder and the method; `target` and `memory` the state of a stream;
`network` the networks; `crops` the windows and how they move; `label_encoder` what masks are turned into.
"""

from streamvos.methods.joint.method import JOINT, JOINTNetworkOptions, JOINTOptions

__all__ = ["JOINT", "JOINTNetworkOptions", "JOINTOptions"]
