"""`bench capacity`: the search, what it says, and one try in a real pipeline."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import capacity
from bench.capacity import Search, Shape, Try
from bench.results import read
from bench.searching import highest
from streamvos.cli import main

SHAPE = Shape("frtm-fast", "default", "eager", (240, 428), 1, "fused", None, "cpu")


@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 400))
def test_the_search_finds_the_border_in_few_tries(most, border, guess):
    tried: list[int] = []
    found = highest(lambda n: tried.append(n) or n <= border, most, guess)
    assert found == min(border, most)
    assert len(tried) == len(set(tried)) <= 2 * most.bit_length()
    assert all(1 <= n <= most for n in tried)


@given(st.integers(1, 300))
def test_a_right_guess_costs_two_tries(border):
    tried: list[int] = []
    assert highest(lambda n: tried.append(n) or n <= border, 1000, border) == border
    assert len(tried) == 2


@given(st.integers(1, 40), st.data())
def test_whatever_works_some_border_is_found(most, data):
    """Measurements vary: a number may work though a smaller one does not."""
    works = dict(enumerate(data.draw(st.lists(st.booleans(), min_size=most, max_size=most)), start=1))
    found = highest(works.__getitem__, most, data.draw(st.integers(1, most)))
    assert found == 0 or works[found]
    assert found == most or not works[found + 1]


def machine_that_holds(rates: list[float]):
    """A machine that processes so many frames a second, in each run of the search another number."""

    def try_streams(shape, streams, fps, seconds, folder):
        frames = int(fps * seconds)
        late = streams * fps > rates[0]
        latencies = {f"s{k}": [10.0 * streams] * frames for k in range(streams)}
        return Try(latencies, Counter({"newer frame": 3} if late else {}), frames - 1, 500.0, seconds)

    return try_streams


@pytest.fixture
def search(monkeypatch, tmp_path):
    def run(*rates: float, bound: float = 100.0, most: int = 16) -> Search:
        left = list(rates)
        monkeypatch.setattr(capacity, "try_streams", machine_that_holds(left))
        one = Search(SHAPE, 30.0, bound, 2.0, tmp_path)
        for _ in rates:
            one.run(most, 1)
            left.append(left.pop(0))
        return one

    return run


def test_the_sizing_line_and_a_row_for_every_number_of_streams(search):
    one = search(95.0, 95.0, 95.0)
    assert one.found == [(3, 30.0)] * 3
    rows = one.rows()
    assert [row.case.streams for row in rows] == [1, 2, 3, 4]
    assert [row.details["fit"] for row in rows] == [1, 1, 3, 0]
    assert rows[2].throughput == pytest.approx(90)
    assert rows[2].quantiles["p99"] == pytest.approx(30, rel=0.01)
    assert rows[3].details["reasons"] == ["dropped 3 (newer frame)"] * 3
    (line,) = [row.details["sizing"] for row in rows if "sizing" in row.details]
    cores = capacity.machine.cores()
    named = f"{cores} core{'s' * (cores != 1)}"
    assert line == (f"{named}: 3 streams 240p at 30 fps, frtm-fast, p99 30 ms (3 runs: 3, p99 30 to 30 ms)")


def test_its_own_noise_is_said(search):
    one = search(95.0, 65.0, 70.0)
    assert one.found == [(3, 30.0), (2, 30.0), (2, 30.0)]
    assert "2 streams 240p" in one.sizing()
    assert "(3 runs: 2 to 3, p99 20 to 20 ms)" in one.sizing()


def test_the_bound_counts(search):
    assert search(1e9, bound=45.0).found == [(4, 30.0)]
    assert search(1e9, most=5).found == [(5, 30.0)]


def test_where_not_even_one_stream_fits_the_highest_rate_is_searched(search):
    one = search(7.5, 7.5)
    assert one.found == [(1, 7.0)] * 2
    assert "1 stream 240p at 7 fps, frtm-fast" in one.sizing()
    assert max(row.case.fps for row in one.rows() if row.details["fit"]) == 7
    assert "1 at 7 fps to 1 at 12 fps" in search(7.5, 12.9, 7.5).sizing()


def test_where_nothing_fits_it_says_so(search):
    one = search(0.5)
    assert one.found == [(0, 0.0)]
    assert "not even 1 stream 240p at 1 fps, frtm-fast, p99 below 100 ms" in one.rows()[0].details["sizing"]


def test_why_a_try_does_not_fit():
    assert Try(failed="it died").reason(100) == "it died"
    assert "every stream" in Try().reason(100)
    assert "s1 came too late" in Try({"s0": [1.0] * 9, "s1": [1.0] * 8}, expected=9).reason(100)
    assert Try({"s0": [150.0] * 9}, expected=9).reason(100) == "p99 150 ms"
    assert Try({"s0": [50.0] * 9}, expected=9).reason(100) is None


def test_a_try_in_a_real_pipeline(tmp_path, capsys):
    """At two frames a second and with a bound of a minute, one small stream fits anywhere."""
    path = tmp_path / "rows.jsonl"
    arguments = (
        "--methods frtm-fast --size 64x96 --objects 3 --fps 2 --p99 60000 --most 1 --runs 1 --seconds 1"
    )
    arguments += f" --threads 1 --json {path}"
    assert main(["bench", "capacity", *arguments.split()]) == 0
    captured = capsys.readouterr()
    assert "at most" in captured.err
    (row,) = read(path)
    assert (row.case.streams, row.case.placement, row.details["tries"]) == (1, "fused", 1)
    if row.failed is None:  # on a busy machine frames may be dropped even so
        assert row.count >= 1
        assert row.memory_mib.peak > 100
    assert row.details["sizing"] in captured.out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--methods", "nope"], "unknown method 'nope'"),
        (["--placement", "tcp"], "--placement is fused or split"),
        (["--size", "8x8"], "--size '8x8'"),
        (["--objects", "0"], "--objects '0'"),
        (["--most", "0"], "--most"),
    ],
)
def test_bad_input_ends_in_one_line(capsys, arguments, part):
    assert main(["bench", "capacity", *arguments]) == 2
    captured = capsys.readouterr()
    assert part in captured.err
    assert (captured.out, len(captured.err.splitlines())) == ("", 1)
