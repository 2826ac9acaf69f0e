"""What the shares of a fleet said last, and what becomes of those that say nothing.

reports = Reports(cluster, store.number, log, forgotten)
reports.take(*reports.ask(now), now)           # `ask` takes seconds, in another thread
reports.of_shares()                            # share -> what the controller sees
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from streamvos.fleet.cluster import Cluster, GoneError, Place, SilentError
from streamvos.fleet.controller import Report
from streamvos.pipeline.telemetry.logs import EventLog
from streamvos.types import StreamvosError

ANSWER_SECONDS = 5.0
"""How long one report may take."""

LOST_SECONDS = 15.0
"""A share that gives no report for so long is started again, and its streams go elsewhere."""

BEGIN_SECONDS = 60.0
"""How long a share may take for its first report."""

Answers = tuple[Mapping[str, Place], Mapping[str, Any], float]
"""Where shares are, what each said (a report, or an error), and when they were asked."""


class Reports:
    """The last report of each share.

    Args:
        cluster: has the shares.
        store_number: of the fleet's store, which every share has to use.
        log: receives the events.
        forgotten: called with the statuses of the streams of a share that is lost.

    Attributes:
        machines: where the shares are.
        last: share -> its last report, as `Share.report`.
        problems: share -> why it gives no report.
        asking_since: since when the cluster is asked which shares there are; None = it is not.
    """

    def __init__(
        self,
        cluster: Cluster,
        store_number: str,
        log: EventLog,
        forgotten: Callable[[Mapping[str, Any]], None],
    ):
        self._cluster, self._store_number, self._log, self._forgotten = cluster, store_number, log, forgotten
        self.machines: dict[str, Place] = {}
        self.last: dict[str, dict[str, Any]] = {}
        self.problems: dict[str, str] = {}
        self.asking_since: float | None = None
        self._asked: dict[str, float] = {}  # share -> when the report that we have was asked for
        self._silent_since: dict[str, float] = {}
        self._pool = ThreadPoolExecutor(64, "reports")

    def ask(self, now: float) -> Answers:
        """Every share's report, or why there is none.

        Raises:
            StreamvosError: the cluster does not answer.
        """
        self.asking_since = now
        try:
            machines = self._cluster.shares()
        finally:
            self.asking_since = None
        calls = {
            share: self._pool.submit(self._cluster.call, share, "report", timeout=ANSWER_SECONDS)
            for share in machines
        }
        answers: dict[str, Any] = {}
        for share, call in calls.items():
            try:
                answers[share] = call.result()
            except StreamvosError as error:
                answers[share] = error
        return machines, answers, now

    def take(self, answers: Answers, now: float) -> list[str]:
        """Take over what was said.

        Returns:
            The shares that have to be ended, since they work no more; they begin again then.
        """
        machines, said, asked_at = answers
        ends = [share for share, one in said.items() if self._take(share, one, asked_at, now)]
        for share in self.last.keys() - machines.keys():
            self._log.event("share_lost", "warning", share=share, reason="its machine is gone")
            self._forget(share)
        for share in machines.keys() - self.machines.keys():
            self._log.event("share_found", share=share, machine=machines[share].machine)
        for table in (self.problems, self._silent_since):
            for share in table.keys() - machines.keys():
                del table[share]
        self.machines = dict(machines)
        return ends

    def of_shares(self) -> dict[str, Report]:
        """What the controller sees of each share that gives reports."""
        return {share: self._report(share, one) for share, one in self.last.items()}

    def all_began(self) -> bool:
        """Whether every share has said something."""
        return all(share in self.last or share in self.problems for share in self.machines)

    def close(self) -> None:
        """Wait for no answer any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _take(self, share: str, said: Any, asked_at: float, now: float) -> bool:
        if isinstance(said, dict) and said["store"] == self._store_number:
            self._silent_since.pop(share, None)
            self.problems.pop(share, None)
            self.last[share], self._asked[share] = said, asked_at
            return False
        known = share in self.last
        silent = now - self._silent_since.setdefault(share, now)
        if isinstance(said, SilentError) and silent < (LOST_SECONDS if known else BEGIN_SECONDS):
            return False  # what it said last still counts
        mounted = "the store on its machine is another one of the same address; is it mounted here and there?"
        reason = mounted if isinstance(said, dict) else str(said)
        if self.problems.get(share) != reason:
            event = "share_lost" if known else "share_not_begun"
            self._log.event(event, "warning", share=share, reason=reason)
        self.problems[share] = reason
        self._forget(share)
        if isinstance(said, GoneError):  # it is started again anyway
            del self._silent_since[share]
        if isinstance(said, (GoneError, dict)) or (not known and silent < LOST_SECONDS):
            return False
        del self._silent_since[share]
        return True

    def _forget(self, share: str) -> None:
        if (report := self.last.pop(share, None)) is not None:
            self._forgotten(report["status"]["streams"])
            del self._asked[share]

    def _report(self, share: str, said: Mapping[str, Any]) -> Report:
        statuses = said["status"]["streams"]
        streams = {name: (one["epoch"], statuses[name]["frames"]) for name, one in said["streams"].items()}
        return Report(said["life"], self._asked[share], streams, self.machines[share].kind)
