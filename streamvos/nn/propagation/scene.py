"""What all tiles of one propagation share, and the similarities of a tile.

How the tiles are made fast, in the order of what it brings:
  - keys lie as (h*w, C), so a window of rows is a view and `keys @ query.T` is the product that BLAS likes;
  - whole tiles run in parallel, not single operations (`workers`);
  - powers are of two, log2(e) being part of the temperature: `exp2` costs a third of `exp`;
  - a bias inside the product subtracts each target's similarity to its own place in the last reference. The
    similarities that matter are then small numbers, which bfloat16 holds well, and where |q| |k| proves that
    no other can be so much larger as to overflow, no row maximum is needed;
  - the k best of 10^4 similarities are found in two exact steps: the k best groups by their maxima, then the
    k best within those.

    scene = Scene(call, references)
    fill = scene.similarities(tile, room=window.cells)
    fill(window, reference, None, out)                          # (window.cells, tile.cells), in bits
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from streamvos.nn.propagation.options import COMPUTE, Propagation
from streamvos.nn.tiling import LOG2_E, Box, log_prior


class Scene:
    """What all tiles of one call share, made once: similarities are in bits from here on."""

    def __init__(self, call: Propagation, references: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        query, options = call.query, call.options
        self.grid, self.options = call.grid, options
        self.device = query.device
        self.kind = "cpu" if query.device.type == "cpu" else "gpu"
        self.dtype = COMPUTE[options.precision]
        self.keys = [key for key, _, _ in references]
        self.labels = [label for _, _, label in references]
        self.radii = call.reaches
        self.sigmas: list[float | None] = [None] * len(references)
        if options.spatial_prior != "none":
            self.sigmas = [float(sigma) for sigma in call.sigmas]
        # (n*h*w, L), or None where no choice is to be made among the keys
        self.shared_labels: Tensor | None = torch.cat(self.labels) if call.selects else None

        # Beyond 1e30 bits a softmax is a maximum; the limit keeps the products themselves finite.
        longest = torch.stack([norm for _, norm, _ in references]).amax()
        norms = norms_of(query.float())
        scale = torch.clamp(1e30 / (norms.amax() * longest), max=min(options.temperature * LOG2_E, 1e38))
        self.query = (query.float() * scale).to(self.dtype)
        # Subtracting any number that is the same for all keys of a target leaves its softmax as it is.
        self.bias = -(self.query * self.keys[-1]).sum(1, dtype=torch.float32).to(self.dtype)
        # Bits by which another key may lie above the cell's own place: Cauchy-Schwarz, and 1 % for rounding.
        self.excess = norms * scale * longest * 1.01 + self.bias.float()

    def groups(self) -> dict[tuple[float | None, int | None], list[int]]:
        """The references by (sigma, radius): those of a group share window and prior."""
        groups: dict[tuple[float | None, int | None], list[int]] = {}
        for index, key in enumerate(zip(self.sigmas, self.radii, strict=True)):
            groups.setdefault(key, []).append(index)
        return groups

    def worst_excess(self, tile: Box) -> float:
        """Bound on the shifted similarities of a tile; infinite on a GPU, which would have to wait for it."""
        if self.device.type != "cpu":
            return math.inf
        return float(tile.take(self.excess, self.grid).amax())

    def similarities(self, tile: Box, room: int) -> Callable[[Box, int, Tensor | None, Tensor], Tensor]:
        """What fills `out`, (window.cells, tile.cells) float32, with shifted similarities in bits.

        `room` is the largest window in cells. The function returned takes the window, the reference, what is
        to be added (or None) and `out`, which it returns.
        """
        queries = tile.take(self.query, self.grid).t()
        bias = tile.take(self.bias, self.grid)
        narrow = None
        if self.dtype != torch.float32:
            narrow = torch.empty(room, tile.cells, dtype=self.dtype, device=self.device)

        def fill(window: Box, reference: int, extra: Tensor | None, out: Tensor) -> Tensor:
            keys = window.take(self.keys[reference], self.grid)
            if narrow is None:
                torch.addmm(bias, keys, queries, out=out)
                return out if extra is None else out.add_(extra)
            product = torch.addmm(bias, keys, queries, out=narrow[: window.cells])
            return out.copy_(product) if extra is None else torch.add(product, extra, out=out)

        return fill

    def log_weight(self, window: Box, tile: Box, sigma: float | None, radius: int | None) -> Tensor | None:
        """What is added to the similarities before the softmax, in bits; None where it is 0 everywhere."""
        inside = sigma if self.options.spatial_prior == "paper" else None
        if inside is None and radius is None:
            return None
        return log_prior(window, tile, inside, radius, self.device)


def norms_of(features: Tensor) -> Tensor:
    """Euclidean norm of each row, float32."""
    return torch.linalg.vector_norm(features, dim=1).float()
