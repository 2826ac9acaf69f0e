"""RGMP: a mask is propagated from frame to frame, guided by the frame where it was given.

    method = RGMP(RGMPOptions())            # the authors' network and settings, random weights
    target = method.target()

For each object the network looks at the present frame with the mask of the frame before, and at the frame
where the object was given with its mask there. Nothing is learned while the stream runs. Several objects
are as many runs of the network, and one more for all of them together, whose complement is the background;
the runs are one batch.

Source: Wug Oh, Lee, Sunkavalli, Kim, Fast Video Object Segmentation by Reference-Guided Mask Propagation,
CVPR 2018. Numbers and defaults are those of the authors' code; where the paper differs or is silent there
is an option (docs/methods.md, RGMP).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from streamvos.methods.base import Method, Target
from streamvos.methods.parts import Part
from streamvos.methods.rgmp.canvas import STRIDE, Canvas
from streamvos.methods.rgmp.light import LightExtractor, LightRuns, decode_light
from streamvos.methods.rgmp.light_target import LightTarget
from streamvos.methods.rgmp.network import (
    GuidedRuns,
    MaskGuidedEncoder,
    RefinementDecoder,
    RGMPExtractor,
)
from streamvos.methods.rgmp.options import RGMPOptions
from streamvos.methods.state_dicts import check_shapes, ids_of
from streamvos.nn.aggregation import insert_given, odds_softmax
from streamvos.nn.efficientnet import EfficientNetLite0
from streamvos.nn.resnet import resnet
from streamvos.types import Annotation, Evidence, Features, InputError


def aggregate(runs: torch.Tensor) -> torch.Tensor:
    """Runs to probabilities of one distribution per pixel.

    Args:
        runs: (1, H, W), the one object; or (1 + K, H, W), all objects merged, then each for itself.

    Returns:
        (1 + K, H, W), background first. One object competes with nobody: its background is what it
        leaves. More than one: eq. 1 of the paper, where the merged run stands for the background.
    """
    if len(runs) == 1:
        return torch.cat([1 - runs, runs])
    return odds_softmax(torch.cat([1 - runs[:1], runs[1:]]))


def decode(evidence: Evidence, size: tuple[int, int], annotation: Annotation | None = None) -> torch.Tensor:
    """The runs of a frame compete.

    The network's own decoder belongs to the target's `read`: its inputs depend on the previous masks, and
    for many objects they are far larger than its outputs.

    Returns:
        (1 + K, H, W) float32.
    """
    probabilities = Canvas(size).crop(aggregate(evidence["runs"])).contiguous()
    if annotation is None:
        return probabilities
    return insert_given(probabilities, evidence.object_ids, annotation)


class RGMPTarget(Target):
    """The state of one stream: each object's reference, and the masks of the frame before.

    The masks that guide the next frame are those of the whole canvas: the authors do not cut its border
    off. The decoder gives the frame's part only, so the border comes from what was read last, which is
    kept between `read` and `write`; a prediction that was not read here gets a border of background.

    With several objects there is one reference more, of all of them together. It is made anew whenever
    something is annotated or forgotten, from the last annotated frame, which is kept for that.
    """

    def __init__(self, runs: GuidedRuns, extractor: RGMPExtractor, options: RGMPOptions):
        self.options = options
        self._runs, self._extractor = runs, extractor
        self._object_ids: tuple[int, ...] = ()
        self._size: tuple[int, int] | None = None
        self._references: list[torch.Tensor] = []  # per scale, a row per run
        self._previous = torch.empty(0)  # (1 + K, H', W'), background first
        self._frame = torch.empty(0)  # (1, 3, H', W'), the last that was annotated
        self._label_map = torch.empty(0)  # (H', W') uint8, its labels
        self._read: torch.Tensor | None = None  # the runs of the frame between read and write

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
        canvas = self._canvas(features, starts=set(new) == set(object_ids))
        labels = canvas.pad(label_map)  # (H', W')
        masks = _masks(labels, object_ids).to(features["frame"].dtype)
        fresh = masks[[object_ids.index(i) for i in new]]
        if len(object_ids) > 1:
            fresh = torch.cat([masks.sum(0, keepdim=True), fresh])
        references = self._assemble(object_ids, new, self._runs.refer(features.maps, canvas, fresh))
        background = 1 - masks.sum(0, keepdim=True)  # (1, H', W')
        if probabilities is None:
            previous = torch.cat([background, masks])
        else:
            previous = self._on_canvas(canvas, probabilities, object_ids, new)
        frame, small = features["frame"].clone(memory_format=torch.contiguous_format), labels.to(torch.uint8)
        self._object_ids, self._size, self._read = object_ids, features.size, None
        self._references, self._previous, self._frame, self._label_map = references, previous, frame, small

    @torch.no_grad()
    def read(self, features: Features) -> Evidence:
        if not self._object_ids:
            raise InputError("no mask to propagate yet; annotate a frame first")
        canvas = self._canvas(features)
        guides = self._previous[1:]  # (K, H', W')
        if len(guides) > 1:
            guides = torch.cat([guides.sum(0, keepdim=True), guides])
        runs = self._runs(features.maps, canvas, guides, self._references)  # (K or 1 + K, H', W')
        self._read = runs
        return Evidence({"runs": runs}, self._object_ids)

    @torch.no_grad()
    def write(self, features: Features, probabilities: torch.Tensor) -> None:
        canvas = self._canvas(features)
        self._previous = self._on_canvas(canvas, probabilities, self._object_ids)
        self._read = None

    @torch.no_grad()
    def forget(self, object_id: int) -> None:
        self.check_followed(object_id)
        if len(self._object_ids) == 1:
            self._forget_all()
            return
        channel = 1 + self._object_ids.index(object_id)
        ids = tuple(i for i in self._object_ids if i != object_id)
        kept = [k for k in range(1 + len(self._object_ids)) if k not in (0, channel)]
        references = [reference[kept] for reference in self._references]
        labels = torch.where(self._label_map == object_id, 0, self._label_map)
        if len(ids) > 1:
            merged = self._merged_reference(labels, ids)
            references = [torch.cat(pair) for pair in zip(merged, references, strict=True)]
        background = self._previous[:1] + self._previous[channel : channel + 1]
        self._previous = torch.cat([background, self._previous[kept]])
        self._object_ids, self._references, self._label_map, self._read = ids, references, labels, None

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = {"object_ids": torch.tensor(self._object_ids, dtype=torch.int64)}
        if self._object_ids:
            state |= {f"references.{k}": reference for k, reference in enumerate(self._references)}
            state |= {
                "previous": self._previous,
                "frame": self._frame,
                "label_map": self._label_map,
                "size": torch.tensor(self._size, dtype=torch.int64),
            }
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        ids = ids_of(state, "RGMP")
        if ids:
            self._load(state, ids)
        else:
            self._forget_all()

    def _forget_all(self) -> None:
        self._object_ids, self._size, self._references, self._read = (), None, [], None
        self._previous, self._frame, self._label_map = torch.empty(0), torch.empty(0), torch.empty(0)

    def _load(self, state: Mapping[str, torch.Tensor], ids: tuple[int, ...]) -> None:
        size = state.get("size")
        if size is None or size.shape != (2,) or int(size.min()) < 1:
            raise InputError("the state lacks the size of its frames")
        height, width = (int(side) for side in size)
        shapes = self._shapes((height, width), len(ids))
        check_shapes(state, shapes)
        for name in shapes:
            dtype = torch.uint8 if name == "label_map" else next(self._runs.parameters()).dtype
            if state[name].dtype != dtype:
                raise InputError(f"the state's {name} is {state[name].dtype}, expected {dtype}")
        self._object_ids, self._size, self._read = ids, (height, width), None
        self._references = [state[f"references.{k}"] for k in range(len(self.options.scales))]
        self._previous, self._frame, self._label_map = state["previous"], state["frame"], state["label_map"]

    def _shapes(self, size: tuple[int, int], count: int) -> dict[str, tuple[int, ...]]:
        """The shape of every remembered tensor, for `count` objects in frames of `size`."""
        canvas, runs = Canvas(size), count + (count > 1)
        shapes: dict[str, tuple[int, ...]] = {
            "previous": (1 + count, *canvas.size),
            "frame": (1, 3, *canvas.size),
            "label_map": canvas.size,
        }
        for k, scale in enumerate(self.options.scales):
            h, w = canvas.scaled(scale)
            shapes[f"references.{k}"] = (runs, 2 * self.options.network.channels, h // STRIDE, w // STRIDE)
        return shapes

    def _canvas(self, features: Features, starts: bool = False) -> Canvas:
        """The frame's canvas; its size must be that of the frames before, unless the stream `starts` here."""
        if not starts and self._size is not None and self._size != features.size:
            raise InputError(f"the frames so far were {self._size} (H, W), this one is {features.size}")
        return Canvas(features.size)

    def _assemble(
        self, object_ids: tuple[int, ...], new: tuple[int, ...], fresh: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """References in the order of the runs: fresh ones (merged, then `new`), and those that stay."""
        merged, before = len(object_ids) > 1, len(self._object_ids) > 1
        rows = [0] if merged else []
        for i in object_ids:
            # those that stay come from behind the fresh ones
            kept = len(new) + merged + before
            rows.append(merged + new.index(i) if i in new else kept + self._object_ids.index(i))
        if len(new) < len(object_ids):
            fresh = [torch.cat(pair) for pair in zip(fresh, self._references, strict=True)]
        return [pool[rows] for pool in fresh]

    def _merged_reference(self, labels: torch.Tensor, ids: tuple[int, ...]) -> list[torch.Tensor]:
        """The reference of the objects `ids` together, on the last annotated frame."""
        assert self._size is not None
        canvas = Canvas(self._size)
        maps = self._extractor.filtered(self._frame, canvas)
        mask = _masks(labels, ids).any(0, keepdim=True).to(self._frame.dtype)
        return self._runs.refer(maps, canvas, mask)

    def _on_canvas(
        self,
        canvas: Canvas,
        probabilities: torch.Tensor,
        object_ids: tuple[int, ...],
        given: tuple[int, ...] = (),
    ) -> torch.Tensor:
        """(1 + K, H', W'): a prediction, and around it what was read there; of `given` objects nothing."""
        if self._read is None:
            whole = probabilities.new_zeros((1 + len(object_ids), *canvas.size))
            whole[0] = 1
        else:
            whole = aggregate(self._read)
            if given:
                going_on = [i for i in object_ids if i not in given]
                read = whole[[1 + self._object_ids.index(i) for i in going_on]]
                whole = whole.new_zeros((1 + len(object_ids), *canvas.size))
                whole[[1 + object_ids.index(i) for i in going_on]] = read
                whole[0] = 1 - read.sum(0)
        canvas.crop(whole).copy_(probabilities)
        return whole


def _masks(label_map: torch.Tensor, object_ids: tuple[int, ...]) -> torch.Tensor:
    """(K, H, W) bool: the pixels of each object."""
    ids = torch.tensor(object_ids, dtype=label_map.dtype, device=label_map.device)
    return label_map[None] == ids[:, None, None]


class RGMP(Method):
    """Wug Oh et al., CVPR 2018; see the head of this file."""

    name = "rgmp"
    options: RGMPOptions
    extractor: RGMPExtractor | LightExtractor
    runs: GuidedRuns | LightRuns

    def __init__(self, options: RGMPOptions | None = None):
        super().__init__()
        self.options = options or RGMPOptions()
        if self.options.backbone == "efficientnet-lite0":
            backbone = EfficientNetLite0(stages=6)
            self.extractor = LightExtractor(backbone, self.options)
            self.runs = LightRuns(backbone, self.options)
            self.decoder = decode_light
            return
        network = self.options.network
        encoder = MaskGuidedEncoder(resnet(network.depth, planes=network.planes))
        decoder = RefinementDecoder(encoder.channels, network.channels, self.options.align_corners)
        self.runs = GuidedRuns(encoder, decoder, self.options)
        self.extractor = RGMPExtractor(encoder.conv1, self.options)
        self.decoder = decode

    @property
    def networks(self) -> nn.Module:
        return self.runs

    def inner_parts(self) -> dict[str, Part]:
        return {self.runs.part.name: self.runs.part}

    def target(self) -> Target:
        if isinstance(self.runs, LightRuns):
            return LightTarget(self.runs)
        assert isinstance(self.extractor, RGMPExtractor)
        return RGMPTarget(self.runs, self.extractor, self.options)
