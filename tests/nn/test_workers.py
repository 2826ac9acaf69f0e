"""Tiles of work on several threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from streamvos.nn.workers import run_tiles, run_whole


@pytest.fixture(params=[1, 2, 3])
def threads(request) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_answers_come_in_the_order_of_the_tiles(threads):
    def slowest_first(tile: int) -> int:
        time.sleep(0.002 * (10 - tile))
        return tile * tile

    assert run_tiles(range(10), lambda: slowest_first) == [tile * tile for tile in range(10)]
    assert run_tiles([], lambda: slowest_first) == []
    assert run_whole(lambda: 7) == 7


def test_each_thread_makes_its_own_work_and_no_operation_is_split(threads):
    seen = []

    def make_work():
        mine = threading.get_ident()

        def work(tile: int) -> bool:
            seen.append(torch.get_num_threads())
            time.sleep(0.001)
            return threading.get_ident() == mine and not torch.is_grad_enabled()

        return work

    with torch.no_grad():
        assert all(run_tiles(range(20), make_work))
    assert set(seen) == {1}


def test_the_threads_of_everyone_else_stay_as_they_were(threads):
    run_tiles(range(5), lambda: lambda tile: torch.randn(10**5).sum())
    assert torch.get_num_threads() == threads
    born_later: list[int] = []
    thread = threading.Thread(target=lambda: born_later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert born_later == [threads]


def test_an_error_reaches_the_caller_and_the_rest_is_left(threads):
    done = []

    def work(tile: int) -> None:
        if tile == 3:
            raise ValueError("tile 3 is bad")
        done.append(tile)
        time.sleep(0.002)

    with pytest.raises(ValueError, match="tile 3 is bad"):
        run_tiles(range(1000), lambda: work)
    assert len(done) < 100
    assert run_tiles([1, 2], lambda: str) == ["1", "2"]  # and the threads are still there


def test_several_callers_at_once(threads):
    answers: dict[int, list[int]] = {}

    def call(base: int) -> None:
        answers[base] = run_tiles(range(base, base + 50), lambda: lambda tile: tile + 1)

    # each of these threads takes the process's number of threads as its own
    callers = [threading.Thread(target=call, args=(100 * k,)) for k in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert answers == {100 * k: list(range(100 * k + 1, 100 * k + 51)) for k in range(6)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_starts_threads_of_its_own(threads):
    run_tiles([1, 2, 3], lambda: lambda tile: tile)
    child = os.fork()
    if child == 0:
        worked = run_tiles([1, 2, 3], lambda: lambda tile: tile) == [1, 2, 3]
        os._exit(0 if worked else 1)
    deadline = time.monotonic() + 30
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.waitpid(child, 0)
            pytest.fail("the child waits for threads that it does not have")
        time.sleep(0.01)
    assert status == 0
