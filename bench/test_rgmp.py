"""RGMP's runs: one batch against one after the other, and both against the authors' arrangement, in one go.

    make bench                                   # pytest-benchmark's table
    python bench/test_rgmp.py                    # ratios as a table, and one line of JSON last
    python bench/test_rgmp.py --size 240 427 --threads 1 --objects 3

A frame of 480 x 854 pixels at the authors' three scales, random weights of the authors' network, two threads.
`authors` is their order of work written plainly: every run filters the frame anew, the first global
convolutions see 4096 channels, and the heads that only training needs are computed too. `single` is ours, a
run at a time; `batch` is ours, all runs of the frame at once (objects, and one more of all together).
Seconds are per run. On a machine that does other work compare `cpu`, the processor seconds of all threads.
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
import torch.nn.functional as F

from streamvos.methods.rgmp import RGMP, RGMPOptions
from streamvos.methods.rgmp.canvas import Canvas, resize
from streamvos.methods.rgmp.network import RGMPExtractor

SIZE, THREADS, OBJECTS = (480, 854), 2, 2
OURS = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
}
NAMES = ["authors", *(f"{way} {name}" for name in OURS for way in ("single", "batch"))]
WIDTHS = (8, 8, 7, 8, 10, 13)


def authors_run(
    method: RGMP, frame: torch.Tensor, mask: torch.Tensor, references: list[torch.Tensor], canvas: Canvas
) -> torch.Tensor:
    """(H', W') probabilities of one run.

    Args:
        method: with its weights.
        frame: (1, 3, H', W') on its canvas.
        mask: (1, 1, H', W').
        references: per scale, the encoder's last map of the reference.
        canvas: of the frame.
    """
    encoder, decoder = method.runs.encoder, method.runs.decoder
    block, total = decoder.global_convolution, 0.0
    for scale, reference in zip(method.options.scales, references, strict=True):
        size = canvas.scaled(scale)
        image = method.extractor.normalization(resize(frame, size))
        maps = encoder(encoder.conv1(image), resize(mask, size))
        both = torch.cat([maps["layer4"], reference], dim=1)
        refined = {"m5": decoder.residual(block.left2(block.left1(both)) + block.right2(block.right1(both)))}
        for k, layer in ((4, "layer3"), (3, "layer2"), (2, "layer1")):
            refine = getattr(decoder, f"refine{k}")
            refined[f"m{k}"] = refine(maps[layer], refined[f"m{k + 1}"], True)
        logits = [decoder.predict(refined, stage) for stage in (5, 4, 3, 2)][-1]
        enlarged = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=True)
        total = total + resize(enlarged.softmax(1)[:, 1:], canvas.size)
    return (total / len(method.options.scales))[0, 0]


def scene(size: tuple[int, int], objects: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A frame (1, 3, H, W) and the guiding masks of its runs (R, H, W), all together first."""
    generator = torch.Generator().manual_seed(0)
    frame = F.interpolate(torch.rand(1, 3, 30, 54, generator=generator), size, mode="bilinear")
    masks = torch.zeros(objects, *size)
    height, width = size
    for k in range(objects):
        left = width * k // objects
        masks[k, height // 4 : height // 2, left : left + width // (2 * objects)] = 1
    return frame, masks if objects == 1 else torch.cat([masks.sum(0, keepdim=True), masks])


@cache
def authors_method() -> RGMP:
    torch.manual_seed(0)
    method = RGMP(RGMPOptions()).eval().requires_grad_(False)
    for name, parameter in method.runs.decoder.named_parameters():
        if name.endswith("weight"):  # the decoder has no normalization: keep what flows through it in range
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="linear")
    return method


def method_with(options: dict[str, object]) -> RGMP:
    """The same weights under other options, without drawing 50 million numbers again."""
    with torch.device("meta"):
        method = RGMP(RGMPOptions(**options)).eval().requires_grad_(False)
    method.networks.load_state_dict(authors_method().networks.state_dict(), assign=True)
    method.extractor = RGMPExtractor(method.runs.encoder.conv1, method.options)
    return method


def variants(
    size: tuple[int, int], objects: int, names: list[str] = NAMES
) -> dict[str, Callable[[], torch.Tensor]]:
    """Name -> function that gives the (R, H', W') probabilities of a frame's runs."""
    frame, masks = scene(size, objects)
    runs: dict[str, Callable[[], torch.Tensor]] = {}
    if "authors" in names:
        runs["authors"] = _authors(frame, masks)
    for name, options in OURS.items():
        if f"single {name}" not in names and f"batch {name}" not in names:
            continue
        method = method_with(options)
        canvas = Canvas(size)
        guides = canvas.pad(masks)
        with torch.inference_mode():
            maps = method.extractor(frame.contiguous(memory_format=torch.channels_last)).maps
            references = method.runs.refer(maps, canvas, guides)

        def batch(method=method, maps=maps, canvas=canvas, guides=guides, references=references):
            return method.runs(maps, canvas, guides, references)

        def single(method=method, maps=maps, canvas=canvas, guides=guides, references=references):
            rows = range(len(guides))
            parts = [
                method.runs(maps, canvas, guides[k : k + 1], [r[k : k + 1] for r in references]) for k in rows
            ]
            return torch.cat(parts)

        runs |= {f"single {name}": single, f"batch {name}": batch}
    return {name: runs[name] for name in names}


def _authors(frame: torch.Tensor, masks: torch.Tensor) -> Callable[[], torch.Tensor]:
    method = authors_method()
    canvas = Canvas((frame.shape[-2], frame.shape[-1]))
    padded, guides = canvas.pad(frame), canvas.pad(masks)[:, None]
    encoder = method.runs.encoder

    def last_map(mask: torch.Tensor, scale: float) -> torch.Tensor:
        image = method.extractor.normalization(resize(padded, canvas.scaled(scale)))
        return encoder(encoder.conv1(image), resize(mask, canvas.scaled(scale)))["layer4"]

    with torch.inference_mode():
        references = [[last_map(mask[None], scale) for scale in method.options.scales] for mask in guides]

    def run() -> torch.Tensor:
        pairs = zip(guides, references, strict=True)
        return torch.stack([authors_run(method, padded, mask[None], own, canvas) for mask, own in pairs])

    return run


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.benchmark(group="RGMP, two objects, 480x854")
def test_rgmp(benchmark, name):
    torch.set_num_threads(THREADS)
    run = variants(SIZE, OBJECTS, [name])[name]
    with torch.inference_mode():
        benchmark.pedantic(run, rounds=2, warmup_rounds=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs=2, type=int, default=SIZE, metavar=("HEIGHT", "WIDTH"), help="pixels")
    parser.add_argument("--objects", type=int, default=OBJECTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--only", default=",".join(NAMES), help="comma-separated; authors is always run")
    given = parser.parse_args()
    size = (given.size[0], given.size[1])
    names = [name for name in NAMES if name == "authors" or name in given.only.split(",")]
    torch.set_num_threads(given.threads)
    runs = variants(size, given.objects, names)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    processor: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        truth = runs["authors"]()
        errors = {name: float((run() - truth).abs().max()) for name, run in runs.items()}  # also warms up
        for _ in range(given.rounds):  # interleaved, so that a busy moment touches all alike
            for name, run in runs.items():
                started, used = time.perf_counter(), time.process_time()
                run()
                seconds[name].append((time.perf_counter() - started) / len(truth))
                processor[name].append((time.process_time() - used) / len(truth))
    rows = {}
    head = ("best", "median", "speed", "cpu", "of authors", "largest error")
    print(f"{'a run':26}" + "".join(f" {word:>{width}}" for word, width in zip(head, WIDTHS, strict=True)))
    for name in runs:
        rows[name] = {
            "best_s": min(seconds[name]),
            "median_s": statistics.median(seconds[name]),
            "speedup": min(seconds["authors"]) / min(seconds[name]),
            "cpu_s": min(processor[name]),
            "cpu_ratio": min(processor["authors"]) / min(processor[name]),
            "max_error": errors[name],
        }
        row = rows[name]
        cells = (
            f"{row['best_s']:.3f}s",
            f"{row['median_s']:.3f}s",
            f"{row['speedup']:.2f}x",
            f"{row['cpu_s']:.3f}s",
            f"{row['cpu_ratio']:.2f}x",
            f"{row['max_error']:.1e}",
        )
        print(f"{name:26}" + "".join(f" {cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)))
    ratios = {
        name: min(seconds[f"single {name}"]) / min(seconds[f"batch {name}"])
        for name in OURS
        if f"single {name}" in runs and f"batch {name}" in runs
    }
    for name, ratio in ratios.items():
        print(f"{name}: a batch of {len(truth)} runs is {ratio:.2f}x as fast as one after the other")
    about = {
        "size": size,
        "objects": given.objects,
        "torch": torch.__version__,
        "threads": given.threads,
        "machine": platform.processor() or platform.machine(),
    }
    print(json.dumps({"benchmark": "rgmp", **about, "rows": rows, "batch_over_single": ratios}))


if __name__ == "__main__":
    main()
