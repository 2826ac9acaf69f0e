"""Training TVOS the authors' way, on DAVIS and YouTube-VOS folders.

streamvos train tvos --recipe authors --data DAVIS --out runs/authors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamvos.datasets.clips import VideoDataset
from streamvos.methods.tvos.method import TVOSExtractor
from streamvos.methods.tvos.options import TVOSNetwork, TVOSOptions
from streamvos.training.davis_clips import AuthorsClipOptions, AuthorsClips
from streamvos.training.loop import Loss, MakeBatch, Report, Say, TrainingOptions, say_in_log, train
from streamvos.training.losses import log_affinity, mass_on_same_label
from streamvos.training.results import digest_of, write_results
from streamvos.types import InputError
from streamvos.weights.tvos import from_authors, is_authors_layout

AUTHORS_NETWORK = TVOSNetwork()
"""The authors' ResNet-50."""

AUTHORS_BATCH = 16
"""Clips per step in the authors' training."""

AUTHORS_BATCH_PER_GPU = 4
"""Clips that go through the network together; batch norm sees only these (docs/methods.md, TVOS)."""


def embed(extractor: nn.Module, frames: torch.Tensor) -> torch.Tensor:
    """Embeddings of clips, (B, T, cells, C) float32, of frames (B, T, 3, S, S) uint8."""
    clips, length = frames.shape[:2]
    images = (frames.flatten(0, 1).float() / 255).contiguous(memory_format=torch.channels_last)
    embedding = extractor(images)["embedding"]
    return embedding.flatten(2).transpose(1, 2).unflatten(0, (clips, length)).float()


def authors_loss(extractor: nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The authors' loss: the last frame of a clip gets its labels from the others (TVOS eq. 5).

    The temperature is 1, as in their code.
    """
    embedding = embed(extractor, batch["frames"])
    with torch.autocast(embedding.device.type, enabled=False):
        affinity = log_affinity(embedding[:, :-1].flatten(1, 2), embedding[:, -1], temperature=1.0)
        labels = batch["labels"]
        references, target = labels[:, :-1].flatten(1), labels[:, -1]
        total = mass_on_same_label(affinity.exp(), references, target, missing="floor")
    return {"total": total}


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a training run of TVOS.

    Attributes:
        description: data and loss, in JSON types.
        inference: options of the method, which are stored with the trained weights; `network` among them.
    """

    loss: Loss
    make_batch: MakeBatch
    training: TrainingOptions
    description: dict[str, Any]
    inference: TVOSOptions


def authors_recipe(
    dataset: VideoDataset[Any],
    training: TrainingOptions,
    clips: AuthorsClipOptions,
    network: TVOSNetwork = AUTHORS_NETWORK,
) -> Recipe:
    """The authors' recipe (docs/methods.md, TVOS).

    Args:
        dataset: DAVIS 2017 or YouTube-VOS.
        training: see `authors_training` for the authors' numbers.

    Raises:
        InputError: the data set has too few frames for a clip or a batch.
    """
    data = AuthorsClips(dataset, clips, training.seed)
    data.steps_per_epoch(training.batch)  # refuses a batch larger than the data set
    return Recipe(
        loss=authors_loss,
        make_batch=partial(data.batch, size=training.batch),
        training=training,
        description={"name": "authors", "clips": data.describe()},
        inference=TVOSOptions(network=network),
    )


def authors_training(steps_per_epoch: int, batch: int = AUTHORS_BATCH) -> TrainingOptions:
    """The authors' optimizer and schedule: 240 epochs, SGD, a cosine that changes with the epoch.

    Args:
        steps_per_epoch: see `AuthorsClips.steps_per_epoch`.
        batch: clips per step; if 4 divides it, in parts of 4, as on each of the authors' GPUs.
    """
    return TrainingOptions(
        steps=240 * steps_per_epoch,
        batch=batch,
        parts=1 if batch % AUTHORS_BATCH_PER_GPU else batch // AUTHORS_BATCH_PER_GPU,
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


def initialize(extractor: TVOSExtractor, initial: Mapping[str, torch.Tensor]) -> list[str]:
    """Load initial weights as far as they fit.

    Args:
        extractor: changed in place.
        initial: state dict of an ImageNet classifier in torchvision's names, of the authors, or of this
            package. Entries that the network does not have (`fc`) and those of another shape (the authors'
            layer4) are skipped.

    Returns:
        The names of the loaded entries; all others stay random.

    Raises:
        InputError: no entry fits, or a fitting one holds NaN or infinity; nothing was changed.
    """
    if is_authors_layout(list(initial)):
        initial, _ = from_authors(initial)
    own = {name: value for name, value in extractor.state_dict().items() if value.is_floating_point()}
    fitting = {}
    for name, value in initial.items():
        plain = name.removeprefix("module.")
        place = plain if plain in own else f"backbone.{plain}"
        if place in own and own[place].shape == value.shape:
            if not torch.isfinite(value).all():
                raise InputError(f"the initial weights hold NaN or infinity in {name}; give another file")
            fitting[place] = value
    if not fitting:
        raise InputError(
            f"none of the {len(initial)} initial weights fits the network (they are named "
            f"{', '.join(list(initial)[:3])}, ...); expected names and shapes of a torchvision ResNet, such "
            f"as conv1.weight {tuple(own['backbone.conv1.weight'].shape)}"
        )
    extractor.load_state_dict(fitting, strict=False)
    return sorted(fitting)


def train_tvos(
    recipe: Recipe,
    folder: Path,
    report: Report | None = None,
    initial: Mapping[str, torch.Tensor] | None = None,
    say: Say = say_in_log,
) -> Path:
    """Run a recipe to its end, resuming the run in `folder`.

    Args:
        folder: receives checkpoint.pt, losses.jsonl, tvos.safetensors, and, if matplotlib is installed,
            losses.png.
        initial: initial weights, see `initialize`.

    Returns:
        Path of the weights, a file for `streamvos.load("tvos", path)`. It contains the recipe's options for
        inference.

    Raises:
        InputError, SourceError, SinkError: see `train` and `initialize`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.training.seed)
        extractor = TVOSExtractor(recipe.inference.network)
    network = recipe.inference.network.model_dump(mode="json")
    description = {**recipe.description, "network": network, "initial": None}
    if initial is not None:
        taken = initialize(extractor, initial)
        state = extractor.state_dict()
        digest = digest_of({name: state[name] for name in taken})
        description["initial"] = {"entries": len(taken), "digest": digest}
        say(f"initial weights: {len(taken)} entries taken; random: {_rest(extractor, taken)}")
    identity, training = {"recipe": description}, recipe.training
    trained = train(extractor, recipe.loss, recipe.make_batch, training, folder, report, identity, say)
    options = {**recipe.inference.model_dump(mode="json", exclude_defaults=True), "network": network}
    metadata = {"options": options, "recipe": description}
    return write_results(folder, "tvos", trained, trained.weights, training, metadata, say)


def _rest(extractor: nn.Module, taken: list[str]) -> str:
    """The parts of the network that were not loaded entirely, such as "layer4, adjust_dim"."""
    left = [n for n, v in extractor.state_dict().items() if v.is_floating_point() and n not in taken]
    parts = [name.removeprefix("backbone.").split(".")[0] for name in left]
    return ", ".join(dict.fromkeys(parts)) or "nothing"
