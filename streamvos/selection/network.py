"""The network that turns clicks, a box and an earlier mask into the mask of one object.

    network = SelectorNetwork()
    logits, score = network(maps, prompts)      # maps of EfficientNet-Lite0, prompts (B, 5, H/4, W/4)
    logits.shape, score.shape                   # (B, H/4, W/4), (B,)

The maps of the shared backbone are reduced, joined with the prompts at strides 16, 8 and 4, and refined from
coarse to fine. At stride 16 the network also sees how much each place looks like what was pointed at:
clicking on a sleeve finds the rest of the coat.

Sources: Sofiiuk, Petrov, Konushin, Reviving Iterative Training with Mask Guidance for Interactive
Segmentation, 2021 (clicks as disks, the earlier mask as an input, the training); Liu, Mao, Wu et al., A
ConvNet for the 2020s, CVPR 2022 (the blocks).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.nn.efficientnet import CHANNELS

PROMPTS = ("positive", "negative", "box", "mask", "has mask")
"""Channels of the prompts, each in 0..1: disks around the clicks, the inside of the box, the probabilities of
an earlier mask, and one wherever there is such a mask."""

STRIDE = 4
"""Of prompts and logits, in pixels."""

DEEP, MIDDLE, FINE = 112, 64, 32
"""Channels of the decoder at strides 16, 8 and 4."""

SIMILARITIES = 5


class RMSNorm(nn.Module):
    """Divides the channels of every place by their root mean square."""

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * ((x.square().mean(1, keepdim=True) + 1e-6).rsqrt() * self.gain).to(x.dtype)


class Block(nn.Module):
    """A residual block: depthwise convolution, norm, 1x1 to twice the channels, ReLU, 1x1 back."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = RMSNorm(channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.project = nn.Conv2d(2 * channels, channels, 1)
        nn.init.zeros_(self.project.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.project(F.relu(self.expand(self.norm(self.spatial(x)))))


class Lateral(nn.Module):
    """A map of the backbone, normalised and reduced."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm, self.reduce = RMSNorm(inputs), nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.reduce(self.norm(x))


class SelectorNetwork(nn.Module):
    """See the docstring of this module. Its inputs are multiples of 32 pixels high and wide."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt4 = nn.Conv2d(len(PROMPTS), FINE, 3, padding=1)
        self.prompt8 = nn.Conv2d(FINE, MIDDLE, 3, stride=2, padding=1)
        self.prompt16 = nn.Conv2d(MIDDLE, DEEP, 3, stride=2, padding=1)
        near = CHANNELS["stage4"] + CHANNELS["stage5"]
        self.lateral32 = Lateral(CHANNELS["stage6"], DEEP)
        self.lateral16 = Lateral(near, DEEP)
        self.lateral8 = Lateral(CHANNELS["stage3"], MIDDLE)
        self.lateral4 = Lateral(CHANNELS["stage2"], FINE)
        self.look = nn.Conv2d(DEEP, 64, 1)
        self.similar = nn.Conv2d(SIMILARITIES, DEEP, 1)
        self.deep = nn.Sequential(*(Block(DEEP, 7) for _ in range(5)))
        self.to8, self.to4 = nn.Conv2d(DEEP, MIDDLE, 1), nn.Conv2d(MIDDLE, FINE, 1)
        self.middle = nn.Sequential(*(Block(MIDDLE, 5) for _ in range(3)))
        self.fine = nn.Sequential(
            nn.Conv2d(FINE, FINE, 3, padding=1), nn.ReLU(), nn.Conv2d(FINE, FINE, 3, padding=1)
        )
        self.logit = nn.Conv2d(FINE, 1, 3, padding=1)
        self.score = nn.Sequential(nn.Linear(2 * DEEP, DEEP), nn.ReLU(), nn.Linear(DEEP, 1))

    def forward(
        self, maps: Mapping[str, torch.Tensor], prompts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the object, and a guess at their quality.

        Args:
            maps: "stage2" to "stage6" of `EfficientNetLite0` on pictures (B, 3, H, W).
            prompts: (B, 5, H/4, W/4), see `PROMPTS`.

        Returns:
            Logits (B, H/4, W/4) float, and logits (B,) of the mask's IoU with the truth.
        """
        prompt4 = F.relu(self.prompt4(prompts))
        prompt8 = F.relu(self.prompt8(prompt4))
        prompt16 = self.prompt16(prompt8)
        near = self.lateral16(torch.cat([maps["stage4"], maps["stage5"]], dim=1))
        x = near + _enlarge(self.lateral32(maps["stage6"]), near)
        x = x + prompt16 + self.similar(self._similarities(self.look(x), prompts))
        deep = self.deep(x)
        shallow = self.lateral8(maps["stage3"])
        x = self.middle(shallow + prompt8 + _enlarge(self.to8(deep), shallow))
        shallow = self.lateral4(maps["stage2"])
        x = shallow + prompt4 + _enlarge(self.to4(x), shallow)
        logits = self.logit(F.relu(x + self.fine(x)))
        inside = F.adaptive_avg_pool2d(logits.detach().float().sigmoid(), deep.shape[-2:])
        of_object = (deep * inside).mean((2, 3)) / inside.mean((2, 3)).clamp_min(1e-3)
        score = self.score(torch.cat([of_object, deep.mean((2, 3))], dim=1).to(deep.dtype))
        return logits[:, 0].float(), score[:, 0].float()

    def _similarities(self, x: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """How much each place looks like the clicks, the earlier mask, the inside and outside of the box.

        (B, 64, h, w) and prompts (B, 5, 4h, 4w) to (B, 5, h, w) in -1..1; 0 where there is no such prompt.
        """
        keys = F.normalize(x.float(), dim=1)
        clicks = F.max_pool2d(prompts[:, :2], 4) > 0.5
        to_each = torch.einsum("bcn,bchw->bnhw", keys.flatten(2), keys)  # (B, h*w, h, w)
        found = []
        for kind in (0, 1):
            chosen = clicks[:, kind].flatten(1)[:, :, None, None]
            nearest = to_each.masked_fill(~chosen, -1.0).amax(1)
            found.append(nearest * chosen.any(1))
        box, mask, _ = F.avg_pool2d(prompts[:, 2:], 4).unbind(1)
        has_box = box.amax((1, 2), keepdim=True) > 0
        for weights in (mask, box, torch.where(has_box, 1 - box, 0)):
            mean = torch.einsum("bhw,bchw->bc", weights.float(), keys)
            found.append(torch.einsum("bc,bchw->bhw", F.normalize(mean, dim=1), keys))
        return torch.stack(found, dim=1).to(x.dtype)


def _enlarge(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
