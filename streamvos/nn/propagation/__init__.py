"""Carries labels from reference frames to a target frame by affinity attention.

Every cell j of the target looks at the cells i of n reference frames and takes the mean of their labels,
weighted by the similarity of their features and by their distance:

    label_j = sum_i w_ij label_i,    w_ij ~ exp(temperature * f_i . f_j) * exp(-d_ij^2 / sigma^2)

(Zhang et al., "A Transductive Approach for Video Object Segmentation", CVPR 2020, equations 4 to 6). At 480p
with nine references the weights are a matrix of 57780 x 6420, 1.5 GB. It is never stored: `tiles` form pieces
that stay in the cache, and on a GPU `kernels` form pieces that stay in registers.

    options = PropagationOptions(temperature=14.0, spatial_prior="none", top_k=10, radius=15)
    soft = propagate(query, keys, labels, sigmas=(), grid=(60, 107), options=options)  # (L, 60, 107)
"""

from streamvos.nn.propagation.options import PropagationOptions
from streamvos.nn.propagation.propagate import propagate

__all__ = ["PropagationOptions", "propagate"]
