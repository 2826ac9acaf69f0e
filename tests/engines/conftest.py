"""A tiny TVOS, its compiled extractor, and a clip: built once, since compiling takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from small_methods import SMALL

from streamvos.engines.building import Builder
from streamvos.engines.cache import EngineCache
from streamvos.engines.gate import Clip
from streamvos.engines.manifest import Manifest
from streamvos.engines.recipes import recipe_for
from streamvos.methods import Method, build
from streamvos.segmenter import follow
from streamvos.synthetic.synthetic import SyntheticOptions, SyntheticVideo

SIZE, FRAMES = (48, 64), 6


@dataclass(frozen=True)
class Built:
    """An engine and what it was built of."""

    make: Callable[[], Method]
    clip: Clip
    cache: EngineCache
    manifest: Manifest

    def builder(
        self, method: Method, cache: EngineCache, progress: Callable[[str], None] = lambda step: None
    ) -> Builder:
        """A builder of a method's extractor."""
        return builder_of(method, cache, self.clip, progress)


def tiny() -> Method:
    """The same weights every time."""
    torch.manual_seed(0)
    return build("tvos", SMALL["tvos"])


def builder_of(
    method: Method, cache: EngineCache, clip: Clip, progress: Callable[[str], None] = lambda step: None
) -> Builder:
    recipe = recipe_for(method.name, "extractor")
    assert recipe is not None
    return Builder(method, recipe, torch.device("cpu"), cache, follow, clip, progress)


@pytest.fixture(scope="session")
def clip() -> Clip:
    """Six frames with the objects 1 and 2."""
    options = SyntheticOptions(size=SIZE, length=FRAMES, objects=2, leave=0.0, motion=0.5)
    video = SyntheticVideo(13, options)
    return Clip([frame.image for frame in video], video[0].label_map)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, clip: Clip) -> Built:
    """The extractor for 1 to 8 frames, by aoti."""
    cache = EngineCache(tmp_path_factory.mktemp("built") / "engines")
    builder = builder_of(tiny(), cache, clip)
    return Built(tiny, clip, cache, builder.build("aoti", builder.inputs()[0]))
