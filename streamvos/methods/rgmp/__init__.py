"""RGMP: a network sees the frame, its mask before, and the frame where the object was given.

`method` holds the target, the decoder and the method; `network` the networks and how they run over scales and
masks; `canvas` padding and scales.
"""

from streamvos.methods.rgmp.method import RGMP
from streamvos.methods.rgmp.options import RGMPNetwork, RGMPOptions

__all__ = ["RGMP", "RGMPNetwork", "RGMPOptions"]
