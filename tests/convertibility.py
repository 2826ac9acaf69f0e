"""Which networks of the methods TensorRT can take as one engine, found out without TensorRT or a GPU.

    pip download --no-deps "torch-tensorrt==2.13.*" --dest wheels
    python tests/convertibility.py wheels scratch      # a line of JSON: network -> what the partitioner says

torch-tensorrt lowers and partitions a network before TensorRT sees it, and knows what it has converters for.
That part is Python: the wheel without its libraries, with stand-ins for what it asks of TensorRT and of CUDA.
The stand-ins stay in this process. Networks get the inputs that they get in a step of their method.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from streamvos.segmenter import Extraction, StreamState, check_mask, decide
from streamvos.types import Features

SIZE = (96, 128)

NETWORKS: dict[str, tuple[str, dict[str, Any], Callable[[Any], nn.Module]]] = {
    "tvos extractor": ("tvos", {}, lambda method: method.extractor),
    "frtm extractor": ("frtm", {}, lambda method: method.extractor),
    "frtm refiner": ("frtm", {}, lambda method: method.decoder.refiner),
    "rgmp extractor": ("rgmp", {}, lambda method: method.extractor),
    "rgmp encoder": ("rgmp", {}, lambda method: method.runs.encoder),
    "rgmp decoder": ("rgmp", {}, lambda method: method.runs.decoder),
    "joint extractor": ("joint/efficientnet", {}, lambda method: method.extractor),
    "joint decoder": ("joint", {}, lambda method: method.network.decoder),
    "feelvos extractor": ("feelvos", {}, lambda method: method.extractor),
    "feelvos head": ("feelvos", {}, lambda method: method.head),
    **{
        f"{name} extractor, authors": (f"{name}, authors", {}, lambda method: method.extractor)
        for name in ("tvos", "frtm", "rgmp", "feelvos")
    },
}
"""Name -> method, options, where in the method it is."""


class Flat(nn.Module):
    """A network of tensors to tensors, which is what exporters want; the rest of a call is kept."""

    def __init__(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]):
        super().__init__()
        self.network = network
        self.values, self.structure = tree_flatten((args, kwargs))
        self.places = [k for k, value in enumerate(self.values) if isinstance(value, torch.Tensor)]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return tuple(self.values[k] for k in self.places)

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = list(self.values)
        for place, tensor in zip(self.places, tensors, strict=True):
            values[place] = tensor
        args, kwargs = tree_unflatten(values, self.structure)
        answer = self.network(*args, **kwargs)
        if isinstance(answer, Features):  # a map that is the frames themselves needs no engine
            answer = tuple(value for value in answer.maps.values() if not any(value is t for t in tensors))
        return tuple(value for value in tree_flatten(answer)[0] if isinstance(value, torch.Tensor))


def make(name: str, options: dict[str, Any]) -> Any:
    """A method: the small one of the tests, or as its authors have it."""
    from small_methods import small

    from streamvos.methods import build

    torch.manual_seed(0)
    if name.endswith(", authors"):
        return build(name.removesuffix(", authors"), options).eval()
    return small(name, **options).method


def prepared(name: str, device: str = "cpu") -> Flat:
    """A network as it is called in the second step of a stream with two objects, or with frames alone."""
    method_name, options, find = NETWORKS[name]
    extract = Extraction(make(method_name, options), device)
    network, calls = find(extract.method), []
    hook = network.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    frame = torch.randint(0, 256, (*SIZE, 3), dtype=torch.uint8)
    if network is extract.method.extractor:
        extract([frame])
    else:
        follow(extract, frame)
    hook.remove()
    # tensors of inference mode cannot be exported
    values, structure = tree_flatten(calls[-1])
    values = [value.clone() if isinstance(value, torch.Tensor) else value for value in values]
    return Flat(network, *tree_unflatten(values, structure)).eval()


def follow(extract: Extraction, frame: torch.Tensor) -> None:
    """Two steps of a stream."""
    state = StreamState(extract.method, extract.device)
    mask = torch.zeros(SIZE, dtype=torch.int64)
    mask[10:50, 10:60], mask[50:90, 60:120] = 1, 2
    for annotation in (check_mask(mask, SIZE, extract.device), None):
        features = extract([frame])
        question = state.ask(features, annotation)
        state.learn(features, question, decide(extract.method, question))


def export(flat: Flat) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(flat, flat.tensors)


def stand_in_for_cuda(wheels: Path, scratch: Path) -> None:
    """Make `import torch_tensorrt` work here; only for a process that ends afterwards."""
    wheel = next(iter(sorted(wheels.glob("torch_tensorrt-*.whl"))), None)
    if wheel is None:
        raise SystemExit(f"no torch_tensorrt-*.whl in {wheels}")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(scratch, [name for name in archive.namelist() if ".so" not in name])
    sys.path[:0] = [str(scratch), str(Path(__file__).parent / "stand_ins")]
    if not hasattr(torch._C, "_CudaDeviceProperties"):
        torch._C._CudaDeviceProperties = object
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.current_device = lambda: 0
    torch.cuda.mem_get_info = lambda *_: (1 << 36, 1 << 36)
    torch.cuda.empty_cache = lambda: None


def partition(program: torch.export.ExportedProgram) -> dict[str, Any]:
    """What torch-tensorrt makes of a network, up to where TensorRT would be asked."""
    from torch_tensorrt.dynamo import CompilationSettings, partitioning
    from torch_tensorrt.dynamo.conversion import DYNAMO_CONVERTERS
    from torch_tensorrt.dynamo.lowering import get_decompositions, post_lowering, pre_export_lowering

    settings = CompilationSettings(min_block_size=1)
    program = pre_export_lowering(program, settings)
    graph = post_lowering(program.run_decompositions(get_decompositions()).module(), settings)
    DYNAMO_CONVERTERS.set_compilation_settings(settings)
    supported, total = partitioning.get_graph_converter_support(graph, settings.torch_executed_ops)
    parts, tester = partitioning.fast_partition(graph, min_block_size=1, skip_fusion=supported == total)
    names = [name for name, _ in parts.named_children()]
    return {
        "supported": supported,
        "total": total,
        "engines": sum("_run_on_acc" in name for name in names),
        "outside": sum("_run_on_gpu" in name for name in names),
        "unsupported": sorted(str(name) for name in tester.unsupported_operators),
    }


class Solver(nn.Module):
    """What TensorRT cannot take, between what it can."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(x.relu() + torch.eye(4), x).relu()


def main() -> None:
    wheels, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    programs = {name: export(prepared(name)) for name in NETWORKS}
    programs["counterexample"] = torch.export.export(Solver(), (torch.rand(4, 4),))
    stand_in_for_cuda(wheels, scratch)
    print(json.dumps({name: partition(program) for name, program in programs.items()}))


if __name__ == "__main__":
    main()
