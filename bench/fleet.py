"""`bench fleet --simulate`: what a fleet of a given size loses to failing machines, and nights save.

    streamvos bench fleet --simulate
    streamvos bench fleet --simulate --cameras 1000 --shares 95,105,120 --reserve 0,10 --json fleet.jsonl

Discrete events, seeded, over the placement that `streamvos fleet` itself uses
(streamvos/fleet/simulation.py). How long a real loss takes is what tests/fleet/test_ray.py measures.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Annotated

import typer

from streamvos.cli.options import examples
from streamvos.fleet.simulation import Outcome, Plan, simulate
from streamvos.types import InputError

from . import options
from .results import CaseResult, Settings, measured
from .runner import Run

EXAMPLES = examples(
    "streamvos bench fleet --simulate",
    "streamvos bench fleet --simulate --cameras 1000 --shares 95,105,120 --reserve 0,10",
)

COLUMNS = (
    "p50",
    "max",
    "details.failures",
    "details.most lost",
    "details.lost s/day",
    "details.no room s/day",
    "details.share hours/day",
    "details.down s/camera/day",
)

EVENTS_A_SECOND = 40_000  # of one core, roughly; for what is said before it begins


def command(
    simulated: Annotated[bool, typer.Option("--simulate", help="The only way there is.")] = False,
    cameras: Annotated[str, typer.Option(metavar="N,...", help="Cameras.")] = "10,1000,100000",
    shares: Annotated[
        str | None,
        typer.Option(
            metavar="N,...", help="Shares of machines; by default 10, 20 and 40 % more than needed."
        ),
    ] = None,
    per_share: Annotated[
        int, typer.Option(metavar="N", min=1, max=64, help="Streams that a share holds: `bench capacity`.")
    ] = 12,
    reserve: Annotated[
        str, typer.Option(metavar="N,...", help="Percent of each share for streams of lost machines.")
    ] = "0",
    days: Annotated[
        float | None, typer.Option(metavar="N", help="Simulated days; by default fewer for more cameras.")
    ] = None,
    failures: Annotated[float, typer.Option(metavar="N", help="Failures of a machine in a year.")] = 12.0,
    night: Annotated[int, typer.Option(metavar="N", min=0, max=100, help="Percent wanted at night.")] = 30,
    seed: Annotated[int, typer.Option(metavar="N", help="Of everything random.")] = 0,
    json_target: options.JsonTarget = None,
    html: options.HtmlTarget = None,
) -> None:
    """What a fleet loses to failing machines, by its size, its spare shares and its reserve.

    p50 and max are seconds from the loss of a machine to the masks of its streams elsewhere.
    """
    if not simulated:
        raise InputError("a real fleet is not measured here; give --simulate (docs/scale.md)")
    plans = []
    for count, part in product(
        options.numbers_in(cameras, "--cameras", most=10**6), options.numbers_in(reserve, "--reserve", 0, 99)
    ):
        needed = math.ceil(count / per_share)
        given = options.numbers_in(shares, "--shares", most=10**6) if shares else _spare(needed)
        span = days if days is not None else max(2.0, min(365.0, 1e5 / count))
        plans += [
            Plan(
                cameras=count, shares=one, per_share=per_share, days=span, failures_per_year=failures,
                night=night / 100, reserve=part / 100, seed=seed,
            )
            for one in given
        ]  # fmt: skip
    seconds = sum(plan.cameras * plan.days * 3 for plan in plans) / EVENTS_A_SECOND
    with Run("fleet", json_target, seconds, "cpu", COLUMNS, html=html) as run:
        for plan in plans:
            run.add(row_of(plan, simulate(plan)))


def _spare(needed: int) -> list[int]:
    return sorted({math.ceil(needed * more) for more in (1.1, 1.2, 1.4)})


def row_of(plan: Plan, outcome: Outcome) -> CaseResult:
    """What a simulated fleet has lost."""
    a_day = {cause: seconds / plan.days for cause, seconds in outcome.down_seconds.items()}
    return CaseResult(
        bench="fleet",
        name=f"{plan.cameras} cameras {plan.shares} shares {round(100 * plan.reserve)} % reserve",
        case=Settings(streams=plan.cameras),
        unit="s",
        **measured(outcome.return_seconds),
        scores={"availability": 100 * outcome.availability},
        details={
            "days": plan.days,
            "failures": outcome.failures,
            "most lost": outcome.most_lost,
            "lost s/day": a_day.get("machine lost", 0.0),
            "no room s/day": a_day.get("no room", 0.0),
            "down s/camera/day": sum(a_day.values()) / plan.cameras,
            "share hours/day": outcome.share_hours / plan.days,
            "seed": plan.seed,
        },
    )
