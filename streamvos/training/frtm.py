"""Training FRTM's segmentation network on a frozen backbone, with synthetic videos.

    streamvos train frtm --stills STILLS --out runs/frtm

A clip shows one object. Its target model is fitted to the first frame, as at inference; the segmentation
network learns to turn the target model's scores on the other frames into masks (binary cross-entropy, as the
authors). Only the segmentation network is trained. The authors' data (DAVIS, YouTube-VOS) and their ImageNet
backbone are not needed; docs/methods.md, FRTM, lists the differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from streamvos.engines.eager import choose_device
from streamvos.methods.frtm import FRTM, FRTM_FAST, FRTMExtractor, FRTMOptions
from streamvos.methods.frtm.options import TARGET_LEVEL
from streamvos.nn.segmentation_network import SegmentationNetwork
from streamvos.nn.target_model.learning import learn_both, make_samples, project, score
from streamvos.training.loop import Report, Say, TrainingOptions, say_in_log, train
from streamvos.training.results import digest_of, write_results
from streamvos.training.synthetic_clips import ClipOptions, MaskClips
from streamvos.types import InputError

NETWORK: dict[str, Any] = {
    "depth": 18,
    "stages": 3,
    "planes": (64, 128, 192, 512),
    "strides": (1, 2, 1, 1),
}
"""The frozen backbone, that of the bundled TVOS weights: three stages, the last at stride 8."""

INFERENCE: dict[str, Any] = {**FRTM_FAST, **NETWORK, "precision": "auto"}
"""Options that are stored with the weights: the paper's fast variant on that backbone."""


class SegmentationLoss:
    """Cross-entropy of the masks of a clip's later frames, given the first.

    Args:
        method: its extractor is frozen; its options fit the target models.
    """

    def __init__(self, method: FRTM):
        self.extractor = method.extractor.eval().requires_grad_(False)
        self.method = method

    def __call__(self, network: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Losses of a `SegmentationNetwork` on a batch of `MaskClips`; "overlap" is the mean IoU."""
        clips, length = batch["frames"].shape[:2]
        frames = batch["frames"].flatten(0, 1).float().div(255)
        frames = frames.contiguous(memory_format=torch.channels_last)
        features = self.extractor(frames)
        scores = []
        with torch.no_grad(), torch.autocast(frames.device.type, enabled=False):
            target_features = features[TARGET_LEVEL].float().unflatten(0, (clips, length))
            for own, masks in zip(target_features, batch["masks"], strict=True):
                scores.append(self._scores(own, masks))
        later = [row for row in range(clips * length) if row % length]
        levels = {name: features[name][later] for name in self.method.decoder.refiner.levels}
        size = (frames.shape[-2], frames.shape[-1])
        logits = network(torch.cat(scores)[:, None], levels, size)
        truth = batch["masks"][:, 1:].flatten(0, 1)
        with torch.autocast(frames.device.type, enabled=False):
            total = F.binary_cross_entropy_with_logits(logits.float(), truth)
        found, true = logits.detach() > 0, truth > 0.5
        both, either = (found & true).sum((1, 2)), (found | true).sum((1, 2))
        overlap = torch.where(either > 0, both / either.clamp_min(1), 1.0).mean()
        return {"total": total, "overlap": overlap}

    def _scores(self, features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Scores (T - 1, h, w) of later frames; features (T, C, h, w), masks (T, S, S) of the clip."""
        options = self.method.options
        # the frame's features and their mirror image; augmented frames, as at inference, cost more
        first = torch.stack([features[0], features[0].flip(-1)])
        labels = torch.stack([masks[0], masks[0].flip(-1)])
        grid = (features.shape[-2], features.shape[-1])
        samples = make_samples(labels, grid, options.least_share, options.min_pixels, options.pixel_weights)
        initial = self.method.initial_weights(1, features.shape[1], options.target_channels)
        importance = features.new_tensor([2 / 3, 1 / 3])
        weights = learn_both(first, samples, importance, initial, options.init_iterations, options.rule)
        return score(project(features[1:], weights.projection), weights.filter)


def train_frtm(
    training: TrainingOptions,
    clips: ClipOptions,
    options: FRTMOptions,
    folder: Path,
    backbone: Mapping[str, torch.Tensor],
    report: Report | None = None,
    say: Say = say_in_log,
) -> Path:
    """Train the segmentation network, resuming the run in `folder`.

    Args:
        options: options of the method; they are stored with the weights.
        folder: receives checkpoint.pt, losses.jsonl, frtm.safetensors and losses.png.
        backbone: see `load_backbone`; it is frozen.

    Returns:
        Path of the weights, a file for `streamvos.load("frtm", path)`.

    Raises:
        InputError: the backbone does not fit; and see `train`.
        SourceError, SinkError: see `train`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        method = FRTM(options)
    load_backbone(method.extractor, backbone)
    method.extractor.to(choose_device(training.device))
    data = MaskClips(clips, training.seed)
    description = {
        "name": "synthetic",
        "clips": data.describe(),
        "backbone": digest_of(method.extractor.backbone.state_dict()),
    }
    shape = options.model_dump(mode="json", exclude_defaults=True)
    metadata = {"options": shape, "recipe": description}
    network: SegmentationNetwork = method.decoder.refiner
    loss, make_batch = SegmentationLoss(method), partial(data.batch, size=training.batch)
    trained = train(network, loss, make_batch, training, folder, report, metadata, say)
    network.load_state_dict(trained.weights)
    return write_results(folder, "frtm", trained, method.networks.state_dict(), training, metadata, say)


def load_backbone(extractor: FRTMExtractor, tensors: Mapping[str, torch.Tensor]) -> None:
    """Load all weights of a backbone, in place.

    Args:
        tensors: state dict in torchvision's names, with or without the prefix "backbone." or
            "extractor.backbone."; other entries are skipped.

    Raises:
        InputError: an entry is missing, has another shape or is not finite; nothing was changed.
    """
    plain = {name.rpartition("backbone.")[2]: value for name, value in tensors.items()}
    own = {n: v for n, v in extractor.backbone.state_dict().items() if not n.endswith("num_batches_tracked")}
    wrong = [n for n, v in own.items() if n not in plain or plain[n].shape != v.shape]
    if wrong:
        raise InputError(
            f"the backbone's weights do not fit: {len(wrong)} of {len(own)} entries are missing or of "
            f"another shape, such as {wrong[0]} {tuple(own[wrong[0]].shape)}"
        )
    infinite = [n for n in own if not torch.isfinite(plain[n]).all()]
    if infinite:
        raise InputError(f"the backbone's weights hold NaN or infinity in {infinite[0]}; give another file")
    extractor.backbone.load_state_dict({n: plain[n] for n in own}, strict=False)
