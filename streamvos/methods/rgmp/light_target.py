"""The state of one stream of RGMP on EfficientNet-Lite0.

target = LightTarget(LightRuns(backbone, options))
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from streamvos.methods.base import Target
from streamvos.methods.rgmp.canvas import resize
from streamvos.methods.rgmp.light import LightRuns, scaled, shrunk
from streamvos.methods.state_dicts import check_shapes, ids_of
from streamvos.nn.labels import one_hot_labels
from streamvos.types import Evidence, Features, InputError

REMEMBERED = ("shares", "cells", "recent")
"""Names of what a target remembers of every object at every scale, besides its mask."""

VISIBLE = 16
"""An object is seen in a frame if it has so many cells at stride 4; other frames are not remembered, so that
one that comes back is found by how it looked last."""


class LightTarget(Target):
    """The state of one stream, per object: its reference, its soft mask of the frame before, and
    cells of the last frame in which it was seen."""

    def __init__(self, runs: LightRuns):
        self._runs = runs
        self._object_ids: tuple[int, ...] = ()
        self._size: tuple[int, int] | None = None
        self._previous = torch.empty(0)  # (K, h, w), stride 4
        self._shares: list[torch.Tensor] = []  # per scale, see `LightRuns.refer`; likewise:
        self._cells: list[torch.Tensor] = []
        self._recent: list[torch.Tensor] = []

    @property
    def object_ids(self) -> tuple[int, ...]:
        return self._object_ids

    @torch.no_grad()
    def annotate(
        self,
        features: Features,
        label_map: torch.Tensor,
        object_ids: tuple[int, ...],
        named: tuple[int, ...] | None = None,
        probabilities: torch.Tensor | None = None,
    ) -> None:
        object_ids = tuple(object_ids)
        new, _ = self.new_and_kept(object_ids, named)
        starts = len(new) == len(object_ids)
        if not starts:
            self._check_size(features)
        given = one_hot_labels(label_map, object_ids, shrunk(features.size))[1:]  # (K, h, w)
        shares, cells = self._runs.refer(features, given[[object_ids.index(i) for i in new]])
        recent = cells
        if not starts:  # those that stay come behind the fresh ones
            kept = len(new)
            rows = [new.index(i) if i in new else kept + self._object_ids.index(i) for i in object_ids]
            pairs = ((shares, self._shares), (cells, self._cells), (recent, self._recent))
            shares, cells, recent = (
                [torch.cat(pair)[rows] for pair in zip(*both, strict=True)] for both in pairs
            )
        self._shares, self._cells, self._recent = shares, cells, recent
        self._object_ids, self._size = object_ids, features.size
        self._previous = given if probabilities is None else _masks(probabilities, features.size)

    @torch.no_grad()
    def read(self, features: Features) -> Evidence:
        if not self._object_ids:
            raise InputError("no mask to propagate yet; annotate a frame first")
        self._check_size(features)
        logits = self._runs(features, self._previous, self._shares, self._cells, self._recent)
        return Evidence({"logits": logits}, self._object_ids)

    @torch.no_grad()
    def write(self, features: Features, probabilities: torch.Tensor) -> None:
        self._check_size(features)
        self._previous = _masks(probabilities, features.size)
        fresh = self._runs.remember(features, self._previous)
        pairs = zip(fresh, self._recent, strict=True)
        self._recent = [where_seen(self._previous, *pair) for pair in pairs]

    @torch.no_grad()
    def forget(self, object_id: int) -> None:
        self.check_followed(object_id)
        kept = [row for row, i in enumerate(self._object_ids) if i != object_id]
        if not kept:
            self._forget_all()
            return
        self._object_ids = tuple(self._object_ids[row] for row in kept)
        self._previous = self._previous[kept]
        self._shares, self._cells, self._recent = (
            [tensor[kept] for tensor in some] for some in (self._shares, self._cells, self._recent)
        )

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = {"object_ids": torch.tensor(self._object_ids, dtype=torch.int64)}
        if self._object_ids:
            state |= {"previous": self._previous, "size": torch.tensor(self._size, dtype=torch.int64)}
            for k, remembered in enumerate(zip(self._shares, self._cells, self._recent, strict=True)):
                state |= {f"{name}.{k}": x for name, x in zip(REMEMBERED, remembered, strict=True)}
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        ids = ids_of(state, "RGMP")
        if not ids:
            self._forget_all()
            return
        size = state.get("size")
        if size is None or size.shape != (2,) or int(size.min()) < 1:
            raise InputError("the state lacks the size of its frames")
        height, width = (int(side) for side in size)
        shape, scales = self._runs.options.light_network, self._runs.options.scales
        shapes: dict[str, tuple[int, ...]] = {"previous": (len(ids), *shrunk((height, width)))}
        for k, scale in enumerate(scales):
            size_there = scaled((height, width), scale)
            shapes[f"shares.{k}"] = (len(ids), 2 * (shape.scores - 1), *shrunk(size_there, 16))
            shapes[f"cells.{k}"] = shapes[f"recent.{k}"] = (len(ids), 2 * shape.keys, *shrunk(size_there, 32))
        check_shapes(state, shapes)
        wrong = [name for name in shapes if state[name].dtype != torch.float32]
        if wrong:
            raise InputError(f"the state's {wrong[0]} is {state[wrong[0]].dtype}, expected torch.float32")
        self._object_ids, self._size, self._previous = ids, (height, width), state["previous"]
        self._shares, self._cells, self._recent = (
            [state[f"{name}.{k}"] for k in range(len(scales))] for name in REMEMBERED
        )

    def _forget_all(self) -> None:
        self._object_ids, self._size, self._previous = (), None, torch.empty(0)
        self._shares, self._cells, self._recent = [], [], []

    def _check_size(self, features: Features) -> None:
        if self._size != features.size:
            raise InputError(f"the frames so far were {self._size} (H, W), this one is {features.size}")


def where_seen(masks: torch.Tensor, fresh: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Of every object the fresh cells (K, C, h, w) if masks (K, H, W) show it, otherwise those before."""
    seen = (masks > 0.5).sum((1, 2)) >= VISIBLE
    return torch.where(seen[:, None, None, None], fresh, before)


def _masks(probabilities: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(K, h, w) soft masks at a quarter of the size, from (1 + K, H, W)."""
    return resize(probabilities[None, 1:], shrunk(size))[0].contiguous()
