"""JOINT on EfficientNet-Lite0: one view of the whole frame for all objects, at any size.

    network = LightNetwork(options.network)
    maps = network.backbone(frames)                     # frames (B, 3, H, W), RGB in 0..1
    view = network.head.see(maps)
    labels = network.head.label_encoder(quarters)       # masks (K, 1, H/4, W/4), 0..1
    logits = network.head.decode(encoding, maps)        # encoding (K, D, H/16, W/16) -> (K, H/4, W/4)

The two branches and their decoder are those of the paper, with fewer channels. It differs in three ways:
remembered frames do not attend to each other, so remembering one costs little; the last frame is always among
them, and a second attention looks there for what lies near; and the first channel of every encoding is the
mask itself, whose propagation the training can therefore judge.

`backbone` is frozen and shared by all methods; what is trained is `head`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.methods.joint.decoder import JOINTDecoder
from streamvos.methods.joint.few_shot import FewShotLearner
from streamvos.methods.joint.network import Labels, ResidualBlock, View
from streamvos.methods.joint.options import JOINTNetworkOptions, JOINTOptions
from streamvos.methods.joint.transformer import TEMPERATURE
from streamvos.methods.parts import Part, Tensors
from streamvos.nn.efficientnet import CHANNELS, EfficientNetLite0
from streamvos.nn.precision import in_precision
from streamvos.nn.segmentation_network import SegmentationNetwork
from streamvos.types import Evidence, Features

LEVELS = ("stage6", "stage5", "stage3", "stage2")
"""What the decoder looks at, the deepest first."""

JOINED = ("stage3", "stage4", "stage5", "stage6")
"""What the branches look at."""

NEAR = 4.0
"""Standard deviation, in cells of 16 pixels, of how far things move from one frame to the next."""


class Neck(nn.Module):
    """Stages of the backbone joined at stride 16, each with features of unit mean square."""

    def __init__(self, width: int):
        super().__init__()
        self.reduce = nn.ModuleDict({name: nn.Conv2d(CHANNELS[name], width, 1) for name in JOINED})
        self.mix = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width), nn.ReLU(), nn.Conv2d(width, width, 1)
        )

    def forward(self, maps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B, width, h, w), stride 16."""
        grid, parts = maps["stage5"].shape[-2:], []
        for name, convolution in self.reduce.items():
            x = maps[name]
            x = convolution(x * (x.square().mean(1, keepdim=True) + 1e-5).rsqrt())
            parts.append(F.interpolate(x, grid, mode="bilinear", align_corners=False))
        joined = torch.stack(parts).sum(0)
        return joined + self.mix(joined)


class LabelEncoder(nn.Module):
    """Masks at a quarter of the size to encodings for each branch, and weights for the learner's labels.

    Args:
        widths: of the stem and of the block.
        outputs: D. The first channel of both encodings is the mask's mean in the cell.
    """

    def __init__(self, widths: tuple[int, int], outputs: int):
        super().__init__()
        self.outputs = outputs
        self.stem = nn.Conv2d(1, widths[0], 3, 2, padding=1)
        self.block = ResidualBlock(*widths)
        self.labels = nn.Conv2d(widths[1], 2 * (outputs - 1), 3, padding=1)
        self.importance = nn.Conv2d(widths[1], outputs, 3, padding=1)
        nn.init.zeros_(self.importance.weight)  # in the beginning every label counts alike
        assert self.importance.bias is not None
        nn.init.ones_(self.importance.bias)

    def forward(self, masks: torch.Tensor) -> Labels:
        """Encodings (K, D, h, w), from (K, 1, 4h, 4w) float in 0..1, soft or hard."""
        x = self.block(F.relu(self.stem(masks)))
        mean = F.adaptive_avg_pool2d(masks, (x.shape[-2], x.shape[-1]))
        induction, transduction = F.relu(self.labels(x)).split(self.outputs - 1, dim=1)
        return Labels(
            torch.cat([mean.to(x.dtype), induction], dim=1),
            self.importance(x),
            torch.cat([mean.to(x.dtype), transduction], dim=1),
        )


class LightHead(nn.Module):
    """All that is trained."""

    def __init__(self, options: JOINTNetworkOptions):
        super().__init__()
        self.labels = options.labels
        self.neck = Neck(options.channels)
        self.learner = FewShotLearner(options.channels, options.channels)
        self.keys = nn.Conv2d(options.channels, options.keys, 1)
        self.label_encoder = LabelEncoder(options.label_widths[1:], options.labels)
        self.fuse = nn.Conv2d(3 * options.labels, options.labels, 1)
        self.decoder = SegmentationNetwork(
            {name: CHANNELS[name] for name in LEVELS}, options.widths, options.labels, head="bilinear"
        )

    def see(self, maps: Mapping[str, torch.Tensor]) -> View:
        """Tokens of the branches; "transduction" are keys and queries (B, h*w, E) of unit length."""
        features = self.neck(maps)
        keys = F.normalize(self.keys(features).float(), dim=1).flatten(2).transpose(1, 2)
        return View({}, self.learner.tokens(features), keys.contiguous())

    def join(self, induced: torch.Tensor, carried: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        """What the decoder gets, (K, D, h, w), from the learner's answer and those of both attentions."""
        return F.relu(self.fuse(torch.cat([induced, carried, near], dim=1)))

    def decode(self, encoding: torch.Tensor, maps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(K, h, w) logits at a quarter of the frame's size; the maps are those of one frame, or of K."""
        finest = maps[LEVELS[-1]]
        return self.decoder(encoding, maps, (finest.shape[-2], finest.shape[-1]))


class LightNetwork(nn.Module):
    """The frozen backbone and the head."""

    def __init__(self, options: JOINTNetworkOptions):
        super().__init__()
        self.backbone = EfficientNetLite0(stages=6)
        self.head = LightHead(options)


def with_places(keys: torch.Tensor, grid: tuple[int, int], are_queries: bool) -> torch.Tensor:
    """Keys or queries whose products over the temperature have the logarithm of a Gaussian of the distance.

    -(p - r)^2 / 2 = p r - p^2 / 2 - r^2 / 2 is a product of four numbers of the query with four of the key.

    Args:
        keys: (..., h*w, E) float32.
        grid: (h, w).
        are_queries: whether they are queries.

    Returns:
        (..., h*w, E + 4).
    """
    rows, columns = (torch.arange(n, device=keys.device, dtype=keys.dtype) / NEAR for n in grid)
    rows, columns = rows - rows.mean(), columns - columns.mean()
    places = torch.stack([rows[:, None].expand(grid), columns[None].expand(grid)], dim=-1).flatten(0, 1)
    half = places.square().sum(1, keepdim=True) / 2
    ones = torch.ones_like(half)
    factors = [places, -half, ones] if are_queries else [places, ones, -half]
    more = torch.cat(factors, dim=1) * (TEMPERATURE if are_queries else 1)  # (h*w, 4)
    return torch.cat([keys, more.expand(*keys.shape[:-2], *more.shape)], dim=-1)


class LightExtractor(nn.Module):
    """Maps of the decoder's `LEVELS`; "induction" (B, C, h, w) and "keys" (B, E, h, w), stride 16."""

    def __init__(self, network: LightNetwork, options: JOINTOptions):
        super().__init__()
        self.network, self.precision = network, options.precision

    def forward(self, frames: torch.Tensor) -> Features:
        with in_precision(self.precision, frames.device):
            maps = self.network.backbone(frames.contiguous(memory_format=torch.channels_last))
            view = self.network.head.see(maps)
        grid = maps["stage5"].shape[-2:]
        tokens = {"induction": view.induction, "keys": view.transduction}
        of_branches = {n: x.to(frames.dtype).transpose(1, 2).unflatten(2, grid) for n, x in tokens.items()}
        levels = {name: maps[name].to(frames.dtype) for name in LEVELS}
        return Features(levels | of_branches, (frames.shape[-2], frames.shape[-1]))


class LightDecoder(JOINTDecoder):
    """Encodings to probabilities: segmentation network, and competition."""

    def __init__(self, network: LightNetwork, options: JOINTOptions):
        self.network, self.options = network, options
        self.part = Part("decoder", self._scores, (network.head.decoder,), batched=(0,))

    def logits(self, evidence: Evidence, size: tuple[int, int]) -> torch.Tensor:
        """(K, H, W) float32, each object for itself."""
        maps = [evidence[name] for name in LEVELS]
        some = evidence["encoding"].split(self.options.objects_at_once)
        scores = torch.cat([self.part(encoding, *maps)[0] for encoding in some])
        return F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]

    def _scores(self, encoding: torch.Tensor, *maps: torch.Tensor) -> Tensors:
        """(K, h, w) float32 logits at a quarter of the size."""
        with in_precision(self.options.precision, encoding.device):
            return (self.network.head.decode(encoding, dict(zip(LEVELS, maps, strict=True))).float(),)
