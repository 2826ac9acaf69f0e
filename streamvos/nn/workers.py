"""Runs tiles of tensor work on a few threads, one tile per thread at a time.

PyTorch splits every single operation over its threads. For operations of a few hundred microseconds that
costs more than it gains: each ends in a barrier at which all threads wait for the slowest (much worse on a
busy machine), and threads read what others have in their caches. Whole tiles per thread need no barrier and
stay in the cache of one core. PyTorch's operations release the interpreter lock, so Python threads suffice.

    >>> run_tiles([1, 2, 3], lambda: lambda tile: tile * tile)
    [1, 4, 9]
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Tile = TypeVar("Tile")
Answer = TypeVar("Answer")

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = threading.Lock()


def _forget_pools() -> None:
    """For a forked child, which has none of its parent's threads."""
    global _lock
    _pools.clear()
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_forget_pools)


def _pool(count: int) -> ThreadPoolExecutor:
    """A pool of `count` threads in each of which PyTorch's operations run on that thread alone."""
    with _lock:
        if count not in _pools:
            everyone = threading.Barrier(count + 1)

            def settle() -> None:
                torch.get_num_threads()  # the thread takes the process's setting the first time it is asked
                torch.set_num_threads(1)
                everyone.wait()

            pool = ThreadPoolExecutor(count, thread_name_prefix="streamvos-tiles")
            for _ in range(count):
                pool.submit(settle)
            everyone.wait()
            # set_num_threads(1) also changed the setting of threads that start later
            torch.set_num_threads(count)
            _pools[count] = pool
        return _pools[count]


def run_tiles(
    tiles: Sequence[Tile],
    make_work: Callable[[], Callable[[Tile], Answer]],
    parallel: bool = True,
) -> list[Answer]:
    """Answers for all `tiles`, in their order.

    Args:
        tiles: pieces of work of about equal size.
        make_work: called once per thread; returns the function that handles one tile. Scratch memory that
            the tiles of one thread share belongs to the closure of that function.
        parallel: False runs everything on the calling thread, as is best for a GPU.

    Raises:
        Exception: the work has raised it; the other threads stop after their current tile.
    """
    threads = torch.get_num_threads() if parallel else 1
    if threads <= 1:
        work = make_work()
        return [work(tile) for tile in tiles]
    waiting = deque(enumerate(tiles))
    answers: dict[int, Answer] = {}

    def drain() -> None:
        with torch.no_grad():  # gradient mode belongs to a thread and is on in a new one
            work = make_work()
            while True:
                try:
                    index, tile = waiting.popleft()
                except IndexError:
                    return
                try:
                    answers[index] = work(tile)
                except BaseException:
                    waiting.clear()
                    raise

    pool = _pool(threads)
    for future in [pool.submit(drain) for _ in range(min(threads, len(tiles)))]:
        future.result()
    return [answers[index] for index in range(len(tiles))]


def run_whole(function: Callable[[], Answer], parallel: bool = True) -> Answer:
    """The answer of `function`, whose operations are too small to be split over threads."""
    return run_tiles([None], lambda: lambda _: function(), parallel)[0]
