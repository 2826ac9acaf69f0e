"""Memory that stays, by the counts of Python and of the C library."""

from __future__ import annotations

import ctypes
import gc
import tracemalloc
from collections.abc import Callable

STRETCHES = 3


def growth(work: Callable[[], None]) -> int:
    """Bytes that stay after some work, each time it is done.

    The least of a few times: what stays of every frame is in all of them. One may hold more, since a table of
    the interpreter's own (of the strings it interned, such as parts of paths) doubles when it is full, by
    megabytes after a long day of tests.

    Args:
        work: what is done; it is called `STRETCHES` times.
    """
    grown = []
    tracemalloc.start()
    try:
        for _ in range(STRETCHES):
            before, _ = tracemalloc.get_traced_memory()
            work()
            gc.collect()
            grown.append(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    return min(grown)


class _Mallinfo2(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def allocated() -> int:
    """Bytes that malloc has given out: tensors, arrays, codecs. Exact, where the resident set grows in steps.

    Needs glibc 2.33 or newer.
    """
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)
