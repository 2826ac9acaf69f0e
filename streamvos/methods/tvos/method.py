"""TVOS: labels travel from past frames to the present one along feature similarity.

    method = TVOS(TVOSOptions())            # the authors' network and settings, random weights
    target = method.target()

There is no target model: every cell of the present frame takes the mean of the labels of cells in a few past
frames, weighted by their similarity. All objects are propagated together, as channels, so the cost hardly
depends on their number.

Source: Zhang, Wu, Peng, Lin, A Transductive Approach for Video Object Segmentation, CVPR 2020. Numbers
and defaults are those of the authors' code; where the paper differs there is an option
(docs/methods.md, TVOS).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.methods.base import Method, Target
from streamvos.methods.state_dicts import ids_of, part_of, with_prefix
from streamvos.methods.tvos.history import History
from streamvos.methods.tvos.options import TVOSNetwork, TVOSOptions
from streamvos.nn.aggregation import insert_given
from streamvos.nn.labels import one_hot_labels, resize_probabilities
from streamvos.nn.precision import PrecisionChoice, in_precision, resolve_precision
from streamvos.nn.propagation import propagate
from streamvos.nn.resnet import ImageNetNormalization, resnet
from streamvos.types import Annotation, Evidence, Features, InputError


class TVOSExtractor(nn.Module):
    """Frames to embeddings: (B, 3, H, W) float32 RGB in 0..1 -> "embedding" (B, C, ceil(H/8), ceil(W/8))."""

    def __init__(self, network: TVOSNetwork, precision: PrecisionChoice = "float32"):
        super().__init__()
        self.normalize, self.precision = network.normalize, precision
        self.backbone = resnet(
            network.depth, strides=(1, 2, 1, 1), planes=network.planes, stages=network.stages
        )
        self.last = self.backbone.names[-1]
        self.channels = self.backbone.channels[self.last]
        self.adjust_dim: nn.Module = nn.Identity()
        self.bn256: nn.Module = nn.Identity()
        if network.embedding is not None:
            self.adjust_dim = nn.Conv2d(self.channels, network.embedding, 1, bias=False)
            self.bn256 = nn.BatchNorm2d(network.embedding)
            self.channels = network.embedding
        self.normalization = ImageNetNormalization()

    def forward(self, frames: torch.Tensor) -> Features:
        x = self.normalization(frames)
        with in_precision(self.precision, x.device):
            x = self._embed(x).to(frames.dtype)
        if self.normalize:
            x = F.normalize(x.float(), dim=1)
        return Features({"embedding": x}, (frames.shape[-2], frames.shape[-1]))

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn256(self.adjust_dim(self.backbone(x)[self.last]))


def decode(evidence: Evidence, size: tuple[int, int], annotation: Annotation | None = None) -> torch.Tensor:
    """Cells to pixels: bilinear, then every pixel's labels are made to sum to one.

    A pixel that no label reached is background.

    Returns:
        (1 + K, H, W) float32.
    """
    probabilities = resize_probabilities(evidence["labels"], size)
    return (
        probabilities if annotation is None else insert_given(probabilities, evidence.object_ids, annotation)
    )


class TVOSTarget(Target):
    """The history of one stream: embeddings and labels of past frames.

    An annotation clears the history: frames remembered before it would vote against a new object or for the
    mistake that was corrected.
    """

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
        labels = one_hot_labels(label_map, object_ids, (h, w))  # (1 + K, h, w)
        self.history.clear()
        self._object_ids, self._read = tuple(object_ids), None
        self._remember(features, labels)

    def read(self, features: Features) -> Evidence:
        embedding = features["embedding"]
        if not len(self.history):
            raise InputError("no labels to propagate yet; annotate a frame first")
        t, options = len(self.history), self.options
        frames = options.choose(t)
        past = [self.history[frame] for frame in frames]
        h, w = embedding.shape[-2:]
        if past[0]["keys"].shape != (h * w, embedding.shape[1]):
            raise InputError(
                f"the history holds cells {tuple(past[0]['keys'].shape)}, this frame has {h} x {w}"
            )
        recent = len(frames) - options.dense if t >= options.sigma_sparse_from else 0
        sigmas = [options.sigma_dense if k >= recent else options.sigma_sparse for k in range(len(frames))]
        labels = propagate(
            self._keys(features),
            [frame["keys"] for frame in past],
            [frame["labels"] for frame in past],
            sigmas,
            (h, w),
            options.propagation(embedding.device),
        )
        self._read = labels
        return Evidence({"labels": labels}, self._object_ids)

    def write(self, features: Features, probabilities: torch.Tensor) -> None:
        h, w = features["embedding"].shape[-2:]
        # the prediction at the resolution of the cells is the one that was read; decoding only enlarged it
        labels = self._read
        if labels is None or labels.shape[-2:] != (h, w):
            labels = F.interpolate(probabilities[None], (h, w), mode="bilinear", align_corners=False)[0]
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
        if {n for n in own if n.startswith("buffer.")} not in (set(), {"buffer.keys", "buffer.labels"}):
            raise InputError(f"a history holds keys and labels, this state has {sorted(own)}")
        self.history.load_state_dict(own, device)
        self._object_ids, self._read = object_ids, None

    def _keys(self, features: Features) -> torch.Tensor:
        """(h*w, C) in the precision of the similarities, so that nothing is converted twice."""
        keys = features["embedding"][0].flatten(1).t()  # (h*w, C)
        half = resolve_precision(self.options.precision, keys.device) == "bfloat16"
        return keys.to(torch.bfloat16 if half else torch.float32).contiguous()

    def _remember(self, features: Features, labels: torch.Tensor) -> None:
        self.history.append(keys=self._keys(features), labels=labels.flatten(1).t().contiguous())


class TVOS(Method):
    """Zhang et al., CVPR 2020; see the head of this file."""

    name = "tvos"
    options: TVOSOptions

    def __init__(self, options: TVOSOptions | None = None):
        super().__init__()
        self.options = options or TVOSOptions()
        self.extractor = TVOSExtractor(self.options.network, self.options.precision)
        self.decoder = decode

    @property
    def networks(self) -> nn.Module:
        return self.extractor

    def target(self) -> TVOSTarget:
        return TVOSTarget(self.options)
