"""TVOS: labels travel from past frames to the present one along feature similarity.

`method` holds the network, the target and the method; `history` the ring buffer of past frames and the
schedules that choose references from it.
"""

from streamvos.methods.tvos.method import TVOS
from streamvos.methods.tvos.options import TVOSNetwork, TVOSOptions

__all__ = ["TVOS", "TVOSNetwork", "TVOSOptions"]
