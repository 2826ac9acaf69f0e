"""Training what a method adds to the frozen backbone, on features that are kept on disk.

    path = train_head(RECIPE, Path("features"), training, clips, Path("runs/frtm"))
    streamvos.load("frtm-fast", path)

A method's module in this package has a `Recipe`; everything else is the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamvos.methods import METHODS, Method, build
from streamvos.training.features import FeatureClipOptions, FeatureClips
from streamvos.training.loop import Loss, Report, Say, TrainingOptions, say_in_log, train
from streamvos.training.results import digest_of, write_results
from streamvos.weights import BACKBONE, load_method, with_backbone, without_backbone


@dataclass(frozen=True)
class Recipe:
    """How the head of a method is trained.

    Attributes:
        method: a key of `METHODS`.
        options: of the method; they are stored with the weights.
        network: the method -> the module to train; it holds nothing of the backbone.
        loss: the method -> the loss of that module on a batch of `FeatureClips`.
        training: `TrainingOptions` that differ from `DEFAULTS`.
        clips: `FeatureClipOptions` that differ from their defaults.
    """

    method: str
    options: Mapping[str, Any]
    network: Callable[[Method], nn.Module]
    loss: Callable[[Method], Loss]
    training: Mapping[str, Any] = field(default_factory=dict)
    clips: Mapping[str, Any] = field(default_factory=dict)


DEFAULTS: Mapping[str, Any] = {
    "steps": 3000,
    "batch": 4,
    "learning_rate": 1e-3,
    "weight_decay": 1e-3,
    "warmup": 100,
    "average": 0.998,
    "clip_gradient": 1.0,
}
"""`TrainingOptions` of all recipes, unless they say otherwise."""


def train_head(
    recipe: Recipe,
    features: Path,
    training: TrainingOptions,
    clips: FeatureClipOptions,
    folder: Path,
    report: Report | None = None,
    say: Say = say_in_log,
    initial: str | Path | None = None,
) -> Path:
    """Train a head, resuming the run in `folder`.

    Args:
        features: what `streamvos.training.features.make_features` wrote.
        folder: receives checkpoint.pt, losses.jsonl, METHOD.safetensors and losses.png.
        initial: weights to begin with, "default" (the bundled ones) or a file; None = random ones.

    Returns:
        Path of the weights, a file for `streamvos.load(recipe.method, path)`.

    Raises:
        InputError: there are no features, or `initial` are no weights of this method; and see `train`.
        SourceError, SinkError: see `train`.
    """
    data = FeatureClips(features, clips, training.seed)
    if initial is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            method = build(recipe.method, recipe.options)
        method.networks.load_state_dict(with_backbone(recipe.method, recipe.options, {}), strict=False)
    else:
        method = load_method(recipe.method, initial, recipe.options)
    network = recipe.network(method)
    description = {"name": "features", "clips": data.describe()}
    if initial is not None:
        description["initial"] = digest_of(method.networks.state_dict())
    metadata = {"options": dict(recipe.options), "recipe": description, "backbone": BACKBONE}
    make_batch = partial(data.batch, size=training.batch)
    trained = train(network, recipe.loss(method), make_batch, training, folder, report, metadata, say)
    network.load_state_dict(trained.weights)
    weights = {name: value.half() for name, value in without_backbone(method.networks.state_dict()).items()}
    return write_results(
        folder, METHODS[recipe.method].method.name, trained, weights, training, metadata, say
    )
