"""What a fleet shows of itself: on its page, in its metrics, in `streamvos fleet status`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamvos.fleet.controller import Controller


def overview(
    name: str,
    controller: Controller,
    machines: Mapping[str, str],
    reports: Mapping[str, Mapping[str, Any]],
    gone: Mapping[str, int],
    store_problem: str,
) -> dict[str, Any]:
    """Everything that is shown; it does not change afterwards.

    Args:
        name: the fleet's.
        controller: says what runs where.
        machines: share -> name of its machine.
        reports: share -> its last report, as `Share.report`.
        gone: "STREAM frames" and "STREAM CAUSE" -> frames of earlier placements, written or dropped.
        store_problem: why the store does not take what it is given.
    """
    streams: dict[str, Any] = {}
    for stream, one in controller.streams.items():
        report = reports.get(one.share, {})
        own = report.get("streams", {}).get(stream)
        status = report["status"]["streams"][stream] if own and own["epoch"] == one.epoch else {}
        streams[stream] = {
            **status,
            "state": status.get("state", "starting") if one.phase == "running" else one.phase,
            "share": one.share,
            "machine": machines.get(one.share, ""),
            "epoch": one.epoch,
            "problem": one.problem or (own or {}).get("problem", ""),
            "gone": {key.partition(" ")[2]: n for key, n in gone.items() if key.split(" ")[0] == stream},
        }
    shares = {}
    for share, machine in machines.items():
        said = reports.get(share)
        draining = share in controller.draining
        shares[share] = {
            "machine": machine,
            "state": "starting" if said is None else "draining" if draining else "up",
            "used": float(controller.used.get(share, 0)),
            "pid": None if said is None else said["pid"],
            "store_problem": "" if said is None else said["store_problem"],
        }
    problems = [one["store_problem"] for one in shares.values()]
    return {
        "pipeline": name,
        "streams": streams,
        "shares": shares,
        "returns": [seconds for _, seconds in controller.returns[-1000:]],
        "store": next(filter(None, problems), store_problem),
        "pipelines": {share: report["status"] for share, report in reports.items()},
    }
