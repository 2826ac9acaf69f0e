"""Loading a method with bundled weights, a streamvos file or a published checkpoint.

method = load_method("tvos", weights="default", options={"top_k": 5})
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from streamvos.methods import METHODS, Method, build
from streamvos.methods.base import Origin
from streamvos.types import DEFAULT_METHOD, InputError
from streamvos.weights import feelvos, frtm, joint, rgmp, tvos
from streamvos.weights.checkpoints import Checkpoint, plain_names, read_checkpoint

FILES = Path(__file__).parent / "files"
BUNDLED = {name: f"{name}.safetensors" for name in ("tvos", "rgmp", "frtm-fast", "joint", "feelvos")}
"""Method -> the file of `weights="default"`; its model card has the same name."""

BACKBONE = "efficientnet-lite0"
"""The backbone that all bundled weights share: its name in the metadata of a head's file, and its file."""

LAYOUTS = {"tvos": tvos, "rgmp": rgmp, "frtm": frtm, "joint": joint, "feelvos": feelvos}
"""Method -> the module that converts what its authors published."""


def bundled_path(method: str) -> Path:
    """Path of the bundled weights of a method.

    Raises:
        InputError: none are bundled.
    """
    if method not in BUNDLED:
        known = ", ".join(sorted(BUNDLED))
        raise InputError(f"no weights are bundled for {method!r} (only for: {known}); give a path, or None")
    return FILES / BUNDLED[method]


def load_method(name: str, weights: str | Path | None, options: Mapping[str, Any]) -> Method:
    """A method with weights.

    Args:
        name: a key of `METHODS`.
        weights: "default" (bundled), the path of a streamvos file or a published checkpoint, or None
            (random).
        options: override those that come with the weights.

    Raises:
        InputError: see `build` and `read_checkpoint`; or the weights belong to another method or network.
    """
    given = _weights_for(name, weights, options)
    method = build(name, options) if given is None else build_with(name, *given)
    method.origin = Origin(name, None if weights is None else str(weights), dict(options))
    return method


def method_of(weights: str | Path | None) -> str:
    """The method that is meant where only weights are named: a file's own, else the default one.

    Raises:
        InputError: see `read_checkpoint`; or no method's weights are in the file.
    """
    if weights is None or weights == "default":
        return DEFAULT_METHOD
    return _recognized(read_checkpoint(weights), weights)


def check_method(name: str, weights: str | Path | None, options: Mapping[str, Any]) -> None:
    """Raise the `InputError` that `load_method` would raise, without making a network."""
    given = _weights_for(name, weights, options)
    if given is not None:
        _check_fits(name, *given)
        return
    with torch.device("meta"):
        build(name, options)


def _weights_for(
    name: str, weights: str | Path | None, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, torch.Tensor], Path] | None:
    """Options, tensors and their file for `build_with`; None for random weights."""
    if weights is None:
        return None
    if name not in METHODS:
        build(name)  # raises the error that lists the known ones
    path = bundled_path(name) if weights == "default" else Path(weights)
    checkpoint = read_checkpoint(path)
    family = METHODS[name].method.name
    found = _recognized(checkpoint, path)
    if found != family:
        raise InputError(f"{path} holds weights of {found!r}, not of {name!r}")
    tensors, stored = as_ours(checkpoint)
    return {**stored, **options}, tensors, path


def with_backbone(
    name: str, options: Mapping[str, Any], head: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The state dict of a method's networks: what was trained, and the bundled backbone.

    Args:
        name: a key of `METHODS`.
        options: the method's options.
        head: the networks' state dict without the backbone.
    """
    backbone = bundled_backbone()
    with torch.device("meta"):
        own = build(name, options).networks.state_dict()
    shared = {n: backbone[part] for n in own if (part := _of_backbone(n)) in backbone}
    return {**shared, **head}


def bundled_scores() -> dict[str, dict[str, dict[str, float]]]:
    """What the bundled weights score: data -> method -> measure ("J&F", "J_decay", ...) -> percent."""
    scores: dict[str, dict[str, dict[str, float]]] = json.loads((FILES / "scores.json").read_text("utf-8"))
    return scores


def backbone_path() -> Path:
    """Path of the backbone that the bundled weights share."""
    return FILES / f"{BACKBONE}.safetensors"


def selector_path() -> Path:
    """Path of the bundled weights of `streamvos.selection`."""
    return FILES / "selector.safetensors"


def bundled_backbone() -> dict[str, torch.Tensor]:
    """The state dict of the bundled `EfficientNetLite0(stages=6)`, float16."""
    return read_checkpoint(backbone_path()).tensors


def without_backbone(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict of a method's networks without the backbone, as a head's file holds it."""
    return {name: value for name, value in tensors.items() if not _of_backbone(name)}


def _of_backbone(name: str) -> str:
    """The backbone's own name of an entry such as "extractor.backbone.stem.weight"; "" for other entries."""
    _, separator, after = f".{name}".rpartition(".backbone.")
    return after if separator else ""


def build_with(
    name: str, options: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], path: Path
) -> Method:
    """A method with these weights; no memory is taken before they are known to fit.

    Args:
        name: a key of `METHODS`.
        options: the method's options.
        tensors: the state dict of its networks.
        path: file of the tensors, for error messages.

    Raises:
        InputError: see `build`; or names, shapes or types of the tensors that are not the network's.
    """
    _check_fits(name, options, tensors, path)
    method = build(name, options)
    method.networks.load_state_dict(plain_names(tensors), strict=False)  # without batch norm's counters
    return method


def recognize(checkpoint: Checkpoint) -> str | None:
    """Name of the method whose weights a file holds; None if the file's layout is unknown."""
    if checkpoint.metadata:
        return str(checkpoint.metadata.get("method"))
    names = list(checkpoint.tensors)
    return next((method for method, layout in LAYOUTS.items() if layout.is_authors_layout(names)), None)


def _recognized(checkpoint: Checkpoint, path: str | Path) -> str:
    """As `recognize`; an unknown layout is an error."""
    found = recognize(checkpoint)
    if found is None:
        some = ", ".join(sorted(checkpoint.tensors)[:3])
        raise InputError(
            f"{path} is neither a streamvos file nor a known checkpoint of any method (keys: {some}, ...)"
        )
    return found


def as_ours(
    checkpoint: Checkpoint, backbone: Checkpoint | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state dict for the method's networks, the shared backbone included, and the options of the weights.

    Args:
        checkpoint: a checkpoint that `recognize` knows.
        backbone: torchvision's ImageNet weights, for published checkpoints without a backbone (FRTM).

    Raises:
        InputError: names or shapes that do not belong to the layout; a backbone that is missing or not
            needed.
    """
    if checkpoint.metadata:
        if backbone is not None:
            raise InputError(f"{checkpoint.path} is a streamvos file and holds its backbone already")
        tensors, options = checkpoint.tensors, dict(checkpoint.metadata.get("options", {}))
        if checkpoint.metadata.get("backbone") == BACKBONE:
            tensors = with_backbone(str(recognize(checkpoint)), options, tensors)
        return tensors, options
    name = recognize(checkpoint)
    if name is None:
        raise InputError(f"{checkpoint.path} is not a known checkpoint")
    if name == "frtm":
        return frtm.from_authors(checkpoint.tensors, None if backbone is None else backbone.tensors)
    if backbone is not None:
        raise InputError(f"a checkpoint of {name!r} holds its backbone; leave --backbone out")
    return LAYOUTS[name].from_authors(checkpoint.tensors)


def _check_fits(
    name: str, options: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], path: Path
) -> None:
    """Compare a state dict with the networks of a method, which take no memory for this."""
    with torch.device("meta"):
        own, given = plain_names(build(name, options).networks.state_dict()), plain_names(tensors)
    missing, surplus = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or surplus:
        raise InputError(
            f"{path} does not fit the network: {len(missing)} entries missing {missing[:3]}, "
            f"{len(surplus)} not expected {surplus[:3]}"
        )
    for entry, value in given.items():
        expected = own[entry].shape
        if value.shape != expected:
            raise InputError(
                f"{path}: {entry} is {tuple(value.shape)}, the network expects {tuple(expected)}"
            )
        if not value.is_floating_point():
            raise InputError(f"{path}: {entry} is {value.dtype}, the network expects floating point")
        if not torch.isfinite(value).all():
            raise InputError(f"{path}: {entry} holds NaN or infinity")
