"""Every network that is to become an engine becomes one: all of its operations have converters.

Without a GPU torch-tensorrt's partitioner says so; on one the engines are built and compared with eager.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from convertibility import NETWORKS, export, prepared

ROOT = Path(__file__).parents[2]

WHEELS = "STREAMVOS_TORCH_TENSORRT"
HOW = (
    f"NO TORCH-TENSORRT: {WHEELS} names no folder with its wheel; to run this test without a GPU: "
    'pip install dllist psutil; pip download --no-deps "torch-tensorrt==2.13.*" --dest wheels; '
    f"export {WHEELS}=$PWD/wheels"
)

EXCEPTIONS: dict[str, str] = {}
"""Network -> why it is no single engine."""


@pytest.fixture(scope="module")
def partitions(tmp_path_factory) -> dict[str, dict[str, object]]:
    folder = os.environ.get(WHEELS)
    if folder is None or not list(Path(folder).glob("torch_tensorrt-*.whl")):
        pytest.skip(HOW)
    command = [sys.executable, "tests/convertibility.py", folder, str(tmp_path_factory.mktemp("scratch"))]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_one_engine(partitions, name):
    found = partitions[name]
    assert found["total"] > 0
    if name in EXCEPTIONS:
        assert found["engines"] != 1 or found["outside"], f"{name} is one engine now; strike it off the list"
        return
    assert found["unsupported"] == []
    assert (found["supported"], found["engines"], found["outside"]) == (found["total"], 1, 0)


def test_what_cannot_be_converted_is_found(partitions):
    found = partitions["counterexample"]
    assert found["supported"] < found["total"]
    assert found["outside"] == 1


@pytest.mark.tensorrt
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="NO NVIDIA GPU: engines are only partitioned, not built"
)
@pytest.mark.parametrize("name", NETWORKS)
def test_an_engine_gives_what_eager_gives(name):
    try:
        import torch_tensorrt
    except Exception as error:  # it raises a bare Exception where TensorRT is missing
        pytest.skip(f"NO TENSORRT: {error}; pip install streamvos[tensorrt]")
    flat = prepared(name, "cuda")
    with torch.no_grad():
        expected = flat(*flat.tensors)
        engine = torch_tensorrt.dynamo.compile(
            export(flat), arg_inputs=list(flat.tensors), min_block_size=1, require_full_compilation=True
        )
        got = engine(*flat.tensors)
    for ours, theirs in zip(got, expected, strict=True):
        # TensorRT chooses its own order of sums, and may use TensorFloat-32
        assert torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2 * float(theirs.abs().max()))
