"""The state of one stream of TVOS.

target = method.target()
target.annotate(features, label_map, (1, 2))
labels = target.read(features)["labels"]        # (1 + K, h, w), at the resolution of the cells
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from streamvos.methods.base import Target
from streamvos.methods.state_dicts import ids_of, part_of, with_prefix
from streamvos.methods.tvos.history import History
from streamvos.methods.tvos.options import TVOSOptions
from streamvos.nn.labels import one_hot_labels
from streamvos.nn.precision import resolve_precision
from streamvos.nn.propagation import propagate
from streamvos.types import Evidence, Features, InputError


class TVOSTarget(Target):
    """The history of one stream: embeddings and labels of past frames.

    An annotation clears the history: frames remembered before it would vote against a new object or for the
    mistake that was corrected.

    Attributes:
        entries: names of what the history holds of a frame.
    """

    entries: tuple[str, ...] = ("keys", "labels")

    def __init__(self, options: TVOSOptions):
        self.options = options
        self.history = History(options.reach, options.keep_first)
        self._object_ids: tuple[int, ...] = ()
        self._read: torch.Tensor | None = None  # labels of the frame between read and write

    @property
    def object_ids(self) -> tuple[int, ...]:
        return self._object_ids

    def annotate(
        self,
        features: Features,
        label_map: torch.Tensor,
        object_ids: tuple[int, ...],
        named: tuple[int, ...] | None = None,
        probabilities: torch.Tensor | None = None,
    ) -> None:
        h, w = features["embedding"].shape[-2:]
        labels = self._given(label_map, object_ids, (h, w))  # (1 + K, h, w)
        self.history.clear()
        self._object_ids, self._read = tuple(object_ids), None
        self._remember(features, labels)

    def read(self, features: Features) -> Evidence:
        if not len(self.history):
            raise InputError("no labels to propagate yet; annotate a frame first")
        keys = self._keys(features)
        frames = self.options.choose(len(self.history))
        held = self.history[frames[0]]["keys"]
        if held.shape != keys.shape:
            raise InputError(f"the history holds keys {tuple(held.shape)}, this frame {tuple(keys.shape)}")
        h, w = features["embedding"].shape[-2:]
        labels = self._propagate(keys, frames, (h, w))
        self._read = labels
        return self._evidence(features, labels)

    def write(self, features: Features, probabilities: torch.Tensor) -> None:
        h, w = features["embedding"].shape[-2:]
        labels = self._predicted(probabilities, (h, w))
        if self.options.history_labels == "hard":
            winners = labels.argmax(0)  # (h, w)
            labels = F.one_hot(winners, len(labels)).movedim(-1, 0)  # (1 + K, h, w)
        else:
            total = labels.sum(0, keepdim=True)
            labels = labels / total.clamp_min(torch.finfo(labels.dtype).tiny)
        self._read = None
        self._remember(features, labels.float())

    def forget(self, object_id: int) -> None:
        self.check_followed(object_id)
        channel = 1 + self._object_ids.index(object_id)

        def without(labels: torch.Tensor) -> torch.Tensor:
            background = labels[..., :1] + labels[..., channel : channel + 1]
            return torch.cat([background, labels[..., 1:channel], labels[..., channel + 1 :]], dim=-1)

        self.history.edit("labels", without)
        self._object_ids = tuple(i for i in self._object_ids if i != object_id)
        self._read = None

    def state_dict(self) -> dict[str, torch.Tensor]:
        ids = torch.tensor(self._object_ids, dtype=torch.int64)
        return {"object_ids": ids, **with_prefix("history.", self.history.state_dict())}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        device = next((v.device for n, v in state.items() if n.endswith("buffer.keys")), torch.device("cpu"))
        object_ids, own = ids_of(state, "TVOS"), part_of(state, "history.")
        labels = own.get("buffer.labels")
        if labels is not None and labels.shape[-1] != 1 + len(object_ids):
            raise InputError(f"the state has {labels.shape[-1]} label channels for {len(object_ids)} objects")
        if {n for n in own if n.startswith("buffer.")} not in (set(), {f"buffer.{n}" for n in self.entries}):
            raise InputError(f"a history holds {', '.join(self.entries)}, this state has {sorted(own)}")
        self.history.load_state_dict(own, device)
        self._object_ids, self._read = object_ids, None

    def _given(self, label_map: torch.Tensor, ids: tuple[int, ...], grid: tuple[int, int]) -> torch.Tensor:
        """(1 + K, h, w) of a label map."""
        return one_hot_labels(label_map, ids, grid)

    def _predicted(self, probabilities: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(1 + K, h, w) of the decoder's (1 + K, H, W)."""
        # the prediction at the resolution of the cells is the one that was read; decoding only enlarged it
        if self._read is not None and self._read.shape[-2:] == grid:
            return self._read
        return F.interpolate(probabilities[None], grid, mode="bilinear", align_corners=False)[0]

    def _evidence(self, features: Features, labels: torch.Tensor) -> Evidence:
        return Evidence({"labels": labels}, self._object_ids)

    def _propagate(self, keys: torch.Tensor, frames: list[int], grid: tuple[int, int]) -> torch.Tensor:
        """(1 + K, h, w) for the frame with these keys, from past frames, ascending."""
        options, t = self.options, len(self.history)
        past = [self.history[frame] for frame in frames]
        recent = len(frames) - options.dense if t >= options.sigma_sparse_from else 0
        sigmas = [options.sigma_dense if k >= recent else options.sigma_sparse for k in range(len(frames))]
        return propagate(
            keys,
            [frame["keys"] for frame in past],
            [frame["labels"] for frame in past],
            sigmas,
            grid,
            options.propagation(keys.device),
        )

    def _keys(self, features: Features) -> torch.Tensor:
        """(h*w, C) in the precision of the similarities, so that nothing is converted twice."""
        return self._in_precision(features["embedding"])[0].flatten(1).t().contiguous()

    def _in_precision(self, embedding: torch.Tensor) -> torch.Tensor:
        half = resolve_precision(self.options.precision, embedding.device) == "bfloat16"
        return embedding.to(torch.bfloat16 if half else torch.float32)

    def _remember(self, features: Features, labels: torch.Tensor) -> None:
        self.history.append(keys=self._keys(features), labels=labels.flatten(1).t().contiguous())
