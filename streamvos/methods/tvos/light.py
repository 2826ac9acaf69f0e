"""TVOS on EfficientNet-Lite0: an embedding of five stages, propagation in blocks, and a refiner.

    method = TVOS(TVOSOptions(**EFFICIENTNET))

Three things differ from the authors' form. The embedding sums several stages of a frozen backbone, so that it
knows both parts and edges. Propagation looks at blocks of cells first (`nn/propagation/blocks.py`). And since
cells of stride 8 have no sharp borders, a segmentation network refines the labels that arrive, and its answer
is what is remembered, as the share of each cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.methods.parts import Part, Tensors, outline
from streamvos.methods.tvos.options import TVOSOptions
from streamvos.methods.tvos.target import TVOSTarget
from streamvos.nn.aggregation import insert_given_channels, merge_logits
from streamvos.nn.efficientnet import CHANNELS, EfficientNetLite0
from streamvos.nn.labels import one_hot_labels
from streamvos.nn.precision import in_precision
from streamvos.nn.propagation.blocks import Reference, blocks_of, means_of, propagate_in_blocks
from streamvos.nn.segmentation_network import SegmentationNetwork
from streamvos.nn.stage_embedding import StageEmbedding
from streamvos.types import Annotation, Evidence, Features

CERTAIN = 100.0
"""The logit of a given mask."""

OBJECTS_AT_ONCE = 8
"""So many objects go through the refiner together."""


class LightExtractor(nn.Module):
    """Frames to embeddings and the refiner's maps.

    (B, 3, H, W) float32 RGB in 0..1 -> "embedding" (B, C, ceil(H/8), ceil(W/8)), and a map for each level of
    the refiner, "stage5" and so on.
    """

    def __init__(self, options: TVOSOptions):
        super().__init__()
        self.precision, self.levels = options.precision, options.levels
        self.backbone = EfficientNetLite0(stages=6).requires_grad_(False)
        self.embedding = StageEmbedding(options.network.embedding or 128)

    def forward(self, frames: torch.Tensor) -> Features:
        with in_precision(self.precision, frames.device):
            maps = self.backbone(frames)
            embedding = self.embedding(maps)
        levels = {level: maps[level] for level in self.levels}
        return Features({"embedding": embedding, **levels}, (frames.shape[-2], frames.shape[-1]))


class Refiner(nn.Module):
    """Labels of cells and the frame's maps to logits of pixels.

    The logits are those of the labels, enlarged, and what a segmentation network adds to them.
    """

    def __init__(self, levels: Sequence[str], widths: Sequence[int]):
        super().__init__()
        channels = {level: CHANNELS[level] for level in levels}
        self.network = SegmentationNetwork(channels, widths, score_channels=3, head="bilinear")
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(
        self,
        labels: torch.Tensor,
        first: torch.Tensor,
        maps: Mapping[str, torch.Tensor],
        size: tuple[int, int],
    ) -> torch.Tensor:
        """(K, H, W) logits; H and W are `size`.

        Args:
            labels: (K, h, w) in 0..1, arrived from all references.
            first: (K, h, w) in 0..1, arrived from the annotated frame alone, which cannot have drifted.
            maps: level -> (1 or K, C, h, w).
            size: (H, W).
        """
        own = labels.logit(eps=0.02)
        logits = self.network(torch.stack([labels, own / 4, first], dim=1), maps, size)
        enlarged = F.interpolate(own[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return logits.float() + self.gain * enlarged


class RefiningDecoder(nn.Module):
    """Labels of cells to probabilities of pixels; the objects compete after each was refined for itself."""

    def __init__(self, options: TVOSOptions):
        super().__init__()
        assert options.refiner is not None
        self.precision, self.levels = options.precision, options.levels
        self.refiner = Refiner(options.levels, options.refiner)
        self.part = Part("refiner", self._refine, (self.refiner,), batched=(0, 1))

    def forward(
        self, evidence: Evidence, size: tuple[int, int], annotation: Annotation | None = None
    ) -> torch.Tensor:
        """See `streamvos.methods.base.Decoder`."""
        labels = evidence["labels"][1:]  # (K, h, w)
        maps, shape = [evidence[level] for level in self.levels], outline(size, labels)
        pairs = zip(labels.split(OBJECTS_AT_ONCE), evidence["first"].split(OBJECTS_AT_ONCE), strict=True)
        logits = torch.cat([self.part(*pair, shape, *maps)[0] for pair in pairs])
        if annotation is not None:
            ids = evidence.object_ids
            logits = insert_given_channels(logits, ids, annotation, low=-CERTAIN, high=CERTAIN)
        return merge_logits(logits)

    def _refine(
        self, labels: torch.Tensor, first: torch.Tensor, size: torch.Tensor, *maps: torch.Tensor
    ) -> Tensors:
        """The arguments of `Refiner` as tensors, the size as `outline`."""
        levels = dict(zip(self.levels, maps, strict=True))
        with in_precision(self.precision, labels.device):
            return (self.refiner(labels, first, levels, (size.shape[0], size.shape[1])),)


class LightTarget(TVOSTarget):
    """The history in blocks of cells; labels are the means over cells of what the decoder said."""

    entries = ("keys", "means", "labels")

    def _given(self, label_map: torch.Tensor, ids: tuple[int, ...], grid: tuple[int, int]) -> torch.Tensor:
        size = (label_map.shape[-2], label_map.shape[-1])
        return F.adaptive_avg_pool2d(one_hot_labels(label_map, ids, size), grid)

    def _predicted(self, probabilities: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return F.adaptive_avg_pool2d(probabilities, grid)

    def _evidence(self, features: Features, labels: torch.Tensor) -> Evidence:
        if self.options.refiner is None:
            return super()._evidence(features, labels)
        grid, oldest = (labels.shape[-2], labels.shape[-1]), self.options.choose(len(self.history))[:1]
        first = self._carry(self._keys(features), oldest, grid, self.options.first_radius)[1:]
        levels = {level: features[level] for level in self.options.levels}
        return Evidence({"labels": labels, "first": first, **levels}, self._object_ids)

    def _propagate(self, keys: torch.Tensor, frames: list[int], grid: tuple[int, int]) -> torch.Tensor:
        return self._carry(keys, frames, grid, self.options.radius)

    def _carry(
        self, keys: torch.Tensor, frames: list[int], grid: tuple[int, int], radius: int | None
    ) -> torch.Tensor:
        settings = self.options.propagation(keys.device)
        references = [Reference(**self.history[frame], radius=radius) for frame in frames]
        return propagate_in_blocks(keys, references, grid, settings, self.options.blocks)

    def _keys(self, features: Features) -> torch.Tensor:
        return blocks_of(self._in_precision(features["embedding"])[0])

    def _remember(self, features: Features, labels: torch.Tensor) -> None:
        keys = self._keys(features)
        self.history.append(keys=keys, means=means_of(keys), labels=blocks_of(labels))
