"""Training TVOS: from scratch on synthetic videos, or the authors' way on DAVIS and YouTube-VOS folders.

    streamvos train tvos --stills STILLS --out runs/tvos
    streamvos train tvos --recipe authors --data DAVIS --out runs/authors

The synthetic recipe asks more of the embedding than object labels do: every cell of the target frame
has to find its own surface in the references (cross-entropy to the true correspondences), its own
region, and its own layer (the authors' loss, on two kinds of label).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamvos.methods.tvos import TVOSExtractor, TVOSNetwork, TVOSOptions
from streamvos.training.davis_clips import AuthorsClipOptions, AuthorsClips, ClipDataset
from streamvos.training.loop import Loss, Report, TrainingOptions, plot_losses, train
from streamvos.training.losses import cross_entropy_to_matches, log_affinity, mass_on_same_label
from streamvos.training.synthetic_clips import ClipOptions, SyntheticClips, matches
from streamvos.weights import save_weights

SYNTHETIC_NETWORK = TVOSNetwork(depth=18, stages=3, planes=(64, 128, 192, 256), embedding=128, normalize=True)
"""The network of the bundled weights: small enough for a CPU."""

SYNTHETIC_INFERENCE: dict[str, Any] = {
    "schedule": "consecutive",
    "references": 7,
    "keep_first": True,
    "history_labels": "soft",
    "temperature": 14.0,
    "spatial_prior": "none",
    "top_k": 10,
    "radius": 12,
}
"""Inference options that suit normalized embeddings; chosen on five sequences, docs/results.md."""


def embed(extractor: nn.Module, frames: torch.Tensor, channels_last: bool = True) -> torch.Tensor:
    """Embeddings of clips.

    Args:
        extractor: a `TVOSExtractor`.
        frames: (B, T, 3, S, S) uint8.
        channels_last: memory format that the frames are given in.

    Returns:
        (B, T, cells, C) float32.
    """
    clips, length = frames.shape[:2]
    images = frames.flatten(0, 1).float() / 255
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    embedding = extractor(images)["embedding"]
    return embedding.flatten(2).transpose(1, 2).unflatten(0, (clips, length)).float()


class SyntheticLoss:
    """Correspondence, region and layer losses; every frame of a clip is once the target of the others.

    Args:
        temperature: multiplies the similarities.
        correspondence, region, layer: weights of the three losses.
    """

    def __init__(
        self, temperature: float = 14.0, correspondence: float = 1.0, region: float = 0.5, layer: float = 1.0
    ):
        self.temperature = temperature
        self.weights = {"correspondence": correspondence, "region": region, "layer": layer}

    def __call__(self, extractor: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        embedding = embed(extractor, batch["frames"])
        length = embedding.shape[1]
        losses: dict[str, list[torch.Tensor]] = {name: [] for name in self.weights}
        with torch.autocast(embedding.device.type, enabled=False):
            for target in range(length):
                others = [k for k in range(length) if k != target]
                queries = batch["queries"][:, target]

                def split(values: torch.Tensor, target=target, others=others, queries=queries):
                    """References (B, N, ...) and queried cells of the target (B, Q, ...)."""
                    index = (
                        queries if values.ndim == 3 else queries[..., None].expand(-1, -1, values.shape[-1])
                    )
                    return values[:, others].flatten(1, 2), values[:, target].gather(1, index)

                affinity = log_affinity(*split(embedding), self.temperature)
                layers = split(batch["layer"])
                true = matches(split(batch["coordinates"]), layers)
                losses["correspondence"].append(cross_entropy_to_matches(affinity, true))
                shares = affinity.exp()
                losses["region"].append(mass_on_same_label(shares, *split(batch["region"]), floor=1e-6))
                losses["layer"].append(mass_on_same_label(shares, *layers, floor=1e-6))
        means = {name: torch.stack(values).mean() for name, values in losses.items()}
        total = torch.stack([self.weights[name] * value for name, value in means.items()]).sum()
        return {"total": total, **{name: value.detach() for name, value in means.items()}}


class AuthorsLoss:
    """The authors' loss: the last frame of a clip takes its labels from the others (TVOS eq. 5).

    Args:
        temperature: multiplies the similarities; the authors' is 1.
    """

    def __init__(self, temperature: float = 1.0):
        self.temperature = temperature

    def __call__(self, extractor: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        embedding = embed(extractor, batch["frames"])
        with torch.autocast(embedding.device.type, enabled=False):
            affinity = log_affinity(embedding[:, :-1].flatten(1, 2), embedding[:, -1], self.temperature)
            labels = batch["labels"]
            references, target = labels[:, :-1].flatten(1), labels[:, -1]
            total = mass_on_same_label(affinity.exp(), references, target, missing="floor")
        return {"total": total}


@dataclass(frozen=True)
class Recipe:
    """Everything that a training run of TVOS is.

    Attributes:
        network: what is trained.
        loss: what is minimized.
        make_batch: step -> batch.
        training: steps, optimizer, schedule.
        description: says in JSON what the data and the loss were.
        inference: options of the method that go with the trained weights.
    """

    network: TVOSNetwork
    loss: Loss
    make_batch: Callable[[int], dict[str, torch.Tensor]]
    training: TrainingOptions
    description: dict[str, Any]
    inference: TVOSOptions


def synthetic_recipe(
    training: TrainingOptions, clips: ClipOptions, network: TVOSNetwork = SYNTHETIC_NETWORK
) -> Recipe:
    """From scratch on synthetic videos; the recipe of the bundled weights.

    Args:
        training: see `TrainingOptions`.
        clips: see `ClipOptions`.
        network: any.
    """
    data, loss = SyntheticClips(clips, training.seed), SyntheticLoss()
    description = {
        "recipe": "synthetic",
        "clips": clips.model_dump(mode="json", exclude={"stills"}),
        "stills": clips.stills is not None,
        "temperature": loss.temperature,
        "weights": loss.weights,
    }
    inference = TVOSOptions(network=network, **SYNTHETIC_INFERENCE)
    return Recipe(
        network, loss, lambda step: data.batch(step, training.batch), training, description, inference
    )


def authors_recipe(
    dataset: ClipDataset, training: TrainingOptions | None = None, clips: AuthorsClipOptions | None = None
) -> Recipe:
    """The authors' recipe: 240 epochs of 16 clips, SGD, cosine per epoch (methods/tvos.md, section 6).

    Args:
        dataset: DAVIS 2017 or YouTube-VOS.
        training: overrides; None takes the authors' numbers for this data set.
        clips: see `AuthorsClipOptions`.
    """
    clips = clips or AuthorsClipOptions()
    seed = 0 if training is None else training.seed
    data = AuthorsClips(dataset, clips, seed)
    options = training or authors_training(data.steps_per_epoch(16))
    description = {"recipe": "authors", "clips": clips.model_dump(mode="json"), "frames": dataset.frame_count}
    return Recipe(
        TVOSNetwork(),
        AuthorsLoss(),
        lambda step: data.batch(step, options.batch),
        options,
        description,
        TVOSOptions(),
    )


def authors_training(steps_per_epoch: int, epochs: int = 240) -> TrainingOptions:
    """The authors' optimizer and schedule."""
    return TrainingOptions(
        steps=epochs * steps_per_epoch,
        batch=16,
        optimizer="sgd",
        learning_rate=0.02,
        final_learning_rate=4e-5,
        weight_decay=3e-4,
        warmup=0,
        schedule_every=steps_per_epoch,
        average=0,
        clip_gradient=None,
        precision="float32",
    )


def train_tvos(
    recipe: Recipe,
    folder: Path,
    report: Report | None = None,
    initial: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Run a recipe to its end, resuming what `folder` holds.

    Args:
        recipe: see `Recipe`.
        folder: receives checkpoint.pt, losses.jsonl, losses.png and tvos.safetensors.
        report: see `train`.
        initial: entries of the backbone's state dict to begin with, such as ImageNet's in torchvision's
            names; entries of another shape (the authors' layer4) and missing ones stay random.

    Returns:
        Path of the weights.
    """
    torch.manual_seed(recipe.training.seed)
    extractor = TVOSExtractor(recipe.network)
    if initial is not None:
        own = extractor.backbone.state_dict()
        fitting = {n: v for n, v in initial.items() if n in own and own[n].shape == v.shape}
        extractor.backbone.load_state_dict(fitting, strict=False)
    description = {**recipe.description, "network": recipe.network.model_dump(mode="json")}
    state = train(extractor, recipe.loss, recipe.make_batch, recipe.training, folder, report, description)
    plot_losses(folder / "losses.jsonl", folder / "losses.png")
    metadata = {
        "options": recipe.inference.model_dump(mode="json", exclude_defaults=True),
        "training": {**description, **recipe.training.model_dump(mode="json")},
    }
    path = folder / "tvos.safetensors"
    save_weights(
        path, {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}, "tvos", metadata
    )
    return path
