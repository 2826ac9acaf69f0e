"""Which stages, workers, edges and arenas a configuration describes.

topology = Topology.of(config, runtime)
topology.workers["compute"]             # ("extractor", "memory.front", "decoder.front")
topology.edges["front/frames"].endpoint
"""

from __future__ import annotations

from dataclasses import dataclass

from streamvos.pipeline.config.pipeline import PipelineConfig
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

LOSSLESS_FRAMES_WINDOW = 2
SNAPSHOT_ARENAS = 3
COMPUTE = "compute"


@dataclass(frozen=True)
class Topology:
    """The stages, workers and edges of a pipeline."""

    workers: dict[str, tuple[str, ...]]  # local worker -> its stages
    remote: tuple[str, ...]  # stages that a user starts on another host
    edges: dict[str, EdgeSpec]  # by name, such as "front/frames"
    arenas: tuple[str, ...]  # names of the memfds that the supervisor creates
    publish: dict[str, str]  # stream -> address at which its masks are published
    frames: dict[str, str]  # stream -> address at which its source, if it is on this host, publishes frames
    standby: str | None  # the worker that has a standby process

    @classmethod
    def of(cls, config: PipelineConfig, runtime: Runtime) -> Topology:
        """The topology of a configuration, with its local sockets in the folder of `runtime`."""
        workers = _workers(config)
        where = {stage: name for name, stages in workers.items() for stage in stages}
        edges: dict[str, EdgeSpec] = {}
        for stream in config.streams:
            for kind, (start, end, window) in EDGES.items():
                producer, consumer = stage_name(start, stream.name), stage_name(end, stream.name)
                name = f"{stream.name}/{kind}"
                if kind == "frames" and stream.effective_policy == "lossless":
                    window = LOSSLESS_FRAMES_WINDOW
                mode: Mode
                if producer in config.remote or consumer in config.remote:
                    host = config.remote[consumer].host if consumer in config.remote else config.host
                    mode, endpoint = "inline", f"tcp://{host}:*"
                elif where[producer] == where[consumer]:
                    mode, endpoint = "reference", f"inproc://{name}"
                else:
                    mode, endpoint = "shared", runtime.edge(len(edges))
                arena = name if mode == "shared" else None
                edges[name] = EdgeSpec(name, stream.name, producer, consumer, endpoint, window, mode, arena)
        arenas = [name for name, edge in edges.items() if edge.mode == "shared"]
        arenas += [
            f"{stream.name}/snapshots.{k}"
            for stream in config.streams
            if f"memory.{stream.name}" not in config.remote
            for k in range(SNAPSHOT_ARENAS)
        ]
        publish = {
            stream.name: sink.address or runtime.masks(stream.name)
            for stream in config.streams
            for sink in stream.sinks
            if sink.kind == "publish"
        }
        frames = {
            stream.name: frames_address(runtime.folder, stream.name)
            for stream in config.streams
            if stage_name("source", stream.name) not in config.remote
        }
        standby = COMPUTE if config.standby else None
        workers = {name: stages for name, stages in workers.items() if name not in config.remote}
        return cls(workers, tuple(config.remote), edges, tuple(arenas), publish, frames, standby)

    def worker_of(self, stage: str) -> str:
        """The worker that runs a stage; a remote stage is its own."""
        return next((name for name, stages in self.workers.items() if stage in stages), stage)

    def workers_of(self, stream: str) -> set[str]:
        """All workers that a stream needs."""
        return {self.worker_of(stage_name(kind, stream)) for kind in ("source", *RESET_STAGES)}


def _workers(config: PipelineConfig) -> dict[str, tuple[str, ...]]:
    if config.placement == "split":
        return {stage: (stage,) for stage in config.stage_names}
    inside = [stage for stage in config.stage_names if not stage.startswith(("source.", "sinks."))]
    outside = {stage: (stage,) for stage in config.stage_names if stage not in inside}
    return {COMPUTE: tuple(inside), **outside}


def stage_name(kind: str, stream: str) -> str:
    """Name of a stream's stage; all streams share the extractor."""
    return kind if kind == "extractor" else f"{kind}.{stream}"
