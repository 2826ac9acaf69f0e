"""How much faster than Cutie the bundled methods are, frame by frame in one process.

    pip install --no-deps rf-cutie einops omegaconf pyyaml "antlr4-python3-runtime==4.9.*"
    python bench/against_cutie.py --json docs/results/cutie.json
    python bench/against_cutie.py --height 240

Cutie-small (Cheng et al., CVPR 2024; the package rf-cutie) runs with random weights, on which the time does
not depend, and with its settings for DAVIS 2017: float32, memory every five frames. Every method steps
through the same frame before the next one comes, so that a machine whose speed varies is equally fast for
all.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from methods import scene

import streamvos

WARM_UP = 8
"""Frames that are not counted: threads start, and memories fill."""

Step = Callable[[np.ndarray, np.ndarray | None], Any]


def cutie_small() -> Step:
    """Cutie-small's step."""
    import cutie
    from cutie.inference.inference_core import InferenceCore
    from cutie.model.cutie import CUTIE
    from omegaconf import OmegaConf

    logging.getLogger().setLevel(logging.WARNING)
    folder = Path(next(iter(cutie.__path__))) / "config"
    config = OmegaConf.load(folder / "eval_config.yaml")
    model = [OmegaConf.load(folder / "model" / f"{name}.yaml") for name in ("base", "small")]
    config["model"] = OmegaConf.merge(*model)
    config = OmegaConf.merge(config, {"mem_every": 5, "use_long_term": False})
    with (
        patch("cutie.model.utils.resnet.load_weights_add_extra_dim"),
        patch("torch.utils.model_zoo.load_url"),
    ):
        network = CUTIE(config)  # it would download weights
    core = InferenceCore(network.eval(), config)

    @torch.inference_mode()
    def step(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        frame = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        if mask is None:
            answer = core.step(frame)
        else:
            ids = np.unique(mask)[1:].tolist()
            answer = core.step(frame, torch.from_numpy(mask), objects=ids)
        return answer.argmax(0).byte().numpy()

    return step


def bundled(method: str) -> Step:
    """A bundled method's step."""
    vos = streamvos.load(method)
    return lambda image, mask: vos.step(image, mask).mask


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", default="tvos,rgmp,frtm-fast,joint,feelvos")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--objects", type=int, default=1)
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    size = (given.height, round(given.height * 854 / 480))
    torch.manual_seed(0)
    steps = {"cutie-small": cutie_small(), **{name: bundled(name) for name in given.methods.split(",")}}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for t in range(WARM_UP + given.frames):
        image, labels = scene(size, given.objects, t)
        for name, step in steps.items():
            started = time.perf_counter()
            step(image, labels.astype(np.uint8) if t == 0 else None)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values[WARM_UP:]) for name, values in seconds.items()}
    slowest = {name: max(values[WARM_UP:]) for name, values in seconds.items()}
    print(f"{size[0]} x {size[1]}, {given.objects} object(s), {torch.get_num_threads()} threads")
    for name, median in medians.items():
        ratio = medians["cutie-small"] / median
        print(f"{name:12s} {1000 * median:7.1f} ms, slowest {1000 * slowest[name]:7.1f} ms, {ratio:5.1f}x")
    if given.json:
        result = {
            "size": size,
            "objects": given.objects,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "machine": platform.processor() or platform.machine(),
            "median_seconds": medians,
            "slowest_seconds": slowest,
        }
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
