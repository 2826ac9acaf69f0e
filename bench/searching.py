"""The largest number that still works, in few tries.

>>> tried = []
>>> highest(lambda n: tried.append(n) or n <= 11, most=64), tried
(11, [1, 2, 4, 8, 16, 12, 10, 11])
"""

from __future__ import annotations

from collections.abc import Callable


def highest(works: Callable[[int], bool], most: int, guess: int = 1) -> int:
    """The largest number in 1 .. `most` that works; 0 = none does.

    From `guess` on, steps double until the answer is enclosed; then halves of what is left are tried. A good
    guess costs two tries, any other at most about 2 log2(most).

    Args:
        works: asked at most once for each number. If it is not so that every number below one that works
            works too (measurements vary), some border between both is found.
        most: the largest number to try.
        guess: where to begin.
    """
    low, high = 0, most + 1  # 0 works; `most` + 1 counts as one that does not
    at, step = max(1, min(guess, most)), 1
    while high - low > 1:
        if works(at):
            low, at = at, at + step
        else:
            high, at = at, at - step
        step *= 2
        enclosed = low > 0 and high <= most
        at = (low + high) // 2 if enclosed else max(1, min(at, most))
    return low
