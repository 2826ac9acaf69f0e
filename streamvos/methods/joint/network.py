"""The networks of JOINT, and how a clip runs through them in training.

    network = JOINTNetwork()
    view = network.see(crops)                            # crops (B, 3, 480, 832), BGR, mean subtracted
    prediction = network(clips, masks)                   # clips (S, 1 + F, 3, H, W), masks (S, H, W)

Two branches look at the third stage of one backbone: filters that were fitted to the object (induction) and
attention to remembered frames (transduction). Both put out encodings of the mask; the segmentation network
turns their sum into a mask.

Source: Mao et al., Joint Inductive and Transductive Learning for Video Object Segmentation, ICCV 2021.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from streamvos.methods.joint.few_shot import FewShotLearner, FewShotProblem, convolve, steepest_descent
from streamvos.methods.joint.label_encoder import Labels, TwoHeadLabelEncoder
from streamvos.methods.joint.transformer import Transformer, attend
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


class ClipPrediction(NamedTuple):
    """What training needs of a clip of 1 + F frames, the first of which is the template.

    Attributes:
        logits: (S, F, H, W).
        labels: encodings of the template's mask and of the predicted ones, each (S, 1 + F, D, h, w).
        induced: (S, F, D, h, w), what the filters put out.
        transduced: (S, F, D, h, w), what the attention carried.
    """

    logits: torch.Tensor
    labels: Labels
    induced: torch.Tensor
    transduced: torch.Tensor


class JOINTNetwork(nn.Module):
    """See the head of this file.

    Args:
        depth: of the ResNet, in the Detectron layout (stride in the first 1x1 convolution).
        planes: width of its stages.
        channels: C, of the features of both branches.
        keys: channels of queries and keys.
        labels: D, channels of an encoded mask.
        label_widths: channels of the label encoder's stages.
        widths: of the segmentation network, the deepest level first.
    """

    def __init__(
        self,
        depth: int = 50,
        planes: tuple[int, ...] = (64, 128, 256, 512),
        channels: int = 512,
        keys: int = 128,
        labels: int = 16,
        label_widths: tuple[int, int, int] = (16, 32, 64),
        widths: tuple[int, ...] = (256, 128, 128, 64),
    ):
        super().__init__()
        self.labels = labels
        self.backbone = resnet(depth, planes=planes, stride_in_1x1=True)
        inputs = self.backbone.channels[BRANCHES_SEE]
        self.transformer = Transformer(inputs, channels, keys)
        self.learner = FewShotLearner(inputs, channels)
        self.label_encoder = TwoHeadLabelEncoder(label_widths, labels)
        self.decoder = SegmentationNetwork(
            {level: self.backbone.channels[level] for level in LEVELS}, widths, labels, head="direct"
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.backbone.conv1.weight.dtype

    def see(self, pictures: torch.Tensor) -> View:
        """
        Args:
            pictures: (B, 3, H, W) BGR of 0..255, mean subtracted.
        """
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

    def forward(
        self, clips: torch.Tensor, masks: torch.Tensor, first_steps: int = 5, later_steps: int = 2
    ) -> ClipPrediction:
        """Follow the object of each clip from its first frame on; every prediction is remembered.

        Args:
            clips: (S, 1 + F, 3, H, W) BGR of 0..255, mean subtracted.
            masks: (S, H, W) of the first frames, 0 or 1.
            first_steps, later_steps: of the learner, on the first frame and after every later one.
        """
        count, size = clips.shape[:2], (clips.shape[-2], clips.shape[-1])
        view = self.see(clips.flatten(0, 1))
        induction, transduction = view.induction.unflatten(0, count), view.transduction.unflatten(0, count)
        queries = self.transformer.queries(view.transduction).unflatten(0, count)
        h, w = view.layers[BRANCHES_SEE].shape[-2:]
        filters = self.no_filters(count[0], 1, induction)
        remembered = [self.label_encoder(masks[:, None].to(clips.dtype))]
        logits, induced, transduced = [], [], []
        for now in range(1, count[1]):
            labels = Labels(*(torch.stack(parts, 1) for parts in zip(*remembered, strict=True)))
            problem = FewShotProblem(
                induction[:, :now].flatten(1, 2),
                labels.induction[:, None],
                labels.importance[:, None],
                (h, w),
            )
            steps = first_steps if now == 1 else later_steps
            filters = steepest_descent(filters, problem, self.learner.regularization, steps)
            induced.append(convolve(induction[:, now], filters, (h, w))[:, 0, 0])  # (S, D, h, w)
            keys = self.transformer.memory_keys(self.transformer.encode(transduction[:, :now]))
            carried = labels.transduction.permute(0, 1, 3, 4, 2).flatten(1, 3)  # (S, now*h*w, D)
            answer = attend(queries[:, now], keys.flatten(1, 2), carried)  # (S, h*w, D)
            transduced.append(answer.transpose(1, 2).unflatten(2, (h, w)))
            layers = {name: value.unflatten(0, count)[:, now] for name, value in view.layers.items()}
            logits.append(self.decoder(induced[-1] + transduced[-1], layers, size))
            remembered.append(self.label_encoder(logits[-1].detach().sigmoid()[:, None]))
        labels = Labels(*(torch.stack(parts, 1) for parts in zip(*remembered, strict=True)))
        return ClipPrediction(
            torch.stack(logits, 1), labels, torch.stack(induced, 1), torch.stack(transduced, 1)
        )
