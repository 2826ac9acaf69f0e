"""Carries labels from reference frames to a target frame by affinity attention.

Every cell j of the target looks at the cells i of n reference frames and takes the mean of their labels,
weighted by how alike their features are and how close they lie:

    label_j = sum_i w_ij label_i,    w_ij ~ exp(temperature * f_i . f_j) * exp(-d_ij^2 / sigma^2)

(Zhang et al., "A Transductive Approach for Video Object Segmentation", CVPR 2020, equations 4 to 6). At 480p
with nine references the weights are a matrix of 57780 x 6420, 1.5 GB. Here it never exists: tiles of target
cells meet chunks of reference cells small enough that all passes over their product stay in the cache, or,
in kernels, in registers.

    options = PropagationOptions(temperature=14.0, spatial_prior="none", top_k=10, radius=15)
    soft = propagate(query, keys, labels, sigmas=(), grid=(60, 107), options=options)  # (L, 60, 107)

`propagate` is the door, `options` say how labels travel. The work is done in tiles of torch's operations
(`scene`, `softmax`, `selection`), which every device can run, and on a GPU by kernels of our own
(`kernels`), where Triton is there to compile them.
"""

from streamvos.nn.propagation.options import Precision, PropagationOptions, SpatialPrior
from streamvos.nn.propagation.propagate import propagate
from streamvos.nn.propagation.softmax import NEGLIGIBLE

__all__ = ["NEGLIGIBLE", "Precision", "PropagationOptions", "SpatialPrior", "propagate"]
