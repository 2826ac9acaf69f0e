"""`streamvos keys`: make and show CURVE keys, for pipelines and clients that talk over tcp://.

streamvos keys new keys/door
streamvos keys show keys/door.key
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from streamvos.cli.options import JsonTarget, examples, refuse_over_inputs
from streamvos.cli.output import show
from streamvos.types import InputError

app = typer.Typer(epilog=examples("streamvos keys new keys/door", "streamvos keys show keys/door.key"))


@app.command(
    "new", epilog=examples("streamvos keys new keys/door", "streamvos keys new clients/laptop --json")
)
def new(
    path: Annotated[
        Path, typer.Argument(metavar="FOLDER/NAME", help="The new keys; the folder is made if missing.")
    ],
    json_target: JsonTarget = None,
) -> None:
    """Make a pair of keys: NAME.key, which is public, and NAME.key_secret, which is not.

    A pipeline.toml names the pipeline's .key_secret as `security.secret`, and the folder with the .key files
    of its clients as `security.clients`. A client needs its own .key_secret and the pipeline's .key.
    """
    from streamvos.pipeline.wire.security import make_keys, read_public_key

    refuse_over_inputs(
        json_target, {"the public key": Path(f"{path}.key"), "the secret key": Path(f"{path}.key_secret")}
    )
    public_path, secret_path = make_keys(path.parent, path.name)
    public = read_public_key(public_path).decode()
    values = {"public_file": str(public_path), "secret_file": str(secret_path), "public_key": public}
    show(values, json_target, f"public  {public_path}  {public}", f"secret  {secret_path}")


@app.command("show", epilog=examples("streamvos keys show keys/door.key", "streamvos keys show clients"))
def show_keys(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A key's file, or a folder of them.")],
    json_target: JsonTarget = None,
) -> None:
    """Show public keys. Secret keys are checked, but not shown."""
    from streamvos.pipeline.wire.security import read_public_key, read_secret_key

    refuse_over_inputs(json_target, {}, {"PATH": path})
    files = sorted((*path.glob("*.key"), *path.glob("*.key_secret"))) if path.is_dir() else [path]
    if not files:
        raise InputError(f"there are no keys in {path}; `streamvos keys new {path}/NAME` makes some")
    rows: list[dict[str, Any]] = []
    for file in files:
        secret = file.suffix == ".key_secret"
        public = read_secret_key(file)[0] if secret else read_public_key(file)
        rows.append({"file": str(file), "public_key": public.decode(), "secret": secret})
    width = max(len(str(row["file"])) for row in rows)
    lines = [f"{row['file']!s:<{width}}  {row['public_key']}{'  secret' * row['secret']}" for row in rows]
    show({"keys": rows}, json_target, *lines)
