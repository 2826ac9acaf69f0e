"""TVOS: labels travel from past frames to the present one along feature similarity.

`method` holds the authors' network and the method; `light` its form on EfficientNet-Lite0; `target` the
state of a stream; `history` the ring buffer of past frames and the schedules that choose references from it.
"""

from streamvos.methods.tvos.method import TVOS
from streamvos.methods.tvos.options import EFFICIENTNET, TVOSNetwork, TVOSOptions

__all__ = ["EFFICIENTNET", "TVOS", "TVOSNetwork", "TVOSOptions"]
