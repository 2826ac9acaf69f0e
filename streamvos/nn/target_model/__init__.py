"""The target model of FRTM: two convolutions that are fitted to the masks of one object.

`learning` fits them, by `conjugate_gradient` on errors that `stencil` expresses on the grid of the features;
`sample_weights` says how much each remembered sample counts, in JOINT too.
"""

from streamvos.nn.target_model.conjugate_gradient import Beta, Directions
from streamvos.nn.target_model.learning import (
    LearningRule,
    Samples,
    Source,
    TargetWeights,
    draw_weights,
    learn_both,
    learn_filters,
    make_samples,
    normal_equations,
    pixel_weights,
    project,
    score,
)
from streamvos.nn.target_model.sample_weights import SampleWeights

__all__ = [
    "Beta",
    "Directions",
    "LearningRule",
    "SampleWeights",
    "Samples",
    "Source",
    "TargetWeights",
    "draw_weights",
    "learn_both",
    "learn_filters",
    "make_samples",
    "normal_equations",
    "pixel_weights",
    "project",
    "score",
]
