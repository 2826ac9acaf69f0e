"""How labels travel, and whether what is to travel fits together.

PropagationOptions(temperature=14.0, spatial_prior="none", top_k=10, radius=24, precision="bfloat16")
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from streamvos.nn.kernels.choice import Kernel
from streamvos.types import InputError

SpatialPrior = Literal["authors", "paper", "none"]
Precision = Literal["float32", "bfloat16"]

COMPUTE: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Precision -> the dtype in which products are formed."""


@dataclass(frozen=True)
class PropagationOptions:
    """How labels travel.

    Attributes:
        temperature: multiplies the dot products. The authors use 1 on features that are not normalized.
        spatial_prior: where exp(-d^2 / sigma^2) enters. "authors": the softmax is over appearance alone and
            the prior multiplies its result, so that the weights of a target sum to less than 1. "paper": the
            prior is part of the softmax (equation 6). "none": it does not enter.
        top_k: keep only the k largest similarities of a target over all its references (with "paper", the
            prior counts) and let the softmax be over those; None keeps all.
        radius: a target looks only at cells at most so many rows and columns away; None: everywhere.
        precision: in which the products of features are formed and rounded; sums are in float32 always.
            The kernels of a GPU do not round the products.
        kernel: "triton" runs kernels of our own and raises where they cannot run, "tiles" runs torch's
            operations, "auto" the kernels on a GPU where they can be used, else tiles.

    Raises:
        InputError: a value out of its range.
    """

    temperature: float = 1.0
    spatial_prior: SpatialPrior = "authors"
    top_k: int | None = None
    radius: int | None = None
    precision: Precision = "float32"
    kernel: Kernel = "auto"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"temperature must be finite and above 0, got {self.temperature}")
        if self.spatial_prior not in get_args(SpatialPrior):
            raise InputError(f"spatial_prior is one of {get_args(SpatialPrior)}, got {self.spatial_prior!r}")
        if self.precision not in get_args(Precision):
            raise InputError(f"precision is one of {get_args(Precision)}, got {self.precision!r}")
        if self.kernel not in get_args(Kernel):
            raise InputError(f"kernel is one of {get_args(Kernel)}, got {self.kernel!r}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, or None for all, got {self.top_k}")
        if self.radius is not None and self.radius < 0:
            raise InputError(f"radius must be at least 0, or None for everywhere, got {self.radius}")


@dataclass(frozen=True)
class Propagation:
    """One call of `propagate`, whose arguments these are, checked but for what lies in the tensors.

    Raises:
        InputError: shapes, counts or values that do not fit together.
    """

    query: Tensor
    keys: Sequence[Tensor]
    labels: Sequence[Tensor]
    sigmas: Sequence[float]
    grid: tuple[int, int]
    options: PropagationOptions
    radii: Sequence[int | None] | None = None

    def __post_init__(self) -> None:
        query, keys, labels, sigmas, radii = self.query, self.keys, self.labels, self.sigmas, self.radii
        height, width = self.grid
        if height < 1 or width < 1:
            raise InputError(f"grid is (h, w), both at least 1, got {self.grid}")
        count = height * width
        if query.ndim != 2 or query.shape[0] != count or query.shape[1] < 1:
            raise InputError(f"query of a {height} x {width} grid is ({count}, C), got {tuple(query.shape)}")
        if len(keys) == 0:
            raise InputError("no reference: keys is empty; propagation needs at least one labeled frame")
        if len(labels) != len(keys):
            raise InputError(f"each of {len(keys)} references needs its labels, got {len(labels)}")
        for name, tensors, columns in (
            ("keys", keys, query.shape[1]),
            ("labels", labels, labels[0].shape[-1] if labels[0].ndim else 0),
        ):
            for index, tensor in enumerate(tensors):
                if tuple(tensor.shape) != (count, columns) or columns < 1:
                    raise InputError(
                        f"{name}[{index}] should be ({count}, {max(columns, 1)}), got {tuple(tensor.shape)}"
                    )
        for tensor in (query, *keys, *labels):
            if not tensor.is_floating_point():
                raise InputError(f"features and labels are floating point, got {tensor.dtype}; convert first")
            if tensor.device != query.device:
                raise InputError(f"all tensors belong on {query.device} with the query, got {tensor.device}")
        if self.options.spatial_prior != "none":
            if len(sigmas) != len(keys):
                raise InputError(f"each of {len(keys)} references needs a sigma, got {len(sigmas)}")
            if not all(math.isfinite(sigma) and sigma > 0 for sigma in sigmas):
                raise InputError(f"sigmas are cells, finite and above 0, got {list(sigmas)}")
        if radii is not None:
            if len(radii) != len(keys):
                raise InputError(
                    f"radii, if given, has one entry per reference ({len(keys)}), got {len(radii)}"
                )
            if any(radius is not None and radius < 0 for radius in radii):
                raise InputError(f"each radius is at least 0, or None for everywhere, got {list(radii)}")

    @property
    def reaches(self) -> list[int | None]:
        """The radius of each reference."""
        return [self.options.radius] * len(self.keys) if self.radii is None else list(self.radii)

    @property
    def selects(self) -> bool:
        """Whether a choice is to be made among the keys."""
        return self.options.top_k is not None and self.options.top_k < len(self.keys) * len(self.query)
