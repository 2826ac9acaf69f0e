"""How far every cell of a frame is from the nearest cell of each object, in the space of embeddings.

Global matching looks at all reference cells of an object, local matching at those of the previous frame
within a window. Both map the squared distance s to 1 - 2 / (1 + exp(s)) = tanh(s / 2), and an object without
a candidate is at distance 1 exactly (Voigtlaender et al., "FEELVOS", CVPR 2019, equations 1 to 3).

    reference = sort_reference(first_embedding, first_labels, ids=(0, 3, 7))      # once per annotation
    global_distances(embedding, reference)                                        # (3, h*w)
    channels = channel_table((0, 3, 7))[labels]                                   # 0, 1, 2, or 3 for others
    local_distances(embedding, previous, channels, objects=3, grid=(120, 214), window=15)

At 480p the global distances are 25,680 x 25,680 and the local ones need 961 neighbors of each of 25,680
cells. Neither is ever held:
  - s = |x|^2 + |y|^2 - 2 x.y, so tiles of cells meet chunks of candidates in one matrix product that stays in
    the cache, and only minima leave it. The map is monotone, so it comes after the minimum;
  - candidates are sorted by object: a minimum over consecutive columns per object, whatever their number;
  - a window is matched as a whole with a small tile of cells, and what is too far away gets infinity: twice
    the products, but in the form that processors are fast at, and nothing is copied 961 times;
  - on a GPU, kernels of our own (`streamvos.nn.kernels`) keep the products in registers.

That form of s cancels where embeddings have a common offset (norms of 1e4 leave errors of 4e-3). Distances
do not change when both sides move, so the mean of the reference is subtracted first; products are in the
dtype of the embeddings, never in half precision. On CUDA leave `torch.set_float32_matmul_precision` at its
default: TensorFloat-32 has the same flaw.
"""

from streamvos.nn.matching.candidates import Reference, channel_table, sort_reference, squash
from streamvos.nn.matching.everywhere import global_distances
from streamvos.nn.matching.nearby import local_distances

__all__ = [
    "Reference",
    "channel_table",
    "global_distances",
    "local_distances",
    "sort_reference",
    "squash",
]
