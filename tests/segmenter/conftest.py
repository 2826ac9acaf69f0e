"""A tiny TVOS, its compiled extractor, and a clip: built once, since compiling takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from small_methods import SMALL

from streamvos.engines import EngineCache
from streamvos.engines.manifest import Manifest
from streamvos.methods import Method, build
from streamvos.methods.parts import ExtractorPart
from streamvos.segmenter.building import Builder
from streamvos.segmenter.gate import Clip
from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo

SIZE, FRAMES = (48, 64), 6


@dataclass(frozen=True)
class Built:
    """An engine and what it was built of."""

    make: Callable[[], Method]
    clip: Clip
    cache: EngineCache
    manifest: Manifest


def tiny() -> Method:
    """The same weights every time."""
    torch.manual_seed(0)
    return build("tvos", SMALL["tvos"])


@pytest.fixture(scope="session")
def clip() -> Clip:
    """Six frames with the objects 1 and 2."""
    options = SyntheticOptions(size=SIZE, length=FRAMES, objects=2, leave=0.0, motion=0.5)
    video = SyntheticVideo(13, options)
    return Clip("synthetic", [frame.image for frame in video], video[0].label_map)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, clip: Clip) -> Built:
    """The extractor for single frames, by aoti."""
    cache = EngineCache(tmp_path_factory.mktemp("built") / "engines")
    method = tiny()
    builder = Builder(method, torch.device("cpu"), cache)
    manifest = builder.build(method.parts()["extractor"], "aoti", ExtractorPart.example(SIZE, 1), clip)
    return Built(tiny, clip, cache, manifest)
