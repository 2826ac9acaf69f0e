"""What the node's loop waits for: the newest picture, and requests from services.

Pictures and requests come in the transport's threads; everything that touches the segmenter happens in the
loop's thread. A picture that was not taken is dropped for a newer one, and counted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

from streamvos.types import InputError


@dataclass
class Order:
    """A request that the loop carries out.

    Attributes:
        work: called in the loop's thread, with the picture where it needs one; its value or exception goes to
            who asked.
        with_frame: whether it needs the next picture.
    """

    work: Callable[..., Any]
    with_frame: bool
    done: Future[Any] = field(default_factory=Future)


class Inbox:
    """Attributes:
    arrived: pictures that came.
    dropped: those of them that were dropped for newer ones.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._picture: tuple[bytes, int] | None = None
        self._orders: deque[Order] = deque()
        self.arrived, self.dropped = 0, 0

    def put_picture(self, content: bytes) -> None:
        """Take a picture, instead of an older one that waits."""
        with self._changed:
            self.arrived += 1
            self.dropped += self._picture is not None
            self._picture = content, time.monotonic_ns()
            self._changed.notify_all()

    def discard_picture(self) -> None:
        """Forget a picture that waits: it is not of interest any more."""
        with self._changed:
            self._picture = None

    def ask(self, work: Callable[..., Any], timeout: float, with_frame: bool = False) -> Any:
        """Let the loop do something, and wait for its value, or raise its exception.

        Args:
            work: see `Order`.
            timeout: longest time in seconds until it begins.
            with_frame: see `Order`.

        Raises:
            InputError: it did not begin in time, for want of a picture or because the node is busy.
        """
        order = Order(work, with_frame)
        with self._changed:
            self._orders.append(order)
            self._changed.notify_all()
        wait([order.done], timeout)
        if order.done.cancel():
            what = "no picture came" if with_frame else "the node was busy"
            raise InputError(f"{what} for {timeout:g} s")
        return order.done.result()  # what has begun is waited for: who asked must know whether it was done

    def wait(self, timeout: float, pictures: bool) -> tuple[tuple[bytes, int] | None, list[Order]]:
        """The newest picture with the time of its arrival, and what is to be done; either may be missing.

        Args:
            timeout: longest wait in seconds.
            pictures: whether a picture is wanted; without one, requests that need it stay.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_due(pictures), timeout)
            picture = self._picture if pictures else None
            if picture is not None:
                self._picture = None
            due = [one for one in self._orders if picture is not None or not one.with_frame]
            self._orders = deque(one for one in self._orders if one not in due and not one.done.cancelled())
            return picture, [one for one in due if one.done.set_running_or_notify_cancel()]

    def wake(self) -> None:
        """Let `wait` return."""
        with self._changed:
            self._changed.notify_all()

    def _is_due(self, pictures: bool) -> bool:
        has_picture = pictures and self._picture is not None
        return has_picture or any(not one.with_frame for one in self._orders)


def carry_out(order: Order) -> None:
    """Do what was asked; who asked gets the value or the exception."""
    try:
        value = order.work()
    except Exception as error:
        order.done.set_exception(error)
    else:
        order.done.set_result(value)
