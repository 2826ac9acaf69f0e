"""The target model of FRTM: two convolutions fitted to the masks of one object.

`learning` fits them, by `conjugate_gradient` on errors that `stencil` expresses on the grid of the features.
`sample_weights` weighs the remembered samples, in JOINT too.
"""
