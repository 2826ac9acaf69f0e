"""What a fleet shows of itself: on its page, in its metrics, in `streamvos fleet status`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamvos.fleet.controller import Controller
from streamvos.fleet.reports import Reports


def overview(
    name: str,
    controller: Controller,
    reports: Reports,
    gone: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """What is shown; it does not change afterwards.

    Args:
        name: the fleet's.
        controller: says what runs where.
        reports: say how they are.
        gone: stream -> "frames" written by earlier placements, and those that they dropped, by cause.
    """
    machines = reports.machines
    streams: dict[str, Any] = {}
    for stream, one in controller.streams.items():
        report = reports.last.get(one.share, {})
        own = report.get("streams", {}).get(stream)
        status = report["status"]["streams"][stream] if own and own["epoch"] == one.epoch else {}
        streams[stream] = {
            **status,
            "state": status.get("state", "starting") if one.phase == "running" else one.phase,
            "share": one.share,
            "machine": machines[one.share].machine if one.share in machines else "",
            "epoch": one.epoch,
            "problem": one.problem or (own or {}).get("problem", ""),
            "gone": dict(gone.get(stream, {})),
        }
    shares = {}
    for share, place in machines.items():
        said = reports.last.get(share)
        draining = share in controller.draining
        shares[share] = {
            "machine": place.machine,
            "kind": place.kind,
            "state": "starting" if said is None else "draining" if draining else "up",
            "used": float(controller.used.get(share, 0)),
            "pid": None if said is None else said["pid"],
            "problem": reports.problems.get(share, "") if said is None else said["store_problem"],
        }
    store_problems = [report["store_problem"] for report in reports.last.values()]
    return {
        "pipeline": name,
        "streams": streams,
        "shares": shares,
        "store": next(filter(None, store_problems), ""),
        "pipelines": {share: report["status"] for share, report in reports.last.items()},
    }
