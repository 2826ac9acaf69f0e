"""The machines of a fleet, by Ray: one detached actor for each share of a machine.

    with RayCluster(config) as cluster:
        cluster.shares()                              # {"1f3a90c2-0": "camera-host-1"}
        cluster.call("1f3a90c2-0", "report", timeout=5.0)

Ray places the actors, starts them again, and tells which machines are there. Nothing else passes through it
but the calls of `share.Share` with their texts and numbers: no frames, masks or states.

Whoever reaches Ray's ports can run programs on its machines: they belong into a private network.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from typing import Any, Protocol

from streamvos.fleet.config import FleetConfig
from streamvos.types import InputError, StreamvosError


class GoneError(StreamvosError):
    """A share that is not there any more."""


class SilentError(StreamvosError):
    """A share that does not answer in time."""


class Cluster(Protocol):
    """What the fleet needs of its machines."""

    def shares(self) -> dict[str, str]:
        """Share -> its machine's name, of all that are there; shares of new machines are begun."""

    def call(self, share: str, method: str, *arguments: Any, timeout: float) -> Any:
        """Call a method of `share.Share` and wait for its result.

        Raises:
            InputError, StreamvosError: as the method.
            GoneError, SilentError: the share is gone, or does not answer.
        """

    def restart(self, share: str) -> None:
        """End a share that does not work any more; it is started again."""

    def close(self, end_shares: bool) -> None:
        """Leave the machines; `end_shares`: with nothing running there."""


class ShareActor:
    """What Ray runs: a `Share`, whose errors travel as values, since Ray would add tracebacks to them."""

    def __init__(self, arguments: list[Any]):
        from streamvos.fleet.share import Share

        try:
            self._share: Share | None = Share(*arguments)
            self._problem = ""
        except StreamvosError as error:  # tried again when it is restarted
            self._share, self._problem = None, str(error)

    def call(self, method: str, arguments: list[Any]) -> dict[str, Any]:
        """Call a method of the share."""
        if self._share is None:
            return {"error": self._problem, "input": False}
        try:
            return {"value": getattr(self._share, method)(*arguments)}
        except StreamvosError as error:
            return {"error": str(error), "input": isinstance(error, InputError)}


class RayCluster:
    """A cluster that runs, or one of this machine alone that begins and ends with this process.

    Args:
        config: the fleet's.
        **more: for `ray.init`.

    Raises:
        InputError: Ray is missing, or there is no cluster at that address.
    """

    def __init__(self, config: FleetConfig, **more: Any):
        try:
            import ray
        except ImportError:
            raise InputError("a fleet needs Ray; pip install 'streamvos[fleet]'") from None
        self._ray, self._config = ray, config
        self._own = config.cluster == "local"
        self._actors: dict[str, Any] = {}
        try:
            ray.init(
                address="local" if self._own else config.cluster,
                namespace=f"streamvos-{config.name}",
                include_dashboard=False if self._own else None,
                logging_level=logging.ERROR,
                log_to_driver=False,
                **more,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f"no Ray cluster at {config.cluster!r}: {_first_line(error)}") from None

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *error: object) -> None:
        self.close(end_shares=self._own)

    def shares(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for node in self._ray.nodes():
            if not node["Alive"]:
                continue
            name, resources = node["NodeManagerHostname"], node["Resources"]
            for number in range(self._count(resources)):
                share = f"{node['NodeID'][:8]}-{number}"
                found[share] = name
                if share not in self._actors:
                    self._actors[share] = self._begin(share, node["NodeID"])
        for share in self._actors.keys() - found.keys():
            del self._actors[share]
        return found

    def call(self, share: str, method: str, *arguments: Any, timeout: float) -> Any:
        errors = self._ray.exceptions
        actor = self._actors.get(share)
        if actor is None:
            raise GoneError(f"the share {share} is gone")
        try:
            answer = self._ray.get(actor.call.remote(method, list(arguments)), timeout=timeout)
        except errors.GetTimeoutError:
            raise SilentError(f"the share {share} does not answer within {timeout:g} s") from None
        except errors.RayError as error:
            raise GoneError(f"the share {share} is gone: {_first_line(error)}") from None
        if "error" in answer:
            raise (InputError if answer["input"] else StreamvosError)(answer["error"])
        return answer["value"]

    def restart(self, share: str) -> None:
        actor = self._actors.get(share)
        if actor is not None:
            self._ignore(lambda: self._ray.kill(actor, no_restart=False))

    def close(self, end_shares: bool) -> None:
        if end_shares:
            for share, actor in self._actors.items():
                self._ignore(lambda share=share: self.call(share, "close", timeout=20.0))  # type: ignore[misc]
                self._ignore(lambda actor=actor: self._ray.kill(actor))  # type: ignore[misc]
        self._actors.clear()
        self._ray.shutdown()

    def _count(self, resources: dict[str, float]) -> int:
        """How many shares a machine has."""
        share = self._config.share
        by_cpus = int(resources.get("CPU", 0) / share.cpus)
        return min(by_cpus, int(resources.get("GPU", 0) / share.gpus)) if share.gpus else by_cpus

    def _begin(self, share: str, node: str) -> Any:
        """The actor of a share, which may run already; Ray starts it again on its own machine, for ever."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        config, own = self._config, self._config.share
        pipeline = f"{config.name}-{share}"
        arguments = [pipeline, json.dumps(config.pipeline(pipeline)), config.store, config.snapshot_seconds]
        return (
            self._ray.remote(ShareActor)
            .options(
                name=share,
                get_if_exists=True,
                lifetime="detached",
                max_restarts=-1,
                max_concurrency=64,
                num_cpus=own.cpus,
                num_gpus=own.gpus,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            )
            .remote(arguments)
        )

    def _ignore(self, act: Callable[[], Any]) -> None:
        with contextlib.suppress(StreamvosError, self._ray.exceptions.RayError, ValueError):
            act()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
