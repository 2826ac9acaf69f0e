"""The files that a pipeline reads and writes: none is both, and nothing of the user's is replaced.

refuse_conflicts(written_by(config), read_by(config))
with claim_of(config, local_stages(config)): ...
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from streamvos.masks.exports import file_of_mask
from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.config.streams import StreamConfig
from streamvos.sinks.claim import Claim, FolderLocks
from streamvos.sinks.conflicts import Place
from streamvos.sources.places import files_of, may_name


def written_by(config: PipelineConfig) -> list[Place]:
    """Outputs of all sinks, and the trace."""
    places = [
        Place(sink.path, f'the {sink.kind} sink of "{stream.name}"', sink.kind == "labels")
        for stream in config.streams
        for sink in stream.sinks
        if sink.path is not None
    ]
    if config.observe.trace is not None:
        places.append(Place(config.observe.trace, "the trace"))
    return places


def read_by(config: PipelineConfig, file: Path | None = None) -> list[Place]:
    """Sources, masks, weights and keys, and the file of the configuration itself."""
    places: list[Place] = []
    for stream in config.streams:
        owner = f'of "{stream.name}"'
        places += [Place(path, f"the source {owner}", reads=reads) for path, reads in files_of(stream.source)]
        if stream.mask is not None:
            places.append(Place(file_of_mask(stream.mask), f"the mask {owner}"))
    for model in (config.selection.sam_encoder, config.selection.sam_decoder):
        if model is not None:
            places.append(Place(model, "the model of the selection"))
    if config.method.weights not in (None, "default"):
        places.append(Place(Path(config.method.weights), "the weights"))
    security = config.security
    if security.secret is not None:
        places.append(Place(security.secret, "the secret key"))
    if security.clients is not None:
        clients = security.clients
        places.append(Place(clients, "the clients' keys", reads=lambda one: clients in one.parents))
    return places if file is None else [*places, Place(file, "the configuration")]


def local_stages(config: PipelineConfig) -> list[str]:
    """The sinks stages of the supervisor's host; each remote one is on its own."""
    return [name for name in _sinks_stages(config) if name not in config.remote]


def claim_of(config: PipelineConfig, stages: Collection[str], locks: FolderLocks | None = None) -> Claim:
    """The claim of the outputs of some sinks stages ("sinks.STREAM").

    Args:
        config: the pipeline's configuration.
        stages: the sinks stages.
        locks: locks that are shared with other claims of this process.

    Raises:
        InputError, SinkError: on entry, see `Claim`.
    """
    streams = [one for name, one in _sinks_stages(config).items() if name in stages]
    sinks = [(sink.kind, sink.path) for one in streams for sink in one.sinks if sink.path is not None]
    names = [may_name(one.source) for one in streams]
    return Claim(
        [path for kind, path in sinks if kind != "labels"],
        [path for kind, path in sinks if kind == "labels"],
        may_name=lambda stem: any(may(stem) for may in names),
        overwrite=config.overwrite,
        locks=locks,
        hint="--overwrite (overwrite = true in a file)",
    )


def _sinks_stages(config: PipelineConfig) -> dict[str, StreamConfig]:
    return {f"sinks.{one.name}": one for one in config.streams}
