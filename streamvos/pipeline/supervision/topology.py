"""Which stages, workers, edges and arenas the streams of a pipeline have.

topology = Topology(config, runtime)
topology.workers["compute"]             # ("extractor", "memory.front", "decoder.front")
topology.edges["front/frames"].endpoint
topology.add(config.only([side]))       # a stream that is added later has workers of its own: "compute.side"
"""

from __future__ import annotations

import itertools

from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.config.streams import StreamConfig
from streamvos.pipeline.wire.endpoints import frames_address
from streamvos.pipeline.wire.runtime import Runtime
from streamvos.pipeline.wire.spec import EdgeSpec, Mode

EDGES = {
    "frames": ("source", "extractor", 1),
    "features": ("extractor", "memory", 1),
    "evidence": ("memory", "decoder", 1),
    "predictions": ("decoder", "memory", 2),
    "results": ("decoder", "sinks", 2),
}
"""Kind of edge -> kinds of its producer and consumer, and its window."""

RESET_STAGES = ("sinks", "decoder", "extractor", "memory")
"""Kinds of stages that are reset before the source starts."""

KINDS = ("source", *RESET_STAGES)
LOSSLESS_FRAMES_WINDOW = 2
SNAPSHOT_ARENAS = 3
COMPUTE = "compute"
EXTRACTOR = "extractor"


class Topology:
    """The stages, workers and edges of a pipeline. Streams of the beginning share an extractor.

    Args:
        config: the pipeline's configuration.
        runtime: its folder, for the local sockets.

    Attributes:
        workers: local worker -> its stages.
        remote: stages that a user starts on another host.
        edges: by name, such as "front/frames".
        publish: stream -> address at which its masks are published.
        frames: stream -> address at which its source, if it is on this host, publishes frames.
        standby: the worker that has a standby process.
    """

    def __init__(self, config: PipelineConfig, runtime: Runtime):
        self.workers: dict[str, tuple[str, ...]] = {}
        self.remote: tuple[str, ...] = tuple(config.remote)
        self.edges: dict[str, EdgeSpec] = {}
        self.publish: dict[str, str] = {}
        self.frames: dict[str, str] = {}
        self.standby = COMPUTE if config.standby and config.streams else None
        self._runtime = runtime
        self._numbers = itertools.count()  # of sockets; never used again, since a dead worker may own one
        self._stages: dict[str, dict[str, str]] = {}  # stream -> kind -> stage
        self._where: dict[str, str] = {}  # stage -> worker
        if config.streams:
            self._include(config, EXTRACTOR, COMPUTE)

    def add(self, config: PipelineConfig) -> None:
        """Add a stream with workers of its own.

        Args:
            config: the pipeline's configuration, with this stream alone, and without remote stages.

        Raises:
            InputError: the path of a socket would be too long; nothing was added.
        """
        (stream,) = config.streams
        self._include(config, f"{EXTRACTOR}.{stream.name}", f"{COMPUTE}.{stream.name}")

    def remove(self, stream: str) -> None:
        """Remove a stream, and the workers and stages that only it needs."""
        self.edges = {name: edge for name, edge in self.edges.items() if edge.stream != stream}
        self._stages.pop(stream)
        self.publish.pop(stream, None)
        self.frames.pop(stream, None)
        needed = {stage for stages in self._stages.values() for stage in stages.values()}
        left = {name: tuple(one for one in own if one in needed) for name, own in self.workers.items()}
        self.workers = {name: own for name, own in left.items() if own}
        self.remote = tuple(stage for stage in self.remote if stage in needed)
        self._where = {stage: name for stage, name in self._where.items() if stage in needed}

    # ---- who is where

    @property
    def arenas(self) -> tuple[str, ...]:
        """Names of the memfds of all streams, which the supervisor creates."""
        return tuple(name for stream in self._stages for name in self.arenas_of(stream))

    def arenas_of(self, stream: str) -> list[str]:
        """Names of the memfds of one stream."""
        own = [edge for edge in self.edges.values() if edge.stream == stream]
        arenas = [edge.name for edge in own if edge.mode == "shared"]
        if self._stages[stream]["memory"] not in self.remote:
            arenas += [f"{stream}/snapshots.{k}" for k in range(SNAPSHOT_ARENAS)]
        return arenas

    def stage(self, kind: str, stream: str) -> str:
        """Name of a stream's stage of a kind."""
        return self._stages[stream][kind]

    def worker_of(self, stage: str) -> str:
        """The worker that runs a stage; a remote stage is its own."""
        return self._where.get(stage, stage)

    def workers_of(self, stream: str) -> set[str]:
        """All workers that a stream needs; none if there is no such stream."""
        return {self.worker_of(stage) for stage in self._stages.get(stream, {}).values()}

    def streams_of(self, worker: str) -> list[str]:
        """All streams that need a worker."""
        return [name for name in self._stages if worker in self.workers_of(name)]

    # ---- how a stream is laid out

    def _include(self, config: PipelineConfig, extractor: str, compute: str) -> None:
        """Add the streams of a configuration, which share an extractor; all of them, or none."""
        stages = {
            one.name: {kind: extractor if kind == EXTRACTOR else f"{kind}.{one.name}" for kind in KINDS}
            for one in config.streams
        }
        own_kinds = ("source", "memory", "decoder", "sinks")
        workers: dict[str, tuple[str, ...]] = {}
        for stage in (extractor, *(own[kind] for own in stages.values() for kind in own_kinds)):
            if stage not in config.remote:
                together = config.placement == "fused" and not stage.startswith(("source.", "sinks."))
                name = compute if together else stage
                workers[name] = (*workers.get(name, ()), stage)
        where = {stage: name for name, own in workers.items() for stage in own}
        where |= {stage: stage for stage in config.remote}
        edges = [
            self._edge(config, stream, kind, stages[stream.name], where)
            for stream in config.streams
            for kind in EDGES
        ]
        publish = {
            stream.name: sink.address or self._runtime.masks(stream.name)
            for stream in config.streams
            for sink in stream.sinks
            if sink.kind == "publish"
        }
        frames = {
            stream.name: frames_address(self._runtime.folder, stream.name)
            for stream in config.streams
            if f"source.{stream.name}" not in config.remote
        }
        self.edges |= {edge.name: edge for edge in edges}
        self.workers |= workers
        self.publish |= publish
        self.frames |= frames
        self._stages |= stages
        self._where |= where

    def _edge(
        self,
        config: PipelineConfig,
        stream: StreamConfig,
        kind: str,
        stages: dict[str, str],
        where: dict[str, str],
    ) -> EdgeSpec:
        start, end, window = EDGES[kind]
        producer, consumer, name = stages[start], stages[end], f"{stream.name}/{kind}"
        if kind == "frames" and stream.effective_policy == "lossless":
            window = LOSSLESS_FRAMES_WINDOW
        mode: Mode
        if producer in config.remote or consumer in config.remote:
            host = config.remote[consumer].host if consumer in config.remote else config.host
            mode, endpoint = "inline", f"tcp://{host}:*"
        elif where[producer] == where[consumer]:
            mode, endpoint = "reference", f"inproc://{name}"
        else:
            mode, endpoint = "shared", self._runtime.edge(next(self._numbers))
        arena = name if mode == "shared" else None
        return EdgeSpec(name, stream.name, producer, consumer, endpoint, window, mode, arena)
