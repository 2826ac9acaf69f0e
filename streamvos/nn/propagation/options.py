"""Options and checked arguments of propagation.

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
from streamvos.nn.precision import Precision
from streamvos.types import InputError

SpatialPrior = Literal["authors", "paper", "none"]


@dataclass(frozen=True)
class PropagationOptions:
    """How labels are propagated.

    Attributes:
        temperature: multiplies the dot products. The authors use 1 on features that are not normalized.
        spatial_prior: where exp(-d^2 / sigma^2) is applied. "authors": the softmax is over appearance alone
            and the prior multiplies its result, so the weights of a target sum to less than 1. "paper": the
            prior is part of the softmax (equation 6). "none": there is no prior.
        top_k: the softmax is over the k largest similarities of a target over all its references (with
            "paper", including the prior); None = over all.
        radius: largest distance in rows and columns at which a target looks at cells; None = no limit.
        precision: dtype in which the products of features are formed and rounded; sums are always in float32.
            The kernels of a GPU do not round the products.
        kernel: "triton" runs our Triton kernels and raises where they cannot run, "tiles" runs torch's
            operations, "auto" the kernels on a GPU where they can run, else tiles.

    Raises:
        InputError: a value out of its range.
    """

    temperature: float = 1.0
    spatial_prior: SpatialPrior = "authors"
    top_k: int | None = None
    radius: int | None = None
    precision: Precision = "float32"
    kernel: Kernel = "auto"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of `precision`."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"temperature must be finite and above 0, got {self.temperature}")
        for name, known in (("spatial_prior", SpatialPrior), ("precision", Precision), ("kernel", Kernel)):
            if getattr(self, name) not in get_args(known):
                raise InputError(f"{name} is one of {get_args(known)}, got {getattr(self, name)!r}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, or None for all, got {self.top_k}")
        if self.radius is not None and self.radius < 0:
            raise InputError(f"radius must be at least 0, or None for everywhere, got {self.radius}")


@dataclass(frozen=True)
class Propagation:
    """The arguments of one call of `propagate`, checked except for the values of the tensors."""

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
        prior = self.options.spatial_prior != "none"
        for name, given in (
            ("labels", labels),
            ("sigmas", sigmas if prior else keys),
            ("radii", keys if radii is None else radii),
        ):
            if len(given) != len(keys):
                raise InputError(f"{name} has one entry per reference ({len(keys)}), got {len(given)}")
        label_count = labels[0].shape[-1] if labels[0].ndim else 0
        for name, tensors, columns in (("keys", keys, query.shape[1]), ("labels", labels, label_count)):
            for index, tensor in enumerate(tensors):
                if tuple(tensor.shape) != (count, columns) or columns < 1:
                    raise InputError(
                        f"{name}[{index}] should be ({count}, {max(columns, 1)}), got {tuple(tensor.shape)}"
                    )
        for tensor in (query, *keys, *labels):
            if not tensor.is_floating_point():
                raise InputError(f"features and labels are floating point, got {tensor.dtype}; convert first")
            if tensor.device != query.device:
                raise InputError(f"all tensors must be on {query.device} like the query, got {tensor.device}")
        if prior and not all(math.isfinite(sigma) and sigma > 0 for sigma in sigmas):
            raise InputError(f"sigmas are in cells, finite and above 0, got {list(sigmas)}")
        if any(radius is not None and radius < 0 for radius in radii or ()):
            raise InputError(f"each radius is at least 0, or None for everywhere, got {list(radii or ())}")

    @property
    def reaches(self) -> list[int | None]:
        """The radius of each reference."""
        return [self.options.radius] * len(self.keys) if self.radii is None else list(self.radii)

    @property
    def selects(self) -> bool:
        """Whether `top_k` leaves out any key."""
        return self.options.top_k is not None and self.options.top_k < len(self.keys) * len(self.query)
