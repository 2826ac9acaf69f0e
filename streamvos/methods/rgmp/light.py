"""RGMP on EfficientNet-Lite0: the mask enters behind a frozen backbone, which is shared by all objects.

    backbone = EfficientNetLite0(stages=6)
    extractor, runs = LightExtractor(backbone, options), LightRuns(backbone, options)

The siamese encoder is small: the mask passes a few convolutions of its own to stride 16, is added to a
projection of the backbone's fifth stage, and residual blocks mix the two. The global convolution compares the
encodings of the present frame and of the reference, and the segmentation network of FRTM decodes the result.

Two things are not in the paper. The reference is compared twice: cell by cell, as in the paper, and after its
cells were moved to the cells of the present frame that look like them (attention), so that an object is found
again far from where it was; and so is the last frame in which the object was seen, since it may come to look
otherwise. And objects compete without a run of all of them together.

Source: Wug Oh et al., CVPR 2018, section 3.1; for what differs see docs/methods.md, RGMP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.methods.parts import Part, Tensors
from streamvos.methods.rgmp.canvas import resize
from streamvos.methods.rgmp.network import GlobalConvolution, ResidualBlock
from streamvos.methods.rgmp.options import LightNetwork, RGMPOptions
from streamvos.nn.aggregation import insert_given
from streamvos.nn.efficientnet import CHANNELS, EfficientNetLite0
from streamvos.nn.precision import in_precision
from streamvos.nn.segmentation_network import SegmentationNetwork
from streamvos.types import Annotation, Evidence, Features

LEVELS = ("stage6", "stage5", "stage3", "stage2")
"""Stages of the backbone that are used, the deepest first; strides 32, 16, 8 and 4."""

MAGNITUDE = 6.0
"""Of the backbone's maps, roughly: their standard deviation on photographs is 5 to 8."""

SHARPNESS = 12.0
"""How much a cosine between cells counts before training, in the exponent of the attention."""

Maps = Mapping[str, torch.Tensor]


class LightExtractor(nn.Module):
    """The backbone at every scale.

    (B, 3, H, W) float32 RGB in 0..1 -> per scale k and stage "stage6_k", "stage5_k", "stage3_k", "stage2_k".
    """

    def __init__(self, backbone: EfficientNetLite0, options: RGMPOptions):
        super().__init__()
        self.backbone, self.options = backbone, options

    def forward(self, frames: torch.Tensor) -> Features:
        size = (frames.shape[-2], frames.shape[-1])
        maps: dict[str, torch.Tensor] = {}
        with in_precision(self.options.precision, frames.device):
            for k, scale in enumerate(self.options.scales):
                found = self.backbone(resize(frames, scaled(size, scale)))
                maps |= {f"{level}_{k}": found[level] for level in LEVELS}
        return Features(maps, size)


class LightEncoder(nn.Module):
    """The siamese encoder: the backbone's fifth stage and a mask to (K, channels, h, w) at stride 16."""

    def __init__(self, channels: int, blocks: int):
        super().__init__()
        self.of_frame = nn.Conv2d(CHANNELS["stage5"], channels, 1)
        self.of_mask = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, channels, 3, padding=1),
        )
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))

    def forward(self, stage5: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """
        Args:
            stage5: (1 or K, 112, h, w); 1 where the objects share the frame.
            masks: (K, 1, 4h, 4w) float in 0..1.
        """
        return self.blocks(self.of_mask(masks) + self.of_frame(stage5))


class LightGuidedNetwork(nn.Module):
    """Everything that is trained: encoder, comparison with the reference, decoder.

    shares, cells = network.refer(maps, masks)      # on the frame where the objects were given
    network(later, previous_masks, shares, cells, network.remember(previous, previous_masks))

    Maps are those of `LEVELS`, each (1 or K, C, h, w); masks (K, h, w) float in 0..1 on the grid of "stage2".
    """

    def __init__(self, shape: LightNetwork):
        super().__init__()
        self.shape = shape
        self.encoder = LightEncoder(shape.channels, shape.blocks)
        self.key = nn.Conv2d(CHANNELS["stage5"], shape.keys, 1, bias=False)
        self.value = nn.Conv2d(shape.channels, shape.keys, 1)
        self.log_sharpness = nn.Parameter(torch.tensor(SHARPNESS).log())
        scores = shape.scores - 1  # the last score is the previous mask
        self.global_convolution = GlobalConvolution(shape.channels + shape.keys, scores)
        self.decoder = SegmentationNetwork(
            {level: CHANNELS[level] for level in LEVELS}, shape.widths, shape.scores, head="bilinear"
        )
        self._draw_weights()

    @torch.no_grad()
    def _draw_weights(self) -> None:
        """Weights to start from; with torch's own the masks would hardly reach the logits."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                gain = 0.1 if "project" in name else 0.5 if "global" in name else 1.0
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu").mul_(gain)

    def refer(self, maps: Maps, masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is remembered of a reference.

        Returns:
            Its share in the global convolution, (K, 2 * (scores - 1), h, w), stride 16; and what `remember`
            gives.
        """
        stage5 = maps["stage5"] / MAGNITUDE
        encoding = self.encoder(stage5, masks[:, None])
        values = self.value(encoding.relu())
        shares = self.global_convolution.refer(torch.cat([encoding, values], dim=1))
        return shares, self._cells(stage5, values)

    def remember(self, maps: Maps, masks: torch.Tensor) -> torch.Tensor:
        """Keys and values of a frame: (K, 2 * keys, h / 2, w / 2), at stride 32 in a quarter of the time."""
        stage5 = maps["stage5"] / MAGNITUDE
        return self._cells(stage5, self.value(self.encoder(stage5, masks[:, None]).relu()))

    def forward(
        self,
        maps: Maps,
        masks: torch.Tensor,
        shares: torch.Tensor,
        cells: torch.Tensor,
        recent: torch.Tensor,
    ) -> torch.Tensor:
        """(K, h, w) logits on the grid of "stage2".

        Args:
            maps: of the present frame.
            masks: of the frame before.
            shares, cells: what `refer` gave for the reference.
            recent: what `remember` gave for the last frame in which the objects were seen.
        """
        maps = {level: maps[level] / MAGNITUDE for level in LEVELS}
        grid = _grid(maps)
        encoding = self.encoder(maps["stage5"], masks[:, None])
        queries = self._keys(maps["stage5"])
        moved = (self._moved(queries, cells) + self._moved(queries, recent)) / 2
        found = self.global_convolution(torch.cat([encoding, moved.to(encoding.dtype)], dim=1), shares)
        scores = torch.cat([resize(found, grid), masks[:, None].to(found.dtype)], dim=1)
        return self.decoder(scores, maps, grid)

    def _cells(self, stage5: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        keys = self._keys(stage5).expand(values.shape[0], -1, -1, -1)
        cells = torch.cat([keys, values.float()], dim=1)
        return F.avg_pool2d(cells, 2, ceil_mode=True, count_include_pad=False)

    def _keys(self, stage5: torch.Tensor) -> torch.Tensor:
        """(B, keys, h, w) unit vectors."""
        return F.normalize(self.key(stage5).float(), dim=1)

    def _moved(self, queries: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """The reference's values, moved to where queries (1 or K, C, h, w) are like keys: (K, C, h, w)."""
        queries = (queries * self.log_sharpness.exp()).expand(cells.shape[0], -1, -1, -1)
        q, k, v = (x.flatten(2).transpose(1, 2)[:, None] for x in (queries, *cells.chunk(2, dim=1)))
        moved = F.scaled_dot_product_attention(q, k, v, scale=1.0)  # (K, 1, h * w, V)
        return moved[:, 0].transpose(1, 2).unflatten(2, queries.shape[-2:])


class LightRuns(nn.Module):
    """The network at all scales, for all objects at once.

    Args:
        backbone: that of the extractor; its weights are part of the method's.
        options: network, scales, precision.
    """

    def __init__(self, backbone: EfficientNetLite0, options: RGMPOptions):
        super().__init__()
        self.backbone, self.options = backbone, options
        self.network = LightGuidedNetwork(options.light_network)
        self.part = Part("run", self._run, (self.network,), batched=(4, 5, 6, 7))

    def refer(self, features: Features, masks: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Per scale what is remembered of a frame where objects were given: shares and cells, float32.

        Args:
            features: of the extractor, one frame.
            masks: (K, h, w) float, on the grid of "stage2" at scale 1.
        """
        with in_precision(self.options.precision, masks.device):
            pairs = [self.network.refer(*each) for each in self._scales(features, masks)]
        return [x.float().contiguous() for x, _ in pairs], [x.contiguous() for _, x in pairs]

    def remember(self, features: Features, masks: torch.Tensor) -> list[torch.Tensor]:
        """Per scale what is remembered of any later frame: cells; arguments as of `refer`."""
        with in_precision(self.options.precision, masks.device):
            return [self.network.remember(*each).contiguous() for each in self._scales(features, masks)]

    def forward(
        self, features: Features, masks: torch.Tensor, *remembered: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """(K, h, w) float32 logits on the grid of `masks`, the mean over the scales.

        Args:
            features, masks: as of `refer`.
            remembered: shares and cells of the reference, cells of the last frame; each per scale.
        """
        total = torch.zeros_like(masks)
        for (maps, guides), *rest in zip(self._scales(features, masks), *remembered, strict=True):
            logits = self.part(*maps.values(), guides, *rest)[0]
            total += resize(logits[:, None], (masks.shape[-2], masks.shape[-1]))[:, 0]
        return total / len(self.options.scales)

    def _scales(self, features: Features, masks: torch.Tensor) -> Iterator[tuple[Maps, torch.Tensor]]:
        """The maps of every scale, and the masks on their grid."""
        for k in range(len(self.options.scales)):
            maps = {level: features[f"{level}_{k}"] for level in LEVELS}
            yield maps, resize(masks[:, None], _grid(maps))[:, 0]

    def _run(self, *tensors: torch.Tensor) -> Tensors:
        """Logits from the maps of `LEVELS`, the masks and what is remembered, of one scale."""
        maps, (masks, *remembered) = dict(zip(LEVELS, tensors[:4], strict=True)), tensors[4:]
        with in_precision(self.options.precision, masks.device):
            return (self.network(maps, masks, *remembered).to(masks.dtype),)


def decode_light(
    evidence: Evidence, size: tuple[int, int], annotation: Annotation | None = None
) -> torch.Tensor:
    """Objects compete with odds; those of the background are one.

    So a single object keeps the probability that the network gave it.

    Returns:
        (1 + K, H, W) float32.
    """
    logits = F.pad(evidence["logits"], (0, 0, 0, 0, 1, 0))  # (1 + K, h, w)
    probabilities = resize(logits[None], size)[0].softmax(0)
    if annotation is None:
        return probabilities
    return insert_given(probabilities, evidence.object_ids, annotation)


def shrunk(size: tuple[int, int], stride: int = 4) -> tuple[int, int]:
    """(h, w) of the backbone's map at a stride, for frames of `size`."""
    return -(-size[0] // stride), -(-size[1] // stride)


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _grid(maps: Maps) -> tuple[int, int]:
    return maps["stage2"].shape[-2], maps["stage2"].shape[-1]
