"""Running minima per object over blocks of products.

best = Minima(objects=2, tile=queries, indices=False)
best.see(0, products, cells)
best.values                                              # (2, T)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from streamvos.nn.matching.candidates import NOBODY


class Minima:
    """The smallest product of every cell of a tile per object, and where asked, whose it is."""

    def __init__(self, objects: int, tile: Tensor, indices: bool):
        self.values = tile.new_full((objects, len(tile)), math.inf)
        self.cells = torch.full((objects if indices else 0, len(tile)), NOBODY, device=tile.device)

    def see(self, k: int, products: Tensor, cells: int | Tensor) -> None:
        """Take note of more candidates of object k.

        Args:
            products: (T, n) with n >= 1.
            cells: (n,) which candidates those are, or the number of the first of consecutive ones.
        """
        if not len(self.cells):
            torch.minimum(self.values[k], products.amin(1), out=self.values[k])
            return
        smallest, place = products.min(1)
        found = cells[place] if isinstance(cells, Tensor) else place + cells
        # equal, not only smaller, would let a candidate at infinity in
        better = smallest < self.values[k]
        self.cells[k] = torch.where(better, found, self.cells[k])
        self.values[k] = torch.where(better, smallest, self.values[k])
