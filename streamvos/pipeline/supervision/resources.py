"""What streams hold of the machine: the right to write their outputs, shared memory, and files of sockets."""

from __future__ import annotations

import os
from collections.abc import Iterable

from streamvos.pipeline.config.files import claim_of, local_stages
from streamvos.pipeline.config.pipeline import PipelineConfig
from streamvos.pipeline.supervision.topology import Topology
from streamvos.pipeline.wire.arenas import Arena
from streamvos.pipeline.wire.messages import Array, Place, Refused
from streamvos.pipeline.wire.runtime import Runtime
from streamvos.sinks.claim import Claim, FolderLocks
from streamvos.types import InputError


class Resources:
    """The resources of all streams.

    Args:
        topology: says which arenas and sockets a stream has.
        runtime: the pipeline's folder.
    """

    def __init__(self, topology: Topology, runtime: Runtime):
        self._topology, self._runtime = topology, runtime
        self._locks = FolderLocks()
        self._claims: dict[str, Claim] = {}
        self._arenas: dict[str, list[Arena]] = {}

    def begin(self, config: PipelineConfig) -> None:
        """Take the resources of the streams of the beginning.

        Raises:
            InputError, SinkError: an output is in use, or a file of the user is in its place.
            ArenaError: there are no descriptors left.
        """
        stages = local_stages(config)
        with claim_of(config, stages, self._locks):  # all at once, so that folders may be shared
            for stream in config.streams:
                own = f"sinks.{stream.name}"
                claim = claim_of(config, [own] if own in stages else [], self._locks)
                claim.enter(begin=False)
                self.take(stream.name, claim)

    def claim(self, config: PipelineConfig) -> Claim | None:
        """Claim the outputs of an added stream, and begin them anew; from any thread.

        Raises:
            InputError, SinkError: as `begin`.
        """
        claim = claim_of(config, local_stages(config), self._locks)
        claim.enter()
        return claim

    def take(self, stream: str, claim: Claim | None) -> None:
        """Take over a stream's claim, and make its arenas; all of them, or none.

        Raises:
            ArenaError: there are no descriptors left.
        """
        made: list[Arena] = []
        try:
            for name in self._topology.arenas_of(stream):
                made.append(Arena.create(name))
        except BaseException:
            for arena in made:
                os.close(arena.fd)
            raise
        self._arenas[stream] = made
        if claim is not None:
            self._claims[stream] = claim

    def descriptors(self, streams: Iterable[str]) -> dict[str, int]:
        """Name -> descriptor of the arenas of streams."""
        return {arena.name: arena.fd for stream in streams for arena in self._arenas[stream]}

    def read(self, stream: str, array: Array) -> bytes:
        """The bytes of a stream's saved state; InputError if its slot is used again."""
        if not isinstance(array.data, Place):
            return bytes(array.data)
        place = array.data
        arenas = {one.name: one for one in self._arenas.get(stream, [])}
        try:
            if place.arena not in arenas:
                raise Refused("arena")
            with arenas[place.arena].read(place, array.nbytes) as view:
                return bytes(view)
        except Refused:
            raise InputError(f"the state of {stream} is being written; ask again") from None

    def free(self, stream: str) -> None:
        """Free the shared memory of a stream that has ended; others may have it mapped."""
        for arena in self._arenas[stream]:
            arena.free()

    def forget(self, stream: str) -> None:
        """Give back everything that a stream holds, once its processes have ended."""
        for arena in self._arenas.pop(stream):
            os.close(arena.fd)
        if stream in self._claims:
            self._claims.pop(stream).release()
        own = [edge for edge in self._topology.edges.values() if edge.stream == stream]
        self._runtime.forget(stream, [edge.endpoint for edge in own])

    def close(self) -> None:
        """Give back everything."""
        for arenas in self._arenas.values():
            for arena in arenas:
                os.close(arena.fd)
        for claim in self._claims.values():
            claim.release()
        self._arenas, self._claims = {}, {}
