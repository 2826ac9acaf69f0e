"""JOINT's memory: reading what was encoded once, against encoding it anew on every frame, within one run.

    pytest bench/test_joint.py --benchmark-only
    python bench/test_joint.py                       # ratios as a table, and one line of JSON last
    python bench/test_joint.py --crop 240 416 --memory 8 --threads 1

One object, a crop of 480 x 832 pixels (30 x 52 cells), 20 remembered frames, two threads. "read" is what a
frame costs between refreshes: queries of the crop, and both branches. "encode, read" encodes the memory
first; "adjust, encode, read" begins with the backbone's features, as the authors' code does on every frame.
"remember" takes a new frame in, adding to the sums of the last time and learning on. "learn" is the learner's
part of it. Ratios are to "encode, read". On a machine that does other work compare `cpu`, the processor
seconds of all threads.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import cache

import pytest
import torch

from streamvos.methods.joint import JOINTOptions
from streamvos.methods.joint.few_shot import FewShotProblem, steepest_descent
from streamvos.methods.joint.memory import JOINTMemory
from streamvos.methods.joint.network import JOINTNetwork
from streamvos.nn.precision import Precision

CROP, MEMORY, THREADS = (480, 832), 20, 2
NAMES = ["encode, read", "adjust, encode, read", "read", "remember", "learn"]
ROUNDS = {"encode, read": 2, "adjust, encode, read": 2}
WIDTHS = (9, 9, 8, 9, 8)


@cache
def networks() -> JOINTNetwork:
    torch.manual_seed(0)
    return JOINTNetwork().eval()


@cache
def features(crop: tuple[int, int], frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of `frames` remembered crops and a new one: the backbone's, the transformer's, the learner's."""
    network, generator = networks(), torch.Generator().manual_seed(0)
    h, w = crop[0] // 16, crop[1] // 16
    base = torch.rand(1, 1024, h, w, generator=generator)
    layer3 = (base + 0.5 * torch.randn(frames + 1, 1024, h, w, generator=generator)).relu()
    # one frame at a time, so that the working memory of convolutions stays small
    transduction = torch.cat([network.transformer.tokens(one[None]) for one in layer3])
    induction = torch.cat([network.learner.tokens(one[None]) for one in layer3])
    return layer3, transduction, induction


def full_memory(crop: tuple[int, int], frames: int, **options) -> JOINTMemory:
    """A memory of one object with no free slot. Its sums are of no meaning, which no time depends on."""
    network = networks()
    chosen = JOINTOptions(crop_size=crop, memory_size=frames, **options)
    memory = JOINTMemory(network, chosen, (1,), chosen.grid)
    _, transduction, induction = features(crop, frames)
    labels = network.label_encoder(torch.rand(frames, 1, *crop))
    memory.load_state_dict(
        {
            "induction": induction[:frames],
            "transduction": transduction[:frames],
            "self_keys": network.transformer.self_keys(transduction[:frames]),
            "numerator": torch.zeros_like(transduction[:frames]),
            "denominator": torch.full((frames, transduction.shape[1], 1), 1e15),
            "memory_keys": network.transformer.memory_keys(transduction[:frames]),
            "carried": labels.transduction.flatten(2).transpose(1, 2),
            "labels": labels.induction[:, None],
            "importance": labels.importance[:, None],
            "filters": 0.01 * torch.randn(1, 16, 512, 3, 3),
            "frames": torch.tensor(3 * frames),
            "weights.values": torch.full((frames,), 1 / frames),
            "weights.newest": torch.tensor(frames - 1),
        }
    )
    return memory


def variants(
    crop: tuple[int, int], frames: int, precision: Precision, names: list[str]
) -> dict[str, Callable[[], object]]:
    """Name -> what is timed."""
    network = networks()
    layer3, transduction, induction = features(crop, frames)
    memory = full_memory(crop, frames, precision=precision)

    def read() -> torch.Tensor:
        queries = network.transformer.queries(transduction[frames:], precision)
        return memory.read(induction[frames], queries[0])

    def encode(tokens: torch.Tensor) -> torch.Tensor:
        return network.transformer.memory_keys(network.transformer.encode(tokens[None], precision))

    def adjust() -> torch.Tensor:
        return torch.cat([network.transformer.tokens(one[None]) for one in layer3[:frames]])

    def remember() -> Callable[[], object]:
        own = full_memory(crop, frames, precision=precision)
        labels = network.label_encoder(torch.rand(1, 1, *crop))
        return lambda: own.remember(induction[frames], transduction[frames], labels)

    def learn() -> Callable[[], object]:
        h, w = crop[0] // 16, crop[1] // 16
        labels = torch.rand(1, 1, frames, 16, h, w)
        problem = FewShotProblem(induction[:frames].flatten(0, 1)[None], labels, labels + 0.5, (h, w))
        return lambda: steepest_descent(memory.filters[None], problem, network.learner.regularization, 3)

    makers: dict[str, Callable[[], Callable[[], object]]] = {
        "encode, read": lambda: lambda: (encode(transduction[:frames]), read()),
        "adjust, encode, read": lambda: lambda: (encode(adjust()), read()),
        "read": lambda: read,
        "remember": remember,
        "learn": learn,
    }
    return {name: makers[name]() for name in names}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.benchmark(group="JOINT, memory of 20, 480x832")
def test_joint(benchmark, name):
    torch.set_num_threads(THREADS)
    with torch.inference_mode():
        function = variants(CROP, MEMORY, "float32", [name])[name]
        benchmark.pedantic(function, rounds=ROUNDS.get(name, 5), warmup_rounds=name not in ROUNDS)


def measure(function: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """Wall and processor seconds of each round."""
    wall, processor = [], []
    for _ in range(rounds):
        started, used = time.perf_counter(), time.process_time()
        function()
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    return wall, processor


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--crop", nargs=2, type=int, default=CROP, metavar=("ROWS", "COLUMNS"), help="pixels")
    parser.add_argument("--memory", type=int, default=MEMORY, help="frames")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5, help="of the quick ones; the others have two")
    parser.add_argument("--threads", type=int, default=THREADS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    crop = (given.crop[0], given.crop[1])
    rows = {}
    head = ("best", "median", "speed", "cpu", "of cpu")
    print(f"{'':21}" + "".join(f" {word:>{width}}" for word, width in zip(head, WIDTHS, strict=True)))
    with torch.inference_mode():
        runs = variants(crop, given.memory, given.precision, NAMES)
        runs["read"](), runs["learn"]()  # warm up
        for name, function in runs.items():
            wall, processor = measure(function, min(ROUNDS.get(name, given.rounds), given.rounds))
            base = rows.get("encode, read", {"best_s": min(wall), "cpu_s": min(processor)})
            row = rows[name] = {
                "best_s": min(wall),
                "median_s": statistics.median(wall),
                "speedup": base["best_s"] / min(wall),
                "cpu_s": min(processor),
                "cpu_ratio": base["cpu_s"] / min(processor),
            }
            cells = (
                f"{row['best_s']:.3f}s",
                f"{row['median_s']:.3f}s",
                f"{row['speedup']:.2f}x",
                f"{row['cpu_s']:.3f}s",
                f"{row['cpu_ratio']:.2f}x",
            )
            line = "".join(f" {cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))
            print(f"{name:21}{line}", flush=True)
    about = {
        "crop": crop,
        "memory": given.memory,
        "precision": given.precision,
        "torch": torch.__version__,
        "threads": given.threads,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps({"benchmark": "joint", **about, "rows": rows}))


if __name__ == "__main__":
    main()
