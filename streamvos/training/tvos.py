"""Training TVOS: from scratch on synthetic videos, or the authors' way on DAVIS and YouTube-VOS folders.

    streamvos train tvos --recipe synthetic --stills STILLS --out runs/tvos

The synthetic recipe asks more of the embedding than object labels do: every cell of the target frame
has to find its own surface in the references (cross-entropy to the true correspondences), its own
region, and its own layer (the authors' loss, on two kinds of label).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from streamvos.training.losses import cross_entropy_to_matches, log_affinity, mass_on_same_label
from streamvos.training.synthetic_clips import matches


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
                    index = queries if values.ndim == 3 else queries[..., None].expand(-1, -1, values.shape[-1])
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
