"""FEELVOS: distances in a learned embedding guide a network that segments every object.

    method = FEELVOS(FEELVOSOptions(previous="soft"))       # the authors' network, random weights
    target = method.target()

For every cell of a frame, matching computes the distance of its embedding to the nearest cell of each
object, in the annotated frame (global matching) and near its place in the previous frame (local matching).
These two maps and the object's previous mask are soft cues: a small head sees them together with the
frame's features, once per object, and the objects and the background compete in a softmax.

Source: Voigtlaender, Chai, Schroff, Adam, Leibe, Chen, FEELVOS: Fast End-to-End Embedding Learning for Video
Object Segmentation, CVPR 2019. Numbers and defaults are those of the authors' code; where the paper differs
there is an option (docs/methods.md, FEELVOS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from streamvos.methods.base import Method, Target
from streamvos.methods.feelvos.memory import Memory, load_memory
from streamvos.methods.feelvos.networks import (
    DynamicHead,
    EmbeddingLayer,
    FeatureDecoder,
    HeadLayer,
    Pyramid,
    grid_size,
    resize_bilinear,
    sample_nearest,
)
from streamvos.methods.feelvos.options import RATES, FEELVOSOptions
from streamvos.methods.feelvos.xception import Xception65
from streamvos.methods.parts import Part, Tensors
from streamvos.nn.aggregation import insert_given
from streamvos.nn.matching.distances import (
    Reference,
    channel_table,
    global_distances,
    local_distances,
    sort_reference,
)
from streamvos.nn.precision import in_precision
from streamvos.nn.resnet import ImageNetNormalization, resnet
from streamvos.types import Annotation, Evidence, Features, InputError


class ResNetBackbone(nn.Module):
    """A dilated ResNet in Xception's place; not in the paper."""

    def __init__(self, depth: int, planes: tuple[int, ...], output_stride: int):
        super().__init__()
        strides, dilations = (
            ((1, 2, 1, 1), (1, 1, 2, 4)) if output_stride == 8 else ((1, 2, 2, 1), (1, 1, 1, 2))
        )
        self.normalization = ImageNetNormalization()
        self.network = resnet(depth, strides, dilations, planes)
        self.channels = {"low": self.network.channels["layer1"], "high": self.network.channels["layer4"]}

    def forward(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) float RGB in 0..1 -> "low" at stride 4 and "high" at the output stride."""
        maps = self.network(self.normalization(frames))
        return {"low": maps["layer1"], "high": maps["layer4"]}


class FEELVOSExtractor(nn.Module):
    """Everything that does not depend on masks, with h = ceil(H/4), w = ceil(W/4).

    (B, 3, H, W) float RGB in 0..1 -> "embedding" (B, C, h, w) and "shared" (B, head channels, h, w), the
    features' share of the head's first layer (see `networks`), in the dtype of the frames.
    """

    def __init__(self, options: FEELVOSOptions):
        super().__init__()
        self.precision, network, stride = options.precision, options.network, options.output_stride
        self.backbone: Xception65 | ResNetBackbone
        if network.backbone == "xception65":
            self.backbone = Xception65(stride, network.middle)
        else:
            depth = int(network.backbone.removeprefix("resnet"))
            self.backbone = ResNetBackbone(depth, network.planes, stride)
        rates = RATES[stride] if options.rates is None else options.rates
        channels = self.backbone.channels
        self.pyramid = Pyramid(channels["high"], network.features, rates)
        self.decoder = FeatureDecoder(network.features, channels["low"], network.low_features)
        self.embedding = EmbeddingLayer(
            network.features, network.embedding, relu=network.embedding_activation == "authors"
        )
        self.stem = HeadLayer(
            network.features,
            network.head_channels,
            network.head_kernel,
            relu_between=network.head_activation == "authors",
            bias=False,
        )

    def forward(self, frames: torch.Tensor) -> Features:
        size = (frames.shape[-2], frames.shape[-1])
        with in_precision(self.precision, frames.device):
            maps = self.backbone(frames)
            features = self.decoder(self.pyramid(maps["high"]), maps["low"], grid_size(size))
            embedding, shared = self.embedding(features), self.stem(features)
        return Features({"embedding": embedding.to(frames.dtype), "shared": shared.to(frames.dtype)}, size)


def decode(evidence: Evidence, size: tuple[int, int], annotation: Annotation | None = None) -> torch.Tensor:
    """Logits of cells to probabilities of pixels: enlarged with aligned corners, then the softmax.

    Returns:
        (1 + K, H, W) float32.
    """
    probabilities = resize_bilinear(evidence["logits"][None], size)[0].softmax(0).float()
    return (
        probabilities if annotation is None else insert_given(probabilities, evidence.object_ids, annotation)
    )


def head_part(head: DynamicHead, options: FEELVOSOptions) -> Part:
    """The head as a part: shared (1, C, h, w) and cues (1 + K, 3, h, w) to logits (1 + K, h, w)."""

    return Part("head", partial(_segment, head, options), (head,), batched=(1,))


def _segment(head: DynamicHead, options: FEELVOSOptions, shared: torch.Tensor, cues: torch.Tensor) -> Tensors:
    with in_precision(options.precision, cues.device):
        return (head(shared, cues).to(cues.dtype),)


class FEELVOSTarget(Target):
    """References and the previous frame of one stream.

    Args:
        options: the method's options.
        head: the dynamic head, which holds the weights.
        part: runs the head; None = the head itself.
    """

    def __init__(self, options: FEELVOSOptions, head: DynamicHead, part: Part | None = None):
        self.options, self.head = options, head
        self._part = part
        self._memory: Memory | None = None
        self._reference: Reference | None = None
        self._ids = torch.zeros(1, dtype=torch.int64)  # channel -> id, and id -> channel, on the device
        self._table = torch.zeros(0, dtype=torch.int64)
        self._read: torch.Tensor | None = None  # probabilities of the cells between read and write

    @property
    def object_ids(self) -> tuple[int, ...]:
        return () if self._memory is None else self._memory.object_ids

    def annotate(
        self,
        features: Features,
        label_map: torch.Tensor,
        object_ids: tuple[int, ...],
        named: tuple[int, ...] | None = None,
        probabilities: torch.Tensor | None = None,
    ) -> None:
        grid = (features["embedding"].shape[-2], features["embedding"].shape[-1])
        if tuple(label_map.shape) != tuple(features.size):
            raise InputError(f"the label map is {tuple(label_map.shape)}, the frame {tuple(features.size)}")
        labels = sample_nearest(label_map, grid).flatten()  # (h*w,)
        present = set(torch.unique(labels).tolist())
        given = tuple(i for i in (object_ids if named is None else named) if i in present)
        embedding = _cells(features).clone()  # the caller may use the memory of its features again
        older, older_labels = embedding.new_zeros(0, embedding.shape[1]), labels.new_zeros(0)
        if self._memory is not None:
            older, older_labels = self._memory.references(set(object_ids) - set(given))
        memory = Memory(
            object_ids=tuple(object_ids),
            grid=grid,
            annotated=embedding,
            annotated_labels=labels,
            first=self._memory is None,
            given=given,
            older=older,
            older_labels=older_labels,
            previous=embedding.clone(),  # tensors of a state dict must not share memory
            previous_labels=labels.clone(),
            previous_probabilities=embedding.new_zeros(0, 0),
        )
        if self.options.previous == "soft":
            ids = torch.tensor(memory.channels, device=labels.device)
            soft = (labels == ids[:, None]).to(embedding.dtype)
            if probabilities is not None:
                soft = self._sample(probabilities, memory)
            memory = replace(memory, previous_probabilities=soft)
        self._take(memory)

    def _sample(self, probabilities: torch.Tensor, memory: Memory) -> torch.Tensor:
        """(1 + K, H, W) -> (1 + K, h*w)."""
        if len(probabilities) != len(memory.channels):
            raise InputError(
                f"{len(memory.object_ids)} objects and the background need {len(memory.channels)} "
                f"probabilities, got {len(probabilities)}"
            )
        return sample_nearest(probabilities, memory.grid).flatten(1).to(memory.annotated.dtype)

    def read(self, features: Features) -> Evidence:
        memory, reference = self._memory, self._reference
        if memory is None or reference is None:
            raise InputError("no reference to match with yet; annotate a frame first")
        query = self._cells_of(features, memory)  # (h*w, C)
        before = memory.previous_probabilities
        if self.options.previous == "hard":
            before = (memory.previous_labels == self._ids[:, None]).to(query.dtype)
        near = local_distances(
            query,
            memory.previous,
            self._table[memory.previous_labels],
            len(memory.channels),
            memory.grid,
            self.options.window,
        )
        cues = torch.stack([global_distances(query, reference), before, near], 1).unflatten(2, memory.grid)
        run = self._part or head_part(self.head, self.options)
        (logits,) = run(features["shared"], cues)  # (1 + K, h, w)
        self._read = logits.softmax(0).flatten(1) if self.options.previous == "soft" else None
        return Evidence({"logits": logits}, memory.object_ids)

    def write(self, features: Features, probabilities: torch.Tensor) -> None:
        memory = self._memory
        if memory is None:
            raise InputError("no object is followed yet; annotate a frame first")
        embedding, sampled = self._cells_of(features, memory), self._sample(probabilities, memory)
        # the probabilities of the cells are those that were read; decoding only enlarged their logits
        soft = memory.previous_probabilities
        if self.options.previous == "soft":
            soft = sampled if self._read is None else self._read
        self._memory = replace(
            memory,
            previous=embedding.clone(),
            previous_labels=self._ids[sampled.argmax(0)],
            previous_probabilities=soft,
        )
        self._read = None

    def _cells_of(self, features: Features, memory: Memory) -> torch.Tensor:
        """(h*w, C) embedding of a frame, which must match the memory."""
        grid, count = features["embedding"].shape[-2:], features["embedding"].shape[1]
        if tuple(grid) != memory.grid or count != memory.annotated.shape[1]:
            raise InputError(
                f"the memory holds {memory.annotated.shape[1]} channels on a grid of {memory.grid}, "
                f"this frame has {count} on {tuple(grid)}"
            )
        return _cells(features)

    def forget(self, object_id: int) -> None:
        self.check_followed(object_id)
        assert self._memory is not None
        self._take(self._memory.without(object_id))

    def _take(self, memory: Memory) -> None:
        """Replace the memory, and prepare it for matching."""
        reference = sort_reference(*memory.candidates(), memory.channels)
        device = memory.annotated.device
        self._ids = torch.tensor(memory.channels, device=device)
        self._table = channel_table(memory.channels, device)
        self._memory, self._reference, self._read = memory, reference, None

    def state_dict(self) -> dict[str, torch.Tensor]:
        if self._memory is None:
            return {"object_ids": torch.zeros(0, dtype=torch.int64)}
        return self._memory.state_dict()

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        if set(state) == {"object_ids"} and not state["object_ids"].numel():
            self._memory = self._reference = self._read = None
            return
        parameter = next(self.head.parameters(), None)
        dtype = torch.float32 if parameter is None else parameter.dtype
        self._take(load_memory(state, self.options.previous == "soft", dtype))


def _cells(features: Features) -> torch.Tensor:
    """(h*w, C) embedding of one frame, row by row."""
    return features["embedding"][0].flatten(1).t().contiguous()


class FEELVOS(Method):
    """Voigtlaender et al., CVPR 2019; see the head of this file."""

    name = "feelvos"
    options: FEELVOSOptions

    def __init__(self, options: FEELVOSOptions | None = None):
        super().__init__()
        self.options = options or FEELVOSOptions()
        network = self.options.network
        self.extractor = FEELVOSExtractor(self.options)
        self.head = DynamicHead(
            network.head_channels,
            network.head_layers,
            network.head_kernel,
            relu_between=network.head_activation == "authors",
        )
        self.decoder = decode
        self._part = head_part(self.head, self.options)

    def inner_parts(self) -> dict[str, Part]:
        return {self._part.name: self._part}

    def target(self) -> FEELVOSTarget:
        return FEELVOSTarget(self.options, self.head, self._part)
