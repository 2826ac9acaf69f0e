"""`streamvos export`: results in the formats of other tools.

streamvos export coco out/ --to out/coco.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from streamvos.cli.options import JsonTarget, examples
from streamvos.cli.output import remark, write_file, write_json

app = typer.Typer(epilog=examples("streamvos export coco out/"))


@app.command("coco", epilog=examples("streamvos export coco out/ --to out/coco.json"))
def coco(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder of a run, or a results.jsonl.")],
    to: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The COCO file; coco.json beside the results by default."),
    ] = None,
    file_name: Annotated[
        str, typer.Option(metavar="PATTERN", help="Names of the images, with {index} and {stream}.")
    ] = "{index:05d}.png",
    json_target: JsonTarget = None,
) -> None:
    """Write the masks of a run as one COCO file."""
    from streamvos.sinks.coco import coco_of

    source = results / "results.jsonl" if results.is_dir() else results
    target = source.with_name("coco.json") if to is None else to
    value = coco_of(source, file_name)
    write_file(target, (json.dumps(value) + "\n").encode())
    counts = {"images": len(value["images"]), "masks": len(value["annotations"])}
    remark(f"{counts['images']} images, {counts['masks']} masks: {target}")
    write_json({"path": target, **counts}, json_target)
