"""The kernels compile for NVIDIA's processors, which takes no GPU, and keep their values in registers."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton", reason="NO TRITON: pip install triton, to compile the kernels of GPUs")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("what is interpreted is not compiled", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from streamvos.nn.kernels.launching import shape_for  # noqa: E402
from streamvos.nn.matching.kernels.matching import nearest_around, nearest_everywhere  # noqa: E402
from streamvos.nn.propagation.kernels.parts import (  # noqa: E402
    best_parts,
    join_best,
    join_parts,
    softmax_parts,
)

POINTERS = {
    **dict.fromkeys(("labels", "settings", "largest", "total", "carried", "values", "out"), "*fp32"),
    **dict.fromkeys(("candidates", "smallest"), "*fp32"),
    **dict.fromkeys(("offsets", "bounds", "whose"), "*i64"),
    "places": "*i32",
}
SHARED = 227 * 1024  # bytes that a program on compute capability 9.0 may take


def compiled(kernel, features: str, tmp_path: Path, monkeypatch, **constants):
    """Shared memory, and bytes of local memory, of `kernel` on compute capability 9.0."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    warps, stages = constants.pop("num_warps", 4), constants.pop("num_stages", 3)
    signature, fixed, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], fixed[(index,)] = "constexpr", constants[name]
            continue
        kind = POINTERS.get(name) or {"query": features, "keys": features, "scale": "fp32"}.get(name, "i32")
        signature[name] = kind
        if kind.startswith("*") or name == "channels":  # as a launch finds them, and says so to the compiler
            attributes[(index,)] = [["tt.divisibility", 16]]
    binary = triton.compile(
        ASTSource(kernel, signature, fixed, attributes),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    file = tmp_path / "kernel.cubin"
    file.write_bytes(binary.asm["cubin"])
    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([dump, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    return binary.metadata.shared, int(re.search(r"STACK:(\d+)", usage)[1])


@pytest.mark.parametrize(("features", "channels"), [("*bf16", 128), ("*bf16", 256), ("*fp32", 256)], ids=str)
def test_kernels_of_propagation_fit_the_processor(features, channels, tmp_path, monkeypatch):
    shape = shape_for(channels, torch.bfloat16 if features == "*bf16" else torch.float32)
    constants = {
        "SHARES": 4,
        "SIDE": shape.side,
        "ALIGNED": True,
        "INSIDE": False,
        **shape.constants(channels),
    }
    more = {"BLOCK_LABELS": 16, "OUTSIDE": True}
    for kernel, own in ((softmax_parts, more), (best_parts, {"BEST": 10, "BLOCK_BEST": 16})):
        shared, spilled = compiled(kernel, features, tmp_path, monkeypatch, **constants, **own)
        assert shared <= SHARED // 2  # two programs side by side, so that one computes while the other waits
        assert spilled == 0


def test_kernels_that_join_fit_the_processor(tmp_path, monkeypatch):
    label_blocks = {"BLOCK_LABELS": 64, "BLOCK": 32}
    shared, spilled = compiled(join_parts, "", tmp_path, monkeypatch, SHARES=8, **label_blocks)
    assert shared <= SHARED
    assert spilled == 0
    best = {"CANDIDATES": 80, "BEST": 10, "BLOCK_CANDIDATES": 128, "OUTSIDE": True}
    shared, spilled = compiled(join_best, "", tmp_path, monkeypatch, **best, BLOCK=16, BLOCK_LABELS=64)
    assert shared <= SHARED
    assert spilled == 0


def test_kernels_of_matching_fit_the_processor(tmp_path, monkeypatch):
    channels = 112  # the authors' embedding and the norms, and what aligns their rows
    shape = shape_for(channels, torch.float32)
    tile = {"SIDE": shape.side, "BLOCK_OBJECTS": 16}
    for kernel, own in (
        (nearest_everywhere, {"SHARES": 2, "BLOCK_QUERIES": shape.side**2}),
        (nearest_around, tile),
    ):
        shared, spilled = compiled(kernel, "*fp32", tmp_path, monkeypatch, **shape.constants(channels), **own)
        assert shared <= SHARED // 2
        assert spilled == 0


NUMBERS = ("height", "width", "label_count", "object_count", "query_count", "cell_count", "radius")


@pytest.mark.parametrize(
    ("kernel", "constants"),
    [
        (softmax_parts, {"BLOCK_LABELS": 16, "OUTSIDE": True}),
        (best_parts, {"BEST": 10, "BLOCK_BEST": 16}),
        (join_parts, {"SHARES": 8, "BLOCK_LABELS": 16, "BLOCK": 32}),
        (
            join_best,
            {"CANDIDATES": 80, "BEST": 10, "BLOCK_CANDIDATES": 128, "OUTSIDE": True, "BLOCK": 16}
            | {"BLOCK_LABELS": 16},
        ),
        (nearest_everywhere, {"SHARES": 2, "BLOCK_QUERIES": 64}),
        (nearest_around, {"BLOCK_OBJECTS": 16}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_numbers_that_are_one_compile_too(kernel, constants, tmp_path, monkeypatch):
    """A launch makes constants of them: one object, a grid of one row or of one tile."""
    shared = {"SIDE": 8, "BLOCK": 64, "CHANNEL_BLOCKS": 1, "BLOCK_CHANNELS": 16}
    shared |= {"ALIGNED": False, "INSIDE": True}
    shared |= {"SHARES": 1} | dict.fromkeys(NUMBERS, 1) | constants
    fixed = {name: value for name, value in shared.items() if name in kernel.arg_names}
    _, spilled = compiled(kernel, "*fp32", tmp_path, monkeypatch, **fixed)
    assert spilled == 0
