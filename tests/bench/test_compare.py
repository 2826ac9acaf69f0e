"""A comparison of two runs raises few false alarms, and sees what is there."""

from __future__ import annotations

import numpy as np
import pytest
import typer
from bench_rows import timed_row

from bench import compare as comparing
from bench.compare import compare, warnings
from bench.results import CaseResult, Writer
from streamvos.types import InputError

CASES = 60


def verdicts(changes, quantity: str) -> list[str]:
    return [one.verdict for one in changes if one.quantity == quantity]


def simulated(factor: float, seed: int, turns: int = 5, **options) -> list[CaseResult]:
    return [timed_row(f"case {k}", 40 * factor, seed=[seed, k], turns=turns, **options) for k in range(CASES)]


@pytest.mark.parametrize(("turns", "noise", "bursts"), [(3, 0.02, 0.003), (5, 0.03, 0.01), (8, 0.01, 0.03)])
def test_runs_of_the_same_program_rarely_differ(turns, noise, bursts):
    """At most 2 % false alarms per figure: an interval of 99 %, and resampled bursts are still not exact."""
    options = {"turns": turns, "noise": noise, "bursts": bursts}
    changes = compare(simulated(1, 1, **options), simulated(1, 2, **options))
    for quantity in ("p50", "p99"):
        found = verdicts(changes, quantity)
        assert len(found) == CASES
        assert found.count("slower") <= 0.02 * CASES, quantity
        assert found.count("faster") <= 0.02 * CASES, quantity


@pytest.mark.parametrize("turns", [3, 5])
def test_a_fifth_more_is_seen(turns):
    old, new = simulated(1, 3, turns), simulated(1.2, 4, turns)
    assert verdicts(compare(old, new), "p50").count("slower") >= 0.95 * CASES
    assert verdicts(compare(new, old), "p50").count("faster") >= 0.95 * CASES


def test_a_tail_that_doubles_is_seen_while_the_median_stays():
    rng = np.random.default_rng(5)
    old, new = [], []
    for k in range(30):
        old.append(timed_row(f"case {k}", seed=[5, k], bursts=0, frames=200))
        bucket = max(old[-1].histogram)
        slow = int(rng.integers(70, 100))  # of 1,000 frames; as bursts of four, 2 % would do it by chance
        histogram = {**old[-1].histogram, bucket + 35: slow}  # 35 buckets are a factor of two
        new.append(
            old[-1].model_copy(
                update={
                    "histogram": histogram,
                    "count": old[-1].count + slow,
                    "quantiles": {**old[-1].quantiles, "p99": 2 * old[-1].quantiles["max"]},
                }
            )
        )
    changes = compare(old, new)
    assert verdicts(changes, "p50") == ["same"] * 30
    assert "same" not in verdicts(changes, "p99")
    assert verdicts(changes, "p99").count("slower") >= 27


def test_more_frames_a_second_are_better():
    old = timed_row("a", 30).model_copy(update={"unit": "frames/s"})
    new = timed_row("a", 20, seed=1).model_copy(update={"unit": "frames/s"})
    assert verdicts(compare([old], [new]), "p50") == ["slower"]
    assert verdicts(compare([new], [old]), "p50") == ["faster"]


def test_the_order_of_rows_and_other_rows_change_no_verdict():
    rows = simulated(1.06, 6)
    new = simulated(1.1, 7)
    together = {one.name: one for one in compare(rows, new[::-1]) if one.quantity == "p50"}
    (alone,) = (one for one in compare(rows[:1], new[:1]) if one.quantity == "p50")
    assert together[alone.name] == alone


def failed(name: str) -> CaseResult:
    return CaseResult(bench="latency", name=name, failed="out of time")


def test_cases_that_come_go_and_fail_are_named():
    old = [timed_row("kept"), timed_row("gone"), timed_row("breaks"), failed("heals"), failed("broken")]
    new = [timed_row("kept"), timed_row("fresh"), failed("breaks"), timed_row("heals"), failed("broken")]
    found = {one.name: one.verdict for one in compare(old, new)}
    assert found == {
        "kept": "same",
        "gone": "missing",
        "fresh": "new",
        "breaks": "fails now",
        "heals": "works now",
        "broken": "fails",
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"repetitions": [40.0, 41.0]}, "2 turns; expected at least 3"),
        ({"unit": "s"}, "the unit was ms, is s"),
        ({"repetitions": [0.0, 0.0, 0.0]}, "a median is 0"),
    ],
)
def test_what_cannot_be_judged_says_why(change, reason):
    (one,) = compare([timed_row("a")], [timed_row("a").model_copy(update=change)])
    assert (one.verdict, one.note[: len(reason)]) == ("not judged", reason)


def test_another_machine_and_a_shift_of_everything_are_warned_of():
    old = [timed_row(f"case {k}", seed=k) for k in range(6)]
    new = [
        timed_row(f"case {k}", 60, seed=k, machine={"cpu": "Another\x1b[31m"}, versions={"torch": "3"})
        for k in range(6)
    ]
    text = "\n".join(warnings(old, new, compare(old, new)))
    assert "different machine: cpu Some CPU 9000 -> Another" in text
    assert "torch 2.13.0 -> 3" in text
    assert "6 of 6 cases changed alike, by 1.50x" in text
    assert "load" not in text  # differs from run to run
    assert "\x1b" not in text
    assert not warnings(old, old, compare(old, old))
    busy = [row.model_copy(update={"machine": {**row.machine, "other_cores": 1.5}}) for row in old]
    assert warnings(old, busy, []) == ["the machine was busy during 6 of 6 cases of the new run"]


def run(old, new, tolerance: float = 0.05) -> int:
    """The exit code of the command."""
    try:
        comparing.command(old, new, tolerance=tolerance)
    except typer.Exit as exit_:
        return exit_.exit_code
    return 0


def written(path, rows) -> str:
    with Writer(path) as writer:
        for row in rows:
            writer.write(row)
    return path


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.2, 1), (0.8, 0)])
def test_the_exit_code_says_whether_something_got_slower(tmp_path, factor, code, capsys):
    old = written(tmp_path / "old.json", [timed_row("a b"), timed_row("c")])
    new = written(tmp_path / "new.json", [timed_row("a b", 40 * factor, seed=9), timed_row("c", seed=8)])
    assert run(old, new) == code
    text = capsys.readouterr().out
    assert ("<--" in text) == bool(code)
    assert f"2 cases compared: {code} worse, {int(factor < 1)} better" in text


def test_bad_input_ends_in_one_line(tmp_path):
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    with pytest.raises(InputError, match="no results at"):
        run(one, other)
    written(one, [timed_row("a")])
    written(other, [timed_row("b")])
    with pytest.raises(InputError, match="no case in common: the first of the old is 'a', of the new 'b'"):
        run(one, other)
    written(other, [timed_row("a"), timed_row("a")])
    with pytest.raises(InputError, match="two rows of the new run are named 'a'"):
        run(one, other)
    written(other, [timed_row("a", turns=2)])
    with pytest.raises(InputError, match=r"no case can be judged: 2 turns; .* measure again with more turns"):
        run(one, other)
    with pytest.raises(InputError, match="the tolerance is nan"):
        run(one, one, tolerance=float("nan"))
