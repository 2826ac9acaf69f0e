"""3x3 convolutions with fewer multiplications, for processors.

An output tile of m x m pixels needs 9 m^2 multiplications per pair of channels directly, and (m + 2)^2 when
input and kernel are first carried to the values of polynomials at m + 2 points (Winograd's minimal
filtering): 2.25 times fewer for m = 2, 4 times fewer for m = 4. The way there and back is two small matrix
products, over strips of tiles so that what lies between stays in the cache.

    convolution = Convolution3x3(256, 256, tile=4)
    y = convolution(x)        # as nn.Conv2d(256, 256, 3, padding=1), whose state dict it has

Rounding grows with m: with float32 1e-6 of the output's deviation for m = 4 (direct: 3e-7); with bfloat16
0.5 % for m = 2 and 2 % for m = 4 (direct: 0.3 %).

Source: Lavin, Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016; construction by
polynomials: Blahut, Fast Algorithms for Signal Processing, section 5.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import nn

Tile = Literal[0, 2, 4]
"""Side of the output tiles in pixels; 0 = convolve directly."""

POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 1.0, -1.0, 0.5, -2.0)}
"""Where polynomials are evaluated, infinity apart. These five round less than (0, 1, -1, 2, -2)."""

STRIP = 432
"""Tiles handled at a time: some megabytes for 256 channels."""

SMALLEST = 256
"""Maps of fewer cells are convolved directly: the kernels, which grow, would cost more than they save."""


@lru_cache
def transforms(tile: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices of one dimension: out = A (G kernel * B signal).

    With n = tile + 2: A (tile, n) and G (n, 3) evaluate polynomials of degree tile - 1 and 2 at the points,
    the last row or column being infinity; B (n, n) is what makes the identity true.
    """
    points, n = np.array(POINTS[tile]), tile + 2
    output = np.zeros((tile, n))
    output[:, :-1] = points[None] ** np.arange(tile)[:, None]
    output[-1, -1] = 1
    kernel = np.zeros((n, 3))
    for j, point in enumerate(points):
        kernel[j] = point ** np.arange(3) / np.prod(point - np.delete(points, j))
    kernel[-1, 2] = 1
    # out[i] = sum over r of kernel[r] signal[i + r] must hold for every kernel and signal
    products = (output[:, None] * kernel.T[None]).reshape(3 * tile, n)
    shifts = np.stack([np.eye(n)[i + r] for i in range(tile) for r in range(3)])
    signal = np.linalg.lstsq(products, shifts, rcond=None)[0]
    return output, kernel, signal


def transform_kernels(weight: torch.Tensor, tile: int) -> torch.Tensor:
    """(O, C, 3, 3) kernels at the points: (n * n, C, O) in float64, n = tile + 2."""
    kernel = torch.from_numpy(transforms(tile)[1]).to(weight.device)
    points = torch.einsum("ai,ocij,bj->abco", kernel, weight.double(), kernel)
    return points.reshape(-1, weight.shape[1], weight.shape[0])


def convolve(x: torch.Tensor, kernels: torch.Tensor, tile: int) -> torch.Tensor:
    """3x3 convolution with zero padding 1 and stride 1.

    Args:
        x: (B, C, H, W) float, fastest in channels_last.
        kernels: (n * n, C, O) of x's dtype, from `transform_kernels`.
        tile: with which they were made.

    Returns:
        (B, O, H, W) in channels_last. Without gradients: the strips share their memory.
    """
    (batch, inputs, height, width), outputs, n = x.shape, kernels.shape[2], tile + 2
    rows, columns = -(-height // tile), -(-width // tile)
    padded = x.new_zeros((batch, rows * tile + 2, columns * tile + 2, inputs))
    padded[:, 1 : height + 1, 1 : width + 1] = x.permute(0, 2, 3, 1)
    of_image, of_row, of_column, _ = padded.stride()
    patches = padded.as_strided(
        (n, n, batch, rows, columns, inputs),
        (of_row, of_column, of_image, tile * of_row, tile * of_column, 1),
    )
    result = x.new_empty((batch, rows, tile, columns, tile, outputs))
    output, _, signal = transforms(tile)
    there = torch.from_numpy(np.kron(signal, signal)).to(x)
    back = torch.from_numpy(np.kron(output, output)).to(x)
    strip = max(1, min(rows, STRIP // columns))
    scratch = x.new_empty((2, n * n * strip * columns * max(inputs, outputs)))
    for image in range(batch):
        for top in range(0, rows, strip):
            part = slice(top, min(top + strip, rows))
            shape = (part.stop - top, columns)
            tiles = shape[0] * shape[1]
            gathered = scratch[0, : n * n * tiles * inputs].view(n, n, *shape, inputs)
            gathered.copy_(patches[:, :, image, part])
            evaluated = scratch[1, : n * n * tiles * inputs].view(n * n, -1)
            torch.mm(there, gathered.view(n * n, -1), out=evaluated)
            products = scratch[0, : n * n * tiles * outputs].view(n * n, tiles, outputs)
            torch.bmm(evaluated.view(n * n, tiles, inputs), kernels, out=products)
            convolved = scratch[1, : tile * tile * tiles * outputs].view(tile * tile, -1)
            torch.mm(back, products.view(n * n, -1), out=convolved)
            placed = convolved.view(tile, tile, *shape, outputs).permute(2, 0, 3, 1, 4)
            result[image, part] = placed
    whole = result.view(batch, rows * tile, columns * tile, outputs)
    return whole[:, :height, :width].permute(0, 3, 1, 2)


class Convolution3x3(nn.Conv2d):
    """3x3, stride 1, zero padding 1, with a bias; by Winograd's method where that is faster.

    That is on processors, on maps that are not small, and while no gradient is asked for. The transformed
    kernels are kept until the weights change.

    Args:
        inputs, outputs: channels.
        tile: see `Tile`.
    """

    def __init__(self, inputs: int, outputs: int, tile: Tile = 0):
        super().__init__(inputs, outputs, 3, padding=1)
        self.tile = tile
        self._kept: tuple[object, torch.Tensor, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, h, w) to (B, outputs, h, w)."""
        small = x.shape[-2] * x.shape[-1] < SMALLEST
        if not self.tile or small or torch.is_grad_enabled() or x.device.type != "cpu":
            return super().forward(x)
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        y = convolve(x, self._kernels(x.dtype), self.tile)
        assert self.bias is not None
        return y.add_(self.bias.to(y.dtype)[:, None, None])

    def _kernels(self, dtype: torch.dtype) -> torch.Tensor:
        weight = self.weight.detach()
        version = -1 if weight.is_inference() else weight._version
        key = (weight.data_ptr(), weight.dtype, version, dtype)
        if self._kept is None or self._kept[0] != key:
            # the weights are kept too, so that no others can come to lie at the same address
            self._kept = (key, weight, transform_kernels(weight, self.tile).to(dtype))
        return self._kept[2]
