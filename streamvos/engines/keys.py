"""The key of an engine: everything that it was made of.

    plan = plan_of(method, "extractor", "aoti", {}, Signature.of(frames), device)
    key = engine_key(plan, program)

There are two. The plan's digest is known without tracing anything, and is how a running stream finds its
engine: it covers the weights, the inputs, the options, the versions, the machine, and the source of every
network, from which the graph follows. The engine's key covers the exported graph itself too, and is what the
engine is called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from streamvos.engines.environment import facts, source_digest
from streamvos.engines.signature import Signature
from streamvos.methods import METHODS, Method
from streamvos.methods.parts import Part, PlainPart

FORMAT = 1
"""Raised whenever keys or manifests change their meaning."""


@dataclass(frozen=True)
class Plan:
    """What is to be compiled, and how.

    Attributes:
        method, part: names.
        options: of the method, as JSON has them.
        weights: digest of the part's tensors.
        source: digest of the code.
        inputs: `Signature.as_json`.
        backend: name.
        settings: of the backend, those that a recipe sets.
        precision: "method" computes as the method does; else autocast to this dtype around it.
        facts: see `streamvos.engines.environment`.
        format: see `FORMAT`.
    """

    method: str
    part: str
    options: Mapping[str, Any]
    weights: str
    source: str
    inputs: list[dict[str, Any]]
    backend: str
    settings: Mapping[str, Any]
    precision: str
    facts: Mapping[str, str]
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """By which a stream finds its engine."""
        return _digest(asdict(self))

    @property
    def question(self) -> str:
        """Digest of all but the backend: what `auto` has to decide once."""
        return _digest({**asdict(self), "backend": "auto", "settings": {}, "precision": "method"})


def is_ours(method: Method) -> bool:
    """Whether the source of its networks is this package's, and others can build it by its name."""
    return any(type(method) is entry.method for entry in METHODS.values())


def plan_of(
    method: Method,
    part: Part,
    backend: str,
    settings: Mapping[str, Any],
    precision: str,
    signature: Signature,
    device: torch.device,
    weights: str | None = None,
) -> Plan:
    """The plan for a part of a method.

    Args:
        method: one of `METHODS`.
        part: of it.
        backend, settings, precision: how.
        signature: of the inputs.
        device: where.
        weights: `weight_digest`, where it is known already.
    """
    return Plan(
        method=method.name,
        part=part.name,
        options=method.options.model_dump(mode="json"),
        weights=weights or weight_digest(part),
        source=source_digest(),
        inputs=signature.as_json(),
        backend=backend,
        settings=dict(settings),
        precision=precision,
        facts=facts(device),
    )


def engine_key(plan: Plan, program: torch.export.ExportedProgram) -> str:
    """The engine's name: plan and graph."""
    return _digest({"plan": plan.digest, "graph": graph_digest(program)})[:40]


def graph_digest(program: torch.export.ExportedProgram) -> str:
    """Of an exported graph: every node with its arguments, shape, dtype and strides, and its constants."""
    lines = [str(program.graph_signature)]
    for name, module in sorted(program.graph_module.named_modules()):
        if not isinstance(module, torch.fx.GraphModule):
            continue
        for node in module.graph.nodes:
            value = node.meta.get("val")
            shown = ""
            if isinstance(value, torch.Tensor):
                shown = f"{tuple(value.shape)} {value.dtype} {value.stride()} {value.device}"
            lines.append(f"{name} {node.op} {node.name} {node.target} {node.args} {node.kwargs} {shown}")
    constants = {n: c for n, c in program.constants.items() if isinstance(c, torch.Tensor)}
    lines.append(_tensor_digest({**program.state_dict, **constants}))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def weight_digest(part: Part) -> str:
    """Of all parameters and buffers that a part uses, in whichever memory format."""
    module: nn.Module = PlainPart(part)
    return _tensor_digest({**dict(module.named_parameters()), **dict(module.named_buffers())})


def _tensor_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
