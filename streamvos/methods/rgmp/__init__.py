"""RGMP: a network sees the frame, its mask before, and the frame where the object was given.

`method` holds the target, the decoder and the method; `network` the networks and how they run over scales and
masks; `canvas` padding and scales; `light` all of that on EfficientNet-Lite0.
"""

from streamvos.methods.rgmp.method import RGMP
from streamvos.methods.rgmp.options import EFFICIENTNET, LightNetwork, RGMPNetwork, RGMPOptions

__all__ = ["EFFICIENTNET", "RGMP", "LightNetwork", "RGMPNetwork", "RGMPOptions"]
