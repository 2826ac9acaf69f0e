"""`streamvos stage`: run one stage of a pipeline here, for a supervisor elsewhere.

streamvos stage extractor --connect tcp://10.0.0.1:5600 --secret pipeline.key_secret
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from streamvos.cli.options import examples
from streamvos.pipeline.wire.endpoints import is_loopback, split_tcp
from streamvos.types import InputError

EXAMPLES = examples(
    "streamvos stage extractor --connect tcp://10.0.0.1:5600 --secret pipeline.key_secret",
    "streamvos stage memory.door --connect tcp://127.0.0.1:5600",
)

_STAGE = re.compile(r"extractor|(source|memory|decoder|sinks)\.[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def stage(
    name: Annotated[
        str,
        typer.Argument(
            metavar="STAGE", help="extractor, or source.S, memory.S, decoder.S, sinks.S of the stream S."
        ),
    ],
    connect: Annotated[
        str,
        typer.Option(
            metavar="tcp://HOST:PORT", help="Where the supervisor listens: host and port in its file."
        ),
    ],
    secret: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The pipeline's secret key, from `streamvos keys new`."),
    ] = None,
) -> None:
    """Run one stage that the pipeline's file lists under [remote].

    The stage waits for the supervisor and ends with it. On another host it needs the pipeline's key.
    """
    if _STAGE.fullmatch(name) is None:
        raise InputError(
            f"there is no stage {name!r}; expected extractor, or source.S, memory.S, decoder.S, sinks.S with "
            "the name of a stream"
        )
    try:
        _, port = split_tcp(connect)
    except InputError as error:
        raise InputError(f"--connect: {error}") from None
    if port == "*":
        raise InputError(f"--connect {connect}: give the supervisor's port, such as 5600")
    if secret is None and not is_loopback(connect):
        raise InputError(
            f"--connect {connect} leaves this host, which needs the pipeline's key: give --secret "
            "(`streamvos keys new` makes one for all hosts of a pipeline)"
        )
    if secret is not None and not secret.is_file():
        raise InputError(f"--secret: there is no file {secret}; `streamvos keys new` makes keys")
    from streamvos.pipeline.stages.worker import run_remote

    raise typer.Exit(run_remote(name, connect, secret))
