"""`streamvos weights`: list bundled weights, inspect weight files, convert published checkpoints.

streamvos weights list
streamvos weights inspect rn101_ytvos.pth
streamvos weights convert rn101_ytvos.pth --backbone resnet101-63fe2227.pth --out frtm.safetensors
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamvos.cli.options import (
    BUNDLED_NAMES,
    METHOD_NAMES,
    JsonTarget,
    examples,
    places_of_files,
    refuse_over_inputs,
)
from streamvos.cli.output import make_table, show
from streamvos.sinks.conflicts import refuse_conflicts
from streamvos.types import InputError

if TYPE_CHECKING:
    from streamvos.weights import Checkpoint

app = typer.Typer(
    epilog=examples(
        "streamvos weights list",
        "streamvos weights inspect davis_train.pth.tar",
        "streamvos weights convert davis_train.pth.tar --out tvos.safetensors",
    ),
)

WeightFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="A streamvos file or a published checkpoint.")
]
Backbone = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="torchvision's ImageNet weights, which FRTM's checkpoints leave out."),
]


@app.command("list", epilog=examples("streamvos weights list", "streamvos weights list --json"))
def list_weights(json_target: JsonTarget = None) -> None:
    """List the methods, their bundled weights, and what these score (J&F, in percent)."""
    from streamvos.weights import BACKBONE, backbone_path, bundled_path, bundled_scores, read_checkpoint

    rows: list[dict[str, Any]] = []
    for name in (*METHOD_NAMES, BACKBONE):
        rows.append({"method": name, "bundled": None, "MiB": None, "parameters": None})
        if name in BUNDLED_NAMES or name == BACKBONE:
            path = backbone_path() if name == BACKBONE else bundled_path(name)
            size, count = round(path.stat().st_size / 2**20, 1), _count(read_checkpoint(path).tensors)
            rows[-1] |= {"bundled": path.name, "MiB": size, "parameters": count}
            rows[-1] |= {data: scores[name] for data, scores in bundled_scores().items() if name in scores}
    table = make_table("bundled weights", ["method", "file", "MiB", "parameters", *bundled_scores()])
    for row in rows:
        file = row["bundled"] or "none: give --weights FILE"
        scores = (_shown(row[data]["J&F"] if data in row else None) for data in bundled_scores())
        table.add_row(row["method"], file, _shown(row["MiB"]), _shown(row["parameters"]), *scores)
    show({"methods": rows}, json_target, table)


@app.command("inspect", epilog=examples("streamvos weights inspect davis_train.pth.tar"))
def inspect(path: WeightFile, backbone: Backbone = None, json_target: JsonTarget = None) -> None:
    """Show which method's weights a file holds, and whether they fit. Nothing in it is executed."""
    from streamvos.weights import read_checkpoint, recognize

    refuse_over_inputs(json_target, {"FILE": path, "--backbone": backbone})
    checkpoint = read_checkpoint(path)
    method = recognize(checkpoint)
    report: dict[str, Any] = {
        "file": str(path),
        "layout": "streamvos" if checkpoint.metadata else "published" if method else "unknown",
        "method": method,
        "entries": len(checkpoint.tensors),
        "parameters": _count(checkpoint.tensors),
    }
    if method is not None:
        try:
            _, options = _fitting(checkpoint, backbone)
            report |= {"fits": True, "options": options}
        except InputError as error:
            report |= {"fits": False, "reason": str(error)}
    report["description"] = {n: v for n, v in checkpoint.metadata.items() if n not in ("method", "options")}
    known = {name: value for name, value in report.items() if value not in (None, {})}
    width = max(map(len, known))
    show(report, json_target, *(f"{name:<{width}}  {_shown(value)}" for name, value in known.items()))


@app.command(
    "convert",
    epilog=examples(
        "streamvos weights convert davis_train.pth.tar --out tvos.safetensors",
        "streamvos weights convert rn18_ytvos.pth --backbone resnet18-5c106cde.pth --out fast.safetensors",
    ),
)
def convert(
    path: WeightFile,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .safetensors file to write.")],
    backbone: Backbone = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    json_target: JsonTarget = None,
) -> None:
    """Write a published checkpoint as a streamvos file."""
    from streamvos.weights import read_checkpoint, recognize, save_weights

    written, read = {"--out": out, "--json": json_target}, {"FILE": path, "--backbone": backbone}
    refuse_conflicts(places_of_files(written), places_of_files(read))
    if out.exists() and not force:
        raise InputError(f"{out} is there already; choose another name, or give --force")
    if not out.parent.is_dir():
        raise InputError(f"there is no folder {out.parent} for {out.name}")
    checkpoint = read_checkpoint(path)
    if checkpoint.metadata:
        raise InputError(f"{path} is a streamvos file already")
    method = recognize(checkpoint)
    if method is None:
        some = ", ".join(sorted(checkpoint.tensors)[:3])
        raise InputError(f"{path} is not a known checkpoint of {', '.join(METHOD_NAMES)} (keys: {some}, ...)")
    tensors, options = _fitting(checkpoint, backbone)
    save_weights(out, tensors, method, {"options": options, "converted_from": path.name})
    size = out.stat().st_size
    report = {"file": str(out), "method": method, "entries": len(tensors), "bytes": size, "options": options}
    show(report, json_target, f"{out}: {method}, {len(tensors)} entries, {size / 2**20:.1f} MiB")


def _fitting(checkpoint: Checkpoint, backbone: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and options of a checkpoint that fit the network which they describe."""
    from streamvos.weights import as_ours, build_with, read_checkpoint, recognize

    name = recognize(checkpoint)
    if name not in METHOD_NAMES:
        raise InputError(f"{checkpoint.path} holds weights of an unknown method {name!r}")
    tensors, options = as_ours(checkpoint, None if backbone is None else read_checkpoint(backbone))
    build_with(name, options, tensors, checkpoint.path)
    return tensors, options


def _count(tensors: dict[str, Any]) -> int:
    return sum(value.numel() for name, value in tensors.items() if not name.endswith("num_batches_tracked"))


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return json.dumps(value)
    return "" if value is None else str(value)
