"""The method of a pipeline, loaded once per worker and shared by its stages.

A method outside the package is named by its factory: `name = "my_package.my_module:make"` calls
`make(**options)`, which returns a `streamvos.methods.Method`.
"""

from __future__ import annotations

from importlib import import_module

import torch

from streamvos.engines.cache import EngineCache
from streamvos.methods import Method
from streamvos.pipeline.config.tables import MethodConfig
from streamvos.pipeline.stages.stage import StageContext
from streamvos.segmenter import Extraction
from streamvos.types import InputError
from streamvos.weights import load_method


def shared_extraction(context: StageContext) -> Extraction:
    """The method's extractor on its device, shared by all stages of this worker.

    Raises:
        InputError: the method, its weights, options or device are not available.
    """
    if "extraction" not in context.shared:
        config = context.config.method
        torch.set_num_threads(config.threads or _default_threads(context))
        # a restarted worker uses the engines that existed when the pipeline started, not later ones
        cache = EngineCache(as_of=context.shared.get("started"))
        context.shared["extraction"] = Extraction(make_method(config), config.device, config.backend, cache)
    extraction: Extraction = context.shared["extraction"]
    return extraction


def _default_threads(context: StageContext) -> int:
    """Half of torch's threads where extractor and memory share a process, as they run at the same time.

    On two cores that is 1.07 times as fast as a plain loop that uses both threads; with two threads for each
    stage it is 0.93 times (docs/results.md).
    """
    threads = torch.get_num_threads()
    return max(1, threads // 2) if context.config.placement == "fused" else threads


def make_method(config: MethodConfig) -> Method:
    """The method that a configuration names; random weights (`weights = None`) are the same in every worker.

    Raises:
        InputError: there is no such method, or its options do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if ":" not in config.name:
            return load_method(config.name, config.weights, config.options)
        module, _, function = config.name.partition(":")
        try:
            method = getattr(import_module(module), function)(**config.options)
        except (ImportError, AttributeError) as error:
            raise InputError(f"cannot load the method {config.name!r}: {error}") from error
    if not isinstance(method, Method):
        raise InputError(f"{config.name!r} returned a {type(method).__name__}, expected a streamvos Method")
    return method
