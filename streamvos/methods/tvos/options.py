"""The options of TVOS; docs/methods.md, TVOS, says where paper and code differ."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from streamvos.methods.base import MethodOptions, Options
from streamvos.methods.tvos.history import Schedule, authors_schedule, keep_first, paper_schedule
from streamvos.nn.precision import PrecisionChoice, resolve_precision
from streamvos.nn.propagation import PropagationOptions

LEVELS = ("stage6", "stage5", "stage3", "stage2")
"""The stages that a refiner can look at, of strides 32, 16, 8 and 4."""

EFFICIENTNET: dict[str, Any] = {
    "backbone": "efficientnet-lite0",
    "network": {"embedding": 128},
    "refiner": (48, 32, 16),
    "schedule": "paper",
    "references": 7,
    "keep_first": True,
    "history_labels": "soft",
    "temperature": 14.0,
    "spatial_prior": "none",
    "top_k": 10,
    "radius": 24,
    "precision": "auto",
    "uncertain_below": 0.8,
    "lost_below": 0.6,
    "largest_growth": 3.0,
    "search_margin": 0.25,
}
"""Options of the bundled weights, chosen on validation sequences (docs/results.md)."""


class TVOSNetwork(Options):
    """Shape of the embedding network. The defaults are the authors' ResNet-50.

    Attributes:
        depth: ResNet 18, 34, 50 or 101.
        stages: how many of the four stages are used.
        planes: width of each stage. The authors halve the last one.
        embedding: channels of the 1x1 convolution at the end; None = none, the last stage's output is
            the embedding (the authors' ResNet-18).
        normalize: divide every embedding by its L2 norm. The authors do not.
    """

    depth: Literal[18, 34, 50, 101] = 50
    stages: int = Field(4, ge=2, le=4)
    planes: tuple[int, ...] = (64, 128, 256, 256)
    embedding: int | None = Field(256, ge=1)
    normalize: bool = False


class TVOSOptions(MethodOptions):
    """Everything about TVOS that is not a weight. The defaults are the authors'.

    Attributes:
        backbone: "resnet" is the authors'; "efficientnet-lite0" is that of the bundled weights
            (`streamvos.methods.tvos.light`).
        network: see `TVOSNetwork`; on the other backbone only `embedding` counts.
        schedule: which past frames are references, see `streamvos.methods.tvos.history`.
        references: n, how many.
        span: R, over how many frames the sparse ones are spread.
        keep_first: the annotated frame is always a reference. The authors let it go after 44 frames.
        history_labels: "hard" remembers the most likely label of every cell (the authors), "soft" the
            prediction itself (eq. 4 of the paper).
        temperature: multiplies the similarities.
        spatial_prior: "authors" multiplies after the softmax, "paper" is eq. 6, "none" leaves it out.
        sigma_dense: sigma of recent references, in cells.
        sigma_sparse: sigma of distant references, in cells.
        sigma_sparse_from: the first target frame at which distant references get `sigma_sparse`.
        dense: how many references count as recent.
        top_k: only the k most similar cells of all references vote; None = all (the authors).
        radius: a cell sees only cells at most so far away, in cells, in rows and in columns; None = all.
        precision: "bfloat16" runs the network under autocast and rounds the similarities; "auto" does so
            where the device has instructions for it. The authors' is "float32".
        refiner: efficientnet-lite0: widths of the network that refines the labels, for the last so many of
            the levels `LEVELS`; None = labels are enlarged bilinearly, as the authors do.
        blocks: efficientnet-lite0: how many blocks of 2 x 2 cells a cell looks at (`nn.propagation.blocks`).
        first_radius: efficientnet-lite0: the radius for what the refiner sees of the annotated frame alone;
            None lets it find objects that return elsewhere.
    """

    backbone: Literal["resnet", "efficientnet-lite0"] = "resnet"
    network: TVOSNetwork = TVOSNetwork()
    schedule: Literal["authors", "paper"] = "authors"
    references: int = Field(9, ge=1, le=254)
    span: int = Field(40, ge=1, le=1000)
    keep_first: bool = False
    history_labels: Literal["hard", "soft"] = "hard"
    temperature: float = Field(1.0, gt=0)
    spatial_prior: Literal["authors", "paper", "none"] = "authors"
    sigma_dense: float = Field(8.0, gt=0)
    sigma_sparse: float = Field(21.0, gt=0)
    sigma_sparse_from: int = Field(16, ge=1)
    dense: int = Field(4, ge=1)
    top_k: int | None = Field(None, ge=1)
    radius: int | None = Field(None, ge=0)
    precision: PrecisionChoice = "float32"
    refiner: tuple[int, ...] | None = Field(None, min_length=1, max_length=len(LEVELS))
    blocks: int = Field(12, ge=1, le=256)
    first_radius: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _must_be_possible(self) -> TVOSOptions:
        self.choose(10_000)
        if self.refiner is not None and (self.backbone == "resnet" or min(self.refiner) < 1):
            raise ValueError("a refiner has widths of at least 1, and needs backbone='efficientnet-lite0'")
        return self

    @property
    def levels(self) -> tuple[str, ...]:
        """The stages of the backbone that the refiner looks at, the deepest first."""
        return LEVELS[-len(self.refiner) :] if self.refiner else ()

    @property
    def choose(self) -> Schedule:
        """The schedule with its numbers filled in."""
        schedule: Schedule = partial(authors_schedule, count=self.references, span=self.span)
        if self.schedule == "paper":
            schedule = partial(paper_schedule, count=self.references, dense=self.dense, span=self.span)
        return keep_first(schedule) if self.keep_first else schedule

    @property
    def reach(self) -> int:
        """How many frames back the oldest reference may lie, frame 0 apart."""
        return self.span + 4 if self.schedule == "authors" else self.span

    def propagation(self, device: torch.device) -> PropagationOptions:
        """The part that concerns one step of propagation."""
        return PropagationOptions(
            temperature=self.temperature,
            spatial_prior=self.spatial_prior,
            top_k=self.top_k,
            radius=self.radius,
            precision=resolve_precision(self.precision, device),
        )
