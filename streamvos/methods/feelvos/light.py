"""FEELVOS in a small form on EfficientNet-Lite0: matching at stride 8, the head in the decoder.

    method = FEELVOS(FEELVOSOptions(**EFFICIENTNET))

What differs from the authors' form, and why:
  - the embedding lies at stride 8 and has a learned length, so that one number tunes how soon distances
    reach 1;
  - the head is a `SegmentationNetwork`, which sees the backbone's maps at strides 4 to 32 and costs a small
    part of four layers of 256 channels at stride 4. It runs once per object, not for the background;
  - so an object's cues hold the smallest distance to any other label beside its own distances;
  - some recent predicted frames are matched too, against drift: objects change, and the first frame does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.methods.feelvos.memory import Memory
from streamvos.methods.feelvos.options import FEELVOSOptions
from streamvos.methods.feelvos.target import FEELVOSTarget
from streamvos.methods.parts import Part, Tensors, outline
from streamvos.nn.aggregation import insert_given
from streamvos.nn.efficientnet import CHANNELS, EfficientNetLite0
from streamvos.nn.precision import in_precision
from streamvos.nn.segmentation_network import SegmentationNetwork
from streamvos.nn.stage_embedding import StageEmbedding
from streamvos.types import VOID, Annotation, Evidence, Features

STRIDE = 8
"""Pixels per cell of the embedding."""

LEVELS = ("stage6", "stage5", "stage3", "stage2")
"""Stages that the head sees, the deepest first."""

WIDTHS = (64, 64, 48, 24)
"""Channels of the head at each of `LEVELS`."""

CUES = 7
"""Maps per object: distances to the annotated, to all remembered and to the previous frame, each to the
object and to the nearest of all other labels, and the probability in the previous frame."""

FIRST_WEIGHTS = (-1.0, 1.0, -1.0, 1.0, -2.0, 2.0, 4.0)
"""Weights of the sum of the cues before training, so that masks are tracked from the first step."""

LENGTH = 2.2
"""Length of embeddings before training: orthogonal ones are at squared distance 10, similar ones near 1."""

TOGETHER = 8
"""Objects in one pass of the head."""


class LightEmbedding(StageEmbedding):
    """An embedding whose vectors all have one learned length; what is trained of the extractor."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.length = nn.Parameter(torch.tensor(LENGTH))

    def forward(self, maps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """stage -> (B, C, h, w) to (B, channels, ceil(H / 8), ceil(W / 8)) float32."""
        return self.length * super().forward(maps)


class LightExtractor(nn.Module):
    """(B, 3, H, W) float RGB in 0..1 -> "embedding" (B, C, h, w) at stride 8, and the maps of `LEVELS`."""

    def __init__(self, options: FEELVOSOptions):
        super().__init__()
        self.precision = options.precision
        self.backbone = EfficientNetLite0(stages=6)
        self.embedding = LightEmbedding(options.network.embedding)

    def forward(self, frames: torch.Tensor) -> Features:
        with in_precision(self.precision, frames.device):
            maps = self.backbone(frames)
            embedding = self.embedding(maps)
        named = {"embedding": embedding.to(frames.dtype), **{name: maps[name] for name in LEVELS}}
        return Features(named, (frames.shape[-2], frames.shape[-1]))


class LightHead(nn.Module):
    """Cues and maps to logits: a weighted sum of the cues, enlarged, and what a segmentation network adds."""

    def __init__(self) -> None:
        super().__init__()
        self.network = SegmentationNetwork({n: CHANNELS[n] for n in LEVELS}, WIDTHS, CUES, head="bilinear")
        self.sum = nn.Conv2d(CUES, 1, 1)
        with torch.no_grad():
            self.sum.weight.copy_(torch.tensor(FIRST_WEIGHTS).view(1, CUES, 1, 1))
            self.sum.bias.fill_(-FIRST_WEIGHTS[-1] / 2)  # type: ignore[union-attr]

    def forward(
        self, cues: torch.Tensor, maps: Mapping[str, torch.Tensor], size: tuple[int, int]
    ) -> torch.Tensor:
        """(K, H, W) from cues (K, 7, h, w) and maps (1 or K, C, h', w'); H and W are `size`."""
        enlarged = F.interpolate(self.sum(cues).float(), size, mode="bilinear", align_corners=False)
        return self.network(cues, maps, size).float() + enlarged[:, 0]


class LightDecoder(nn.Module):
    """Cues and maps to probabilities; see `streamvos.methods.base.Decoder`.

    Objects compete in a softmax with the background, whose logit is 0: one object alone has the probability
    sigmoid(logit) that it is trained with.
    """

    def __init__(self, options: FEELVOSOptions):
        super().__init__()
        self.precision = options.precision
        self.head = LightHead()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.part = Part("head", self._segment, (self.head,), batched=(0,))

    def forward(
        self, evidence: Evidence, size: tuple[int, int], annotation: Annotation | None = None
    ) -> torch.Tensor:
        cues, levels = evidence["cues"], [evidence[name] for name in LEVELS]
        logits = [cues.new_zeros(1, *size)]
        for some in cues.split(TOGETHER) if len(cues) else ():
            logits.extend(self.part(some, outline(size, cues), *levels))
        probabilities = torch.cat(logits).float().softmax(0)
        if annotation is None:
            return probabilities
        return insert_given(probabilities, evidence.object_ids, annotation)

    def _segment(self, cues: torch.Tensor, size: torch.Tensor, *maps: torch.Tensor) -> Tensors:
        """(K, H, W) logits from cues (K, 7, h, w), the size (`outline`) and the maps of `LEVELS`."""
        with in_precision(self.precision, cues.device):
            levels = dict(zip(LEVELS, maps, strict=True))
            logits = self.head(cues, levels, (size.shape[0], size.shape[1]))
        return (logits.to(cues.dtype),)


class LightTarget(FEELVOSTarget):
    """References, recent frames and the previous frame of one stream."""

    def __init__(self, options: FEELVOSOptions):
        super().__init__(options, nn.Identity())

    @staticmethod
    def _label_cells(
        label_map: torch.Tensor, object_ids: tuple[int, ...], grid: tuple[int, int]
    ) -> torch.Tensor:
        ids = (0, *object_ids, VOID)
        shares = torch.cat([reduce_to_cells((label_map == i).float()[None]) for i in ids])  # (2 + K, h, w)
        labels = torch.tensor(ids, device=label_map.device)[shares.argmax(0)].flatten()
        for i, share in zip(object_ids, shares[1:-1].flatten(1), strict=True):
            if share.any() and not (labels == i).any():
                labels[share.argmax()] = i  # an object smaller than a cell has the cell that is most its own
        return labels.unflatten(0, grid)

    @staticmethod
    def _reduce(probabilities: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return reduce_to_cells(probabilities)

    def _candidates(self, memory: Memory) -> tuple[torch.Tensor, torch.Tensor]:
        cells, labels = memory.candidates()
        count = memory.annotated_labels.numel()
        return cells, torch.cat([thinned(labels[:count], memory.grid), labels[count:]])

    def read(self, features: Features) -> Evidence:
        memory, first, before, near = self._match(features)
        query, remembered = self._cells_of(features, memory), first
        for cells, labels in zip(memory.recent, memory.recent_labels, strict=True):
            distances = self._local(query, cells, labels, self.options.recent_window)
            remembered = torch.minimum(remembered, distances)
        maps = (first, remembered, near)
        pairs = [part for distances in maps for part in (distances[1:], nearest_other(distances))]
        cues = torch.stack([*pairs, before[1:]], 1).unflatten(2, memory.grid)
        return Evidence({"cues": cues, **{name: features[name] for name in LEVELS}}, memory.object_ids)

    def write(self, features: Features, probabilities: torch.Tensor) -> None:
        super().write(features, probabilities)
        options, memory = self.options, self._memory
        assert memory is not None
        memory = replace(memory, age=memory.age + 1)
        if options.recent and memory.age % options.recent_every == 0:
            labels = memory.previous_labels
            if options.previous == "soft":
                unsure = memory.previous_probabilities.amax(0) < options.certain
                labels = labels.masked_fill(unsure, VOID)
            labels = thinned(labels, memory.grid)
            surplus = max(0, len(memory.recent) + 1 - options.recent)
            memory = replace(
                memory,
                recent=torch.cat([memory.recent[surplus:], memory.previous[None]]),
                recent_labels=torch.cat([memory.recent_labels[surplus:], labels[None]]),
            )
        self._memory = memory


def thinned(labels: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Labels (h*w,) in which every other cell of the background is void, as the squares of a chessboard.

    A large background has a cell near to everything; with all of its cells objects shrink by and by.
    """
    rows, columns = (torch.arange(side, device=labels.device) for side in grid)
    odd = (rows[:, None] + columns).flatten() % 2 == 1
    return labels.masked_fill(odd & (labels == 0), VOID)


def reduce_to_cells(values: torch.Tensor) -> torch.Tensor:
    """Means over the pixels of each cell: (N, H, W) float -> (N, ceil(H/8), ceil(W/8))."""
    return F.avg_pool2d(values[None], STRIDE, ceil_mode=True, count_include_pad=False)[0]


def nearest_other(distances: torch.Tensor) -> torch.Tensor:
    """The smallest distance to any label but the object's own: (1 + K, M), background first -> (K, M)."""
    if len(distances) <= 2:
        return distances[: len(distances) - 1]
    smallest, second = distances.topk(2, dim=0, largest=False).values
    return torch.where(distances[1:] == smallest, second, smallest)
