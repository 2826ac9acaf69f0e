"""Networks of a method that can be compiled: tensors in, tensors out, and a place for the compiled version.

    part = method.parts()["refiner"]
    part.replace(engine)            # from here on `part(...)` runs the engine
    part.replace(None)              # and now the method's own `part.plain` again

A method names its parts and calls its inner ones through `part(...)`; it does not know what runs there.
Nothing in a part depends on a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from streamvos.types import Features

Tensors = tuple[torch.Tensor, ...]
Run = Callable[..., Tensors]
"""Tensors in, tensors out."""

Size = tuple[int, int]
Layout = Sequence[tuple[str, bool]]
"""Of features: the name of each map, and whether it is the frames themselves."""


class Part:
    """One network of a method.

    Args:
        name: within the method.
        plain: tensors -> tensors, the method's own computation; stateless.
        modules: all modules whose weights `plain` uses.
        batched: numbers of the inputs whose first dimension counts frames or objects, which are independent;
            the other inputs are shared by all of them. None = all inputs. The first dimension of every
            output counts the same.
    """

    def __init__(
        self, name: str, plain: Run, modules: Sequence[nn.Module], batched: Sequence[int] | None = None
    ):
        self.name, self.plain, self.modules = name, plain, tuple(modules)
        self.batched = None if batched is None else frozenset(batched)
        self._run = plain

    def is_batched(self, number: int) -> bool:
        """Whether the first dimension of an input counts frames or objects."""
        return self.batched is None or number in self.batched

    def __call__(self, *tensors: torch.Tensor) -> Tensors:
        return self._run(*tensors)

    def replace(self, run: Run | None) -> None:
        """Run this instead, for everyone who shares the method; None = `plain` again."""
        self._run = self.plain if run is None else run


class PlainPart(nn.Module):
    """A part as a module, for exporters; it shares the method's weights."""

    def __init__(self, part: Part):
        super().__init__()
        self.modules_of_part = nn.ModuleList(part.modules)
        self._plain = part.plain

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        return self._plain(*tensors)


class ExtractorPart(Part):
    """A method's extractor, whose `Features` become a tuple of tensors and back.

    A map that is the frames themselves is no output; it bypasses the engine.

    Args:
        extractor: the method's extractor module.
    """

    def __init__(self, extractor: nn.Module):
        self._extractor = extractor
        super().__init__("extractor", self._tensors, (extractor,))

    def _tensors(self, frames: torch.Tensor) -> Tensors:
        return tuple(value for value in self._extractor(frames).maps.values() if value is not frames)

    @staticmethod
    def example(size: Size, batch: int) -> Tensors:
        """Noise as frames (H, W) come: (B, 3, H, W) float32 in 0..1, channels last in memory."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, (batch, *size, 3), generator=generator, dtype=torch.uint8)
        return (noise.permute(0, 3, 1, 2).float().div_(255),)

    def layout(self, frames: torch.Tensor) -> Layout:
        """The layout of the features of frames like these."""
        features: Features = self._extractor(frames)
        return [(name, value is frames) for name, value in features.maps.items()]


def assemble(layout: Layout, frames: torch.Tensor, outputs: Tensors) -> Features:
    """Features from the outputs of an `ExtractorPart`, or of its engine, for these frames."""
    rest = iter(outputs)
    maps = {name: frames if are_frames else next(rest) for name, are_frames in layout}
    return Features(maps, (frames.shape[-2], frames.shape[-1]))


def outline(size: Size, like: torch.Tensor) -> torch.Tensor:
    """A size as an empty tensor (H, W, 0), for parts whose output has a size that no other input has."""
    return like.new_empty((*size, 0))
