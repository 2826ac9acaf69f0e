"""The networks of JOINT.

    network = JOINTNetwork()
    view = network.see(crops)                            # crops (B, 3, 480, 832), BGR, mean subtracted
    labels = network.label_encoder(masks)                # masks (B, 1, 480, 832), 0..1
    logits = network.decoder(encoding, view.layers, (480, 832))     # encoding (B, 16, 30, 52)

Two branches look at the third stage of one backbone: filters that were fitted to the object (induction,
`few_shot`) and attention to remembered frames (transduction, `transformer`). Both put out encodings of the
mask, sixteen channels per feature cell that hold its outline; the segmentation network turns their sum into
a mask. The label encoder makes what the branches learn to put out, from masks at full resolution.

Source: Mao et al., Joint Inductive and Transductive Learning for Video Object Segmentation, ICCV 2021; the
layers are those of the authors' code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.methods.joint.few_shot import FewShotLearner
from streamvos.methods.joint.options import JOINTNetworkOptions
from streamvos.methods.joint.transformer import Transformer
from streamvos.nn.resnet import resnet
from streamvos.nn.segmentation_network import SegmentationNetwork

LEVELS = ("layer4", "layer3", "layer2", "layer1")
BRANCHES_SEE = "layer3"


class View(NamedTuple):
    """What the networks make of B pictures.

    Attributes:
        layers: "layer1" ... "layer4" -> (B, C, h, w), strides 4 to 32.
        induction: (B, h*w, C) features of the learner, stride 16.
        transduction: (B, h*w, C) features of the transformer.
    """

    layers: dict[str, torch.Tensor]
    induction: torch.Tensor
    transduction: torch.Tensor


class Labels(NamedTuple):
    """What masks become; each (B, D, h, w).

    Attributes:
        induction: what the filters shall put out, not negative.
        importance: how much each of these counts, any sign.
        transduction: what the attention carries, not negative.
    """

    induction: torch.Tensor
    importance: torch.Tensor
    transduction: torch.Tensor


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions at half the size, and a shortcut; no normalization."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.downsample = nn.Conv2d(inputs, outputs, 3, 2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.downsample(x))


class TwoHeadLabelEncoder(nn.Module):
    """Masks to encodings for each branch, and a weight for each label of the learner.

    Args:
        widths: of the stem and of the two blocks of each head.
        outputs: D.
    """

    def __init__(self, widths: tuple[int, int, int] = (16, 32, 64), outputs: int = 16):
        super().__init__()
        stem, middle, last = widths
        self.stem = nn.Conv2d(1, stem, 3, 2, padding=1)
        self.induction = nn.Sequential(ResidualBlock(stem, middle), ResidualBlock(middle, last))
        self.transduction = nn.Sequential(ResidualBlock(stem, middle), ResidualBlock(middle, last))
        self.induction_label = nn.Conv2d(last, outputs, 3, padding=1)
        self.induction_importance = nn.Conv2d(last, outputs, 3, padding=1)
        self.transduction_label = nn.Conv2d(last, outputs, 3, padding=1)
        nn.init.zeros_(self.induction_importance.weight)  # in the beginning every label counts alike
        assert self.induction_importance.bias is not None
        nn.init.ones_(self.induction_importance.bias)

    def forward(self, masks: torch.Tensor) -> Labels:
        """Encodings of ceil(H / 16) x ceil(W / 16) cells, from (B, 1, H, W) float in 0..1, soft or hard."""
        x = F.max_pool2d(F.relu(self.stem(masks)), 3, 2, padding=1)
        induction, transduction = self.induction(x), self.transduction(x)
        return Labels(
            F.relu(self.induction_label(induction)),
            self.induction_importance(induction),
            F.relu(self.transduction_label(transduction)),
        )


class JOINTNetwork(nn.Module):
    """See the head of this file."""

    def __init__(self, options: JOINTNetworkOptions | None = None):
        super().__init__()
        options = options or JOINTNetworkOptions()
        self.labels = options.labels
        self.backbone = resnet(options.depth, planes=options.planes, stride_in_1x1=True)
        channels = self.backbone.channels
        inputs = channels[BRANCHES_SEE]
        self.transformer = Transformer(inputs, options.channels, options.keys)
        self.learner = FewShotLearner(inputs, options.channels)
        self.label_encoder = TwoHeadLabelEncoder(options.label_widths, options.labels)
        self.decoder = SegmentationNetwork(
            {level: channels[level] for level in LEVELS}, options.widths, options.labels, head="direct"
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.backbone.conv1.weight.dtype

    def see(self, pictures: torch.Tensor) -> View:
        """What is made of pictures (B, 3, H, W), BGR of 0..255, mean subtracted."""
        layers = self.backbone(pictures)
        features = layers[BRANCHES_SEE]
        return View(layers, self.learner.tokens(features), self.transformer.tokens(features))

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers of a `View`, in their order."""
        return tuple(self.backbone.names)

    def no_filters(self, sequences: int, objects: int, like: torch.Tensor) -> torch.Tensor:
        """(S, K, D, C, 3, 3) zeros: what the learner begins with."""
        return like.new_zeros(sequences, objects, self.labels, like.shape[-1], 3, 3)
