"""The machines of a fleet, by Ray: one detached actor for each share of a machine.

    with RayCluster(config) as cluster:
        cluster.shares()                              # {"1f3a90c2-0": Place("camera-host-1", "H200")}
        cluster.call("1f3a90c2-0", "report", timeout=5.0)

Ray places the actors, starts them again, and tells which machines are there. Nothing else passes through it
but the calls of `share.Share` with their texts and numbers: no frames, masks or states.

Whoever reaches Ray's ports can run programs on its machines: they belong into a private network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

from streamvos.fleet.config import FleetConfig, ShareConfig
from streamvos.types import InputError, StreamvosError


class GoneError(StreamvosError):
    """A share that is not there any more."""


class SilentError(StreamvosError):
    """A share that does not answer in time."""


class ClusterLostError(StreamvosError):
    """Nobody answers any more for the machines; leaving them in order would wait for that."""


class Place(NamedTuple):
    """Where a share is: its machine's name, and kind, one of `FleetConfig.kinds`; "" = none of them."""

    machine: str
    kind: str = ""


class Cluster(Protocol):
    """What the fleet needs of its machines."""

    def shares(self) -> dict[str, Place]:
        """All shares that are there; those of new machines are begun.

        Raises:
            StreamvosError: nobody knows which machines there are.
        """

    def call(self, share: str, method: str, *arguments: Any, timeout: float) -> Any:
        """Call a method of `share.Share` and wait for its result.

        Raises:
            InputError, StreamvosError: as the method.
            GoneError, SilentError: the share is gone, or does not answer.
        """

    def restart(self, share: str) -> None:
        """End a share that does not work any more; it is started again."""


class ShareActor:
    """What Ray runs: a `Share`, whose errors travel as values, since Ray would add tracebacks to them.

    Args:
        begun_with: tells actors of another fleet.toml from ours.
        arguments: for `Share`.
    """

    def __init__(self, begun_with: str, arguments: list[Any]):
        self._begun_with = begun_with
        self._share: Any = None
        self._problem = ""
        try:
            from streamvos.fleet.share import Share

            self._share = Share(*arguments)
        except Exception as error:  # an actor whose beginning fails is never started again
            self._problem = _text(error)

    def call(self, method: str, arguments: list[Any]) -> dict[str, Any]:
        """Call a method of the share."""
        answer: dict[str, Any] = {"begun_with": self._begun_with}
        if self._share is None:
            return {**answer, "error": self._problem, "input": False}
        try:
            return {**answer, "value": getattr(self._share, method)(*arguments)}
        except Exception as error:
            return {**answer, "error": _text(error), "input": isinstance(error, InputError)}


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
        settings = [config.pipeline(""), config.store, config.snapshot_seconds]
        self._begun_with = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
        if self._own:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to anybody
        try:
            ray.init(
                address="local" if self._own else config.cluster,
                namespace=f"streamvos-{config.name}",
                include_dashboard=False if self._own else None,
                logging_level=logging.ERROR,
                log_to_driver=False,
                **more,
            )
        except Exception as error:  # of many kinds
            if self._own:
                raise StreamvosError(f"Ray cannot begin here: {_first_line(error)}") from None
            raise InputError(f"no Ray cluster at {config.cluster!r}: {_first_line(error)}") from None

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *error: object) -> None:
        if self._own:
            self.end_shares()
        self._actors.clear()
        self._ray.shutdown()

    def shares(self) -> dict[str, Place]:
        found: dict[str, Place] = {}
        try:
            for node in self._ray.nodes():
                if node["Alive"]:
                    found |= self._shares_of(node)
        except Exception as error:  # of many kinds
            raise StreamvosError(f"Ray's head does not answer: {_first_line(error)}") from None
        for share in self._actors.keys() - found.keys():
            self._actors.pop(share, None)
        return found

    def _shares_of(self, node: Mapping[str, Any]) -> dict[str, Place]:
        """The shares of a machine, which are begun if they are not there yet."""
        resources = node["Resources"]
        kinds = [kind for kind in self._config.kinds if {kind, f"accelerator_type:{kind}"} & resources.keys()]
        place = Place(node["NodeManagerHostname"], kinds[0] if kinds else "")
        shares = [f"{node['NodeID'][:8]}-{n}" for n in range(count_shares(resources, self._config.share))]
        for share in shares:
            if share not in self._actors:
                self._actors[share] = self._begin(share, node["NodeID"])
        return dict.fromkeys(shares, place)

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
            self._actors.pop(share, None)  # looked up anew: Ray may have given it up
            raise GoneError(f"the share {share} is gone: {_first_line(error)}") from None
        if answer.get("begun_with") != self._begun_with:
            self._actors.pop(share, None)
            self._ignore(lambda: self._ray.kill(actor))
            raise GoneError(f"the share {share} ran by another fleet.toml, and begins anew")
        if "error" in answer:
            raise (InputError if answer["input"] else StreamvosError)(answer["error"])
        return answer["value"]

    def restart(self, share: str) -> None:
        actor = self._actors.get(share)
        if actor is not None:
            self._ignore(lambda: self._ray.kill(actor, no_restart=False))

    def end_shares(self) -> None:
        """End all shares, so that nothing of the fleet is left on the machines."""
        actors = list(self._actors.values())
        closing = [actor.call.remote("close", []) for actor in actors]
        if closing:
            self._ignore(lambda: self._ray.wait(closing, num_returns=len(closing), timeout=20.0))
        for actor in actors:
            self._ignore(lambda actor=actor: self._ray.kill(actor))  # type: ignore[misc]

    def _begin(self, share: str, node: str) -> Any:
        """The actor of a share, which may run already; Ray starts it again on its own machine, for ever."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        config, own = self._config, self._config.share
        name = f"{config.name}-{share}"
        arguments = [name, json.dumps(config.pipeline(name)), config.store, config.snapshot_seconds]
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
            .remote(self._begun_with, arguments)
        )

    def _ignore(self, act: Callable[[], Any]) -> None:
        with contextlib.suppress(StreamvosError, self._ray.exceptions.RayError, ValueError):
            act()


def count_shares(resources: Mapping[str, float], share: ShareConfig) -> int:
    """How many shares a machine has, by its resources as Ray counts them."""
    shares = _fit(resources.get("CPU", 0), share.cpus)
    gpus = int(resources.get("GPU", 0))
    if share.gpus:  # a share that has a part of a GPU has it of one alone
        shares = min(shares, _fit(gpus, share.gpus) if share.gpus > 1 else gpus * _fit(1, share.gpus))
    return shares


def _fit(have: float, each: float) -> int:
    return int(Fraction(str(have)) / Fraction(str(each)))


def _text(error: Exception) -> str:
    text = _first_line(error)
    return text if isinstance(error, StreamvosError) else f"{type(error).__name__}: {text}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
